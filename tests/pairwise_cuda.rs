//! The pairwise step on CUDA against the f64 reference.
#![cfg(feature = "cuda")]

mod common;

use std::sync::OnceLock;

use common::data::{Kind, Layout, Matrix, ODD, TIGHT, WIDE, group_ids, pair};
use half::{bf16, f16};
use simgrad::cuda::host::{self, Cuda};
use simgrad::reference::{self, PairwiseReference};
use simgrad::{
    DType, Element, Error, GradientOf, Groups, Normalization, PairwiseObjective, PairwiseOptions, PairwiseReport,
    WriteMode,
};

fn cuda() -> Option<&'static Cuda> {
    static CUDA: OnceLock<Result<Cuda, Error>> = OnceLock::new();
    match CUDA.get_or_init(|| Cuda::new(0)) {
        Ok(cuda) => Some(cuda),
        Err(reason) => {
            assert!(!common::gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            eprintln!("note: skipped: {reason}");
            None
        }
    }
}

/// Every f32 element within 1e-5 of the largest; of 16-bit inputs the whole within 3e-3 (weights are rounded to bf16), and
/// with a 16-bit gradient another rounding.
#[track_caller]
fn close<T: Element, G: Element>(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    for (at, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(g.is_nan(), w.is_nan(), "{name} [{at}]: {g} {w}");
    }
    let finite = || got.iter().zip(want).filter(|(_, w)| !w.is_nan());
    let largest = finite().fold(0.0f64, |a, (_, w)| a.max(w.abs()));
    if T::DTYPE == DType::F32 {
        let worst = finite().fold(0.0f64, |a, (g, w)| a.max((g - w).abs()));
        assert!(worst <= 1e-5 * largest, "{name}: off by {worst:e} of {largest:e}");
        return;
    }
    let square = finite().map(|(_, w)| w * w).sum::<f64>();
    let error = finite().map(|(g, w)| (g - w) * (g - w)).sum::<f64>();
    let allowed = if G::DTYPE == DType::F32 { 3e-3 } else { 5e-3 };
    assert!(error.sqrt() <= allowed * square.sqrt(), "{name}: off by {:e}", (error / square).sqrt());
}

#[track_caller]
fn same_report(name: &str, got: &PairwiseReport, want: &PairwiseReport) {
    let near = |what: &str, g: f64, w: f64, scale: f64| {
        let same = (g.is_nan() && w.is_nan()) || (g - w).abs() <= 2e-5 * scale.max(w.abs());
        assert!(same, "{name}: {what} {g:e} {w:e}");
    };
    near("loss", got.loss, want.loss, 2e-2);
    near("d_scale", got.d_scale, want.d_scale, 1e-2);
    near("d_bias", got.d_bias, want.d_bias, 1e-2);
    near("mean_positive", got.mean_positive, want.mean_positive, 1.0);
    let counts = |r: &PairwiseReport| {
        let anchors = [r.anchors_rows, r.anchors_cols];
        ([r.positives, r.negatives], anchors, [r.zero_x, r.zero_y, r.nan_x, r.nan_y, r.overflow, r.reserved])
    };
    assert_eq!(counts(got), counts(want), "{name}");
}

struct Case {
    n: usize,
    m: usize,
    d: usize,
    layout: Layout,
}

const fn case(n: usize, m: usize, d: usize) -> Case {
    Case { n, m, d, layout: TIGHT }
}

fn run<T: Element, G: GradientOf<T>>(
    name: &str,
    [x, y]: [&Matrix<T>; 2],
    layout: Layout,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
) {
    let Some(cuda) = cuda() else { return };
    let name = format!("{name} {objective} {} {}x{}x{}", T::DTYPE, x.rows, y.rows, x.cols);
    let want: PairwiseReference = reference::pairwise_step(x.view(), y.view(), objective, options);
    let mut dx = Matrix::<G>::poisoned(x.rows, x.cols, layout);
    let mut dy = Matrix::<G>::poisoned(y.rows, y.cols, layout);
    let report =
        host::pairwise_step(cuda, x.view(), y.view(), objective, options, dx.view_mut(), dy.view_mut()).unwrap();
    same_report(&name, &report, &want.report);
    close::<T, G>(&format!("{name} dx"), &dx.written(&name), &want.dx);
    close::<T, G>(&format!("{name} dy"), &dy.written(&name), &want.dy);
}

