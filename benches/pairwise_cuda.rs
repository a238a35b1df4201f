//! Objectives over all pairs on a device, from raw embeddings to gradients and report: each alone, InfoNCE with its similarities
//! stored, a mixture, and formulas. `pairwise` has them on the CPU, and `peers/torch_step.py` is what to compare them with.

mod common;

use common::gpu::Gpu;
use common::{Shape, embeddings, named_group, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cuda::{self, CompiledExpression, DeviceElement, DeviceMat, DeviceMatMut, DevicePairwiseOptions};
use simgrad::expression::Expression;
use simgrad::{DType, Error, GradientOf, PairwiseObjective, PairwisePart};

/// InfoNCE as formulas.
const CLIP: &str = "
    logit    = 14.3 * s
    negative = 14.3 / (2 * n) * (sigmoid(row.lse - row.lse_positives) * exp(logit - row.lse) + sigmoid(col.lse - col.lse_positives) * exp(logit - col.lse))
    positive = -14.3 / (2 * n) * (sigmoid(row.lse - logit) + sigmoid(col.lse - logit))
";

enum Work {
    Parts(Vec<PairwisePart>),
    Formulas(CompiledExpression),
}

/// One case per shape. Gradients are f32 for every element type.
fn on_cuda<T: DeviceElement>(c: &mut Criterion, gpu: &Gpu, name: &str, work_of: &Work, keep: bool)
where
    f32: GradientOf<T>,
{
    let (kernels, stream) = (&gpu.kernels, &gpu.stream);
    for shape @ Shape { n, d } in shapes() {
        let [x, y] = [1, 2].map(|seed| gpu.upload(&embeddings::<T>(shape, seed)));
        let [mut dx, mut dy] = [0; 2].map(|_| gpu.zeros::<f32>(n * d));
        let [x, y] = [&x, &y].map(|m| DeviceMat::new(m.as_view(), n, d).unwrap());
        let [mut dx, mut dy] = [&mut dx, &mut dy].map(|m| DeviceMatMut::new(m.as_view_mut(), n, d).unwrap());
        let keep_bytes = if keep { usize::MAX } else { 0 };
        let options = DevicePairwiseOptions { keep_bytes, ..DevicePairwiseOptions::default() };
        let (normalization, wave_bytes) = (options.normalization, options.wave_bytes);
        let bytes = match work_of {
            Work::Formulas(_) => {
                cuda::pairwise_custom_workspace_bytes(n, n, d, T::DTYPE, normalization, wave_bytes).unwrap()
            }
            Work::Parts(parts) => cuda::pairwise_mixture_workspace_bytes(
                n,
                n,
                d,
                T::DTYPE,
                parts,
                normalization,
                wave_bytes,
                keep_bytes,
                options.precision,
                false,
            )
            .unwrap(),
        };
        let reports = if let Work::Parts(parts) = work_of { parts.len() } else { 1 };
        let (mut reports, mut workspace) = (gpu.zeros(reports), gpu.zeros::<u8>(bytes));
        let (mut reports, mut workspace) = (reports.as_view_mut(), workspace.as_view_mut());
        let mut g = named_group(c, &format!("pairwise/cuda/{}/{name}", T::DTYPE));
        work(&mut g, shape, Throughput::Elements(4 * shape.macs()));
        g.bench_function(BenchmarkId::from_parameter(shape), |b| {
            gpu.time(b, || {
                let (dx, dy) = (&mut dx, &mut dy);
                match work_of {
                    Work::Formulas(compiled) => cuda::pairwise_step_custom(
                        kernels,
                        stream,
                        &x,
                        &y,
                        compiled,
                        &options,
                        dx,
                        dy,
                        &mut reports,
                        &mut workspace,
                    ),
                    Work::Parts(parts) => cuda::pairwise_mixture(
                        kernels,
                        stream,
                        &x,
                        &y,
                        parts,
                        &options,
                        dx,
                        dy,
                        &mut reports,
                        None,
                        &mut workspace,
                    ),
                }
                .unwrap();
            });
        });
        g.finish();
    }
}

fn benches(c: &mut Criterion) {
    let Some(gpu) = Gpu::open() else { return };
    // A step of one objective is a mixture of one.
    let alone = |objective| Work::Parts(vec![PairwisePart::new(1.0, objective)]);
    for objective in PairwiseObjective::ALL {
        on_cuda::<bf16>(c, &gpu, objective.name(), &alone(objective), false);
    }
    let [clip, siglip, ..] = PairwiseObjective::ALL;
    on_cuda::<f32>(c, &gpu, clip.name(), &alone(clip), false);
    on_cuda::<bf16>(c, &gpu, "infonce-stored", &alone(clip), true);
    let mixture = vec![PairwisePart::new(1.0, clip), PairwisePart::new(0.5, siglip)];
    on_cuda::<bf16>(c, &gpu, "mixture-2", &Work::Parts(mixture), false);
    let formulas: Expression = CLIP.parse().unwrap();
    match CompiledExpression::compile(&gpu.kernels, &formulas) {
        Ok(compiled) => on_cuda::<bf16>(c, &gpu, "formulas", &Work::Formulas(compiled), false),
        Err(missing @ Error::NvrtcNotFound { .. }) => println!("formulas on {} are left out: {missing}", DType::Bf16),
        Err(error) => panic!("{error}"),
    }
}

criterion_group!(pairwise_cuda, benches);
criterion_main!(pairwise_cuda);
