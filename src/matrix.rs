//! Borrowed row-major matrices in host memory, checked once so that no operation has to check again.

use crate::error::{Error, Result};

/// Elements from the first to the last one that a matrix touches; `None` if that does not fit `usize`.
pub(crate) fn span(rows: usize, cols: usize, row_stride: usize) -> Option<usize> {
    match rows.checked_sub(1) {
        None => Some(0),
        Some(last) => last.checked_mul(row_stride)?.checked_add(cols),
    }
}

/// As [`span`], for a batch of matrices.
pub(crate) fn batch_span(
    batch: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    batch_stride: usize,
) -> Option<usize> {
    let one = span(rows, cols, row_stride)?;
    match batch.checked_sub(1) {
        None => Some(0),
        Some(_) if one == 0 => Some(0),
        Some(last) => last.checked_mul(batch_stride)?.checked_add(one),
    }
}

pub(crate) fn check_row_stride(
    op: &'static str,
    arg: &'static str,
    rows: usize,
    cols: usize,
    row_stride: usize,
) -> Result<()> {
    if row_stride < cols && rows > 1 {
        return Err(Error::UnsupportedLayout {
            op,
            arg,
            expected: format!("a row stride of at least {cols} elements"),
            got: format!("row stride {row_stride}"),
        });
    }
    Ok(())
}

fn check(op: &'static str, rows: usize, cols: usize, row_stride: usize, len: usize) -> Result<()> {
    check_row_stride(op, "row_stride", rows, cols, row_stride)?;
    let expected = span(rows, cols, row_stride).unwrap_or(usize::MAX);
    if len < expected {
        return Err(Error::TooShort { op, arg: "data", expected, got: len });
    }
    Ok(())
}

/// A borrowed row-major matrix: `rows × cols` elements, rows `row_stride >= cols` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatRef<'a, T> {
    /// A matrix whose rows follow each other without a gap.
    ///
    /// # Errors
    /// [`Error::TooShort`] if `data` has fewer than `rows * cols` elements.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix with `row_stride` elements from one row to the next.
    ///
    /// # Errors
    /// [`Error::UnsupportedLayout`] if `row_stride < cols`, [`Error::TooShort`] if `data` ends before the last element.
    pub fn with_stride(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check("MatRef::with_stride", rows, cols, row_stride, data.len())?;
        Ok(Self { data, rows, cols, row_stride })
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }
    /// Elements from one row to the next.
    pub const fn row_stride(&self) -> usize {
        self.row_stride
    }
    /// Row `i`, `cols` elements.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row {i} of a matrix with {} rows", self.rows);
        &self.data[i * self.row_stride..][..self.cols]
    }
    /// The elements that the matrix was made from.
    pub const fn data(&self) -> &'a [T] {
        self.data
    }
}

/// A mutably borrowed row-major matrix; see [`MatRef`].
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// As [`MatRef::new`].
    ///
    /// # Errors
    /// As [`MatRef::new`].
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_stride(data, rows, cols, cols)
    }

    /// As [`MatRef::with_stride`].
    ///
    /// # Errors
    /// As [`MatRef::with_stride`].
    pub fn with_stride(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check("MatMut::with_stride", rows, cols, row_stride, data.len())?;
        Ok(Self { data, rows, cols, row_stride })
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }
    /// Elements from one row to the next.
    pub const fn row_stride(&self) -> usize {
        self.row_stride
    }
    /// Row `i`, `cols` elements.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of a matrix with {} rows", self.rows);
        &mut self.data[i * self.row_stride..][..self.cols]
    }
    /// The same matrix, read only.
    pub fn as_ref(&self) -> MatRef<'_, T> {
        MatRef { data: self.data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }
    /// A shorter borrow of the same matrix.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { data: self.data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }
    /// The elements that the matrix was made from.
    pub fn data_mut(&mut self) -> &mut [T] {
        self.data
    }
    /// The elements that the matrix was made from, for as long as they were borrowed.
    pub fn into_data(self) -> &'a mut [T] {
        self.data
    }
}

/// A borrowed batch of row-major matrices: `batch × rows × cols`, matrices `batch_stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct BatchRef<'a, T> {
    data: &'a [T],
    batch: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    batch_stride: usize,
}

/// A mutably borrowed batch of row-major matrices; see [`BatchRef`]. The matrices do not overlap.
#[derive(Debug)]
pub struct BatchMut<'a, T> {
    data: &'a mut [T],
    batch: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    batch_stride: usize,
}