fn inputs<T: Element>(case: &Case) -> [Matrix<T>; 2] {
    let (x, y) = pair(Kind::Sphere, 1, case.n, case.m, case.d);
    [Matrix::new(&x, case.n, case.d, case.layout), Matrix::new(&y, case.m, case.d, case.layout)]
}

fn plain<T: Element, G: GradientOf<T>>(case: &Case, objective: &PairwiseObjective) {
    let [x, y] = inputs::<T>(case);
    run::<T, G>("plain", [&x, &y], case.layout, objective, &PairwiseOptions::default());
}

const SHAPES: [Case; 9] = [
    case(1, 1, 1),
    case(7, 7, 5),
    case(1, 9, 64),
    case(127, 130, 5),
    Case { n: 128, m: 128, d: 64, layout: WIDE },
    Case { n: 129, m: 40, d: 33, layout: ODD },
    case(40, 129, 100),
    case(300, 257, 8),
    case(9, 20, 513),
];

#[test]
fn info_nce_over_ragged_shapes() {
    let objective = PairwiseObjective::ALL[0];
    for case in &SHAPES {
        plain::<f32, f32>(case, &objective);
        plain::<bf16, f32>(case, &objective);
        plain::<f16, f32>(case, &objective);
    }
    plain::<bf16, bf16>(&SHAPES[3], &objective);
    plain::<f16, f16>(&SHAPES[3], &objective);
}

#[test]
fn every_objective_over_ragged_shapes() {
    for objective in &PairwiseObjective::ALL[1..] {
        for case in [&SHAPES[1], &SHAPES[3], &SHAPES[5], &SHAPES[8]] {
            plain::<f32, f32>(case, objective);
            plain::<bf16, f32>(case, objective);
        }
        plain::<f16, f32>(&SHAPES[6], objective);
        plain::<f16, f16>(&SHAPES[1], objective);
    }
}

#[test]
fn blocks_with_several_tiles() {
    // 18 tiles along the longer side go to 9 blocks.
    for objective in &PairwiseObjective::ALL {
        plain::<f32, f32>(&case(5, 2200, 3), objective);
    }
    for name in ["infonce", "ms-mined", "circle", "ranked-list"] {
        with_everything::<bf16, f32>(&case(6, 2180, 9), &name.parse().unwrap());
    }
    for name in ["infonce", "triplet-all", "supcon"] {
        let objective = name.parse().unwrap();
        plain::<f32, f32>(&case(2200, 5, 3), &objective);
        with_everything::<bf16, f32>(&case(2180, 4, 9), &objective);
    }
}

/// Every option at once, as far as the objective has it.
struct Everything {
    rows: Vec<i64>,
    cols: Vec<i64>,
    ignore_rows: Vec<bool>,
    ignore_cols: Vec<bool>,
    row_weights: Vec<f32>,
    col_weights: Vec<f32>,
    log_q: Vec<f32>,
}

impl Everything {
    fn new(n: usize, m: usize) -> Self {
        let wave = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        Self {
            rows: group_ids(3, n, 9),
            cols: group_ids(4, m, 9),
            ignore_rows: (0..n).map(|i| i % 7 == 3).collect(),
            ignore_cols: (0..m).map(|j| j % 5 == 2 || j == 128).collect(),
            row_weights: wave(n, 1.3).iter().map(|v| 1.5 + v).collect(),
            col_weights: wave(m, 0.7).iter().map(|v| 1.5 + v).collect(),
            log_q: wave(m, 2.1),
        }
    }

    fn options(&self, objective: &PairwiseObjective) -> PairwiseOptions<'_> {
        let both = matches!(objective, PairwiseObjective::InfoNce { .. } | PairwiseObjective::TripletAll { .. });
        let softmax = matches!(objective, PairwiseObjective::InfoNce { .. } | PairwiseObjective::SupCon { .. });
        PairwiseOptions {
            upstream: -2.5,
            groups: Some(Groups { rows: &self.rows, cols: &self.cols }),
            ignore_rows: Some(&self.ignore_rows),
            ignore_cols: Some(&self.ignore_cols),
            row_weights: Some(&self.row_weights),
            col_weights: both.then_some(&self.col_weights),
            log_q: softmax.then_some(&self.log_q),
            ..PairwiseOptions::default()
        }
    }
}

