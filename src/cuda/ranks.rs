//! Ranks of the best positives, by counting what is ahead of them in a sweep over tiles of similarities.

use cudarc::driver::{CudaStream, CudaViewMut};

use super::descriptor::{RawBuf, RawMat, check_disjoint, check_extent};
use super::goal::DeviceGroups;
use super::goal_plan::RawGroups;
use super::kernels::Kernels;
use super::launch::params;
use super::mine::check_groups;
use super::plan::{Splits, SweepKernel, SweepShape};
use super::prepare::{Operand, Prepare, Wants};
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::sweep::{MergeTo, Mining, Screened, Select, Stats, key_words};
use super::tensor::{Binder, DeviceElement, DeviceMat};
use super::tile_kernel::{TileKernel, launch_tiles, tile_plan};
use super::workspace::{Layout, Region};
use crate::check;
use crate::dtype::DType;
use crate::error::Result;
use crate::options::{Normalization, TiePolicy};

const OP: &str = "ranks";

pub(super) const RANKS: TileKernel = TileKernel {
    warp: ["ranks_f32", "ranks_f16", "ranks_bf16"],
    group: ["ranks_hopper_f16", "ranks_hopper_bf16"],
    step: 2,
    small: ["ranks_small_hopper_f16", "ranks_small_hopper_bf16"],
    slices: None,
};

params! {
    /// Twin of the struct in `kernels/params/ranks.h`.
    RanksParams: 136 {
        x: u64,
        y: u64,
        inv_x: u64,
        inv_y: u64,
        row_groups: u64,
        col_groups: u64,
        row_score: u64,
        row_index: u64,
        col_score: u64,
        col_index: u64,
        row_rank: u64,
        col_rank: u64,
        ldx: i64,
        ldy: i64,
        n: u32,
        m: u32,
        d: u32,
        row_splits: u32,
        col_splits: u32,
        ties: u32,
    }
}

/// Arguments of [`raw::ranks`](super::raw::ranks).
#[derive(Clone, Copy, Debug)]
pub struct RawRanks {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`.
    pub y: RawMat,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any: equal ones are positives of each other.
    pub groups: Option<RawGroups>,
    /// How equal scores are ranked.
    pub ties: TiePolicy,
    /// `n` i32: the queries are the rows of `x`.
    pub rows: RawBuf,
    /// `m` i32: the queries are the rows of `y`.
    pub cols: RawBuf,
    /// Bytes, at least [`ranks_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// The best positive of each query of one direction.
#[derive(Clone, Copy)]
struct Best {
    score: Region,
    index: Region,
}

impl Best {
    fn new(layout: &mut Layout, queries: usize) -> Result<Self> {
        Ok(Self { score: layout.take::<f32>(&[queries])?, index: layout.take::<i32>(&[queries])? })
    }

    fn merge_to(self, base: u64, rank: u64) -> MergeTo {
        MergeTo { value: self.score.at(base), index: self.index.at(base), second: 0, rank }
    }
}

/// Where everything lies in the workspace.
struct Plan {
    prepare: Prepare,
    positives: Mining,
    rows: Best,
    cols: Best,
    bytes: usize,
}

impl Plan {
    fn new([x, y]: [&RawMat; 2], normalization: Normalization, grouped: bool, any_layout: bool) -> Result<Self> {
        let mut layout = Layout::new(OP);
        let wants = Wants { any_layout, zeroed: key_words(x.rows, y.rows), ..Wants::default() };
        let prepare = Prepare::plan(&mut layout, OP, [&(*x).into(), &(*y).into()], normalization, &wants)?;
        let select = if grouped { Select::Group } else { Select::Pair };
        Ok(Self {
            prepare,
            positives: Mining::plan(&mut layout, [x, y], select, Stats::None)?,
            rows: Best::new(&mut layout, x.rows)?,
            cols: Best::new(&mut layout, y.rows)?,
            bytes: layout.total(),
        })
    }
}

/// Bytes of workspace that [`ranks`] needs for `x` (`n × d`) and `y` (`m × d`) of type `dtype`, with groups or without,
/// whatever the alignment of the operands. Host arithmetic only. `O(n + m)` beside the padded or converted operands.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
pub fn ranks_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    normalization: Normalization,
    grouped: bool,
) -> Result<usize> {
    check_extent(OP, "x.rows", n)?;
    check_extent(OP, "y.rows", m)?;
    check_extent(OP, "x.cols", d)?;
    let (x, y) = (RawMat::new(0, n, d, dtype), RawMat::new(0, m, d, dtype));
    Ok(Plan::new([&x, &y], normalization, grouped, true)?.bytes)
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawRanks) -> Result<Plan> {
    let (n, m) = (a.x.rows, a.y.rows);
    check::mine(OP, (n, a.x.cols), (m, a.y.cols), a.groups.map(|g| (g.rows.len, g.cols.len)))?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    let [x, y] = [("x", a.x.check(OP, "x")?), ("y", a.y.check(OP, "y")?)];
    let [row_groups, col_groups] = check_groups(OP, a.groups, n, m)?;
    let rows = ("rows", a.rows.check::<i32>(OP, "rows", n)?);
    let cols = ("cols", a.cols.check::<i32>(OP, "cols", m)?);
    let plan = Plan::new([&a.x, &a.y], a.normalization, a.groups.is_some(), false)?;
    let workspace = ("workspace", a.workspace.check_workspace(OP, plan.bytes)?);
    check_disjoint(OP, &[rows, cols, workspace], &[x, y, row_groups, col_groups])?;
    Ok(plan)
}

