//! As `op_launches.rs`, of the steps over all pairs.

use super::op_launches::Inputs;
use super::op_plan::{Floor, Plan, PlannedLaunch};
use super::pairwise_grad_hopper::{GRAD_SHARED_BYTES, by_groups, planned_products, planned_split};
use super::pairwise_gradient::{FINISH, GRAD, finish_threads};
use super::pairwise_params::{COL_PLANES, Form, LINES, ROW_PLANES, SET_PLANES};
use super::pairwise_plan::{self, Grant, Kept, Kind, Wave, finalize_blocks, pairwise_workspace_bytes};
use super::pairwise_step::{STATS, WEIGHTS};
use super::plan::{PlanDevice, Scheme, SweepKernel, SweepPlan, SweepShape, TILE, TILE_BLOCK, TILE_SHARED_BYTES, tiles};
use super::prepare::by_dtype;
use super::row_norms::gradient_kernel;
use crate::dtype::DType;
use crate::error::Result;
use crate::mixture::PairwisePart;
use crate::options::Normalization;
use crate::pairwise::PairwiseObjective;

const OP: &str = "pairwise_step";

/// A step and the numbers that its launches follow from.
struct Step<'a> {
    inputs: Inputs,
    plan: &'a pairwise_plan::Plan,
    launches: Vec<PlannedLaunch>,
}

