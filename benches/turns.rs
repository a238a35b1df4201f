//! simgrad's side of `benches/peers/paired_ops.py`: measures one operation at a time, when asked to on standard input.
//!
//! A request is a line `op dtype n d instruction-set threads seconds`, the answer a line with the number of calls, their
//! median and the shortest in milliseconds. Dtypes are f32, f16 and bf16; operations are listed by [`OPS`], and for the
//! objectives over all pairs by their names. Rows are unit rows with a common part, so that pairs are similar, and
//! gradients are with respect to them. `cargo bench --bench turns -- --test` calls every operation once.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, IsTerminal};
use std::time::{Duration, Instant};

use common::{Shape, embeddings, mat, mat_mut};
use half::{bf16, f16};
use simgrad::cpu::{self, Cpu};
use simgrad::{
    BatchMut, BatchRef, CosineOptions, Element, GradOptions, GradientOf, MineOptions, MinedTriplet, Normalization,
    PairwiseObjective, PairwiseOptions, PositiveRanksOptions, RecallOptions, RelevantPairs, StepOptions, TopKOptions,
    WeightTriples,
};

/// What is not `pairwise_step`.
const OPS: [&str; 16] = [
    "product",
    "cosine_matrix",
    "mine",
    "goal-hinge-con",
    "goal-nca-sig",
    "goal-nca-sig_ms",
    "ranks",
    "top_k-10",
    "top_k-100",
    "positive_ranks",
    "mined_triplet-hardest",
    "mined_triplet-semi-hard",
    "weighted_grad",
    "row_norms",
    "normalize",
    "normalize_backward",
];

/// Captions per item in `positive_ranks`.
const CAPTIONS: usize = 5;

