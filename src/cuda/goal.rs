//! The GOAL step: from embeddings to gradients in three kernels, or four for large batches.

use cudarc::driver::{CudaStream, CudaView, CudaViewMut};

use super::descriptor::RawBuf;
use super::goal_plan::{OP, Plan, RawGoalStep, Step, blocks, check_arguments};
use super::goal_small;
use super::kernels::Kernels;
use super::launch::launch;
use super::mine::{Select, launch_sweep, sweep_plan};
use super::plan::Scheme;
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat, DeviceMatMut};
use super::weighted_grad::Upstream;
use crate::dtype::GradientOf;
use crate::error::Result;
use crate::objective::Objective;
use crate::options::{Normalization, WriteMode};
use crate::outputs::StepReport;

/// Threads of a block of `goal_finalize`; `kGoalThreads` in `kernels/params/goal.h`.
pub(crate) const THREADS: u32 = 512;

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
    // SAFETY: by the caller's promise.
    unsafe { enqueue_plan(kernels, stream, a, &plan, goal_small::covers(a.x.rows)) }
}

/// As [`goal_step_raw`], in the launches of large batches whatever `n`, with the same bits. For tests.
///
/// # Errors
/// As [`goal_step_raw`].
///
/// # Safety
/// As [`goal_step_raw`].
pub unsafe fn goal_step_in_four_raw(kernels: &Kernels, stream: &CudaStream, a: &RawGoalStep<'_>) -> Result<()> {
    let plan = check_arguments(a)?;
    // SAFETY: by the caller's promise.
    unsafe { enqueue_plan(kernels, stream, a, &plan, false) }
}

/// # Safety
/// The pointers are valid, and the plan is that of the arguments.
unsafe fn enqueue_plan(
    kernels: &Kernels,
    stream: &CudaStream,
    a: &RawGoalStep<'_>,
    plan: &Plan,
    small: bool,
) -> Result<()> {
    kernels.check_stream(OP, stream)?;
    let n = a.x.rows;
    let sweep = sweep_plan(kernels, a.x.dtype, Select::Negatives, [n, n], a.x.cols);
    // The last kernel of three looks for candidates by tiles dealt one after the other.
    let small = small && sweep.scheme != Scheme::GroupMma;
    let step = Step { a, plan, base: a.workspace.ptr, sweep };
    let (gather, finalize) = (step.gather(), step.finalize());
    let scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
    // caller's promise.
    unsafe {
        // In three launches, the one that counts overflows is not preceded by one that writes the report.
        let counter = if small { gather.overflow } else { 0 };
        plan.prepare.launch_and_clear(kernels, stream, step.base, counter)?;
        if n > 0 {
            launch_sweep(kernels, stream, a.x.dtype, &step.mine())?;
        }
        if small {
            goal_small::launch_end(kernels, stream, finalize, &gather)?;
        } else {
            launch(kernels, stream, "goal_finalize", (blocks(n) as u32, 2, 1), THREADS, 0, &finalize)?;
            gather.launch(kernels, stream)?;
        }
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
/// `x`, `y`, `dx` and `dy` are `(n, d)`; `report` has one element, `workspace` [`goal_step_workspace_bytes`](super::goal_step_workspace_bytes) bytes, whose
/// contents do not matter before and mean nothing after. Enqueues [`goal_step_launches`](super::goal_step_launches)`(n)`
/// kernels, 3 up to `n = 1024` and 4 beyond; allocates nothing, does not synchronise, reads nothing back; can be
/// captured. Bitwise the same from run to run. If a launch is refused, `dx` and `dy` are
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
