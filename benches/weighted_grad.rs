//! Gradients for a sparse W of three entries per pair, as the GOAL objectives have it, against dense products with W.
//!
//! Multiply-adds are those of the sparse products: 2 · 3n · d per call.

mod common;

use common::{Shape, announce_cpu, composed, embeddings, group, mat, mat_mut, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use simgrad::cpu::{self, Cpu};
use simgrad::{BatchMut, BatchRef, CosineOptions, GradOptions, MatRef, Normalization, WeightTriples};

/// Diagonal, one entry per row and one per column; every eighth choice is the same hub.
fn triples(n: usize) -> (Vec<i32>, Vec<i32>, Vec<f32>) {
    let (mut rows, mut cols, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut push = |row: usize, col: usize, value: f32| {
        rows.push(row as i32);
        cols.push(col as i32);
        values.push(value);
    };
    for i in 0..n {
        let other = if i % 8 == 0 { 0 } else { (i * 7919 + 1) % n };
        push(i, i, -1.0);
        push(i, other, 0.5);
        push(other, i, 0.25);
    }
    (rows, cols, values)
}

/// `out` (n × d) = `w` (n × n) times the matrix whose transpose is `t` (d × n).
fn dense(cpu: &Cpu, w: &[f32], t: &[f32], Shape { n, d }: Shape, out: &mut [f32]) {
    let options = CosineOptions { normalization: Normalization::None, ..CosineOptions::default() };
    let (w, t) = (MatRef::new(w, n, n).unwrap(), MatRef::new(t, d, n).unwrap());
    let out = BatchMut::new(out, 1, n, d).unwrap();
    cpu::cosine_matrix(cpu, BatchRef::from(w), BatchRef::from(t), &options, out).unwrap();
}

fn on_cpu(c: &mut Criterion, cpu: &Cpu) {
    for shape @ Shape { n, d } in shapes() {
        let (x, y): (Vec<f32>, Vec<f32>) = (embeddings(shape, 1), embeddings(shape, 2));
        let (mut dx, mut dy) = (vec![0.0f32; n * d], vec![0.0f32; n * d]);
        let (rows, cols, values) = triples(n);
        let weights = WeightTriples { rows: &rows, cols: &cols, values: &values };
        let mut g = group::<f32>(c, "weighted_grad", "cpu");
        work(&mut g, shape, Throughput::Elements((2 * values.len() * d) as u64));
        for (name, normalization) in [("fused", Normalization::L2), ("fused-unit", Normalization::None)] {
            let options = GradOptions { normalization, ..GradOptions::default() };
            g.bench_function(BenchmarkId::new(name, shape), |b| {
                b.iter(|| {
                    let (x, y) = (mat(&x, shape), mat(&y, shape));
                    let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
                    cpu::weighted_grad(cpu, x, y, &weights, &options, dx, dy).unwrap()
                });
            });
        }
        let (mut w, mut wt, mut t) = (vec![0.0f32; n * n], vec![0.0f32; n * n], vec![0.0f32; n * d]);
        g.bench_function(BenchmarkId::new("composed-unit", shape), |b| {
            b.iter(|| {
                w.fill(0.0);
                for ((&i, &j), v) in rows.iter().zip(&cols).zip(&values) {
                    w[i as usize * n + j as usize] += v;
                }
                composed::transpose(&y, n, d, &mut t);
                dense(cpu, &w, &t, shape, &mut dx);
                composed::transpose(&w, n, n, &mut wt);
                composed::transpose(&x, n, d, &mut t);
                dense(cpu, &wt, &t, shape, &mut dy);
            });
        });
        g.finish();
    }
}

#[cfg(feature = "cuda")]
fn on_cuda<T: simgrad::cuda::DeviceElement>(c: &mut Criterion, gpu: &common::gpu::Gpu)
where
    f32: simgrad::GradientOf<T>,
{
    use simgrad::cuda::{self, DeviceGradOptions, DeviceMat, DeviceMatMut, DeviceTriples};

    for shape @ Shape { n, d } in shapes() {
        let [x, y] = [1, 2].map(|seed| gpu.upload(&embeddings::<T>(shape, seed)));
        let [mut dx, mut dy] = [0, 1].map(|_| gpu.zeros::<f32>(n * d));
        let (rows, cols, values) = triples(n);
        let (rows_, cols_, values_) = (gpu.upload(&rows), gpu.upload(&cols), gpu.upload(&values));
        let w = DeviceTriples { rows: rows_.as_view(), cols: cols_.as_view(), values: values_.as_view() };
        let options = DeviceGradOptions::default();
        let bytes =
            cuda::weighted_grad_workspace_bytes(n, n, d, T::DTYPE, values.len(), options.normalization).unwrap();
        let (mut report, mut workspace) = (gpu.zeros(1), gpu.zeros::<u8>(bytes));
        let [x, y] = [&x, &y].map(|m| DeviceMat::new(m.as_view(), n, d).unwrap());
        let [mut dx, mut dy] = [&mut dx, &mut dy].map(|m| DeviceMatMut::new(m.as_view_mut(), n, d).unwrap());
        let mut g = group::<T>(c, "weighted_grad", "cuda");
        work(&mut g, shape, Throughput::Elements((2 * values.len() * d) as u64));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            let (mut report, mut workspace) = (report.as_view_mut(), workspace.as_view_mut());
            gpu.time(b, || {
                let (kernels, stream) = (&gpu.kernels, &gpu.stream);
                cuda::weighted_grad(
                    kernels,
                    stream,
                    &x,
                    &y,
                    &w,
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

fn benches(c: &mut Criterion) {
    announce_cpu();
    on_cpu(c, &Cpu::new());
    #[cfg(feature = "cuda")]
    if let Some(gpu) = common::gpu::Gpu::open() {
        on_cuda::<f32>(c, &gpu);
        on_cuda::<half::bf16>(c, &gpu);
    }
}

criterion_group!(weighted_grad, benches);
criterion_main!(weighted_grad);
