//! Plain descriptions of device memory, for callers that have pointers and no Rust types.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::matrix::{batch_span, check_row_stride, span};

/// The largest extent of a matrix: indices are `i32` on the device.
pub(crate) const MAX_EXTENT: usize = i32::MAX as usize;

/// A row-major matrix in device memory: rows `row_stride` elements apart, elements of a row adjacent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMat {
    /// Device address of the first element, aligned to an element.
    pub ptr: u64,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next, at least `cols`.
    pub row_stride: usize,
    /// Element type.
    pub dtype: DType,
}

/// A batch of row-major matrices in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBatch {
    /// Device address of the first element, aligned to an element.
    pub ptr: u64,
    /// Number of matrices.
    pub batch: usize,
    /// Rows of each matrix.
    pub rows: usize,
    /// Columns of each matrix.
    pub cols: usize,
    /// Elements from one row to the next, at least `cols`.
    pub row_stride: usize,
    /// Elements from one matrix to the next. Inputs may overlap (0: one matrix for the whole batch), outputs not.
    pub batch_stride: usize,
    /// Element type.
    pub dtype: DType,
}

/// A buffer in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBuf {
    /// Device address of the first element, aligned to an element.
    pub ptr: u64,
    /// Number of elements.
    pub len: usize,
}

impl RawBuf {
    /// No buffer: for outputs that are not wanted.
    pub const NULL: Self = Self { ptr: 0, len: 0 };
}

impl From<RawMat> for RawBatch {
    fn from(m: RawMat) -> Self {
        let RawMat { ptr, rows, cols, row_stride, dtype } = m;
        Self { ptr, batch: 1, rows, cols, row_stride, batch_stride: 0, dtype }
    }
}

/// The addresses that an operand occupies, for overlap tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    start: u64,
    end: u64,
    /// Bytes from one row to the next and bytes of a row, if there are gaps between rows.
    rows: Option<(u64, u64)>,
}

impl Extent {
    /// Whether two operands share a byte. Interleaved matrices of one row stride (columns of a wider one) do not.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        if self.start >= other.end || other.start >= self.end {
            return false;
        }
        let (Some((stride, width)), Some((other_stride, other_width))) = (self.rows, other.rows) else { return true };
        let shift = if other.start >= self.start {
            (other.start - self.start) % stride
        } else {
            (stride - (self.start - other.start) % stride) % stride
        };
        stride != other_stride || shift < width || shift + other_width > stride
    }
}

pub(crate) fn check_extent(op: &'static str, arg: &'static str, extent: usize) -> Result<()> {
    if extent <= MAX_EXTENT {
        return Ok(());
    }
    Err(Error::TooLarge { op, arg, limit: MAX_EXTENT as u64, got: extent as u64 })
}

fn check_pointer(op: &'static str, arg: &'static str, ptr: u64, align: usize) -> Result<()> {
    if ptr != 0 && ptr.is_multiple_of(align as u64) {
        return Ok(());
    }
    Err(Error::BadPointer { op, arg, expected: format!("a device address aligned to {align} bytes"), got: ptr })
}

/// The address one past `bytes` at `ptr`.
fn end(op: &'static str, arg: &'static str, ptr: u64, bytes: Option<u64>) -> Result<u64> {
    bytes.filter(|&b| b <= isize::MAX as u64).and_then(|b| ptr.checked_add(b)).ok_or(Error::TooLarge {
        op,
        arg,
        limit: isize::MAX as u64,
        got: bytes.unwrap_or(u64::MAX),
    })
}

impl RawMat {
    /// A matrix whose rows follow each other without a gap.
    pub const fn new(ptr: u64, rows: usize, cols: usize, dtype: DType) -> Self {
        Self { ptr, rows, cols, row_stride: cols, dtype }
    }

    /// The same matrix with `row_stride` elements from one row to the next.
    #[must_use]
    pub const fn with_row_stride(mut self, row_stride: usize) -> Self {
        self.row_stride = row_stride;
        self
    }

    /// Checks everything that the host can see. An empty matrix may have a null pointer.
    pub(crate) fn check(&self, op: &'static str, arg: &'static str) -> Result<Extent> {
        RawBatch::from(*self).check(op, arg)
    }
}

impl RawBatch {
    /// As [`RawMat::check`]. The matrices may overlap.
    pub(crate) fn check(&self, op: &'static str, arg: &'static str) -> Result<Extent> {
        if self.dtype == DType::F64 {
            return Err(Error::UnsupportedDType { op, arg, expected: "f32, f16 or bf16", got: self.dtype });
        }
        for extent in [self.batch, self.rows, self.cols] {
            check_extent(op, arg, extent)?;
        }
        check_row_stride(op, arg, self.rows, self.cols, self.row_stride)?;
        if self.batch == 0 || self.rows == 0 || self.cols == 0 {
            return Ok(Extent { start: 0, end: 0, rows: None });
        }
        let size = self.dtype.size();
        check_pointer(op, arg, self.ptr, size)?;
        let elements = batch_span(self.batch, self.rows, self.cols, self.row_stride, self.batch_stride);
        let bytes = elements.and_then(|e| (e as u64).checked_mul(size as u64));
        let end = end(op, arg, self.ptr, bytes)?;
        let width = (self.cols * size) as u64;
        let gaps = self.batch == 1 && self.rows > 1 && self.row_stride > self.cols;
        Ok(Extent { start: self.ptr, end, rows: gaps.then(|| ((self.row_stride * size) as u64, width)) })
    }

