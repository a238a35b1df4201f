//! The GOAL step on a device: three or four launches from raw embeddings to gradients and report. `goal` has it on the CPU, and
//! `peers/torch_step.py` is what to compare it with.

mod common;

use common::gpu::Gpu;
use common::{Shape, embeddings, group, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cuda::{self, DeviceElement, DeviceMat, DeviceMatMut, DeviceStepOptions};
use simgrad::{GradientOf, Objective};

/// The VSE++ baseline, an objective without relative similarities, and one with.
const OBJECTIVES: [&str; 3] = ["hinge-con", "nca-sig", "cir-sig_ms"];

/// One case per shape and objective. Gradients are f32 for every element type.
fn on_cuda<T: DeviceElement>(c: &mut Criterion, gpu: &Gpu)
where
    f32: GradientOf<T>,
{
    let options = DeviceStepOptions::default();
    for shape @ Shape { n, d } in shapes() {
        let [x, y] = [1, 2].map(|seed| gpu.upload(&embeddings::<T>(shape, seed)));
        let [mut dx, mut dy] = [0; 2].map(|_| gpu.zeros::<f32>(n * d));
        let [x, y] = [&x, &y].map(|m| DeviceMat::new(m.as_view(), n, d).unwrap());
        let [mut dx, mut dy] = [&mut dx, &mut dy].map(|m| DeviceMatMut::new(m.as_view_mut(), n, d).unwrap());
        let mut report = gpu.zeros(1);
        let mut report = report.as_view_mut();
        for name in OBJECTIVES {
            let objective: Objective = name.parse().unwrap();
            let bytes =
                cuda::goal_step_workspace_bytes(n, d, T::DTYPE, &objective, options.normalization, false).unwrap();
            let mut workspace = gpu.zeros::<u8>(bytes);
            let mut workspace = workspace.as_view_mut();
            let mut g = group::<T>(c, "goal", "cuda");
            work(&mut g, shape, Throughput::Elements(shape.macs()));
            g.bench_function(BenchmarkId::new(name, shape), |b| {
                gpu.time(b, || {
                    cuda::goal_step(
                        &gpu.kernels,
                        &gpu.stream,
                        &x,
                        &y,
                        &objective,
                        &options,
                        &mut dx,
                        &mut dy,
                        &mut report,
                        &mut workspace,
                    )
                    .unwrap();
                });
            });
            g.finish();
        }
    }
}

fn benches(c: &mut Criterion) {
    if let Some(gpu) = Gpu::open() {
        on_cuda::<f32>(c, &gpu);
        on_cuda::<bf16>(c, &gpu);
    }
}

criterion_group!(goal_cuda, benches);
criterion_main!(goal_cuda);
