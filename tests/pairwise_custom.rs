//! Objectives of one's own, as a type and as text, against the built-in ones; on the CPU, and the GOAL grid on CUDA too.

mod common;

use common::check::close;
use common::data::{Kind, Matrix, ODD, TIGHT};
use common::goal::{Case, Shape};
use common::pairwise::{PairwiseCase, pairwise_case};
use simgrad::cpu::{self, Cpu};
use simgrad::expression::Expression;
use simgrad::{
    Backend, Element, GradientOf, Groups, Objective, PairObjective, PairView, PairWeight, PairwiseObjective,
    PairwiseOptions, PairwiseReport, TripletWeight, WriteMode,
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

/// A GOAL objective without relative similarities as text: the same formula for row and column.
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
    let (positive, negative) = match objective.pair() {
        PairWeight::Con => ("1".to_owned(), "1".to_owned()),
        PairWeight::Lin => ("(1 - s)".to_owned(), "s".to_owned()),
        PairWeight::Sig { alpha, beta, lambda } => {
            (format!("sigmoid(-{alpha} * (s - {lambda}))"), format!("sigmoid({beta} * (s - {lambda}))"))
        }
        _ => panic!("has relative similarities"),
    };
    format!(
        "row_triplet = {}\ncol_triplet = {}\npositive = -(row_triplet + col_triplet) * {positive}\n\
         negative = (hardest_of_row * row_triplet + hardest_of_col * col_triplet) * {negative}\n",
        side("row"),
        side("col")
    )
}

#[test]
fn the_goal_grid_written_as_text() {
    for objective in Objective::all().into_iter().filter(|o| !matches!(o.pair().name(), "lin_ms" | "sig_ms")) {
        for groups in [0, 4] {
            let shape = Shape { groups, ..Shape::new(40, 9) };
            let goal = Case::<f64>::raw(&shape, objective, 5);
            let want = goal.reference();
            let mut case = pairwise_case::<f64>(Kind::Sphere, (40, 40, 9), PairwiseObjective::n_pair(), 5);
            (case.x, case.y, case.groups) = (goal.x.clone(), goal.y.clone(), goal.groups.clone());
            let expression: Expression = goal_text(&objective).parse().unwrap();
            let (_, dx, dy) = custom::<f64, f64>(&case, &expression, 2);
            let name = format!("{objective} as text, {groups} groups");
            close(&name, &dx.written(&name), &want.dx, |_| 1e-11);
            close(&name, &dy.written(&name), &want.dy, |_| 1e-11);
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn the_goal_grid_written_as_text_on_cuda() {
    use simgrad::cuda::host;
    let Some(cuda) = common::cuda_with_nvrtc() else { return };
    for objective in Objective::all().into_iter().filter(|o| !matches!(o.pair().name(), "lin_ms" | "sig_ms")) {
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
