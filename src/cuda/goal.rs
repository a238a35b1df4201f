//! The GOAL step: four kernels from embeddings to gradients.

use cudarc::driver::{CudaStream, CudaView, CudaViewMut};

use super::descriptor::{Extent, Named, RawBuf, RawMat, check_disjoint, check_extent};
use super::gather::{Gather, RawUpstream, Terms, check_gradient_type};
use super::goal_params::{GoalParams, GoalSide, ObjectiveParams, ReportPart, stats_of};
use super::kernels::Kernels;
use super::launch::launch;
use super::mine::{MineParams, Select, Splits, launch_sweep};
use super::prepare::{Prepare, Wants};
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat, DeviceMatMut};
use super::weighted_grad::Upstream;
use super::workspace::{Layout, Region};
use crate::check;
use crate::dtype::{DType, GradientOf};
use crate::error::Result;
use crate::objective::Objective;
use crate::options::{Normalization, WriteMode};
use crate::outputs::StepReport;

const OP: &str = "goal_step";

/// Anchors of a block; `kGoalAnchors` in `kernels/params/goal.h`.
pub(crate) const ANCHORS: usize = 32;
/// Threads of a block; `kGoalThreads` there.
pub(crate) const THREADS: u32 = 512;
/// Words that the blocks count in; `kGoalTickets` there.
pub(crate) const TICKETS: usize = 3;
/// Planes of a direction's anatomy; `kDetailPlanes` in `kernels/params/goal.h`.
pub(crate) const DETAIL_PLANES: usize = 10;

/// Group ids in device memory, i64; see [`Groups`](crate::Groups).
#[derive(Clone, Copy, Debug)]
pub struct RawGroups {
    /// One id per row of `x`.
    pub rows: RawBuf,
    /// One id per row of `y`.
    pub cols: RawBuf,
}

/// Arguments of [`raw::goal_step`](super::raw::goal_step).
#[derive(Clone, Copy, Debug)]
pub struct RawGoalStep<'a> {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(n, d)`, of the type of `x`.
    pub y: RawMat,
    /// What the weights are.
    pub objective: &'a Objective,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// Factor on the gradient.
    pub upstream: RawUpstream,
    /// Whether the gradient is added to what is there.
    pub write: WriteMode,
    /// `(n, d)`, of the type of `x` or f32.
    pub dx: RawMat,
    /// `(n, d)`, of the type of `dx`.
    pub dy: RawMat,
    /// One [`StepReport`].
    pub report: RawBuf,
    /// [`goal_detail_len`](super::goal_detail_len) words for the anatomy of the step, or [`RawBuf::NULL`].
    pub detail: RawBuf,
    /// Bytes, at least [`goal_step_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// One direction's part of the workspace.
struct SidePlan {
    parts: Region,
    positive: Region,
    negative: Region,
    index: Region,
    list: Region,
    spare: Region,
    offsets: Region,
    blocks: Region,
    total: Region,
    splits: usize,
}

impl SidePlan {
    fn new(layout: &mut Layout, n: usize, planes: usize, splits: usize) -> Result<Self> {
        Ok(Self {
            parts: layout.take::<u32>(&[planes, splits, n])?,
            positive: layout.take::<f32>(&[n])?,
            negative: layout.take::<f32>(&[n])?,
            index: layout.take::<i32>(&[n])?,
            list: layout.take::<u32>(&[n])?,
            spare: layout.take::<u32>(&[n])?,
            offsets: layout.take::<u32>(&[n + 1])?,
            blocks: layout.take::<ReportPart>(&[blocks(n)])?,
            total: layout.take::<ReportPart>(&[1])?,
            splits,
        })
    }

    fn params(&self, base: u64, inv: u64, [anchor_groups, other_groups]: [u64; 2], detail: u64) -> GoalSide {
        GoalSide {
            parts: self.parts.at(base),
            inv,
            anchor_groups,
            other_groups,
            positive: self.positive.at(base),
            negative: self.negative.at(base),
            index: self.index.at(base),
            list: self.list.at(base),
            spare: self.spare.at(base),
            offsets: self.offsets.at(base),
            blocks: self.blocks.at(base),
            total: self.total.at(base),
            detail,
            splits: self.splits as u32,
            pad_: 0,
        }
    }
}

/// Blocks of one direction.
const fn blocks(n: usize) -> usize {
    let blocks = n.div_ceil(ANCHORS);
    if blocks == 0 { 1 } else { blocks }
}

/// Where everything lies in the workspace.
struct Plan {
    prepare: Prepare,
    pos: Region,
    it: SidePlan,
    ti: SidePlan,
    bytes: usize,
}

