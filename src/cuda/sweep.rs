//! One sweep over the tiles of a matrix of similarities that keeps the best candidate of every row and column, and the
//! merge of what the blocks found.

use cudarc::driver::CudaStream;

use super::descriptor::RawMat;
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::plan::{PlanDevice, Scheme, Splits, SweepKernel, SweepPlan, SweepShape};
use super::prepare::Operand;
use super::tile_kernel::{TileKernel, launch_tiles};
use super::workspace::{Layout, Region};
use crate::dtype::DType;
use crate::error::Result;

/// Threads of a block of `mine_merge`.
const MERGE_BLOCK: u32 = 256;

params! {
    /// Twin of the struct in `kernels/params/mine.h`.
    MineParams: 144 {
        x: u64,
        y: u64,
        inv_x: u64,
        inv_y: u64,
        row_groups: u64,
        col_groups: u64,
        pmin: u64,
        pos: u64,
        row_parts: u64,
        col_parts: u64,
        screen: u64,
        ldx: i64,
        ldy: i64,
        n: u32,
        m: u32,
        d: u32,
        row_splits: u32,
        col_splits: u32,
        pmin_count: u32,
        select: u32,
        stats: u32,
        eps: f32,
        beta: f32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/mine.h`.
    MineMergeParams: 136 {
        row_parts: u64,
        col_parts: u64,
        row_value: u64,
        row_index: u64,
        row_second: u64,
        row_rank: u64,
        col_value: u64,
        col_index: u64,
        col_second: u64,
        col_rank: u64,
        screen: u64,
        row_keys: u64,
        col_keys: u64,
        report: u64,
        n: u32,
        m: u32,
        row_splits: u32,
        col_splits: u32,
        stats: u32,
        pad_: u32,
    }
}

/// Which candidates a sweep considers; `kSelect*` in `kernels/params/mine.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Select {
    /// All but the pair and the own group.
    Negatives = 0,
    /// The own group.
    Group = 1,
    /// The pair alone.
    Pair = 2,
}

/// What a sweep collects beside value and index; `kStats*` in `kernels/params/mine.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stats {
    /// Nothing, and value and index are one 64-bit key per row and column: what the kernels for groups make of
    /// [`Stats::None`].
    Keys = 0,
    None = 1,
    /// The second-best value.
    Second = 2,
    /// And over the relative set: count, ties, sum of the differences from the maximum.
    Lin = 3,
    /// And over the relative set: count, ties, sum of the exponentials of the differences.
    Sig = 4,
}

impl Stats {
    /// 4-byte words per row or column in the partial results.
    #[allow(clippy::match_same_arms)] // keys have no planes, but the same number of words
    pub(crate) const fn planes(self) -> usize {
        match self {
            Self::Keys | Self::None => 2,
            Self::Second => 3,
            Self::Lin | Self::Sig => 6,
        }
    }
}

pub(crate) const MINE: TileKernel = TileKernel {
    warp: ["mine_f32", "mine_f16", "mine_bf16"],
    group: ["mine_hopper_f16", "mine_hopper_bf16"],
    step: 2,
    small: ["mine_small_hopper_f16", "mine_small_hopper_bf16"],
    slices: Some("mine_small_f32"),
};
pub(crate) const MINE_STATS: TileKernel = TileKernel {
    warp: ["mine_stats_f32", "mine_stats_f16", "mine_stats_bf16"],
    group: ["mine_stats_hopper_f16", "mine_stats_hopper_bf16"],
    step: 1,
    small: ["mine_stats_small_hopper_f16", "mine_stats_small_hopper_bf16"],
    slices: Some("mine_stats_small_f32"),
};

/// The most rows and columns together that are mined by keys, whose words `prepare` clears and counts in 32 bits.
const MOST_KEYS: usize = 1 << 30;

/// Words of the keys of `n` rows and `m` columns, cleared before a sweep for [`Stats::Keys`].
pub(crate) const fn key_words(n: usize, m: usize) -> usize {
    let keys = n.saturating_add(m);
    if keys > MOST_KEYS { 0 } else { 2 * keys }
}

/// How [`launch_sweep`] will sweep: the splits that its parameters must have.
pub(crate) fn sweep_plan(kernels: &Kernels, dtype: DType, select: Select, extents: [usize; 2], d: usize) -> SweepPlan {
    sweep_plan_on(kernels.plan_device(), dtype, select, extents, d)
}

/// As [`sweep_plan`], for a device that need not be there.
pub(crate) fn sweep_plan_on(
    mut device: PlanDevice,
    dtype: DType,
    select: Select,
    [n, m]: [usize; 2],
    d: usize,
) -> SweepPlan {
    // Tensor maps have no empty extents; the tiles of pairs alone are no rectangle for a cluster.
    if n == 0 || m == 0 || d == 0 || n.saturating_add(m) > MOST_KEYS {
        device.group_code = false;
    } else if select == Select::Pair {
        device.forced = device
            .forced
            .filter(|&scheme| !scheme.is_group() && device.runs(scheme, dtype))
            .or(Some(Scheme::GroupMmaSmall));
    }
    let plan = SweepPlan::new(SweepKernel::Mine, SweepShape { batch: 1, n, m, d, dtype }, device);
    match select {
        Select::Pair => SweepPlan {
            splits: Splits { rows: 1, cols: 1 },
            grid: (n.max(m).div_ceil(plan.tile_rows) as u32, 1, 1),
            ..plan
        },
        _ => plan,
    }
}

/// What a kernel of `plan` makes of `stats`.
pub(crate) fn collected(plan: &SweepPlan, stats: Stats) -> Stats {
    if stats == Stats::None && plan.scheme.is_group() { Stats::Keys } else { stats }
}

/// Enqueues one sweep over matrices of type `dtype`, with the splits of its [`sweep_plan`], for what is
/// [`collected`]. At least one of them has a row.
///
/// # Safety
/// Every address in `params` is valid on the stream's device for the extent that `kernels/params/mine.h` states.
pub(crate) unsafe fn launch_sweep(
    kernels: &Kernels,
    stream: &CudaStream,
    dtype: DType,
    params: &MineParams,
) -> Result<()> {
    let kernel = if params.stats <= Stats::None as u32 { &MINE } else { &MINE_STATS };
    let select = if params.select == Select::Pair as u32 { Select::Pair } else { Select::Negatives };
    let plan = sweep_plan(kernels, dtype, select, [params.n as usize, params.m as usize], params.d as usize);
    debug_assert_eq!([plan.splits.rows, plan.splits.cols], [params.row_splits as usize, params.col_splits as usize]);
    let mut params = *params;
    if plan.scheme.is_group() && params.stats == Stats::None as u32 {
        // Only the similarities of pairs are wanted by a caller that has no keys.
        debug_assert!(select == Select::Pair);
        (params.row_parts, params.col_parts) = (0, 0);
    }
    let operand =
        |ptr, ld: i64, inv| Operand { ptr, row_stride: ld as usize, batch_stride: 0, inv, inv_batch_stride: 0 };
    let operands = [operand(params.x, params.ldx, params.inv_x), operand(params.y, params.ldy, params.inv_y)];
    // SAFETY: the kernels take these parameters, whose addresses are valid by the caller's promise.
    unsafe { launch_tiles(kernels, stream, kernel, &plan, operands, &params) }
}

/// Where the merged results of one direction go: device addresses, 0 for what is not wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MergeTo {
    pub value: u64,
    pub index: u64,
    pub second: u64,
    /// Start value for counting a rank: 0, or -1 without a candidate.
    pub rank: u64,
}

