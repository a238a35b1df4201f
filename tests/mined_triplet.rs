//! The triplet hinge on mined negatives against the f64 reference, difference quotients, and the GOAL step.

mod common;

use common::check::{bound, close, not_all_zero, rounding, smallest};
use common::data::{Kind, LAYOUTS, Layout, Matrix, ODD, Rng, TIGHT, group_ids, pair};
use common::{for_each_gradient, full, is_cuda, on_every_backend};
use simgrad::cpu::{self, Cpu};
use simgrad::reference::{self, MinedTripletReference};
use simgrad::{
    Backend, Element, Error, Fallback, GradientOf, Groups, Margin, MinedTriplet, MinedTripletReport, Normalization,
    Objective, PairWeight, Pick, Reduction, StepOptions, TripletWeight, WriteMode,
};

#[derive(Clone, Debug)]
struct Case<T> {
    x: Matrix<T>,
    y: Matrix<T>,
    groups: Option<(Vec<i64>, Vec<i64>)>,
    objective: MinedTriplet,
    normalization: Normalization,
    upstream: f64,
}

type Got<G> = (MinedTripletReport, Matrix<G>, Matrix<G>);

impl<T: Element> Case<T> {
    fn new(kind: Kind, (n, m, d): (usize, usize, usize), objective: MinedTriplet, seed: u64) -> Self {
        let (x, y) = pair(kind, seed, n, m, d);
        let layout = |at: u64| LAYOUTS[((seed + at) % 4) as usize];
        Self {
            x: Matrix::new(&x, n, d, layout(0)),
            y: Matrix::new(&y, m, d, layout(1)),
            groups: None,
            objective,
            normalization: Normalization::L2,
            upstream: 1.0,
        }
    }

    fn grouped(self, count: usize) -> Self {
        let groups = Some((group_ids(5, self.x.rows, count), group_ids(6, self.y.rows, count)));
        Self { groups, ..self }
    }

    fn options(&self, write: WriteMode) -> StepOptions<'_> {
        StepOptions {
            normalization: self.normalization,
            groups: self.groups.as_ref().map(|(rows, cols)| Groups { rows, cols }),
            upstream: self.upstream,
            write,
        }
    }

    fn reference(&self) -> MinedTripletReference {
        let options = self.options(WriteMode::Overwrite);
        reference::mined_triplet_step(self.x.view(), self.y.view(), &self.objective, &options)
    }

    fn run<G: GradientOf<T>>(&self, backend: &Backend, layout: Layout) -> Got<G> {
        let (d, options) = (self.x.cols, self.options(WriteMode::Overwrite));
        let mut dx = Matrix::<G>::poisoned(self.x.rows, d, layout);
        let mut dy = Matrix::<G>::poisoned(self.y.rows, d, layout);
        let (x, y) = (self.x.view(), self.y.view());
        let report = backend.mined_triplet_step(x, y, &self.objective, &options, dx.view_mut(), dy.view_mut());
        (report.expect("mined_triplet_step"), dx, dy)
    }

    /// Against the reference, where nothing that is decided depends on rounding.
    fn check<G: GradientOf<T>>(&self, name: &str, backend: &Backend, layout: Layout) {
        let name = format!("{name} {} {} {:?} {}", backend.name(), T::DTYPE, self.objective, self.x.rows);
        let (got, dx, dy) = self.run::<G>(backend, layout);
        let want = self.reference();
        let counts = |r: &MinedTripletReport| {
            [[r.pairs, r.empty_rows, r.empty_cols, r.zero_x], [r.zero_y, r.nan_x, r.nan_y, r.overflow]]
        };
        assert_eq!(counts(&got), counts(&want.report), "{name}");
        assert_eq!((got.triplets, got.active), (want.report.triplets, want.report.active), "{name}");
        let each = bound::<T>() * self.lengths();
        let means = |r: &MinedTripletReport| [r.mean_positive, r.mean_negative];
        close(&format!("{name} means"), &means(&got), &means(&want.report), |_| each);
        let scale = if self.objective.reduction == Reduction::Mean { 1.0 / f64::from(got.pairs.max(1)) } else { 1.0 };
        let loss = scale * (got.active as f64 + 1.0) * 2.0 * each;
        close(&format!("{name} loss"), &[got.loss], &[want.report.loss], |_| loss);
        for (part, got, want) in [("dx", dx, want.dx), ("dy", dy, want.dy)] {
            let name = format!("{name} {part}");
            let largest = want.iter().filter(|v| v.is_finite()).fold(0.0f64, |a, v| a.max(v.abs()));
            let one = |k: usize| want[k].abs() * rounding::<G>() + largest * 64.0 * bound::<T>() + smallest::<G>();
            close(&name, &got.written(&name), &want, |k| one(k) * 1.01);
        }
    }

    /// What a similarity is at most.
    fn lengths(&self) -> f64 {
        let largest = |m: &Matrix<T>| reference::row_norms(m.view()).into_iter().fold(0.0, f64::max);
        if self.normalization == Normalization::L2 { 1.0 } else { (largest(&self.x) * largest(&self.y)).max(1.0) }
    }
}

