//! The launches of every operation, as it will enqueue them, with what each reads, writes and computes. Bytes are those that
//! are touched at least once; tests hold them against what an emulator counts.

use super::cosine_matrix::{COSINE_MATRIX, cosine_matrix_workspace_bytes, multiplied};
use super::descriptor::{RawBatch, RawMat};
use super::gather;
use super::goal::THREADS;
use super::goal_params::stats_of;
use super::goal_plan::{KEYS, TICKETS, blocks, goal_step_workspace_bytes};
use super::goal_small;
use super::inverse_index::index_launches;
use super::op_plan::{Arithmetic, Floor, Plan, PlannedLaunch};
use super::plan::{PlanDevice, Scheme, SweepKernel, SweepPlan, SweepShape, TILE};
use super::prepare::{BLOCK, Prepare, Wants, by_dtype};
use super::row_norms::gradient_kernel;
use super::split::{SPLIT, Split, choice, splits};
use super::sweep::{MINE, MINE_STATS, Select, Stats, collected, key_words, sweep_plan_on};
use super::tile_kernel::tile_plan_on;
use super::weighted_grad::weighted_grad_workspace_bytes;
use super::workspace::Layout;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::options::{CosineOptions, Normalization, Precision};

/// Threads of a block of `mine_merge`.
const MERGE_BLOCK: u32 = 256;
/// Addresses of inputs: any that is aligned.
const SOMEWHERE: u64 = 256;

/// Partial results of a sweep.
#[derive(Clone, Copy)]
pub(super) struct Left {
    /// Bytes of them.
    pub bytes: f64,
    /// Of these, what the sweep itself reads.
    pub read: f64,
}

/// Extents and type of the inputs, and the device.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    pub op: &'static str,
    pub batch: usize,
    pub n: usize,
    pub m: usize,
    pub d: usize,
    pub dtype: DType,
    pub device: PlanDevice,
}

impl Inputs {
    pub(super) fn new(op: &'static str, [n, m, d]: [usize; 3], dtype: DType, device: PlanDevice) -> Result<Self> {
        let inputs = Self { op, batch: 1, n, m, d, dtype, device };
        inputs.matrix(n).check(op, "x")?;
        inputs.matrix(m).check(op, "y")?;
        if d == 0 {
            return Err(Error::EmptyDim { op, arg: "x" });
        }
        Ok(inputs)
    }

    pub(super) fn matrix(&self, rows: usize) -> RawMat {
        RawMat::new(SOMEWHERE, rows, self.d, self.dtype)
    }

    fn batches(&self) -> [RawBatch; 2] {
        [self.n, self.m].map(|rows| RawBatch {
            batch: self.batch,
            batch_stride: rows * self.d,
            ..RawBatch::from(self.matrix(rows))
        })
    }

    pub(super) fn prepare(&self, wants: Wants) -> Result<Prepare> {
        let [x, y] = &self.batches();
        Prepare::plan(&mut Layout::new(self.op), self.op, [x, y], Normalization::L2, &wants)
    }

    /// `split`, which takes the place of `prepare`.
    fn split(&self) -> Result<PlannedLaunch> {
        let [x, y] = &self.batches();
        let split = Split::plan(&mut Layout::new(self.op), self.op, [x, y], Normalization::L2)?;
        let (blocks, read, written) = split.traffic();
        Ok(self.simple(SPLIT, (blocks, 1, 1), BLOCK, [read, written]))
    }

    pub(super) const fn size(&self) -> f64 {
        self.dtype.size() as f64
    }

    pub(super) fn lines(&self) -> f64 {
        (self.n + self.m) as f64
    }

    /// Bytes of so many rows.
    pub(super) fn rows(&self, rows: f64) -> f64 {
        rows * self.d as f64 * self.size()
    }

    /// Bytes of both inputs.
    pub(super) fn operands(&self) -> f64 {
        self.batch as f64 * self.rows(self.lines())
    }

    pub(super) fn shape(&self) -> SweepShape {
        SweepShape { batch: self.batch, n: self.n, m: self.m, d: self.d, dtype: self.dtype }
    }

    pub(super) const fn arithmetic(&self) -> Arithmetic {
        match self.dtype {
            DType::F16 | DType::Bf16 => Arithmetic::Tensor,
            DType::F32 | DType::F64 => Arithmetic::MultiplyAdd,
        }
    }

