//! Random shapes, strides, element types, groups and ties against the reference.

mod common;

use common::check::{bound, close, hardest, mine_reference, similarities};
use common::data::{Kind, LAYOUTS, Matrix, group_ids, pair, to_f64};
use common::goal::{Case, Shape, counters};
use common::{full, is_cuda, on_every_backend};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use simgrad::{
    Backend, Element, GradientOf, Groups, MineOptions, Normalization, Objective, RecallOptions, TiePolicy, reference,
};

/// What a random case is made of; every part shrinks towards its simplest.
#[derive(Clone, Debug)]
struct Plan {
    n: usize,
    m: usize,
    d: usize,
    seed: u64,
    dtype: usize,
    kind: usize,
    layouts: (usize, usize, usize),
    groups: usize,
    l2: bool,
    objective: usize,
    second: bool,
}

fn plans(largest: usize) -> impl Strategy<Value = Plan> {
    let shape = (1..=largest, 1..=largest, 1..=largest, any::<u16>());
    let look = (0usize..4, 0usize..5, (0usize..4, 0usize..4, 0usize..4), 0usize..6, any::<bool>());
    (shape, look, 0usize..20, any::<bool>()).prop_map(
        |((n, m, d, seed), (dtype, kind, layouts, groups, l2), objective, second)| Plan {
            n,
            m,
            d,
            seed: seed.into(),
            dtype,
            kind,
            layouts,
            groups,
            l2,
            objective,
            second,
        },
    )
}

fn check(backend: &Backend, test: impl Fn(&Plan)) {
    let (cases, largest) = match (is_cuda(backend), full()) {
        (false, false) => (400, 90),
        (false, true) => (5000, 200),
        (true, false) => (12, 50),
        (true, true) => (300, 150),
    };
    // The seed of the run is fixed: a failure is the same failure next time.
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let run = |plan: Plan| {
        test(&plan);
        Ok(())
    };
    if let Err(error) = runner.run(&plans(largest), run) {
        panic!("{}: {error}", backend.name());
    }
}

/// Calls `$f` for the plan's element type, and for its gradient type where `$f` has one.
macro_rules! by_dtype {
    ($backend:ident, $plan:ident, $f:ident, no gradient) => {
        match $plan.dtype {
            0 => $f::<f32>($backend, $plan),
            1 => $f::<f16>($backend, $plan),
            3 if !is_cuda($backend) => $f::<f64>($backend, $plan),
            _ => $f::<bf16>($backend, $plan),
        }
    };
    ($backend:ident, $plan:ident, $f:ident) => {
        match $plan.dtype {
            0 => $f::<f32, f32>($backend, $plan),
            1 => $f::<f16, f16>($backend, $plan),
            2 => $f::<bf16, f32>($backend, $plan),
            _ if is_cuda($backend) => $f::<bf16, bf16>($backend, $plan),
            _ => $f::<f64, f64>($backend, $plan),
        }
    };
}

impl Plan {
    /// Integers tie and are exact; other numbers come with normalisation or without.
    fn kind(&self) -> Kind {
        if self.l2 { Kind::FLOATS[self.kind] } else { Kind::Integers }
    }
    fn normalization(&self) -> Normalization {
        if self.l2 { Normalization::L2 } else { Normalization::None }
    }
    fn inputs<T: Element>(&self) -> (Matrix<T>, Matrix<T>) {
        let (x, y) = pair(self.kind(), self.seed, self.n, self.m, self.d);
        let layout = |k: usize| LAYOUTS[k];
        (
            Matrix::new(&x, self.n, self.d, layout(self.layouts.0)),
            Matrix::new(&y, self.m, self.d, layout(self.layouts.1)),
        )
    }
    fn ids(&self) -> Option<(Vec<i64>, Vec<i64>)> {
        (self.groups > 0)
            .then(|| (group_ids(self.seed, self.n, self.groups), group_ids(!self.seed, self.m, self.groups)))
    }
}

