//! The end of every step over all pairs: from the weights of a wave to sums of products, and from those to gradients.

use cudarc::driver::CudaStream;

use super::descriptor::RawMat;
use super::gather::RawUpstream;
use super::kernels::Kernels;
use super::launch::launch;
use super::pairwise_grad_hopper::by_groups;
use super::pairwise_params::{FINISH_THREADS, PairwiseFinishParams, PairwiseFinishSide, PairwiseGradParams};
use super::pairwise_plan::{Shape, Wave};
use super::plan::{TILE_BLOCK, TILE_SHARED_BYTES, tiles};
use super::prepare::{Operand, by_dtype, rows_aligned};
use super::row_norms::{GradientKernels, gradient_kernel};
use crate::dtype::DType;
use crate::error::Result;
use crate::options::WriteMode;

pub(super) const GRAD: [&str; 3] = ["pairwise_grad_f32", "pairwise_grad_f16", "pairwise_grad_bf16"];
pub(super) const FINISH: GradientKernels = GradientKernels {
    f32: "pairwise_finish_f32_f32",
    f16: ["pairwise_finish_f16_f16", "pairwise_finish_f16_f32"],
    bf16: ["pairwise_finish_bf16_bf16", "pairwise_finish_bf16_f32"],
};

/// Columns that a thread of `pairwise_finish_*` takes at a time; `kColumns` in `kernels/pairwise_finish.cu`.
const FINISH_COLUMNS: usize = 4;

/// Where everything lies; addresses of 0 stand for "none".
pub(super) struct GradientStep {
    pub op: &'static str,
    pub dtype: DType,
    pub shape: Shape,
    pub operands: [Operand; 2],
    /// Of the rows of each matrix, if they are normalised.
    pub inv: [u64; 2],
    pub exponent: [u64; 2],
    /// Rows that are left out of the products.
    pub skip: [u64; 2],
    /// Where the parts of f16 rows go, for products that need them: a `PartsShape::region` each.
    pub parts: [u64; 2],
    /// Of f32 in parts.
    pub split: Option<SplitProducts>,
    /// Weights of a wave.
    pub weights: u64,
    pub ld_weights: usize,
    /// Sums of products; none without pairs.
    pub sums: [u64; 2],
    pub ld_sums: usize,
    /// Weights of own pairs.
    pub diagonal: u64,
    pub write: WriteMode,
    pub upstream: RawUpstream,
    pub dx: RawMat,
    /// Without rows for a set with itself.
    pub dy: RawMat,
    /// The first report, and how many there are behind it.
    pub report: u64,
    pub more_reports: usize,
}

/// What the products of f32 in parts are made of.
#[derive(Clone, Copy)]
pub(super) struct SplitProducts {
    /// `X'` and `Y'` of `Split`.
    pub operands: [Operand; 2],
    /// Rows from the leading parts of the weights to the rests.
    pub rest: usize,
}

/// What the waves have left for the report.
pub(super) struct ReportOfWeights {
    /// `WAVE_SUMS` per block.
    pub sums: u64,
    pub count: usize,
    pub row_flags: u64,
    pub col_flags: u64,
    pub counts: u64,
    pub per_scale: f64,
    pub per_bias: f64,
    /// Whether the sum of `W S` is what is reported as the loss.
    pub is_loss: bool,
}

/// Threads of a block of `pairwise_finish_*` for rows of `d` columns.
pub(super) fn finish_threads(d: usize) -> u32 {
    d.div_ceil(FINISH_COLUMNS).next_multiple_of(32).clamp(32, FINISH_THREADS) as u32
}

impl GradientStep {
    fn grad(&self, wave: &Wave) -> PairwiseGradParams {
        let [x, y] = self.operands;
        PairwiseGradParams {
            w: self.weights,
            x: x.ptr,
            y: y.ptr,
            skip_x: self.skip[0],
            skip_y: self.skip[1],
            gx: self.sums[0],
            gy: self.sums[1],
            ldw: self.ld_weights as i64,
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            ldg: self.ld_sums as i64,
            n: self.shape.n as u32,
            m: self.shape.m as u32,
            d: self.shape.d as u32,
            first_tile: wave.first as u32,
            end_tile: wave.end as u32,
            accumulate: u32::from(wave.first > 0),
        }
    }

