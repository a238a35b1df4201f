//! Hardest negatives of every row and every column, in one sweep over tiles of similarities that are never stored.

use cudarc::driver::{CudaStream, CudaViewMut};

use super::descriptor::{Named, RawBuf, RawMat, check_disjoint, check_extent};
use super::goal::DeviceGroups;
use super::goal_plan::RawGroups;
use super::kernels::Kernels;
use super::mine_screen::{self, Behind, Screen, screen_words};
use super::prepare::{Prepare, Wants};
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::sweep::{MergeTo, Mining, Screened};
pub(crate) use super::sweep::{MineParams, Select, Stats, collected, key_words, launch_sweep, sweep_plan};
use super::tensor::{Binder, DeviceElement, DeviceMat};
use super::workspace::Layout;
use crate::check;
use crate::dtype::DType;
use crate::error::Result;
use crate::options::Normalization;

const OP: &str = "mine";

/// Outputs of one direction of [`raw::mine`](super::raw::mine), one element per anchor.
#[derive(Clone, Copy, Debug)]
pub struct RawHardest {
    /// f32.
    pub value: RawBuf,
    /// i32.
    pub index: RawBuf,
    /// f32, or [`RawBuf::NULL`].
    pub second: RawBuf,
}

/// Arguments of [`raw::mine`](super::raw::mine).
#[derive(Clone, Copy, Debug)]
pub struct RawMine {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`.
    pub y: RawMat,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// `min(n, m)` f32, or [`RawBuf::NULL`].
    pub positive: RawBuf,
    /// Anchors are the rows of `x`.
    pub rows: RawHardest,
    /// Anchors are the rows of `y`.
    pub cols: RawHardest,
    /// 2 words u32, as [`DeviceMined::screen`], or [`RawBuf::NULL`].
    pub screen: RawBuf,
    /// Bytes, at least [`mine_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// Where everything lies in the workspace.
struct Plan {
    prepare: Prepare,
    mining: Mining,
    /// There is room for it wherever it is possible, so that the size does not depend on the device.
    screen: Option<Screen>,
    bytes: usize,
}

impl Plan {
    fn new([x, y]: [&RawMat; 2], normalization: Normalization, second: bool, any_layout: bool) -> Result<Self> {
        let mut layout = Layout::new(OP);
        let stats = if second { Stats::Second } else { Stats::None };
        let extents = [x.rows, y.rows];
        let screened = !second && mine_screen::possible(x.dtype, extents, x.cols);
        let zeroed = match (second, screened) {
            (true, _) => 0,
            (false, true) => screen_words(x.rows, y.rows),
            (false, false) => key_words(x.rows, y.rows),
        };
        let wants = Wants { any_layout, zeroed, ..Wants::default() };
        let prepare = Prepare::plan(&mut layout, OP, [&(*x).into(), &(*y).into()], normalization, &wants)?;
        let mining = Mining::plan(&mut layout, [x, y], Select::Negatives, stats)?;
        let screen = if screened { Some(Screen::plan(&mut layout, extents, x.cols, normalization)?) } else { None };
        Ok(Self { prepare, mining, screen, bytes: layout.total() })
    }
}

/// Bytes of workspace that [`mine`] needs for `x` (`n × d`) and `y` (`m × d`) of type `dtype`, whatever the alignment of
/// the operands; with `second`, if second-best values are asked for. Host arithmetic only. `O(n + m)` beside the padded or
/// converted operands, of which f32 has a second copy in 16 bits for the screen.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
pub fn mine_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    normalization: Normalization,
    second: bool,
) -> Result<usize> {
    check_extent(OP, "x.rows", n)?;
    check_extent(OP, "y.rows", m)?;
    check_extent(OP, "x.cols", d)?;
    let (x, y) = (RawMat::new(0, n, d, dtype), RawMat::new(0, m, d, dtype));
    Ok(Plan::new([&x, &y], normalization, second, true)?.bytes)
}

/// A buffer that may be left out by a null one.
pub(crate) fn check_optional<T>(op: &'static str, arg: &'static str, buf: RawBuf, needed: usize) -> Result<Named> {
    Ok((arg, buf.check::<T>(op, arg, if buf == RawBuf::NULL { 0 } else { needed })?))
}

