//! Rows of f32 as bf16 operands of three parts, for products of f32 grade on tensor cores.
//!
//! With `lo` and `hi` the parts of an element, and `hi*` as `kernels/split.cu` has it, `X'` is `[lo | hi* | hi]` and `Y'`
//! `[hi* | lo | hi]`.

use cudarc::driver::CudaStream;

use super::descriptor::{RawBatch, check_extent};
use super::explain::{Reason, reason};
use super::kernels::Kernels;
use super::launch::launch;
use super::prepare::{BLOCK, Operand, PrepareParams, PrepareSide, row_blocks, rows_aligned};
use super::workspace::{Layout, Region};
use crate::dtype::DType;
use crate::error::Result;
use crate::options::{Normalization, Precision};

/// The name of the kernel.
pub(crate) const SPLIT: &str = "split_f32";

/// Parts of a row of an operand.
const PARTS: usize = 3;
/// What the elements of a part are a multiple of: 16 bytes.
const PART_ALIGN: usize = 8;

/// Whether operands of this type are split.
pub(crate) fn splits(precision: Precision, dtype: DType) -> bool {
    precision == Precision::SplitBf16 && dtype == DType::F32
}

/// Whether operands are split on the device of a plan, and why, where that was asked for.
pub(super) fn choice(precision: Precision, dtype: DType, split: bool) -> Option<Reason> {
    let (value, why) = match (precision, dtype) {
        (Precision::Full, _) => return None,
        (_, DType::F32) if split => {
            ("split bf16", "three products on tensor cores take less time than one of multiply-adds")
        }
        (_, DType::F32) => ("full", "products of weights in parts are made by wgmma alone, which is not used here"),
        // There is no plan of f64.
        _ => ("full", "16-bit rows go to tensor cores as they are"),
    };
    Some(reason("precision", value, why))
}

/// Features of the operands that rows of `d` are split into.
pub(crate) const fn split_depth(d: usize) -> usize {
    PARTS.saturating_mul(d.saturating_add(PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN)
}

/// What rows are multiplied by before they are split; `kSplit*` in `kernels/split.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scaling {
    /// A power of two where bf16 could not hold the parts.
    Needed = 0,
    /// A power of two that makes the largest element one of 1 to 2, and the norm goes to the factor of the row.
    Norm = 1,
    /// Nothing; there are no factors of rows.
    No = 2,
}

#[derive(Clone, Copy, Debug)]
struct Side {
    source: RawBatch,
    parts: Region,
    inv: Option<Region>,
}

impl Side {
    fn plan(layout: &mut Layout, op: &'static str, m: &RawBatch, scaling: Scaling) -> Result<Self> {
        // Matrices that are one and the same are split once.
        let source = RawBatch { batch: if m.batch_stride == 0 { m.batch.min(1) } else { m.batch }, ..*m };
        let count = source.batch.saturating_mul(source.rows);
        check_extent(op, "rows of the batch", count)?;
        // The tile kernels count the bytes of a row in 32 bits.
        let depth = split_depth(m.cols);
        check_extent(op, "bytes of a row", depth.saturating_mul(DType::Bf16.size()))?;
        let parts = layout.take::<u8>(&[count, depth, DType::Bf16.size()])?;
        let inv = if scaling == Scaling::No { None } else { Some(layout.take::<f32>(&[count])?) };
        Ok(Self { source, parts, inv })
    }

    fn count(&self) -> usize {
        self.source.batch * self.source.rows
    }

    fn depth(&self) -> usize {
        split_depth(self.source.cols)
    }

    fn params(&self, base: u64, source: &RawBatch) -> PrepareSide {
        let s = source;
        PrepareSide {
            src: s.ptr,
            staged: self.parts.at(base),
            inv: self.inv.map_or(0, |r| r.at(base)),
            exponent: 0,
            ld: s.row_stride as i64,
            batch_stride: s.batch_stride as i64,
            staged_ld: self.depth() as i64,
            rows: s.rows as u32,
            count: self.count() as u32,
            aligned: u32::from(rows_aligned(s)),
            pad_: 0,
        }
    }

    fn operand(&self, base: u64) -> Operand {
        let s = &self.source;
        let one = s.batch <= 1;
        Operand {
            ptr: self.parts.at(base),
            row_stride: self.depth(),
            batch_stride: if one { 0 } else { s.rows * self.depth() },
            inv: self.inv.map_or(0, |r| r.at(base)),
            inv_batch_stride: if one { 0 } else { s.rows },
        }
    }

    /// Bytes that the kernel reads and writes.
    fn traffic(&self) -> [f64; 2] {
        let factor = if self.inv.is_some() { size_of::<f32>() } else { 0 };
        let written = self.depth() * DType::Bf16.size() + factor;
        [self.source.cols * DType::F32.size(), written].map(|bytes| self.count() as f64 * bytes as f64)
    }
}

/// The plan of one `split` launch: where it reads, and where in the workspace it writes. What it takes does not depend on the
/// layout of the matrices, but for batches that repeat one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    x: Side,
    y: Side,
    scaling: Scaling,
}

impl Split {
    /// Takes what it needs from `layout`. `x` and `y` are of f32 and have the same number of columns.
    pub(crate) fn plan(
        layout: &mut Layout,
        op: &'static str,
        [x, y]: [&RawBatch; 2],
        normalization: Normalization,
    ) -> Result<Self> {
        let scaling = if normalization == Normalization::L2 { Scaling::Norm } else { Scaling::Needed };
        Self::of_scaling(layout, op, [x, y], scaling)
    }

