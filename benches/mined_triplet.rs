//! The triplet hinge on mined negatives on the CPU, loss and both gradients, against the mining alone.
//!
//! `SIMGRAD_BENCH_SHAPES=1024x256 cargo bench --bench mined_triplet`

mod common;

use common::{announce_cpu, embeddings, group, mat, mat_mut, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::{Element, Fallback, GradientOf, MinedTriplet, StepOptions, TopKOptions};

fn on_cpu<T: Element, G: GradientOf<T>>(c: &mut Criterion, cpu: &Cpu) {
    let cases = [
        ("hardest", MinedTriplet::hardest()),
        ("semi_hard", MinedTriplet::semi_hard()),
        ("semi_hard_10", MinedTriplet { k: 10, ..MinedTriplet::semi_hard() }),
        ("random_10", MinedTriplet::random(10, 1)),
        ("weighted_10", MinedTriplet::distance_weighted(10, 1)),
    ];
    for shape in shapes() {
        let (x, y): (Vec<T>, Vec<T>) = (embeddings(shape, 1), embeddings(shape, 2));
        let (mut dx, mut dy) = (vec![G::from_f64(0.0); x.len()], vec![G::from_f64(0.0); y.len()]);
        let mut g = group::<T>(c, "mined_triplet", "cpu");
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        g.bench_function(BenchmarkId::new("mining_semi_hard", shape), |b| {
            let options = TopKOptions::semi_hard(1, Fallback::Skip);
            b.iter(|| cpu::mine_top_k(cpu, mat(&x, shape), mat(&y, shape), &options).unwrap());
        });
        for (name, objective) in &cases {
            g.bench_function(BenchmarkId::new(*name, shape), |b| {
                b.iter(|| {
                    let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
                    let (x, y, options) = (mat(&x, shape), mat(&y, shape), StepOptions::default());
                    cpu::mined_triplet_step(cpu, x, y, objective, &options, dx, dy).unwrap()
                });
            });
        }
        g.finish();
    }
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let cpu = Cpu::new();
    on_cpu::<f32, f32>(c, &cpu);
    on_cpu::<bf16, bf16>(c, &cpu);
}

criterion_group!(mined_triplet, benches);
criterion_main!(mined_triplet);
