//! The launches of a step with formulas.

use cudarc::driver::CudaStream;

use super::compiled_expression::CustomKernel;
use super::cosine_matrix::{CosineMatrixParams, PER_SM};
use super::descriptor::RawBuf;
use super::kernels::Kernels;
use super::launch::{Params, launch, launch_function};
use super::pairwise_custom_params::{
    COLS, COUNTERS, CustomAnchorsParams, CustomNearParams, CustomPairs, CustomStatsParams, CustomWeightsParams, THREADS,
};
use super::pairwise_custom_plan::{OP, Plan, RawPairwiseCustom};
use super::pairwise_gradient::{GradientStep, ReportOfWeights};
use super::pairwise_params::WAVE_SUMS;
use super::pairwise_plan::Wave;
use super::plan::{TILE, TILE_BLOCK, TILE_SHARED_BYTES, resident_blocks, tiles};
use super::prepare::by_dtype;
use super::workspace::Region;
use crate::dtype::DType;
use crate::error::Result;
use crate::options::Normalization;

/// A checked step on one stream.
pub(super) struct Step<'a> {
    pub a: &'a RawPairwiseCustom<'a>,
    pub plan: &'a Plan,
    pub kernels: &'a Kernels,
    pub stream: &'a CudaStream,
    /// Address of the workspace.
    pub base: u64,
}

