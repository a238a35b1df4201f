//! Objectives written as text on CUDA, against the CPU's step in f64 and against the built-in objectives on CUDA.
#![cfg(feature = "cuda")]

mod common;

use common::cuda_with_nvrtc;
use common::data::{Kind, Layout, Matrix, ODD, TIGHT, WIDE, group_ids, pair};
use half::{bf16, f16};
use simgrad::cpu::{self, Cpu};
use simgrad::cuda::CompiledExpression;
use simgrad::cuda::host;
use simgrad::expression::Expression;
use simgrad::{
    DType, Element, Error, GradientOf, Groups, Normalization, PairwiseObjective, PairwiseOptions, PairwiseReport,
    WriteMode,
};

const CLIP: &str = "
    scale    = 8
    logit    = scale * s
    negative = scale / (2 * n) * (sigmoid(row.lse - row.lse_positives) * exp(logit - row.lse) + sigmoid(col.lse - col.lse_positives) * exp(logit - col.lse))
    positive = -scale / (2 * n) * (sigmoid(row.lse - logit) + sigmoid(col.lse - logit))
";

const SIGLIP: &str = "
    negative = 5 / n * sigmoid(5 * s - 2)
    positive = -5 / n * sigmoid(2 - 5 * s)
";

const SUPCON: &str = "
    logit    = 5 * s
    both     = row.lse + softplus(row.lse_positives - row.lse)
    negative = 5 / n * step(row.positives) * exp(logit - both)
    positive = 5 / n * (exp(logit - both) - 1 / row.positives)
";

/// VSE++, with everything else that formulas may look at in factors near 1.
const EVERYTHING: &str = "
    logit     = 2 * s + abs(s)
    sizes     = sqrt(m / n) + ln(1 + row.positives + col.positives) / (1 + row.negatives + col.negatives)
    hardness  = max(row.hardest, -1) - min(max(col.hardest, -1), 0.5)
    level     = sizes + 0.01 * softplus(max(min(row.lse, col.lse), -3)) + 0.1 * exp(hardness)
    negative  = level * (1 + hardest_of_row + 2 * hardest_of_col) * sigmoid(-s)
    positive  = -level * (1 - s) - 0.1 * step(s) * min(max(row.lse_positives, -9), col.lse_positives)
";

/// Uses the own pair, of which there is not always one.
const PAIRS: &str = "
    negative = step(0.3 + s - row.pair) + step(0.2 + s - col.pair)
    positive = -row.negatives
";

/// Means over near pairs.
const NEAR: &str = "
    slack         = 0.3
    near_negative = exp(2 * (s - hardest))
    near_positive = hardest + 0.05 - s
    negative      = (1 + row.near_negatives) * sigmoid(3 * s) + hardest_of_col * (2 - col.near_positives)
    positive      = -(1 + row.near_positives) * sigmoid(-3 * s) - col.near_negatives
";

const ALL: [&str; 6] = [CLIP, SIGLIP, SUPCON, EVERYTHING, PAIRS, NEAR];

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
    assert!(largest.is_finite(), "{name}: nothing to compare with");
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
    // The sum of terms of both signs.
    near("loss", got.loss, want.loss, 1.0 + 1e-2 * want.negatives as f64);
    near("mean_positive", got.mean_positive, want.mean_positive, 1.0);
    let counts = |r: &PairwiseReport| {
        let anchors = [r.anchors_rows, r.anchors_cols];
        ([r.positives, r.negatives], anchors, [r.zero_x, r.zero_y, r.nan_x, r.nan_y, r.overflow, r.reserved])
    };
    assert_eq!(counts(got), counts(want), "{name}");
    assert_eq!((got.d_scale, got.d_bias), (0.0, 0.0), "{name}");
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

fn inputs<T: Element>(case: &Case) -> [Matrix<T>; 2] {
    let (x, y) = pair(Kind::Sphere, 1, case.n, case.m, case.d);
    [Matrix::new(&x, case.n, case.d, case.layout), Matrix::new(&y, case.m, case.d, case.layout)]
}

fn expression(text: &str, one_positive: bool) -> Expression {
    text.parse::<Expression>().unwrap().with_one_positive(one_positive)
}