impl Step<'_> {
    fn form(&self) -> &super::pairwise_params::ObjectiveForm {
        &self.plan.parts[0].form
    }

    /// Bytes of all similarities, where they are kept.
    fn kept(&self) -> f64 {
        let all = (tiles(self.inputs.n) * TILE) as f64 * self.plan.ld_weights as f64 * 4.0;
        if matches!(self.plan.kept, Kept::All(_)) { all } else { 0.0 }
    }

    fn pairs(&self) -> f64 {
        self.inputs.n.min(self.inputs.m) as f64
    }

    /// Words of states that a sweep leaves in every split.
    fn states(&self) -> f64 {
        let Inputs { n, m, .. } = self.inputs;
        let splits = self.plan.splits;
        let other = if self.form().both { splits.rows * m } else { splits.cols * n };
        (SET_PLANES * (splits.cols * n + other)) as f64
    }

    /// A sweep of all similarities. `stored` and `loaded` tell whether they are in memory, after and before it.
    fn sweep_all(&mut self, stored: bool, loaded: bool) {
        let form = *self.form();
        let inputs = self.inputs;
        let sweep = SweepPlan::new(SweepKernel::PairwiseStats, inputs.shape(), inputs.device);
        let kernel = by_dtype(inputs.dtype, STATS[usize::from(form.both)]);
        let pairs = if form.both { 4.0 * self.pairs() } else { 0.0 };
        let written = 4.0 * self.states() + pairs + if stored { self.kept() } else { 0.0 };
        let launch = inputs.sweep(kernel, sweep, self.plan.prepare.scaled(), [0.0, written]);
        let launch = if loaded { self.load(launch) } else { launch };
        self.launches.push(launch);
    }

    /// The same launch with similarities from memory.
    fn load(&self, launch: PlannedLaunch) -> PlannedLaunch {
        let part = launch.sweep.map_or(0.0, |sweep| tiles(sweep.shape.n) as f64 / tiles(self.inputs.n) as f64);
        let lines = launch.sweep.map_or(0.0, |sweep| (sweep.shape.n + sweep.shape.m) as f64);
        let operands = self.inputs.rows(lines);
        PlannedLaunch { sweep: None, operations: 0.0, read: launch.read - operands + part * self.kept(), ..launch }
    }

    fn statistics(&mut self) {
        let form = *self.form();
        let inputs = self.inputs;
        let (n, m) = (inputs.n as f64, inputs.m as f64);
        let keeps = matches!(self.plan.kept, Kept::All(_));
        let mut loaded = false;
        if inputs.n > 0 && inputs.m > 0 {
            if form.form == Form::Triplet {
                let (pairs, _) = inputs.pairs(self.plan.prepare.scaled(), 4.0 * self.pairs());
                self.launches.push(pairs);
            }
            if form.mined {
                self.sweep_all(keeps, false);
                loaded = keeps;
                let grid = (inputs.n.div_ceil(LINES) as u32, 1, 1);
                let traffic = [4.0 * self.states() / 3.0, 8.0 * n];
                self.launches.push(inputs.simple("pairwise_extremes", grid, LINES as u32, traffic));
            }
            if form.has_statistics() {
                self.sweep_all(keeps && !loaded, loaded);
            }
        }
        let coefficients = 4.0 * (ROW_PLANES as f64 * n + if form.both { COL_PLANES as f64 * m } else { 0.0 });
        // Without statistics facts about rows and a flag per column. Of the states maximum, sum and count.
        let read = if form.has_statistics() {
            2.0 * self.states() + 4.0 * inputs.lines() + 4.0 * self.pairs()
        } else {
            4.0 * (n + inputs.lines())
        };
        let grid = (finalize_blocks(inputs.n, inputs.m) as u32, 1, 1);
        self.launches.push(inputs.simple("pairwise_finalize", grid, LINES as u32, [read, coefficients]));
    }

    fn wave(&mut self, wave: &Wave) {
        let inputs = self.inputs;
        let Inputs { n, m, d, dtype, device, .. } = inputs;
        let form = *self.form();
        let rows = (wave.end * TILE).min(n) - wave.first * TILE;
        let size = if dtype == DType::F32 { 4.0 } else { 2.0 };
        let weights = ((wave.end - wave.first) * TILE) as f64 * self.plan.ld_weights as f64 * size;
        let own = rows.min(m.saturating_sub(wave.first * TILE)) as f64;

        let shape = SweepShape { batch: 1, n: rows, m, d, dtype };
        let sweep = SweepPlan::new(SweepKernel::PairwiseWeights, shape, device);
        let words = if form.both { (3 * (rows + m)) as f64 } else { (ROW_PLANES * rows) as f64 };
        // Every block leaves four sums; without statistics also flags.
        let flags = if form.has_statistics() { 0.0 } else { 4.0 * (rows + m) as f64 };
        let written = weights + 4.0 * own + 32.0 * wave.blocks() as f64 + flags;
        let kernel = by_dtype(dtype, WEIGHTS[usize::from(form.both)]);
        let launch = inputs.sweep(kernel, sweep, self.plan.prepare.scaled(), [4.0 * words, written]);
        let loads = matches!(self.plan.kept, Kept::All(_));
        let launch = if loads { self.load(launch) } else { launch };
        self.launches.push(launch);

        // Each row of tiles of a product has as many blocks beside each other as the features have tiles.
        let (of_rows, of_cols, beside) = (wave.end - wave.first, tiles(m), tiles(d));
        let sums = (self.plan.ld_gradients * 4) as f64;
        let earlier = if wave.first > 0 { sums * m as f64 } else { 0.0 };
        let written = sums * (rows + m) as f64;
        // The weights are read by both products; of the other operand all that does not fit is read by every set of blocks.
        let at_once = (device.multiprocessors as usize / beside.max(1)).max(1);
        let passes = |tiles: usize, bytes: f64| {
            let sets = if bytes > device.l2_bytes as f64 { tiles.div_ceil(at_once) } else { 1 };
            bytes * (sets.max(1) - 1) as f64
        };
        let twice = if weights > device.l2_bytes as f64 { weights } else { 0.0 };
        let again = twice + passes(of_rows, inputs.rows(m as f64)) + passes(of_cols, inputs.rows(rows as f64));
        let launch = if by_groups(&device, dtype, self.plan.shape) {
            let group = planned_products(&device, dtype, self.plan.shape, wave);
            let read = weights + group.rows[0] + group.rows[1] + earlier;
            PlannedLaunch {
                shared_bytes: GRAD_SHARED_BYTES,
                scheme: Scheme::GroupMma,
                operations: group.operations,
                again,
                ..inputs.simple(group.kernel, (group.blocks, 1, 1), group.threads, [read, written])
            }
        } else {
            // A tile of rows sums over all columns, in steps of 128 bytes, one of columns over the wave's tiles; f16 twice.
            let exact = if dtype == DType::F16 { 2.0 } else { 1.0 };
            let depth = m.next_multiple_of(if dtype == DType::F32 { 32 } else { 64 });
            let tile = (2 * TILE * TILE * beside) as f64;
            let operations = exact * tile * (of_rows as f64 * depth as f64 + of_cols as f64 * (of_rows * TILE) as f64);
            let read = weights + inputs.rows((rows + m) as f64) + earlier;
            let grid = (((of_rows + of_cols) * beside) as u32, 1, 1);
            PlannedLaunch {
                shared_bytes: TILE_SHARED_BYTES,
                operations,
                again,
                ..inputs.simple(by_dtype(dtype, GRAD), grid, TILE_BLOCK, [read, written])
            }
        };
        self.launches.push(launch);
    }

    /// The parts of f16 rows, for products by groups.
    fn split(&mut self) {
        let inputs = self.inputs;
        let wanted = inputs.dtype == DType::F16 && by_groups(&inputs.device, inputs.dtype, self.plan.shape);
        if wanted && inputs.n > 0 && inputs.m > 0 {
            let split = planned_split(self.plan.shape);
            let traffic = [inputs.operands(), split.rows[0] + split.rows[1]];
            self.launches.push(inputs.simple(split.kernel, (split.blocks, 1, 1), split.threads, traffic));
        }
    }

    fn finish(&mut self, kernel: &'static str, results: f64) {
        let inputs = self.inputs;
        if inputs.n + inputs.m == 0 {
            return;
        }
        let sums =
            if inputs.n > 0 && inputs.m > 0 { (self.plan.ld_gradients * 4) as f64 * inputs.lines() } else { 0.0 };
        let read = inputs.operands() + sums + 8.0 * inputs.lines() + 4.0 * self.pairs();
        let grid = ((inputs.n + inputs.m) as u32, 1, 1);
        self.launches.push(inputs.simple(kernel, grid, finish_threads(inputs.d), [read, results]));
    }
}