impl Step<'_> {
    fn at(&self, region: Region) -> u64 {
        region.at(self.base)
    }

    /// Address of word `word` of those that `prepare` has cleared.
    fn zeroed(&self, word: usize) -> u64 {
        self.plan.prepare.zeroed(self.base) + (word * size_of::<u32>()) as u64
    }

    fn has_pairs(&self) -> bool {
        self.plan.shape.n > 0 && self.plan.shape.m > 0
    }

    /// Whether rows are left out of the products: those that no pair counts, which may hold anything.
    fn skip(&self) -> [u64; 2] {
        let masked = self.a.ignore_rows != RawBuf::NULL || self.a.ignore_cols != RawBuf::NULL;
        let left_out = masked || (self.a.expression.one_positive() && self.a.groups.is_some());
        self.plan.skip.map(|region| if left_out { self.at(region) } else { 0 })
    }

    /// Of the rows of a wave.
    fn rows(&self, wave: &Wave) -> std::ops::Range<usize> {
        wave.first * TILE..(wave.end * TILE).min(self.plan.shape.n)
    }

    fn similarities(&self, wave: &Wave) -> CosineMatrixParams {
        let (a, plan, rows) = (self.a, self.plan, self.rows(wave));
        let (x, y) = (plan.prepare.x(self.base), plan.prepare.y(self.base));
        let skipped = (rows.start * x.row_stride * a.x.dtype.size()) as u64;
        let inv_skipped = if x.inv == 0 { 0 } else { (rows.start * size_of::<f32>()) as u64 };
        CosineMatrixParams {
            x: x.ptr + skipped,
            y: y.ptr,
            inv_x: x.inv + inv_skipped,
            inv_y: y.inv,
            out: self.at(plan.similarities),
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            ldo: plan.ld as i64,
            x_matrix: 0,
            y_matrix: 0,
            out_matrix: 0,
            inv_x_matrix: 0,
            inv_y_matrix: 0,
            batch: 1,
            n: rows.len() as u32,
            m: plan.shape.m as u32,
            d: plan.shape.d as u32,
            scale: 1.0,
            // f32, in rows of whole tiles.
            out_type: 0,
            vectors: 1,
            pad_: 0,
        }
    }

    fn pairs(&self, wave: &Wave) -> CustomPairs {
        let (a, plan, rows) = (self.a, self.plan, self.rows(wave));
        let [row_groups, col_groups] = a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr]);
        CustomPairs {
            s: self.at(plan.similarities),
            row_groups,
            col_groups,
            ignore_rows: a.ignore_rows.ptr,
            ignore_cols: a.ignore_cols.ptr,
            lds: plan.ld as i64,
            n: plan.shape.n as u32,
            m: plan.shape.m as u32,
            first_row: rows.start as u32,
            end_row: rows.end as u32,
            single_positive: u32::from(a.expression.one_positive()),
            pad_: 0,
        }
    }

    fn stats(&self, wave: &Wave) -> CustomStatsParams {
        CustomStatsParams {
            pairs: self.pairs(wave),
            rows: self.at(self.plan.rows),
            col_parts: self.at(self.plan.col_parts),
            splits: self.plan.splits as u32,
            pad_: 0,
        }
    }

    fn near(&self, wave: &Wave) -> CustomNearParams {
        CustomNearParams {
            pairs: self.pairs(wave),
            rows: self.at(self.plan.rows),
            cols: self.at(self.plan.cols),
            // The states of the statistics have been merged.
            col_parts: self.at(self.plan.col_parts),
            least_pair: self.zeroed(COUNTERS - 1),
            splits: self.plan.splits as u32,
            pad_: 0,
        }
    }

    fn anchors(&self) -> CustomAnchorsParams {
        let (a, plan) = (self.a, self.plan);
        let [inv_x, inv_y] = plan.prepare.row_inv(self.base);
        let [skip_x, skip_y] = self.skip();
        CustomAnchorsParams {
            rows: self.at(plan.rows),
            col_parts: self.at(plan.col_parts),
            cols: self.at(plan.cols),
            inv_x,
            inv_y,
            ignore_rows: a.ignore_rows.ptr,
            ignore_cols: a.ignore_cols.ptr,
            skip_x,
            skip_y,
            counters: self.zeroed(0),
            ticket: self.zeroed(COUNTERS),
            report: a.report.ptr,
            n: plan.shape.n as u32,
            m: plan.shape.m as u32,
            splits: if self.has_pairs() { plan.splits as u32 } else { 0 },
            normalised: u32::from(a.normalization == Normalization::L2),
        }
    }

    fn weights_at(&self) -> u64 {
        self.at(self.plan.weights.unwrap_or(self.plan.similarities))
    }

    fn weights(&self, wave: &Wave) -> CustomWeightsParams {
        let plan = self.plan;
        CustomWeightsParams {
            pairs: self.pairs(wave),
            rows: self.at(plan.rows),
            cols: self.at(plan.cols),
            inv_x: plan.prepare.x(self.base).inv,
            inv_y: plan.prepare.y(self.base).inv,
            row_weights: self.a.row_weights.ptr,
            w: self.weights_at(),
            diagonal: self.at(plan.diagonal),
            sums: self.at(plan.sums) + (wave.blocks_before * WAVE_SUMS * size_of::<f64>()) as u64,
            row_splits: wave.splits.rows as u32,
            col_splits: wave.splits.cols as u32,
        }
    }

    fn gradient(&self) -> GradientStep {
        let (a, plan) = (self.a, self.plan);
        let (inv, exponent) = match a.normalization {
            Normalization::L2 => (plan.prepare.row_inv(self.base), plan.prepare.row_exponent(self.base)),
            Normalization::None => ([0; 2], [0; 2]),
        };
        GradientStep {
            op: OP,
            dtype: a.x.dtype,
            shape: plan.shape,
            operands: [plan.prepare.x(self.base), plan.prepare.y(self.base)],
            inv,
            exponent,
            skip: self.skip(),
            split: None,
            parts: plan.bf16_parts.map(|r| self.at(r)),
            weights: self.weights_at(),
            ld_weights: plan.ld,
            sums: plan.gradients.map(|r| if self.has_pairs() { self.at(r) } else { 0 }),
            ld_sums: plan.ld_gradients,
            diagonal: self.at(plan.diagonal),
            write: a.write,
            upstream: a.upstream,
            dx: a.dx,
            dy: a.dy,
            report: a.report.ptr,
            more_reports: 0,
        }
    }

    fn report(&self) -> ReportOfWeights {
        ReportOfWeights {
            sums: self.at(self.plan.sums),
            count: self.plan.sum_blocks(),
            row_flags: 0,
            col_flags: 0,
            counts: 0,
            per_scale: 0.0,
            per_bias: 0.0,
            is_loss: true,
        }
    }

    /// One of the expression's kernels.
    ///
    /// # Safety
    /// As for [`launch_function`].
    unsafe fn run<P: Params>(
        &self,
        kernel: CustomKernel,
        grid: (usize, usize),
        block: usize,
        params: &P,
    ) -> Result<()> {
        let (function, grid) = (self.a.expression.function(kernel), (grid.0 as u32, grid.1 as u32, 1));
        // SAFETY: by the caller's promise; the expression was compiled in the context of the kernels.
        unsafe { launch_function(self.kernels, self.stream, function, grid, block as u32, 0, params) }
    }

    /// Similarities of a wave.
    ///
    /// # Safety
    /// As for [`Self::launch`].
    unsafe fn sweep(&self, wave: &Wave) -> Result<()> {
        let params = self.similarities(wave);
        let blocks = resident_blocks(
            tiles(params.n as usize) as u128 * tiles(params.m as usize) as u128,
            self.kernels.device().multiprocessors,
            PER_SM,
        );
        let name = by_dtype(self.a.x.dtype, ["cosine_matrix_f32", "cosine_matrix_f16", "cosine_matrix_bf16"]);
        // SAFETY: by the caller's promise.
        unsafe { launch(self.kernels, self.stream, name, (blocks, 1, 1), TILE_BLOCK, TILE_SHARED_BYTES, &params) }
    }

    /// Enqueues everything.
    ///
    /// # Safety
    /// Every buffer of the arguments is valid on the stream's device for its extent until the enqueued work has run.
    pub(super) unsafe fn launch(&self) -> Result<()> {
        let (plan, shape) = (self.plan, self.plan.shape);
        let weights = if self.a.x.dtype == DType::F32 { CustomKernel::WeightsF32 } else { CustomKernel::WeightsBf16 };
        // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
        // caller's promise.
        unsafe {
            plan.prepare.launch(self.kernels, self.stream, self.base)?;
            let row_threads = shape.m.next_multiple_of(32).min(THREADS);
            let col_blocks = (shape.m.div_ceil(COLS), plan.splits);
            for wave in &plan.waves {
                self.sweep(wave)?;
                let stats = self.stats(wave);
                self.run(CustomKernel::Rows, (self.rows(wave).len(), 1), row_threads, &stats)?;
                self.run(CustomKernel::Cols, col_blocks, THREADS, &stats)?;
            }
            let blocks = (shape.n + shape.m).div_ceil(THREADS).max(1);
            self.run(CustomKernel::Anchors, (blocks, 1), THREADS, &self.anchors())?;
            for wave in plan.waves.iter().filter(|_| self.a.expression.near_pairs()) {
                if plan.waves.len() > 1 {
                    self.sweep(wave)?;
                }
                let near = self.near(wave);
                self.run(CustomKernel::NearRows, (self.rows(wave).len(), 1), row_threads, &near)?;
                self.run(CustomKernel::NearCols, col_blocks, THREADS, &near)?;
                if wave.end == tiles(shape.n) {
                    self.run(CustomKernel::NearFinish, (shape.m.div_ceil(THREADS), 1), THREADS, &near)?;
                }
            }
            let gradient = self.gradient();
            gradient.before_products(self.kernels, self.stream)?;
            for wave in &plan.waves {
                if plan.waves.len() > 1 {
                    self.sweep(wave)?;
                }
                self.run(weights, (wave.blocks(), 1), THREADS, &self.weights(wave))?;
                gradient.products(self.kernels, self.stream, wave)?;
            }
            gradient.finish(self.kernels, self.stream, &self.report())
        }
    }
}
