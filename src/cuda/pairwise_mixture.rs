//! Mixtures: the weights of several objectives, added before the products with them.

use cudarc::driver::{CudaStream, CudaViewMut};

use super::descriptor::{RawBuf, RawMat};
use super::gather::RawUpstream;
use super::goal_plan::RawGroups;
use super::kernels::Kernels;
use super::pairwise::{DevicePairwiseOptions, enqueue};
use super::pairwise_arguments::check_arguments;
use super::pairwise_plan::{Grant, Kind, workspace_bytes};
use super::pairwise_step::Step;
use super::scope::Scope;
use super::tensor::{DeviceElement, DeviceMat, DeviceMatMut};
use crate::dtype::{DType, GradientOf};
use crate::error::Result;
use crate::mixture::PairwisePart;
use crate::options::{Normalization, Precision, WriteMode};
use crate::pairwise::PairwiseReport;

/// Arguments of [`raw::pairwise_mixture`](super::raw::pairwise_mixture). Buffers that are left out are [`RawBuf::NULL`].
#[derive(Clone, Copy, Debug)]
pub struct RawPairwiseMixture<'a> {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`. `None`: `x` with itself, without the diagonal; `m = n`.
    pub y: Option<RawMat>,
    /// What the weights are.
    pub parts: &'a [PairwisePart],
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// `n` bytes, not 0: the row is ignored. Or left out.
    pub ignore_rows: RawBuf,
    /// `m` bytes, not 0: the column is ignored. Or left out.
    pub ignore_cols: RawBuf,
    /// `n` f32: factors of the rows' terms. Or left out.
    pub row_weights: RawBuf,
    /// `m` f32: factors of the columns' terms. Left out unless columns are anchors of a part.
    pub col_weights: RawBuf,
    /// `m` f32: logarithms of the columns' sampling probabilities. Left out unless a part is a softmax.
    pub log_q: RawBuf,
    /// Factor on the gradient.
    pub upstream: RawUpstream,
    /// Whether the gradient is added to what is there.
    pub write: WriteMode,
    /// `(n, d)`, of the type of `x` or f32.
    pub dx: RawMat,
    /// `(m, d)`, of the type of `dx`; `None` exactly where `y` is.
    pub dy: Option<RawMat>,
    /// One [`PairwiseReport`] for every part.
    pub reports: RawBuf,
    /// [`pairwise_conflict_len`](super::pairwise_conflict_len) f64 for norms and cosines, or [`RawBuf::NULL`].
    pub conflict: RawBuf,
    /// As in [`RawPairwiseStep`](super::raw::RawPairwiseStep).
    pub wave_bytes: usize,
    /// As in [`RawPairwiseStep`](super::raw::RawPairwiseStep).
    pub keep_bytes: usize,
    /// As in [`RawPairwiseStep`](super::raw::RawPairwiseStep).
    pub precision: Precision,
    /// Bytes, at least [`pairwise_mixture_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// Checks and enqueues a step.
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub(super) unsafe fn enqueue_raw(
    kind: Kind,
    kernels: &Kernels,
    stream: &CudaStream,
    a: &RawPairwiseMixture<'_>,
) -> Result<()> {
    let op = kind.op(a.y.is_none());
    let (plan, conflict) = check_arguments(kind, a)?;
    kernels.check_stream(op, stream)?;
    let _scope = Scope::enter(op, stream.context())?;
    // SAFETY: by the caller's promise.
    unsafe {
        // Before the step, which is the only one to write gradients.
        if let Some(conflict) = conflict {
            conflict.launch(kernels, stream, a, a.workspace.ptr + plan.bytes as u64)?;
        }
        Step::new(kernels, a, &plan, a.workspace.ptr).launch(kernels, stream)
    }
}

/// As [`pairwise_mixture`], or with no `y` as [`pairwise_mixture_single`], on plain pointers.
///
/// # Errors
/// As [`pairwise_mixture`], and [`Error::BadPointer`](crate::Error::BadPointer), [`Error::Overlap`](crate::Error::Overlap),
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn pairwise_mixture_raw(kernels: &Kernels, stream: &CudaStream, a: &RawPairwiseMixture<'_>) -> Result<()> {
    // SAFETY: by the caller's promise.
    unsafe { enqueue_raw(Kind::Mixture, kernels, stream, a) }
}

