//! Norms, normalisation and its Jacobian against the f64 reference.

mod common;

use common::check::{close, rounding, smallest};
use common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, WIDE, pair, poison};
use common::{for_each_dtype, for_each_gradient, full, is_cuda, on_every_backend};
use simgrad::{Backend, Element, GradientOf, WriteMode, reference};

const ROWS: [usize; 6] = [1, 2, 3, 17, 33, 130];
const DIMS: [usize; 14] = [1, 3, 8, 31, 33, 64, 65, 127, 128, 257, 300, 513, 1024, 2050];

fn norms_cell<T: Element>(backend: &Backend, kind: Kind, n: usize, d: usize, at: usize) {
    let x = Matrix::<T>::new(&pair(kind, at as u64, n, 1, d).0, n, d, LAYOUTS[at % 4]);
    let name = format!("{} {kind:?} {} n={n} d={d}", backend.name(), T::DTYPE);
    let unit = rounding::<T::Acc>();

    let mut norms = vec![poison::<T::Acc>(); n];
    backend.row_norms(x.view(), &mut norms).expect("row_norms");
    let want = reference::row_norms(x.view());
    let got: Vec<f64> = norms.iter().map(|v| v.to_f64()).collect();
    // A sum of positive terms: relative error d/2 · u at worst, √d in practice.
    close(&format!("{name} norms"), &got, &want, |i| (4.0 + 0.5 * d as f64) * unit * want[i]);

    let mut out = Matrix::<T>::poisoned(n, d, LAYOUTS[(at + 1) % 4]);
    backend.normalize(x.view(), out.view_mut()).expect("normalize");
    let want = reference::normalize(x.view());
    close(&format!("{name} normalised"), &out.written(&name), &want, |i| {
        ((8.0 + 0.5 * d as f64) * unit + 1.01 * rounding::<T>()) * want[i].abs() + smallest::<T>()
    });
}

#[test]
fn norms_and_unit_rows() {
    on_every_backend(|backend| {
        let dims = if is_cuda(backend) && !full() { &DIMS[..11] } else { &DIMS[..] };
        for (at, &d) in dims.iter().enumerate() {
            for (row, &n) in
                ROWS.iter().enumerate().filter(|(row, _)| !is_cuda(backend) || full() || (row + at).is_multiple_of(3))
            {
                let kind = [Kind::Sphere, Kind::HeavyTailed, Kind::NearDuplicate][(at + row) % 3];
                for_each_dtype!(backend, norms_cell(kind, n, d, at + row));
            }
        }
    });
}

fn backward_cell<T: Element, G: GradientOf<T>>(backend: &Backend, n: usize, d: usize, write: WriteMode) {
    let (x, g) = pair(Kind::HeavyTailed, 4, n, n, d);
    let (x, g) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T::Acc>::new(&g, n, d, WIDE));
    let old = Matrix::<G>::new(&pair(Kind::Sphere, 6, n, 1, d).0, n, d, ODD);
    let mut dx = if write == WriteMode::Accumulate { old.clone() } else { Matrix::poisoned(n, d, ODD) };
    backend.normalize_backward(x.view(), g.view(), write, dx.view_mut()).expect("normalize_backward");

    let name = format!("{} backward {}->{} n={n} d={d} {write:?}", backend.name(), T::DTYPE, G::DTYPE);
    let g = g.values();
    let mut want = reference::normalize_backward(x.view(), &g);
    let radius = reference::row_norms(x.view());
    let scale: Vec<f64> =
        (0..n).map(|i| g[i * d..][..d].iter().map(|v| v * v).sum::<f64>().sqrt() / radius[i]).collect();
    if write == WriteMode::Accumulate {
        want.iter_mut().zip(old.values()).for_each(|(w, o)| *w += o);
    }
    close(&name, &dx.written(&name), &want, |at| {
        let radial = (16.0 + d as f64) * rounding::<T::Acc>() * scale[at / d];
        radial + 1.01 * rounding::<G>() * want[at].abs() + smallest::<G>()
    });
}

#[test]
fn jacobian() {
    on_every_backend(|backend| {
        let dims = if is_cuda(backend) && !full() { &DIMS[1..9] } else { &DIMS[..] };
        for (at, &d) in dims.iter().enumerate() {
            let write = [WriteMode::Overwrite, WriteMode::Accumulate][at % 2];
            for_each_gradient!(backend, backward_cell(ROWS[at % 5], d, write));
        }
    });
}

/// Rows times a power of two: the same unit row to the bit, and the norm times that power, from one end of the range to
/// the other.
fn range_cell<T: Element>(backend: &Backend, exponents: &[i32]) {
    let d = 37;
    let base: Vec<f64> = pair(Kind::Integers, 8, 1, 1, d).0.iter().map(|v| v + 0.5).collect();
    let rows = exponents.len();
    let values: Vec<f64> =
        exponents.iter().flat_map(|e| base.iter().map(move |v| v * 2f64.powf(f64::from(*e)))).collect();
    let x = Matrix::<T>::new(&values, rows, d, TIGHT);
    let plain = Matrix::<T>::new(&base, 1, d, TIGHT);
    let mut norms = vec![poison::<T::Acc>(); rows];
    let mut unit = Matrix::<T>::poisoned(rows, d, TIGHT);
    backend.row_norms(x.view(), &mut norms).expect("row_norms");
    backend.normalize(x.view(), unit.view_mut()).expect("normalize");
    let want_norms = reference::row_norms(x.view());
    let want_unit = reference::normalize(plain.view());
    let unit = unit.written("unit");
    for (i, e) in exponents.iter().enumerate() {
        let name = format!("{} {} row times 2^{e}", backend.name(), T::DTYPE);
        let tolerance = 40.0 * rounding::<T::Acc>();
        close(&name, &[norms[i].to_f64()], &want_norms[i..=i], |_| tolerance * want_norms[i] + smallest::<T::Acc>());
        close(&name, &unit[i * d..][..d], &want_unit, |k| (tolerance + 1.01 * rounding::<T>()) * want_unit[k].abs());
    }
}

