//! The end of a GOAL step of a small batch: weights, gradients and report in one kernel.

use cudarc::driver::CudaStream;

use super::gather::{Gather, GatherParams, threads};
use super::goal_params::GoalParams;
use super::goal_plan::{ANCHORS, OP};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::row_norms::{GradientKernels, gradient_kernel};
use crate::error::Result;

/// The most pairs; `kSmallPairs` in `kernels/params/goal_small.h`.
pub(crate) const PAIRS: usize = 1024;
/// Rows of the gradients that a block writes, at most; `kSmallRows` there.
pub(crate) const ROWS: usize = 8;
/// The most threads of a block; `kSmallThreads` there.
pub(crate) const THREADS: usize = 256;
/// Blocks that the rows are dealt to, if there are as many: with those of the report, two for each multiprocessor of the
/// largest devices, which all of them can hold at a time.
const BLOCKS: usize = 256;
const WARP: usize = 32;

pub(super) const KERNELS: GradientKernels = GradientKernels {
    f32: "goal_small_f32_f32",
    f16: ["goal_small_f16_f16", "goal_small_f16_f32"],
    bf16: ["goal_small_bf16_bf16", "goal_small_bf16_f32"],
};

params! {
    /// Twin of the struct in `kernels/params/goal_small.h`.
    GoalSmallParams: 712 {
        goal: GoalParams,
        gather: GatherParams,
        pairs: u32,
        row_warps: u32,
        report_blocks: u32,
        pad_: u32,
    }
}

/// Whether a step of `n` pairs ends in this kernel.
pub(super) const fn covers(n: usize) -> bool {
    n <= PAIRS
}

/// Kernels that one [`goal_step`](super::goal_step) or [`goal_step_detail`](super::goal_step_detail) of `n` pairs
/// enqueues: 3 up to `n = 1024`, 4 beyond, 2 for none.
pub const fn goal_step_launches(n: usize) -> u32 {
    match n {
        0 => 2,
        _ if covers(n) => 3,
        _ => 4,
    }
}

/// How the rows of `n` pairs of `d` columns are dealt to blocks. No bit of the result depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deal {
    /// Whose rows a block writes.
    pairs: usize,
    /// Warps that work on a row.
    row_warps: usize,
    /// Warps of a block.
    warps: usize,
    /// Blocks that make the report.
    report_blocks: usize,
    /// Blocks that write rows.
    row_blocks: usize,
}

impl Deal {
    fn new(n: usize, d: usize) -> Self {
        let pairs = n.div_ceil(BLOCKS).next_power_of_two();
        let row_warps = threads(d) as usize / WARP;
        let rows = (THREADS / WARP / row_warps).clamp(1, 2 * pairs);
        let warps = rows * row_warps;
        let report_blocks = (2 * n.div_ceil(ANCHORS)).div_ceil(warps).max(1);
        Self { pairs, row_warps, warps, report_blocks, row_blocks: n.div_ceil(pairs) }
    }

    const fn launch(&self) -> ((u32, u32, u32), u32) {
        (((self.report_blocks + self.row_blocks) as u32, 1, 1), (self.warps * WARP) as u32)
    }
}

/// Enqueues the kernel: what `goal` and `gather` describe as two kernels.
///
/// # Safety
/// All addresses are valid on the stream's device for the extents that `kernels/params/goal.h` and
/// `kernels/params/weighted_grad.h` state, [`covers`] the number of pairs, and the counter of overflows is 0.
pub(super) unsafe fn launch_end(
    kernels: &Kernels,
    stream: &CudaStream,
    goal: GoalParams,
    gather: &Gather,
) -> Result<()> {
    let [dx, _] = &gather.out;
    let name = gradient_kernel(OP, "dx", gather.dtype, dx.dtype, &KERNELS)?;
    let deal = Deal::new(dx.rows, dx.cols);
    let params = GoalSmallParams {
        goal,
        gather: gather.params(),
        pairs: deal.pairs as u32,
        row_warps: deal.row_warps as u32,
        report_blocks: deal.report_blocks as u32,
        pad_: 0,
    };
    let (grid, block) = deal.launch();
    // SAFETY: by the caller's promise.
    unsafe { launch(kernels, stream, name, grid, block, 0, &params) }
}

/// Blocks, and threads of a block, for `n` pairs of `d` columns.
pub(super) fn launch_shape(n: usize, d: usize) -> ((u32, u32, u32), u32) {
    Deal::new(n, d).launch()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_every_anchor_has_its_place() {
        for n in 0..=PAIRS {
            for d in [1, 256, 257, 600, 1024, 1025, 2048, 5000] {
                let deal = Deal::new(n, d);
                assert!(deal.pairs.is_power_of_two() && 2 * deal.pairs <= ROWS, "{n} {d}");
                assert!(deal.row_blocks * deal.pairs >= n && deal.row_blocks <= BLOCKS, "{n} {d}");
                assert!(deal.warps.is_multiple_of(deal.row_warps) && deal.warps * WARP <= THREADS, "{n} {d}");
                // A warp for 32 anchors of a direction, in no more blocks than it takes.
                let chunks = 2 * n.div_ceil(ANCHORS);
                assert!(deal.report_blocks * deal.warps >= chunks, "{n} {d}");
                assert!(deal.report_blocks == 1 || (deal.report_blocks - 1) * deal.warps < chunks, "{n} {d}");
            }
        }
    }

    #[test]
    fn the_shapes_that_models_are_trained_with() {
        let deal = |pairs, row_warps, warps, report_blocks, row_blocks| Deal {
            pairs,
            row_warps,
            warps,
            report_blocks,
            row_blocks,
        };
        assert_eq!(Deal::new(128, 1024), deal(1, 4, 8, 1, 128));
        assert_eq!(Deal::new(512, 512), deal(2, 2, 8, 4, 256));
        assert_eq!(Deal::new(1024, 1024), deal(4, 4, 8, 8, 256));
        assert_eq!(Deal::new(1024, 256), deal(4, 1, 8, 8, 256));
    }

    #[test]
    fn launches_by_the_number_of_pairs() {
        assert_eq!([0, 1, 128, 1024, 1025, 1 << 20].map(goal_step_launches), [2, 3, 3, 3, 4, 4]);
    }
}
