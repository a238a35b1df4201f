//! Several negatives of rows and columns in one sweep, against the hardest one alone, and against a stored similarity
//! matrix, two passes over it and a partial sort of every row and column.
//!
//! `SIMGRAD_BENCH_SHAPES=1024x256 cargo bench --bench top_k`

mod common;

use common::{announce_cpu, composed, embeddings, group, mat, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use rayon::prelude::*;
use simgrad::cpu::{self, Cpu};
use simgrad::{Element, Fallback, MineOptions, Pick, TopKOptions};

/// The `k` largest off-diagonal elements of every line of `s`, sorted; `at(line, place)` is an element.
fn largest(n: usize, k: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Vec<Vec<(f32, u32)>> {
    let line = |i: usize| {
        let mut all: Vec<(f32, u32)> = (0..n).filter(|&j| j != i).map(|j| (at(i, j), j as u32)).collect();
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let k = k.min(all.len());
        all.select_nth_unstable_by(k - 1, order);
        all.truncate(k);
        all.sort_unstable_by(order);
        all
    };
    (0..n).into_par_iter().map(line).collect()
}

fn on_cpu<T: Element<Acc = f32>>(c: &mut Criterion, cpu: &Cpu) {
    let cases = [
        ("hardest_1", TopKOptions::hardest(1)),
        ("hardest_10", TopKOptions::hardest(10)),
        ("hardest_100", TopKOptions::hardest(100)),
        ("hardest_1024", TopKOptions::hardest(1024)),
        ("semi_hard_10", TopKOptions::semi_hard(10, Fallback::Easiest)),
        ("random_10", TopKOptions { pick: Pick::Random { seed: 1 }, ..TopKOptions::hardest(10) }),
        ("weighted_10", TopKOptions { pick: Pick::DistanceWeighted { seed: 1 }, ..TopKOptions::hardest(10) }),
    ];
    for shape in shapes() {
        let n = shape.n;
        let (x, y): (Vec<T>, Vec<T>) = (embeddings(shape, 1), embeddings(shape, 2));
        let (mut ux, mut uy, mut s) = (x.clone(), y.clone(), vec![0.0f32; n * n]);
        let mut g = group::<T>(c, "top_k", "cpu");
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        g.bench_function(BenchmarkId::new("mine", shape), |b| {
            b.iter(|| cpu::mine(cpu, mat(&x, shape), mat(&y, shape), &MineOptions::default()).unwrap());
        });
        for (name, options) in &cases {
            g.bench_function(BenchmarkId::new(*name, shape), |b| {
                b.iter(|| cpu::mine_top_k(cpu, mat(&x, shape), mat(&y, shape), options).unwrap());
            });
        }
        for k in [10, 100] {
            g.bench_function(BenchmarkId::new(format!("composed_{k}"), shape), |b| {
                b.iter(|| {
                    composed::cosine(cpu, &x, &y, shape, (&mut ux, &mut uy), &mut s);
                    (largest(n, k, |i, j| s[i * n + j]), largest(n, k, |j, i| s[i * n + j]))
                });
            });
        }
        g.finish();
    }
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let cpu = Cpu::new();
    on_cpu::<f32>(c, &cpu);
    on_cpu::<bf16>(c, &cpu);
}

criterion_group!(top_k, benches);
criterion_main!(top_k);
