//! Matrix products on the CPU, the same bits for every number of threads.

use rayon::prelude::*;

/// Rows of the result that one task computes. Fixed, so that the work is cut the same way on every machine.
const BLOCK: usize = 64;

/// A strided view: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// If `data` is not `rows * cols` long.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} matrix");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transposed matrix, without moving anything.
    pub const fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `out = a · b`, row-major.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply(a: View<'_>, b: View<'_>, out: &mut [f32]) {
    assert_eq!(a.cols, b.rows, "inner extents of a product");
    assert_eq!(out.len(), a.rows * b.cols, "result of a product");
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(BLOCK * b.cols).enumerate().for_each(|(block, out)| {
        let rows = out.len() / b.cols;
        let first = &a.data[(block * BLOCK * a.row_stride).min(a.data.len())..];
        // SAFETY: `out` is a whole number of rows of `b.cols` adjacent elements and borrowed mutably. `a` and `b` are
        // whole matrices by construction, `first` starts at row `block * BLOCK` of `a`, and the product reads `rows`
        // rows from there, which exist because `out` as a whole has as many rows as `a`.
        unsafe {
            matrixmultiply::sgemm(
                rows,
                a.cols,
                b.cols,
                1.0,
                first.as_ptr(),
                a.row_stride as isize,
                a.col_stride as isize,
                b.data.as_ptr(),
                b.row_stride as isize,
                b.col_stride as isize,
                0.0,
                out.as_mut_ptr(),
                b.cols as isize,
                1,
            );
        }
    });
}