/// Multiples of 1/16 without normalisation: similarities are exact in every type, with many ties.
fn exact<T: Element>(shape: (usize, usize, usize), objective: MinedTriplet, seed: u64) -> Case<T> {
    let (n, m, d) = shape;
    let (mut x, y) = pair(Kind::Integers, seed, n, m, d);
    x.iter_mut().for_each(|v| *v /= 16.0);
    let (x, y) = (Matrix::new(&x, n, d, ODD), Matrix::new(&y, m, d, TIGHT));
    Case { x, y, normalization: Normalization::None, ..Case::new(Kind::Sphere, (n, m, d), objective, seed) }
}

/// Every kind of rule, with margins that are no multiples of a similarity's step.
fn objectives() -> Vec<MinedTriplet> {
    let margin = 0.21;
    let of = |objective: MinedTriplet| MinedTriplet { margin, ..objective };
    let semi_hard = of(MinedTriplet::semi_hard());
    vec![
        of(MinedTriplet::hardest()),
        semi_hard,
        MinedTriplet { fallback: Fallback::Easiest, reduction: Reduction::Mean, ..semi_hard },
        MinedTriplet { k: 5, skip: 1, margin: 0.7, ..semi_hard },
        of(MinedTriplet::random(3, 11)),
        of(MinedTriplet::distance_weighted(40, 12)),
        MinedTriplet { k: 1024, reduction: Reduction::Mean, margin: -0.1, ..MinedTriplet::hardest() },
        MinedTriplet { window: Some((-0.5, 0.5)), k: 2, ..of(MinedTriplet::hardest()) },
        MinedTriplet { below_positive: Some(Margin::Relative(0.25)), k: 33, ..of(MinedTriplet::random(33, 13)) },
    ]
}

const SHAPES: [(usize, usize, usize); 10] = [
    (0, 0, 3),
    (0, 5, 3),
    (4, 0, 3),
    (1, 1, 1),
    (2, 1, 5),
    (3, 17, 31),
    (33, 31, 8),
    (9, 130, 17),
    (130, 7, 40),
    (129, 131, 12),
];

fn exact_case<T: Element, G: GradientOf<T>>(backend: &Backend, shape: (usize, usize, usize), seed: u64) {
    for (at, objective) in objectives().into_iter().enumerate() {
        if is_cuda(backend) && !(at as u64 + seed).is_multiple_of(3) {
            continue;
        }
        let case = exact::<T>(shape, objective, seed + at as u64);
        case.check::<G>("exact", backend, LAYOUTS[at % 4]);
        let mut grouped = exact::<T>(shape, objective, seed + at as u64).grouped(6);
        grouped.upstream = -2.5;
        grouped.check::<G>("exact, groups", backend, LAYOUTS[(at + 1) % 4]);
    }
}

#[test]
fn every_rule_agrees_with_the_reference() {
    on_every_backend(|backend| {
        for (at, &shape) in SHAPES.iter().enumerate() {
            for_each_gradient!(backend, exact_case(shape, 100 * at as u64));
        }
    });
}

#[test]
fn random_shapes_agree_with_the_reference() {
    let backend = Backend::cpu();
    let mut rng = Rng::new(3);
    for seed in 0..if full() { 400 } else { 40 } {
        let shape = (1 + rng.below(90), 1 + rng.below(90), 1 + rng.below(30));
        exact_case::<f32, f32>(&backend, shape, 10_000 + seed);
    }
}

