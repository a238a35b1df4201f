//! How the sweeps of a step over all pairs are dealt to the blocks of the device at hand.

use super::pairwise_grad_hopper::by_groups;
use super::pairwise_plan::{Plan, Shape, Wave, blocks_of, dealt_again};
use super::plan::{PlanDevice, Scheme, SweepKernel, SweepPlan, SweepShape, TILE};
use super::split::{Split, split_depth};
use super::sweep::{Select, key_words, sweep_plan_on};
use super::tile_kernel::TileKernel;
use crate::dtype::DType;

/// `pairwise_stats`: of rows alone, and of rows and columns. There is no scheme of small tiles, whose tiles of similarities
/// would not be those of `pairwise_weights`.
pub(super) const STATS: [TileKernel; 2] = [
    TileKernel {
        warp: ["pairwise_stats_f32", "pairwise_stats_f16", "pairwise_stats_bf16"],
        group: ["pairwise_stats_hopper_f16", "pairwise_stats_hopper_bf16"],
        step: 1,
        small: [""; 2],
        slices: None,
    },
    TileKernel {
        warp: ["pairwise_stats_both_f32", "pairwise_stats_both_f16", "pairwise_stats_both_bf16"],
        group: ["pairwise_stats_both_hopper_f16", "pairwise_stats_both_hopper_bf16"],
        step: 1,
        small: [""; 2],
        slices: None,
    },
];
/// `pairwise_weights`, as [`STATS`].
pub(super) const WEIGHTS: [TileKernel; 2] = [
    TileKernel {
        warp: ["pairwise_weights_f32", "pairwise_weights_f16", "pairwise_weights_bf16"],
        group: ["pairwise_weights_hopper_f16", "pairwise_weights_hopper_bf16"],
        step: 1,
        small: [""; 2],
        slices: None,
    },
    TileKernel {
        warp: ["pairwise_weights_both_f32", "pairwise_weights_both_f16", "pairwise_weights_both_bf16"],
        group: ["pairwise_weights_both_hopper_f16", "pairwise_weights_both_hopper_bf16"],
        step: 1,
        small: [""; 2],
        slices: None,
    },
];

/// What a plan of a step leaves to the device.
pub(super) struct Sweeps {
    /// Features and type of what is multiplied.
    pub d: usize,
    pub dtype: DType,
    /// Of the statistics.
    pub stats: SweepPlan,
    /// Of the sweep for GOAL parts.
    pub mined: SweepPlan,
    /// The plan's waves, as they are dealt here.
    pub waves: Vec<Wave>,
    /// Of the weights, one per wave.
    pub weights: Vec<SweepPlan>,
}

impl Sweeps {
    /// One scheme for all of them: they have to see the same bits, and the tiles that they pass on are in its order.
    pub(super) fn new(device: PlanDevice, plan: &Plan, dtype: DType) -> Self {
        let (d, dtype) = multiplied(&device, plan, dtype);
        let shape = Shape { d, ..plan.shape };
        let of = |kernel, rows| rows_of(device, kernel, dtype, shape, rows);
        let waves = dealt_again(&plan.waves, |rows| of(SweepKernel::PairwiseWeights, rows).splits);
        let rows = |wave: &Wave| (wave.end - wave.first) * TILE;
        Self {
            d,
            dtype,
            stats: of(SweepKernel::PairwiseStats, shape.n),
            mined: sweep_plan_on(device, dtype, Select::Negatives, [shape.n, shape.m], shape.d),
            weights: waves.iter().map(|wave| of(SweepKernel::PairwiseWeights, rows(wave))).collect(),
            waves,
        }
    }

    /// Whether f32 is multiplied in parts.
    pub(super) fn split<'a>(&self, plan: &'a Plan) -> Option<&'a Split> {
        plan.split.as_ref().filter(|_| self.dtype == DType::Bf16)
    }

    /// Blocks of `pairwise_weights` in all waves, each of which leaves sums.
    pub(super) fn sum_blocks(&self) -> usize {
        blocks_of(&self.waves)
    }
}

/// Features and type of what is multiplied: f32 rows are split if the plan has room for it, and all kernels of the step
/// are those for warpgroups.
fn multiplied(device: &PlanDevice, plan: &Plan, dtype: DType) -> (usize, DType) {
    let (shape, split) = (plan.shape, DType::Bf16);
    let sweep = rows_of(*device, SweepKernel::PairwiseStats, split, shape, shape.n);
    let groups = sweep.scheme == Scheme::GroupMma && by_groups(device, split, shape);
    if plan.split.is_some() && groups { (split_depth(shape.d), split) } else { (shape.d, dtype) }
}

/// The sweep over so many of the rows.
fn rows_of(mut device: PlanDevice, kernel: SweepKernel, dtype: DType, shape: Shape, rows: usize) -> SweepPlan {
    // As the sweep for own pairs, whose similarities are compared with, has it: tensor maps have no empty extents.
    device.group_code &= shape.n > 0 && shape.m > 0 && shape.d > 0 && key_words(shape.n, shape.m) > 0;
    let plan = SweepPlan::new(kernel, SweepShape { batch: 1, n: rows, m: shape.m, d: shape.d, dtype }, device);
    // The operands are whole.
    SweepPlan { shape: SweepShape { n: shape.n, ..plan.shape }, ..plan }
}
