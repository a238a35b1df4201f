//! Ranks of all relevant pairs, five captions per item, and the figures made of them, against a stored similarity matrix
//! of which every row and column is sorted. `n` items, `5 n` captions: `5 n² d` multiply-adds per call.

mod common;

use common::{Shape, announce_cpu, embeddings, group, mat, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use simgrad::cpu::{self, Cpu};
use simgrad::{
    BatchMut, BatchRef, CosineOptions, Element, EvaluationReport, MetricOptions, PositiveRanksOptions, RelevantPairs,
};

const CAPTIONS: usize = 5;

/// Items above which sorting takes too long to be repeated.
const SORTED: usize = 1024;

const fn texts(shape: Shape) -> Shape {
    Shape { n: CAPTIONS * shape.n, d: shape.d }
}

/// Sum of the reciprocal ranks of the first relevant candidates of every row and column, by sorting.
fn sorted(s: &[f32], n: usize, m: usize) -> f64 {
    let mut order: Vec<u32> = Vec::new();
    let mut reciprocal = |pool: usize, score: &dyn Fn(usize) -> f32, relevant: &dyn Fn(usize) -> bool| {
        order.clear();
        order.extend(0..pool as u32);
        order.sort_by(|&a, &b| score(b as usize).total_cmp(&score(a as usize)));
        let first = order.iter().position(|&j| relevant(j as usize)).unwrap_or(pool);
        1.0 / (first as f64 + 1.0)
    };
    let rows: f64 = (0..n).map(|i| reciprocal(m, &|j| s[i * m + j], &|j| j / CAPTIONS == i)).sum();
    let cols: f64 = (0..m).map(|j| reciprocal(n, &|i| s[i * m + j], &|i| j / CAPTIONS == i)).sum();
    rows + cols
}

fn on_cpu<T: Element<Acc = f32>>(c: &mut Criterion, cpu: &Cpu) {
    let options = PositiveRanksOptions::default();
    for shape in shapes() {
        let (n, m, d) = (shape.n, CAPTIONS * shape.n, shape.d);
        let (x, y): (Vec<T>, Vec<T>) = (embeddings(shape, 1), embeddings(texts(shape), 2));
        let relevant = RelevantPairs::captions(n, CAPTIONS).expect("a small number");
        let mut g = group::<T>(c, "evaluate", "cpu");
        work(&mut g, shape, Throughput::Elements(CAPTIONS as u64 * shape.macs()));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            b.iter(|| {
                let ranks = cpu::positive_ranks(cpu, mat(&x, shape), mat(&y, texts(shape)), &relevant, &options);
                EvaluationReport::from_ranks(&ranks.expect("ranks"), &MetricOptions::default())
            });
        });
        if n <= SORTED {
            let mut s = vec![0.0f32; n * m];
            g.bench_function(BenchmarkId::new("composed", shape), |b| {
                b.iter(|| {
                    let x = BatchRef::new(&x, 1, n, d).expect("the data have this shape");
                    let y = BatchRef::new(&y, 1, m, d).expect("the data have this shape");
                    let out = BatchMut::new(&mut s, 1, n, m).expect("the data have this shape");
                    cpu::cosine_matrix(cpu, x, y, &CosineOptions::default(), out).expect("similarities");
                    sorted(&s, n, m)
                });
            });
        }
        g.finish();
    }
}

#[cfg(feature = "cuda")]
fn on_cuda<T: simgrad::cuda::DeviceElement>(c: &mut Criterion, gpu: &common::gpu::Gpu) {
    use simgrad::cuda::{self, DeviceMat, DeviceRelevant};

    let options = PositiveRanksOptions::default();
    for shape @ Shape { n, d } in shapes() {
        let m = CAPTIONS * n;
        let (x, y) = (gpu.upload(&embeddings::<T>(shape, 1)), gpu.upload(&embeddings::<T>(texts(shape), 2)));
        let relevant = RelevantPairs::captions(n, CAPTIONS).expect("a small number");
        let (turned, numbers) = relevant.transposed();
        let (row_offsets, col_offsets) = (gpu.upload(relevant.offsets()), gpu.upload(turned.offsets()));
        let (row_candidates, col_candidates) = (gpu.upload(relevant.candidates()), gpu.upload(turned.candidates()));
        let col_pairs = gpu.upload(&numbers);
        let pairs = relevant.pairs();
        let [mut rows, mut cols] = [0; 2].map(|_| gpu.zeros::<i32>(pairs));
        let bytes = cuda::positive_ranks_workspace_bytes(n, m, d, T::DTYPE, pairs, options.normalization).unwrap();
        let mut workspace = gpu.zeros::<u8>(bytes);
        let mut workspace = workspace.as_view_mut();
        let x = DeviceMat::new(x.as_view(), n, d).unwrap();
        let y = DeviceMat::new(y.as_view(), m, d).unwrap();
        let relevant = DeviceRelevant {
            row_offsets: row_offsets.as_view(),
            row_candidates: row_candidates.as_view(),
            col_offsets: col_offsets.as_view(),
            col_candidates: col_candidates.as_view(),
            col_pairs: col_pairs.as_view(),
            grades: None,
        };
        let (mut rows, mut cols) = (rows.as_view_mut(), cols.as_view_mut());
        let mut g = group::<T>(c, "evaluate", "cuda");
        work(&mut g, shape, Throughput::Elements(CAPTIONS as u64 * shape.macs()));
        g.bench_function(BenchmarkId::new("fused", shape), |b| {
            gpu.time(b, || {
                let (kernels, stream) = (&gpu.kernels, &gpu.stream);
                let (rows, cols, workspace) = (&mut rows, &mut cols, &mut workspace);
                cuda::positive_ranks(kernels, stream, &x, &y, &relevant, &options, rows, cols, workspace).unwrap();
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

criterion_group!(evaluate, benches);
criterion_main!(evaluate);