    /// As [`RawBatch::check`], and the matrices do not overlap.
    pub(crate) fn check_output(&self, op: &'static str, arg: &'static str) -> Result<Extent> {
        let extent = self.check(op, arg)?;
        let one = span(self.rows, self.cols, self.row_stride).unwrap_or(usize::MAX);
        if self.batch > 1 && self.batch_stride < one {
            return Err(Error::UnsupportedLayout {
                op,
                arg,
                expected: format!("a batch stride of at least {one} elements"),
                got: format!("batch stride {}", self.batch_stride),
            });
        }
        Ok(extent)
    }
}

impl RawBuf {
    /// A buffer of `len` elements.
    pub const fn new(ptr: u64, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Checks that the buffer has `needed` elements of type `T`, and is aligned to `align` bytes.
    fn check_aligned<T>(&self, op: &'static str, arg: &'static str, needed: usize, align: usize) -> Result<Extent> {
        if self.len < needed {
            return Err(Error::TooShort { op, arg, expected: needed, got: self.len });
        }
        if needed == 0 {
            return Ok(Extent { start: 0, end: 0, rows: None });
        }
        check_pointer(op, arg, self.ptr, align)?;
        let end = end(op, arg, self.ptr, (needed as u64).checked_mul(size_of::<T>() as u64))?;
        Ok(Extent { start: self.ptr, end, rows: None })
    }

    /// Checks that the buffer has `needed` elements of type `T`.
    pub(crate) fn check<T>(&self, op: &'static str, arg: &'static str, needed: usize) -> Result<Extent> {
        self.check_aligned::<T>(op, arg, needed, align_of::<T>())
    }

    /// Checks that the buffer is a workspace of `needed` bytes.
    pub(crate) fn check_workspace(&self, op: &'static str, needed: usize) -> Result<Extent> {
        self.check_aligned::<u8>(op, "workspace", needed, super::workspace::WORKSPACE_ALIGN)
    }
}

/// A named operand, for overlap tests.
pub(crate) type Named = (&'static str, Extent);

/// Refuses outputs that share memory with each other or with an input. Inputs may share memory among themselves.
pub(crate) fn check_disjoint(op: &'static str, outputs: &[Named], inputs: &[Named]) -> Result<()> {
    for (i, (arg, extent)) in outputs.iter().enumerate() {
        let mut others = inputs.iter().chain(&outputs[..i]);
        if let Some((other, _)) = others.find(|(_, o)| extent.overlaps(o)) {
            return Err(Error::Overlap { op, arg, other });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAT: RawMat = RawMat::new(4096, 4, 8, DType::F32);

    fn extent(m: RawMat) -> Extent {
        m.check("test", "m").unwrap()
    }

    #[test]
    fn null_and_misaligned_pointers_are_refused_unless_empty() {
        assert!(matches!(RawMat { ptr: 0, ..MAT }.check("t", "x"), Err(Error::BadPointer { got: 0, .. })));
        assert!(matches!(RawMat { ptr: 4098, ..MAT }.check("t", "x"), Err(Error::BadPointer { got: 4098, .. })));
        assert!(RawMat { ptr: 4098, dtype: DType::F16, ..MAT }.check("t", "x").is_ok());
        assert!(RawMat { ptr: 0, rows: 0, ..MAT }.check("t", "x").is_ok());
    }

    #[test]
    fn strides_types_and_sizes_are_checked() {
        assert!(matches!(MAT.with_row_stride(7).check("t", "x"), Err(Error::UnsupportedLayout { .. })));
        assert!(matches!(RawMat { dtype: DType::F64, ..MAT }.check("t", "x"), Err(Error::UnsupportedDType { .. })));
        let tall = RawMat { rows: MAX_EXTENT + 1, ..MAT };
        assert!(matches!(tall.check("t", "x"), Err(Error::TooLarge { .. })));
        let wide = MAT.with_row_stride(usize::MAX / 4);
        assert!(matches!(wide.check("t", "x"), Err(Error::TooLarge { .. })));
        assert!(matches!(RawBuf::new(256, 3).check::<f32>("t", "b", 4), Err(Error::TooShort { expected: 4, .. })));
        assert!(matches!(RawBuf::new(128, 4).check_workspace("t", 4), Err(Error::BadPointer { .. })));
    }

    #[test]
    fn overlap_is_found_and_interleaved_columns_are_not_overlap() {
        let a = extent(MAT);
        assert!(a.overlaps(&a));
        assert!(a.overlaps(&extent(RawMat { ptr: 4096 + 4 * 8 * 4 - 4, ..MAT })));
        assert!(!a.overlaps(&extent(RawMat { ptr: 4096 + 4 * 8 * 4, ..MAT })));
        let (left, right) = (MAT.with_row_stride(16), RawMat { ptr: 4096 + 32, ..MAT }.with_row_stride(16));
        assert!(!extent(left).overlaps(&extent(right)) && !extent(right).overlaps(&extent(left)));
        let shifted = RawMat { ptr: 4096 + 36, ..right };
        assert!(extent(left).overlaps(&extent(shifted)) && extent(shifted).overlaps(&extent(left)));
        let other_stride = RawMat { ptr: 4096 + 32, ..MAT }.with_row_stride(24);
        assert!(extent(left).overlaps(&extent(other_stride)));
    }

    #[test]
    fn the_first_overlapping_output_is_named() {
        let (a, b) = (extent(MAT), extent(RawMat { ptr: 8192, ..MAT }));
        assert_eq!(check_disjoint("t", &[("dx", b)], &[("x", a)]), Ok(()));
        let shared = check_disjoint("t", &[("dx", b), ("dy", b)], &[("x", a)]);
        assert_eq!(shared, Err(Error::Overlap { op: "t", arg: "dy", other: "dx" }));
    }
}
