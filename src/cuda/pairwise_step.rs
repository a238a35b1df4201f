//! The parameters and launches of a pairwise step.

use cudarc::driver::CudaStream;

use super::descriptor::{RawBuf, RawMat};
use super::kernels::Kernels;
use super::launch::launch;
use super::mine::{MineParams, Select, Stats, launch_sweep};
use super::pairwise_gradient::{GradientStep, ReportOfWeights};
use super::pairwise_params::{
    Form, LINES, PairwiseExtremesParams, PairwiseFinalizeParams, PairwiseStatsParams, PairwiseTiles,
    PairwiseWeightsParams, WAVE_SUMS, ZEROED,
};
use super::pairwise_plan::{Plan, RawPairwiseStep, Wave, finalize_blocks};
use super::plan::{TILE_BLOCK, TILE_SHARED_BYTES};
use super::prepare::by_dtype;
use super::workspace::Region;
use crate::error::Result;
use crate::options::Normalization;

const STATS: [[&str; 3]; 2] = [
    ["pairwise_stats_f32", "pairwise_stats_f16", "pairwise_stats_bf16"],
    ["pairwise_stats_both_f32", "pairwise_stats_both_f16", "pairwise_stats_both_bf16"],
];
const WEIGHTS: [[&str; 3]; 2] = [
    ["pairwise_weights_f32", "pairwise_weights_f16", "pairwise_weights_bf16"],
    ["pairwise_weights_both_f32", "pairwise_weights_both_f16", "pairwise_weights_both_bf16"],
];
/// A checked step on one stream.
pub(super) struct Step<'a> {
    pub a: &'a RawPairwiseStep<'a>,
    pub plan: &'a Plan,
    /// Address of the workspace.
    pub base: u64,
}

