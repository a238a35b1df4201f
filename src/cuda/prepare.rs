//! The operands of the tile kernels and of the gather: measured, and copied where the caller's layout does not fit.

use cudarc::driver::CudaStream;

use super::descriptor::{RawBatch, check_extent};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::workspace::{Layout, Region};
use crate::dtype::DType;
use crate::error::Result;
use crate::options::Normalization;

/// Rows that a block works on at a time; `kRowsPerBlock` in `kernels/params/row_norms.h`.
pub(crate) const ROWS_PER_BLOCK: usize = 8;
/// Threads of a block; `kRowThreads` there.
pub(crate) const BLOCK: u32 = 256;
/// The most blocks: more than any device runs at a time, few enough that their partial results are quick to merge.
const MAX_BLOCKS: usize = 1024;
/// Alignment of the rows that the tile kernels read, in bytes: one asynchronous copy.
const ROW_ALIGN: usize = 16;

params! {
    /// Twin of the struct in `kernels/params/row_norms.h`.
    #[derive(PartialEq)]
    PrepareSide: 72 {
        src: u64,
        staged: u64,
        inv: u64,
        exponent: u64,
        ld: i64,
        batch_stride: i64,
        staged_ld: i64,
        rows: u32,
        count: u32,
        aligned: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/row_norms.h`.
    PrepareParams: 184 {
        x: PrepareSide,
        y: PrepareSide,
        pmin: u64,
        zeroed: u64,
        cleared: u64,
        zeroed_len: u32,
        d: u32,
        normalize: u32,
        pad_: u32,
    }
}

/// The name of a kernel for one element type.
pub(crate) const fn by_dtype(dtype: DType, [f32, f16, bf16]: [&'static str; 3]) -> &'static str {
    match dtype {
        DType::F16 => f16,
        DType::Bf16 => bf16,
        // The descriptors refuse f64.
        DType::F32 | DType::F64 => f32,
    }
}

/// Blocks for `rows` rows, by their number alone, so that no result depends on the device.
pub(crate) fn row_blocks(rows: usize) -> u32 {
    rows.div_ceil(ROWS_PER_BLOCK).clamp(1, MAX_BLOCKS) as u32
}

/// Whether every row of a matrix starts on a 16-byte boundary.
pub(crate) fn rows_aligned(m: &RawBatch) -> bool {
    let aligned = |elements: usize| (elements.wrapping_mul(m.dtype.size())).is_multiple_of(ROW_ALIGN);
    m.ptr.is_multiple_of(ROW_ALIGN as u64)
        && (m.rows <= 1 || aligned(m.row_stride))
        && (m.batch <= 1 || aligned(m.batch_stride))
}

/// What is wanted beside the operands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wants {
    /// `inv` of every row even where the operands are not normalised: it tells zero and NaN rows.
    pub row_facts: bool,
    /// `exponent` of every row: with `inv` it gives the norm, which the Jacobian divides by.
    pub norms: bool,
    /// Partial minima of the pairs' similarities.
    pub pmin: bool,
    /// Words to clear.
    pub zeroed: usize,
    /// Lay out the workspace for the least convenient pointers, to answer how large it must be.
    pub any_layout: bool,
}

/// A matrix as the tile kernels and the gather read it: base and rows aligned to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    /// Address of the first row.
    pub ptr: u64,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one matrix of a batch to the next.
    pub batch_stride: usize,
    /// Address of one f32 per row that similarities are multiplied by; 0: 1.
    pub inv: u64,
    /// Rows of `inv` from one matrix of a batch to the next.
    pub inv_batch_stride: usize,
}

#[derive(Clone, Copy, Debug)]
struct Side {
    source: RawBatch,
    /// The copy and its row stride.
    staged: Option<(Region, usize)>,
    inv: Option<Region>,
    exponent: Option<Region>,
    /// Whether the tile kernels apply `inv`.
    scaled: bool,
}

impl Side {
    fn plan(layout: &mut Layout, op: &'static str, m: &RawBatch, l2: bool, wants: &Wants) -> Result<Self> {
        // Matrices that are one and the same are prepared once.
        let source = RawBatch { batch: if m.batch_stride == 0 { m.batch.min(1) } else { m.batch }, ..*m };
        let count = source.batch.saturating_mul(source.rows);
        check_extent(op, "rows of the batch", count)?;
        // The tile kernels count the bytes of a row in 32 bits.
        check_extent(op, "bytes of a row", m.cols.saturating_mul(m.dtype.size()))?;
        // f16 is multiplied as it is: a power of two would push its small elements into the subnormal range.
        let as_is = !l2 || m.dtype == DType::F16;
        let scaled = l2 && m.dtype != DType::F32;
        let staged = if as_is && rows_aligned(m) && !wants.any_layout {
            None
        } else {
            let row_stride = m.cols.next_multiple_of(ROW_ALIGN / m.dtype.size());
            Some((layout.take::<u8>(&[count, row_stride, m.dtype.size()])?, row_stride))
        };
        let inv = if scaled || wants.row_facts || wants.norms { Some(layout.take::<f32>(&[count])?) } else { None };
        let exponent = if wants.norms { Some(layout.take::<i32>(&[count])?) } else { None };
        Ok(Self { source, staged, inv, exponent, scaled })
    }

    fn count(&self) -> usize {
        self.source.batch * self.source.rows
    }

    fn needed(&self) -> bool {
        self.count() > 0 && (self.staged.is_some() || self.inv.is_some())
    }

    /// Bytes that the kernel reads and writes.
    fn traffic(&self, d: usize) -> [f64; 2] {
        if !self.needed() {
            return [0.0; 2];
        }
        let (count, size) = (self.count() as f64, self.source.dtype.size() as f64);
        let staged = self.staged.map_or(0.0, |(_, row_stride)| row_stride as f64 * size);
        let words = [self.inv.is_some(), self.exponent.is_some()].map(|word| f64::from(u8::from(word)) * 4.0);
        [count * d as f64 * size, count * (staged + words[0] + words[1])]
    }

    fn params(&self, base: u64) -> PrepareSide {
        let at = |region: Option<Region>| region.map_or(0, |r| r.at(base));
        let s = &self.source;
        PrepareSide {
            src: s.ptr,
            staged: at(self.staged.map(|(region, _)| region)),
            inv: at(self.inv),
            exponent: at(self.exponent),
            ld: s.row_stride as i64,
            batch_stride: s.batch_stride as i64,
            staged_ld: self.staged.map_or(0, |(_, row_stride)| row_stride as i64),
            rows: s.rows as u32,
            count: self.count() as u32,
            aligned: u32::from(rows_aligned(s)),
            pad_: 0,
        }
    }

    fn operand(&self, base: u64) -> Operand {
        let s = &self.source;
        let (ptr, row_stride, batch_stride) = match self.staged {
            Some((region, row_stride)) => (region.at(base), row_stride, s.rows * row_stride),
            None => (s.ptr, s.row_stride, s.batch_stride),
        };
        let inv = self.inv.filter(|_| self.scaled).map_or(0, |r| r.at(base));
        let one = s.batch <= 1;
        let batch_stride = if one { 0 } else { batch_stride };
        Operand { ptr, row_stride, batch_stride, inv, inv_batch_stride: if one { 0 } else { s.rows } }
    }
}

/// The plan of one `prepare` launch: where it reads, and where in the workspace it writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepare {
    x: Side,
    y: Side,
    dtype: DType,
    d: usize,
    l2: bool,
    pmin: Option<Region>,
    zeroed: Option<(Region, usize)>,
}

impl Prepare {
    /// Takes what it needs from `layout`. `x` and `y` have the same type and number of columns.
    pub(crate) fn plan(
        layout: &mut Layout,
        op: &'static str,
        [x, y]: [&RawBatch; 2],
        normalization: Normalization,
        wants: &Wants,
    ) -> Result<Self> {
        let l2 = normalization == Normalization::L2;
        let (dtype, d) = (x.dtype, x.cols);
        let x = Side::plan(layout, op, x, l2, wants)?;
        let y = Side::plan(layout, op, y, l2, wants)?;
        let blocks = row_blocks(x.count().max(y.count())) as usize;
        let pmin = if wants.pmin { Some(layout.take::<f32>(&[blocks])?) } else { None };
        let zeroed = if wants.zeroed > 0 { Some((layout.take::<u32>(&[wants.zeroed])?, wants.zeroed)) } else { None };
        Ok(Self { x, y, dtype, d, l2, pmin, zeroed })
    }

    /// Whether there is anything to launch.
    pub(crate) fn needed(&self) -> bool {
        self.x.needed() || self.y.needed() || self.pmin.is_some() || self.zeroed.is_some()
    }

    /// Blocks of the kernel, and the bytes that it reads and writes; `None` if there is nothing to launch.
    pub(crate) fn traffic(&self) -> Option<(u32, f64, f64)> {
        let [x, y] = [self.x.traffic(self.d), self.y.traffic(self.d)];
        let words = self.pmin(0).1 as usize + self.zeroed.map_or(0, |(_, len)| len);
        self.needed().then(|| (self.blocks(), x[0] + y[0], x[1] + y[1] + (words * size_of::<u32>()) as f64))
    }

    /// Whether the tile kernels multiply similarities by a word of every row.
    pub(crate) fn scaled(&self) -> bool {
        self.x.scaled
    }

    fn blocks(&self) -> u32 {
        row_blocks(self.x.count().max(self.y.count()))
    }

    pub(crate) fn x(&self, base: u64) -> Operand {
        self.x.operand(base)
    }

    pub(crate) fn y(&self, base: u64) -> Operand {
        self.y.operand(base)
    }

    /// Addresses of the reciprocals of the scaled norms, one f32 per row of `X` and of `Y`; 0 if they were not wanted.
    pub(crate) fn row_inv(&self, base: u64) -> [u64; 2] {
        [self.x.inv, self.y.inv].map(|r| r.map_or(0, |r| r.at(base)))
    }

    /// Addresses of the exponents of the norms' scale, one i32 per row; 0 if they were not wanted.
    pub(crate) fn row_exponent(&self, base: u64) -> [u64; 2] {
        [self.x.exponent, self.y.exponent].map(|r| r.map_or(0, |r| r.at(base)))
    }

    /// Address and number of the partial minima of the pairs' similarities; 0 and 0 if they were not wanted.
    pub(crate) fn pmin(&self, base: u64) -> (u64, u32) {
        self.pmin.map_or((0, 0), |r| (r.at(base), self.blocks()))
    }

    /// Address of the words that are cleared; 0 if there are none.
    pub(crate) fn zeroed(&self, base: u64) -> u64 {
        self.zeroed.map_or(0, |(r, _)| r.at(base))
    }

    /// Enqueues the kernel, if it is needed.
    ///
    /// # Safety
    /// The matrices of the plan are valid on the stream's device, and `base` is a workspace of the layout's size.
    pub(crate) unsafe fn launch(&self, kernels: &Kernels, stream: &CudaStream, base: u64) -> Result<()> {
        if !self.needed() {
            return Ok(());
        }
        // SAFETY: by the caller's promise.
        unsafe { self.launch_and_clear(kernels, stream, base, 0) }
    }

    /// As [`launch`](Self::launch), always, and clears the u32 at the device address `cleared`, unless that is 0.
    ///
    /// # Safety
    /// As [`launch`](Self::launch), and `cleared` is valid.
    pub(crate) unsafe fn launch_and_clear(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        base: u64,
        cleared: u64,
    ) -> Result<()> {
        let params = PrepareParams {
            x: self.x.params(base),
            y: self.y.params(base),
            pmin: self.pmin(base).0,
            zeroed: self.zeroed(base),
            cleared,
            zeroed_len: self.zeroed.map_or(0, |(_, len)| len as u32),
            d: self.d as u32,
            normalize: u32::from(self.l2),
            pad_: 0,
        };
        let name = by_dtype(self.dtype, ["prepare_f32", "prepare_f16", "prepare_bf16"]);
        // SAFETY: the kernel of this type reads the sources and writes the regions of the plan, by the caller's promise.
        unsafe { launch(kernels, stream, name, (self.blocks(), 1, 1), BLOCK, 0, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(ptr: u64, rows: usize, cols: usize, dtype: DType) -> RawBatch {
        RawBatch { ptr, batch: 1, rows, cols, row_stride: cols, batch_stride: 0, dtype }
    }

    fn plan(x: &RawBatch, normalization: Normalization, wants: &Wants) -> (Prepare, usize) {
        let mut layout = Layout::new("test");
        let plan = Prepare::plan(&mut layout, "test", [x, x], normalization, wants).unwrap();
        (plan, layout.total())
    }

    #[test]
    fn aligned_raw_rows_are_read_in_place_and_others_are_copied() {
        let aligned = matrix(256, 3, 16, DType::Bf16);
        let (in_place, bytes) = plan(&aligned, Normalization::None, &Wants::default());
        assert_eq!((in_place.needed(), bytes, in_place.x(4096).ptr), (false, 0, 256));
        for odd in [matrix(258, 3, 16, DType::Bf16), matrix(256, 3, 17, DType::Bf16)] {
            let (copied, bytes) = plan(&odd, Normalization::None, &Wants::default());
            let operand = copied.x(4096);
            assert!(copied.needed() && operand.ptr == 4096 && bytes > 0);
            assert!(operand.row_stride >= odd.cols && operand.row_stride % 8 == 0 && operand.inv == 0);
        }
    }

    #[test]
    fn normalisation_scales_16_bit_rows_by_inv_and_copies_all_but_f16() {
        for (dtype, copied, scaled) in [(DType::F32, true, false), (DType::Bf16, true, true), (DType::F16, false, true)]
        {
            let (prepared, _) = plan(&matrix(256, 3, 16, dtype), Normalization::L2, &Wants::default());
            let operand = prepared.x(1 << 20);
            assert_eq!((operand.ptr != 256, operand.inv != 0), (copied, scaled), "{dtype}");
        }
    }

    #[test]
    fn the_size_for_any_layout_covers_every_layout() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for normalization in [Normalization::None, Normalization::L2] {
                let wants = Wants { row_facts: true, norms: true, pmin: true, zeroed: 4, any_layout: false };
                let any = plan(&matrix(0, 100, 33, dtype), normalization, &Wants { any_layout: true, ..wants }).1;
                for (ptr, row_stride) in [(256, 33), (256, 40), (260, 40)] {
                    let x = RawBatch { row_stride, ..matrix(ptr, 100, 33, dtype) };
                    assert!(plan(&x, normalization, &wants).1 <= any);
                }
            }
        }
    }

    #[test]
    fn rows_of_more_than_2_gib_are_refused() {
        let row = |cols| {
            let x = matrix(256, 1, cols, DType::F32);
            let mut layout = Layout::new("test");
            Prepare::plan(&mut layout, "test", [&x, &x], Normalization::None, &Wants::default()).map(|_| ())
        };
        assert_eq!(row((1 << 29) - 1), Ok(()));
        assert!(matches!(row(1 << 29), Err(crate::Error::TooLarge { arg: "bytes of a row", .. })));
    }

    #[test]
    fn a_repeated_matrix_is_prepared_once() {
        let x = RawBatch { batch: 1000, ..matrix(256, 3, 16, DType::F32) };
        let (prepared, bytes) = plan(&x, Normalization::L2, &Wants::default());
        assert_eq!(prepared.x(0).batch_stride, 0);
        assert!(bytes <= 2 * 256 * 2);
    }
}
