//! Awkward input and its defined answer, one test per claim.

mod common;

use common::check::{bound, close, equal, mine_reference, rounding};
use common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, WIDE, group_ids, pair, to_f64};
use common::goal::{Case, Got, Shape, counters};
use common::{for_each_dtype, for_each_gradient, is_cuda, on_every_backend};
use half::f16;
use simgrad::reference::GoalReference;
use simgrad::{
    Backend, CosineOptions, Element, Error, GradOptions, GradientOf, Groups, MineOptions, NONE, Normalization,
    Objective, PairWeight, RecallOptions, StepReport, TiePolicy, TripletWeight, WeightTriples,
};

fn objective(name: &str) -> Objective {
    name.parse().expect("a name")
}

/// A case of given rows.
fn case<T: Element>(x: &[f64], y: &[f64], d: usize, objective: Objective, normalization: Normalization) -> Case<T> {
    let n = x.len() / d;
    Case {
        x: Matrix::new(x, n, d, TIGHT),
        y: Matrix::new(y, n, d, TIGHT),
        groups: None,
        objective,
        normalization,
        upstream: 1.0,
    }
}

fn plain<T: Element>(n: usize, d: usize, name: &str, seed: u64) -> Case<T> {
    Case::raw(&Shape::new(n, d), objective(name), seed)
}

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

fn minus_infinity_cell<T: Element>(backend: &Backend) {
    let inf = f64::INFINITY;
    let x = Matrix::<T>::new(&[1.0; 4], 4, 1, TIGHT);
    let y = Matrix::<T>::new(&[-inf, -inf, 3.0, -inf], 4, 1, TIGHT);
    let options = MineOptions { normalization: Normalization::None, second: true, groups: None };
    let got = backend.mine(x.view(), y.view(), &options).expect("mine");
    let name = format!("{} {}", backend.name(), T::DTYPE);
    assert_eq!(got.rows.index, [2, 2, 0, 2], "{name}");
    equal(&name, &to_f64(&got.rows.value), &[3.0, 3.0, -inf, 3.0]);
    equal(&name, &to_f64(&got.rows.second), &[-inf; 4]);
    assert_eq!(got.cols.index, [1, 0, 0, 0], "{name}: candidates of value −∞ are candidates");
    let ids = ([1, 1, 1, 1], [1, 2, 1, 1]);
    let groups = Some(Groups { rows: &ids.0, cols: &ids.1 });
    let got = backend.mine(x.view(), y.view(), &MineOptions { groups, ..options }).expect("mine");
    assert_eq!(got.rows.index, [1, NONE, 1, 1], "{name}: one left, or none");
    assert_eq!(got.cols.index, [NONE, 0, NONE, NONE], "{name}");
}

#[test]
fn a15_minus_infinity_is_a_value_and_not_a_mark() {
    on_every_backend(|backend| for_each_dtype!(backend, minus_infinity_cell()));
}

fn equal_rows_cell<T: Element, G: GradientOf<T>>(backend: &Backend, n: usize, name: &str) {
    let d = 6;
    let row = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5];
    let all: Vec<f64> = row.iter().copied().cycle().take(n * d).collect();
    let lowest: Vec<i32> = (0..n).map(|i| i32::from(i == 0)).collect();
    for normalization in [Normalization::L2, Normalization::None] {
        let case = case::<T>(&all, &all, d, objective(name), normalization);
        let got = case.run::<G>(backend, ODD);
        let label = format!("{} equal rows {name} {} {normalization:?}", backend.name(), T::DTYPE);
        assert_eq!(got.detail.it.neg_index, lowest, "{label}");
        assert_eq!(got.detail.ti.neg_index, lowest, "{label}");
        let dx = got.dx.written(&label);
        assert!(dx.iter().all(|v| v.is_finite()), "{label}");
        if normalization == Normalization::L2 {
            // Everything is parallel: nothing is left of the gradient but rounding of the hub's n contributions.
            let allowed = 200.0 * n as f64 * bound::<T>();
            assert!(
                dx.iter().all(|v| v.abs() <= allowed),
                "{label}: {:e}",
                dx.iter().fold(0.0, |m: f64, v| m.max(v.abs()))
            );
        }
    }
}