/// Compares with the same step on the CPU in f64.
fn run<T: Element, G: GradientOf<T>>(
    name: &str,
    [x, y]: [&Matrix<T>; 2],
    layout: Layout,
    expression: &Expression,
    options: &PairwiseOptions<'_>,
) {
    let Some(cuda) = cuda_with_nvrtc() else { return };
    let first = expression.source().lines().map(str::trim).find(|l| !l.is_empty()).unwrap();
    let name = format!("{name} `{first} …` {} {}x{}x{}", T::DTYPE, x.rows, y.rows, x.cols);
    let wide = |v: &Matrix<T>| Matrix::<f64>::new(&v.values(), v.rows, v.cols, TIGHT);
    let (wide_x, wide_y) = (wide(x), wide(y));
    let mut want_dx = Matrix::<f64>::poisoned(x.rows, x.cols, TIGHT);
    let mut want_dy = Matrix::<f64>::poisoned(y.rows, y.cols, TIGHT);
    let cpu = Cpu::with_threads(1).unwrap();
    let (dx, dy) = (want_dx.view_mut(), want_dy.view_mut());
    let want = cpu::pairwise_step_custom(&cpu, wide_x.view(), wide_y.view(), expression, options, dx, dy).unwrap();
    let mut dx = Matrix::<G>::poisoned(x.rows, x.cols, layout);
    let mut dy = Matrix::<G>::poisoned(y.rows, y.cols, layout);
    let (x, y) = (x.view(), y.view());
    let report = host::pairwise_step_custom(cuda, x, y, expression, options, dx.view_mut(), dy.view_mut()).unwrap();
    same_report(&name, &report, &want);
    close::<T, G>(&format!("{name} dx"), &dx.written(&name), &want_dx.values());
    close::<T, G>(&format!("{name} dy"), &dy.written(&name), &want_dy.values());
}

fn plain<T: Element, G: GradientOf<T>>(case: &Case, text: &str) {
    let [x, y] = inputs::<T>(case);
    run::<T, G>("plain", [&x, &y], case.layout, &expression(text, true), &PairwiseOptions::default());
}

#[test]
fn every_shape_and_type() {
    let shapes = [
        case(1, 1, 1),
        case(7, 7, 5),
        case(1, 9, 64),
        case(127, 130, 5),
        Case { n: 128, m: 128, d: 64, layout: WIDE },
        Case { n: 129, m: 40, d: 33, layout: ODD },
        case(9, 20, 513),
    ];
    for shape in &shapes {
        for text in ALL {
            plain::<f32, f32>(shape, text);
        }
        plain::<bf16, f32>(shape, CLIP);
        plain::<f16, f32>(shape, EVERYTHING);
    }
    plain::<bf16, bf16>(&shapes[3], CLIP);
    plain::<f16, f16>(&shapes[1], SIGLIP);
}

#[test]
fn blocks_with_several_tiles_and_columns_of_several_blocks() {
    // 18 tiles along the longer side go to 9 blocks, and 16 parts of the rows have 2 tiles or one.
    plain::<f32, f32>(&case(5, 2200, 3), EVERYTHING);
    plain::<f32, f32>(&case(2200, 5, 3), EVERYTHING);
    plain::<bf16, f32>(&case(300, 257, 8), CLIP);
    plain::<f32, f32>(&case(300, 257, 8), NEAR);
}

/// Groups, masks and weights.
struct Arrays {
    rows: Vec<i64>,
    cols: Vec<i64>,
    ignore_rows: Vec<bool>,
    ignore_cols: Vec<bool>,
    row_weights: Vec<f32>,
}

impl Arrays {
    fn new(n: usize, m: usize) -> Self {
        Self {
            rows: group_ids(3, n, 9),
            cols: group_ids(4, m, 9),
            ignore_rows: (0..n).map(|i| i % 7 == 3).collect(),
            ignore_cols: (0..m).map(|j| j % 5 == 2 || j == 128).collect(),
            row_weights: (0..n).map(|i| 1.5 + (i as f32 * 1.3).sin()).collect(),
        }
    }
}

