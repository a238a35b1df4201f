//! The part of a pairwise step before its weights, alone: what the statistics of all rows and columns cost.

use cudarc::driver::CudaStream;

use super::kernels::Kernels;
use super::pairwise_arguments::{RawPairwiseStep, check_arguments};
use super::pairwise_plan::Kind;
use super::pairwise_step::Step;
use super::scope::Scope;
use crate::error::Result;
use crate::mixture::PairwisePart;

/// As [`raw::pairwise_step`](super::raw::pairwise_step) up to the loss: the sweep for the statistics of every row and column
/// (for InfoNCE the logarithms of their sums of exponentials), and the report's loss, mean and counts. Gradients are not
/// written, nor what the report derives from them. For benches; SigLIP has no such sweep and no loss here.
///
/// Enqueues 3 kernels, 1 more for `TripletAll`, 2 more with a miner; allocates nothing, does not synchronise; deterministic; can be
/// captured.
///
/// # Errors
/// As [`raw::pairwise_step`](super::raw::pairwise_step).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn pairwise_statistics_raw(kernels: &Kernels, stream: &CudaStream, a: &RawPairwiseStep<'_>) -> Result<()> {
    let parts = [PairwisePart::new(1.0, *a.objective)];
    let a = a.as_mixture(&parts);
    let op = Kind::Step.op(a.y.is_none());
    let (plan, _) = check_arguments(Kind::Step, &a)?;
    kernels.check_stream(op, stream)?;
    let _scope = Scope::enter(op, stream.context())?;
    // SAFETY: by the caller's promise.
    unsafe { Step::new(kernels, &a, &plan, a.workspace.ptr).launch_statistics(kernels, stream) }
}