    fn finish_params(&self, report: &ReportOfWeights) -> PairwiseFinishParams {
        let side = |own: &Operand, other: &Operand, g: [u64; 2], i: usize, out: &RawMat| PairwiseFinishSide {
            own: own.ptr,
            other: other.ptr,
            g,
            own_inv: self.inv[i],
            own_exponent: self.exponent[i],
            other_inv: other.inv,
            out: out.ptr,
            own_ld: own.row_stride as i64,
            other_ld: other.row_stride as i64,
            out_ld: out.row_stride as i64,
            rows: out.rows as u32,
            out_aligned: u32::from(rows_aligned(&(*out).into())),
        };
        let ([x, y], sums) = (&self.operands, self.sums);
        let (upstream, factor) = self.upstream.parts();
        PairwiseFinishParams {
            // A set with itself has one gradient.
            x: side(x, y, [sums[0], if self.shape.single { sums[1] } else { 0 }], 0, &self.dx),
            y: side(y, x, [sums[1], 0], 1, &self.dy),
            diagonal: self.diagonal,
            upstream,
            sums: report.sums,
            row_flags: report.row_flags,
            col_flags: report.col_flags,
            counts: report.counts,
            report: self.report,
            ldg: self.ld_sums as i64,
            per_scale: report.per_scale,
            per_bias: report.per_bias,
            factor,
            d: self.shape.d as u32,
            pairs: self.shape.n.min(self.shape.m) as u32,
            accumulate: u32::from(self.write == WriteMode::Accumulate),
            sums_count: report.count as u32,
            n: self.shape.n as u32,
            m: self.shape.m as u32,
            of_weights: u32::from(report.is_loss),
            more_reports: self.more_reports as u32,
            pad_: 0,
        }
    }

    fn by_groups(&self, kernels: &Kernels) -> bool {
        self.split.is_some() || by_groups(&kernels.plan_device(), self.dtype, self.shape)
    }

    /// Enqueues what the products of all waves need beside the operands: nothing, but for f16 on 9.0.
    ///
    /// # Safety
    /// As for [`Self::products`].
    pub(super) unsafe fn before_products(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        if self.sums[0] == 0 || !self.by_groups(kernels) {
            return Ok(());
        }
        // SAFETY: by the caller's promise.
        unsafe { self.split_by_groups(kernels, stream) }
    }

    /// Enqueues the products of a wave. [`Self::before_products`] is in front of the first one.
    ///
    /// # Safety
    /// Everything is valid on the stream's device for its extent until the enqueued work has run.
    pub(super) unsafe fn products(&self, kernels: &Kernels, stream: &CudaStream, wave: &Wave) -> Result<()> {
        if self.by_groups(kernels) {
            // SAFETY: by the caller's promise.
            return unsafe { self.products_by_groups(kernels, stream, wave) };
        }
        // SAFETY: by the caller's promise.
        unsafe { self.products_by_warps(kernels, stream, wave) }
    }

    /// Enqueues the products of a wave in the scheme that every device runs.
    ///
    /// # Safety
    /// As for [`Self::products`].
    pub(super) unsafe fn products_by_warps(&self, kernels: &Kernels, stream: &CudaStream, wave: &Wave) -> Result<()> {
        let blocks = (wave.end - wave.first + tiles(self.shape.m)) * tiles(self.shape.d);
        let (grad, grid) = (by_dtype(self.dtype, GRAD), (blocks as u32, 1, 1));
        // SAFETY: by the caller's promise.
        unsafe { launch(kernels, stream, grad, grid, TILE_BLOCK, TILE_SHARED_BYTES, &self.grad(wave)) }
    }

    /// Enqueues what writes the gradients and completes the report.
    ///
    /// # Safety
    /// As for [`Self::products`].
    pub(super) unsafe fn finish(&self, kernels: &Kernels, stream: &CudaStream, report: &ReportOfWeights) -> Result<()> {
        let params = self.finish_params(report);
        let rows = params.x.rows + params.y.rows;
        if rows == 0 {
            return Ok(());
        }
        let finish = gradient_kernel(self.op, "dx", self.dtype, self.dx.dtype, &FINISH)?;
        let threads = finish_threads(self.shape.d);
        // SAFETY: by the caller's promise.
        unsafe { launch(kernels, stream, finish, (rows, 1, 1), threads, 0, &params) }
    }
}
