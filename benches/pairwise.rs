//! A step of an objective over all pairs on the CPU, and of mixtures of two and three: loss and both gradients.
//!
//! `cargo bench --bench pairwise`, or a part: `cargo bench --bench pairwise -- pairwise/cpu/f32/infonce`. One step is
//! counted as its two sweeps' and two products' multiply-adds, `4 · n · m · d`.

mod common;

use common::{Shape, announce_cpu, embeddings, mat, mat_mut, named_group, shapes};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::{
    Element, GradientOf, MixtureObjective, Normalization, Objective, PairWeight, PairwiseObjective, PairwiseOptions,
    PairwisePart, TripletWeight,
};

fn step<T: Element, G: GradientOf<T>>(c: &mut Criterion, cpu: &Cpu, group: &str, parts: &[PairwisePart]) {
    let mut group = named_group(c, group);
    for shape in shapes() {
        let Shape { n, d } = shape;
        // Rows of length about 1, so that the gradient with respect to rows taken as they are is what peers compute.
        let rows = |seed| -> Vec<T> {
            let raw = embeddings::<f64>(shape, seed);
            raw.chunks(d)
                .flat_map(|row| {
                    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                    row.iter().map(move |v| T::from_f64(v / norm)).collect::<Vec<_>>()
                })
                .collect()
        };
        let (x, y) = (rows(1), rows(2));
        let (mut dx, mut dy) = (vec![G::from_f64(0.0); n * d], vec![G::from_f64(0.0); n * d]);
        let options = PairwiseOptions { normalization: Normalization::None, ..PairwiseOptions::default() };
        group.throughput(Throughput::Elements(4 * shape.macs()));
        group.bench_function(BenchmarkId::from_parameter(shape), |b| {
            b.iter(|| {
                let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
                let (x, y) = (mat(&x, shape), mat(&y, shape));
                match parts {
                    [PairwisePart { objective: MixtureObjective::Pairwise(objective), .. }] => {
                        cpu::pairwise_step(cpu, x, y, objective, &options, dx, dy).map(|_| ())
                    }
                    _ => cpu::pairwise_mixture(cpu, x, y, parts, &options, false, dx, dy).map(|_| ()),
                }
                .unwrap();
            });
        });
    }
    group.finish();
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let cpu = Cpu::new();
    for objective in PairwiseObjective::ALL {
        step::<f32, f32>(c, &cpu, &format!("pairwise/cpu/f32/{objective}"), &[PairwisePart::new(1.0, objective)]);
    }
    let clip = PairwisePart::new(1.0, PairwiseObjective::ALL[0]);
    step::<bf16, bf16>(c, &cpu, "pairwise/cpu/bf16/infonce", &[clip]);
    let siglip = PairwisePart::new(0.5, PairwiseObjective::ALL[1]);
    step::<f32, f32>(c, &cpu, "pairwise/cpu/f32/mixture-2", &[clip, siglip]);
    let hinge = TripletWeight::Hinge { margin: 0.2 };
    let goal = PairwisePart::new(0.1, Objective::new(hinge, PairWeight::Con).unwrap());
    step::<f32, f32>(c, &cpu, "pairwise/cpu/f32/mixture-3", &[clip, siglip, goal]);
}

criterion_group!(pairwise, benches);
criterion_main!(pairwise);
