//! As `op_launches.rs`, of the steps over all pairs.

use super::op_launches::Inputs;
use super::op_plan::{Arithmetic, Floor, Plan, PlannedLaunch};
use super::pairwise_grad_hopper::{GRAD_SHARED_BYTES, GroupProducts, PartsShape, SPLIT};
use super::pairwise_gradient::{FINISH, GRAD, finish_threads};
use super::pairwise_params::{COL_PLANES, Form, LINES, ROW_PLANES, SET_PLANES, SPLIT_THREADS};
use super::pairwise_plan::{self, Grant, Kept, Kind, Wave, finalize_blocks, pairwise_workspace_bytes};
use super::pairwise_sweep::{STATS, Sweeps, WEIGHTS};
use super::plan::{
    GROUP_BLOCK, GROUP_CLUSTER, PlanDevice, Scheme, SweepPlan, SweepShape, TILE, TILE_BLOCK, TILE_SHARED_BYTES, tiles,
};
use super::prepare::{BLOCK, by_dtype};
use super::row_norms::gradient_kernel;
use super::split::{SPLIT as SPLIT_F32, choice};
use crate::dtype::DType;
use crate::error::Result;
use crate::mixture::PairwisePart;
use crate::options::{Normalization, Precision};
use crate::pairwise::PairwiseObjective;

const OP: &str = "pairwise_step";

/// A step and the numbers that its launches follow from.
struct Step<'a> {
    inputs: Inputs,
    plan: &'a pairwise_plan::Plan,
    sweeps: &'a Sweeps,
    launches: Vec<PlannedLaunch>,
}

