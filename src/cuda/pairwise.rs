//! Objectives over all pairs: from embeddings to gradients, without a matrix of similarities.

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, SyncOnDrop};

use super::descriptor::RawBuf;
use super::goal::DeviceGroups;
use super::kernels::Kernels;
use super::pairwise_arguments::RawPairwiseStep;
use super::pairwise_mixture::{RawPairwiseMixture, enqueue_raw};
use super::pairwise_plan::{Kind, PAIRWISE_WAVE_BYTES};
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat, DeviceMatMut};
use super::weighted_grad::Upstream;
use crate::dtype::GradientOf;
use crate::error::Result;
use crate::mixture::PairwisePart;
use crate::options::{Normalization, Precision, WriteMode};
use crate::pairwise::{PairwiseObjective, PairwiseReport};

/// As [`pairwise_step`], or with no `y` as [`pairwise_step_single`], on plain pointers.
///
/// # Errors
/// As [`pairwise_step`], and [`Error::BadPointer`](crate::Error::BadPointer), [`Error::Overlap`](crate::Error::Overlap),
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn pairwise_step_raw(kernels: &Kernels, stream: &CudaStream, a: &RawPairwiseStep<'_>) -> Result<()> {
    let parts = [PairwisePart::new(1.0, *a.objective)];
    // SAFETY: by the caller's promise.
    unsafe { enqueue_raw(Kind::Step, kernels, stream, &a.as_mixture(&parts)) }
}

/// Options of [`pairwise_step`]; see [`PairwiseOptions`](crate::PairwiseOptions).
#[derive(Debug)]
pub struct DevicePairwiseOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Default: [`WriteMode::Overwrite`].
    pub write: WriteMode,
    /// Factor of the gradients, `d_scale` and `d_bias`. Default: 1.
    pub upstream: Upstream<'a>,
    /// Default: none.
    pub groups: Option<DeviceGroups<'a>>,
    /// `n` bytes, not 0: the row is ignored. Default: none is.
    pub ignore_rows: Option<CudaView<'a, u8>>,
    /// `m` bytes, not 0: the column is ignored. Default: none is.
    pub ignore_cols: Option<CudaView<'a, u8>>,
    /// `n` elements. Default: 1 for every row.
    pub row_weights: Option<CudaView<'a, f32>>,
    /// `m` elements, for objectives with column anchors. Default: 1 for every column.
    pub col_weights: Option<CudaView<'a, f32>>,
    /// `m` elements, for objectives with a softmax over all candidates. Default: 0 for every column.
    pub log_q: Option<CudaView<'a, f32>>,
    /// The most bytes of the workspace that hold weights at a time; see
    /// [`pairwise_workspace_bytes`](super::pairwise_workspace_bytes). Default: [`PAIRWISE_WAVE_BYTES`].
    pub wave_bytes: usize,
    /// The most bytes of the workspace that hold all similarities, 4 bytes for each, so that they are computed once instead
    /// of in every sweep: one product less for most objectives, two with a miner; the results have the same bits. If they
    /// need more, there is no such memory; nor for [`pairwise_step_custom`](super::pairwise_step_custom), whose waves hold
    /// their similarities already. Default: 0.
    pub keep_bytes: usize,
    /// How f32 rows are multiplied; see [`pairwise_step`]. [`pairwise_step_custom`](super::pairwise_step_custom) has full
    /// precision. Default: [`Precision::Full`].
    pub precision: Precision,
}

impl Default for DevicePairwiseOptions<'_> {
    fn default() -> Self {
        Self {
            normalization: Normalization::default(),
            write: WriteMode::default(),
            upstream: Upstream::default(),
            groups: None,
            ignore_rows: None,
            ignore_cols: None,
            row_weights: None,
            col_weights: None,
            log_q: None,
            wave_bytes: PAIRWISE_WAVE_BYTES,
            keep_bytes: 0,
            precision: Precision::Full,
        }
    }
}