#[test]
fn a17_equal_rows_pick_the_lowest_index() {
    on_every_backend(|backend| {
        for n in [2, 5, 130, 140] {
            for_each_gradient!(backend, equal_rows_cell(n, "nca-con"));
        }
        equal_rows_cell::<f32, f32>(backend, 9, "con-lin_ms");
        equal_rows_cell::<f32, f32>(backend, 9, "con-sig_ms");
    });
}

fn duplicates_cell<T: Element>(backend: &Backend, normalization: Normalization) {
    let (n, d) = (200, 14);
    let half = pair(Kind::Integers, 9, n / 2, n / 2, d);
    // Row i and row i + 100 are the same, but for the sign of their zeros.
    let twice =
        |m: &[f64]| m.iter().copied().chain(m.iter().map(|&v| if v == 0.0 { -0.0 } else { v })).collect::<Vec<_>>();
    let (x, y) = (Matrix::<T>::new(&twice(&half.0), n, d, WIDE), Matrix::<T>::new(&twice(&half.1), n, d, ODD));
    let options = MineOptions { normalization, second: true, groups: None };
    let got = backend.mine(x.view(), y.view(), &options).expect("mine");
    let name = format!("{} duplicates {} {normalization:?}", backend.name(), T::DTYPE);
    // Of two equal candidates the higher index can only win where the lower one is the pair itself.
    for (i, &j) in got.rows.index.iter().enumerate() {
        assert!(j < 100 || j as usize == i + 100, "{name}: row {i} picks {j}");
        let second = got.rows.second[i];
        assert!(second == got.rows.value[i] || j as usize % 100 == i % 100, "{name}: row {i} has a tie");
    }
    if normalization == Normalization::None {
        let want = mine_reference(&x, &y, &options);
        assert_eq!((got.rows.index, got.cols.index), (want.rows.index, want.cols.index), "{name}");
    }
}

#[test]
fn a18_duplicates_and_signed_zeros_tie() {
    on_every_backend(|backend| {
        for normalization in [Normalization::L2, Normalization::None] {
            for_each_dtype!(backend, duplicates_cell(normalization));
        }
    });
}

#[test]
fn a19_extreme_parameters_give_weights_zero_or_one() {
    let sharp = |o: Objective| {
        let triplet = match o.triplet() {
            TripletWeight::Nca { .. } => TripletWeight::Nca { tau: 1e4 },
            TripletWeight::Cir { .. } => TripletWeight::Cir { tau: 1e4, offset: 0.5 },
            other => other,
        };
        let pair = match o.pair() {
            PairWeight::Sig { .. } => PairWeight::Sig { alpha: 1e4, beta: 1e4, lambda: 0.5 },
            PairWeight::SigMs { .. } => PairWeight::SigMs { alpha: 30.0, beta: 30.0, lambda: 0.5, eps: 0.1 },
            other => other,
        };
        Objective::new(triplet, pair).expect("valid")
    };
    on_every_backend(|backend| {
        for objective in Objective::all().into_iter().map(sharp) {
            let got = Case::<f32>::raw(&Shape::new(30, 8), objective, 8).run::<f32>(backend, TIGHT);
            let finite = |v: Vec<f64>| v.iter().all(|v| v.is_finite());
            assert!(finite(got.dx.written("dx")) && finite(got.dy.written("dy")), "{objective}");
            assert!(got.report.loss.is_finite(), "{objective}");
            assert!(got.detail.it.triplet.iter().all(|t| (0.0..=1.0).contains(t)), "{objective}");
        }
        for (margin, active) in [(f64::INFINITY, 1.0), (f64::NEG_INFINITY, 0.0), (1e300, 1.0), (-1e300, 0.0)] {
            let objective = Objective::new(TripletWeight::Hinge { margin }, PairWeight::Con).expect("valid");
            let got = Case::<f32>::raw(&Shape::new(30, 8), objective, 8).run::<f32>(backend, TIGHT);
            assert!(got.detail.it.triplet.iter().chain(&got.detail.ti.triplet).all(|&t| f64::from(t) == active));
            assert_eq!(got.report.active_it, if active == 1.0 { 30 } else { 0 });
            assert!(got.dx.written("dx").iter().all(|v| v.is_finite()));
            assert!(!got.report.loss.is_nan(), "margin {margin}: loss {}", got.report.loss);
        }
    });
}

