//! Empty batches, and rows of zeros, NaN, infinities and extreme lengths.

use crate::common::check::{bound, close, equal, rounding};
use crate::common::data::{Kind, Matrix, ODD, TIGHT, pair, to_f64};
use crate::common::goal::{Case, Got, Shape, counters};
use crate::common::{for_each_dtype, for_each_gradient, is_cuda, on_every_backend};
use crate::{case, objective, plain};
use half::f16;
use simgrad::reference::GoalReference;
use simgrad::{Backend, Element, Error, GradientOf, Groups, MineOptions, NONE, Normalization, Objective, StepReport};

/// NaN in the same elements of gradients and triplet weights, the same negatives and counters.
#[track_caller]
fn same_damage<T: Element, G: Element>(name: &str, got: &Got<T, G>, want: &GoalReference) {
    let nan = |v: &[f64]| v.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
    assert_eq!(nan(&got.dx.written(name)), nan(&want.dx), "{name}: NaN in dX");
    assert_eq!(nan(&got.dy.written(name)), nan(&want.dy), "{name}: NaN in dY");
    for (side, a, b) in [("it", &got.detail.it, &want.detail.it), ("ti", &got.detail.ti, &want.detail.ti)] {
        assert_eq!(a.neg_index, b.neg_index, "{name}: negatives {side}");
        assert_eq!(nan(&to_f64(&a.neg_value)), nan(&b.neg_value), "{name}: NaN in N {side}");
        assert_eq!(nan(&to_f64(&a.triplet)), nan(&b.triplet), "{name}: NaN in T {side}");
    }
    assert_eq!(counters(&got.report), counters(&want.report), "{name}: counters");
}

#[test]
fn a01_empty_batches_are_fine_and_touch_nothing() {
    on_every_backend(|backend| {
        let got = plain::<f32>(0, 7, "cir-sig_ms", 1).run::<f32>(backend, ODD);
        assert_eq!(got.report, StepReport::default());
        got.dx.written("dx");
        got.dy.written("dy");
    });
}

#[test]
fn a02_no_columns_is_an_error() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[], 3, 0, TIGHT);
        let got = backend.mine(x.view(), x.view(), &MineOptions::default());
        assert_eq!(got, Err(Error::EmptyDim { op: "mine", arg: "x" }));
    });
}

fn one_pair_cell<T: Element, G: GradientOf<T>>(backend: &Backend, objective: Objective) {
    for normalization in [Normalization::L2, Normalization::None] {
        let got = case::<T>(&[0.5, -2.0, 1.0], &[1.0, 2.0, 0.25], 3, objective, normalization).run::<G>(backend, ODD);
        let name = format!("{} one pair {objective} {}", backend.name(), T::DTYPE);
        equal(&name, &got.dx.written(&name), &[0.0; 3]);
        equal(&name, &got.dy.written(&name), &[0.0; 3]);
        let r = got.report;
        assert_eq!((r.pairs, r.empty_it, r.empty_ti, r.active_it, r.active_ti), (1, 1, 1, 0, 0), "{name}");
        assert_eq!((r.loss, r.log_it, r.log_ti, r.mean_negative_it), (0.0, 0.0, 0.0, 0.0), "{name}");
        assert_eq!((got.detail.it.neg_index[0], got.detail.ti.neg_index[0]), (NONE, NONE), "{name}");
        assert_eq!(got.detail.it.neg_value[0].to_f64(), f64::NEG_INFINITY);
        for a in [&got.detail.it, &got.detail.ti] {
            let zeros = [a.triplet[0], a.w_pos[0], a.w_neg[0], a.rs_pos[0], a.rs_neg[0]];
            equal(&name, &to_f64(&zeros), &[0.0; 5]);
        }
    }
}

#[test]
fn a04_a_single_pair_has_no_gradient() {
    on_every_backend(|backend| {
        for objective in Objective::all() {
            one_pair_cell::<f32, f32>(backend, objective);
        }
        for_each_gradient!(backend, one_pair_cell(objective("con-lin")));
    });
}

