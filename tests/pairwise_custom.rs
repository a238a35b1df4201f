//! Objectives of one's own, as a type and as text, against the built-in ones; on the CPU, and the GOAL grid on CUDA too.

mod common;

use common::check::close;
use common::data::{Kind, Matrix, ODD, TIGHT};
use common::goal::{Case, Shape};
use common::pairwise::{PairwiseCase, pairwise_case};
use simgrad::cpu::{self, Cpu};
use simgrad::expression::Expression;
use simgrad::{
    AnchorView, Backend, Element, GradientOf, Groups, Objective, PairObjective, PairView, PairWeight,
    PairwiseObjective, PairwiseOptions, PairwiseReport, TripletWeight, WriteMode,
};

fn custom<T: Element, G: GradientOf<T>>(
    case: &PairwiseCase<T>,
    objective: &dyn PairObjective,
    threads: usize,
) -> (PairwiseReport, Matrix<G>, Matrix<G>) {
    let mut dx = Matrix::<G>::poisoned(case.x.rows, case.x.cols, ODD);
    let mut dy = Matrix::<G>::poisoned(case.y.rows, case.y.cols, ODD);
    let options = case.options(WriteMode::Overwrite);
    let (cpu, x, y) = (Cpu::with_threads(threads).unwrap(), case.x.view(), case.y.view());
    let report = cpu::pairwise_step_custom(&cpu, x, y, objective, &options, dx.view_mut(), dy.view_mut());
    (report.unwrap(), dx, dy)
}

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

/// `tau` 0.2; the mean is over the rows with a positive, of which the test has 30.
const SUPCON: &str = "
    logit    = 5 * s
    negative = 5 / 30 * step(row.positives) * exp(logit - row.lse - softplus(row.lse_positives - row.lse))
    positive = 5 / 30 * (exp(logit - row.lse - softplus(row.lse_positives - row.lse)) - 1 / row.positives)
";

fn same<T: Element, G: GradientOf<T>>(case: &PairwiseCase<T>, text: &str, one_positive: bool, relative: f64) {
    let name = format!("{} as text, {}", case.objective, T::DTYPE);
    let expression = text.parse::<Expression>().unwrap().with_one_positive(one_positive);
    let (report, dx, dy) = custom::<T, G>(case, &expression, 2);
    let want = case.reference();
    let largest = want.dx.iter().chain(&want.dy).fold(0.0f64, |a, b| a.max(b.abs()));
    close(&name, &dx.written(&name), &want.dx, |_| relative * largest);
    close(&name, &dy.written(&name), &want.dy, |_| relative * largest);
    let counts = |r: &PairwiseReport| (r.positives, r.negatives, r.anchors_rows, r.anchors_cols);
    assert_eq!(counts(&report), counts(&want.report), "{name}");
}

#[test]
fn objectives_over_all_pairs_written_as_text() {
    let case = |objective, m| {
        let mut case = pairwise_case::<f64>(Kind::Sphere, (30, m, 12), objective, 3);
        case.upstream = 1.5;
        case
    };
    same::<f64, f64>(&case(PairwiseObjective::InfoNce { scale: 8.0 }, 30), CLIP, true, 1e-11);
    same::<f64, f64>(&case(PairwiseObjective::SigLip { scale: 5.0, bias: -2.0 }, 47), SIGLIP, true, 1e-11);
    let grouped = case(PairwiseObjective::SupCon { tau: 0.2 }, 47).grouped(4);
    same::<f64, f64>(&grouped, SUPCON, false, 1e-11);
    let mut narrow =
        pairwise_case::<half::bf16>(Kind::Sphere, (30, 30, 12), PairwiseObjective::InfoNce { scale: 8.0 }, 3);
    narrow.ignored = None;
    same::<half::bf16, f32>(&narrow, CLIP, true, 1e-5);
}