fn exponential_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let r = 0.75f64.sqrt();
    // P_0 = −1 and no other positive near it: an empty positive set. S_10 = −0.5, S_01 = 0.5.
    let case = case::<T>(&[1.0, 0.0, 0.5, r], &[-1.0, 0.0, 0.5, r], 2, objective("con-sig_ms"), Normalization::None);
    let got = case.run::<G>(backend, ODD);
    let name = format!("{} {}", backend.name(), T::DTYPE);
    assert_eq!(got.detail.it.rs_pos_count[0], 0, "{name}");
    close(&name, &[got.detail.it.w_pos[0].to_f64()], &[3f64.exp()], |_| 0.02);
    assert!(got.dx.written(&name).iter().chain(&got.dy.written(&name)).all(|v| v.is_finite()), "{name}");

    // N = 1 with nothing else near: w− = exp(β (1 − λ)).
    let e = [1.0, 0.0, 1.0, 0.0];
    let case =
        Case::<T> { y: Matrix::new(&[-1.0, 0.0, 1.0, 0.0], 2, 2, TIGHT), x: Matrix::new(&e, 2, 2, TIGHT), ..case };
    let got = case.run::<G>(backend, ODD);
    assert_eq!((got.detail.it.neg_value[0].to_f64(), got.detail.it.rs_neg_count[0]), (1.0, 0), "{name}");
    close(&name, &[got.detail.it.w_neg[0].to_f64()], &[5f64.exp()], |_| 1e-3);
    assert!(got.dx.written(&name).iter().chain(&got.dy.written(&name)).all(|v| v.is_finite()), "{name}");
}

#[test]
fn a20_empty_sets_leave_a_finite_exponential() {
    on_every_backend(|backend| for_each_gradient!(backend, exponential_cell()));
}

fn separated_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let n = 20;
    let identity: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    let hinge = objective("hinge-con");
    // Perfect separation: P = 1, N = 0, and not one hinge open.
    let case = case::<T>(&identity, &identity, n, hinge, Normalization::L2);
    let got = case.run::<G>(backend, ODD);
    assert!(got.dx.written("dx").iter().chain(&got.dy.written("dy")).all(|&v| v == 0.0), "{}", backend.name());
    assert_eq!((got.report.active_it, got.report.active_ti, got.report.loss), (0, 0, 0.0));
    // A margin of exactly P − N is closed too: only a strict violation opens.
    let exact = Objective::new(TripletWeight::Hinge { margin: 1.0 }, PairWeight::Con).expect("valid");
    let got = Case { objective: exact, normalization: Normalization::None, ..case.clone() }.run::<G>(backend, ODD);
    assert_eq!((got.report.active_it, got.report.active_ti), (0, 0), "{} {}", backend.name(), T::DTYPE);
    // The other way round: every pair orthogonal, somebody else's row equal.
    let turned: Vec<f64> = identity[n..].iter().chain(&identity[..n]).copied().collect();
    let got = Case { y: Matrix::new(&turned, n, n, TIGHT), ..case }.run::<G>(backend, ODD);
    assert_eq!((got.report.active_it, got.report.mean_positive, got.report.mean_negative_it), (20, 0.0, 1.0));
    close("loss", &[got.report.loss], &[48.0], |_| 1e-5);
}