/// Away from every decision that rounding could change: other negatives, and hinges that are nearly closed.
fn clear<T: Element>(case: &Case<T>) -> bool {
    let safe = if T::DTYPE == simgrad::DType::F64 { 1e-11 } else { 4e-6 };
    let s = common::check::similarities(&case.x, &case.y, case.normalization);
    let (n, m) = (case.x.rows, case.y.rows);
    let apart = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.windows(2).all(|w| w[1] - w[0] > safe)
    };
    let rows = (0..n).all(|i| apart(s[i * m..][..m].to_vec()));
    let cols = (0..m).all(|j| apart((0..n).map(|i| s[i * m + j]).collect()));
    let open = (0..n.min(m)).all(|a| {
        let p = s[a * m + a];
        let kink = |s: f64| (case.objective.margin + s - p).abs() > safe;
        (0..m).all(|j| kink(s[a * m + j])) && (0..n).all(|i| kink(s[i * m + a]))
    });
    rows && cols && open
}

fn sphere_case<T: Element, G: GradientOf<T>>(backend: &Backend, objective: MinedTriplet) {
    // Pairs of these rows are close: the hinges of the others would be closed.
    let objective = MinedTriplet { margin: objective.margin + 0.5, ..objective };
    for (shape, groups) in [((19, 23, 24), 0), ((24, 17, 40), 5)] {
        let made = |seed| {
            let case = Case::<T>::new(Kind::Sphere, shape, objective, seed);
            if groups > 0 { case.grouped(groups) } else { case }
        };
        let case = (0..300).map(made).find(clear).expect("a case without close calls");
        case.check::<G>("sphere", backend, ODD);
        not_all_zero("dx", &case.reference().dx);
    }
}

#[test]
fn unit_rows_agree_with_the_reference() {
    on_every_backend(|backend| {
        for (at, objective) in objectives().into_iter().enumerate() {
            if !(is_cuda(backend) && at > 2) {
                for_each_gradient!(backend, sphere_case(objective));
            }
        }
    });
}

/// Gradients of the f64 path and of the reference are difference quotients of the loss that each reports.
#[test]
fn gradients_are_derivatives_of_the_loss() {
    let backend = Backend::cpu();
    let h = 1e-6;
    for objective in objectives() {
        for (shape, normalization, upstream) in
            [((6, 5, 4), Normalization::L2, 1.0), ((4, 7, 3), Normalization::None, -3.0)]
        {
            let made =
                |seed| Case { normalization, upstream, ..Case::<f64>::new(Kind::Sphere, shape, objective, seed) };
            // No pair's similarity changes by as much as the distance to the next decision.
            let far = |case: &Case<f64>| {
                let moved = |by: f64| {
                    let mut moved = case.clone();
                    moved.x.values().iter().enumerate().for_each(|(at, v)| {
                        *moved.x.at(at / shape.2, at % shape.2) = v + by * if at % 2 == 0 { 1.0 } else { -1.0 };
                    });
                    let mined = moved.reference().mined;
                    (mined.rows.index, mined.cols.index, moved.reference().report.active)
                };
                clear(case) && moved(1e-3) == moved(-1e-3)
            };
            let case = (0..500).map(made).find(far).expect("a case away from the kinks");
            let want = case.reference();
            let (_, dx, dy) = case.run::<f64>(&backend, TIGHT);
            let losses = |case: &Case<f64>| [case.reference().report.loss, case.run::<f64>(&backend, TIGHT).0.loss];
            for (of_y, len) in [(false, shape.0 * shape.2), (true, shape.1 * shape.2)] {
                for at in 0..len {
                    let moved = |by: f64| {
                        let mut moved = case.clone();
                        *(if of_y { &mut moved.y } else { &mut moved.x }).at(at / shape.2, at % shape.2) += by;
                        losses(&moved)
                    };
                    let (up, down) = (moved(h), moved(-h));
                    let quotients = [0, 1].map(|k| upstream * (up[k] - down[k]) / (2.0 * h));
                    let got = if of_y { [want.dy[at], dy.values()[at]] } else { [want.dx[at], dx.values()[at]] };
                    close(&format!("{objective:?} {shape:?} {of_y} {at}"), &got, &quotients, |_| {
                        1e-6 * quotients[0].abs().max(1.0)
                    });
                }
            }
        }
    }
}