fn mine_case<T: Element>(backend: &Backend, plan: &Plan) {
    let (x, y) = plan.inputs::<T>();
    let ids = plan.ids();
    let groups = ids.as_ref().map(|(rows, cols)| Groups { rows, cols });
    let options = MineOptions { normalization: plan.normalization(), groups, second: plan.second };
    let got = backend.mine(x.view(), y.view(), &options).expect("mine");
    let want = mine_reference(&x, &y, &options);
    let (s, m) = (similarities(&x, &y, options.normalization), plan.m);
    let bound = if plan.l2 { bound::<T>() } else { 0.0 };
    close("positive", &to_f64(&got.positive), &want.positive, |_| bound);
    hardest("rows", (&to_f64(&got.rows.value), &got.rows.index), &want.rows, |i, j| s[i * m + j], bound);
    hardest("cols", (&to_f64(&got.cols.value), &got.cols.index), &want.cols, |j, i| s[i * m + j], bound);
    if plan.second {
        close("rows second", &to_f64(&got.rows.second), &want.rows.second, |_| bound);
        close("cols second", &to_f64(&got.cols.second), &want.cols.second, |_| bound);
    }
}

#[test]
fn mining() {
    on_every_backend(|backend| check(backend, |plan| by_dtype!(backend, plan, mine_case, no gradient)));
}

fn ranks_case<T: Element>(backend: &Backend, plan: &Plan) {
    // Only exact scores have one right rank.
    let plan = Plan { l2: false, ..plan.clone() };
    let (x, y) = plan.inputs::<T>();
    let ids = plan.ids();
    let groups = ids.as_ref().map(|(rows, cols)| Groups { rows, cols });
    let ties = [TiePolicy::LowestIndex, TiePolicy::Optimistic, TiePolicy::Pessimistic][plan.kind % 3];
    let options = RecallOptions { normalization: Normalization::None, groups, ties };
    let got = backend.ranks(x.view(), y.view(), &options).expect("ranks");
    assert_eq!(got, reference::ranks(x.view(), y.view(), &options));
}

#[test]
fn ranks() {
    on_every_backend(|backend| check(backend, |plan| by_dtype!(backend, plan, ranks_case, no gradient)));
}

fn step_case<T: Element, G: GradientOf<T>>(backend: &Backend, plan: &Plan) {
    let objective = Objective::all()[plan.objective];
    let shape = Shape {
        kind: plan.kind(),
        n: plan.n,
        d: plan.d.max(3),
        normalization: plan.normalization(),
        layout: LAYOUTS[plan.layouts.0],
        groups: plan.groups,
        upstream: 1.0,
    };
    let output = LAYOUTS[plan.layouts.2];
    if plan.l2 {
        let kind = if shape.kind == Kind::NearDuplicate { Kind::Hubs } else { shape.kind };
        let clear = Case::<T>::try_clear(&Shape { kind, ..shape }, objective, plan.seed);
        if let Some(case) = clear {
            case.check::<G>(backend, output);
        }
        return;
    }
    // Integers: exact decisions, exact logs, and an exact gradient where the weights are 0 or 1.
    let case = Case::<T>::raw(&shape, objective, plan.seed);
    let (got, want) = (case.run::<G>(backend, output), case.reference());
    for (a, b) in [(&got.detail.it, &want.detail.it), (&got.detail.ti, &want.detail.ti)] {
        assert_eq!(a.neg_index, b.neg_index);
        close("N", &to_f64(&a.neg_value), &b.neg_value, |_| 0.0);
        close("second", &to_f64(&a.second_value), &b.second_value, |_| 0.0);
    }
    assert_eq!(counters(&got.report)[..3], counters(&want.report)[..3]);
    let (dx, dy) = (got.dx.written("dx"), got.dy.written("dy"));
    let hinge = case.objective.triplet().name() == "hinge";
    if case.objective.pair().name() == "con" && (case.objective.triplet().name() == "con" || hinge) {
        let exact = |v: &[f64]| v.iter().map(|v| G::from_f64(*v).to_f64()).collect::<Vec<_>>();
        close("dX", &dx, &exact(&want.dx), |_| 0.0);
        close("dY", &dy, &exact(&want.dy), |_| 0.0);
    }
}

#[test]
fn steps() {
    on_every_backend(|backend| check(backend, |plan| by_dtype!(backend, plan, step_case)));
}