fn with_everything<T: Element, G: GradientOf<T>>(case: &Case, objective: &PairwiseObjective) {
    let [x, y] = inputs::<T>(case);
    let everything = Everything::new(case.n, case.m);
    run::<T, G>("everything", [&x, &y], case.layout, objective, &everything.options(objective));
    let groups = PairwiseOptions {
        groups: Some(Groups { rows: &everything.rows, cols: &everything.cols }),
        ..PairwiseOptions::default()
    };
    run::<T, G>("groups", [&x, &y], case.layout, objective, &groups);
}

#[test]
fn groups_masks_weights_and_probabilities() {
    for objective in &PairwiseObjective::ALL {
        with_everything::<f32, f32>(&case(140, 150, 12), objective);
        with_everything::<bf16, f32>(&case(60, 131, 24), objective);
        with_everything::<f16, f32>(&case(33, 20, 7), objective);
    }
}

#[test]
fn rows_that_are_not_normalised() {
    for objective in &PairwiseObjective::ALL {
        let options = PairwiseOptions { normalization: Normalization::None, ..PairwiseOptions::default() };
        for layout in [TIGHT, ODD] {
            let case = Case { n: 20, m: 35, d: 16, layout };
            let [x, y] = inputs::<f32>(&case);
            run::<f32, f32>("raw", [&x, &y], layout, objective, &options);
            let [x, y] = inputs::<bf16>(&case);
            run::<bf16, f32>("raw", [&x, &y], layout, objective, &options);
        }
    }
}

fn single<T: Element, G: GradientOf<T>>(x: &Matrix<T>, objective: &PairwiseObjective, options: &PairwiseOptions<'_>) {
    let Some(cuda) = cuda() else { return };
    let name = format!("single {objective} {} {}x{}", T::DTYPE, x.rows, x.cols);
    let want = reference::pairwise_step_single(x.view(), objective, options);
    let mut dx = Matrix::<G>::poisoned(x.rows, x.cols, TIGHT);
    let report = host::pairwise_step_single(cuda, x.view(), objective, options, dx.view_mut()).unwrap();
    same_report(&name, &report, &want.report);
    close::<T, G>(&name, &dx.written(&name), &want.dx);
}

#[test]
fn a_set_with_itself() {
    for objective in &PairwiseObjective::ALL {
        for (n, d) in [(1, 3), (7, 5), (130, 20)] {
            let [x, _] = inputs::<f32>(&case(n, n, d));
            let everything = Everything::new(n, n);
            let options = PairwiseOptions {
                groups: Some(Groups { rows: &everything.rows, cols: &everything.rows }),
                upstream: 3.0,
                ..PairwiseOptions::default()
            };
            single::<f32, f32>(&x, objective, &options);
            single::<f32, f32>(&x, objective, &PairwiseOptions::default());
            let [x, _] = inputs::<bf16>(&case(n, n, d));
            single::<bf16, f32>(&x, objective, &options);
        }
    }
}

#[test]
fn zero_rows_and_rows_that_are_not_finite() {
    for objective in &PairwiseObjective::ALL {
        let mut zeros = inputs::<f32>(&case(9, 12, 5));
        zeros[0].set_row(2, |_| 0.0);
        zeros[1].set_row(11, |_| 0.0);
        zeros[1].set_row(2, |_| 0.0);
        run::<f32, f32>("zeros", [&zeros[0], &zeros[1]], TIGHT, objective, &PairwiseOptions::default());
        let mut halves = inputs::<bf16>(&case(9, 12, 5));
        halves[0].set_row(2, |_| 0.0);
        run::<bf16, f32>("zeros", [&halves[0], &halves[1]], TIGHT, objective, &PairwiseOptions::default());
        let mut bad = inputs::<f32>(&case(9, 12, 5));
        bad[0].set_row(3, |k| if k == 1 { f64::NAN } else { 1.0 });
        bad[1].set_row(10, |k| if k == 0 { f64::INFINITY } else { 1.0 });
        run::<f32, f32>("not finite", [&bad[0], &bad[1]], TIGHT, objective, &PairwiseOptions::default());
    }
}