impl Step<'_> {
    fn at(&self, region: Region) -> u64 {
        region.at(self.base)
    }

    /// Columns that are anchors have a region, others have not.
    fn of_both(&self, region: Region) -> u64 {
        if self.plan.form.both { self.at(region) } else { 0 }
    }

    /// Address of word `word` of those that `prepare` has cleared.
    fn zeroed(&self, word: usize) -> u64 {
        self.plan.prepare.zeroed(self.base) + (word * size_of::<u32>()) as u64
    }

    /// A flag per column that has a positive; own pairs need none.
    fn col_flags(&self) -> u64 {
        if self.plan.form.both { 0 } else { self.zeroed(ZEROED) }
    }

    /// Where the waves are to leave what statistics would say: flags of rows, of columns, counters.
    fn fused(&self) -> [u64; 3] {
        if self.plan.form.has_statistics() {
            return [0; 3];
        }
        [self.zeroed(ZEROED + self.plan.shape.m), self.col_flags(), self.zeroed(0)]
    }

    /// Whether rows are left out of the products: those that no pair counts, which may hold anything.
    fn skip(&self, side: usize) -> u64 {
        let masked = self.a.ignore_rows != RawBuf::NULL || self.a.ignore_cols != RawBuf::NULL;
        let left_out = masked || (self.plan.form.both && self.a.groups.is_some());
        if left_out { self.at(self.plan.skip[side]) } else { 0 }
    }

    fn has_pairs(&self) -> bool {
        self.plan.shape.n > 0 && self.plan.shape.m > 0
    }

    fn tiles(&self) -> PairwiseTiles {
        let Self { a, plan, .. } = self;
        let [x, y] = plan.operands(self.base);
        let [row_groups, col_groups] = a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr]);
        let extremes = plan.extremes.map(|r| if plan.form.mined { self.at(r) } else { 0 });
        PairwiseTiles {
            x: x.ptr,
            y: y.ptr,
            inv_x: x.inv,
            inv_y: y.inv,
            row_groups,
            col_groups,
            ignore_rows: a.ignore_rows.ptr,
            ignore_cols: a.ignore_cols.ptr,
            log_q: a.log_q.ptr,
            pos: self.of_both(plan.pos),
            lowest: extremes[0],
            highest: extremes[1],
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            n: plan.shape.n as u32,
            m: plan.shape.m as u32,
            d: plan.shape.d as u32,
            form: plan.form.form as u32,
            single: u32::from(plan.shape.single),
            single_positive: u32::from(plan.form.both),
            c: plan.form.c,
        }
    }

    fn stats(&self, extremes: bool) -> PairwiseStatsParams {
        let plan = self.plan;
        // The pairs' similarities come from a sweep of their own where this one compares with them.
        let writes_pairs = plan.form.both && plan.form.form != Form::Triplet;
        PairwiseStatsParams {
            tiles: self.tiles(),
            row_parts: self.at(plan.row_parts),
            other_parts: self.at(plan.other_parts),
            pos: if writes_pairs { self.at(plan.pos) } else { 0 },
            col_flags: self.col_flags(),
            counts: self.zeroed(0),
            row_splits: plan.splits.rows as u32,
            col_splits: plan.splits.cols as u32,
            extremes: u32::from(extremes),
            pad_: 0,
        }
    }

    /// The similarities of the pairs alone; what else this sweep finds out is overwritten by the next.
    fn pairs(&self) -> MineParams {
        let (plan, t) = (self.plan, self.tiles());
        MineParams {
            x: t.x,
            y: t.y,
            inv_x: t.inv_x,
            inv_y: t.inv_y,
            row_groups: 0,
            col_groups: 0,
            pmin: 0,
            pos: t.pos,
            row_parts: self.at(plan.row_parts),
            col_parts: self.at(plan.other_parts),
            ldx: t.ldx,
            ldy: t.ldy,
            n: t.n,
            m: t.m,
            d: t.d,
            row_splits: 1,
            col_splits: 1,
            pmin_count: 0,
            select: Select::Pair as u32,
            stats: Stats::None as u32,
            eps: 0.0,
            beta: 0.0,
        }
    }

    fn extremes(&self) -> PairwiseExtremesParams {
        let plan = self.plan;
        PairwiseExtremesParams {
            neg_parts: self.at(plan.row_parts),
            pos_parts: self.at(plan.other_parts),
            lowest: self.at(plan.extremes[0]),
            highest: self.at(plan.extremes[1]),
            n: plan.shape.n as u32,
            splits: plan.splits.cols as u32,
        }
    }

    fn finalize(&self) -> PairwiseFinalizeParams {
        let Self { a, plan, .. } = self;
        let [inv_x, inv_y] = plan.both_sides(plan.prepare.row_inv(self.base));
        let statistics = self.has_pairs() && plan.form.has_statistics();
        let splits = |of: usize| if statistics { of as u32 } else { 0 };
        PairwiseFinalizeParams {
            row_parts: self.at(plan.row_parts),
            other_parts: self.at(plan.other_parts),
            pos: self.of_both(plan.pos),
            col_flags: self.col_flags(),
            counts: self.zeroed(0),
            inv_x,
            inv_y,
            ignore_rows: a.ignore_rows.ptr,
            ignore_cols: a.ignore_cols.ptr,
            row_weights: a.row_weights.ptr,
            col_weights: a.col_weights.ptr,
            log_q: a.log_q.ptr,
            row_coefficients: self.at(plan.row_coefficients),
            col_coefficients: self.of_both(plan.col_coefficients),
            skip_x: self.skip(0),
            skip_y: self.skip(1),
            blocks: self.at(plan.blocks),
            // The word behind the two counters.
            ticket: self.zeroed(4),
            scale: self.at(plan.scale),
            report: a.report.ptr,
            k: plan.form.k,
            n: plan.shape.n as u32,
            m: plan.shape.m as u32,
            row_splits: splits(plan.splits.rows),
            col_splits: splits(plan.splits.cols),
            form: plan.form.form as u32,
            both: u32::from(plan.form.both),
            single: u32::from(plan.shape.single),
            normalised: u32::from(a.normalization == Normalization::L2),
        }
    }

    fn weights(&self, wave: &Wave) -> PairwiseWeightsParams {
        let plan = self.plan;
        let [row_flags, col_flags, counts] = self.fused();
        PairwiseWeightsParams {
            tiles: self.tiles(),
            row_coefficients: self.at(plan.row_coefficients),
            col_coefficients: self.of_both(plan.col_coefficients),
            scale: self.at(plan.scale),
            w: self.at(plan.weights),
            diagonal: self.at(plan.diagonal),
            sums: self.at(plan.sums) + (wave.blocks_before * WAVE_SUMS * size_of::<f64>()) as u64,
            row_flags,
            col_flags,
            counts,
            ldw: plan.ld_weights as i64,
            first_tile: wave.first as u32,
            end_tile: wave.end as u32,
            row_splits: wave.splits.rows as u32,
            col_splits: wave.splits.cols as u32,
        }
    }

    fn gradient(&self) -> GradientStep {
        let Self { a, plan, .. } = self;
        let normalised = a.normalization == Normalization::L2;
        let (inv, exponent) = if normalised {
            (plan.prepare.row_inv(self.base), plan.prepare.row_exponent(self.base))
        } else {
            ([0; 2], [0; 2])
        };
        GradientStep {
            op: a.op(),
            dtype: a.x.dtype,
            shape: plan.shape,
            operands: plan.operands(self.base),
            inv,
            exponent,
            skip: [self.skip(0), self.skip(1)],
            weights: self.at(plan.weights),
            ld_weights: plan.ld_weights,
            sums: plan.gradients.map(|r| if self.has_pairs() { self.at(r) } else { 0 }),
            ld_sums: plan.ld_gradients,
            diagonal: self.at(plan.diagonal),
            write: a.write,
            upstream: a.upstream,
            dx: a.dx,
            dy: a.dy.filter(|_| !plan.shape.single).unwrap_or(RawMat { rows: 0, ..a.dx }),
            report: a.report.ptr,
        }
    }

    fn report(&self) -> ReportOfWeights {
        let plan = self.plan;
        let [row_flags, col_flags, counts] = self.fused();
        let per = |scale: Option<f64>| scale.map_or(0.0, |s| 1.0 / s);
        ReportOfWeights {
            sums: self.at(plan.sums),
            count: plan.sum_blocks(),
            row_flags,
            col_flags,
            counts,
            per_scale: per(plan.form.per_scale),
            per_bias: per(plan.form.per_bias),
            is_loss: false,
        }
    }

    /// Enqueues everything.
    ///
    /// # Safety
    /// Every buffer of the arguments is valid on the stream's device for its extent until the enqueued work has run.
    pub(super) unsafe fn launch(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        let Self { a, plan, .. } = self;
        let (dtype, form, shape) = (a.x.dtype, &plan.form, plan.shape);
        let sweep_grid = (plan.splits.cols as u32, plan.splits.rows as u32, 1);
        let both = usize::from(form.both);
        let stats = by_dtype(dtype, STATS[both]);
        let lines = |count: usize| (count.div_ceil(LINES) as u32, 1, 1);
        // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
        // caller's promise.
        unsafe {
            plan.prepare.launch(kernels, stream, self.base)?;
            if self.has_pairs() {
                if form.form == Form::Triplet {
                    launch_sweep(kernels, stream, dtype, &self.pairs())?;
                }
                if form.mined {
                    launch(kernels, stream, stats, sweep_grid, TILE_BLOCK, TILE_SHARED_BYTES, &self.stats(true))?;
                    let grid = lines(shape.n);
                    launch(kernels, stream, "pairwise_extremes", grid, LINES as u32, 0, &self.extremes())?;
                }
                if form.has_statistics() {
                    launch(kernels, stream, stats, sweep_grid, TILE_BLOCK, TILE_SHARED_BYTES, &self.stats(false))?;
                }
            }
            let grid = (finalize_blocks(shape.n, shape.m) as u32, 1, 1);
            launch(kernels, stream, "pairwise_finalize", grid, LINES as u32, 0, &self.finalize())?;
            let gradient = self.gradient();
            for wave in &plan.waves {
                let weights = by_dtype(dtype, WEIGHTS[both]);
                let grid = (wave.splits.cols as u32, wave.splits.rows as u32, 1);
                launch(kernels, stream, weights, grid, TILE_BLOCK, TILE_SHARED_BYTES, &self.weights(wave))?;
                gradient.products(kernels, stream, wave)?;
            }
            gradient.finish(kernels, stream, &self.report())
        }
    }
}
