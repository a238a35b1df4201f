//! The launches of mining and ranking, as they will be enqueued; see `op_launches.rs`.

use super::explain::reason;
use super::mine::mine_workspace_bytes;
use super::mine_screen::{self, SCREEN, screen_words};
use super::op_launches::{Inputs, Left, SCREENED, WHY_MINED};
use super::op_plan::{Plan, PlannedLaunch};
use super::plan::{PlanDevice, Splits, SweepKernel};
use super::prepare::{BLOCK, Wants, row_blocks};
use super::ranks::{RANKS, ranks_workspace_bytes};
use super::sweep::{Select, Stats, key_words};
use super::tile_kernel::tile_plan_on;
use super::top_k::{MERGE_BLOCK as SELECT_BLOCK, MINE_TOP_K, mine_top_k_workspace_bytes, places};
use super::top_k_params::{ENTRY_BYTES, PLANES, parts};
use crate::check;
use crate::dtype::DType;
use crate::error::Result;
use crate::options::Normalization;
use crate::top_k::TopKOptions;

impl Inputs {
    /// The kernels of a screen in front of mining: of normalised rows, of which nearly all lines have one pair that is looked at
    /// again.
    fn screened(&self, launches: &mut Vec<PlannedLaunch>) {
        let rounded = Self { dtype: mine_screen::screen_dtype(Normalization::L2), ..*self };
        let row_bytes = 2.0 * self.d.next_multiple_of(8) as f64 * self.lines();
        let grid = (row_blocks(self.n + self.m), 1, 1);
        let rows = [self.operands(), row_bytes + 8.0 * self.lines()];
        launches.push(self.simple("screen_rows_f16", grid, BLOCK, rows));
        let (sweep, kernel, left) = rounded.mining(Select::Negatives, Stats::None);
        launches.push(rounded.sweep(kernel, sweep, false, [left.read, left.bytes]));
        let blocks = mine_screen::bounds_blocks(self.n, self.m);
        let bounds = [left.bytes + 8.0 * self.lines(), f64::from(4 * 256 * blocks)];
        launches.push(self.simple("screen_bounds", (blocks, 1, 1), BLOCK, bounds));
        let sweep = mine_screen::screen_plan_on(self.device, rounded.shape());
        let kernel = SCREEN.name(rounded.dtype, sweep.scheme);
        let list = 8.0 * self.lines();
        launches.push(rounded.sweep(kernel, sweep, false, [bounds[1], list]));
        let pairs = 4.0 * self.n.min(self.m) as f64;
        let keys = 8.0 * self.lines();
        launches.push(self.simple("screen_rescore", grid, BLOCK, [self.operands() + list + keys, keys + pairs]));
    }
}

impl Plan {
    /// Of [`mine`](super::mine()), values and indices of rows and columns.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge), [`Error::EmptyDim`](crate::Error::EmptyDim),
    /// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
    pub fn mine(n: usize, m: usize, d: usize, dtype: DType, device: PlanDevice) -> Result<Self> {
        let inputs = Inputs::new("mine", [n, m, d], dtype, device)?;
        let workspace = mine_workspace_bytes(n, m, d, dtype, Normalization::L2, false)?;
        let possible = mine_screen::possible(dtype, [n, m], d);
        let zeroed = if possible { screen_words(n, m) } else { key_words(n, m) };
        let prepare = inputs.prepare(Wants { zeroed, ..Wants::default() })?;
        let (screens, why) = mine_screen::screens(&device, dtype, [n, m], d, Normalization::L2);
        let mut launches = Vec::new();
        if n + m > 0 {
            inputs.prepared(&mut launches, &prepare);
            let (sweep, kernel, left) = inputs.mining(Select::Negatives, Stats::None);
            if screens {
                inputs.screened(&mut launches);
                // Nothing, unless the screen fails.
                let unused = inputs.simple(kernel, sweep.grid, sweep.threads, [0.0; 2]);
                launches.push(PlannedLaunch { shared_bytes: sweep.shared_bytes, ..unused });
                launches.push(inputs.merge(Left { bytes: 8.0 * inputs.lines(), read: 0.0 }, 8.0));
            } else {
                launches.push(inputs.sweep(kernel, sweep, prepare.scaled(), [left.read, left.bytes]));
                launches.push(inputs.merge(left, 8.0));
            }
        }
        let floor = inputs.floor(SCREENED, WHY_MINED, 8.0 * inputs.lines(), 2);
        let mut plan = inputs.plan(launches, workspace, floor);
        if dtype == DType::F32 {
            plan.choices.push(reason("screen", if screens { "yes" } else { "no" }, why));
        }
        Ok(plan)
    }

