//! Two batches worked out by hand, to the printed digits.

mod common;

use std::collections::HashMap;

use common::check::close;
use common::data::{Matrix, TIGHT, to_f64};
use common::{is_cuda, on_every_backend};
use simgrad::reference::{self, GoalReference};
use simgrad::{
    AnchorDetail, Backend, Element, GradientOf, LossKind, Normalization, Objective, PairWeight, StepDetail,
    StepOptions, StepReport, TripletWeight,
};

/// A table of expected numbers: `key = number, number ; number …` a line.
struct Example(HashMap<&'static str, Vec<f64>>);

fn number(text: &str) -> f64 {
    let parse = |t: &str| t.trim().parse::<f64>().unwrap_or_else(|_| panic!("a number: `{t}`"));
    text.split_once('/').map_or_else(|| parse(text), |(a, b)| parse(a) / parse(b))
}

impl Example {
    fn new(text: &'static str) -> Self {
        let line = |l: &'static str| {
            let (key, values) = l.split_once(" = ").expect("key = values");
            (key, values.split([',', ';']).map(number).collect())
        };
        Self(text.lines().map(line).collect())
    }
    fn both() -> [(Self, usize, usize); 2] {
        [(Self::new(include_str!("data/hand3x2.txt")), 3, 2), (Self::new(include_str!("data/hand4x3.txt")), 4, 3)]
    }
    fn get(&self, key: &str) -> &[f64] {
        self.0.get(key).unwrap_or_else(|| panic!("no `{key}`"))
    }
    fn objectives(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.keys().filter_map(|k| k.strip_prefix("dX ")).collect();
        names.sort_unstable();
        names
    }
    /// The inputs, rounded to f32 as the expected numbers' were.
    fn inputs<T: Element>(&self, n: usize, d: usize) -> (Matrix<T>, Matrix<T>) {
        let rounded = |key| self.get(key).iter().map(|v| f64::from(*v as f32)).collect::<Vec<_>>();
        (Matrix::new(&rounded("x"), n, d, TIGHT), Matrix::new(&rounded("y"), n, d, TIGHT))
    }
}

/// The named objective with the settings of the examples.
fn objective(name: &str) -> Objective {
    let o: Objective = name.parse().expect("a name");
    let triplet = match o.triplet() {
        TripletWeight::Nca { .. } => TripletWeight::Nca { tau: 10.0 },
        TripletWeight::Cir { offset, .. } => TripletWeight::Cir { tau: 10.0, offset },
        other => other,
    };
    Objective::new(triplet, o.pair()).expect("valid")
}

fn options() -> StepOptions<'static> {
    StepOptions { normalization: Normalization::None, ..StepOptions::default() }
}

struct Result {
    dx: Vec<f64>,
    dy: Vec<f64>,
    report: StepReport,
    detail: StepDetail<f64>,
}

impl From<GoalReference> for Result {
    fn from(r: GoalReference) -> Self {
        Self { dx: r.dx, dy: r.dy, report: r.report, detail: r.detail }
    }
}

fn widen<A: Element>(a: &AnchorDetail<A>) -> AnchorDetail<f64> {
    AnchorDetail {
        neg_index: a.neg_index.clone(),
        neg_value: to_f64(&a.neg_value),
        second_value: to_f64(&a.second_value),
        triplet: to_f64(&a.triplet),
        w_pos: to_f64(&a.w_pos),
        w_neg: to_f64(&a.w_neg),
        rs_pos: to_f64(&a.rs_pos),
        rs_neg: to_f64(&a.rs_neg),
        rs_pos_count: a.rs_pos_count.clone(),
        rs_neg_count: a.rs_neg_count.clone(),
    }
}

fn run<T: Element, G: GradientOf<T>>(backend: &Backend, example: &Example, n: usize, d: usize, name: &str) -> Result {
    let (x, y) = example.inputs::<T>(n, d);
    let (mut dx, mut dy) = (Matrix::<G>::poisoned(n, d, TIGHT), Matrix::<G>::poisoned(n, d, TIGHT));
    let (report, detail) = backend
        .goal_step_detail(x.view(), y.view(), &objective(name), &options(), dx.view_mut(), dy.view_mut())
        .expect("goal_step_detail");
    let detail = StepDetail { positive: to_f64(&detail.positive), it: widen(&detail.it), ti: widen(&detail.ti) };
    Result { dx: dx.written("dx"), dy: dy.written("dy"), report, detail }
}

