//! Every instruction set of the CPU path on the same work.
//!
//! `SIMGRAD_BENCH_SHAPES=1024x512 cargo bench --bench cpu_paths`; against numpy in turns: `benches/peers/paired_ops.py`.

mod common;

use common::{announce_cpu, embeddings, mat, mat_mut, named_group, shapes, work};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use simgrad::cpu::{self, Cpu};
use simgrad::{
    BatchMut, BatchRef, CosineOptions, Element, GradientOf, MineOptions, PairwiseObjective, PairwiseOptions,
    StepOptions,
};

fn on_path<T: Element<Acc = f32>>(c: &mut Criterion, cpu: &Cpu)
where
    f32: GradientOf<T>,
{
    let path = cpu.instruction_set();
    let goal = "nca-sig".parse().unwrap();
    let [infonce, ..] = PairwiseObjective::ALL;
    for shape in shapes() {
        let (x, y): (Vec<T>, Vec<T>) = (embeddings(shape, 1), embeddings(shape, 2));
        let (mut dx, mut dy) = (vec![0f32; shape.elems()], vec![0f32; shape.elems()]);
        let mut s = vec![0f32; shape.n * shape.n];
        let mut g = named_group(c, &format!("cpu_paths/{path}/{}", T::DTYPE));
        work(&mut g, shape, Throughput::Elements(shape.macs()));
        g.bench_function(BenchmarkId::new("cosine_matrix", shape), |b| {
            b.iter(|| {
                let (x, y) = (BatchRef::from(mat(&x, shape)), BatchRef::from(mat(&y, shape)));
                let out = BatchMut::new(&mut s, 1, shape.n, shape.n).unwrap();
                cpu::cosine_matrix(cpu, x, y, &CosineOptions::default(), out).unwrap();
            });
        });
        g.bench_function(BenchmarkId::new("mine", shape), |b| {
            b.iter(|| cpu::mine(cpu, mat(&x, shape), mat(&y, shape), &MineOptions::default()).unwrap());
        });
        g.bench_function(BenchmarkId::new("goal_step", shape), |b| {
            b.iter(|| {
                let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
                cpu::goal_step(cpu, mat(&x, shape), mat(&y, shape), &goal, &StepOptions::default(), dx, dy).unwrap()
            });
        });
        g.bench_function(BenchmarkId::new("pairwise_step", shape), |b| {
            b.iter(|| {
                let (dx, dy) = (mat_mut(&mut dx, shape), mat_mut(&mut dy, shape));
                let (x, y, options) = (mat(&x, shape), mat(&y, shape), PairwiseOptions::default());
                cpu::pairwise_step(cpu, x, y, &infonce, &options, dx, dy).unwrap()
            });
        });
        g.finish();
    }
}

fn benches(c: &mut Criterion) {
    announce_cpu();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for path in Cpu::instruction_sets() {
        let cpu = Cpu::with_instruction_set(threads, path).unwrap();
        on_path::<f32>(c, &cpu);
        on_path::<f16>(c, &cpu);
        on_path::<bf16>(c, &cpu);
    }
}

criterion_group!(cpu_paths, benches);
criterion_main!(cpu_paths);