/// Group ids of `n` rows and `m` columns, if there are any.
pub(crate) fn check_groups(op: &'static str, groups: Option<RawGroups>, n: usize, m: usize) -> Result<[Named; 2]> {
    let [rows, cols] = groups.map_or([RawBuf::NULL; 2], |g| [g.rows, g.cols]);
    Ok([check_optional::<i64>(op, "groups.rows", rows, n)?, check_optional::<i64>(op, "groups.cols", cols, m)?])
}

fn check_hardest(h: &RawHardest, args: [&'static str; 3], anchors: usize) -> Result<[Named; 3]> {
    Ok([
        (args[0], h.value.check::<f32>(OP, args[0], anchors)?),
        (args[1], h.index.check::<i32>(OP, args[1], anchors)?),
        check_optional::<f32>(OP, args[2], h.second, anchors)?,
    ])
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawMine) -> Result<Plan> {
    let (n, m) = (a.x.rows, a.y.rows);
    check::mine(OP, (n, a.x.cols), (m, a.y.cols), a.groups.map(|g| (g.rows.len, g.cols.len)))?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    let [x, y] = [("x", a.x.check(OP, "x")?), ("y", a.y.check(OP, "y")?)];
    let [row_groups, col_groups] = check_groups(OP, a.groups, n, m)?;
    let positive = check_optional::<f32>(OP, "positive", a.positive, n.min(m))?;
    let rows = check_hardest(&a.rows, ["rows.value", "rows.index", "rows.second"], n)?;
    let cols = check_hardest(&a.cols, ["cols.value", "cols.index", "cols.second"], m)?;
    let screen = check_optional::<u32>(OP, "screen", a.screen, 2)?;
    let second = a.rows.second != RawBuf::NULL || a.cols.second != RawBuf::NULL;
    let plan = Plan::new([&a.x, &a.y], a.normalization, second, false)?;
    let workspace = ("workspace", a.workspace.check_workspace(OP, plan.bytes)?);
    let outputs: Vec<Named> = [&[positive][..], &rows, &cols, &[screen, workspace]].concat();
    check_disjoint(OP, &outputs, &[x, y, row_groups, col_groups])?;
    Ok(plan)
}

/// As [`mine`], on plain pointers.
///
/// # Errors
/// As [`mine`], and [`Error::BadPointer`](crate::Error::BadPointer), [`Error::Overlap`](crate::Error::Overlap),
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn mine_raw(kernels: &Kernels, stream: &CudaStream, a: &RawMine) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    let base = a.workspace.ptr;
    let operands = [plan.prepare.x(base), plan.prepare.y(base)];
    let groups = a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr]);
    let to = |h: &RawHardest| MergeTo { value: h.value.ptr, index: h.index.ptr, second: h.second.ptr, rank: 0 };
    let (to, words) = ([to(&a.rows), to(&a.cols)], plan.prepare.zeroed(base));
    let (pos, report) = (a.positive.ptr, a.screen.ptr);
    let (screens, _) =
        mine_screen::screens(&kernels.plan_device(), a.x.dtype, [a.x.rows, a.y.rows], a.x.cols, a.normalization);
    let _scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
    // caller's promise.
    unsafe {
        plan.prepare.launch(kernels, stream, base)?;
        match &plan.screen {
            Some(screen) if screens => {
                let behind = Behind { mining: &plan.mining, operands, groups, pos, to, report };
                screen.launch(kernels, stream, base, words, &behind)
            }
            _ => {
                let without = Screened { report, ..Screened::default() };
                plan.mining.launch(kernels, stream, base, words, operands, groups, pos, to, without)
            }
        }
    }
}

/// Options of [`mine`].
#[derive(Debug, Default)]
pub struct DeviceMineOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Default: none.
    pub groups: Option<DeviceGroups<'a>>,
}

/// Outputs of one direction of [`mine`]; see [`Hardest`](crate::Hardest).
#[derive(Debug)]
pub struct DeviceHardest<'a> {
    /// One element per anchor.
    pub value: CudaViewMut<'a, f32>,
    /// One element per anchor.
    pub index: CudaViewMut<'a, i32>,
    /// One element per anchor, if it is wanted.
    pub second: Option<CudaViewMut<'a, f32>>,
}

