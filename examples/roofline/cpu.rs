//! Operations on the CPU by the clock, and this CPU's ceilings, measured on the spot.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use simgrad::{
    Backend, BatchMut, BatchRef, DType, Element, GradOptions, GradientOf, Groups, MatMut, MatRef, MineOptions,
    PairwiseObjective, PairwiseOptions, RecallOptions, StepOptions, WeightTriples,
};

use crate::cases::{Case, Op, SCALE, goal_objective, semi_hard, siglip};
use crate::common::{Failure, Outcome};
use crate::device::Clock;
use crate::numbers::embeddings;

/// What all threads reach together.
pub struct CpuCeilings {
    pub threads: usize,
    /// f32 operations per second, two for each multiply-add.
    pub multiply_add: f64,
    /// Bytes per second, read and written together, of copies that no cache holds.
    pub bandwidth: f64,
    /// The instructions of the multiply-adds.
    pub instructions: &'static str,
}

/// Chains of multiply-adds that do not wait for each other.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
mod chains {
    use std::arch::x86_64::*;

    use super::CHAINS;

    macro_rules! chains {
        ($name:ident, $features:literal, $set:ident, $fma:ident, $add:ident, $store:ident, $lanes:literal) => {
            #[target_feature(enable = $features)]
            pub fn $name(rounds: usize, x: f32) -> f32 {
                let (a, b) = ($set(x), $set(1e-9));
                let mut acc = [$set(1.0); CHAINS];
                for _ in 0..rounds {
                    for v in &mut acc {
                        *v = $fma(*v, a, b);
                    }
                }
                let sum = acc[1..].iter().fold(acc[0], |s, &v| $add(s, v));
                let mut lanes = [0.0f32; $lanes];
                // SAFETY: the array has as many elements as the register.
                unsafe { $store(lanes.as_mut_ptr(), sum) };
                lanes.iter().sum()
            }
        };
    }
    chains!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_storeu_ps, 16);
    chains!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_storeu_ps, 8);
}

fn portable(rounds: usize, x: f32) -> f32 {
    let mut acc = [[1.0f32; 4]; CHAINS];
    for _ in 0..rounds {
        for v in acc.iter_mut().flatten() {
            *v = *v * x + 1e-9;
        }
    }
    acc.iter().flatten().sum()
}

/// Operations of so many rounds of the widest instructions, and their name.
fn multiply_adds(rounds: usize, x: f32) -> (f64, &'static str) {
    let (lanes, name) = 'done: {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the CPU has the instructions.
                black_box(unsafe { chains::avx512(rounds, x) });
                break 'done (16, "AVX-512");
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the CPU has the instructions.
                black_box(unsafe { chains::avx2(rounds, x) });
                break 'done (8, "AVX2");
            }
        }
        black_box(portable(rounds, x));
        (4, "portable")
    };
    (2.0 * (rounds * CHAINS * lanes) as f64, name)
}

/// The best rate of `work` on all threads over some rounds of a tenth of a second.
fn best_rate(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let round = || {
        let begin = Instant::now();
        let done: f64 = thread::scope(|scope| {
            let one = |at: usize| {
                let work = &work;
                scope.spawn(move || {
                    let mut done = 0.0;
                    while begin.elapsed() < Duration::from_millis(100) {
                        done += work(at);
                    }
                    done
                })
            };
            let running: Vec<_> = (0..threads).map(one).collect();
            running.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
        });
        done / begin.elapsed().as_secs_f64()
    };
    (0..5).map(|_| round()).fold(0.0, f64::max)
}

/// Measures, in about a second.
pub fn ceilings() -> CpuCeilings {
    const COPY: usize = 16 << 20;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let multiply_add = best_rate(threads, |_| multiply_adds(20_000, black_box(0.999)).0);
    let buffers: Vec<_> =
        (0..threads).map(|_| std::sync::Mutex::new((vec![1u8; 4 * COPY], vec![0u8; 4 * COPY]))).collect();
    let bandwidth = best_rate(threads, |at| {
        // Nobody else has this thread's buffers.
        let Ok(mut pair) = buffers[at].lock() else { return 0.0 };
        let (from, to) = &mut *pair;
        to.copy_from_slice(black_box(from));
        black_box(to[COPY]);
        2.0 * from.len() as f64
    });
    CpuCeilings { threads, multiply_add, bandwidth, instructions: multiply_adds(1, 1.0).1 }
}