/// With the hardest negative it is VSE++: the gradient and the loss of `hinge-con`.
#[test]
fn hardest_is_the_goal_objective_hinge_con() {
    on_every_backend(|backend| {
        for (reduction, groups) in [(Reduction::Sum, 0), (Reduction::Mean, 7)] {
            let goal = Objective::new(TripletWeight::Hinge { margin: 0.2 }, PairWeight::Con).expect("valid");
            let goal = goal.with_reduction(reduction);
            let objective = MinedTriplet { reduction, ..MinedTriplet::hardest() };
            let mut case = Case::<f32>::new(Kind::Sphere, (70, 70, 20), objective, 4);
            case.upstream = 0.75;
            let case = if groups > 0 { case.grouped(groups) } else { case };
            let (got, dx, dy) = case.run::<f32>(backend, TIGHT);
            let (mut want_x, mut want_y) =
                (Matrix::<f32>::poisoned(70, 20, TIGHT), Matrix::<f32>::poisoned(70, 20, TIGHT));
            let options = case.options(WriteMode::Overwrite);
            let (x, y) = (case.x.view(), case.y.view());
            let want =
                backend.goal_step(x, y, &goal, &options, want_x.view_mut(), want_y.view_mut()).expect("goal_step");
            assert!((got.loss - want.loss).abs() < 1e-5 * want.loss && want.loss > 0.0);
            assert_eq!(got.active, u64::from(want.active_it + want.active_ti));
            assert_eq!((got.empty_rows, got.empty_cols), (want.empty_it, want.empty_ti));
            close("dx", &dx.written("dx"), &want_x.values(), |_| 1e-6);
            close("dy", &dy.written("dy"), &want_y.values(), |_| 1e-6);
        }
    });
}

/// Semi-hard by hand, with similarities that are the numbers below: rows without normalisation against unit vectors.
#[test]
fn semi_hard_negatives_are_below_the_positive() {
    on_every_backend(|backend| {
        // P = 0.5, 0.25, 1.
        let s = [0.5, 0.75, 0.4375, 0.25, 0.25, 0.375, 0.9375, 0.125, 1.0];
        let unit = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let case = |fallback| {
            let objective = MinedTriplet { fallback, ..MinedTriplet::semi_hard() };
            let (x, y) = (Matrix::<f32>::new(&s, 3, 3, TIGHT), Matrix::new(&unit, 3, 3, TIGHT));
            let case = Case::new(Kind::Sphere, (3, 3, 3), objective, 0);
            Case { x, y, normalization: Normalization::None, ..case }
        };
        // Rows: 0 takes 0.4375 at 2, 0.1375 too much. 1 has nothing below 0.25. 2 takes 0.9375 at 0, 0.1375 too much.
        // Cols: 0 takes 0.25 at 1, which is far enough. 1 takes 0.125 at 2, 0.075 too much. 2 takes 0.4375 at 0, far enough.
        let (report, dx, _) = case(Fallback::Skip).run::<f32>(backend, TIGHT);
        close("loss", &[report.loss], &[0.1375 + 0.1375 + 0.075], |_| 1e-12);
        assert_eq!((report.triplets, report.active, report.empty_rows, report.empty_cols), (5, 3, 1, 0));
        close("dx", &dx.written("dx"), &[-1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 1.0, -1.0], |_| 0.0);
        // The easiest negative of row 1 is 0.25 at 0.
        let (report, dx, _) = case(Fallback::Easiest).run::<f32>(backend, TIGHT);
        close("loss", &[report.loss], &[0.1375 + 0.2 + 0.1375 + 0.075], |_| 1e-12);
        assert_eq!((report.triplets, report.active, report.empty_rows, report.empty_cols), (6, 4, 0, 0));
        close("dx", &dx.written("dx"), &[-1.0, 0.0, 1.0, 1.0, -2.0, 0.0, 1.0, 1.0, -1.0], |_| 0.0);
    });
}

/// A violation of exactly 0 is none.
#[test]
fn a_hinge_that_just_closes_has_no_weight() {
    on_every_backend(|backend| {
        // P = 0.75, 0.5 and 0.5 everywhere else: anchors of pair 0 are violated by 0, those of pair 1 by the margin.
        let (x, y) = ([0.75, 0.5, 0.5, 0.5], [1.0, 0.0, 0.0, 1.0]);
        let objective = MinedTriplet { margin: 0.25, ..MinedTriplet::hardest() };
        let case = Case {
            x: Matrix::<f32>::new(&x, 2, 2, TIGHT),
            y: Matrix::new(&y, 2, 2, TIGHT),
            normalization: Normalization::None,
            ..Case::new(Kind::Sphere, (2, 2, 2), objective, 0)
        };
        let (report, dx, _) = case.run::<f32>(backend, TIGHT);
        assert_eq!((report.loss, report.triplets, report.active), (0.5, 4, 2));
        close("dx", &dx.written("dx"), &[0.0, 1.0, 1.0, -2.0], |_| 0.0);
    });
}

