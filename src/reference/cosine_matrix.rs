//! The similarity matrix.

use super::row_norms::prepared;
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::options::Normalization;

/// `S_ij = x_i · y_j`, `n × m`, of the normalised rows or of the rows as they are.
pub fn cosine_matrix<T: Element>(x: MatRef<'_, T>, y: MatRef<'_, T>, normalization: Normalization) -> Vec<f64> {
    assert_eq!(x.cols(), y.cols(), "columns of x and y");
    let d = x.cols();
    let (a, b) = (prepared(x, normalization), prepared(y, normalization));
    let mut s = Vec::with_capacity(x.rows() * y.rows());
    for i in 0..x.rows() {
        for j in 0..y.rows() {
            s.push((0..d).map(|k| a[i * d + k] * b[j * d + k]).sum());
        }
    }
    s
}