/// Products of the least implementation, with room for a word per pair and without.
fn floor_of(inputs: &Inputs, results: f64, launches: u32) -> Floor {
    let why = ["three products: similarities, and both gradients", "three products of f32, each as three of bf16"];
    inputs.floor([3.0, 9.0], why, results, launches)
}

impl Plan {
    /// Of [`pairwise_step`](super::pairwise_step()) with gradients of type `gradient`, at most `wave_bytes` for weights and
    /// `keep_bytes` for similarities.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge), [`Error::EmptyDim`](crate::Error::EmptyDim),
    /// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
    #[allow(clippy::too_many_arguments)]
    pub fn pairwise_step(
        n: usize,
        m: usize,
        d: usize,
        dtype: DType,
        gradient: DType,
        objective: &PairwiseObjective,
        wave_bytes: usize,
        keep_bytes: usize,
        device: PlanDevice,
    ) -> Result<Self> {
        Self::of_pairs(OP, [n, m, d], [dtype, gradient], objective, Grant { wave_bytes, keep_bytes }, device)
    }

    /// Of [`raw::pairwise_statistics`](super::raw::pairwise_statistics), what [`pairwise_step`](super::pairwise_step()) does
    /// before it weighs pairs: for InfoNCE the log-sum-exp of every row and column.
    ///
    /// # Errors
    /// As [`Self::pairwise_step`].
    pub fn pairwise_statistics(
        n: usize,
        m: usize,
        d: usize,
        dtype: DType,
        objective: &PairwiseObjective,
        device: PlanDevice,
    ) -> Result<Self> {
        let grant = Grant { wave_bytes: 1, keep_bytes: 0 };
        Self::of_pairs("pairwise_statistics", [n, m, d], [dtype, DType::F32], objective, grant, device)
    }

    fn of_pairs(
        op: &'static str,
        extents: [usize; 3],
        [dtype, gradient]: [DType; 2],
        objective: &PairwiseObjective,
        grant: Grant,
        device: PlanDevice,
    ) -> Result<Self> {
        let inputs = Inputs::new(op, extents, dtype, device)?;
        let [n, m, d] = extents;
        let kernel = gradient_kernel(op, "dx", dtype, gradient, &FINISH)?;
        let l2 = Normalization::L2;
        let workspace = pairwise_workspace_bytes(n, m, d, dtype, objective, l2, grant.wave_bytes, grant.keep_bytes)?;
        let part = [PairwisePart::new(1.0, *objective)];
        let y = inputs.matrix(m);
        let plan = pairwise_plan::Plan::new(Kind::Step, &inputs.matrix(n), Some(&y), &part, l2, grant, false)?;
        let mut step = Step { inputs, plan: &plan, launches: Vec::new() };
        inputs.prepared(&mut step.launches, &plan.prepare);
        step.statistics();
        if op != OP {
            let floor = inputs.floor(
                [1.0, 3.0],
                ["one product", "one product of f32 as three of bf16"],
                4.0 * inputs.lines(),
                3,
            );
            return Ok(inputs.plan(step.launches, workspace, floor));
        }
        step.split();
        for wave in &plan.waves {
            step.wave(wave);
        }
        let results = inputs.lines() * d as f64 * gradient.size() as f64;
        step.finish(kernel, results);
        // Normalisation, statistics if the weights need them, weights and products, the Jacobian.
        let launches = if step.form().has_statistics() { 4 } else { 3 };
        let floor = floor_of(&inputs, results, launches);
        Ok(inputs.plan(step.launches, workspace, floor))
    }
}