/// More rows than 256 blocks of the device have, each of which has a part of the report.
#[test]
fn thousands_of_rows_without_a_pair_are_counted() {
    on_every_backend(|backend| {
        let mut case = exact::<f32>((2100, 1, 3), MinedTriplet { margin: 0.21, ..MinedTriplet::hardest() }, 8);
        case.x.set_row(2099, |_| 0.0);
        case.check::<f32>("thousands", backend, TIGHT);
    });
}

#[test]
fn nan_and_zero_rows_are_counted_and_reach_whom_they_meet() {
    on_every_backend(|backend| {
        let (n, d) = (6, 4);
        let mut case = Case::<f32>::new(Kind::Sphere, (n, n, d), MinedTriplet::hardest(), 9);
        case.y.set_row(2, |_| f64::NAN);
        case.x.set_row(4, |_| 0.0);
        let (report, dx, dy) = case.run::<f32>(backend, TIGHT);
        let counts = [report.zero_x, report.zero_y, report.nan_x, report.nan_y];
        assert_eq!(counts, [1, 0, 0, 1]);
        assert!(report.loss.is_nan());
        let nan_rows =
            |m: &Matrix<f32>| m.values().chunks(d).map(|row| row.iter().all(|v| v.is_nan())).collect::<Vec<_>>();
        // Row 2 of y is the hardest of every row, and NaN by itself; a zero row has the gradient 0.
        assert_eq!(nan_rows(&dx), [true, true, true, true, false, true]);
        assert!(dx.values()[4 * d..5 * d].iter().all(|v| *v == 0.0));
        assert!(nan_rows(&dy)[2]);
        // Where something is compared NaN is not selected, and neither is an anchor whose own pair it is.
        case.objective = MinedTriplet { margin: 0.21, ..MinedTriplet::semi_hard() };
        let (report, dx, _) = case.run::<f32>(backend, TIGHT);
        assert!(report.loss.is_finite() && report.empty_rows >= 1 && report.empty_cols >= 1);
        assert!(dx.values().iter().all(|v| v.is_finite()));
        case.check::<f32>("NaN", backend, TIGHT);
    });
}

/// An infinite row that no weight names leaves the others alone, with and without candidates beside it.
#[test]
fn rows_without_a_weight_do_not_matter() {
    on_every_backend(|backend| {
        let mut case = exact::<f32>((5, 5, 3), MinedTriplet { margin: 0.3, ..MinedTriplet::semi_hard() }, 21);
        for k in 0..3 {
            *case.x.at(0, k) = 1.0;
            *case.y.at(0, k) = f32::NEG_INFINITY;
        }
        // Its own pair is −∞: nothing is below that, and as a candidate it is far away.
        case.normalization = Normalization::None;
        for i in 1..5 {
            for k in 0..3 {
                *case.x.at(i, k) = case.x.at(i, k).abs() + 0.25;
            }
        }
        let (report, dx, dy) = case.run::<f32>(backend, TIGHT);
        assert_eq!((report.nan_y, report.empty_rows >= 1), (1, true));
        assert!(dx.values().iter().chain(&dy.values()).all(|v| v.is_finite()), "{report:?} {:?}", dx.values());
        case.check::<f32>("infinite", backend, TIGHT);
    });
}