    /// For rows that [`Self::launch_from`] gets, of the shapes of `x` and `y`: as they are, without factors.
    pub(crate) fn plan_as_is(layout: &mut Layout, op: &'static str, matrices: [&RawBatch; 2]) -> Result<Self> {
        Self::of_scaling(layout, op, matrices, Scaling::No)
    }

    fn of_scaling(layout: &mut Layout, op: &'static str, [x, y]: [&RawBatch; 2], scaling: Scaling) -> Result<Self> {
        let [x, y] = [Side::plan(layout, op, x, scaling)?, Side::plan(layout, op, y, scaling)?];
        Ok(Self { x, y, scaling })
    }

    fn blocks(&self) -> u32 {
        row_blocks(self.x.count().max(self.y.count()))
    }

    /// Blocks of the kernel, and the bytes that it reads and writes.
    pub(crate) fn traffic(&self) -> (u32, f64, f64) {
        let [x, y] = [self.x.traffic(), self.y.traffic()];
        (self.blocks(), x[0] + y[0], x[1] + y[1])
    }

    /// `X'`, of bf16 and [`split_depth`] features, with the factors of its rows.
    pub(crate) fn x(&self, base: u64) -> Operand {
        self.x.operand(base)
    }

    /// `Y'`.
    pub(crate) fn y(&self, base: u64) -> Operand {
        self.y.operand(base)
    }

    /// Enqueues the kernel. At least one of the matrices has a row.
    ///
    /// # Safety
    /// The matrices of the plan are valid on the stream's device, and `base` is a workspace of the layout's size.
    pub(crate) unsafe fn launch(&self, kernels: &Kernels, stream: &CudaStream, base: u64) -> Result<()> {
        // SAFETY: by the caller's promise.
        unsafe { self.launch_of(kernels, stream, base, [&self.x.source, &self.y.source]) }
    }

    /// As [`Self::launch`], of rows at other places than the plan's matrices.
    ///
    /// # Safety
    /// As [`Self::launch`], of these rows.
    pub(crate) unsafe fn launch_from(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        base: u64,
        [x, y]: [Operand; 2],
    ) -> Result<()> {
        let of = |side: &Side, rows: Operand| RawBatch { ptr: rows.ptr, row_stride: rows.row_stride, ..side.source };
        // SAFETY: by the caller's promise.
        unsafe { self.launch_of(kernels, stream, base, [&of(&self.x, x), &of(&self.y, y)]) }
    }

    unsafe fn launch_of(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        base: u64,
        [x, y]: [&RawBatch; 2],
    ) -> Result<()> {
        let params = PrepareParams {
            x: self.x.params(base, x),
            y: self.y.params(base, y),
            pmin: 0,
            zeroed: 0,
            cleared: 0,
            zeroed_len: 0,
            d: self.x.source.cols as u32,
            normalize: self.scaling as u32,
            pad_: 0,
        };
        // SAFETY: the kernel reads the sources and writes the regions of the plan, by the caller's promise.
        unsafe { launch(kernels, stream, SPLIT, (self.blocks(), 1, 1), BLOCK, 0, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(batch: usize, rows: usize, cols: usize, batch_stride: usize) -> RawBatch {
        RawBatch { ptr: 256, batch, rows, cols, row_stride: cols, batch_stride, dtype: DType::F32 }
    }

    fn plan(x: &RawBatch, y: &RawBatch) -> (Split, usize) {
        let mut layout = Layout::new("test");
        let plan = Split::plan(&mut layout, "test", [x, y], Normalization::L2).unwrap();
        (plan, layout.total())
    }

    #[test]
    fn only_f32_is_split_and_only_on_request() {
        assert!(splits(Precision::SplitBf16, DType::F32));
        assert!(!splits(Precision::Full, DType::F32));
        assert!(!splits(Precision::SplitBf16, DType::F16) && !splits(Precision::SplitBf16, DType::Bf16));
    }

    #[test]
    fn every_part_starts_on_16_bytes() {
        assert_eq!([1, 7, 8, 9, 1024].map(split_depth), [24, 24, 24, 48, 3072]);
        let (split, bytes) = plan(&matrix(2, 5, 9, 45), &matrix(2, 3, 9, 27));
        let (x, y) = (split.x(4096), split.y(4096));
        assert_eq!((x.row_stride, x.batch_stride, y.batch_stride), (48, 5 * 48, 3 * 48));
        assert_eq!((x.inv_batch_stride, y.inv_batch_stride), (5, 3));
        // Ten rows of 96 bytes and six, each with its factors, in multiples of 256 bytes.
        assert_eq!(bytes, 1024 + 256 + 768 + 256);
    }

    #[test]
    fn a_repeated_matrix_is_split_once() {
        let (split, bytes) = plan(&matrix(1000, 3, 16, 0), &matrix(1, 3, 16, 0));
        assert_eq!((split.x(0).batch_stride, split.x(0).inv_batch_stride), (0, 0));
        assert_eq!(bytes, 4 * 512 - 2 * 256);
    }

    #[test]
    fn rows_of_more_than_2_gib_are_refused() {
        let row = |cols| {
            let x = matrix(1, 1, cols, 0);
            Split::plan(&mut Layout::new("test"), "test", [&x, &x], Normalization::None).map(|_| ())
        };
        let most = i32::MAX as usize / 6 / 8 * 8;
        assert_eq!(row(most), Ok(()));
        assert!(matches!(row(most + 1), Err(crate::Error::TooLarge { arg: "bytes of a row", .. })));
        assert!(matches!(row(usize::MAX), Err(crate::Error::TooLarge { arg: "bytes of a row", .. })));
    }
}
