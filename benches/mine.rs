//! Hardest negatives of rows and columns in one sweep, against a stored similarity matrix and two passes over it.

mod common;

use common::{announce_cpu, composed, embeddings, group, mat, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::{Element, MineOptions};

fn on_cpu<T: Element<Acc = f32>>(c: &mut Criterion, cpu: &Cpu) {
    let options = MineOptions::default();
    for shape in shapes() {
        let n = shape.n;
        let (x, y): (Vec<T>, Vec<T>) = (embeddings(shape, 1), embeddings(shape, 2));
        let (mut ux, mut uy) = (x.clone(), y.clone());
        let mut s = vec![0.0f32; n * n];
        let (mut rows, mut cols) = (vec![(0.0f32, 0i32); n], vec![(0.0f32, 0i32); n]);
        let mut g = group::<T>(c, "mine", "cpu");
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            b.iter(|| cpu::mine(cpu, mat(&x, shape), mat(&y, shape), &options).unwrap());
        });
        g.bench_function(BenchmarkId::new("composed", shape), |b| {
            b.iter(|| {
                composed::cosine(cpu, &x, &y, shape, (&mut ux, &mut uy), &mut s);
                composed::hardest_of_rows(&s, n, &mut rows);
                composed::hardest_of_cols(&s, n, &mut cols);
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

criterion_group!(mine, benches);
criterion_main!(mine);