fn zero_row_cell<T: Element, G: GradientOf<T>>(backend: &Backend, name: &str) {
    let (n, d) = (19, 12);
    let mut case = plain::<T>(n, d, name, 2);
    case.x.set_row(4, |k| if k % 2 == 0 { 0.0 } else { -0.0 });
    let got = case.run::<G>(backend, TIGHT);
    let want = case.reference();
    let label = format!("{} zero row {name} {}", backend.name(), T::DTYPE);
    let dx = got.dx.written(&label);
    assert!(dx[4 * d..5 * d].iter().all(|&v| v == 0.0), "{label}: gradient of the zero row");
    assert_eq!((got.report.zero_x, got.report.zero_y, got.report.nan_x), (1, 0, 0), "{label}");
    // All its similarities tie at 0: the lowest index.
    assert_eq!((got.detail.it.neg_index[4], got.detail.it.neg_value[4].to_f64()), (0, 0.0), "{label}");
    assert_eq!(got.detail.positive[4].to_f64(), 0.0, "{label}");
    let largest = want.dx.iter().chain(&want.dy).fold(0.0, |m: f64, v| m.max(v.abs()));
    let tolerance = |want: f64| 500.0 * bound::<T>() * largest + 1.01 * rounding::<G>() * want.abs();
    close(&label, &dx, &want.dx, |at| tolerance(want.dx[at]));
    close(&label, &got.dy.written(&label), &want.dy, |at| tolerance(want.dy[at]));
}

#[test]
fn a05_a_zero_row_has_similarity_and_gradient_zero() {
    on_every_backend(|backend| {
        for name in ["nca-con", "con-lin", "cir-sig"] {
            for_each_gradient!(backend, zero_row_cell(name));
        }
    });
}

fn zero_row_beside_nan_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let (n, d) = (9, 12);
    let mut case = plain::<T>(n, d, "nca-con", 3);
    case.x.set_row(4, |_| 0.0);
    case.y.set_row(6, |k| if k == 1 { f64::NAN } else { 1.0 });
    let got = case.run::<G>(backend, TIGHT);
    let label = format!("{} zero row beside a NaN row {}", backend.name(), T::DTYPE);
    let dx = got.dx.written(&label);
    // Its hardest negative is the NaN row, so that its weights are NaN.
    assert!(got.detail.it.triplet[4].to_f64().is_nan(), "{label}");
    assert!(dx[4 * d..5 * d].iter().all(|&v| v == 0.0), "{label}: gradient of the zero row");
    same_damage(&label, &got, &case.reference());
}

#[test]
fn a05_a_zero_row_keeps_its_zero_gradient_beside_nan() {
    on_every_backend(|backend| {
        for_each_gradient!(backend, zero_row_beside_nan_cell());
    });
}

/// `P_0 = +∞` leaves every triplet of pair 0 inactive, and its row's weight 0 meets the infinity.
fn inactive_beside_infinity_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let inf = f64::INFINITY;
    let case = case::<T>(&[1.0, 0.0, -1.0, 0.0], &[inf, 0.0, 0.0, 1.0], 2, objective("hinge-con"), Normalization::None);
    let name = format!("{} weight 0 times infinity {}", backend.name(), T::DTYPE);
    let got = case.run::<G>(backend, ODD);
    same_damage(&name, &got, &case.reference());
    assert!(got.dx.written(&name)[0].is_nan(), "{name}");
}

#[test]
fn a11_weight_zero_times_infinity_is_nan() {
    on_every_backend(|backend| {
        for_each_gradient!(backend, inactive_beside_infinity_cell());
    });
}

fn all_zero_cell<T: Element, G: GradientOf<T>>(backend: &Backend, objective: Objective) {
    let got = case::<T>(&[0.0; 15], &[0.0; 15], 3, objective, Normalization::L2).run::<G>(backend, ODD);
    let name = format!("{} all zero {objective}", backend.name());
    equal(&name, &got.dx.written(&name), &[0.0; 15]);
    equal(&name, &got.dy.written(&name), &[0.0; 15]);
    assert_eq!((got.report.zero_x, got.report.zero_y, got.report.nan_x, got.report.nan_y), (5, 5, 0, 0));
    assert_eq!(got.detail.it.neg_index, [1, 0, 0, 0, 0]);
    assert!(got.report.loss.is_finite());
}