/// Bytes of workspace that [`pairwise_mixture`] needs, as
/// [`pairwise_workspace_bytes`](super::pairwise_workspace_bytes). With several parts `wave_bytes` holds, beside the weights
/// of a wave, their sum in f32 and, unless all similarities are kept, those of the wave if two parts weigh every pair. With
/// `conflict` there is room for the step of each part alone, and for the gradients of all of them in f32.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
#[allow(clippy::too_many_arguments)]
pub fn pairwise_mixture_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    parts: &[PairwisePart],
    normalization: Normalization,
    wave_bytes: usize,
    keep_bytes: usize,
    precision: Precision,
    conflict: bool,
) -> Result<usize> {
    workspace_bytes(
        Kind::Mixture,
        n,
        Some(m),
        d,
        dtype,
        parts,
        normalization,
        Grant { wave_bytes, keep_bytes, precision },
        conflict,
    )
}

/// As [`pairwise_mixture_workspace_bytes`], for [`pairwise_mixture_single`].
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
#[allow(clippy::too_many_arguments)]
pub fn pairwise_mixture_single_workspace_bytes(
    n: usize,
    d: usize,
    dtype: DType,
    parts: &[PairwisePart],
    normalization: Normalization,
    wave_bytes: usize,
    keep_bytes: usize,
    precision: Precision,
    conflict: bool,
) -> Result<usize> {
    let grant = Grant { wave_bytes, keep_bytes, precision };
    workspace_bytes(Kind::Mixture, n, None, d, dtype, parts, normalization, grant, conflict)
}

/// One step of a weighted sum of objectives, `L = Σ_k w_k L_k`: their weight matrices are added, wave by wave in f32 and in
/// the order of the parts, and the two products are taken once.
///
/// Shapes, options and determinism are those of [`pairwise_step`](super::pairwise_step); a part that has no use for an
/// option goes without it, but one of them must have a use. `reports` has an element for every part: what it would report
/// alone, `d_scale` and `d_bias` times its weight, facts about rows and `overflow` those of the whole step. `workspace` has
/// [`pairwise_mixture_workspace_bytes`] bytes for the same parts, `wave_bytes`, `keep_bytes` and `precision`. A GOAL part takes pairs
/// (`n = m`) and groups; masks and weights of rows and columns are refused beside it.
///
/// Similarities are computed once if `keep_bytes` has room for them. Otherwise every part with statistics computes them for
/// these (the miners twice), and all parts share those of a wave: for `K` parts of which none is a
/// [`SigLip`](crate::PairwiseObjective::SigLip) or has a miner, `K + 3` products of `n m d` instead of 3. A GOAL part has
/// one sweep of its own, and none for its weights.
///
/// With `conflict`, [`pairwise_conflict_len`](super::pairwise_conflict_len) numbers, the norms of the parts' gradients
/// (each of both matrices together, weight and upstream factor included) and the cosines between every two (0 where one
/// of them is 0) are written there. Each part is stepped alone for that, into f32 gradients in the workspace.
///
/// Enqueues 2 kernels, 1 more for f32 on tensor cores and for f16 on 9.0, and for every part what [`pairwise_step`](super::pairwise_step) has before the waves (a GOAL part:
/// 2) and 1 more for its report, and in every wave 1 for each part and 1 more; for the conflict those of every part alone
/// and 2 more. Allocates nothing on the device, does not
/// synchronise, reads nothing back; can be captured. If a launch is refused, `dx` and `dy` are unchanged.
///
/// # Errors
/// As [`pairwise_step`](super::pairwise_step), and [`Error::InvalidOption`](crate::Error::InvalidOption) for no parts, for a
/// weight that is not finite or beyond f32, and for options that a GOAL part does not keep to.
#[allow(clippy::too_many_arguments)]
pub fn pairwise_mixture<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    parts: &[PairwisePart],
    options: &DevicePairwiseOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    dy: &mut DeviceMatMut<'_, G>,
    reports: &mut CudaViewMut<'_, PairwiseReport>,
    conflict: Option<&mut CudaViewMut<'_, f64>>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    enqueue(Kind::Mixture, kernels, stream, (x, Some(y)), parts, options, (dx, Some(dy)), reports, conflict, workspace)
}

/// As [`pairwise_mixture`] for rows that are anchors and candidates at once, as
/// [`pairwise_step_single`](super::pairwise_step_single); there are no GOAL parts then. `workspace` has
/// [`pairwise_mixture_single_workspace_bytes`] bytes.
///
/// # Errors
/// As [`pairwise_mixture`].
#[allow(clippy::too_many_arguments)]
pub fn pairwise_mixture_single<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    parts: &[PairwisePart],
    options: &DevicePairwiseOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    reports: &mut CudaViewMut<'_, PairwiseReport>,
    conflict: Option<&mut CudaViewMut<'_, f64>>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    enqueue(Kind::Mixture, kernels, stream, (x, None), parts, options, (dx, None), reports, conflict, workspace)
}
