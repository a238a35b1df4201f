//! Row norms, normalisation and its Jacobian. Bound by memory: figures are bytes read and written per second.

mod common;

use common::{Shape, announce_cpu, embeddings, group, mat, mat_mut, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::{Element, GradientOf, WriteMode};

/// Matrices of `T` and of f32 that an operation reads or writes once.
fn bytes<T>(shape: Shape, matrices: usize, f32_matrices: usize) -> Throughput {
    Throughput::Bytes((shape.elems() * (matrices * size_of::<T>() + 4 * f32_matrices)) as u64)
}

fn on_cpu<T: Element<Acc = f32>>(c: &mut Criterion, cpu: &Cpu)
where
    f32: GradientOf<T>,
{
    for shape in shapes() {
        let x: Vec<T> = embeddings(shape, 1);
        let grad: Vec<f32> = embeddings(shape, 2);
        let (mut norms, mut out, mut dx) = (vec![0.0f32; shape.n], x.clone(), grad.clone());

        let mut g = group::<T>(c, "row_norms", "cpu");
        work(&mut g, shape, bytes::<T>(shape, 1, 0));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            b.iter(|| cpu::row_norms(cpu, mat(&x, shape), &mut norms).unwrap());
        });
        g.finish();

        let mut g = group::<T>(c, "normalize", "cpu");
        work(&mut g, shape, bytes::<T>(shape, 2, 0));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            b.iter(|| cpu::normalize(cpu, mat(&x, shape), mat_mut(&mut out, shape)).unwrap());
        });
        g.bench_function(BenchmarkId::new("composed", shape), |b| {
            b.iter(|| {
                cpu::row_norms(cpu, mat(&x, shape), &mut norms).unwrap();
                for (row, (unit, norm)) in x.chunks_exact(shape.d).zip(out.chunks_exact_mut(shape.d).zip(&norms)) {
                    for (u, v) in unit.iter_mut().zip(row) {
                        *u = T::from_acc(v.to_acc() / norm);
                    }
                }
            });
        });
        g.finish();

        let mut g = group::<T>(c, "normalize_backward", "cpu");
        work(&mut g, shape, bytes::<T>(shape, 1, 2));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            b.iter(|| {
                let (x, grad, dx) = (mat(&x, shape), mat(&grad, shape), mat_mut(&mut dx, shape));
                cpu::normalize_backward(cpu, x, grad, WriteMode::Overwrite, dx).unwrap();
            });
        });
        g.finish();
    }
}

#[cfg(feature = "cuda")]
fn on_cuda<T: simgrad::cuda::DeviceElement>(c: &mut Criterion, gpu: &common::gpu::Gpu)
where
    f32: GradientOf<T>,
{
    use simgrad::cuda::{self, DeviceMat, DeviceMatMut};

    for shape @ Shape { n, d } in shapes() {
        let x = gpu.upload(&embeddings::<T>(shape, 1));
        let grad = gpu.upload(&embeddings::<f32>(shape, 2));
        let (mut norms, mut out, mut dx) =
            (gpu.zeros::<f32>(n), gpu.zeros::<T>(shape.elems()), gpu.zeros::<f32>(shape.elems()));
        let x = DeviceMat::new(x.as_view(), n, d).unwrap();
        let grad = DeviceMat::new(grad.as_view(), n, d).unwrap();

        let mut g = group::<T>(c, "row_norms", "cuda");
        work(&mut g, shape, bytes::<T>(shape, 1, 0));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            gpu.time(b, || cuda::row_norms(&gpu.kernels, &gpu.stream, &x, &mut norms.as_view_mut()).unwrap());
        });
        g.finish();

        let mut out = DeviceMatMut::new(out.as_view_mut(), n, d).unwrap();
        let mut g = group::<T>(c, "normalize", "cuda");
        work(&mut g, shape, bytes::<T>(shape, 2, 0));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            gpu.time(b, || cuda::normalize(&gpu.kernels, &gpu.stream, &x, &mut out).unwrap());
        });
        g.finish();

        let mut dx = DeviceMatMut::new(dx.as_view_mut(), n, d).unwrap();
        let mut g = group::<T>(c, "normalize_backward", "cuda");
        work(&mut g, shape, bytes::<T>(shape, 1, 2));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            let mode = WriteMode::Overwrite;
            gpu.time(b, || cuda::normalize_backward(&gpu.kernels, &gpu.stream, &x, &grad, mode, &mut dx).unwrap());
        });
        g.finish();
    }
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let cpu = Cpu::new();
    on_cpu::<f32>(c, &cpu);
    on_cpu::<bf16>(c, &cpu);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = common::gpu::Gpu::open() {
        on_cuda::<f32>(c, &gpu);
        on_cuda::<bf16>(c, &gpu);
    }
}

criterion_group!(row_norms, benches);
criterion_main!(row_norms);