impl Plan {
    fn new(
        [x, y]: [&RawMat; 2],
        objective: &Objective,
        normalization: Normalization,
        detail: bool,
        any_layout: bool,
    ) -> Result<Self> {
        let n = x.rows;
        let mut layout = Layout::new(OP);
        let wants = Wants {
            row_facts: true,
            norms: normalization == Normalization::L2,
            pmin: objective.pair().eps().is_some(),
            zeroed: TICKETS,
            any_layout,
        };
        let prepare = Prepare::plan(&mut layout, OP, [&(*x).into(), &(*y).into()], normalization, &wants)?;
        let splits = Splits::new(n, n);
        let planes = stats_of(objective, detail).planes();
        Ok(Self {
            prepare,
            pos: layout.take::<f32>(&[n])?,
            it: SidePlan::new(&mut layout, n, planes, splits.cols)?,
            ti: SidePlan::new(&mut layout, n, planes, splits.rows)?,
            bytes: layout.total(),
        })
    }
}

/// Kernels that one [`goal_step`] or [`goal_step_detail`] enqueues.
pub const GOAL_STEP_LAUNCHES: u32 = 4;

/// Bytes of workspace that [`goal_step`] needs for `n` pairs of `d` features of type `dtype`, whatever the alignment of the
/// operands; with `detail`, [`goal_step_detail`]. Host arithmetic only. `O(n)` beside the padded or converted operands.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
pub fn goal_step_workspace_bytes(
    n: usize,
    d: usize,
    dtype: DType,
    objective: &Objective,
    normalization: Normalization,
    detail: bool,
) -> Result<usize> {
    check_extent(OP, "x.rows", n)?;
    check_extent(OP, "x.cols", d)?;
    let m = RawMat::new(0, n, d, dtype);
    Ok(Plan::new([&m, &m], objective, normalization, detail, true)?.bytes)
}

fn check_optional<T>(buf: Option<RawBuf>, arg: &'static str, needed: usize) -> Result<Named> {
    let (buf, needed) = buf.map_or((RawBuf::NULL, 0), |b| (b, needed));
    Ok((arg, buf.check::<T>(OP, arg, needed)?))
}

fn check_inputs(a: &RawGoalStep<'_>) -> Result<[Named; 5]> {
    let upstream = match a.upstream {
        RawUpstream::Host(_) => None,
        RawUpstream::Device(buf) => Some(buf),
    };
    Ok([
        ("x", a.x.check(OP, "x")?),
        ("y", a.y.check(OP, "y")?),
        check_optional::<i64>(a.groups.map(|g| g.rows), "groups.rows", a.x.rows)?,
        check_optional::<i64>(a.groups.map(|g| g.cols), "groups.cols", a.y.rows)?,
        check_optional::<f32>(upstream, "upstream", 1)?,
    ])
}

fn check_outputs(a: &RawGoalStep<'_>) -> Result<[Named; 4]> {
    let detail: Extent = match a.detail {
        RawBuf::NULL => RawBuf::NULL.check::<u32>(OP, "detail", 0)?,
        buf => buf.check::<u32>(OP, "detail", super::goal_detail::goal_detail_len(a.x.rows))?,
    };
    Ok([
        ("dx", a.dx.check(OP, "dx")?),
        ("dy", a.dy.check(OP, "dy")?),
        ("report", a.report.check::<StepReport>(OP, "report", 1)?),
        ("detail", detail),
    ])
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawGoalStep<'_>) -> Result<Plan> {
    let (x, y) = ((a.x.rows, a.x.cols), (a.y.rows, a.y.cols));
    let (dx, dy) = ((a.dx.rows, a.dx.cols), (a.dy.rows, a.dy.cols));
    check::goal_step(OP, x, y, a.groups.map(|g| (g.rows.len, g.cols.len)), dx, dy)?;
    check_extent(OP, "x.rows + y.rows", a.x.rows.saturating_add(a.y.rows))?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    check_gradient_type(OP, "dx", a.x.dtype, a.dx.dtype)?;
    same_dtype(OP, "dy", a.dx.dtype, a.dy.dtype)?;
    let inputs = check_inputs(a)?;
    let [dx, dy, report, detail] = check_outputs(a)?;
    let plan = Plan::new([&a.x, &a.y], a.objective, a.normalization, a.detail != RawBuf::NULL, false)?;
    let workspace = ("workspace", a.workspace.check_workspace(OP, plan.bytes)?);
    check_disjoint(OP, &[dx, dy, report, detail, workspace], &inputs)?;
    Ok(plan)
}