/// One step of an objective over all pairs of rows of `x` and rows of `y`: the report, `dx = W Ŷ` and `dy = Wᵀ X̂` with
/// `W = dL/dS`, through the normalisation.
///
/// `x` and `dx` are `(n, d)`, `y` and `dy` `(m, d)`; `report` has one element, `workspace`
/// [`pairwise_workspace_bytes`](super::pairwise_workspace_bytes) bytes for the same `wave_bytes`, `keep_bytes` and `precision`, whose
/// contents do not matter before and mean nothing after. One sweep over tiles of similarities collects statistics (two with a miner, none
/// for [`SigLip`](PairwiseObjective::SigLip)), then the tiles are computed once more, a wave of rows at a time, for the
/// weights and two products with them: 4 products of `n m d` in all, 3 for SigLIP. Similarities and weights of 16-bit inputs are products on tensor cores; weights are rounded to bf16,
/// except those of own pairs that are positive (f16 inputs take half as many products again, as exact sums of two bf16).
///
/// Of f32 inputs all products are multiply-adds of f32. With [`Precision::SplitBf16`] they are on tensor cores where there is
/// code for warpgroups, on devices of compute capability 9.0; elsewhere the option changes nothing. Rows and weights are two bf16
/// numbers per element then, and the products those of [`Precision::SplitBf16`], 12 of bf16 in all, 9 for SigLIP; weights are off by as much as
/// their logits by the error of a similarity, and sums of gradients by 2⁻¹⁵ of the sum of the magnitudes of their terms at most, for weights and elements from 2⁻¹¹⁶ on and
/// below the largest bf16.
/// Rows that are not normalised have that precision down to a norm of 2⁻⁸⁰. What is not finite is so under both, but may be an
/// infinity or NaN.
///
/// Enqueues 4 kernels and 2 more per wave, 1 more for f32 on tensor cores and for f16 on 9.0, 1 less for SigLIP, 1 more for [`TripletAll`](PairwiseObjective::TripletAll), 2 more with a miner;
/// allocates nothing on the device, does not synchronise, reads nothing back; can be captured. Bitwise the same from run
/// to run for the same `wave_bytes`. If a launch is refused, `dx` and `dy` are unchanged.
///
/// # Errors
/// [`Error::InvalidOption`](crate::Error::InvalidOption) for the objective's parameters and options that it does not have,
/// [`Error::EmptyDim`](crate::Error::EmptyDim), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch),
/// [`Error::TooShort`](crate::Error::TooShort), [`Error::TooLarge`](crate::Error::TooLarge),
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) before anything is enqueued, and
/// [`Error::LaunchRefused`](crate::Error::LaunchRefused), [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or
/// [`Error::Driver`](crate::Error::Driver) from the driver.
#[allow(clippy::too_many_arguments)]
pub fn pairwise_step<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    objective: &PairwiseObjective,
    options: &DevicePairwiseOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    dy: &mut DeviceMatMut<'_, G>,
    report: &mut CudaViewMut<'_, PairwiseReport>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let parts = [PairwisePart::new(1.0, *objective)];
    enqueue(Kind::Step, kernels, stream, (x, Some(y)), &parts, options, (dx, Some(dy)), report, None, workspace)
}

/// As [`pairwise_step`] for rows that are anchors and candidates at once, `x` (`n × d`) with itself and without the
/// diagonal: `dx = (W + Wᵀ) X̂`. `workspace` has
/// [`pairwise_single_workspace_bytes`](super::pairwise_single_workspace_bytes) bytes.
///
/// # Errors
/// As [`pairwise_step`].
#[allow(clippy::too_many_arguments)]
pub fn pairwise_step_single<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    objective: &PairwiseObjective,
    options: &DevicePairwiseOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    report: &mut CudaViewMut<'_, PairwiseReport>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let parts = [PairwisePart::new(1.0, *objective)];
    enqueue(Kind::Step, kernels, stream, (x, None), &parts, options, (dx, None), report, None, workspace)
}

pub(super) type Bound<'s> = (RawBuf, Option<SyncOnDrop<'s>>);

pub(super) fn optional<'s, T>(
    bind: &Binder<'s>,
    arg: &'static str,
    view: &'s Option<CudaView<'_, T>>,
) -> Result<Bound<'s>> {
    match view {
        None => Ok((RawBuf::NULL, None)),
        Some(view) => bind.buf(arg, view).map(|(buf, guard)| (buf, Some(guard))),
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn enqueue<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kind: Kind,
    kernels: &Kernels,
    stream: &CudaStream,
    (x, y): (&DeviceMat<'_, T>, Option<&DeviceMat<'_, T>>),
    parts: &[PairwisePart],
    options: &DevicePairwiseOptions<'_>,
    (dx, dy): (&mut DeviceMatMut<'_, G>, Option<&mut DeviceMatMut<'_, G>>),
    reports: &mut CudaViewMut<'_, PairwiseReport>,
    conflict: Option<&mut CudaViewMut<'_, f64>>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let op = kind.op(y.is_none());
    let bind = Binder { op, kernels, stream };
    kernels.check_stream(op, stream)?;
    let scope = Scope::enter(op, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let y = y.map(|y| bind.mat("y", y)).transpose()?;
    let groups = options.groups.as_ref().map(|g| bind.groups(g)).transpose()?;
    let (ignore_rows, _ignore_rows) = optional(&bind, "options.ignore_rows", &options.ignore_rows)?;
    let (ignore_cols, _ignore_cols) = optional(&bind, "options.ignore_cols", &options.ignore_cols)?;
    let (row_weights, _row_weights) = optional(&bind, "options.row_weights", &options.row_weights)?;
    let (col_weights, _col_weights) = optional(&bind, "options.col_weights", &options.col_weights)?;
    let (log_q, _log_q) = optional(&bind, "options.log_q", &options.log_q)?;
    let (upstream, _upstream) = bind.upstream(&options.upstream)?;
    let (dx, _dx) = bind.mat_mut("dx", dx)?;
    let dy = dy.map(|dy| bind.mat_mut("dy", dy)).transpose()?;
    let (reports, _reports) = bind.buf_mut(if kind == Kind::Step { "report" } else { "reports" }, reports)?;
    let conflict = conflict.map(|conflict| bind.buf_mut("conflict", conflict)).transpose()?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let args = RawPairwiseMixture {
        x,
        y: y.as_ref().map(|(raw, _)| *raw),
        parts,
        normalization: options.normalization,
        groups: groups.as_ref().map(|(raw, _)| *raw),
        ignore_rows,
        ignore_cols,
        row_weights,
        col_weights,
        log_q,
        upstream,
        write: options.write,
        dx,
        dy: dy.as_ref().map(|(raw, _)| *raw),
        reports,
        conflict: conflict.as_ref().map_or(RawBuf::NULL, |(raw, _)| *raw),
        wave_bytes: options.wave_bytes,
        keep_bytes: options.keep_bytes,
        precision: options.precision,
        workspace,
    };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { enqueue_raw(kind, kernels, stream, &args) }
}
