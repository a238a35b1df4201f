//! Random pairwise steps against the reference, and relations between steps.

mod common;

use common::check::close;
use common::data::{Kind, LAYOUTS, Matrix, TIGHT};
use common::pairwise::{PairwiseCase, pairwise_case, relative};
use common::{full, is_cuda, on_every_backend};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};
use simgrad::{Backend, Element, GradientOf, Normalization, PairwiseObjective};

/// What a random case is made of; every part shrinks towards its simplest.
#[derive(Clone, Debug)]
struct Plan {
    shape: (usize, usize, usize),
    seed: u64,
    dtype: usize,
    kind: usize,
    layout: usize,
    objective: usize,
    /// 0: nothing but the rows; then groups of some number of kinds; the last: everything.
    options: usize,
    single: bool,
    l2: bool,
}

fn plans(largest: usize) -> impl Strategy<Value = Plan> {
    let shape = (1..=largest, 1..=largest, 1..=largest.min(70));
    let look = (0usize..4, 0usize..3, 0usize..4, 0usize..PairwiseObjective::ALL.len());
    (shape, any::<u16>(), look, 0usize..5, any::<bool>(), any::<bool>()).prop_map(
        |(shape, seed, (dtype, kind, layout, objective), options, single, l2)| Plan {
            shape,
            seed: seed.into(),
            dtype,
            kind,
            layout,
            objective,
            options,
            single,
            l2,
        },
    )
}

fn check_plan<T: Element, G: GradientOf<T>>(backend: &Backend, plan: &Plan) {
    let (n, m, d) = plan.shape;
    let kind = [Kind::Sphere, Kind::Clustered, Kind::Hubs][plan.kind];
    let shape = (n, if plan.single { 0 } else { m }, d);
    let mut case = pairwise_case::<T>(kind, shape, PairwiseObjective::ALL[plan.objective], plan.seed);
    case.single = plan.single;
    case.normalization = if plan.l2 { Normalization::L2 } else { Normalization::None };
    let case = match plan.options {
        0 => case,
        4 => case.with_everything(plan.seed),
        kinds => case.grouped(kinds * kinds),
    };
    let got = case.run::<G>(backend, LAYOUTS[plan.layout]);
    // A rounded similarity may be on the other side of a threshold; in f64 none of these is.
    let discontinuous =
        matches!(case.objective.name(), "ms-mined" | "triplet-all" | "contrastive" | "lifted" | "ranked-list");
    if !discontinuous || T::DTYPE == simgrad::DType::F64 {
        case.check(&format!("{} {plan:?} {}", backend.name(), T::DTYPE), &got, 3.0 * relative::<T>());
    }
}

#[test]
fn random_steps_are_those_of_the_reference() {
    on_every_backend(|backend| {
        let (cases, largest) = match (is_cuda(backend), full()) {
            (false, false) => (300, 90),
            (false, true) => (3000, 200),
            (true, false) => (12, 40),
            (true, true) => (200, 140),
        };
        // The seed of the run is fixed: a failure is the same failure next time.
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let rng = TestRng::deterministic_rng(config.rng_algorithm);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let run = |plan: Plan| {
            match plan.dtype {
                0 => check_plan::<f32, f32>(backend, &plan),
                1 => check_plan::<f16, f32>(backend, &plan),
                3 if !is_cuda(backend) => check_plan::<f64, f64>(backend, &plan),
                _ => check_plan::<bf16, bf16>(backend, &plan),
            }
            Ok(())
        };
        if let Err(error) = runner.run(&plans(largest), run) {
            panic!("{}: {error}", backend.name());
        }
    });
}

fn case(objective: PairwiseObjective) -> PairwiseCase<f32> {
    pairwise_case(Kind::Sphere, (30, 41, 16), objective, 3).grouped(6)
}

/// The order of rows and columns permutes the gradients and changes nothing else.
#[test]
fn rows_and_columns_in_another_order() {
    on_every_backend(|backend| {
        for objective in PairwiseObjective::ALL {
            let mut plain = case(objective);
            if matches!(objective, PairwiseObjective::InfoNce { .. } | PairwiseObjective::TripletAll { .. }) {
                continue; // Their pairs are known by their numbers.
            }
            let first = plain.run::<f32>(backend, TIGHT);
            let reversed = |matrix: &Matrix<f32>| {
                let rows = matrix.values();
                let turned: Vec<f64> = rows.chunks(16).rev().flatten().copied().collect();
                Matrix::<f32>::new(&turned, matrix.rows, 16, TIGHT)
            };
            (plain.x, plain.y) = (reversed(&plain.x), reversed(&plain.y));
            if let Some((rows, cols)) = &mut plain.groups {
                rows.reverse();
                cols.reverse();
            }
            let second = plain.run::<f32>(backend, TIGHT);
            let largest = first.dx.values().iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let name = format!("{} {objective} reversed", backend.name());
            close(&name, &reversed(&second.dx).values(), &first.dx.values(), |_| 1e-5 * largest);
            close(&name, &reversed(&second.dy).values(), &first.dy.values(), |_| 1e-5 * largest);
        }
    });
}

/// A symmetric objective of exchanged sides exchanges the gradients.
#[test]
fn sides_exchanged() {
    on_every_backend(|backend| {
        for objective in [PairwiseObjective::InfoNce { scale: 7.0 }, PairwiseObjective::TripletAll { margin: 0.2 }] {
            let plain = case(objective);
            let first = plain.run::<f32>(backend, TIGHT);
            let groups = plain.groups.clone().map(|(rows, cols)| (cols, rows));
            let turned = PairwiseCase { x: plain.y.clone(), y: plain.x.clone(), groups, ..plain };
            let second = turned.run::<f32>(backend, TIGHT);
            let largest = first.dx.values().iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let name = format!("{} {objective} exchanged", backend.name());
            close(&name, &second.dy.values(), &first.dx.values(), |_| 1e-5 * largest);
            close(&name, &second.dx.values(), &first.dy.values(), |_| 1e-5 * largest);
            assert!((first.report.loss - second.report.loss).abs() < 1e-5 * first.report.loss.abs(), "{name}");
        }
    });
}

/// The length of a row does not matter, and the gradient is that much shorter.
#[test]
fn longer_rows_have_shorter_gradients() {
    on_every_backend(|backend| {
        for objective in PairwiseObjective::ALL {
            let plain = case(objective);
            let first = plain.run::<f32>(backend, TIGHT);
            let scaled: Vec<f64> = plain.x.values().iter().map(|v| v * 1024.0).collect();
            let longer = PairwiseCase { x: Matrix::new(&scaled, 30, 16, TIGHT), ..plain };
            let second = longer.run::<f32>(backend, TIGHT);
            let largest = first.dx.values().iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let back: Vec<f64> = second.dx.values().iter().map(|v| v * 1024.0).collect();
            close(&format!("{} {objective} longer", backend.name()), &back, &first.dx.values(), |_| 1e-6 * largest);
        }
    });
}