macro_rules! batch_common {
    ($name:ident, $slice:ty, $op:literal) => {
        impl<'a, T> $name<'a, T> {
            /// A batch without gaps between rows or matrices.
            ///
            /// # Errors
            /// [`Error::TooShort`] if the slice is shorter than `batch * rows * cols`.
            pub fn new(data: $slice, batch: usize, rows: usize, cols: usize) -> Result<Self> {
                let one = rows.saturating_mul(cols);
                Self::with_strides(data, batch, rows, cols, cols, one)
            }

            /// A batch with explicit strides, in elements.
            ///
            /// # Errors
            /// [`Error::UnsupportedLayout`] if rows or matrices overlap, [`Error::TooShort`] if the slice ends early.
            pub fn with_strides(
                data: $slice,
                batch: usize,
                rows: usize,
                cols: usize,
                row_stride: usize,
                batch_stride: usize,
            ) -> Result<Self> {
                check_row_stride($op, "row_stride", rows, cols, row_stride)?;
                Self::check_batch_stride(batch, rows, cols, row_stride, batch_stride)?;
                let expected = batch_span(batch, rows, cols, row_stride, batch_stride).unwrap_or(usize::MAX);
                if data.len() < expected {
                    return Err(Error::TooShort { op: $op, arg: "data", expected, got: data.len() });
                }
                Ok(Self { data, batch, rows, cols, row_stride, batch_stride })
            }

            /// Number of matrices.
            pub const fn batch(&self) -> usize {
                self.batch
            }
            /// Rows of each matrix.
            pub const fn rows(&self) -> usize {
                self.rows
            }
            /// Columns of each matrix.
            pub const fn cols(&self) -> usize {
                self.cols
            }
            /// Elements from one row to the next.
            pub const fn row_stride(&self) -> usize {
                self.row_stride
            }
            /// Elements from one matrix to the next.
            pub const fn batch_stride(&self) -> usize {
                self.batch_stride
            }
        }
    };
}
batch_common!(BatchRef, &'a [T], "BatchRef::with_strides");
batch_common!(BatchMut, &'a mut [T], "BatchMut::with_strides");

impl<'a, T> BatchRef<'a, T> {
    /// Matrices that are only read may overlap, or be one and the same (stride 0).
    #[allow(clippy::unnecessary_wraps)]
    const fn check_batch_stride(_: usize, _: usize, _: usize, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    /// Matrix `b`.
    ///
    /// # Panics
    /// If `b >= batch`.
    pub fn matrix(&self, b: usize) -> MatRef<'a, T> {
        assert!(b < self.batch, "matrix {b} of a batch of {}", self.batch);
        let data = if self.rows == 0 { &[] } else { &self.data[b * self.batch_stride..] };
        MatRef { data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }
    /// The elements that the batch was made from.
    pub const fn data(&self) -> &'a [T] {
        self.data
    }
}

impl<'a, T> BatchMut<'a, T> {
    fn check_batch_stride(
        batch: usize,
        rows: usize,
        cols: usize,
        row_stride: usize,
        batch_stride: usize,
    ) -> Result<()> {
        let one = span(rows, cols, row_stride).unwrap_or(usize::MAX);
        if batch > 1 && batch_stride < one {
            return Err(Error::UnsupportedLayout {
                op: "BatchMut::with_strides",
                arg: "batch_stride",
                expected: format!("a batch stride of at least {one} elements"),
                got: format!("batch stride {batch_stride}"),
            });
        }
        Ok(())
    }

    /// Matrix `b`.
    ///
    /// # Panics
    /// If `b >= batch`.
    pub fn matrix_mut(&mut self, b: usize) -> MatMut<'_, T> {
        assert!(b < self.batch, "matrix {b} of a batch of {}", self.batch);
        let data = if self.rows == 0 { &mut [][..] } else { &mut self.data[b * self.batch_stride..] };
        MatMut { data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }
    /// The elements that the batch was made from.
    pub fn data_mut(&mut self) -> &mut [T] {
        self.data
    }
    /// The elements that the batch was made from, for as long as they were borrowed.
    pub fn into_data(self) -> &'a mut [T] {
        self.data
    }
}

impl<'a, T> From<MatRef<'a, T>> for BatchRef<'a, T> {
    fn from(m: MatRef<'a, T>) -> Self {
        Self { data: m.data, batch: 1, rows: m.rows, cols: m.cols, row_stride: m.row_stride, batch_stride: 0 }
    }
}

impl<'a, T> From<MatMut<'a, T>> for BatchMut<'a, T> {
    fn from(m: MatMut<'a, T>) -> Self {
        Self { data: m.data, batch: 1, rows: m.rows, cols: m.cols, row_stride: m.row_stride, batch_stride: 0 }
    }
}