#[test]
fn squares_neither_overflow_nor_underflow() {
    on_every_backend(|backend| {
        range_cell::<f32>(backend, &[-148, -140, -130, -127, -126, -100, -70, 0, 60, 100, 122, 124]);
        range_cell::<half::bf16>(backend, &[-126, -124, -100, -70, 0, 60, 100, 122, 124]);
        range_cell::<half::f16>(backend, &[-23, -20, -14, -8, 0, 8, 13, 14]);
        if !is_cuda(backend) {
            range_cell::<f64>(backend, &[-1073, -1060, -1022, -600, 0, 600, 1000, 1020]);
        }
    });
}

/// The kernels divide by a reciprocal and two corrections. Elements over all of f32 below the row's largest, both zeros
/// among them; in every fourth row with mantissas at the lower end.
#[test]
fn unit_elements_on_cuda_are_rounded_quotients() {
    on_every_backend(|backend| {
        if !is_cuda(backend) {
            return;
        }
        let (n, d) = (24, 301);
        let mut values: Vec<f64> = pair(Kind::Sphere, 9, n, 1, d).0;
        for (at, v) in values.iter_mut().enumerate() {
            let (row, k) = (at / d, at % d);
            let exponent = if k == 0 { 0 } else { -((k * (1 + row % 3)) as i32 % 140) };
            let mantissa = if row % 4 == 0 { 1.0 + (k % 3) as f64 * 2f64.powi(-23) } else { 1.0 + v.abs().min(0.999) };
            *v = mantissa.copysign(*v) * 2f64.powi(exponent) * if k % 50 == 49 { 0.0 } else { 1.0 };
        }
        let x = Matrix::<f32>::new(&values, n, d, ODD);
        let (mut norms, mut unit) = (vec![0f32; n], Matrix::<f32>::poisoned(n, d, TIGHT));
        backend.row_norms(x.view(), &mut norms).expect("row_norms");
        backend.normalize(x.view(), unit.view_mut()).expect("normalize");
        let (x, unit) = (x.values(), unit.written("unit"));
        let mut tiny = 0;
        for (at, (&v, &got)) in x.iter().zip(&unit).enumerate() {
            let (v, got) = (v as f32, got as f32);
            let want = v / norms[at / d];
            let (want_bits, got_bits) = (want.to_bits(), got.to_bits());
            if v.abs() >= 2f32.powi(-100) || v == 0.0 {
                assert_eq!(got_bits, want_bits, "{v:e} / {:e} = {want:e}, not {got:e}", norms[at / d]);
            } else {
                tiny += 1;
                assert!(want_bits.abs_diff(got_bits) <= 1, "{v:e} / {:e} = {want:e}, not {got:e}", norms[at / d]);
            }
        }
        assert!(tiny > 100, "{tiny} elements below 2^-100");
    });
}

fn special_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let (n, d) = (5, 9);
    let mut x = Matrix::<T>::new(&pair(Kind::Sphere, 2, n, 1, d).0, n, d, ODD);
    x.set_row(1, |k| if k % 2 == 0 { 0.0 } else { -0.0 });
    *x.at(2, 8) = T::from_f64(f64::NAN);
    *x.at(3, 0) = T::from_f64(f64::NEG_INFINITY);
    let mut norms = vec![poison::<T::Acc>(); n];
    backend.row_norms(x.view(), &mut norms).expect("row_norms");
    let mut unit = Matrix::<T>::poisoned(n, d, ODD);
    backend.normalize(x.view(), unit.view_mut()).expect("normalize");
    let grad = Matrix::<T::Acc>::new(&pair(Kind::Sphere, 3, n, 1, d).0, n, d, TIGHT);
    let mut dx = Matrix::<G>::poisoned(n, d, ODD);
    backend.normalize_backward(x.view(), grad.view(), WriteMode::Overwrite, dx.view_mut()).expect("backward");
    let (unit, dx) = (unit.written("unit"), dx.written("dx"));
    let row = |m: &[f64], i: usize| m[i * d..][..d].to_vec();
    let name = format!("{} {}", backend.name(), T::DTYPE);
    assert_eq!(norms[1].to_f64(), 0.0, "{name}");
    assert!(norms[2].to_f64().is_nan() && norms[3].to_f64() == f64::INFINITY, "{name} {norms:?}");
    assert!(row(&unit, 1).iter().chain(&row(&dx, 1)).all(|&v| v == 0.0), "{name}: zero row");
    for i in [2, 3] {
        assert!(row(&unit, i).iter().all(|v| v.is_nan()), "{name}: unit row {i} {:?}", row(&unit, i));
        assert!(row(&dx, i).iter().all(|v| v.is_nan()), "{name}: gradient of row {i} {:?}", row(&dx, i));
    }
    assert!([0, 4].iter().all(|&i| row(&unit, i).iter().chain(&row(&dx, i)).all(|v| v.is_finite())), "{name}");
}

#[test]
fn zero_nan_and_infinite_rows() {
    on_every_backend(|backend| for_each_gradient!(backend, special_cell()));
}

#[test]
fn no_rows() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[], 0, 3, ODD);
        backend.row_norms(x.view(), &mut []).expect("row_norms");
        let mut out = Matrix::<f32>::poisoned(0, 3, ODD);
        backend.normalize(x.view(), out.view_mut()).expect("normalize");
        backend.normalize_backward(x.view(), x.view(), WriteMode::Overwrite, out.view_mut()).expect("backward");
        out.written("out");
    });
}