/// What a screen in front of the sweep hands over, and where the merge reports it: device addresses, 0 without.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Screened {
    pub state: u64,
    /// Of the rows and of the columns, where the screen has not failed.
    pub keys: [u64; 2],
    /// Two words.
    pub report: u64,
}

/// A sweep followed by a merge: its shape, and its partial results in the workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mining {
    dtype: DType,
    n: usize,
    m: usize,
    d: usize,
    select: Select,
    stats: Stats,
    row_parts: Region,
    col_parts: Region,
}

impl Mining {
    /// `stats` is [`Stats::None`] or [`Stats::Second`]: the others need the pairs' smallest similarity.
    pub(crate) fn plan(layout: &mut Layout, [x, y]: [&RawMat; 2], select: Select, stats: Stats) -> Result<Self> {
        debug_assert!(stats != Stats::Keys, "what it becomes is decided at the launch");
        let room = match select {
            Select::Pair => Splits { rows: 1, cols: 1 },
            _ => Splits::room(x.rows, y.rows),
        };
        Ok(Self {
            dtype: x.dtype,
            n: x.rows,
            m: y.rows,
            d: x.cols,
            select,
            stats,
            row_parts: layout.take::<u32>(&[stats.planes(), room.cols, x.rows])?,
            col_parts: layout.take::<u32>(&[stats.planes(), room.rows, y.rows])?,
        })
    }