/// A GOAL objective as text: the same formula for row and column.
fn goal_text(objective: &Objective) -> String {
    let side = |side: &str| {
        let (p, n) = (format!("{side}.pair"), format!("{side}.hardest"));
        let triplet = match objective.triplet() {
            TripletWeight::Con => "1".to_owned(),
            TripletWeight::Hinge { margin } => format!("step({margin} + {n} - {p})"),
            TripletWeight::Nca { tau } => format!("sigmoid({tau} * ({n} - {p}))"),
            TripletWeight::Cir { tau, offset } => {
                format!("sigmoid({tau} * ({n} * {n} + (1 - {p}) * (1 - {p}) - {offset}))")
            }
            _ => panic!("unknown"),
        };
        format!("step({side}.negatives) * {triplet}")
    };
    let near = match objective.pair() {
        PairWeight::LinMs { eps } => format!("slack = {eps}\nnear_negative = hardest - s\nnear_positive = pair - s"),
        PairWeight::SigMs { alpha, beta, eps, .. } => format!(
            "slack = {eps}\nnear_negative = exp(-{beta} * (hardest - s))\nnear_positive = exp({alpha} * (pair - s))"
        ),
        _ => String::new(),
    };
    let pair = |side: &str| match objective.pair() {
        PairWeight::Con => ("1".to_owned(), "1".to_owned()),
        PairWeight::Lin => ("(1 - s)".to_owned(), "s".to_owned()),
        PairWeight::Sig { alpha, beta, lambda } => {
            (format!("sigmoid(-{alpha} * (s - {lambda}))"), format!("sigmoid({beta} * (s - {lambda}))"))
        }
        PairWeight::LinMs { .. } => {
            (format!("(1 - {side}.near_positives) * (1 - s)"), format!("(1 + {side}.near_negatives) * s"))
        }
        PairWeight::SigMs { alpha, beta, lambda, .. } => (
            format!("1 / (exp({alpha} * (s - {lambda})) + {side}.near_positives)"),
            format!("1 / (exp(-{beta} * (s - {lambda})) + {side}.near_negatives)"),
        ),
        _ => panic!("unknown"),
    };
    let ([row_positive, row_negative], [col_positive, col_negative]) =
        (<[String; 2]>::from(pair("row")), <[String; 2]>::from(pair("col")));
    format!(
        "{near}\nrow_triplet = {}\ncol_triplet = {}\n\
         positive = -(row_triplet * {row_positive} + col_triplet * {col_positive})\n\
         negative = hardest_of_row * row_triplet * {row_negative} + hardest_of_col * col_triplet * {col_negative}\n",
        side("row"),
        side("col")
    )
}