fn with_arrays<T: Element, G: GradientOf<T>>(case: &Case, text: &str, one_positive: bool) {
    let ([x, y], arrays) = (inputs::<T>(case), Arrays::new(case.n, case.m));
    let expression = expression(text, one_positive);
    let groups = Some(Groups { rows: &arrays.rows, cols: &arrays.cols });
    let grouped = PairwiseOptions { groups, ..PairwiseOptions::default() };
    run::<T, G>("groups", [&x, &y], case.layout, &expression, &grouped);
    let everything = PairwiseOptions {
        upstream: -2.5,
        ignore_rows: Some(&arrays.ignore_rows),
        ignore_cols: Some(&arrays.ignore_cols),
        row_weights: Some(&arrays.row_weights),
        ..grouped
    };
    run::<T, G>("everything", [&x, &y], case.layout, &expression, &everything);
}

#[test]
fn groups_masks_and_weights() {
    for (text, one_positive) in [
        (CLIP, true),
        (SIGLIP, false),
        (SUPCON, false),
        (EVERYTHING, true),
        (EVERYTHING, false),
        (PAIRS, true),
        (NEAR, true),
        (NEAR, false),
    ] {
        with_arrays::<f32, f32>(&case(140, 150, 12), text, one_positive);
        with_arrays::<bf16, f32>(&case(60, 131, 24), text, one_positive);
        with_arrays::<f16, f32>(&case(33, 20, 7), text, one_positive);
    }
}

#[test]
fn rows_that_are_not_normalised() {
    let options = PairwiseOptions { normalization: Normalization::None, ..PairwiseOptions::default() };
    for layout in [TIGHT, ODD] {
        let case = Case { n: 20, m: 35, d: 16, layout };
        let [x, y] = inputs::<f32>(&case);
        run::<f32, f32>("raw", [&x, &y], layout, &expression(EVERYTHING, true), &options);
        let [x, y] = inputs::<bf16>(&case);
        run::<bf16, f32>("raw", [&x, &y], layout, &expression(CLIP, true), &options);
    }
}

#[test]
fn zero_rows_rows_that_are_not_finite_and_what_ignored_rows_hold() {
    let options = PairwiseOptions::default();
    let (ignore_rows, ignore_cols) =
        ([false, true, false, false, false, false, false], [false, false, true, false, true]);
    let masked = PairwiseOptions { ignore_rows: Some(&ignore_rows), ignore_cols: Some(&ignore_cols), ..options };
    for text in ALL {
        let expression = expression(text, true);
        let mut zeros = inputs::<f32>(&case(9, 12, 5));
        zeros[0].set_row(2, |_| 0.0);
        zeros[1].set_row(11, |_| 0.0);
        run::<f32, f32>("zeros", [&zeros[0], &zeros[1]], TIGHT, &expression, &options);
        let mut bad = inputs::<f32>(&case(9, 12, 5));
        bad[0].set_row(3, |k| if k == 1 { f64::NAN } else { 1.0 });
        bad[1].set_row(10, |k| if k == 0 { f64::INFINITY } else { 1.0 });
        run::<f32, f32>("not finite", [&bad[0], &bad[1]], TIGHT, &expression, &options);
        let mut bad = inputs::<bf16>(&case(9, 12, 5));
        bad[1].set_row(3, |_| f64::NAN);
        run::<bf16, f32>("not finite", [&bad[0], &bad[1]], TIGHT, &expression, &options);
        for normalization in [Normalization::L2, Normalization::None] {
            let [mut x, mut y] = inputs::<f32>(&case(7, 5, 4));
            x.set_row(1, |_| f64::NAN);
            y.set_row(2, |_| f64::NEG_INFINITY);
            y.set_row(4, |_| f64::NAN);
            run::<f32, f32>("ignored", [&x, &y], TIGHT, &expression, &PairwiseOptions { normalization, ..masked });
        }
        let [mut x, y] = inputs::<bf16>(&case(7, 5, 4));
        x.set_row(1, |_| f64::NAN);
        run::<bf16, f32>("ignored", [&x, &y], TIGHT, &expression, &masked);
    }
    // Of the same group: nobody's negative.
    let rows: [i64; 4] = [5, 5, 1, 2];
    let grouped = PairwiseOptions { groups: Some(Groups { rows: &rows, cols: &rows }), ..options };
    let [x, mut y] = inputs::<f32>(&case(4, 4, 6));
    y.set_row(1, |_| f64::NAN);
    run::<f32, f32>("same group", [&x, &y], TIGHT, &expression(SIGLIP, true), &grouped);
}

#[test]
fn empty_sets_have_gradient_zero() {
    for (n, m) in [(0, 0), (3, 0), (0, 3)] {
        plain::<f32, f32>(&case(n, m, 4), EVERYTHING);
        plain::<bf16, bf16>(&case(n, m, 4), CLIP);
    }
}

