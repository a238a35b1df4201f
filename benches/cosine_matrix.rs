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

#[cfg(feature = "cuda")]
fn on_cuda<T: simgrad::cuda::DeviceElement>(c: &mut Criterion, gpu: &common::gpu::Gpu) {
    use simgrad::cuda::{self, DeviceBatch, DeviceBatchMut};
    use simgrad::{DType, Precision};

    let both = [("fused", Precision::Full), ("fused_split", Precision::SplitBf16)];
    for shape @ common::Shape { n, d } in shapes() {
        let [x, y] = [1, 2].map(|seed| gpu.upload(&embeddings::<T>(shape, seed)));
        let mut s = gpu.zeros::<f32>(n * n);
        let [x, y] = [&x, &y].map(|m| DeviceBatch::new(m.as_view(), 1, n, d).unwrap());
        let mut out = DeviceBatchMut::new(s.as_view_mut(), 1, n, n).unwrap();
        let mut g = group::<T>(c, "cosine_matrix", "cuda");
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        for (name, precision) in &both[..if T::DTYPE == DType::F32 { 2 } else { 1 }] {
            let options = CosineOptions { precision: *precision, ..CosineOptions::default() };
            let bytes = cuda::cosine_matrix_workspace_bytes(1, n, n, d, T::DTYPE, &options).unwrap();
            let mut workspace = gpu.zeros::<u8>(bytes);
            let mut workspace = workspace.as_view_mut();
            g.bench_function(BenchmarkId::new(*name, shape), |b| {
                gpu.time(b, || {
                    cuda::cosine_matrix(&gpu.kernels, &gpu.stream, &x, &y, &options, &mut out, &mut workspace).unwrap();
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
    #[cfg(feature = "cuda")]
    if let Some(gpu) = common::gpu::Gpu::open() {
        on_cuda::<f32>(c, &gpu);
        on_cuda::<bf16>(c, &gpu);
    }
}

criterion_group!(cosine_matrix, benches);
criterion_main!(cosine_matrix);
