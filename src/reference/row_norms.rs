//! Row norms, L2 normalisation and the Jacobian of it.

use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::options::Normalization;

/// A row in f64, times a power of two that keeps its squares within range.
fn scaled_row<T: Element>(row: &[T]) -> (Vec<f64>, f64) {
    let largest = row.iter().map(|v| v.to_f64().abs()).fold(0.0, f64::max);
    let scale = if largest < 1e-150 {
        2f64.powi(600)
    } else if largest > 1e150 {
        2f64.powi(-600)
    } else {
        1.0
    };
    (row.iter().map(|v| v.to_f64() * scale).collect(), scale)
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// `‖x_i‖` of every row, `n` values. A row with an infinity or a NaN has a norm that is not finite.
pub fn row_norms<T: Element>(x: MatRef<'_, T>) -> Vec<f64> {
    let of_row = |i| {
        let (row, scale) = scaled_row(x.row(i));
        norm(&row) / scale
    };
    (0..x.rows()).map(of_row).collect()
}

/// `x_i / ‖x_i‖`, `n × d`. A zero row stays zero; a row whose norm is not finite becomes NaN throughout.
pub fn normalize<T: Element>(x: MatRef<'_, T>) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.rows() * x.cols());
    for i in 0..x.rows() {
        let (row, _) = scaled_row(x.row(i));
        let r = norm(&row);
        for v in row {
            out.push(if r == 0.0 {
                0.0
            } else if r.is_finite() {
                v / r
            } else {
                f64::NAN
            });
        }
    }
    out
}

/// `(g_i − x̂_i (x̂_i · g_i)) / ‖x_i‖` of every row, `n × d`: the gradient with respect to `x` for the gradient
/// `grad_unit` (`n × d`) with respect to the normalised rows. Exactly 0 for a zero row.
pub fn normalize_backward<T: Element>(x: MatRef<'_, T>, grad_unit: &[f64]) -> Vec<f64> {
    let (n, d) = (x.rows(), x.cols());
    let unit = normalize(x);
    let norms = row_norms(x);
    let mut out = vec![0.0; n * d];
    for i in 0..n {
        if norms[i] == 0.0 {
            continue;
        }
        let (u, g) = (&unit[i * d..][..d], &grad_unit[i * d..][..d]);
        let radial: f64 = u.iter().zip(g).map(|(a, b)| a * b).sum();
        for k in 0..d {
            out[i * d + k] = (g[k] - u[k] * radial) / norms[i];
        }
    }
    out
}

/// The rows that the other operations work on: normalised or as they are.
pub(super) fn prepared<T: Element>(x: MatRef<'_, T>, normalization: Normalization) -> Vec<f64> {
    match normalization {
        Normalization::L2 => normalize(x),
        Normalization::None => (0..x.rows()).flat_map(|i| x.row(i)).map(|v| v.to_f64()).collect(),
    }
}

/// Rows that are all zero, and rows with a NaN or an infinity.
pub(super) fn count_special<T: Element>(x: MatRef<'_, T>) -> (u32, u32) {
    let (mut zero, mut nan) = (0, 0);
    for i in 0..x.rows() {
        zero += u32::from(x.row(i).iter().all(|v| v.to_f64() == 0.0));
        nan += u32::from(x.row(i).iter().any(|v| !v.to_f64().is_finite()));
    }
    (zero, nan)
}