/// The parameters of the last three kernels.
struct Step<'a> {
    a: &'a RawGoalStep<'a>,
    plan: &'a Plan,
    base: u64,
}

impl Step<'_> {
    fn groups(&self) -> [u64; 2] {
        self.a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr])
    }

    /// Address of the pairs' similarities: the last plane of the anatomy if that is wanted.
    fn pos(&self) -> u64 {
        match self.a.detail {
            RawBuf::NULL => self.plan.pos.at(self.base),
            buf => buf.ptr + (2 * DETAIL_PLANES * self.a.x.rows * size_of::<u32>()) as u64,
        }
    }

    fn mine(&self) -> MineParams {
        let (x, y) = (self.plan.prepare.x(self.base), self.plan.prepare.y(self.base));
        let [row_groups, col_groups] = self.groups();
        let objective = ObjectiveParams::new(self.a.objective);
        let (pmin, pmin_count) = self.plan.prepare.pmin(self.base);
        MineParams {
            x: x.ptr,
            y: y.ptr,
            inv_x: x.inv,
            inv_y: y.inv,
            row_groups,
            col_groups,
            pmin,
            pos: self.pos(),
            row_parts: self.plan.it.parts.at(self.base),
            col_parts: self.plan.ti.parts.at(self.base),
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            n: self.a.x.rows as u32,
            m: self.a.y.rows as u32,
            d: self.a.x.cols as u32,
            row_splits: self.plan.ti.splits as u32,
            col_splits: self.plan.it.splits as u32,
            pmin_count,
            select: Select::Negatives as u32,
            stats: stats_of(self.a.objective, self.a.detail != RawBuf::NULL) as u32,
            eps: objective.eps,
            beta: objective.beta as f32,
        }
    }

    fn finalize(&self) -> GoalParams {
        let n = self.a.x.rows;
        let [rows, cols] = self.groups();
        let [inv_x, inv_y] = self.plan.prepare.row_inv(self.base);
        let detail = |side: usize| match self.a.detail {
            RawBuf::NULL => 0,
            buf => buf.ptr + (side * DETAIL_PLANES * n * size_of::<u32>()) as u64,
        };
        let (pmin, pmin_count) = self.plan.prepare.pmin(self.base);
        GoalParams {
            it: self.plan.it.params(self.base, inv_x, [rows, cols], detail(0)),
            ti: self.plan.ti.params(self.base, inv_y, [cols, rows], detail(1)),
            pos: self.pos(),
            pmin,
            tickets: self.plan.prepare.zeroed(self.base),
            report: self.a.report.ptr,
            objective: ObjectiveParams::new(self.a.objective),
            factor: self.a.objective.reduction_factor(n),
            n: n as u32,
            pmin_count,
            stats: stats_of(self.a.objective, self.a.detail != RawBuf::NULL) as u32,
            pad_: 0,
        }
    }

    /// Terms of the rows of `X`: the pair, the own negative of "it", and the anchors of "ti" that chose the row; of the
    /// rows of `Y` with the directions exchanged.
    fn terms(&self, own: &SidePlan, other: &SidePlan) -> Terms {
        let at = |region: Region| region.at(self.base);
        Terms {
            diagonal: [at(self.plan.it.positive), at(self.plan.ti.positive)],
            negative: [at(own.index), at(own.negative)],
            offsets: at(other.offsets),
            list: at(other.list),
            source: 0,
            weight: at(other.negative),
        }
    }

    fn gather(&self) -> Gather {
        let Plan { prepare, it, ti, .. } = self.plan;
        let (inv, exponent) = match self.a.normalization {
            Normalization::L2 => (prepare.row_inv(self.base), prepare.row_exponent(self.base)),
            Normalization::None => ([0; 2], [0; 2]),
        };
        let (upstream, factor) = self.a.upstream.parts();
        let reduction = self.a.objective.reduction_factor(self.a.x.rows);
        Gather {
            op: OP,
            operands: [prepare.x(self.base), prepare.y(self.base)],
            norms: [0, 1].map(|i| [inv[i], exponent[i]]),
            terms: [self.terms(it, ti), self.terms(ti, it)],
            out: [self.a.dx, self.a.dy],
            dtype: self.a.x.dtype,
            upstream,
            factor: (f64::from(factor) * reduction) as f32,
            write: self.a.write,
            pairs: self.a.x.rows,
            overflow: self.a.report.ptr + std::mem::offset_of!(StepReport, overflow) as u64,
        }
    }
}