#[test]
fn a06_nothing_but_zeros_stays_finite() {
    on_every_backend(|backend| {
        for objective in Objective::all() {
            all_zero_cell::<f32, f32>(backend, objective);
        }
        for_each_gradient!(backend, all_zero_cell(objective("nca-sig_ms")));
    });
}

/// Tiny and huge rows against the same rows of length one.
fn extreme_cell<T: Element, G: GradientOf<T>>(backend: &Backend, lengths: [f64; 3]) {
    let (n, d) = (12, 20);
    let unit = plain::<T>(n, d, "nca-sig", 5);
    let scaled = |m: &Matrix<T>| {
        let values: Vec<f64> = m.values().iter().enumerate().map(|(at, v)| v * lengths[at / d % 3]).collect();
        Matrix::<T>::new(&values, n, d, TIGHT)
    };
    let case = Case { x: scaled(&unit.x), y: scaled(&unit.y), ..unit };
    let got = case.run::<G>(backend, TIGHT);
    let want = case.reference();
    let name = format!("{} rows of {lengths:?} {}", backend.name(), T::DTYPE);
    assert_eq!(got.detail.it.neg_index, want.detail.it.neg_index, "{name}");
    close(&name, &to_f64(&got.detail.positive), &want.detail.positive, |_| bound::<T>());
    let (dx, dy) = (got.dx.written(&name), got.dy.written(&name));
    for (got, want) in [(&dx, &want.dx), (&dy, &want.dy)] {
        // Relative to the longest element of the row, as every row has its own scale.
        let row = |at: usize| want[at / d * d..][..d].iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        close(&name, got, want, |at| 300.0 * bound::<T>() * row(at));
    }
}

#[test]
fn a07_the_length_of_a_row_does_not_matter() {
    on_every_backend(|backend| {
        extreme_cell::<f32, f32>(backend, [1e-30, 1e30, 1.0]);
        extreme_cell::<f32, f32>(backend, [1e-37, 1e38, 1e20]);
        extreme_cell::<half::bf16, f32>(backend, [1e-30, 1e30, 1.0]);
        extreme_cell::<f16, f32>(backend, [6e4, 1.0, 1e2]);
        if !is_cuda(backend) {
            extreme_cell::<f64, f64>(backend, [1e-300, 1e300, 1.0]);
        }
    });
}

fn nan_cell<T: Element, G: GradientOf<T>>(backend: &Backend, value: f64, name: &str) {
    let mut case = plain::<T>(35, 17, name, 3);
    *case.x.at(6, 16) = T::from_f64(value);
    let (got, want) = (case.run::<G>(backend, ODD), case.reference());
    let label = format!("{} {value} in a row of x, {name} {}", backend.name(), T::DTYPE);
    same_damage(&label, &got, &want);
    assert_eq!((got.report.nan_x, got.report.nan_y), (1, 0), "{label}");
    // The row itself and every column that meets it, which is all of them.
    assert!(got.detail.ti.neg_index.iter().enumerate().all(|(j, &i)| i == 6 || j == 6), "{label}");
    assert_eq!(got.detail.it.neg_index[6], 0, "{label}: the lowest NaN");
    assert!(got.report.loss.is_nan(), "{label}");
}

#[test]
fn a08_one_nan_reaches_its_row_and_every_column_that_meets_it() {
    on_every_backend(|backend| {
        for name in ["con-con", "nca-lin", "cir-lin_ms", "hinge-con", "con-sig_ms"] {
            nan_cell::<f32, f32>(backend, f64::NAN, name);
        }
        for_each_gradient!(backend, nan_cell(f64::NAN, "nca-sig"));
    });
}

#[test]
fn a09_an_infinity_is_a_nan_once_normalised() {
    on_every_backend(|backend| {
        for value in [f64::INFINITY, f64::NEG_INFINITY] {
            for_each_gradient!(backend, nan_cell(value, "nca-con"));
        }
    });
}

