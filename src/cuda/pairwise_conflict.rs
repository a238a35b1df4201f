//! How the gradients of a mixture's parts relate: each is computed alone, into the workspace, and compared there.

use cudarc::driver::CudaStream;

use super::descriptor::{RawBuf, RawMat, check_extent};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::pairwise_mixture::RawPairwiseMixture;
use super::pairwise_plan::{Grant, Kind, Plan};
use super::pairwise_step::Step;
use super::workspace::{Layout, Region};
use crate::dtype::DType;
use crate::error::Result;
use crate::mixture::PairwisePart;
use crate::options::{Normalization, WriteMode};
use crate::pairwise::PairwiseReport;

/// Threads of a block; `kConflictThreads` in `kernels/params/pairwise_conflict.h`.
pub(crate) const THREADS: usize = 256;
/// Elements that a thread adds up before there is another block for them.
const ELEMENTS: usize = 16;
/// The most blocks for a pair of parts.
const MAX_BLOCKS: usize = 256;

params! {
    /// Twin of the struct in `kernels/params/pairwise_conflict.h`.
    PairwiseConflictParams: 48 {
        gradients: u64,
        partial: u64,
        dots: u64,
        out: u64,
        len: u64,
        parts: u32,
        blocks: u32,
    }
}

/// Numbers that a conflict of `parts` parts has: their norms, then the cosines between every two, row-major.
pub const fn pairwise_conflict_len(parts: usize) -> usize {
    parts.saturating_add(parts.saturating_mul(parts))
}

/// Where everything lies, counted from the end of what the step itself needs.
pub(super) struct ConflictPlan {
    /// Of each part alone, all in one region.
    steps: Vec<Plan>,
    step: Region,
    report: Region,
    /// One after the other, each of both matrices.
    gradients: Region,
    partial: Region,
    dots: Region,
    /// Elements of one gradient.
    len: usize,
    /// Blocks for a pair of parts.
    blocks: usize,
    pub bytes: usize,
}

impl ConflictPlan {
    pub(super) fn new(
        x: &RawMat,
        y: Option<&RawMat>,
        parts: &[PairwisePart],
        normalization: Normalization,
        grant: Grant,
        any_layout: bool,
    ) -> Result<Self> {
        let op = Kind::Mixture.op(y.is_none());
        let steps: Vec<Plan> = parts
            .iter()
            .map(|part| {
                let one = std::slice::from_ref(part);
                Plan::new(Kind::Mixture, x, y, one, normalization, grant, any_layout)
            })
            .collect::<Result<_>>()?;
        let rows = x.rows + y.map_or(0, |y| y.rows);
        let len = rows.saturating_mul(x.cols);
        let blocks = len.div_ceil(THREADS * ELEMENTS).clamp(1, MAX_BLOCKS);
        let pairs = parts.len().saturating_mul(parts.len() + 1) / 2;
        check_extent(op, "pairs of parts", pairs.saturating_mul(2 * MAX_BLOCKS))?;
        let mut layout = Layout::new(op);
        Ok(Self {
            step: layout.take::<u8>(&[steps.iter().map(|plan| plan.bytes).max().unwrap_or(0)])?,
            report: layout.take::<PairwiseReport>(&[1])?,
            gradients: layout.take::<f32>(&[parts.len(), rows, x.cols])?,
            partial: layout.take::<f64>(&[pairs, blocks])?,
            dots: layout.take::<f64>(&[pairs])?,
            steps,
            len,
            blocks,
            bytes: layout.total(),
        })
    }

    /// Enqueues a step of every part alone, and the comparison.
    ///
    /// # Safety
    /// As [`Step::launch`]; `base` is the address of [`Self::bytes`] bytes.
    pub(super) unsafe fn launch(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        a: &RawPairwiseMixture<'_>,
        base: u64,
    ) -> Result<()> {
        for (at, (part, plan)) in a.parts.iter().zip(&self.steps).enumerate() {
            let first = self.gradients.at(base) + (at * self.len * size_of::<f32>()) as u64;
            let second = first + (a.x.rows * a.x.cols * size_of::<f32>()) as u64;
            let one = RawPairwiseMixture {
                parts: std::slice::from_ref(part),
                write: WriteMode::Overwrite,
                dx: RawMat::new(first, a.x.rows, a.x.cols, DType::F32),
                dy: a.y.map(|y| RawMat::new(second, y.rows, y.cols, DType::F32)),
                reports: RawBuf::new(self.report.at(base), 1),
                ..*a
            };
            // SAFETY: the regions are disjoint and large enough, the rest is the caller's promise.
            unsafe { Step::new(kernels, &one, plan, self.step.at(base)).launch(kernels, stream) }?;
        }
        let params = PairwiseConflictParams {
            gradients: self.gradients.at(base),
            partial: self.partial.at(base),
            dots: self.dots.at(base),
            out: a.conflict.ptr,
            len: self.len as u64,
            parts: a.parts.len() as u32,
            blocks: self.blocks as u32,
        };
        let pairs = a.parts.len() * (a.parts.len() + 1) / 2;
        let (grid, threads) = (((pairs * self.blocks) as u32, 1, 1), THREADS as u32);
        // SAFETY: as above.
        unsafe {
            launch(kernels, stream, "pairwise_conflict_dots", grid, threads, 0, &params)?;
            launch(kernels, stream, "pairwise_conflict_finish", (1, 1, 1), threads, 0, &params)
        }
    }
}
