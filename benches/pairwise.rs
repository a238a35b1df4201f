//! A step of an objective over all pairs on the CPU, of mixtures of two and three, and of formulas: loss and both gradients.
//!
//! `cargo bench --bench pairwise`, or a part: `cargo bench --bench pairwise -- pairwise/cpu/f32/infonce`. One step is
//! counted as its two sweeps' and two products' multiply-adds, `4 · n · m · d`.

mod common;

use common::{Shape, announce_cpu, embeddings, mat, mat_mut, named_group, shapes};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::expression::Expression;
use simgrad::{
    Element, GradientOf, MatMut, MatRef, Normalization, Objective, PairWeight, PairwiseObjective, PairwiseOptions,
    PairwisePart, TripletWeight,
};

/// InfoNCE as formulas.
const CLIP: &str = "
    logit    = 14.3 * s
    negative = 14.3 / (2 * n) * (sigmoid(row.lse - row.lse_positives) * exp(logit - row.lse) + sigmoid(col.lse - col.lse_positives) * exp(logit - col.lse))
    positive = -14.3 / (2 * n) * (sigmoid(row.lse - logit) + sigmoid(col.lse - logit))
";

/// One case per shape of what takes both matrices and both gradients.
fn cases<T: Element, G: GradientOf<T>>(
    c: &mut Criterion,
    group: &str,
    run: impl Fn(MatRef<'_, T>, MatRef<'_, T>, &PairwiseOptions<'_>, MatMut<'_, G>, MatMut<'_, G>),
) {
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
                run(mat(&x, shape), mat(&y, shape), &options, dx, dy);
            });
        });
    }
    group.finish();
}

fn step<T: Element, G: GradientOf<T>>(c: &mut Criterion, cpu: &Cpu, group: &str, objective: PairwiseObjective) {
    cases::<T, G>(c, group, |x, y, options, dx, dy| {
        cpu::pairwise_step(cpu, x, y, &objective, options, dx, dy).unwrap();
    });
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let cpu = Cpu::new();
    for objective in PairwiseObjective::ALL {
        step::<f32, f32>(c, &cpu, &format!("pairwise/cpu/f32/{objective}"), objective);
    }
    let [clip, siglip, ..] = PairwiseObjective::ALL;
    step::<bf16, bf16>(c, &cpu, "pairwise/cpu/bf16/infonce", clip);
    let hinge = TripletWeight::Hinge { margin: 0.2 };
    let parts = [
        PairwisePart::new(1.0, clip),
        PairwisePart::new(0.5, siglip),
        PairwisePart::new(0.1, Objective::new(hinge, PairWeight::Con).unwrap()),
    ];
    for count in [2, 3] {
        cases::<f32, f32>(c, &format!("pairwise/cpu/f32/mixture-{count}"), |x, y, options, dx, dy| {
            cpu::pairwise_mixture(&cpu, x, y, &parts[..count], options, false, dx, dy).unwrap();
        });
    }
    let formulas: Expression = CLIP.parse().unwrap();
    cases::<f32, f32>(c, "pairwise/cpu/f32/formulas", |x, y, options, dx, dy| {
        cpu::pairwise_step_custom(&cpu, x, y, &formulas, options, dx, dy).unwrap();
    });
}

criterion_group!(pairwise, benches);
criterion_main!(pairwise);