fn all_nan_cell<T: Element, G: GradientOf<T>>(backend: &Backend, name: &str) {
    let case = case::<T>(&[f64::NAN; 12], &[f64::NAN; 12], 3, objective(name), Normalization::L2);
    let got = case.run::<G>(backend, ODD);
    same_damage(&format!("{} all NaN {name}", backend.name()), &got, &case.reference());
    assert_eq!(got.detail.it.neg_index, [1, 0, 0, 0]);
    assert!(got.dx.written("dx").iter().all(|v| v.is_nan()));
    assert_eq!((got.report.nan_x, got.report.nan_y), (4, 4));
}

#[test]
fn a10_nothing_but_nan_picks_the_lowest_index() {
    on_every_backend(|backend| {
        for name in ["con-con", "nca-sig_ms"] {
            for_each_gradient!(backend, all_nan_cell(name));
        }
    });
}

fn masked_nan_cell<T: Element>(backend: &Backend) {
    let (n, m, d) = (40, 50, 18);
    let (x, y) = pair(Kind::Sphere, 4, n, m, d);
    let (x, mut y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, ODD));
    let ids = ((0..n as i64).map(|i| i % 2).collect::<Vec<_>>(), vec![2i64; m]);
    let mut cols = ids.1.clone();
    // Columns 7 and 44 belong to the group of the even rows.
    cols[7] = 0;
    cols[44] = 0;
    let mine = |y: &Matrix<T>| {
        let groups = Some(Groups { rows: &ids.0, cols: &cols });
        backend.mine(x.view(), y.view(), &MineOptions { groups, second: true, ..MineOptions::default() }).expect("mine")
    };
    let clean = mine(&y);
    y.set_row(7, |_| f64::NAN);
    y.set_row(44, |_| f64::NAN);
    let hurt = mine(&y);
    for i in 0..n {
        if i % 2 == 0 {
            let one = |m: &simgrad::Mined<T::Acc>| (m.rows.index[i], m.rows.value[i], m.rows.second[i]);
            assert_eq!(one(&hurt), one(&clean), "{} {} row {i}", backend.name(), T::DTYPE);
        } else if i != 7 {
            assert_eq!(hurt.rows.index[i], 7, "{} {} row {i}", backend.name(), T::DTYPE);
            assert!(hurt.rows.value[i].to_f64().is_nan() && hurt.rows.second[i].to_f64().is_nan());
        }
    }
}

#[test]
fn a11_nan_in_a_masked_place_has_no_effect() {
    // Every matrix of these tests has NaN before, between and after its rows; here it is a masked candidate.
    on_every_backend(|backend| for_each_dtype!(backend, masked_nan_cell()));
}

fn nan_upstream_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let mut case = plain::<T>(20, 9, "nca-sig_ms", 6);
    let clean = case.run::<G>(backend, TIGHT);
    case.upstream = f64::NAN;
    let got = case.run::<G>(backend, TIGHT);
    assert!(got.dx.written("dx").iter().chain(&got.dy.written("dy")).all(|v| v.is_nan()), "{}", backend.name());
    assert_eq!(got.detail, clean.detail);
    assert_eq!(bytemuck::bytes_of(&got.report), bytemuck::bytes_of(&clean.report));
}

#[test]
fn a12_a_nan_upstream_factor_gives_nan_gradients_and_the_same_negatives() {
    on_every_backend(|backend| for_each_gradient!(backend, nan_upstream_cell()));
}

#[test]
fn a13_one_class_only_contributes_nothing() {
    on_every_backend(|backend| {
        for objective in Objective::all() {
            let mut case = Case::<f32>::raw(&Shape::new(9, 5), objective, 7);
            case.groups = Some((vec![-3; 9], vec![-3; 9]));
            let got = case.run::<f32>(backend, ODD);
            assert!(got.dx.written("dx").iter().chain(&got.dy.written("dy")).all(|&v| v == 0.0), "{objective}");
            assert_eq!((got.report.empty_it, got.report.empty_ti, got.report.loss), (9, 9, 0.0), "{objective}");
        }
    });
}