/// As [`goal_step`], on plain pointers.
///
/// # Errors
/// As [`goal_step`], and [`Error::BadPointer`](crate::Error::BadPointer), [`Error::Overlap`](crate::Error::Overlap),
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn goal_step_raw(kernels: &Kernels, stream: &CudaStream, a: &RawGoalStep<'_>) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    let n = a.x.rows;
    let step = Step { a, plan: &plan, base: a.workspace.ptr };
    let grid = (blocks(n) as u32, 2, 1);
    let scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
    // caller's promise.
    unsafe {
        plan.prepare.launch(kernels, stream, step.base)?;
        if n > 0 {
            launch_sweep(kernels, stream, a.x.dtype, &step.mine())?;
        }
        launch(kernels, stream, "goal_finalize", grid, THREADS, 0, &step.finalize())?;
        step.gather().launch(kernels, stream)?;
    }
    drop(scope);
    Ok(())
}

/// Group ids in device memory; see [`Groups`](crate::Groups).
#[derive(Debug)]
pub struct DeviceGroups<'a> {
    /// One id per row of `X`.
    pub rows: CudaView<'a, i64>,
    /// One id per row of `Y`.
    pub cols: CudaView<'a, i64>,
}

/// Options of [`goal_step`].
#[derive(Debug, Default)]
pub struct DeviceStepOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Default: none.
    pub groups: Option<DeviceGroups<'a>>,
    /// Default: 1.
    pub upstream: Upstream<'a>,
    /// Default: [`WriteMode::Overwrite`].
    pub write: WriteMode,
}

/// One GOAL step (eqs. 3 to 10): mines the hardest negatives of `n` pairs in both directions, weighs them by the
/// objective, and writes the gradients and a report.
///
/// `x`, `y`, `dx` and `dy` are `(n, d)`; `report` has one element, `workspace` [`goal_step_workspace_bytes`] bytes, whose
/// contents do not matter before and mean nothing after. Enqueues 4 kernels; allocates nothing, does not synchronise,
/// reads nothing back; can be captured. Bitwise the same from run to run. If a launch is refused, `dx` and `dy` are
/// unchanged.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch),
/// [`Error::TooShort`](crate::Error::TooShort), [`Error::TooLarge`](crate::Error::TooLarge),
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) before anything is enqueued, and
/// [`Error::LaunchRefused`](crate::Error::LaunchRefused), [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or
/// [`Error::Driver`](crate::Error::Driver) from the driver.
#[allow(clippy::too_many_arguments)]
pub fn goal_step<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    objective: &Objective,
    options: &DeviceStepOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    dy: &mut DeviceMatMut<'_, G>,
    report: &mut CudaViewMut<'_, StepReport>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    enqueue(kernels, stream, [x, y], objective, options, (dx, dy), report, None, workspace)
}

/// As [`goal_step`], and writes the anatomy of the step to `detail`, [`goal_detail_len`](super::goal_detail_len) words
/// that [`goal_detail_from_words`](super::goal_detail_from_words) reads.
///
/// # Errors
/// As [`goal_step`].
#[allow(clippy::too_many_arguments)]
pub fn goal_step_detail<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    objective: &Objective,
    options: &DeviceStepOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    dy: &mut DeviceMatMut<'_, G>,
    report: &mut CudaViewMut<'_, StepReport>,
    detail: &mut CudaViewMut<'_, u32>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    enqueue(kernels, stream, [x, y], objective, options, (dx, dy), report, Some(detail), workspace)
}

#[allow(clippy::too_many_arguments)]
fn enqueue<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    [x, y]: [&DeviceMat<'_, T>; 2],
    objective: &Objective,
    options: &DeviceStepOptions<'_>,
    (dx, dy): (&mut DeviceMatMut<'_, G>, &mut DeviceMatMut<'_, G>),
    report: &mut CudaViewMut<'_, StepReport>,
    detail: Option<&mut CudaViewMut<'_, u32>>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let groups = options.groups.as_ref().map(|g| bind.groups(g)).transpose()?;
    let (upstream, _upstream) = bind.upstream(&options.upstream)?;
    let (dx, _dx) = bind.mat_mut("dx", dx)?;
    let (dy, _dy) = bind.mat_mut("dy", dy)?;
    let (report, _report) = bind.buf_mut("report", report)?;
    let detail = detail.map(|d| bind.buf_mut("detail", d)).transpose()?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let args = RawGoalStep {
        x,
        y,
        objective,
        normalization: options.normalization,
        groups: groups.as_ref().map(|(raw, _)| *raw),
        upstream,
        write: options.write,
        dx,
        dy,
        report,
        detail: detail.as_ref().map_or(RawBuf::NULL, |(buf, _)| *buf),
        workspace,
    };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { goal_step_raw(kernels, stream, &args) }
}
