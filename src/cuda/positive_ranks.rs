//! Ranks of all relevant pairs, by counting what is ahead of each in a sweep over tiles of similarities.

use cudarc::driver::{CudaStream, CudaView, CudaViewMut};

use super::descriptor::{RawBuf, RawMat, check_disjoint, check_extent};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::mine::check_optional;
use super::plan::{Scheme, Splits, SweepKernel, SweepPlan, SweepShape, tiles};
use super::prepare::{Operand, Prepare, Wants};
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat};
use super::tile_kernel::{TileKernel, launch_tiles, tile_plan};
use super::workspace::{Layout, Region};
use crate::check;
use crate::dtype::DType;
use crate::error::Result;
use crate::options::{Normalization, PositiveRanksOptions, TiePolicy};

const OP: &str = "positive_ranks";

/// Threads of a block of the kernels that go over pairs and queries.
const BLOCK: u32 = 256;

/// Queries of a block of `positive_ranks_finish`: one per warp.
const QUERIES: usize = 8;

const SCORE: TileKernel = TileKernel {
    warp: ["positive_ranks_score_f32", "positive_ranks_score_f16", "positive_ranks_score_bf16"],
    // Blocks have no tiles in common: no clusters, whatever the shape.
    group: [""; 2],
    step: 1,
    small: ["positive_ranks_score_hopper_f16", "positive_ranks_score_hopper_bf16"],
    slices: None,
};
const COUNT: TileKernel = TileKernel {
    warp: ["positive_ranks_count_f32", "positive_ranks_count_f16", "positive_ranks_count_bf16"],
    group: ["positive_ranks_count_hopper_f16", "positive_ranks_count_hopper_bf16"],
    step: 1,
    small: ["positive_ranks_count_small_hopper_f16", "positive_ranks_count_small_hopper_bf16"],
    slices: None,
};

params! {
    /// Twin of the struct in `kernels/params/positive_ranks.h`.
    PositiveRanksParams: 152 {
        x: u64,
        y: u64,
        inv_x: u64,
        inv_y: u64,
        row_offsets: u64,
        row_candidates: u64,
        col_offsets: u64,
        col_candidates: u64,
        col_pairs: u64,
        grades: u64,
        score: u64,
        row_rank: u64,
        col_rank: u64,
        ldx: i64,
        ldy: i64,
        n: u32,
        m: u32,
        d: u32,
        pairs: u32,
        row_splits: u32,
        col_splits: u32,
        ties: u32,
        pad_: u32,
    }
}

/// Relevant pairs in device memory, in compressed rows and in compressed columns.
///
/// The kernels take the contents as they are: they stay inside the buffers whatever is in them, and give ranks without
/// meaning where the two forms disagree or candidates do not ascend.
#[derive(Clone, Copy, Debug)]
pub struct RawRelevant {
    /// `n + 1` u32: where the pairs of each row begin, and their number.
    pub row_offsets: RawBuf,
    /// i32, one per pair: its column, ascending within a row. The number of elements is the number of pairs.
    pub row_candidates: RawBuf,
    /// `m + 1` u32.
    pub col_offsets: RawBuf,
    /// i32, one per pair: its row, ascending within a column.
    pub col_candidates: RawBuf,
    /// u32, one per pair in the order of the columns: its number in the order of the rows.
    pub col_pairs: RawBuf,
    /// f32, one per pair in the order of the rows; [`RawBuf::NULL`]: all 1. Matters to the tie policies other than the
    /// lowest index.
    pub grades: RawBuf,
}