#[test]
fn the_goal_grid_written_as_text() {
    assert_eq!(Objective::all().len(), 20);
    for objective in Objective::all() {
        for groups in [0, 4] {
            let shape = Shape { groups, ..Shape::new(40, 9) };
            let goal = Case::<f64>::raw(&shape, objective, 5);
            let want = goal.reference();
            let mut case = pairwise_case::<f64>(Kind::Sphere, (40, 40, 9), PairwiseObjective::n_pair(), 5);
            (case.x, case.y, case.groups) = (goal.x.clone(), goal.y.clone(), goal.groups.clone());
            let expression: Expression = goal_text(&objective).parse().unwrap();
            let (_, dx, dy) = custom::<f64, f64>(&case, &expression, 2);
            let name = format!("{objective} as text, {groups} groups");
            let largest = want.dx.iter().chain(&want.dy).fold(1.0f64, |a, b| a.max(b.abs()));
            close(&name, &dx.written(&name), &want.dx, |_| 1e-11 * largest);
            close(&name, &dy.written(&name), &want.dy, |_| 1e-11 * largest);
            if matches!(objective.pair().name(), "lin_ms" | "sig_ms") {
                let detail = &want.detail;
                let members = |of: fn(&simgrad::AnchorDetail<f64>) -> &[u32]| {
                    of(&detail.it).iter().chain(of(&detail.ti)).filter(|count| **count > 0).count()
                };
                let some = (members(|a| &a.rs_pos_count), members(|a| &a.rs_neg_count));
                assert!(some.0 > 20 && some.1 > 20, "{name}: near pairs of {some:?} anchors");
            }
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn the_goal_grid_written_as_text_on_cuda() {
    use simgrad::cuda::host;
    let Some(cuda) = common::cuda_with_nvrtc() else { return };
    for objective in Objective::all() {
        for groups in [0, 4] {
            let shape = Shape { groups, ..Shape::new(40, 9) };
            let goal = Case::<f32>::raw(&shape, objective, 5);
            let expression: Expression = goal_text(&objective).parse().unwrap();
            let gradients = || (Matrix::<f32>::poisoned(40, 9, ODD), Matrix::<f32>::poisoned(40, 9, TIGHT));
            let ((mut dx, mut dy), (mut built_in_dx, mut built_in_dy)) = (gradients(), gradients());
            let (x, y) = (goal.x.view(), goal.y.view());
            let groups = goal.groups.as_ref().map(|(rows, cols)| Groups { rows, cols });
            let options = PairwiseOptions { groups, ..PairwiseOptions::default() };
            host::pairwise_step_custom(cuda, x, y, &expression, &options, dx.view_mut(), dy.view_mut()).unwrap();
            let options = simgrad::StepOptions { groups, ..simgrad::StepOptions::default() };
            let (built_dx, built_dy) = (built_in_dx.view_mut(), built_in_dy.view_mut());
            host::goal_step(cuda, x, y, &objective, &options, built_dx, built_dy).unwrap();
            let (name, want) = (format!("{objective} as text on CUDA, {groups:?}"), goal.reference());
            for (got, built_in, want) in [(&dx, &built_in_dx, &want.dx), (&dy, &built_in_dy, &want.dy)] {
                let (got, built_in) = (got.written(&name), built_in.written(&name));
                let largest = want.iter().fold(0.0f64, |a, b| a.max(b.abs()));
                close(&name, &got, &built_in, |_| 5e-6 * largest);
                close(&name, &got, want, |_| 1e-5 * largest);
            }
        }
    }
}

/// The sets of near pairs on a batch whose members can be counted, with more rows than columns: who is in them, and that
/// values of 0 are not in the divisor.
#[test]
fn near_pairs_are_those_of_the_definition() {
    struct Near {
        slack: Option<f64>,
    }
    impl PairObjective for Near {
        fn slack(&self) -> Option<f64> {
            self.slack
        }
        fn near_negative(&self, s: f64, anchor: &AnchorView) -> f64 {
            anchor.hardest - s
        }
        fn near_positive(&self, s: f64, anchor: &AnchorView) -> f64 {
            anchor.pair - s
        }
        // The gradient of x is W against the unit vectors y: the means themselves.
        fn weight(&self, pair: &PairView<'_>) -> f64 {
            match pair.positive {
                true => pair.row.near_negatives + 100.0 * pair.row.near_positives,
                false => pair.col.near_negatives + 100.0 * pair.col.near_positives,
            }
        }
    }
    // Rows of S, for y the unit vectors; P = 2, 3, 3.
    let s = [[2.0, 1.0, 4.0], [4.0, 3.0, 4.0], [1.0, 2.5, 3.0], [1.5, 0.5, 2.0]];
    let case = |ignored: Option<(Vec<bool>, Vec<bool>)>| {
        let mut case = pairwise_case::<f64>(Kind::Sphere, (4, 3, 3), PairwiseObjective::n_pair(), 1);
        case.x = Matrix::new(&s.concat(), 4, 3, TIGHT);
        case.y = Matrix::new(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3, 3, TIGHT);
        (case.normalization, case.ignored) = (simgrad::Normalization::None, ignored);
        case
    };
    let dx = |case: &PairwiseCase<f64>, slack| custom::<f64, f64>(case, &Near { slack }, 1).1.values();
    // Thresholds: near negatives S >= 2 − 0.5, near positives P_j <= N + 0.5.
    // Rows:  0: N 4 at 2; none; P 3, 3, mean of 2 − 3 twice.  1: N 4 at 0; 4 at 2, of difference 0; P 2 and 3, of which 3 − 3
    //        is not counted: 1.  2: N 2.5 at 1; none; P 2 and 3, again 1.
    // Cols:  0: N 4 at 1; 1.5 at 3: 2.5; P 3, 3: −1.  1: N 2.5 at 2; none; P 2 and 3: 1.  2: N 4 at 0; 4 at 1 and 2 at 3: 2;
    //        P 2 and 3: 1.
    let (col0, col1, col2) = (2.5 - 100.0, 100.0, 2.0 + 100.0);
    let want = [[-100.0, col1, col2], [col0, 100.0, col2], [col0, col1, 100.0], [col0, col1, col2]];
    assert_eq!(dx(&case(None), Some(0.5)), want.concat());
    assert_eq!(dx(&case(None), None), vec![0.0; 12], "not asked for");
    // Without column 1 and row 3, and so without pair 1. Rows: 0: P 3: −1.  1: no pair.  2: N 1 at 0; nobody is near.
    // Cols: 0: N 4 at 1; P 3: −1.  2: N 4 at 0; 4 at 1, of difference 0; P 2: 1.
    let fewer = case(Some((vec![false, false, false, true], vec![false, true, false])));
    let want = [[-100.0, 0.0, 100.0], [-100.0, 0.0, 100.0], [-100.0, 0.0, 0.0], [0.0; 3]];
    assert_eq!(dx(&fewer, Some(0.5)), want.concat());
}

/// The lowest index has the tie, as everywhere.
#[test]
fn ties_go_to_the_lowest_index() {
    struct Hardest;
    impl PairObjective for Hardest {
        fn weight(&self, pair: &PairView<'_>) -> f64 {
            f64::from(u8::from(!pair.positive && pair.hardest_of_row))
                + 100.0 * f64::from(u8::from(pair.hardest_of_col))
        }
    }
    let n = 300;
    let mut case = pairwise_case::<f32>(Kind::Sphere, (n, n, 2), PairwiseObjective::n_pair(), 1);
    let rows: Vec<f64> = (0..n).flat_map(|_| [1.0, 0.0]).collect();
    (case.x, case.y) = (Matrix::new(&rows, n, 2, TIGHT), Matrix::new(&rows, n, 2, TIGHT));
    case.normalization = simgrad::Normalization::None;
    let (_, dx, dy) = custom::<f32, f32>(&case, &Hardest, 2);
    // Everybody's is number 0, whose own is number 1: W is 1 in column 0 and at (0, 1), 100 in row 0 and at (1, 0).
    let want = |k: usize| match k {
        0 => 1.0 + 100.0 * (n as f64 - 1.0),
        1 => 1.0 + 100.0,
        _ => 1.0,
    };
    let dx: Vec<f64> = dx.values().chunks(2).map(|row| row[0]).collect();
    assert!(dx.iter().enumerate().all(|(i, v)| *v == want(i)), "{:?}", &dx[..4]);
    let turned = |k: usize| match k {
        0 => (n as f64 - 1.0) + 100.0,
        1 => 1.0 + 100.0,
        _ => 100.0,
    };
    let dy: Vec<f64> = dy.values().chunks(2).map(|row| row[0]).collect();
    assert!(dy.iter().enumerate().all(|(j, v)| *v == turned(j)), "{:?}", &dy[..4]);
}

#[test]
fn every_number_of_threads_gives_the_same_bits_and_masks_hold() {
    let expression: Expression = SIGLIP.parse().unwrap();
    let mut case =
        pairwise_case::<f32>(Kind::Sphere, (400, 500, 10), PairwiseObjective::SigLip { scale: 5.0, bias: -2.0 }, 7);
    case.ignored = Some(((0..400).map(|i| i % 7 == 0).collect(), (0..500).map(|j| j % 5 == 0).collect()));
    let one = custom::<f32, f32>(&case, &expression, 1);
    let three = custom::<f32, f32>(&case, &expression, 3);
    assert_eq!(one.0, three.0);
    assert!(one.1.same_buffer(&three.1) && one.2.same_buffer(&three.2));
    // Its mean is over all rows, the built-in one's over those that are not ignored.
    case.upstream = 342.0 / 400.0;
    case.check("masked", &case.run::<f32>(&Backend::cpu(), TIGHT), 1e-4);
    let want = case.reference();
    let largest = want.dx.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    close("masked dx", &one.1.values(), &want.dx, |_| 1e-5 * largest);
}

#[test]
fn nan_reaches_whom_it_meets() {
    let expression: Expression = SIGLIP.parse().unwrap();
    let mut case = pairwise_case::<f32>(Kind::Sphere, (6, 7, 4), PairwiseObjective::n_pair(), 8);
    case.y.set_row(3, |_| f64::NAN);
    let (report, dx, dy) = custom::<f32, f32>(&case, &expression, 1);
    assert!(dx.values().iter().all(|v| v.is_nan()), "every row meets it");
    let nan: Vec<bool> = dy.values().chunks(4).map(|row| row.iter().all(|v| v.is_nan())).collect();
    assert_eq!(nan, [false, false, false, true, false, false, false]);
    assert_eq!((report.nan_y, report.loss.is_nan()), (1, true));
}

#[test]
fn options_without_a_use_are_refused() {
    let expression: Expression = SIGLIP.parse().unwrap();
    let case = pairwise_case::<f32>(Kind::Sphere, (3, 4, 5), PairwiseObjective::n_pair(), 9);
    let cpu = Cpu::with_threads(1).unwrap();
    let refused = |options: &PairwiseOptions<'_>, arg: &str| {
        let (mut dx, mut dy) = (Matrix::<f32>::poisoned(3, 5, TIGHT), Matrix::<f32>::poisoned(4, 5, TIGHT));
        let untouched = (dx.clone(), dy.clone());
        let (x, y) = (case.x.view(), case.y.view());
        let got = cpu::pairwise_step_custom(&cpu, x, y, &expression, options, dx.view_mut(), dy.view_mut());
        assert!(got.unwrap_err().to_string().contains(arg), "{arg}");
        assert!(dx.same_buffer(&untouched.0) && dy.same_buffer(&untouched.1), "{arg}");
    };
    let plain = PairwiseOptions::default();
    refused(&PairwiseOptions { log_q: Some(&[0.0; 4]), ..plain }, "options.log_q");
    refused(&PairwiseOptions { col_weights: Some(&[0.0; 4]), ..plain }, "options.col_weights");
    refused(&PairwiseOptions { groups: Some(Groups { rows: &[1; 3], cols: &[1; 3] }), ..plain }, "groups.cols");
}