/// Seconds per call, in turn.
fn calls(seconds: f64, mut call: impl FnMut()) -> Vec<f64> {
    let mut once = || {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    let until = Instant::now() + Duration::from_secs_f64(seconds / 4.0);
    once();
    while Instant::now() < until {
        once();
    }
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut times = vec![once()];
    while times.len() < 3 && seconds > 0.0 || Instant::now() < until {
        times.push(once());
    }
    times.sort_by(f64::total_cmp);
    times
}

/// Unit rows of `x` and `y` with a common part.
fn rows<T: Element>(cpu: &Cpu, shape: Shape) -> (Vec<T>, Vec<T>) {
    let common: Vec<f32> = embeddings(shape, 3);
    let side = |seed| -> Vec<T> {
        let own: Vec<f32> = embeddings(shape, seed);
        let mut unit: Vec<f32> = common.iter().zip(own).map(|(c, v)| 0.7 * c + v).collect();
        let raw = unit.clone();
        cpu::normalize(cpu, mat(&raw, shape), mat_mut(&mut unit, shape)).expect("shapes agree");
        unit.into_iter().map(|v| T::from_f64(f64::from(v))).collect()
    };
    (side(1), side(2))
}

/// Diagonal, one entry per row and one per column; every eighth choice is the same hub.
fn triples(n: usize) -> (Vec<i32>, Vec<i32>, Vec<f32>) {
    let other = |i: usize| if i.is_multiple_of(8) { 0 } else { (i * 7919 + 1) % n };
    let all = (0..n).flat_map(|i| [(i, i, -1.0), (i, other(i), 0.5), (other(i), i, 0.25)]);
    let (mut rows, mut cols, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (i, j, value) in all {
        rows.push(i as i32);
        cols.push(j as i32);
        values.push(value);
    }
    (rows, cols, values)
}

fn measure<T: Element<Acc = f32>>(cpu: &Cpu, op: &str, shape: Shape, seconds: f64) -> Option<Vec<f64>>
where
    f32: GradientOf<T>,
{
    let Shape { n, d } = shape;
    let (xs, ys) = rows::<T>(cpu, shape);
    let (x, y) = (mat(&xs, shape), mat(&ys, shape));
    let none = Normalization::None;
    let (mut dx, mut dy) = (vec![0f32; n * d], vec![0f32; n * d]);
    macro_rules! time {
        ($call:expr) => {
            Some(calls(seconds, || {
                std::hint::black_box($call.expect("shapes agree"));
            }))
        };
    }
    if let Some(options) = op.strip_prefix("goal-") {
        let objective = options.parse().ok()?;
        let options = StepOptions { normalization: none, ..StepOptions::default() };
        return time!({
            let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
            cpu::goal_step(cpu, x, y, &objective, &options, dx, dy)
        });
    }
    if let Ok(objective) = op.parse::<PairwiseObjective>() {
        let options = PairwiseOptions { normalization: none, ..PairwiseOptions::default() };
        return time!({
            let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
            cpu::pairwise_step(cpu, x, y, &objective, &options, dx, dy)
        });
    }
    match op {
        "product" | "cosine_matrix" => {
            let normalization = if op == "product" { none } else { Normalization::L2 };
            let options = CosineOptions { normalization, ..CosineOptions::default() };
            let mut s = vec![0f32; n * n];
            time!({
                let out = BatchMut::new(&mut s, 1, n, n).expect("s is n × n");
                cpu::cosine_matrix(cpu, BatchRef::from(x), BatchRef::from(y), &options, out)
            })
        }
        "mine" => time!(cpu::mine(cpu, x, y, &MineOptions { normalization: none, ..MineOptions::default() })),
        "ranks" => time!(cpu::ranks(cpu, x, y, &RecallOptions { normalization: none, ..RecallOptions::default() })),
        "top_k-10" | "top_k-100" => {
            let k = if op == "top_k-10" { 10 } else { 100 };
            time!(cpu::mine_top_k(cpu, x, y, &TopKOptions { normalization: none, ..TopKOptions::hardest(k) }))
        }
        "positive_ranks" => {
            let relevant = RelevantPairs::captions(n.div_ceil(CAPTIONS), CAPTIONS).ok()?;
            let items = Shape { n: n.div_ceil(CAPTIONS), d };
            let captions = Shape { n: items.n * CAPTIONS, d };
            let (xs, _) = rows::<T>(cpu, items);
            let (ys, _) = rows::<T>(cpu, captions);
            let options = PositiveRanksOptions { normalization: none, ..PositiveRanksOptions::default() };
            time!(cpu::positive_ranks(cpu, mat(&xs, items), mat(&ys, captions), &relevant, &options))
        }
        "mined_triplet-hardest" | "mined_triplet-semi-hard" => {
            let hardest = op == "mined_triplet-hardest";
            let objective = if hardest { MinedTriplet::hardest() } else { MinedTriplet::semi_hard() };
            let options = StepOptions { normalization: none, ..StepOptions::default() };
            time!({
                let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
                cpu::mined_triplet_step(cpu, x, y, &objective, &options, dx, dy)
            })
        }
        "weighted_grad" => {
            let (rows, cols, values) = triples(n);
            let weights = WeightTriples { rows: &rows, cols: &cols, values: &values };
            let options = GradOptions { normalization: none, ..GradOptions::default() };
            time!({
                let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
                cpu::weighted_grad(cpu, x, y, &weights, &options, dx, dy)
            })
        }
        "row_norms" => {
            let mut norms = vec![0f32; n];
            time!(cpu::row_norms(cpu, x, &mut norms))
        }
        "normalize" => {
            let mut out = xs.clone();
            time!(cpu::normalize(cpu, x, mat_mut(&mut out, shape)))
        }
        "normalize_backward" => {
            let g: Vec<f32> = embeddings(shape, 4);
            time!(cpu::normalize_backward(cpu, x, mat(&g, shape), Default::default(), mat_mut(&mut dx, shape)))
        }
        _ => None,
    }
}

/// Handles by instruction set and number of threads; made once, as in a program that trains.
type Handles = HashMap<(String, usize), Cpu>;

fn answer(handles: &mut Handles, request: &str) -> Option<Vec<f64>> {
    let [op, dtype, n, d, isa, threads, seconds] = request.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
    let (n, d, threads): (usize, usize, usize) = (n.parse().ok()?, d.parse().ok()?, threads.parse().ok()?);
    let isa = if isa == "best" { Cpu::instruction_sets()[0] } else { isa };
    let new = || Cpu::with_instruction_set(threads, isa).ok();
    let key = (isa.to_owned(), threads);
    let cpu = handles.get(&key).cloned().or_else(new)?;
    handles.insert(key, cpu.clone());
    let (shape, seconds) = (Shape { n, d }, seconds.parse().ok()?);
    match dtype {
        "f32" => measure::<f32>(&cpu, op, shape, seconds),
        "f16" => measure::<f16>(&cpu, op, shape, seconds),
        "bf16" => measure::<bf16>(&cpu, op, shape, seconds),
        _ => None,
    }
}

fn report(handles: &mut Handles, request: &str) {
    match answer(handles, request) {
        Some(times) => {
            let (median, least) = (times[times.len() / 2] * 1e3, times[0] * 1e3);
            println!(r#"{{"calls": {}, "median_ms": {median:.6}, "min_ms": {least:.6}}}"#, times.len());
        }
        None => println!(r#"{{"refused": "{}"}}"#, request.trim()),
    }
}

fn main() {
    let mut handles = Handles::new();
    let test = std::env::args().any(|arg| arg == "--test");
    if !test && std::io::stdin().is_terminal() {
        println!("turns: answers benches/peers/paired_ops.py, which compares every operation with numpy");
        return;
    }
    if !test {
        std::io::stdin().lock().lines().map_while(Result::ok).for_each(|line| report(&mut handles, &line));
        return;
    }
    let objectives = PairwiseObjective::ALL.map(|objective| objective.name());
    for op in OPS.into_iter().chain(objectives) {
        for isa in Cpu::instruction_sets() {
            let request = format!("{op} f32 128 64 {isa} 2 0");
            assert!(answer(&mut handles, &request).is_some(), "{request}");
        }
    }
    println!("turns: every operation ran");
}