#[test]
fn a23_separated_batches_give_exactly_zero_for_the_hinge() {
    on_every_backend(|backend| for_each_gradient!(backend, separated_cell()));
}

#[test]
fn a24_one_positive_of_minus_one_moves_everybodys_threshold() {
    on_every_backend(|backend| {
        for name in ["con-lin_ms", "nca-sig_ms"] {
            let find = |seed: u64| {
                let mut case = plain::<f32>(24, 10, name, seed);
                let row = case.x.values()[5 * 10..6 * 10].to_vec();
                case.y.set_row(5, |k| -row[k]);
                case
            };
            // With Pmin = −1 every candidate is a member; only the positive sets can be unclear.
            let clear = |case: &Case<f32>| {
                let d = case.reference().detail;
                let eps = 0.1;
                let far = |n: &f64| d.positive.iter().all(|p| (p - n - eps).abs() > 1e-5);
                let apart = |a: &simgrad::AnchorDetail<f64>| {
                    a.neg_value.iter().zip(&a.second_value).all(|(n, s)| n - s > 1e-5) && a.neg_value.iter().all(far)
                };
                apart(&d.it) && apart(&d.ti)
            };
            let case = (0..100).map(find).find(clear).expect("a clear case");
            case.check::<f32>(backend, TIGHT);
            let got = case.run::<f32>(backend, TIGHT);
            assert!(got.detail.it.rs_neg_count.iter().all(|&c| c == 22), "{:?}", got.detail.it.rs_neg_count);
        }
    });
}

/// Every anchor picks the candidate 3, or not.
fn hub_case(n: usize, d: usize, hub: bool) -> Case<f32> {
    let mut case = plain::<f32>(n, d, "nca-con", 12);
    if hub {
        let row = case.y.values()[3 * d..4 * d].to_vec();
        for i in 0..n {
            let own = case.x.values()[i * d..][..d].to_vec();
            case.x.set_row(i, |k| if i == 3 { own[k] } else { row[k] + 0.02 * own[k] });
        }
    }
    case
}

#[test]
fn a25_a_hub_is_summed_in_a_fixed_order() {
    on_every_backend(|backend| {
        let (n, d) = (if is_cuda(backend) { 300 } else { 2000 }, 16);
        let case = hub_case(n, d, true);
        let got = case.run::<f32>(backend, TIGHT);
        let chosen = got.detail.it.neg_index.iter().filter(|&&j| j == 3).count();
        assert_eq!(chosen, n - 1, "{}", backend.name());
        let again = case.run::<f32>(backend, ODD);
        assert_eq!(got.dx.elements(), again.dx.elements());
        assert_eq!(got.dy.elements(), again.dy.elements());
        let want = case.reference();
        let largest = want.dy.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        close("hub", &got.dy.written("dy"), &want.dy, |_| 1e-5 * largest);
    });
}

#[test]
fn a25_a_hub_costs_at_most_three_times_the_random_case() {
    let backend = Backend::cpu();
    let (n, d) = (8192, 8);
    let best = |case: &Case<f32>| {
        let (mut dx, mut dy) = (Matrix::<f32>::poisoned(n, d, TIGHT), Matrix::<f32>::poisoned(n, d, TIGHT));
        let mut once = || {
            let start = std::time::Instant::now();
            let (x, y) = (case.x.view(), case.y.view());
            backend.goal_step(x, y, &case.objective, &case.options(), dx.view_mut(), dy.view_mut()).expect("goal_step");
            start.elapsed()
        };
        (0..5).map(|_| once()).min().expect("five runs")
    };
    let (random, hub) = (best(&hub_case(n, d, false)), best(&hub_case(n, d, true)));
    assert!(hub <= 3 * random, "hub {hub:?}, random {random:?}");
}

