//! Objectives that the user wrote as formulas: from embeddings to gradients.

use cudarc::driver::{CudaStream, CudaViewMut};

use super::compiled_expression::CompiledExpression;
use super::kernels::Kernels;
use super::pairwise::{DevicePairwiseOptions, optional};
use super::pairwise_custom_plan::{OP, RawPairwiseCustom, check_arguments};
use super::pairwise_custom_step::Step;
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat, DeviceMatMut};
use crate::check::{self, PairwiseLengths};
use crate::dtype::GradientOf;
use crate::error::Result;
use crate::pairwise::PairwiseReport;

/// As [`pairwise_step_custom`], on plain pointers.
///
/// # Errors
/// As [`pairwise_step_custom`], and [`Error::BadPointer`](crate::Error::BadPointer),
/// [`Error::Overlap`](crate::Error::Overlap), [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn pairwise_step_custom_raw(
    kernels: &Kernels,
    stream: &CudaStream,
    a: &RawPairwiseCustom<'_>,
) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    a.expression.check(OP, kernels)?;
    let _scope = Scope::enter(OP, stream.context())?;
    // SAFETY: by the caller's promise.
    unsafe { Step { a, plan: &plan, kernels, stream, base: a.workspace.ptr }.launch() }
}

/// One step of an objective that the user wrote as formulas, over all pairs of rows of `x` and rows of `y`: the report, `dx =
/// W Ŷ` and `dy = Wᵀ X̂` with the weights `W` of the [expression](crate::expression), through the normalisation.
///
/// As [`cpu::pairwise_step_custom`](crate::cpu::pairwise_step_custom) in all but rounding: statistics, formulas and weights are
/// f32, the sums of the report f64. `x` and `dx` are `(n, d)`, `y` and `dy` `(m, d)`; `report` has one element, `workspace`
/// [`pairwise_custom_workspace_bytes`](super::pairwise_custom_workspace_bytes) bytes for the same `wave_bytes`, whose contents do
/// not matter before and mean nothing after. Similarities of a wave of rows are stored in f32, and read by a kernel for the
/// statistics of rows, one for those of columns, and one that weighs; with more than one wave they are computed twice, so
/// that there are 3 or 4 products of `n m d` (with near pairs 3 or 5). Weights are rounded to bf16 for 16-bit inputs, except
/// those of own pairs that are positive.
///
/// Enqueues 8 kernels, or 3 and 6 per wave if there are several, and for near pairs 3 more, or 1 and 3 per wave; allocates
/// nothing on the device, does not synchronise, reads nothing back; can be captured. Bitwise the same from run to run for the
/// same `wave_bytes` and the same NVRTC. If a launch is refused, `dx` and `dy` are unchanged.
///
/// # Errors
/// [`Error::InvalidOption`](crate::Error::InvalidOption) for `col_weights` and `log_q`, of which formulas have no use,
/// [`Error::EmptyDim`](crate::Error::EmptyDim), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch),
/// [`Error::TooShort`](crate::Error::TooShort), [`Error::TooLarge`](crate::Error::TooLarge),
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) (also for an expression that was compiled for other kernels) before
/// anything is enqueued, and [`Error::LaunchRefused`](crate::Error::LaunchRefused),
/// [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or [`Error::Driver`](crate::Error::Driver) from the driver.
#[allow(clippy::too_many_arguments)]
pub fn pairwise_step_custom<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    expression: &CompiledExpression,
    options: &DevicePairwiseOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    dy: &mut DeviceMatMut<'_, G>,
    report: &mut CudaViewMut<'_, PairwiseReport>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    use cudarc::driver::DeviceSlice;
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let unused = PairwiseLengths {
        col_weights: options.col_weights.as_ref().map(DeviceSlice::len),
        log_q: options.log_q.as_ref().map(DeviceSlice::len),
        ..PairwiseLengths::default()
    };
    let extents = [(x.rows(), x.cols()), (y.rows(), y.cols()), (dx.rows(), dx.cols()), (dy.rows(), dy.cols())];
    check::pairwise_custom(OP, extents, &unused)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let groups = options.groups.as_ref().map(|g| bind.groups(g)).transpose()?;
    let (ignore_rows, _ignore_rows) = optional(&bind, "options.ignore_rows", &options.ignore_rows)?;
    let (ignore_cols, _ignore_cols) = optional(&bind, "options.ignore_cols", &options.ignore_cols)?;
    let (row_weights, _row_weights) = optional(&bind, "options.row_weights", &options.row_weights)?;
    let (upstream, _upstream) = bind.upstream(&options.upstream)?;
    let (dx, _dx) = bind.mat_mut("dx", dx)?;
    let (dy, _dy) = bind.mat_mut("dy", dy)?;
    let (report, _report) = bind.buf_mut("report", report)?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let args = RawPairwiseCustom {
        x,
        y,
        expression,
        normalization: options.normalization,
        groups: groups.as_ref().map(|(raw, _)| *raw),
        ignore_rows,
        ignore_cols,
        row_weights,
        upstream,
        write: options.write,
        dx,
        dy,
        report,
        wave_bytes: options.wave_bytes,
        workspace,
    };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { pairwise_step_custom_raw(kernels, stream, &args) }
}