#[test]
fn accumulates_and_overflows_as_announced() {
    on_every_backend(|backend| {
        let mut case = exact::<half::f16>((9, 9, 4), MinedTriplet { margin: 0.21, ..MinedTriplet::hardest() }, 5);
        let first = case.run::<f32>(backend, TIGHT);
        let (mut dx, mut dy) = (first.1.clone(), first.2.clone());
        let options = case.options(WriteMode::Accumulate);
        let (x, y) = (case.x.view(), case.y.view());
        let report = backend.mined_triplet_step(x, y, &case.objective, &options, dx.view_mut(), dy.view_mut());
        assert_eq!(report.expect("mined_triplet_step"), first.0);
        let twice = |m: &Matrix<f32>| m.values().iter().map(|v| 2.0 * v).collect::<Vec<_>>();
        close("dx", &dx.values(), &twice(&first.1), |_| 0.0);
        close("dy", &dy.values(), &twice(&first.2), |_| 0.0);
        case.upstream = 1e6;
        let (report, dx, dy) = case.run::<half::f16>(backend, TIGHT);
        let infinite = dx.values().iter().chain(&dy.values()).filter(|v| v.is_infinite()).count();
        assert!(infinite > 0 && report.overflow as usize == infinite, "{} {infinite}", report.overflow);
    });
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    for objective in objectives() {
        let case = Case::<f32>::new(Kind::Sphere, (300, 260, 24), objective, 2).grouped(30);
        let run = |threads| {
            let (mut dx, mut dy) = (Matrix::<f32>::poisoned(300, 24, TIGHT), Matrix::<f32>::poisoned(260, 24, TIGHT));
            let (cpu, options) = (Cpu::with_threads(threads).expect("threads"), case.options(WriteMode::Overwrite));
            let (x, y) = (case.x.view(), case.y.view());
            let report = cpu::mined_triplet_step(&cpu, x, y, &objective, &options, dx.view_mut(), dy.view_mut());
            (report.expect("mined_triplet_step"), dx, dy)
        };
        let (one, three) = (run(1), run(3));
        assert_eq!(one.0, three.0);
        assert!(one.1.same_buffer(&three.1) && one.2.same_buffer(&three.2), "{objective:?}");
        assert!(one.0.active > 0);
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[1.0; 12], 3, 4, TIGHT);
        let y = Matrix::<f32>::new(&[1.0; 8], 2, 4, TIGHT);
        let refused = |objective: MinedTriplet, options: &StepOptions<'_>, (rows, cols): (usize, usize), arg: &str| {
            let (mut dx, mut dy) = (Matrix::<f32>::poisoned(3, 4, TIGHT), Matrix::<f32>::poisoned(rows, cols, TIGHT));
            let untouched = (dx.clone(), dy.clone());
            let got = backend.mined_triplet_step(x.view(), y.view(), &objective, options, dx.view_mut(), dy.view_mut());
            let error = got.expect_err(arg);
            assert!(error.to_string().contains("mined_triplet_step") && error.to_string().contains(arg), "{error}");
            assert!(dx.same_buffer(&untouched.0) && dy.same_buffer(&untouched.1), "{arg}");
            error
        };
        let (plain, good) = (StepOptions::default(), MinedTriplet::default());
        let error = refused(MinedTriplet { margin: f64::NAN, ..good }, &plain, (2, 4), "objective.margin");
        assert!(matches!(error, Error::InvalidOption { .. }));
        refused(MinedTriplet { margin: f64::INFINITY, ..good }, &plain, (2, 4), "objective.margin");
        refused(MinedTriplet { k: 0, ..good }, &plain, (2, 4), "options.k");
        refused(MinedTriplet { k: 1025, ..good }, &plain, (2, 4), "options.k");
        refused(MinedTriplet { skip: 1025, ..good }, &plain, (2, 4), "options.skip");
        refused(MinedTriplet { window: Some((1.0, 0.0)), ..good }, &plain, (2, 4), "options.window");
        let margin = Some(Margin::Absolute(f64::NAN));
        refused(MinedTriplet { below_positive: margin, ..good }, &plain, (2, 4), "options.below_positive");
        refused(good, &plain, (3, 4), "dy.rows");
        refused(good, &plain, (2, 5), "dy.cols");
        let groups = Some(Groups { rows: &[1; 3], cols: &[1; 3] });
        refused(good, &StepOptions { groups, ..plain }, (2, 4), "groups.cols");
    });
}

#[test]
fn constructors_are_what_they_say() {
    assert_eq!(MinedTriplet::default(), MinedTriplet::hardest());
    assert_eq!(MinedTriplet::semi_hard().below_positive, Some(Margin::Absolute(0.0)));
    assert_eq!((MinedTriplet::random(4, 9).k, MinedTriplet::random(4, 9).pick), (4, Pick::Random { seed: 9 }));
    assert_eq!(MinedTriplet::distance_weighted(2, 8).pick, Pick::DistanceWeighted { seed: 8 });
}
