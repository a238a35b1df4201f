//! Gradients against difference quotients of the reported loss, for the objectives that have one.

mod common;

use common::check::close;
use common::data::{Kind, Matrix, TIGHT};
use common::goal::{Case, Shape};
use common::{for_each_gradient, is_cuda, on_every_backend};
use simgrad::{
    Backend, Element, GradientOf, LossKind, Normalization, Objective, PairWeight, Reduction, TripletWeight, reference,
};

/// The objectives with a potential, each with defaults and with parameters away from them.
fn integrable() -> Vec<Objective> {
    let sig = PairWeight::Sig { alpha: 3.0, beta: 7.0, lambda: 0.2 };
    let extra = [
        (TripletWeight::Con, sig),
        (TripletWeight::Hinge { margin: 0.7 }, PairWeight::Con),
        (TripletWeight::Hinge { margin: 50.0 }, PairWeight::Con),
        (TripletWeight::Nca { tau: 10.0 }, PairWeight::Con),
        (TripletWeight::Cir { tau: 6.0, offset: 0.2 }, PairWeight::Lin),
    ];
    let all = Objective::all().into_iter().filter(|o| o.loss_kind() == LossKind::Potential);
    all.chain(extra.map(|(t, p)| Objective::new(t, p).expect("valid"))).collect()
}

#[test]
fn six_of_the_twenty_objectives_have_a_potential() {
    let names: Vec<String> =
        Objective::all().iter().filter(|o| o.loss_kind() == LossKind::Potential).map(Objective::to_string).collect();
    assert_eq!(names, ["con-con", "con-lin", "con-sig", "hinge-con", "nca-con", "cir-lin"]);
}

/// Every partial derivative of `loss` at the case, by central differences.
fn differences(case: &Case<f64>, loss: impl Fn(&Case<f64>) -> f64) -> (Vec<f64>, Vec<f64>) {
    let h = 1e-5;
    let (n, d) = (case.x.rows, case.x.cols);
    let quotient = |of_y: bool, at: usize| {
        let moved = |by: f64| {
            let mut c = case.clone();
            let m = if of_y { &mut c.y } else { &mut c.x };
            *m.at(at / d, at % d) += by;
            loss(&c)
        };
        (moved(h) - moved(-h)) / (2.0 * h)
    };
    let all = |of_y| (0..n * d).map(|at| quotient(of_y, at)).collect();
    (all(false), all(true))
}

/// A case in f64 whose hardest negatives and hinges no difference quotient changes.
fn steady(shape: &Shape, objective: Objective) -> Case<f64> {
    let smooth = |case: &Case<f64>| {
        let detail = case.reference().detail;
        let clear = |a: &simgrad::AnchorDetail<f64>| {
            (0..shape.n).all(|i| {
                let kink = match case.objective.triplet() {
                    TripletWeight::Hinge { margin } => (margin + a.neg_value[i] - detail.positive[i]).abs(),
                    _ => 1.0,
                };
                a.neg_value[i] - a.second_value[i] > 1e-3 && kink > 1e-3
            })
        };
        clear(&detail.it) && clear(&detail.ti)
    };
    let case = |seed| Case::<f64>::raw(shape, objective, seed);
    (0..200).map(case).find(smooth).expect("a case away from the kinks")
}

fn shapes() -> Vec<Shape> {
    let unit = Shape::new(5, 4);
    let raw = Shape { normalization: Normalization::None, ..unit };
    let long = Shape { kind: Kind::HeavyTailed, ..Shape::new(4, 6) };
    let grouped = Shape { groups: 4, ..Shape::new(7, 3) };
    vec![unit, raw, long, grouped]
}

fn for_each_case(check: impl Fn(&str, &Case<f64>)) {
    for shape in shapes() {
        for objective in integrable() {
            for reduction in [Reduction::Sum, Reduction::Mean] {
                let mut case = steady(&shape, objective.with_reduction(reduction));
                let name = format!("{objective} {reduction:?} {shape:?}");
                check(&name, &case);
                case.upstream = -3.5;
                check(&name, &case);
            }
        }
    }
}

#[test]
fn reference_gradients_are_derivatives_of_the_loss() {
    for_each_case(|name, case| {
        let want = differences(case, |c| c.upstream * c.reference().report.loss);
        let got = case.reference();
        let scale = want.0.iter().chain(&want.1).fold(1.0, |m: f64, v| m.max(v.abs()));
        close(&format!("{name} dX"), &got.dx, &want.0, |_| 1e-6 * scale);
        close(&format!("{name} dY"), &got.dy, &want.1, |_| 1e-6 * scale);
    });
}