/// Every element is as similar to every other: rows and columns agree on the lowest index.
#[test]
fn ties_go_to_the_lowest_index() {
    let n = 300;
    let rows: Vec<f64> = (0..n).flat_map(|_| [1.0, 0.0]).collect();
    let x = Matrix::<f32>::new(&rows, n, 2, TIGHT);
    let options = PairwiseOptions { normalization: Normalization::None, ..PairwiseOptions::default() };
    let text = "positive = 0\nnegative = hardest_of_row + 100 * hardest_of_col";
    run::<f32, f32>("ties", [&x, &x], TIGHT, &expression(text, true), &options);
}

/// What is exactly as far away as the slack is near: every number here is exact.
#[test]
fn pairs_at_the_edge_of_the_slack_are_near() {
    // Rows of S, for y the unit vectors; P = 2, 3, 3. Near negatives are S >= 2 − 0.5, among them 1.5 of column 0; near
    // positives P_j <= N + 0.5, among them 3 of row 2 and of column 1, whose N is 2.5.
    let s = [2.0, 1.0, 4.0, 4.0, 3.0, 4.0, 1.0, 2.5, 3.0, 1.5, 0.5, 2.0];
    let x = Matrix::<f32>::new(&s, 4, 3, TIGHT);
    let y = Matrix::<f32>::new(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3, 3, TIGHT);
    let options = PairwiseOptions { normalization: Normalization::None, ..PairwiseOptions::default() };
    let text = "
        slack         = 0.5
        near_negative = hardest - s
        near_positive = hardest - s
        negative      = col.near_negatives + 100 * col.near_positives
        positive      = row.near_negatives + 100 * row.near_positives
    ";
    run::<f32, f32>("edge", [&x, &y], TIGHT, &expression(text, true), &options);
}

#[test]
fn a_logit_of_minus_infinity_adds_nothing() {
    let text = "
        logit    = ln(max(s, 0))
        negative = sigmoid(row.lse) + sigmoid(col.lse)
        positive = -sigmoid(row.lse_positives) - 2 * sigmoid(col.lse_positives)
    ";
    plain::<f32, f32>(&case(20, 40, 5), text);
}

#[test]
fn a_converged_batch_keeps_its_gradient() {
    // Logits 60 against 0: the weights are about e^-60, far below the range of f16.
    let text = CLIP.replace("= 8", "= 60");
    let mut x = Matrix::<bf16>::poisoned(5, 5, TIGHT);
    (0..5).for_each(|i| x.set_row(i, |k| f64::from(u8::from(k == i))));
    run::<bf16, f32>("converged", [&x, &x], TIGHT, &expression(&text, true), &PairwiseOptions::default());
}

/// Built-in and written objectives on the same device.
#[test]
fn the_built_in_objectives_written_as_text() {
    let Some(cuda) = cuda_with_nvrtc() else { return };
    let (n, m, d) = (70, 70, 20);
    let arrays = Arrays::new(n, m);
    let groups = Some(Groups { rows: &arrays.rows, cols: &arrays.cols });
    for (text, objective, groups) in [
        (CLIP, PairwiseObjective::InfoNce { scale: 8.0 }, None),
        (SIGLIP, PairwiseObjective::SigLip { scale: 5.0, bias: -2.0 }, None),
        (SIGLIP, PairwiseObjective::SigLip { scale: 5.0, bias: -2.0 }, groups),
        (SUPCON, PairwiseObjective::SupCon { tau: 0.2 }, groups),
    ] {
        let [x, y] = inputs::<f32>(&case(n, m, d));
        let options = PairwiseOptions { groups, upstream: 1.5, ..PairwiseOptions::default() };
        let gradients = || (Matrix::<f32>::poisoned(n, d, TIGHT), Matrix::<f32>::poisoned(m, d, TIGHT));
        let ((mut dx, mut dy), (mut built_dx, mut built_dy)) = (gradients(), gradients());
        let expression = expression(text, groups.is_none());
        let (x, y) = (x.view(), y.view());
        let report = host::pairwise_step_custom(cuda, x, y, &expression, &options, dx.view_mut(), dy.view_mut());
        let want = host::pairwise_step(cuda, x, y, &objective, &options, built_dx.view_mut(), built_dy.view_mut());
        let counts = |r: PairwiseReport| (r.positives, r.negatives, r.anchors_rows, r.anchors_cols);
        assert_eq!(counts(report.unwrap()), counts(want.unwrap()), "{objective}");
        close::<f32, f32>(&format!("{objective} dx"), &dx.values(), &built_dx.values());
        close::<f32, f32>(&format!("{objective} dy"), &dy.values(), &built_dy.values());
    }
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let Some(cuda) = cuda_with_nvrtc() else { return };
    let ([x, y], expression) = (inputs::<f32>(&case(9, 12, 5)), expression(CLIP, true));
    let step = |write| {
        let mut dx = Matrix::<f32>::new(&[7.0; 45], 9, 5, ODD);
        let mut dy = Matrix::<f32>::new(&[7.0; 60], 12, 5, WIDE);
        let options = PairwiseOptions { write, ..PairwiseOptions::default() };
        let (x, y) = (x.view(), y.view());
        host::pairwise_step_custom(cuda, x, y, &expression, &options, dx.view_mut(), dy.view_mut()).unwrap();
        [dx.written("dx"), dy.written("dy")].concat()
    };
    let (fresh, added) = (step(WriteMode::Overwrite), step(WriteMode::Accumulate));
    assert!(fresh.iter().zip(&added).all(|(f, a)| *a == f64::from(*f as f32 + 7.0)), "{fresh:?} {added:?}");
}