#[test]
fn a26_subnormal_numbers_are_kept() {
    on_every_backend(|backend| {
        let tiny = f64::from(1e-40f32);
        let none = Normalization::None;
        let x = [tiny, 0.0, 0.0, tiny];
        let y = [0.0, 1.0, 2.0, 1.0];
        // S = [0, 2 tiny; tiny, tiny].
        let case = case::<f32>(&x, &y, 2, objective("con-con"), none);
        let got = case.run::<f32>(backend, TIGHT);
        let name = format!("{} subnormal", backend.name());
        equal(&name, &to_f64(&got.detail.it.neg_value), &[2.0 * tiny, tiny]);
        equal(&name, &to_f64(&got.detail.positive), &[0.0, tiny]);
        equal(&name, &got.dy.written(&name), &case.reference().dy);
        assert!(case.reference().dy.iter().any(|&v| v != 0.0));

        let mut s = Matrix::<f32>::poisoned(2, 2, TIGHT);
        let options = CosineOptions { normalization: none, scale: 1.0 };
        backend
            .cosine_matrix(case.x.view().into(), case.y.view().into(), &options, s.view_mut().into())
            .expect("cosine_matrix");
        equal(&name, &s.written(&name), &[0.0, 2.0 * tiny, tiny, tiny]);

        // A subnormal gradient.
        let mut small = plain::<f32>(6, 5, "con-con", 3);
        small.normalization = none;
        small.upstream = 1e-40;
        let (got, want) = (small.run::<f32>(backend, TIGHT), small.reference());
        close(&name, &got.dx.written(&name), &want.dx, |_| 4.0 * 2f64.powi(-149));
        common::check::not_all_zero(&name, &got.dx.values());
    });
}

fn alignment_cell<T: Element, G: GradientOf<T>>(backend: &Backend, d: usize) {
    let n = 21;
    let run = |layout| {
        let shape = Shape { layout, ..Shape::new(n, d) };
        let got = Case::<T>::raw(&shape, objective("nca-sig"), 2).run::<G>(backend, layout);
        got.dx.written("dx").into_iter().chain(got.dy.written("dy")).collect::<Vec<_>>()
    };
    let plain = run(TIGHT);
    for layout in LAYOUTS {
        equal(&format!("{} {} {layout:?}", backend.name(), T::DTYPE), &run(layout), &plain);
    }
}

#[test]
fn a27_a28_neither_base_nor_stride_needs_more_than_element_alignment() {
    on_every_backend(|backend| {
        for d in [1, 7, 16, 33] {
            for_each_gradient!(backend, alignment_cell(d));
        }
    });
}

#[test]
fn a31_a32_ids_of_any_size_cost_nothing_and_mean_equality() {
    on_every_backend(|backend| {
        let n = 30;
        let case = plain::<f32>(n, 8, "con-con", 4);
        let (wide, small) = (group_ids(5, n, 7), {
            let ids = group_ids(5, n, 7);
            let mut kinds = ids.clone();
            kinds.sort_unstable();
            kinds.dedup();
            ids.iter().map(|id| kinds.iter().position(|k| k == id).expect("known") as i64).collect::<Vec<_>>()
        });
        assert!(wide.contains(&i64::MIN) && wide.contains(&i64::MAX));
        let run = |ids: &[i64]| {
            let grouped = Case { groups: Some((ids.to_vec(), ids.to_vec())), ..case.clone() };
            let got = grouped.run::<f32>(backend, TIGHT);
            (got.detail, got.dx.elements())
        };
        assert_eq!(run(&wide), run(&small), "{}", backend.name());

        // Ids that differ in the upper half only are different.
        let rows = [1i64, 1 << 32 | 1, i64::MAX];
        let x = Matrix::<f32>::new(&[1.0; 3], 3, 1, TIGHT);
        let options = MineOptions {
            normalization: Normalization::None,
            groups: Some(Groups { rows: &rows, cols: &[1, 1, 9_000_000_000_000_000_000] }),
            second: false,
        };
        let got = backend.mine(x.view(), x.view(), &options).expect("mine");
        assert_eq!((got.rows.index, got.cols.index), (vec![2, 0, 0], vec![1, 2, 0]), "{}", backend.name());
    });
}