/// Outputs of [`mine`]; see [`Mined`](crate::Mined).
#[derive(Debug)]
pub struct DeviceMined<'a> {
    /// `min(n, m)` elements.
    pub positive: CudaViewMut<'a, f32>,
    /// Anchors are the rows of `x`.
    pub rows: DeviceHardest<'a>,
    /// Anchors are the rows of `y`.
    pub cols: DeviceHardest<'a>,
    /// 2 elements, if wanted: how many pairs were looked at again in f32, and a [`ScreenOutcome`](super::ScreenOutcome).
    /// Not written where there is neither a row nor a column.
    pub screen: Option<CudaViewMut<'a, u32>>,
}

/// Hardest negatives of every row of `x` (`n × d`) among the rows of `y` (`m × d`) and the other way round (eq. 3), and
/// the similarities of the pairs.
///
/// Pair `(i, i)` and, with groups, rows and columns of the same group are no negatives of each other. NaN counts as the
/// largest value; the lowest index wins ties; an anchor without a negative gets −∞ and [`NONE`](crate::NONE). `workspace`
/// has [`mine_workspace_bytes`] bytes, whose contents do not matter before and mean nothing after. Enqueues at most 3
/// kernels, 8 with a screen; memory `O(n + m)`, the similarities are never stored; allocates nothing, does not synchronise;
/// can be captured. Bitwise the same from run to run and on every device of one architecture.
///
/// From 2³¹ operations on, f32 rows go through a screen on devices of 8.0, 9.0 and 10.x, unless second-best values are
/// asked for, or `d` is above 8192 (4096 without normalisation): similarities of the rows rounded to 16 bits, on tensor cores, with a bound on how far each can be off the one
/// in f32, exclude nearly all pairs, and the others are looked at again in f32. Values, indices and the pairs' similarities
/// are those without it, whatever the input: where a row is not finite or too many pairs remain, the device does everything
/// in f32 by itself. [`DeviceMined::screen`] reports it.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch),
/// [`Error::TooShort`](crate::Error::TooShort), [`Error::TooLarge`](crate::Error::TooLarge),
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) before anything is enqueued, and
/// [`Error::LaunchRefused`](crate::Error::LaunchRefused), [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or
/// [`Error::Driver`](crate::Error::Driver) from the driver.
pub fn mine<T: DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    options: &DeviceMineOptions<'_>,
    out: &mut DeviceMined<'_>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let groups = options.groups.as_ref().map(|g| bind.groups(g)).transpose()?;
    let (positive, _positive) = bind.buf_mut("positive", &mut out.positive)?;
    let [(rows, _rows), (cols, _cols)] = [
        hardest(&bind, ["rows.value", "rows.index", "rows.second"], &mut out.rows)?,
        hardest(&bind, ["cols.value", "cols.index", "cols.second"], &mut out.cols)?,
    ];
    let (screen, _screen) = match &mut out.screen {
        None => (RawBuf::NULL, None),
        Some(view) => bind.buf_mut("screen", view).map(|(buf, guard)| (buf, Some(guard)))?,
    };
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let args = RawMine {
        x,
        y,
        normalization: options.normalization,
        groups: groups.as_ref().map(|(raw, _)| *raw),
        positive,
        rows,
        cols,
        screen,
        workspace,
    };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { mine_raw(kernels, stream, &args) }
}

type HardestGuards<'s> = (RawHardest, [Option<cudarc::driver::SyncOnDrop<'s>>; 3]);

fn hardest<'s>(bind: &Binder<'s>, args: [&'static str; 3], h: &'s mut DeviceHardest<'_>) -> Result<HardestGuards<'s>> {
    let (value, value_guard) = bind.buf_mut(args[0], &mut h.value)?;
    let (index, index_guard) = bind.buf_mut(args[1], &mut h.index)?;
    let (second, second_guard) = match &mut h.second {
        None => (RawBuf::NULL, None),
        Some(view) => bind.buf_mut(args[2], view).map(|(buf, guard)| (buf, Some(guard)))?,
    };
    Ok((RawHardest { value, index, second }, [Some(value_guard), Some(index_guard), second_guard]))
}