    /// Of [`mine_top_k`](super::mine_top_k()) without a memory bank. Of `options` `k`, `skip` and the pick matter.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge), [`Error::EmptyDim`](crate::Error::EmptyDim),
    /// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType), [`Error::InvalidOption`](crate::Error::InvalidOption).
    pub fn mine_top_k(
        n: usize,
        m: usize,
        d: usize,
        dtype: DType,
        options: &TopKOptions<'_>,
        device: PlanDevice,
    ) -> Result<Self> {
        let op = "mine_top_k";
        let inputs = Inputs::new(op, [n, m, d], dtype, device)?;
        check::top_k_counts(op, options)?;
        let options = &TopKOptions { groups: None, normalization: Normalization::L2, ..*options };
        let workspace = mine_top_k_workspace_bytes(n, m, None, d, dtype, options)?;
        let prepare = inputs.prepare(Wants { zeroed: key_words(n, m), ..Wants::default() })?;
        let scaled = prepare.scaled();
        let kept = [n, m].map(|candidates| {
            let (skip, keep) = places(options, candidates);
            skip + keep
        });
        let splits = Splits { rows: parts(n, kept[0], 1), cols: parts(m, kept[1], 1) };
        // A list and a state for every anchor and part of its candidates.
        let list = |anchors: usize, slots: usize, places: usize| {
            (anchors * slots) as f64 * (places * ENTRY_BYTES + PLANES * 4) as f64
        };
        let lists = list(n, splits.cols, kept[1]) + list(m, splits.rows, kept[0]);
        let pairs = 4.0 * n.min(m) as f64;
        let results = (8.0 * options.k as f64 + 4.0) * inputs.lines() + pairs;
        let mut launches = Vec::new();
        if n + m > 0 {
            inputs.prepared(&mut launches, &prepare);
            let (launch, left) = inputs.pairs(scaled, pairs);
            launches.extend([launch, inputs.merge(left, 8.0)]);
            let sweep = tile_plan_on(device, SweepKernel::TopK, inputs.shape()).with_splits(splits);
            let kernel = MINE_TOP_K.name(dtype, sweep.scheme);
            // Lists are read and written, with as many entries as there is room for.
            launches.push(inputs.sweep(kernel, sweep, scaled, [pairs + lists, lists]));
            let merged = [splits.cols * kept[1], splits.rows * kept[0]].map(usize::next_power_of_two);
            let merge =
                inputs.simple("mine_top_k_merge", ((n + m) as u32, 1, 1), SELECT_BLOCK, [lists, results - pairs]);
            let shared_bytes = (merged[0].max(merged[1]) * ENTRY_BYTES) as u32;
            launches.push(PlannedLaunch { shared_bytes, ..merge });
        }
        let floor = inputs.floor(SCREENED, WHY_MINED, results, 3);
        Ok(inputs.plan(launches, workspace, floor))
    }

    /// Of [`ranks`](super::ranks()), with groups or without.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge), [`Error::EmptyDim`](crate::Error::EmptyDim),
    /// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
    pub fn ranks(n: usize, m: usize, d: usize, dtype: DType, grouped: bool, device: PlanDevice) -> Result<Self> {
        let inputs = Inputs::new("ranks", [n, m, d], dtype, device)?;
        let workspace = ranks_workspace_bytes(n, m, d, dtype, Normalization::L2, grouped)?;
        let prepare = inputs.prepare(Wants { zeroed: key_words(n, m), ..Wants::default() })?;
        let scaled = prepare.scaled();
        let groups = if grouped { 8.0 * inputs.lines() } else { 0.0 };
        let mut launches = Vec::new();
        if n + m > 0 {
            inputs.prepared(&mut launches, &prepare);
            let left = if grouped {
                let (sweep, kernel, left) = inputs.mining(Select::Group, Stats::None);
                launches.push(inputs.sweep(kernel, sweep, scaled, [groups + left.read, left.bytes]));
                left
            } else {
                let (launch, left) = inputs.pairs(scaled, 0.0);
                launches.push(launch);
                left
            };
            launches.push(inputs.merge(left, 12.0));
        }
        if n > 0 && m > 0 {
            let sweep = tile_plan_on(device, SweepKernel::Ranks, inputs.shape());
            let kernel = RANKS.name(dtype, sweep.scheme);
            // Score, index and rank so far of every query.
            let read = groups + 12.0 * inputs.lines();
            launches.push(inputs.sweep(kernel, sweep, scaled, [read, 4.0 * inputs.lines()]));
        }
        let floor = inputs.floor(SCREENED, WHY_MINED, 4.0 * inputs.lines() + groups, 3);
        Ok(inputs.plan(launches, workspace, floor))
    }
}