/// Arguments of [`raw::positive_ranks`](super::raw::positive_ranks).
#[derive(Clone, Copy, Debug)]
pub struct RawPositiveRanks {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`.
    pub y: RawMat,
    /// Which pairs are relevant.
    pub relevant: RawRelevant,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// How equal scores are ranked.
    pub ties: TiePolicy,
    /// i32, one per pair in the order of the rows: the queries are the rows of `x`.
    pub rows: RawBuf,
    /// i32, one per pair in the order of the columns: the queries are the rows of `y`.
    pub cols: RawBuf,
    /// Bytes, at least [`positive_ranks_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// Where everything lies in the workspace.
struct Plan {
    prepare: Prepare,
    score: Region,
    bytes: usize,
}

impl Plan {
    fn new([x, y]: [&RawMat; 2], pairs: usize, normalization: Normalization, any_layout: bool) -> Result<Self> {
        let mut layout = Layout::new(OP);
        let wants = Wants { any_layout, ..Wants::default() };
        let prepare = Prepare::plan(&mut layout, OP, [&(*x).into(), &(*y).into()], normalization, &wants)?;
        Ok(Self { prepare, score: layout.take::<f32>(&[pairs])?, bytes: layout.total() })
    }
}

/// Bytes of workspace that [`positive_ranks`] needs for `x` (`n × d`) and `y` (`m × d`) of type `dtype` and so many pairs,
/// whatever the alignment of the operands. Host arithmetic only. `O(pairs)` beside the padded or converted operands.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
pub fn positive_ranks_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    pairs: usize,
    normalization: Normalization,
) -> Result<usize> {
    check_extent(OP, "x.rows", n)?;
    check_extent(OP, "y.rows", m)?;
    check_extent(OP, "x.cols", d)?;
    check_extent(OP, "relevant.row_candidates", pairs)?;
    let (x, y) = (RawMat::new(0, n, d, dtype), RawMat::new(0, m, d, dtype));
    Ok(Plan::new([&x, &y], pairs, normalization, true)?.bytes)
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawPositiveRanks) -> Result<Plan> {
    let (n, m) = (a.x.rows, a.y.rows);
    // As many queries as there are offsets, less the one at the end.
    let lines = |offsets: &RawBuf| offsets.len.saturating_sub(1);
    let relevant = (lines(&a.relevant.row_offsets), lines(&a.relevant.col_offsets));
    check::positive_ranks(OP, (n, a.x.cols), (m, a.y.cols), relevant)?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    let (x, y) = (("x", a.x.check(OP, "x")?), ("y", a.y.check(OP, "y")?));
    let r = &a.relevant;
    let pairs = r.row_candidates.len;
    check_extent(OP, "relevant.row_candidates", pairs)?;
    check::equal(OP, "relevant.col_candidates", pairs, r.col_candidates.len)?;
    check::equal(OP, "relevant.col_pairs", pairs, r.col_pairs.len)?;
    let inputs = [
        x,
        y,
        ("relevant.row_offsets", r.row_offsets.check::<u32>(OP, "relevant.row_offsets", n + 1)?),
        ("relevant.row_candidates", r.row_candidates.check::<i32>(OP, "relevant.row_candidates", pairs)?),
        ("relevant.col_offsets", r.col_offsets.check::<u32>(OP, "relevant.col_offsets", m + 1)?),
        ("relevant.col_candidates", r.col_candidates.check::<i32>(OP, "relevant.col_candidates", pairs)?),
        ("relevant.col_pairs", r.col_pairs.check::<u32>(OP, "relevant.col_pairs", pairs)?),
        check_optional::<f32>(OP, "relevant.grades", r.grades, pairs)?,
    ];
    let rows = ("rows", a.rows.check::<i32>(OP, "rows", pairs)?);
    let cols = ("cols", a.cols.check::<i32>(OP, "cols", pairs)?);
    let plan = Plan::new([&a.x, &a.y], pairs, a.normalization, false)?;
    let workspace = ("workspace", a.workspace.check_workspace(OP, plan.bytes)?);
    check_disjoint(OP, &[rows, cols, workspace], &inputs)?;
    Ok(plan)
}

fn kernel_params(a: &RawPositiveRanks, plan: &Plan, [x, y]: [Operand; 2], splits: Splits) -> PositiveRanksParams {
    let r = &a.relevant;
    PositiveRanksParams {
        x: x.ptr,
        y: y.ptr,
        inv_x: x.inv,
        inv_y: y.inv,
        row_offsets: r.row_offsets.ptr,
        row_candidates: r.row_candidates.ptr,
        col_offsets: r.col_offsets.ptr,
        col_candidates: r.col_candidates.ptr,
        col_pairs: r.col_pairs.ptr,
        grades: r.grades.ptr,
        score: plan.score.at(a.workspace.ptr),
        row_rank: a.rows.ptr,
        col_rank: a.cols.ptr,
        ldx: x.row_stride as i64,
        ldy: y.row_stride as i64,
        n: a.x.rows as u32,
        m: a.y.rows as u32,
        d: a.x.cols as u32,
        pairs: r.row_candidates.len as u32,
        row_splits: splits.rows as u32,
        col_splits: splits.cols as u32,
        ties: match a.ties {
            TiePolicy::LowestIndex => 0,
            TiePolicy::Optimistic => 1,
            TiePolicy::Pessimistic => 2,
        },
        pad_: 0,
    }
}

