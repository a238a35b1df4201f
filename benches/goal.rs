//! The GOAL step on the CPU, against the obvious composition: the whole similarity matrix by the same product, then
//! separate passes for maxima, weights and gradient. Throughput is in pairs per second.
//!
//! `cargo bench --bench goal`, or a part: `cargo bench --bench goal -- goal/cpu/f32/n128`

mod common;

use common::{Shape, announce_cpu, named_group, shapes};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use simgrad::cpu::{self, Cpu};
use simgrad::{
    BatchMut, CosineOptions, Element, GradOptions, GradientOf, MatMut, MatRef, Normalization, Objective, PairWeight,
    StepOptions, TripletWeight, WeightTriples,
};

/// Reproducible rows with a common part, so that pairs are similar.
fn batch<T: Element>(n: usize, d: usize) -> (Vec<T>, Vec<T>) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n * d)
        .map(|_| {
            let common = next();
            (T::from_f64(common + next()), T::from_f64(common + next()))
        })
        .unzip()
}

/// As [`batch`], divided by the rows' norms.
fn unit_batch<T: Element>(cpu: &Cpu, n: usize, d: usize) -> (Vec<T>, Vec<T>) {
    let (x, y) = batch::<T>(n, d);
    let unit = |rows: Vec<T>| {
        let mut out = rows.clone();
        cpu::normalize(cpu, MatRef::new(&rows, n, d).unwrap(), MatMut::new(&mut out, n, d).unwrap()).unwrap();
        out
    };
    (unit(x), unit(y))
}

fn step<T: Element, G: GradientOf<T>>(
    c: &mut Criterion,
    cpu: &Cpu,
    group: &str,
    objective: &Objective,
    normalization: Normalization,
) {
    let mut group = named_group(c, group);
    let options = StepOptions { normalization, ..StepOptions::default() };
    for Shape { n, d } in shapes() {
        let (x, y) = match normalization {
            Normalization::L2 => batch::<T>(n, d),
            Normalization::None => unit_batch::<T>(cpu, n, d),
        };
        let (mut dx, mut dy) = (vec![G::from_f64(0.0); n * d], vec![G::from_f64(0.0); n * d]);
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("n{n}_d{d}")), |b| {
            b.iter(|| {
                let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
                let (dx, dy) = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
                cpu::goal_step(cpu, x, y, objective, &options, dx, dy).unwrap()
            });
        });
    }
    group.finish();
}

/// Lowest index of the largest element other than `skip`.
fn argmax(values: impl Iterator<Item = f32>, skip: usize) -> (usize, f32) {
    values.enumerate().filter(|(i, _)| *i != skip).fold(
        (0, f32::NEG_INFINITY),
        |best, (i, v)| {
            if v > best.1 { (i, v) } else { best }
        },
    )
}

/// The hinge objective with the similarity matrix in memory: product, row maxima, column maxima, weights, gradient.
fn composed_step(cpu: &Cpu, n: usize, d: usize, xy: [&[f32]; 2], s: &mut [f32], grad: [&mut [f32]; 2]) {
    let [x, y] = xy.map(|data| MatRef::new(data, n, d).unwrap());
    let out = BatchMut::from(MatMut::new(s, n, n).unwrap());
    cpu::cosine_matrix(cpu, x.into(), y.into(), &CosineOptions::default(), out).unwrap();
    let (mut rows, mut cols, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |i: usize, j: usize, w: f32| {
        rows.push(i as i32);
        cols.push(j as i32);
        values.push(w);
    };
    for i in 0..n {
        let positive = s[i * n + i];
        let (k, negative) = argmax(s[i * n..][..n].iter().copied(), i);
        if 0.2 + negative - positive > 0.0 {
            add(i, i, -1.0);
            add(i, k, 1.0);
        }
        let (k, negative) = argmax((0..n).map(|r| s[r * n + i]), i);
        if 0.2 + negative - positive > 0.0 {
            add(i, i, -1.0);
            add(k, i, 1.0);
        }
    }
    let w = WeightTriples { rows: &rows, cols: &cols, values: &values };
    let [dx, dy] = grad.map(|data| MatMut::new(data, n, d).unwrap());
    cpu::weighted_grad(cpu, x, y, &w, &GradOptions::default(), dx, dy).unwrap();
}

fn composed(c: &mut Criterion, cpu: &Cpu) {
    let mut group = named_group(c, "goal/composed/f32");
    for Shape { n, d } in shapes() {
        let (x, y) = batch::<f32>(n, d);
        let (mut dx, mut dy, mut s) = (vec![0f32; n * d], vec![0f32; n * d], vec![0f32; n * n]);
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("n{n}_d{d}")), |b| {
            b.iter(|| composed_step(cpu, n, d, [&x, &y], &mut s, [&mut dx, &mut dy]));
        });
    }
    group.finish();
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let cpu = Cpu::new();
    let hinge = Objective::new(TripletWeight::Hinge { margin: 0.2 }, PairWeight::Con).unwrap();
    step::<f32, f32>(c, &cpu, "goal/cpu/f32", &hinge, Normalization::L2);
    step::<f16, f16>(c, &cpu, "goal/cpu/f16", &hinge, Normalization::L2);
    step::<bf16, bf16>(c, &cpu, "goal/cpu/bf16", &hinge, Normalization::L2);
    // What benches/peers/numpy_step.py does: unit rows, and the gradient with respect to them.
    step::<f32, f32>(c, &cpu, "goal/cpu/f32_unit", &hinge, Normalization::None);
    for name in ["nca-lin_ms", "nca-sig_ms"] {
        step::<f32, f32>(c, &cpu, &format!("goal/cpu/f32/{name}"), &name.parse().unwrap(), Normalization::L2);
    }
    composed(c, &cpu);
}

criterion_group!(goal, benches);
criterion_main!(goal);