#[test]
fn a33_an_index_out_of_range_is_left_out_and_counted() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[1.0, 2.0, 3.0, 4.0], 2, 2, TIGHT);
        let w = WeightTriples { rows: &[0, 2, -1, 1], cols: &[1, 0, 0, 2], values: &[1.0, 9.0, 9.0, 9.0] };
        let options = GradOptions { normalization: Normalization::None, ..GradOptions::default() };
        let (mut dx, mut dy) = (Matrix::<f32>::poisoned(2, 2, ODD), Matrix::<f32>::poisoned(2, 2, ODD));
        let report = backend
            .weighted_grad(x.view(), x.view(), &w, &options, dx.view_mut(), dy.view_mut())
            .expect("weighted_grad");
        assert_eq!((report.bad_index, report.overflow), (3, 0));
        equal("dx", &dx.written("dx"), &[3.0, 4.0, 0.0, 0.0]);
        equal("dy", &dy.written("dy"), &[0.0, 0.0, 1.0, 2.0]);
    });
}

#[test]
fn a34_parameters_out_of_range_are_refused_by_name() {
    let error = Objective::new(TripletWeight::Nca { tau: f64::NAN }, PairWeight::Con).expect_err("NaN");
    assert_eq!(error.to_string(), "Objective::new: `tau` is NaN, expected a finite number above 0");
}

fn overflow_cell<T: Element, G: GradientOf<T>>(backend: &Backend, upstream: f64, overflows: bool) {
    let mut case = plain::<T>(10, 8, "con-con", 2);
    case.upstream = upstream;
    let got = case.run::<G>(backend, ODD);
    let (dx, dy) = (got.dx.written("dx"), got.dy.written("dy"));
    let infinite = dx.iter().chain(&dy).filter(|v| v.is_infinite()).count();
    let name = format!("{} {}->{} upstream {upstream}", backend.name(), T::DTYPE, G::DTYPE);
    assert_eq!(infinite as u32, got.report.overflow, "{name}");
    assert_eq!(infinite > 0, overflows, "{name}");
    assert!(dx.iter().chain(&dy).all(|v| !v.is_nan()), "{name}");
    let want = case.reference();
    for (g, w) in dx.iter().zip(&want.dx).filter(|(g, _)| g.is_infinite()) {
        assert!(w.abs() > 6e4 && g.signum() == w.signum(), "{name}: {w} became {g}");
    }
    let triples = WeightTriples { rows: &[0], cols: &[0], values: &[T::Acc::from_f64(upstream)] };
    let options = GradOptions { normalization: Normalization::None, ..GradOptions::default() };
    let (mut dx, mut dy) = (Matrix::<G>::poisoned(10, 8, ODD), Matrix::<G>::poisoned(10, 8, ODD));
    let report = backend
        .weighted_grad(case.x.view(), case.y.view(), &triples, &options, dx.view_mut(), dy.view_mut())
        .expect("weighted_grad");
    let infinite = dx.written("dx").iter().chain(&dy.written("dy")).filter(|v| v.is_infinite()).count();
    assert_eq!(infinite as u32, report.overflow, "{name}");
}

#[test]
fn a35_overflowing_gradients_are_infinite_and_counted() {
    on_every_backend(|backend| {
        overflow_cell::<f16, f16>(backend, 1e6, true);
        overflow_cell::<f16, f16>(backend, 1.0, false);
        overflow_cell::<f16, f32>(backend, 1e6, false);
        overflow_cell::<half::bf16, half::bf16>(backend, 1e6, false);
        overflow_cell::<f32, f32>(backend, 1e6, false);
    });
}

