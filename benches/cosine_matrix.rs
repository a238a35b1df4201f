//! Cosine similarities of all rows with all rows, normalisation fused, against normalising first.

mod common;

use common::{announce_cpu, composed, embeddings, group, mat, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::{BatchMut, BatchRef, CosineOptions, Element};

fn on_cpu<T: Element<Acc = f32>>(c: &mut Criterion, cpu: &Cpu) {
    let options = CosineOptions::default();
    for shape in shapes() {
        let (x, y): (Vec<T>, Vec<T>) = (embeddings(shape, 1), embeddings(shape, 2));
        let (mut ux, mut uy) = (x.clone(), y.clone());
        let mut s = vec![0.0f32; shape.n * shape.n];
        let mut g = group::<T>(c, "cosine_matrix", "cpu");
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            b.iter(|| {
                let (x, y) = (BatchRef::from(mat(&x, shape)), BatchRef::from(mat(&y, shape)));
                let out = BatchMut::new(&mut s, 1, shape.n, shape.n).unwrap();
                cpu::cosine_matrix(cpu, x, y, &options, out).unwrap();
            });
        });
        g.bench_function(BenchmarkId::new("composed", shape), |b| {
            b.iter(|| composed::cosine(cpu, &x, &y, shape, (&mut ux, &mut uy), &mut s));
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

criterion_group!(cosine_matrix, benches);
criterion_main!(cosine_matrix);