/// As [`positive_ranks`], on plain pointers.
///
/// # Errors
/// As [`positive_ranks`], and [`Error::BadPointer`](crate::Error::BadPointer), [`Error::Overlap`](crate::Error::Overlap),
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn positive_ranks_raw(kernels: &Kernels, stream: &CudaStream, a: &RawPositiveRanks) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    let (n, m, pairs) = (a.x.rows, a.y.rows, a.relevant.row_candidates.len);
    if n == 0 || m == 0 || pairs == 0 {
        return Ok(());
    }
    let base = a.workspace.ptr;
    let operands = [plan.prepare.x(base), plan.prepare.y(base)];
    let shape = SweepShape { batch: 1, n, m, d: a.x.cols, dtype: a.x.dtype };
    let count = tile_plan(kernels, SweepKernel::PositiveRanks, shape);
    // Of the same engine: the scores have to have the same bits as what is counted.
    let scheme = if count.scheme == Scheme::GroupMma { Scheme::GroupMmaSmall } else { count.scheme };
    let score = SweepPlan {
        grid: (tiles(n) as u32, count.splits.cols as u32, 1),
        ..SweepPlan::of_scheme(scheme, SweepKernel::PositiveRanks, shape, count.device)
    };
    let params = kernel_params(a, &plan, operands, count.splits);
    // Fewer than 2^31 pairs and 2^32 queries make fewer than 2^30 blocks.
    let pair_blocks = pairs.div_ceil(BLOCK as usize) as u32;
    let query_blocks = (n + m).div_ceil(QUERIES) as u32;
    let _scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
    // caller's promise; the kernels check what the pairs say against the extents.
    unsafe {
        plan.prepare.launch(kernels, stream, base)?;
        launch(kernels, stream, "positive_ranks_begin", (pair_blocks, 1, 1), BLOCK, 0, &params)?;
        launch_tiles(kernels, stream, &SCORE, &score, operands, &params)?;
        launch_tiles(kernels, stream, &COUNT, &count, operands, &params)?;
        launch(kernels, stream, "positive_ranks_finish", (query_blocks, 1, 1), BLOCK, 0, &params)
    }
}

/// Relevant pairs in device memory: [`RelevantPairs`](crate::RelevantPairs) and
/// [`RelevantPairs::transposed`](crate::RelevantPairs::transposed), uploaded.
#[derive(Debug)]
pub struct DeviceRelevant<'a> {
    /// `n + 1`: where the pairs of each row begin, and their number.
    pub row_offsets: CudaView<'a, u32>,
    /// One per pair: its column, ascending within a row.
    pub row_candidates: CudaView<'a, i32>,
    /// `m + 1`: the same pairs column by column.
    pub col_offsets: CudaView<'a, u32>,
    /// One per pair: its row, ascending within a column.
    pub col_candidates: CudaView<'a, i32>,
    /// One per pair in the order of the columns: its number in the order of the rows.
    pub col_pairs: CudaView<'a, u32>,
    /// One per pair in the order of the rows; none: all 1. Matters to the tie policies other than the lowest index.
    pub grades: Option<CudaView<'a, f32>>,
}

/// 0-based rank of every relevant pair among all rows of `y` (`m × d`) for the rows of `x` (`n × d`) into `rows` (one
/// element per pair, in the order of the rows), and the other way round into `cols` (in the order of the columns).
///
/// The ranks are those of [`cpu::positive_ranks`](crate::cpu::positive_ranks). `workspace` has
/// [`positive_ranks_workspace_bytes`] bytes, whose contents do not matter before and mean nothing after. Enqueues 5 kernels
/// at most; memory `O(n + m + pairs)`, the similarities are never stored; allocates nothing, does not synchronise; can be
/// captured. The same from run to run: the sums are over integers. The time grows with the largest number of pairs of a
/// query; where it is in the thousands the comparisons outweigh the products.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch),
/// [`Error::TooShort`](crate::Error::TooShort), [`Error::TooLarge`](crate::Error::TooLarge),
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) before anything is enqueued, and
/// [`Error::LaunchRefused`](crate::Error::LaunchRefused), [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or
/// [`Error::Driver`](crate::Error::Driver) from the driver.
#[allow(clippy::too_many_arguments)]
pub fn positive_ranks<T: DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    relevant: &DeviceRelevant<'_>,
    options: &PositiveRanksOptions,
    rows: &mut CudaViewMut<'_, i32>,
    cols: &mut CudaViewMut<'_, i32>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let (row_offsets, _row_offsets) = bind.buf("relevant.row_offsets", &relevant.row_offsets)?;
    let (row_candidates, _row_candidates) = bind.buf("relevant.row_candidates", &relevant.row_candidates)?;
    let (col_offsets, _col_offsets) = bind.buf("relevant.col_offsets", &relevant.col_offsets)?;
    let (col_candidates, _col_candidates) = bind.buf("relevant.col_candidates", &relevant.col_candidates)?;
    let (col_pairs, _col_pairs) = bind.buf("relevant.col_pairs", &relevant.col_pairs)?;
    let grades = relevant.grades.as_ref().map(|g| bind.buf("relevant.grades", g)).transpose()?;
    let (rows, _rows) = bind.buf_mut("rows", rows)?;
    let (cols, _cols) = bind.buf_mut("cols", cols)?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let relevant = RawRelevant {
        row_offsets,
        row_candidates,
        col_offsets,
        col_candidates,
        col_pairs,
        grades: grades.as_ref().map_or(RawBuf::NULL, |(raw, _)| *raw),
    };
    let PositiveRanksOptions { normalization, ties } = *options;
    let args = RawPositiveRanks { x, y, relevant, normalization, ties, rows, cols, workspace };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { positive_ranks_raw(kernels, stream, &args) }
}