/// Rows more than 2³⁰ elements apart: offsets beyond 2³¹ without the memory, as nothing between the rows is touched.
#[cfg(target_pointer_width = "64")]
#[test]
fn a36_offsets_beyond_2_to_the_31() {
    let backend = Backend::cpu();
    let (n, d, stride) = (4usize, 5usize, (1usize << 30) + 3);
    let (x, y) = pair(Kind::Sphere, 3, n, n, d);
    let Ok(mut far) = bytemuck::allocation::try_zeroed_slice_box::<f16>((n - 1) * stride + d) else {
        println!("no address space for the test");
        return;
    };
    for (at, v) in x.iter().enumerate() {
        far[at / d * stride + at % d] = f16::from_f64(*v);
    }
    let near = Matrix::<f16>::new(&x, n, d, TIGHT);
    let y = Matrix::<f16>::new(&y, n, d, TIGHT);
    let far = simgrad::MatRef::with_stride(&far[..], n, d, stride).expect("x");
    let options = MineOptions { second: true, ..MineOptions::default() };
    assert_eq!(backend.mine(far, y.view(), &options), backend.mine(near.view(), y.view(), &options));
    let step = |x| {
        let (mut dx, mut dy) = (Matrix::<f16>::poisoned(n, d, TIGHT), Matrix::<f16>::poisoned(n, d, TIGHT));
        let options = simgrad::StepOptions::default();
        let report = backend.goal_step(x, y.view(), &objective("nca-con"), &options, dx.view_mut(), dy.view_mut());
        (report.expect("goal_step"), dx.elements(), dy.elements())
    };
    assert_eq!(step(far), step(near.view()));
}

fn constant_cell<T: Element>(backend: &Backend) {
    let (n, m) = (20, 33);
    let (x, y) = (Matrix::<T>::new(&vec![0.5; n * 4], n, 4, TIGHT), Matrix::<T>::new(&vec![0.5; m * 4], m, 4, TIGHT));
    let recall = |ties| {
        let options = RecallOptions { ties, ..RecallOptions::default() };
        backend.recall(x.view(), y.view(), &options).expect("recall")
    };
    let lowest = recall(TiePolicy::LowestIndex);
    assert_eq!((lowest.x_to_y.r1, lowest.x_to_y.r5, lowest.x_to_y.r10), (5.0, 25.0, 50.0), "{}", backend.name());
    assert_eq!((recall(TiePolicy::Optimistic).rsum, recall(TiePolicy::Pessimistic).rsum), (600.0, 0.0));
    assert_eq!(lowest.y_to_x.without_positive, 13);
}

#[test]
fn a38_constant_embeddings_rank_as_the_policy_says() {
    on_every_backend(|backend| for_each_dtype!(backend, constant_cell()));
}

fn nan_rank_cell<T: Element>(backend: &Backend) {
    let (n, d) = (40, 6);
    let (x, y) = pair(Kind::Sphere, 1, n, n, d);
    let (x, mut y) = (Matrix::<T>::new(&x, n, d, TIGHT), Matrix::<T>::new(&y, n, d, TIGHT));
    y.set_row(11, |_| f64::NAN);
    let got = backend.ranks(x.view(), y.view(), &RecallOptions::default()).expect("ranks");
    let name = format!("{} {}", backend.name(), T::DTYPE);
    assert_eq!((got.rows[11], got.cols[11]), (39, 39), "{name}: a NaN positive ranks last");
    assert!((0..n).all(|i| i == 11 || got.rows[i] >= 1), "{name}: a NaN candidate ranks above everything");
}

#[test]
fn nan_never_improves_a_rank() {
    on_every_backend(|backend| for_each_dtype!(backend, nan_rank_cell()));
}
