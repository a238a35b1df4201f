//! Ranks of the pairs in both directions, against a stored similarity matrix and passes that count.

mod common;

use common::{announce_cpu, composed, embeddings, group, mat, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::{Element, RecallOptions};

fn on_cpu<T: Element<Acc = f32>>(c: &mut Criterion, cpu: &Cpu) {
    let options = RecallOptions::default();
    for shape in shapes() {
        let n = shape.n;
        let (x, y): (Vec<T>, Vec<T>) = (embeddings(shape, 1), embeddings(shape, 2));
        let (mut ux, mut uy) = (x.clone(), y.clone());
        let mut s = vec![0.0f32; n * n];
        let (mut rows, mut cols) = (vec![0i32; n], vec![0i32; n]);
        let mut g = group::<T>(c, "ranks", "cpu");
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            b.iter(|| cpu::ranks(cpu, mat(&x, shape), mat(&y, shape), &options).unwrap());
        });
        g.bench_function(BenchmarkId::new("composed", shape), |b| {
            b.iter(|| {
                composed::cosine(cpu, &x, &y, shape, (&mut ux, &mut uy), &mut s);
                composed::ranks(&s, n, &mut rows, &mut cols);
            });
        });
        g.finish();
    }
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let cpu = Cpu::new();
    on_cpu::<f32>(c, &cpu);
    on_cpu::<bf16>(c, &cpu);
}

criterion_group!(ranks, benches);
criterion_main!(ranks);
