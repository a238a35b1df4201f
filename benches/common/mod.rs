//! What the benches share: shapes, inputs, how a case is named and measured, and the device.
//!
//! A case is named `op/backend/dtype/variant/n{n}_d{d}`. Variants: `fused` is simgrad's operation, `composed` the same
//! result from a stored similarity matrix (simgrad's own, as the matrix product) and separate passes.
//!
//! Units: `elem/s` is multiply-adds per second, `n · m · d` per call with `m = n`, however often an implementation forms
//! a similarity; memory-bound operations state bytes per second instead. CPU times are wall time. CUDA times are device
//! time between two events around the launches of a sample, inputs in the cache where they fit.
#![allow(dead_code)]

pub mod composed;
#[cfg(feature = "cuda")]
pub mod gpu;

use std::fmt;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use simgrad::{Element, MatMut, MatRef};

/// Rows of X and of Y, and their length.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub n: usize,
    pub d: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}_d{}", self.n, self.d)
    }
}

impl Shape {
    /// Multiply-adds of all similarities.
    pub fn macs(&self) -> u64 {
        (self.n * self.n * self.d) as u64
    }

    /// Elements of one input.
    pub fn elems(&self) -> usize {
        self.n * self.d
    }
}

/// n in {128, 1024, 4096} times d in {256, 1024}, or what `SIMGRAD_BENCH_SHAPES=1024x512,…` asks for.
pub fn shapes() -> Vec<Shape> {
    let Ok(list) = std::env::var("SIMGRAD_BENCH_SHAPES") else {
        return [128, 1024, 4096].into_iter().flat_map(|n| [256, 1024].map(|d| Shape { n, d })).collect();
    };
    let parse = |text: &str| {
        let (n, d) = text.trim().split_once('x')?;
        Some(Shape { n: n.parse().ok()?, d: d.parse().ok()? })
    };
    list.split(',')
        .map(|text| parse(text).unwrap_or_else(|| panic!("`{text}` is not a shape such as 1024x512")))
        .collect()
}

/// Rows with approximately Gaussian elements; zeros or constants would flatter power and branch prediction.
pub fn embeddings<T: Element>(shape: Shape, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    // The sum of three uniform numbers is close enough to Gaussian, and cheap for four million elements.
    (0..shape.elems()).map(|_| T::from_f64((uniform() + uniform() + uniform() - 1.5) * 2.0)).collect()
}

pub fn mat<T>(data: &[T], shape: Shape) -> MatRef<'_, T> {
    MatRef::new(data, shape.n, shape.d).expect("the data have this shape")
}

pub fn mat_mut<T>(data: &mut [T], shape: Shape) -> MatMut<'_, T> {
    MatMut::new(data, shape.n, shape.d).expect("the data have this shape")
}

/// A group for one operation, backend and element type.
pub fn group<'c, T: Element>(c: &'c mut Criterion, op: &str, backend: &str) -> BenchmarkGroup<'c, WallTime> {
    named_group(c, &format!("{op}/{backend}/{}", T::DTYPE))
}

/// A group set up so that all benches together take minutes.
pub fn named_group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(10);
    group
}

/// Names the work of the cases that follow. Above about 10 ms a call, every sample is one call.
pub fn work(group: &mut BenchmarkGroup<'_, WallTime>, shape: Shape, throughput: Throughput) {
    let long = shape.macs() > 500_000_000;
    group.sampling_mode(if long { SamplingMode::Flat } else { SamplingMode::Auto }).throughput(throughput);
}

/// Says once what the CPU figures were measured with.
pub fn announce_cpu() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("cpu: {} threads, {}", threads, cpu_model().unwrap_or_else(|| std::env::consts::ARCH.to_owned()));
}

fn cpu_model() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
