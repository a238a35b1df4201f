//! The sums of a sparse gradient: the kernel that [`weighted_grad`](super::weighted_grad) and the GOAL step end with.

use cudarc::driver::CudaStream;

use super::descriptor::{RawBuf, RawMat};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::prepare::{Operand, by_dtype, rows_aligned};
use super::row_norms::{GradientKernels, gradient_kernel};
use crate::dtype::DType;
use crate::error::Result;
use crate::options::WriteMode;

/// Columns that a thread holds; `kGatherColumns` in `kernels/params/weighted_grad.h`.
pub(crate) const COLUMNS: usize = 8;
/// The most threads of a block; `kGatherThreads` there.
pub(crate) const MAX_THREADS: usize = 256;
const WARP: usize = 32;

pub(super) const KERNELS: GradientKernels = GradientKernels {
    f32: "weighted_grad_f32_f32",
    f16: ["weighted_grad_f16_f16", "weighted_grad_f16_f32"],
    bf16: ["weighted_grad_bf16_bf16", "weighted_grad_bf16_f32"],
};

params! {
    /// Twin of the struct in `kernels/params/weighted_grad.h`.
    #[derive(Default)]
    GatherSide: 152 {
        own: u64,
        other: u64,
        own_inv: u64,
        own_exponent: u64,
        other_inv: u64,
        out: u64,
        diagonal: [u64; 2],
        negative: u64,
        coefficient: u64,
        offsets: u64,
        list: u64,
        source: u64,
        weight: u64,
        hubs: u64,
        own_ld: i64,
        other_ld: i64,
        out_ld: i64,
        rows: u32,
        out_aligned: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/weighted_grad.h`.
    GatherParams: 336 {
        x: GatherSide,
        y: GatherSide,
        upstream: u64,
        overflow: u64,
        factor: f32,
        d: u32,
        pairs: u32,
        accumulate: u32,
    }
}

/// A factor on the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RawUpstream {
    /// Known to the host when the work is enqueued.
    Host(f32),
    /// One f32 in device memory, read when the work runs.
    Device(RawBuf),
}

impl RawUpstream {
    /// The element's address or 0, and the factor that the host knows.
    pub(crate) fn parts(self) -> (u64, f32) {
        match self {
            Self::Host(value) => (0, value),
            Self::Device(buf) => (buf.ptr, 1.0),
        }
    }
}

/// The terms of one matrix's gradient rows. Addresses of 0 stand for "none".
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// Two coefficients of the pair, added up.
    pub diagonal: [u64; 2],
    /// One more row per target, and its coefficient.
    pub negative: [u64; 2],
    /// Inverse index: where each target's entries begin, and the entries.
    pub offsets: u64,
    pub list: u64,
    /// Row and coefficient of an entry; no row: the entry's own number.
    pub source: u64,
    pub weight: u64,
    /// Sums of the rows with many entries, which have no other terms.
    pub hubs: u64,
}

/// Everything that the sums are made from.
pub(crate) struct Gather {
    pub op: &'static str,
    pub operands: [Operand; 2],
    /// `inv` and `exponent` of the rows of both matrices; 0 without normalisation.
    pub norms: [[u64; 2]; 2],
    pub terms: [Terms; 2],
    pub out: [RawMat; 2],
    pub dtype: DType,
    pub upstream: u64,
    pub factor: f32,
    pub write: WriteMode,
    /// Rows below this have a diagonal.
    pub pairs: usize,
    /// Entries of each inverse index, where the rows with many of them are summed first.
    pub entries: usize,
    /// Counter of gradient elements that became infinite by rounding.
    pub overflow: u64,
}

/// Entries of a row from which on blocks of their own add them up; `kHubEntries` there.
pub(crate) const HUB_ENTRIES: usize = 2048;
/// Columns of such a block; `kHubColumns` there.
pub(crate) const HUB_COLUMNS: usize = 64;
/// Threads of it; `kHubThreads` there.
pub(crate) const HUB_THREADS: u32 = 256;
const HUBS: [&str; 3] = ["weighted_grad_hubs_f32", "weighted_grad_hubs_f16", "weighted_grad_hubs_bf16"];

/// Columns of the sums of rows with many entries: `d` up to whole steps of the blocks that use them.
pub(crate) fn hub_width(d: usize) -> usize {
    d.next_multiple_of(threads(d) as usize * COLUMNS)
}

/// Sums of a side with so many entries of its inverse index. A list of [`HUB_ENTRIES`] contains a place whose number is a
/// multiple of that, which is its own. With fewer entries than several lists of that length, no list is worth a launch.
pub(crate) fn hub_sums(entries: usize) -> usize {
    if entries < 4 * HUB_ENTRIES { 0 } else { entries.div_ceil(HUB_ENTRIES) }
}

/// Kernel and grid for them, if there can be any.
pub(crate) fn hub_launch(dtype: DType, d: usize, entries: usize) -> Option<(&'static str, (u32, u32, u32))> {
    let blocks = hub_sums(entries) * (hub_width(d) / HUB_COLUMNS);
    (blocks > 0).then(|| (by_dtype(dtype, HUBS), (blocks as u32, 2, 1)))
}

/// Whether the gradient may be of this type.
pub(crate) fn check_gradient_type(op: &'static str, arg: &'static str, x: DType, gradient: DType) -> Result<()> {
    gradient_kernel(op, arg, x, gradient, &KERNELS).map(|_| ())
}

impl Gather {
    fn side(&self, i: usize) -> GatherSide {
        let (own, other, out, terms) = (&self.operands[i], &self.operands[1 - i], &self.out[i], &self.terms[i]);
        GatherSide {
            own: own.ptr,
            other: other.ptr,
            own_inv: self.norms[i][0],
            own_exponent: self.norms[i][1],
            other_inv: other.inv,
            out: out.ptr,
            diagonal: terms.diagonal,
            negative: terms.negative[0],
            coefficient: terms.negative[1],
            offsets: terms.offsets,
            list: terms.list,
            source: terms.source,
            weight: terms.weight,
            hubs: terms.hubs,
            own_ld: own.row_stride as i64,
            other_ld: other.row_stride as i64,
            out_ld: out.row_stride as i64,
            rows: out.rows as u32,
            out_aligned: u32::from(rows_aligned(&(*out).into())),
        }
    }

    /// Parameters of the kernel.
    pub(crate) fn params(&self) -> GatherParams {
        GatherParams {
            x: self.side(0),
            y: self.side(1),
            upstream: self.upstream,
            overflow: self.overflow,
            factor: self.factor,
            d: self.out[0].cols as u32,
            pairs: self.pairs as u32,
            accumulate: u32::from(self.write == WriteMode::Accumulate),
        }
    }

    /// Enqueues the kernels, if there is a row to write.
    ///
    /// # Safety
    /// All addresses are valid on the stream's device for the extents that `kernels/params/weighted_grad.h` states.
    pub(crate) unsafe fn launch(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        let [x, y] = &self.out;
        let rows = x.rows + y.rows;
        if rows == 0 {
            return Ok(());
        }
        let name = gradient_kernel(self.op, "dx", self.dtype, x.dtype, &KERNELS)?;
        let params = self.params();
        // SAFETY: by the caller's promise; the extents fit the grid, their sum was checked.
        unsafe {
            if let Some((hubs, grid)) = hub_launch(self.dtype, x.cols, self.entries) {
                launch(kernels, stream, hubs, grid, HUB_THREADS, 0, &params)?;
            }
            launch(kernels, stream, name, (rows as u32, 1, 1), threads(x.cols), 0, &params)
        }
    }
}

/// Threads for a row of `d` columns: whole warps, no more than the row has work for.
pub(crate) fn threads(d: usize) -> u32 {
    d.div_ceil(COLUMNS).next_multiple_of(WARP).clamp(WARP, MAX_THREADS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_long_list_has_a_sum_and_whole_blocks_for_it() {
        assert_eq!([0, 8191, 8192, 8193, 131_072].map(hub_sums), [0, 0, 4, 5, 64]);
        assert_eq!([1, 256, 257, 1024, 2048, 2049].map(hub_width), [256, 256, 512, 1024, 2048, 4096]);
        let launch = hub_launch(DType::F16, 1000, 8193);
        assert_eq!(launch, Some(("weighted_grad_hubs_f16", (5 * 1024 / 64, 2, 1))));
        assert_eq!(hub_launch(DType::F16, 1000, 8191), None);
    }

    #[test]
    fn a_block_has_whole_warps_and_at_most_its_limit() {
        assert_eq!([1, 8, 256, 257, 1024, 2048, 16384].map(threads), [32, 32, 32, 64, 128, 256, 256]);
    }
}
