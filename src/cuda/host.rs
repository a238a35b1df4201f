//! The operations on matrices in host memory.
//!
//! The same names and arguments as in [`crate::cpu`]. Every call allocates device memory, copies its inputs there, runs
//! on a stream of its own, copies the results back, waits, and frees: for tests, tools and evaluation, not for hot loops.
//! Nothing is written to the caller's outputs unless the whole call succeeds.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::driver::failed;
use super::gather::RawUpstream;
use super::goal::goal_step_raw;
use super::goal_detail::{goal_detail_from_words, goal_detail_len};
use super::goal_plan::{RawGoalStep, RawGroups, goal_step_workspace_bytes};
pub use super::host_evaluation::positive_ranks;
use super::host_memory::{Buffer, Session, write_rows};
pub use super::host_mined_triplet::mined_triplet_step;
pub use super::host_mining::{cosine_matrix, mine, ranks, recall};
pub use super::host_pairwise::{pairwise_step, pairwise_step_custom, pairwise_step_single};
pub use super::host_top_k::{mine_top_k, mine_top_k_with_bank};
use super::kernels::Kernels;
use super::probe::open_context;
use super::weighted_grad::{RawWeightedGrad, weighted_grad_raw, weighted_grad_workspace_bytes};
use super::{RawBuf, raw};
use crate::check;
use crate::dtype::{Accum, Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::objective::Objective;
use crate::options::{GradOptions, Groups, StepOptions, WriteMode};
use crate::outputs::{AnchorDetail, GradReport, StepDetail, StepReport, WeightTriples};

/// A CUDA device with the kernels loaded and a stream to run on.
#[derive(Clone, Debug)]
pub struct Cuda {
    kernels: Kernels,
    stream: Arc<CudaStream>,
}

impl Cuda {
    /// Opens device `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// Why that is not possible, each its own variant: [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt),
    /// [`Error::DriverNotFound`](crate::Error::DriverNotFound), [`Error::DeviceNotFound`](crate::Error::DeviceNotFound),
    /// [`Error::DriverTooOld`](crate::Error::DriverTooOld),
    /// [`Error::UnsupportedArchitecture`](crate::Error::UnsupportedArchitecture),
    /// [`Error::ImageRejected`](crate::Error::ImageRejected), [`Error::OutOfMemory`](crate::Error::OutOfMemory),
    /// [`Error::ContextPoisoned`](crate::Error::ContextPoisoned), [`Error::Driver`](crate::Error::Driver).
    pub fn new(ordinal: usize) -> Result<Self> {
        let context = open_context(ordinal)?;
        let kernels = Kernels::load(&context)?;
        let stream = context.new_stream().map_err(|e| failed("Cuda::new", "cuStreamCreate", e))?;
        Ok(Self { kernels, stream })
    }

    /// The kernels, for the functions on device memory.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The stream that the functions of this module run on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// As [`crate::cpu::row_norms`].
///
/// # Errors
/// Those of the CPU, [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) for `f64`, and those of the driver.
pub fn row_norms<T: Element>(cuda: &Cuda, x: MatRef<'_, T>, norms: &mut [T::Acc]) -> Result<()> {
    const OP: &str = "row_norms";
    check::row_norms(OP, (x.rows(), x.cols()), norms.len())?;
    let session = Session::begin(OP, cuda)?;
    let (_x, x) = session.upload_mat(x)?;
    let out = session.alloc_of::<f32>(norms.len())?;
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { raw::row_norms(&cuda.kernels, &cuda.stream, &x, &out.raw(norms.len())) }?;
    session.download(&out, norms)
}

/// As [`crate::cpu::normalize`].
///
/// # Errors
/// As [`row_norms`].
pub fn normalize<T: Element>(cuda: &Cuda, x: MatRef<'_, T>, mut out: MatMut<'_, T>) -> Result<()> {
    const OP: &str = "normalize";
    check::normalize(OP, (x.rows(), x.cols()), (out.rows(), out.cols()))?;
    let session = Session::begin(OP, cuda)?;
    let (_x, x) = session.upload_mat(x)?;
    let (unit, raw_unit) = session.result_mat(out.as_ref(), WriteMode::Overwrite)?;
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { raw::normalize(&cuda.kernels, &cuda.stream, &x, &raw_unit) }?;
    write_rows(&session.fetch(&unit, &out)?, &mut out);
    Ok(())
}

/// As [`crate::cpu::normalize_backward`].
///
/// # Errors
/// As [`row_norms`].
pub fn normalize_backward<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    grad_unit: MatRef<'_, T::Acc>,
    write: WriteMode,
    mut dx: MatMut<'_, G>,
) -> Result<()> {
    const OP: &str = "normalize_backward";
    let grad_extent = (grad_unit.rows(), grad_unit.cols());
    check::normalize_backward(OP, (x.rows(), x.cols()), grad_extent, (dx.rows(), dx.cols()))?;
    let session = Session::begin(OP, cuda)?;
    let (_x, x) = session.upload_mat(x)?;
    let (_grad, grad_unit) = session.upload_mat(grad_unit)?;
    let (out, raw_out) = session.result_mat(dx.as_ref(), write)?;
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { raw::normalize_backward(&cuda.kernels, &cuda.stream, &x, &grad_unit, write, &raw_out) }?;
    write_rows(&session.fetch(&out, &dx)?, &mut dx);
    Ok(())
}

/// As [`crate::cpu::weighted_grad`].
///
/// # Errors
/// As [`row_norms`].
#[allow(clippy::too_many_arguments)]
pub fn weighted_grad<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    w: &WeightTriples<'_, T::Acc>,
    options: &GradOptions,
    mut dx: MatMut<'_, G>,
    mut dy: MatMut<'_, G>,
) -> Result<GradReport> {
    const OP: &str = "weighted_grad";
    let lens = [w.rows.len(), w.cols.len(), w.values.len()];
    let (xs, ys) = ((x.rows(), x.cols()), (y.rows(), y.cols()));
    check::weighted_grad(OP, xs, ys, lens, (dx.rows(), dx.cols()), (dy.rows(), dy.cols()))?;
    let session = Session::begin(OP, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = weighted_grad_workspace_bytes(xs.0, ys.0, xs.1, T::DTYPE, lens[0], options.normalization)?;
    let (_x, x) = session.upload_mat(x)?;
    let (_y, y) = session.upload_mat(y)?;
    let (rows, cols) = (session.upload(w.rows)?, session.upload(w.cols)?);
    let values = session.upload(w.values)?;
    let (dx_buffer, raw_dx) = session.result_mat(dx.as_ref(), options.write)?;
    let (dy_buffer, raw_dy) = session.result_mat(dy.as_ref(), options.write)?;
    let report = session.alloc_of::<GradReport>(1)?;
    let workspace = session.alloc(bytes)?;
    let args = RawWeightedGrad {
        x,
        y,
        rows: rows.raw(lens[0]),
        cols: cols.raw(lens[0]),
        values: values.raw(lens[0]),
        normalization: options.normalization,
        upstream: RawUpstream::Host(options.upstream as f32),
        write: options.write,
        dx: raw_dx,
        dy: raw_dy,
        report: report.raw(1),
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { weighted_grad_raw(&cuda.kernels, &cuda.stream, &args) }?;
    let report = session.download_vec::<GradReport>(&report, 1)?[0];
    let (new_dx, new_dy) = (session.fetch(&dx_buffer, &dx)?, session.fetch(&dy_buffer, &dy)?);
    write_rows(&new_dx, &mut dx);
    write_rows(&new_dy, &mut dy);
    Ok(report)
}

/// As [`crate::cpu::goal_step`].
///
/// # Errors
/// As [`row_norms`].
#[allow(clippy::too_many_arguments)]
pub fn goal_step<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<StepReport> {
    Ok(step(cuda, x, y, objective, options, dx, dy, false)?.0)
}

/// As [`crate::cpu::goal_step_detail`].
///
/// # Errors
/// As [`row_norms`].
#[allow(clippy::too_many_arguments)]
pub fn goal_step_detail<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<(StepReport, StepDetail<T::Acc>)> {
    let (report, detail) = step(cuda, x, y, objective, options, dx, dy, true)?;
    Ok((report, widen_detail(detail)))
}

/// Group ids on the device.
pub(crate) fn upload_groups(session: &Session<'_>, groups: Option<Groups<'_>>) -> Result<Option<[Buffer; 2]>> {
    groups.map(|g| Ok([session.upload(g.rows)?, session.upload(g.cols)?])).transpose()
}

#[allow(clippy::too_many_arguments)]
fn step<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
    mut dx: MatMut<'_, G>,
    mut dy: MatMut<'_, G>,
    detail: bool,
) -> Result<(StepReport, StepDetail<f32>)> {
    const OP: &str = "goal_step";
    let (n, d) = (x.rows(), x.cols());
    let ids = options.groups.map(|g| (g.rows.len(), g.cols.len()));
    let (dx_extent, dy_extent) = ((dx.rows(), dx.cols()), (dy.rows(), dy.cols()));
    check::goal_step(OP, (n, d), (y.rows(), y.cols()), ids, dx_extent, dy_extent)?;
    let session = Session::begin(OP, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = goal_step_workspace_bytes(n, d, T::DTYPE, objective, options.normalization, detail)?;
    let (_x, x) = session.upload_mat(x)?;
    let (_y, y) = session.upload_mat(y)?;
    let groups = upload_groups(&session, options.groups)?;
    let (dx_buffer, raw_dx) = session.result_mat(dx.as_ref(), options.write)?;
    let (dy_buffer, raw_dy) = session.result_mat(dy.as_ref(), options.write)?;
    let report = session.alloc_of::<StepReport>(1)?;
    let words = if detail { goal_detail_len(n) } else { 0 };
    let detail_buffer = session.alloc_of::<u32>(words)?;
    let workspace = session.alloc(bytes)?;
    let args = RawGoalStep {
        x,
        y,
        objective,
        normalization: options.normalization,
        groups: groups.as_ref().map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(n) }),
        upstream: RawUpstream::Host(options.upstream as f32),
        write: options.write,
        dx: raw_dx,
        dy: raw_dy,
        report: report.raw(1),
        detail: if detail { detail_buffer.raw(words) } else { RawBuf::NULL },
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { goal_step_raw(&cuda.kernels, &cuda.stream, &args) }?;
    let report = session.download_vec::<StepReport>(&report, 1)?[0];
    let detail = goal_detail_from_words(n, &session.download_vec::<u32>(&detail_buffer, words)?);
    let (new_dx, new_dy) = (session.fetch(&dx_buffer, &dx)?, session.fetch(&dy_buffer, &dy)?);
    write_rows(&new_dx, &mut dx);
    write_rows(&new_dy, &mut dy);
    Ok((report, detail))
}

/// The device's numbers in the accumulation type of the inputs, which is f32 for every type the device takes.
pub(crate) fn widen<A: Accum>(values: Vec<f32>) -> Vec<A> {
    values.into_iter().map(|v| A::from_f64(f64::from(v))).collect()
}

fn widen_detail<A: Accum>(detail: StepDetail<f32>) -> StepDetail<A> {
    let anchors = |a: AnchorDetail<f32>| AnchorDetail {
        neg_index: a.neg_index,
        neg_value: widen(a.neg_value),
        second_value: widen(a.second_value),
        triplet: widen(a.triplet),
        w_pos: widen(a.w_pos),
        w_neg: widen(a.w_neg),
        rs_pos: widen(a.rs_pos),
        rs_neg: widen(a.rs_neg),
        rs_pos_count: a.rs_pos_count,
        rs_neg_count: a.rs_neg_count,
    };
    StepDetail { positive: widen(detail.positive), it: anchors(detail.it), ti: anchors(detail.ti) }
}