fn sweep_params(
    a: &RawRanks,
    plan: &Plan,
    [x, y]: [Operand; 2],
    [row_groups, col_groups]: [u64; 2],
    splits: Splits,
) -> RanksParams {
    let base = a.workspace.ptr;
    RanksParams {
        x: x.ptr,
        y: y.ptr,
        inv_x: x.inv,
        inv_y: y.inv,
        row_groups,
        col_groups,
        row_score: plan.rows.score.at(base),
        row_index: plan.rows.index.at(base),
        col_score: plan.cols.score.at(base),
        col_index: plan.cols.index.at(base),
        row_rank: a.rows.ptr,
        col_rank: a.cols.ptr,
        ldx: x.row_stride as i64,
        ldy: y.row_stride as i64,
        n: a.x.rows as u32,
        m: a.y.rows as u32,
        d: a.x.cols as u32,
        row_splits: splits.rows as u32,
        col_splits: splits.cols as u32,
        ties: match a.ties {
            TiePolicy::LowestIndex => 0,
            TiePolicy::Optimistic => 1,
            TiePolicy::Pessimistic => 2,
        },
    }
}

/// As [`ranks`], on plain pointers.
///
/// # Errors
/// As [`ranks`], and [`Error::BadPointer`](crate::Error::BadPointer), [`Error::Overlap`](crate::Error::Overlap),
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn ranks_raw(kernels: &Kernels, stream: &CudaStream, a: &RawRanks) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    let base = a.workspace.ptr;
    let operands = [plan.prepare.x(base), plan.prepare.y(base)];
    let groups = a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr]);
    let to = [plan.rows.merge_to(base, a.rows.ptr), plan.cols.merge_to(base, a.cols.ptr)];
    let shape = SweepShape { batch: 1, n: a.x.rows, m: a.y.rows, d: a.x.cols, dtype: a.x.dtype };
    // Of the engine that finds the best positives: their similarities have to have the same bits.
    let tiles = tile_plan(kernels, SweepKernel::Ranks, shape);
    let _scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
    // caller's promise.
    unsafe {
        plan.prepare.launch(kernels, stream, base)?;
        plan.positives.launch(
            kernels,
            stream,
            base,
            plan.prepare.zeroed(base),
            operands,
            groups,
            0,
            to,
            Screened::default(),
        )?;
        if a.x.rows == 0 || a.y.rows == 0 {
            return Ok(());
        }
        let params = sweep_params(a, &plan, operands, groups, tiles.splits);
        launch_tiles(kernels, stream, &RANKS, &tiles, operands, &params)
    }
}

/// Options of [`ranks`].
#[derive(Debug, Default)]
pub struct DeviceRanksOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Default: none. With groups, every candidate of the query's group is a positive; without, the candidate of the same
    /// index is.
    pub groups: Option<DeviceGroups<'a>>,
    /// Default: [`TiePolicy::LowestIndex`].
    pub ties: TiePolicy,
}

/// 0-based rank of the best positive of every row of `x` (`n × d`) among the rows of `y` (`m × d`) into `rows` (`n`
/// elements), and the other way round into `cols` (`m` elements): the number of non-positives ahead of it.
///
/// [`NONE`](crate::NONE) for a query without a positive. A NaN candidate is ahead of everything; a query whose best positive
/// is NaN is behind everything. `workspace` has [`ranks_workspace_bytes`] bytes, whose contents do not matter before and
/// mean nothing after. Enqueues at most 4 kernels; memory `O(n + m)`, the similarities are never stored; allocates nothing,
/// does not synchronise; can be captured. The same from run to run: the sums are over integers.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch),
/// [`Error::TooShort`](crate::Error::TooShort), [`Error::TooLarge`](crate::Error::TooLarge),
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) before anything is enqueued, and
/// [`Error::LaunchRefused`](crate::Error::LaunchRefused), [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or
/// [`Error::Driver`](crate::Error::Driver) from the driver.
#[allow(clippy::too_many_arguments)]
pub fn ranks<T: DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    options: &DeviceRanksOptions<'_>,
    rows: &mut CudaViewMut<'_, i32>,
    cols: &mut CudaViewMut<'_, i32>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let groups = options.groups.as_ref().map(|g| bind.groups(g)).transpose()?;
    let (rows, _rows) = bind.buf_mut("rows", rows)?;
    let (cols, _cols) = bind.buf_mut("cols", cols)?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let args = RawRanks {
        x,
        y,
        normalization: options.normalization,
        groups: groups.as_ref().map(|(raw, _)| *raw),
        ties: options.ties,
        rows,
        cols,
        workspace,
    };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { ranks_raw(kernels, stream, &args) }
}