fn run<T: Element>(case: &Case) -> Outcome<Clock>
where
    f32: GradientOf<T> + Element<Acc = T::Acc>,
{
    let Case { op, batch, n, m, d, .. } = *case;
    let backend = Backend::cpu();
    let (x, y) = (embeddings::<T>(batch * n, d, 1), embeddings::<T>(batch * m, d, 2));
    let (xm, ym) = (MatRef::new(&x, batch * n, d)?, MatRef::new(&y, batch * m, d)?);
    let similarities = op.similarities();
    let (results, others) = if similarities.is_some() { (batch * n * m, 0) } else { (n * d, m * d) };
    let (mut dx, mut dy) = (vec![0.0f32; results], vec![0.0f32; others]);
    let ids: [Vec<i64>; 2] = [(n, 1), (m, m.div_ceil(n.max(1)).max(1))]
        .map(|(len, of): (usize, usize)| (0..len).map(|at| (at / of) as i64).collect());
    let count = 3 * n;
    let rows: Vec<i32> = (0..count).map(|at| (at % n.max(1)) as i32).collect();
    let cols: Vec<i32> = (0..count).map(|at| (at % n.max(1) * (1 + at / n.max(1) * 4) % m.max(1)) as i32).collect();
    let values = vec![T::Acc::from_f64(0.5); count];
    let goal = goal_objective()?;
    let pairwise = if op == Op::SigLip { siglip()? } else { PairwiseObjective::InfoNce { scale: SCALE } };

    let mut call = || -> Outcome<()> {
        match op {
            Op::CosineMatrix | Op::CosineSplit => {
                let (x, y) = (BatchRef::new(&x, batch, n, d)?, BatchRef::new(&y, batch, m, d)?);
                let out = BatchMut::new(&mut dx, batch, n, m)?;
                backend.cosine_matrix(x, y, &similarities.unwrap_or_default(), out)?;
            }
            Op::Mine => drop(backend.mine(xm, ym, &MineOptions::default())?),
            Op::SemiHard => drop(backend.mine_top_k(xm, ym, &semi_hard())?),
            Op::Lse => return Err(Failure::new("lse is a part of infonce and no operation that could be run alone")),
            Op::InfoNce | Op::InfoNceSplit | Op::SigLip => {
                let (dx, dy) = (MatMut::new(&mut dx, n, d)?, MatMut::new(&mut dy, m, d)?);
                backend.pairwise_step(xm, ym, &pairwise, &PairwiseOptions::default(), dx, dy)?;
            }
            Op::WeightedGrad => {
                let (dx, dy) = (MatMut::new(&mut dx, n, d)?, MatMut::new(&mut dy, m, d)?);
                let w = WeightTriples { rows: &rows, cols: &cols, values: &values };
                backend.weighted_grad(xm, ym, &w, &GradOptions::default(), dx, dy)?;
            }
            Op::Goal => {
                let (dx, dy) = (MatMut::new(&mut dx, n, d)?, MatMut::new(&mut dy, m, d)?);
                backend.goal_step(xm, ym, &goal, &StepOptions::default(), dx, dy)?;
            }
            Op::Ranks => {
                let groups = Some(Groups { rows: &ids[0], cols: &ids[1] });
                drop(backend.ranks(xm, ym, &RecallOptions { groups, ..RecallOptions::default() })?);
            }
        }
        Ok(())
    };
    call()?;
    let (begin, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < 3 || (samples.len() < 100 && begin.elapsed() < Duration::from_secs(2)) {
        let start = Instant::now();
        call()?;
        samples.push(start.elapsed().as_secs_f64());
    }
    Ok(Clock::of(samples))
}

/// Times the case on the CPU: at least three calls after the first.
pub fn time(case: &Case) -> Outcome<Clock> {
    match case.dtype {
        DType::F16 => run::<f16>(case),
        DType::Bf16 => run::<bf16>(case),
        _ => run::<f32>(case),
    }
}