#[test]
fn what_ignored_rows_hold_does_not_matter() {
    let (ignore_rows, ignore_cols) =
        ([false, true, false, false, false, false, false], [false, false, true, false, true]);
    for objective in &PairwiseObjective::ALL {
        let options = PairwiseOptions {
            ignore_rows: Some(&ignore_rows),
            ignore_cols: Some(&ignore_cols),
            ..PairwiseOptions::default()
        };
        let [mut x, mut y] = inputs::<f32>(&case(7, 5, 4));
        x.set_row(1, |_| f64::NAN);
        y.set_row(2, |_| f64::NEG_INFINITY);
        y.set_row(4, |_| f64::NAN);
        run::<f32, f32>("ignored", [&x, &y], TIGHT, objective, &options);
        run::<f32, f32>(
            "ignored",
            [&x, &y],
            TIGHT,
            objective,
            &PairwiseOptions { normalization: Normalization::None, ..options },
        );
        let [mut x, y] = inputs::<bf16>(&case(7, 5, 4));
        x.set_row(1, |_| f64::NAN);
        run::<bf16, f32>("ignored", [&x, &y], TIGHT, objective, &options);
    }
}

#[test]
fn a_bad_row_of_the_same_group_does_not_reach_the_anchor() {
    let rows: [i64; 4] = [5, 5, 1, 2];
    for objective in PairwiseObjective::ALL.iter().filter(|o| matches!(o.name(), "infonce" | "triplet-all")) {
        let options =
            PairwiseOptions { groups: Some(Groups { rows: &rows, cols: &rows }), ..PairwiseOptions::default() };
        let [x, mut y] = inputs::<f32>(&case(4, 4, 6));
        y.set_row(1, |_| f64::NAN);
        run::<f32, f32>("same group", [&x, &y], TIGHT, objective, &options);
        let [x, mut y] = inputs::<f16>(&case(4, 4, 6));
        y.set_row(1, |_| f64::INFINITY);
        run::<f16, f32>("same group", [&x, &y], TIGHT, objective, &options);
    }
}

#[test]
fn a_converged_batch_keeps_its_gradient() {
    // Logits 100 against 0: the weights are about e^-100, far below the range of f16.
    let unit = |i: usize| move |k: usize| f64::from(u8::from(k == i));
    for scale in [1.0 / 0.07, 60.0] {
        let mut x = Matrix::<bf16>::poisoned(5, 5, TIGHT);
        (0..5).for_each(|i| x.set_row(i, unit(i)));
        let objective = PairwiseObjective::InfoNce { scale };
        run::<bf16, f32>("converged", [&x, &x], TIGHT, &objective, &PairwiseOptions::default());
        let objective = PairwiseObjective::SupCon { tau: 1.0 / scale };
        run::<bf16, f32>("converged", [&x, &x], TIGHT, &objective, &PairwiseOptions::default());
    }
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let Some(cuda) = cuda() else { return };
    let objective = PairwiseObjective::ALL[0];
    let [x, y] = inputs::<f32>(&case(9, 12, 5));
    let step = |options: &PairwiseOptions<'_>, start: f64| {
        let mut dx = Matrix::<f32>::new(&[start; 45], 9, 5, ODD);
        let mut dy = Matrix::<f32>::new(&[start; 60], 12, 5, WIDE);
        host::pairwise_step(cuda, x.view(), y.view(), &objective, options, dx.view_mut(), dy.view_mut()).unwrap();
        [dx.written("dx"), dy.written("dy")].concat()
    };
    let fresh = step(&PairwiseOptions::default(), 7.0);
    let added = step(&PairwiseOptions { write: WriteMode::Accumulate, ..PairwiseOptions::default() }, 7.0);
    assert!(fresh.iter().zip(&added).all(|(f, a)| *a == f64::from(*f as f32 + 7.0)), "{fresh:?} {added:?}");
}