    /// Operations of the products of so many tiles, which are made whole and in steps of 128 bytes, or in halves of them.
    fn of_tiles(&self, scheme: Scheme, tiles: f64, [rows, cols]: [usize; 2]) -> f64 {
        let step = if scheme == Scheme::WarpSlices { 64 } else { 128 };
        let depth = (self.d * self.dtype.size()).next_multiple_of(step) / self.dtype.size();
        2.0 * tiles * (rows * cols) as f64 * depth as f64
    }

    /// Operations of one product of all rows with all rows.
    pub(super) fn product(&self) -> f64 {
        2.0 * self.batch as f64 * self.n as f64 * self.m as f64 * self.d as f64
    }

    /// A kernel that neither sweeps nor multiplies.
    pub(super) fn simple(
        &self,
        kernel: &'static str,
        grid: (u32, u32, u32),
        block: u32,
        [read, written]: [f64; 2],
    ) -> PlannedLaunch {
        let arithmetic = self.arithmetic();
        PlannedLaunch {
            kernel,
            grid,
            block,
            shared_bytes: 0,
            scheme: Scheme::WarpMma,
            sweep: None,
            operations: 0.0,
            arithmetic,
            read,
            written,
            again: 0.0,
        }
    }

    pub(super) fn prepared(&self, launches: &mut Vec<PlannedLaunch>, prepare: &Prepare) {
        if let Some((blocks, read, written)) = prepare.traffic() {
            let kernel = by_dtype(self.dtype, ["prepare_f32", "prepare_f16", "prepare_bf16"]);
            launches.push(self.simple(kernel, (blocks, 1, 1), BLOCK, [read, written]));
        }
    }

    /// A sweep that reads both operands and the factors of their rows, if there are any.
    pub(super) fn sweep(
        &self,
        kernel: &'static str,
        plan: SweepPlan,
        scaled: bool,
        [read, written]: [f64; 2],
    ) -> PlannedLaunch {
        let shape = &plan.shape;
        let lines = shape.batch as f64 * (shape.n + shape.m) as f64;
        let factors = if scaled { 4.0 * lines } else { 0.0 };
        // The second block of a cluster may have no rows, and makes its tile all the same.
        let rows = shape.n.div_ceil(plan.tile_rows * plan.cluster) * plan.cluster;
        let tiles = shape.batch as f64 * rows as f64 * shape.m.div_ceil(plan.tile_cols) as f64;
        PlannedLaunch {
            shared_bytes: plan.shared_bytes,
            scheme: plan.scheme,
            sweep: Some(plan),
            operations: self.of_tiles(plan.scheme, tiles, [plan.tile_rows, plan.tile_cols]),
            ..self.simple(kernel, plan.grid, plan.threads, [self.rows(lines) + factors + read, written])
        }
    }

    /// How the operation sweeps for `stats`: the plan, the kernel, and what it leaves.
    pub(super) fn mining(&self, select: Select, stats: Stats) -> (SweepPlan, &'static str, Left) {
        let plan = sweep_plan_on(self.device, self.dtype, select, [self.n, self.m], self.d);
        let stats = collected(&plan, stats);
        let kernel = if stats as u32 <= Stats::None as u32 { &MINE } else { &MINE_STATS };
        let (n, m) = (self.n as f64, self.m as f64);
        let left = match stats {
            // One for each row and column, read and written by everybody.
            Stats::Keys => Left { bytes: 8.0 * (n + m), read: 8.0 * (n + m) },
            _ => {
                let lines = n * plan.splits.cols as f64 + m * plan.splits.rows as f64;
                Left { bytes: 4.0 * stats.planes() as f64 * lines, read: 0.0 }
            }
        };
        (plan, kernel.name(self.dtype, plan.scheme), left)
    }

    /// The sweep over the tiles with the pairs alone, which writes `more` besides, and what it leaves.
    pub(super) fn pairs(&self, scaled: bool, more: f64) -> (PlannedLaunch, Left) {
        let (plan, kernel, left) = self.mining(Select::Pair, Stats::None);
        // The tiles are whole, also where one matrix ends before the other; narrow ones lie side by side, as far as there are
        // columns.
        let [rows, cols] = if plan.scheme == Scheme::WarpSlices { [plan.tile_rows, plan.tile_cols] } else { [TILE; 2] };
        let reach = self.n.min(self.m).next_multiple_of(rows);
        let count = (reach / cols).min(self.m.div_ceil(cols));
        let lines = (self.n.min(reach) + self.m.min(reach)) as f64;
        let factors = if scaled { 4.0 * lines } else { 0.0 };
        let traffic = [self.rows(lines) + factors + left.read, left.bytes + more];
        let launch = PlannedLaunch {
            shared_bytes: plan.shared_bytes,
            scheme: plan.scheme,
            operations: self.of_tiles(plan.scheme, count as f64, [rows, cols]),
            ..self.simple(kernel, plan.grid, plan.threads, traffic)
        };
        (launch, left)
    }