#[test]
fn f64_gradients_are_derivatives_of_the_loss() {
    let backend = Backend::cpu();
    let loss = |c: &Case<f64>| {
        let mut out = (Matrix::<f64>::poisoned(c.x.rows, c.x.cols, TIGHT), Matrix::poisoned(c.x.rows, c.x.cols, TIGHT));
        let (dx, dy) = (out.0.view_mut(), out.1.view_mut());
        let report = backend.goal_step(c.x.view(), c.y.view(), &c.objective, &c.options(), dx, dy);
        c.upstream * report.expect("goal_step").loss
    };
    for_each_case(|name, case| {
        let want = differences(case, loss);
        let got = case.run::<f64>(&backend, TIGHT);
        let scale = want.0.iter().chain(&want.1).fold(1.0, |m: f64, v| m.max(v.abs()));
        close(&format!("{name} dX"), &got.dx.written("dx"), &want.0, |_| 1e-6 * scale);
        close(&format!("{name} dY"), &got.dy.written("dy"), &want.1, |_| 1e-6 * scale);
    });
}

/// Along its own gradient the loss changes by the squared length of the gradient: a difference quotient that an f32
/// loss is precise enough for.
fn directional_cell<T: Element, G: GradientOf<T>>(backend: &Backend, shape: &Shape, objective: Objective) {
    let steady = steady(shape, objective);
    let typed = |x: &[f64], y: &[f64]| Case::<T> {
        x: Matrix::new(x, shape.n, shape.d, TIGHT),
        y: Matrix::new(y, shape.n, shape.d, TIGHT),
        groups: steady.groups.clone(),
        objective,
        normalization: shape.normalization,
        upstream: 1.0,
    };
    let (x, y) = (steady.x.values(), steady.y.values());
    let here = typed(&x, &y).run::<G>(backend, TIGHT);
    let (gx, gy) = (here.dx.written("dx"), here.dy.written("dy"));
    let square: f64 = gx.iter().chain(&gy).map(|v| v * v).sum();
    assert!(square > 0.0, "{objective}: a gradient of zeros proves nothing");
    let h = 2e-3 / square.sqrt();
    let moved = |by: f64| {
        let step = |a: &[f64], g: &[f64]| a.iter().zip(g).map(|(a, g)| a + by * g).collect::<Vec<_>>();
        typed(&step(&x, &gx), &step(&y, &gy)).run::<G>(backend, TIGHT).report.loss
    };
    let quotient = (moved(h) - moved(-h)) / (2.0 * h);
    let relative = quotient / square - 1.0;
    assert!(relative.abs() < 2e-2, "{} {objective} {shape:?}: {quotient} is not {square}", backend.name());
}

#[test]
fn f32_gradients_are_derivatives_of_the_loss() {
    on_every_backend(|backend| {
        for shape in &shapes() {
            for objective in integrable() {
                directional_cell::<f32, f32>(backend, shape, objective);
            }
        }
    });
}

/// With normalisation the gradient of a row is orthogonal to the row.
fn orthogonal_cell<T: Element, G: GradientOf<T>>(backend: &Backend, objective: Objective) {
    let (n, d) = (19, 21);
    let shape = Shape { kind: Kind::HeavyTailed, ..Shape::new(n, d) };
    let case = Case::<T>::raw(&shape, objective, 9);
    let got = case.run::<G>(backend, TIGHT);
    let norms = [reference::row_norms(case.x.view()), reference::row_norms(case.y.view())];
    for (gradient, rows, r) in [(&got.dx, &case.x, &norms[0]), (&got.dy, &case.y, &norms[1])] {
        let (g, x) = (gradient.written("gradient"), rows.values());
        for i in 0..n {
            let (g, x) = (&g[i * d..][..d], &x[i * d..][..d]);
            let dot: f64 = g.iter().zip(x).map(|(a, b)| a * b).sum::<f64>() / r[i];
            let length = g.iter().map(|v| v * v).sum::<f64>().sqrt();
            // What the Jacobian removes may be longer than what it leaves: up to the sum of |W| over the row, 2 n at
            // worst and 150 for the exponential weights.
            let removed = 300.0 * n as f64 / r[i];
            let allowed = length * common::check::rounding::<G>() * 4.0 + removed * common::check::bound::<T>();
            assert!(dot.abs() <= allowed, "{} {objective} row {i}: {dot:e} along the row, {allowed:e}", backend.name());
        }
    }
}

#[test]
fn the_gradient_is_orthogonal_to_a_normalised_row() {
    on_every_backend(|backend| {
        let names = if is_cuda(backend) {
            &["nca-con", "con-sig_ms"][..]
        } else {
            &["nca-con", "con-sig_ms", "cir-lin_ms", "hinge-lin"]
        };
        for name in names {
            for_each_gradient!(backend, orthogonal_cell(name.parse().expect("a name")));
        }
    });
}