#[test]
fn overflow_to_infinity_is_counted() {
    let Some(cuda) = cuda() else { return };
    let objective = PairwiseObjective::ALL[0];
    let [x, y] = inputs::<f16>(&case(3, 3, 4));
    let options = PairwiseOptions { upstream: 1e9, ..PairwiseOptions::default() };
    let (mut dx, mut dy) = (Matrix::<f16>::poisoned(3, 4, TIGHT), Matrix::<f16>::poisoned(3, 4, TIGHT));
    let report =
        host::pairwise_step(cuda, x.view(), y.view(), &objective, &options, dx.view_mut(), dy.view_mut()).unwrap();
    let infinite = dx.written("dx").iter().chain(&dy.written("dy")).filter(|v| v.is_infinite()).count();
    assert!(infinite > 0 && report.overflow as usize == infinite, "{infinite} {report:?}");
}

#[test]
fn empty_sets_have_gradient_zero() {
    let Some(cuda) = cuda() else { return };
    for objective in &PairwiseObjective::ALL {
        for (n, m) in [(0, 0), (3, 0), (0, 3)] {
            let [x, y] = inputs::<f32>(&case(n, m, 4));
            run::<f32, f32>("empty", [&x, &y], TIGHT, objective, &PairwiseOptions::default());
        }
        let none = Matrix::<f32>::poisoned(0, 4, TIGHT);
        let mut dx = none.clone();
        let report =
            host::pairwise_step_single(cuda, none.view(), objective, &PairwiseOptions::default(), dx.view_mut())
                .unwrap();
        assert_eq!(report, PairwiseReport::default());
    }
}

#[test]
fn wrong_arguments_are_named() {
    let Some(cuda) = cuda() else { return };
    let [x, y] = inputs::<f32>(&case(3, 4, 5));
    let refused = |objective: PairwiseObjective, options: PairwiseOptions<'_>, dx_rows: usize| {
        let (mut dx, mut dy) = (Matrix::<f32>::poisoned(dx_rows, 5, TIGHT), Matrix::<f32>::poisoned(4, 5, TIGHT));
        let before = dy.clone();
        let error = host::pairwise_step(cuda, x.view(), y.view(), &objective, &options, dx.view_mut(), dy.view_mut())
            .expect_err("an error");
        assert!(dy.same_buffer(&before));
        error
    };
    let (info_nce, sig_lip, none) = (PairwiseObjective::ALL[0], PairwiseObjective::ALL[1], PairwiseOptions::default());
    let arg = |e: &Error| match e {
        Error::ShapeMismatch { arg, .. } | Error::InvalidOption { arg, .. } => *arg,
        _ => panic!("{e}"),
    };
    let five = [0.0f32; 5];
    let four = [0.0f32; 4];
    let masks = [false; 2];
    assert_eq!(arg(&refused(PairwiseObjective::InfoNce { scale: -1.0 }, none, 3)), "objective.scale");
    assert_eq!(arg(&refused(info_nce, none, 2)), "dx.rows");
    assert_eq!(arg(&refused(info_nce, PairwiseOptions { log_q: Some(&five), ..none }, 3)), "options.log_q");
    assert_eq!(arg(&refused(sig_lip, PairwiseOptions { log_q: Some(&four), ..none }, 3)), "options.log_q");
    assert_eq!(arg(&refused(sig_lip, PairwiseOptions { col_weights: Some(&four), ..none }, 3)), "options.col_weights");
    assert_eq!(arg(&refused(info_nce, PairwiseOptions { row_weights: Some(&four), ..none }, 3)), "options.row_weights");
    assert_eq!(
        arg(&refused(info_nce, PairwiseOptions { ignore_rows: Some(&masks), ..none }, 3)),
        "options.ignore_rows"
    );
    assert_eq!(
        arg(&refused(info_nce, PairwiseOptions { ignore_cols: Some(&masks), ..none }, 3)),
        "options.ignore_cols"
    );
    let groups = Groups { rows: &[1, 2, 3], cols: &[1, 2, 3] };
    assert_eq!(arg(&refused(info_nce, PairwiseOptions { groups: Some(groups), ..none }, 3)), "groups.cols");
}