    /// `mine_merge`: from what a sweep has left to as many bytes per line.
    pub(super) fn merge(&self, left: Left, bytes: f64) -> PlannedLaunch {
        let blocks = (self.n + self.m).div_ceil(MERGE_BLOCK as usize) as u32;
        self.simple("mine_merge", (blocks, 1, 1), MERGE_BLOCK, [left.bytes, bytes * self.lines()])
    }

    pub(super) fn plan(self, launches: Vec<PlannedLaunch>, workspace_bytes: usize, floor: Floor) -> Plan {
        let Self { op, batch, n, m, d, dtype, device } = self;
        Plan { op, batch, n, m, d, dtype, device, launches, choices: Vec::new(), workspace_bytes, floor }
    }

    /// The least for `products` products in 16 bits, `exact` in f32, and so many bytes of results.
    pub(super) fn floor(
        &self,
        [products, exact]: [f64; 2],
        [why, why_exact]: [&'static str; 2],
        results: f64,
        launches: u32,
    ) -> Floor {
        let wide = self.arithmetic() == Arithmetic::MultiplyAdd;
        let (products, why) = if wide { (exact, why_exact) } else { (products, why) };
        Floor { operations: products * self.product(), why, bytes: self.operands() + results, launches }
    }
}

const ONE: [f64; 2] = [1.0, 3.0];
pub(super) const SCREENED: [f64; 2] = [1.0, 1.05];
const WHY_MATRIX: [&str; 2] = ["one product", "one product of f32 as three of bf16"];
pub(super) const WHY_MINED: [&str; 2] =
    ["one product", "a product of bf16 that tells who comes into question, and those again in f32"];

impl Plan {
    /// Of [`cosine_matrix`](super::cosine_matrix()) of `batch` matrices, into `out`.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::EmptyDim`], [`Error::UnsupportedDType`].
    #[allow(clippy::too_many_arguments)]
    pub fn cosine_matrix(
        batch: usize,
        n: usize,
        m: usize,
        d: usize,
        dtype: DType,
        out: DType,
        precision: Precision,
        device: PlanDevice,
    ) -> Result<Self> {
        let op = "cosine_matrix";
        let inputs = Inputs { batch, ..Inputs::new(op, [n, m, d], dtype, device)? };
        RawMat::new(SOMEWHERE, n, m, out).check(op, "out")?;
        let options = CosineOptions { precision, ..CosineOptions::default() };
        let workspace = cosine_matrix_workspace_bytes(batch, n, m, d, dtype, &options)?;
        let prepare = inputs.prepare(Wants::default())?;
        let results = batch as f64 * n as f64 * m as f64 * out.size() as f64;
        let mut launches = Vec::new();
        if results > 0.0 {
            let split = splits(precision, dtype);
            if split {
                launches.push(inputs.split()?);
            } else {
                inputs.prepared(&mut launches, &prepare);
            }
            let (d, dtype) = multiplied(&options, d, dtype);
            let operands = Inputs { d, dtype, ..inputs };
            let sweep = tile_plan_on(device, SweepKernel::CosineMatrix, operands.shape());
            let kernel = COSINE_MATRIX.name(dtype, sweep.scheme);
            launches.push(operands.sweep(kernel, sweep, split || prepare.scaled(), [0.0, results]));
        }
        let floor = inputs.floor(ONE, WHY_MATRIX, results, 2);
        let mut plan = inputs.plan(launches, workspace, floor);
        plan.choices.extend(choice(precision, dtype, splits(precision, dtype)));
        Ok(plan)
    }