#[test]
fn wrong_arguments_are_named_and_nothing_is_written() {
    let Some(cuda) = cuda_with_nvrtc() else { return };
    let [x, y] = inputs::<f32>(&case(3, 4, 5));
    let refused = |text: &str, options: &PairwiseOptions<'_>, dx_rows: usize| {
        let (mut dx, mut dy) = (Matrix::<f32>::poisoned(dx_rows, 5, TIGHT), Matrix::<f32>::poisoned(4, 5, TIGHT));
        let before = (dx.clone(), dy.clone());
        let (x, y, expression) = (x.view(), y.view(), expression(text, true));
        let got = host::pairwise_step_custom(cuda, x, y, &expression, options, dx.view_mut(), dy.view_mut());
        assert!(dx.same_buffer(&before.0) && dy.same_buffer(&before.1));
        match got.expect_err("an error") {
            Error::ShapeMismatch { arg, .. } | Error::InvalidOption { arg, .. } => arg,
            other => panic!("{other}"),
        }
    };
    let none = PairwiseOptions::default();
    let four = [0.0f32; 4];
    assert_eq!(refused(CLIP, &none, 2), "dx.rows");
    assert_eq!(refused(CLIP, &PairwiseOptions { log_q: Some(&four), ..none }, 3), "options.log_q");
    assert_eq!(refused(CLIP, &PairwiseOptions { col_weights: Some(&four), ..none }, 3), "options.col_weights");
    assert_eq!(refused(CLIP, &PairwiseOptions { row_weights: Some(&four), ..none }, 3), "options.row_weights");
    assert_eq!(refused("negative = 1e300 * s\npositive = 0", &none, 3), "expression");

    let x = Matrix::<f64>::new(&[1.0; 6], 2, 3, TIGHT);
    let (mut dx, mut dy) = (Matrix::<f64>::poisoned(2, 3, TIGHT), Matrix::<f64>::poisoned(2, 3, TIGHT));
    let (x, expression) = (x.view(), expression(CLIP, true));
    let got = host::pairwise_step_custom(cuda, x, x, &expression, &none, dx.view_mut(), dy.view_mut());
    assert!(matches!(got, Err(Error::UnsupportedDType { op: "pairwise_step_custom", .. })), "{got:?}");
}

#[test]
fn an_expression_is_compiled_once() {
    let Some(cuda) = cuda_with_nvrtc() else { return };
    let compile = |text: &str, one_positive| {
        CompiledExpression::compile(cuda.kernels(), &expression(text, one_positive)).unwrap()
    };
    let first = compile(CLIP, true);
    // Other spaces and comments, the same formulas.
    let again = compile(&format!("# again\n{}", CLIP.replace(" + ", "+")), false);
    assert!(first.same_code(&again) && !first.same_code(&compile(SIGLIP, true)));
    assert!(first.one_positive() && !again.one_positive());
    assert!(again.source().contains("# again"));
}