impl Step<'_> {
    /// What the sweeps multiply.
    fn operands(&self) -> Inputs {
        Inputs { d: self.sweeps.d, dtype: self.sweeps.dtype, ..self.inputs }
    }

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

    /// Words of states that a sweep leaves in all splits.
    fn states(&self) -> f64 {
        let Inputs { n, m, .. } = self.inputs;
        let (stats, of_rows) = (self.sweeps.stats, self.sweeps.stats.splits.cols * n);
        // Negatives alone have no more than a maximum, a sum and a number.
        let words = if self.form().both { 3 * (of_rows + stats.column_states() * m) } else { SET_PLANES * 2 * of_rows };
        words as f64
    }

    /// A sweep of all similarities. `stored` and `loaded` tell whether they are in memory, after and before it.
    fn sweep_all(&mut self, stored: bool, loaded: bool) {
        let form = *self.form();
        let inputs = self.operands();
        let sweep = self.sweeps.stats;
        let kernel = STATS[usize::from(form.both)].name(inputs.dtype, sweep.scheme);
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
        let operands = self.operands().rows(lines);
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
                let (pairs, _) = self.operands().pairs(self.plan.prepare.scaled(), 4.0 * self.pairs());
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
        // Without statistics facts about rows and a flag per column. Of the states maximum, sum and number.
        let read = if form.has_statistics() {
            let words = self.states() * if form.both { 1.0 } else { 0.5 };
            4.0 * words + 4.0 * inputs.lines() + 4.0 * self.pairs()
        } else {
            4.0 * (n + inputs.lines())
        };
        let grid = (finalize_blocks(inputs.n, inputs.m) as u32, 1, 1);
        self.launches.push(inputs.simple("pairwise_finalize", grid, LINES as u32, [read, coefficients]));
    }

    fn wave(&mut self, wave: &Wave, sweep: SweepPlan) {
        let inputs = self.inputs;
        let Inputs { n, m, d, dtype, device, .. } = inputs;
        let form = *self.form();
        let rows = (wave.end * TILE).min(n) - wave.first * TILE;
        let size = if dtype == DType::F32 { 4.0 } else { 2.0 };
        let weights = ((wave.end - wave.first) * TILE) as f64 * self.plan.ld_weights as f64 * size;
        let own = rows.min(m.saturating_sub(wave.first * TILE)) as f64;

        // Of the wave's rows alone.
        let sweep = SweepPlan { shape: SweepShape { n: rows, ..sweep.shape }, ..sweep };
        let words = if form.both { (3 * (rows + m)) as f64 } else { (ROW_PLANES * rows) as f64 };
        // Every block leaves four sums; without statistics also flags.
        let flags = if form.has_statistics() { 0.0 } else { 4.0 * (rows + m) as f64 };
        let written = weights + 4.0 * own + 32.0 * wave.blocks() as f64 + flags;
        let multiplied = self.operands();
        let kernel = WEIGHTS[usize::from(form.both)].name(multiplied.dtype, sweep.scheme);
        let launch = multiplied.sweep(kernel, sweep, self.plan.prepare.scaled(), [4.0 * words, written]);
        let loads = matches!(self.plan.kept, Kept::All(_));
        let launch = if loads { self.load(launch) } else { launch };
        self.launches.push(launch);

        // Each row of tiles of a product has as many blocks, or clusters, beside each other as the features have tiles.
        let groups = self.group_products(wave);
        let [of_rows, of_cols, beside] = match &groups {
            Some(launch) => launch.tiles(),
            None => [wave.end - wave.first, tiles(m), tiles(d)],
        };
        let sums = (self.plan.ld_gradients * 4) as f64;
        let earlier = if wave.first > 0 { sums * m as f64 } else { 0.0 };
        // f16 by groups: two parts of every element, in whole steps of rows and of columns; f32 in parts: all of them.
        let split = self.sweeps.split(self.plan).is_some();
        let operands = |rows: usize| {
            if split {
                multiplied.rows(rows as f64)
            } else if groups.is_some() && dtype == DType::F16 {
                let PartsShape { padded, ld } = PartsShape::new(rows, d);
                4.0 * (padded * ld) as f64
            } else {
                inputs.rows(rows as f64)
            }
        };
        let read = weights + operands(rows) + operands(m) + earlier;
        let written = sums * (rows + m) as f64;
        // The weights are read by both products; of the other operand all that does not fit is read by every set of blocks.
        let of_blocks = if groups.is_some() { GROUP_CLUSTER } else { 1 };
        let at_once = (device.multiprocessors as usize / of_blocks / beside.max(1)).max(1);
        let passes = |tiles: usize, bytes: f64| {
            let sets = if bytes > device.l2_bytes as f64 { tiles.div_ceil(at_once) } else { 1 };
            bytes * (sets.max(1) - 1) as f64
        };
        let twice = if weights > device.l2_bytes as f64 { weights } else { 0.0 };
        let again = twice + passes(of_rows, operands(m)) + passes(of_cols, operands(rows));
        if let Some(groups) = groups {
            let launch = inputs.simple(groups.kernel, groups.grid, GROUP_BLOCK, [read, written]);
            let (operations, shared_bytes) = (groups.operations(), GRAD_SHARED_BYTES);
            let (scheme, arithmetic) = (Scheme::GroupMma, Arithmetic::Tensor);
            self.launches.push(PlannedLaunch { scheme, arithmetic, shared_bytes, operations, again, ..launch });
            return;
        }
        // A tile of rows sums over all columns in steps of 128 bytes, one of columns over the wave's tiles; f16 twice.
        let exact = if dtype == DType::F16 { 2.0 } else { 1.0 };
        let depth = m.next_multiple_of(if dtype == DType::F32 { 32 } else { 64 });
        let tile = (2 * TILE * TILE * beside) as f64;
        let operations = exact * tile * (of_rows as f64 * depth as f64 + of_cols as f64 * (of_rows * TILE) as f64);
        let grid = (((of_rows + of_cols) * beside) as u32, 1, 1);
        let launch = inputs.simple(by_dtype(dtype, GRAD), grid, TILE_BLOCK, [read, written]);
        self.launches.push(PlannedLaunch { shared_bytes: TILE_SHARED_BYTES, operations, again, ..launch });
    }

    fn group_products(&self, wave: &Wave) -> Option<GroupProducts> {
        let split = self.sweeps.split(self.plan).is_some();
        GroupProducts::new(&self.inputs.device, self.inputs.dtype, split, self.plan.shape, wave)
    }

    /// f32 rows in parts.
    fn split_f32(&mut self) {
        if let Some(split) = self.sweeps.split(self.plan) {
            let (blocks, read, written) = split.traffic();
            self.launches.push(self.inputs.simple(SPLIT_F32, (blocks, 1, 1), BLOCK, [read, written]));
        }
    }

    /// What the products of the first wave need.
    fn split(&mut self) {
        let inputs = self.inputs;
        if inputs.dtype == DType::F16 && self.plan.waves.first().is_some_and(|wave| self.group_products(wave).is_some())
        {
            let parts = [inputs.n, inputs.m].map(|rows| PartsShape::new(rows, inputs.d));
            let grid = ((parts[0].padded + parts[1].padded) as u32, 1, 1);
            let written = 4.0 * ((parts[0].padded + parts[1].padded) * parts[0].ld) as f64;
            self.launches.push(inputs.simple(SPLIT, grid, SPLIT_THREADS as u32, [inputs.operands(), written]));
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
        precision: Precision,
        device: PlanDevice,
    ) -> Result<Self> {
        let grant = Grant { wave_bytes, keep_bytes, precision };
        Self::of_pairs(OP, [n, m, d], [dtype, gradient], objective, grant, device)
    }

    /// Of what [`pairwise_step`](super::pairwise_step()) does before it weighs pairs: for InfoNCE the log-sum-exp of every row
    /// and column. No operation of its own.
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
        let grant = Grant { wave_bytes: 1, keep_bytes: 0, precision: Precision::Full };
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
        let Grant { wave_bytes, keep_bytes, precision } = grant;
        let workspace = pairwise_workspace_bytes(n, m, d, dtype, objective, l2, wave_bytes, keep_bytes, precision)?;
        let part = [PairwisePart::new(1.0, *objective)];
        let y = inputs.matrix(m);
        let plan = pairwise_plan::Plan::new(Kind::Step, &inputs.matrix(n), Some(&y), &part, l2, grant, false)?;
        let sweeps = Sweeps::new(device, &plan, dtype);
        let mut step = Step { inputs, plan: &plan, sweeps: &sweeps, launches: Vec::new() };
        inputs.prepared(&mut step.launches, &plan.prepare);
        step.split_f32();
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
        for (wave, &sweep) in sweeps.waves.iter().zip(&sweeps.weights) {
            step.wave(wave, sweep);
        }
        let results = inputs.lines() * d as f64 * gradient.size() as f64;
        step.finish(kernel, results);
        // Normalisation, statistics if the weights need them, weights and products, the Jacobian.
        let launches = if step.form().has_statistics() { 4 } else { 3 };
        let floor = floor_of(&inputs, results, launches);
        let mut made = inputs.plan(step.launches, workspace, floor);
        made.choices.extend(choice(precision, dtype, sweeps.split(&plan).is_some()));
        Ok(made)
    }
}