    /// What is collected by the kernel of `plan`, and where it goes; `keys` is the address of the cleared words.
    fn parts(&self, plan: &SweepPlan, base: u64, keys: u64) -> (Stats, [u64; 2]) {
        match collected(plan, self.stats) {
            Stats::Keys => (Stats::Keys, [keys, keys + (self.n * size_of::<u64>()) as u64]),
            stats => (stats, [self.row_parts.at(base), self.col_parts.at(base)]),
        }
    }

    fn sweep(
        &self,
        splits: Splits,
        (stats, parts): (Stats, [u64; 2]),
        [x, y]: [Operand; 2],
        [row_groups, col_groups]: [u64; 2],
        pos: u64,
    ) -> MineParams {
        MineParams {
            x: x.ptr,
            y: y.ptr,
            inv_x: x.inv,
            inv_y: y.inv,
            row_groups,
            col_groups,
            pmin: 0,
            pos,
            row_parts: parts[0],
            col_parts: parts[1],
            screen: 0,
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            n: self.n as u32,
            m: self.m as u32,
            d: self.d as u32,
            row_splits: splits.rows as u32,
            col_splits: splits.cols as u32,
            pmin_count: 0,
            select: self.select as u32,
            stats: stats as u32,
            eps: 0.0,
            beta: 0.0,
        }
    }

    fn merge(
        &self,
        splits: Splits,
        (stats, parts): (Stats, [u64; 2]),
        [rows, cols]: [MergeTo; 2],
        screened: Screened,
    ) -> MineMergeParams {
        MineMergeParams {
            row_parts: parts[0],
            col_parts: parts[1],
            row_value: rows.value,
            row_index: rows.index,
            row_second: rows.second,
            row_rank: rows.rank,
            col_value: cols.value,
            col_index: cols.index,
            col_second: cols.second,
            col_rank: cols.rank,
            screen: screened.state,
            row_keys: screened.keys[0],
            col_keys: screened.keys[1],
            report: screened.report,
            n: self.n as u32,
            m: self.m as u32,
            row_splits: splits.rows as u32,
            col_splits: splits.cols as u32,
            stats: stats as u32,
            pad_: 0,
        }
    }

    /// Enqueues the sweep alone, over matrices of type `dtype` that stand for the plan's. Returns what it leaves for a merge:
    /// its splits, what it collects, and where.
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub(crate) unsafe fn launch_maxima(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        base: u64,
        keys: u64,
        (dtype, operands): (DType, [Operand; 2]),
        groups: [u64; 2],
    ) -> Result<(Splits, Stats, [u64; 2])> {
        let plan = sweep_plan(kernels, dtype, self.select, [self.n, self.m], self.d);
        let parts = self.parts(&plan, base, keys);
        let sweep = self.sweep(plan.splits, parts, operands, groups, 0);
        // SAFETY: by the caller's promise.
        unsafe { launch_sweep(kernels, stream, dtype, &sweep)? };
        Ok((plan.splits, parts.0, parts.1))
    }

    /// Enqueues the sweep and the merge; `groups` and `pos` are device addresses or 0, `keys` that of [`key_words`] cleared
    /// words if the plan is for [`Stats::None`]. Behind a screen, the sweep does nothing unless that has failed. Does nothing
    /// without a row.
    ///
    /// # Safety
    /// The operands, groups, `pos` and outputs are valid on the stream's device for the plan's extents, and `base` is a
    /// workspace of the layout's size.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn launch(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        base: u64,
        keys: u64,
        operands: [Operand; 2],
        groups: [u64; 2],
        pos: u64,
        to: [MergeTo; 2],
        screened: Screened,
    ) -> Result<()> {
        if self.n == 0 && self.m == 0 {
            return Ok(());
        }
        let plan = sweep_plan(kernels, self.dtype, self.select, [self.n, self.m], self.d);
        let parts = self.parts(&plan, base, keys);
        let sweep = MineParams { screen: screened.state, ..self.sweep(plan.splits, parts, operands, groups, pos) };
        // Two extents of less than 2^31 make less than 2^24 blocks.
        let blocks = (self.n + self.m).div_ceil(MERGE_BLOCK as usize) as u32;
        let merge = self.merge(plan.splits, parts, to, screened);
        // SAFETY: all addresses are valid for the plan's extents, by the caller's promise.
        unsafe {
            launch_sweep(kernels, stream, self.dtype, &sweep)?;
            launch(kernels, stream, "mine_merge", (blocks, 1, 1), MERGE_BLOCK, 0, &merge)
        }
    }
}
