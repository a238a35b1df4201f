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

#[cfg(feature = "cuda")]
fn on_cuda<T: simgrad::cuda::DeviceElement>(c: &mut Criterion, gpu: &common::gpu::Gpu) {
    use simgrad::cuda::{self, DeviceHardest, DeviceMat, DeviceMineOptions, DeviceMined};

    let options = DeviceMineOptions::default();
    for shape @ common::Shape { n, d } in shapes() {
        let [x, y] = [1, 2].map(|seed| gpu.upload(&embeddings::<T>(shape, seed)));
        let [mut positive, mut row_value, mut col_value] = [0; 3].map(|_| gpu.zeros::<f32>(n));
        let [mut row_index, mut col_index] = [0; 2].map(|_| gpu.zeros::<i32>(n));
        let mut out = DeviceMined {
            positive: positive.as_view_mut(),
            rows: DeviceHardest { value: row_value.as_view_mut(), index: row_index.as_view_mut(), second: None },
            cols: DeviceHardest { value: col_value.as_view_mut(), index: col_index.as_view_mut(), second: None },
            screen: None,
        };
        let bytes = cuda::mine_workspace_bytes(n, n, d, T::DTYPE, options.normalization, false).unwrap();
        let mut workspace = gpu.zeros::<u8>(bytes);
        let mut workspace = workspace.as_view_mut();
        let [x, y] = [&x, &y].map(|m| DeviceMat::new(m.as_view(), n, d).unwrap());
        let mut g = group::<T>(c, "mine", "cuda");
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            gpu.time(b, || {
                cuda::mine(&gpu.kernels, &gpu.stream, &x, &y, &options, &mut out, &mut workspace).unwrap();
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
    #[cfg(feature = "cuda")]
    if let Some(gpu) = common::gpu::Gpu::open() {
        on_cuda::<f32>(c, &gpu);
        on_cuda::<bf16>(c, &gpu);
    }
}

criterion_group!(mine, benches);
criterion_main!(mine);