    /// Of [`goal_step`](super::goal_step()) for `n` pairs, with gradients of type `gradient`.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::EmptyDim`], [`Error::UnsupportedDType`].
    pub fn goal_step(
        n: usize,
        d: usize,
        dtype: DType,
        gradient: DType,
        objective: &Objective,
        device: PlanDevice,
    ) -> Result<Self> {
        let op = "goal_step";
        let inputs = Inputs::new(op, [n, n, d], dtype, device)?;
        let workspace = goal_step_workspace_bytes(n, d, dtype, objective, Normalization::L2, false)?;
        let (stats, rows) = (stats_of(objective, false), n as f64);
        let zeroed = if stats == Stats::None { KEYS + key_words(n, n) } else { TICKETS };
        let pmin = objective.pair().eps().is_some();
        let prepare = inputs.prepare(Wants { row_facts: true, norms: true, pmin, zeroed, any_layout: false })?;
        let mut launches = Vec::new();
        inputs.prepared(&mut launches, &prepare);
        let (sweep, kernel, left) = inputs.mining(Select::Negatives, stats);
        if n > 0 {
            // The pairs' similarities too.
            let traffic = [left.read, left.bytes + 4.0 * rows];
            launches.push(inputs.sweep(kernel, sweep, prepare.scaled(), traffic));
        }
        let results = inputs.lines() * d as f64 * gradient.size() as f64;
        if goal_small::covers(n) && sweep.scheme != Scheme::GroupMma {
            let kernel = gradient_kernel(op, "dx", dtype, gradient, &goal_small::KERNELS)?;
            let (grid, block) = goal_small::launch_shape(n, d);
            // The pairs and facts of the rows.
            let read = inputs.operands() + left.bytes + 20.0 * rows;
            launches.push(inputs.simple(kernel, grid, block, [read, results]));
        } else {
            let kernel = gradient_kernel(op, "dx", dtype, gradient, &gather::KERNELS)?;
            // The pairs, facts of the rows, and what the inverse index is sorted from; coefficients and the index.
            let finalize = [left.bytes + 40.0 * rows, 51.0 * rows];
            launches.push(inputs.simple("goal_finalize", (blocks(n) as u32, 2, 1), THREADS, finalize));
            let read = inputs.operands() + 56.0 * rows;
            launches.push(inputs.simple(kernel, (2 * n as u32, 1, 1), gather::threads(d), [read, results]));
        }
        let floor = inputs.floor(SCREENED, WHY_MINED, results, 3);
        Ok(inputs.plan(launches, workspace, floor))
    }

    /// Of [`weighted_grad`](super::weighted_grad()) with `triples` triples and gradients of type `gradient`.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::EmptyDim`], [`Error::UnsupportedDType`].
    pub fn weighted_grad(
        n: usize,
        m: usize,
        d: usize,
        dtype: DType,
        gradient: DType,
        triples: usize,
        device: PlanDevice,
    ) -> Result<Self> {
        let op = "weighted_grad";
        let inputs = Inputs::new(op, [n, m, d], dtype, device)?;
        let kernel = gradient_kernel(op, "dx", dtype, gradient, &gather::KERNELS)?;
        let workspace = weighted_grad_workspace_bytes(n, m, d, dtype, triples, Normalization::L2)?;
        let prepare = inputs.prepare(Wants { norms: true, ..Wants::default() })?;
        let (count, lines) = (triples as f64, inputs.lines());
        let mut launches = Vec::new();
        inputs.prepared(&mut launches, &prepare);
        for of in index_launches([n, m], triples) {
            let traffic = of.traffic([n, m], triples);
            launches.push(inputs.simple(of.kernel, of.grid, of.threads, traffic));
        }
        let results = lines * d as f64 * gradient.size() as f64;
        if n + m > 0 {
            if let Some((kernel, grid)) = gather::hub_launch(dtype, d, triples) {
                // Without a row of many triples: a place of each list, its row, and where that begins and ends.
                let read = 2.0 * 16.0 * gather::hub_sums(triples) as f64;
                launches.push(inputs.simple(kernel, grid, gather::HUB_THREADS, [read, 0.0]));
            }
            // Norms and offsets per line; both lists, rows, columns and weights of the triples.
            let read = inputs.operands() + 12.0 * lines + 20.0 * count;
            launches.push(inputs.simple(kernel, ((n + m) as u32, 1, 1), gather::threads(d), [read, results]));
        }
        let floor = Floor {
            operations: 0.0,
            why: "no product: a multiply-add for every triple and feature",
            bytes: inputs.operands() + 12.0 * count + results,
            launches: 2,
        };
        Ok(inputs.plan(launches, workspace, floor))
    }
}
