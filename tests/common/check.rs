//! Comparisons that say where and by how much.

use simgrad::{DType, Element, MineOptions, Normalization, reference};

use super::data::Matrix;

/// Bound on the error of a similarity of unit rows, against the f64 reference of the same (rounded) inputs.
///
/// The products are exact or rounded to f32 and summed in f32, so with unit rows the worst case is `d · 2⁻²⁴` times
/// `Σ|x_k||y_k| <= 1`; rounding errors of random sign leave about `√d · 2⁻²⁴`, 2e-6 at `d = 1024`. Normalisation adds
/// two roundings of each operand. 16-bit operands get more room because tensor cores truncate as they add.
pub fn bound<T: Element>() -> f64 {
    match T::DTYPE {
        DType::F64 => 1e-14,
        DType::F32 => 1e-6,
        _ => 1e-5,
    }
}

/// Distance from 1 to the next number, halved: the relative error of rounding to `T`.
pub fn rounding<T: Element>() -> f64 {
    match T::DTYPE {
        DType::F64 => 2f64.powi(-53),
        DType::F32 => 2f64.powi(-24),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-8),
    }
}

/// The smallest step of `T` near 0, which bounds what rounding loses there.
pub fn smallest<T: Element>() -> f64 {
    match T::DTYPE {
        DType::F64 => 5e-324,
        DType::F32 => 2f64.powi(-149),
        DType::F16 => 2f64.powi(-24),
        _ => 2f64.powi(-133),
    }
}

/// Every element within `tolerance(index)`; NaN and infinities in the same places.
#[track_caller]
pub fn close(name: &str, got: &[f64], want: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let bad: Vec<usize> = (0..got.len())
        .filter(|&i| {
            let (g, w) = (got[i], want[i]);
            let same = g == w || (g.is_nan() && w.is_nan());
            let near = g.is_finite() && w.is_finite() && (g - w).abs() <= tolerance(i);
            !(same || near)
        })
        .collect();
    if bad.is_empty() {
        return;
    }
    let mut text = format!("{name}: {} of {} elements are wrong", bad.len(), got.len());
    for &i in bad.iter().take(6) {
        text += &format!(
            "\n  [{i}] got {:.9e}, want {:.9e}, off by {:.3e}, allowed {:.3e}",
            got[i],
            want[i],
            (got[i] - want[i]).abs(),
            tolerance(i)
        );
    }
    panic!("{text}");
}

/// Exactly equal values; NaN equals NaN, −0 equals +0.
#[track_caller]
pub fn equal(name: &str, got: &[f64], want: &[f64]) {
    close(name, got, want, |_| 0.0);
}

/// A comparison of zeros with zeros proves nothing.
#[track_caller]
pub fn not_all_zero(name: &str, values: &[f64]) {
    assert!(values.iter().any(|&v| v != 0.0), "{name}: the expected values are all zero");
}

/// The similarities of two matrices by the reference.
pub fn similarities<T: Element>(x: &Matrix<T>, y: &Matrix<T>, normalization: Normalization) -> Vec<f64> {
    reference::cosine_matrix(x.view(), y.view(), normalization)
}

/// Checks a direction of mining against the reference: values within `bound`, and indices wherever the gap between the
/// two hardest exceeds twice that.
#[track_caller]
pub fn hardest(
    name: &str,
    got: (&[f64], &[i32]),
    want: &simgrad::Hardest<f64>,
    similarity: impl Fn(usize, usize) -> f64,
    bound: f64,
) {
    close(&format!("{name} value"), got.0, &want.value, |_| bound);
    assert_eq!(got.1.len(), want.index.len(), "{name}: number of indices");
    for i in 0..want.index.len() {
        let (g, w) = (got.1[i], want.index[i]);
        let clear = want.value[i].is_nan() || want.value[i] - want.second[i] > 2.0 * bound;
        if w == simgrad::NONE || bound == 0.0 || clear {
            assert_eq!(g, w, "{name}: index of anchor {i} (value {}, second {})", want.value[i], want.second[i]);
        } else {
            assert!(g >= 0, "{name}: anchor {i} has no index");
            let loss = want.value[i] - similarity(i, g as usize);
            assert!(loss.abs() <= 2.0 * bound, "{name}: anchor {i} chose {g}, {loss:e} below the hardest");
        }
    }
}

/// The reference's mining with the second-best values, whatever the options ask for.
pub fn mine_reference<T: Element>(x: &Matrix<T>, y: &Matrix<T>, options: &MineOptions<'_>) -> simgrad::Mined<f64> {
    reference::mine(x.view(), y.view(), &MineOptions { second: true, ..*options })
}
