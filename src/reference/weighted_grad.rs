//! The gradient of given weights.

use super::row_norms::{normalize_backward, prepared};
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::options::{GradOptions, Normalization};
use crate::outputs::{GradReport, WeightTriples};

/// `dX = u W Y` and `dY = u Wᵀ X` of the sparse `W`, through the Jacobian of the normalisation where the rows are
/// normalised. Triples whose indices are out of range are counted and left out. The result is never added to anything:
/// `options.write` is not looked at, and nothing overflows.
pub fn weighted_grad<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    w: &WeightTriples<'_, f64>,
    options: &GradOptions,
) -> (Vec<f64>, Vec<f64>, GradReport) {
    let (n, m) = (x.rows(), y.rows());
    let mut triples = Vec::new();
    let mut report = GradReport::default();
    for ((&i, &j), &value) in w.rows.iter().zip(w.cols).zip(w.values) {
        if i >= 0 && (i as usize) < n && j >= 0 && (j as usize) < m {
            triples.push((i as usize, j as usize, value));
        } else {
            report.bad_index += 1;
        }
    }
    let (dx, dy) = gradient(x, y, &triples, options.normalization, options.upstream);
    (dx, dy, report)
}

/// As [`weighted_grad`], for triples that are all in range.
pub(super) fn gradient<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    triples: &[(usize, usize, f64)],
    normalization: Normalization,
    factor: f64,
) -> (Vec<f64>, Vec<f64>) {
    let d = x.cols();
    let (a, b) = (prepared(x, normalization), prepared(y, normalization));
    let (mut dx, mut dy) = (vec![0.0; x.rows() * d], vec![0.0; y.rows() * d]);
    for &(i, j, w) in triples {
        for k in 0..d {
            dx[i * d + k] += w * b[j * d + k];
            dy[j * d + k] += w * a[i * d + k];
        }
    }
    for v in dx.iter_mut().chain(&mut dy) {
        *v *= factor;
    }
    match normalization {
        Normalization::None => (dx, dy),
        Normalization::L2 => (normalize_backward(x, &dx), normalize_backward(y, &dy)),
    }
}