/// Half a unit of the eighth significant digit, the last one printed.
fn printed(want: f64) -> f64 {
    if want == 0.0 { 1e-12 } else { 0.501 * 10f64.powf(want.abs().log10().floor() - 7.0) }
}

/// What f32 similarities leave of it.
fn single(want: f64) -> f64 {
    1e-5 * want.abs().max(1.0)
}

/// Compares one objective's step with the table.
fn check(example: &Example, name: &str, got: &Result, tolerance: fn(f64) -> f64) {
    let o = objective(name);
    let same = |key: &str, got: &[f64]| {
        let want = example.get(key);
        close(&format!("{name}: {key}"), got, want, |at| tolerance(want[at]));
    };
    let counts = |v: &[u32]| v.iter().map(|&c| f64::from(c)).collect::<Vec<_>>();
    same("P", &got.detail.positive);
    same(&format!("dX {name}"), &got.dx);
    same(&format!("dY {name}"), &got.dy);
    same("log_it", &[got.report.log_it]);
    same("log_ti", &[got.report.log_ti]);
    for (side, d) in [("it", &got.detail.it), ("ti", &got.detail.ti)] {
        same(&format!("N_{side}"), &d.neg_value);
        same(&format!("index_{side}"), &d.neg_index.iter().map(|&i| f64::from(i)).collect::<Vec<_>>());
        match o.triplet() {
            TripletWeight::Con => assert!(d.triplet.iter().all(|&t| t == 1.0)),
            _ => same(&format!("T_{side} {}", o.triplet().name()), &d.triplet),
        }
        let pair = o.pair().name();
        match o.pair() {
            PairWeight::Con => assert!(d.w_pos.iter().chain(&d.w_neg).all(|&w| w == 1.0)),
            _ => {
                same(&format!("w_pos_{side} {pair}"), &d.w_pos);
                same(&format!("w_neg_{side} {pair}"), &d.w_neg);
            }
        }
        if o.pair().eps().is_some() {
            same(&format!("rs_pos_{side} {pair}"), &d.rs_pos);
            same(&format!("rs_neg_{side} {pair}"), &d.rs_neg);
            same(&format!("rs_pos_count_{side} {pair}"), &counts(&d.rs_pos_count));
            same(&format!("rs_neg_count_{side} {pair}"), &counts(&d.rs_neg_count));
        }
    }
    match o.loss_kind() {
        LossKind::Potential => same(&format!("loss {name}"), &[got.report.loss]),
        LossKind::Logged => assert_eq!(got.report.loss, got.report.log_it + got.report.log_ti, "{name}: loss"),
    }
}

#[test]
fn the_tables_are_complete() {
    let [(a, ..), (b, ..)] = Example::both();
    assert_eq!((a.objectives().len(), b.objectives().len()), (15, 9));
}

#[test]
fn the_reference_gives_the_printed_digits() {
    for (example, n, d) in Example::both() {
        let (x, y) = example.inputs::<f64>(n, d);
        let s = reference::cosine_matrix(x.view(), y.view(), Normalization::None);
        close("S", &s, example.get("S"), |at| printed(example.get("S")[at]));
        for name in example.objectives() {
            let got = reference::goal_step(x.view(), y.view(), &objective(name), &options());
            check(&example, name, &got.into(), printed);
        }
    }
}

#[test]
fn every_backend_gives_the_printed_digits() {
    on_every_backend(|backend| {
        for (example, n, d) in Example::both() {
            for name in example.objectives() {
                check(&example, name, &run::<f32, f32>(backend, &example, n, d, name), single);
                if !is_cuda(backend) {
                    check(&example, name, &run::<f64, f64>(backend, &example, n, d, name), printed);
                }
            }
        }
    });
}
