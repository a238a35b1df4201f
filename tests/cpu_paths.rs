//! The CPU path with every instruction set that this machine has, against each other and against sums in f64.
//!
//! Which ones those are depends on the machine; the portable one is always among them. Bits are promised to be equal across
//! paths for integers alone, and between `avx512_bf16` and `avx512` for everything: the former multiplies bf16 in pairs.

use half::{bf16, f16};
use simgrad::cpu::{self, Cpu};
use simgrad::{
    BatchMut, BatchRef, CosineOptions, Element, GradOptions, GradientOf, Groups, MatMut, MatRef, MineOptions, Mined,
    Normalization, Objective, PairwiseObjective, PairwiseOptions, RecallOptions, StepOptions, TopKOptions,
    WeightTriples,
};

fn paths() -> Vec<Cpu> {
    let all: Vec<Cpu> =
        Cpu::instruction_sets().into_iter().map(|name| Cpu::with_instruction_set(2, name).unwrap()).collect();
    assert_eq!(all.last().unwrap().instruction_set(), "portable");
    all
}

/// Numbers between −1 and 1.
fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn stored<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

fn integers<T: Element>(len: usize, seed: u64) -> Vec<T> {
    noise(len, seed).into_iter().map(|v| T::from_f64((v * 2.99).trunc())).collect()
}

/// Rows with a common part, so that pairs are similar.
fn pair<T: Element>(n: usize, m: usize, d: usize) -> (Vec<T>, Vec<T>) {
    let common = noise(n.max(m) * d, 1);
    let side = |rows: usize, seed| -> Vec<T> {
        // Few enough features in common that some negatives are as similar as pairs.
        stored(&noise(rows * d, seed).iter().zip(&common).map(|(own, c)| own + 0.4 * c).collect::<Vec<_>>())
    };
    (side(n, 2), side(m, 3))
}

fn similarities<T: Element<Acc = f32>>(
    cpu: &Cpu,
    x: &[T],
    y: &[T],
    d: usize,
    normalization: Normalization,
) -> Vec<f32> {
    let (n, m) = (x.len() / d, y.len() / d);
    let mut s = vec![f32::NAN; n * m];
    let options = CosineOptions { normalization, ..CosineOptions::default() };
    let (x, y) = (BatchRef::new(x, 1, n, d).unwrap(), BatchRef::new(y, 1, m, d).unwrap());
    cpu::cosine_matrix(cpu, x, y, &options, BatchMut::new(&mut s, 1, n, m).unwrap()).unwrap();
    s
}

fn mined<T: Element<Acc = f32>>(cpu: &Cpu, x: &[T], y: &[T], d: usize, normalization: Normalization) -> Mined<f32> {
    let options = MineOptions { normalization, second: true, ..MineOptions::default() };
    cpu::mine(cpu, MatRef::new(x, x.len() / d, d).unwrap(), MatRef::new(y, y.len() / d, d).unwrap(), &options).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Everything that finds something, in a form that can be compared bit by bit.
fn found<T: Element<Acc = f32>>(cpu: &Cpu, x: &[T], y: &[T], d: usize, normalization: Normalization) -> Vec<Vec<u32>> {
    let (xm, ym) = (MatRef::new(x, x.len() / d, d).unwrap(), MatRef::new(y, y.len() / d, d).unwrap());
    let mined = mined(cpu, x, y, d, normalization);
    let index = |of: &[i32]| of.iter().map(|&i| i as u32).collect::<Vec<_>>();
    let mut all = vec![bits(&similarities(cpu, x, y, d, normalization)), bits(&mined.positive)];
    for side in [&mined.rows, &mined.cols] {
        all.extend([bits(&side.value), index(&side.index), bits(&side.second)]);
    }
    let ranks = cpu::ranks(cpu, xm, ym, &RecallOptions { normalization, ..RecallOptions::default() }).unwrap();
    all.extend([index(&ranks.rows), index(&ranks.cols)]);
    let options = TopKOptions { normalization, ..TopKOptions::hardest(5) };
    let top = cpu::mine_top_k(cpu, xm, ym, &options).unwrap();
    for side in [&top.rows, &top.cols] {
        all.extend([bits(&side.value), index(&side.index)]);
    }
    all
}

fn integers_are_equal<T: Element<Acc = f32>>()
where
    f32: GradientOf<T>,
{
    for (n, m, d) in [(1, 1, 1), (7, 33, 5), (40, 129, 127), (131, 70, 300), (300, 260, 129)] {
        let (x, y) = (integers::<T>(n * d, 5), integers::<T>(m * d, 6));
        let rows: Vec<i32> = (0..3 * n).map(|i| (i % n) as i32).collect();
        let cols: Vec<i32> = (0..3 * n).map(|i| (i * 7 % m) as i32).collect();
        let values: Vec<f32> = (0..3 * n).map(|i| (i % 5) as f32 - 2.0).collect();
        let triples = WeightTriples { rows: &rows, cols: &cols, values: &values };
        let options = GradOptions { normalization: Normalization::None, ..GradOptions::default() };
        let run = |cpu: &Cpu| {
            let (mut dx, mut dy) = (vec![0f32; n * d], vec![0f32; m * d]);
            let (xm, ym) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
            let (dxm, dym) = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, m, d).unwrap());
            cpu::weighted_grad(cpu, xm, ym, &triples, &options, dxm, dym).unwrap();
            let mut all = found(cpu, &x, &y, d, Normalization::None);
            all.extend([bits(&dx), bits(&dy)]);
            all
        };
        let mut paths = paths().into_iter();
        let want = run(&paths.next().unwrap());
        assert!(want[0].iter().any(|&s| s != 0), "similarities of {n} x {m} x {d} are all zero");
        for cpu in paths {
            assert_eq!(run(&cpu), want, "{} {n} x {m} x {d}", cpu.instruction_set());
        }
    }
}

#[test]
fn integers_give_the_same_bits_on_every_path() {
    integers_are_equal::<f32>();
    integers_are_equal::<f16>();
    integers_are_equal::<bf16>();
}

#[test]
fn similarities_of_every_path_are_within_the_bound() {
    fn check<T: Element<Acc = f32>>() {
        for (n, m, d) in [(3, 5, 1024), (130, 70, 257), (8, 300, 64)] {
            let (x, y) = pair::<T>(n, m, d);
            let length = |row: &[T]| row.iter().map(|v| v.to_f64().powi(2)).sum::<f64>().sqrt();
            for cpu in paths() {
                let s = similarities(&cpu, &x, &y, d, Normalization::L2);
                for (i, a) in x.chunks(d).enumerate() {
                    for (j, b) in y.chunks(d).enumerate() {
                        let dot: f64 = a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
                        let (got, want) = (f64::from(s[i * m + j]), dot / (length(a) * length(b)));
                        assert!((got - want).abs() < 1e-6, "{} {i} {j}: {got} {want}", cpu.instruction_set());
                    }
                }
            }
        }
    }
    check::<f32>();
    check::<f16>();
    check::<bf16>();
}

/// The path with products in pairs and the one without it, where this machine has them.
fn with_and_without_pairs() -> Option<[Cpu; 2]> {
    let has = |name| Cpu::instruction_sets().contains(&name);
    if !has("avx512_bf16") {
        println!("this machine has no avx512_bf16: nothing to compare");
        return None;
    }
    Some(["avx512_bf16", "avx512"].map(|name| Cpu::with_instruction_set(2, name).unwrap()))
}

#[test]
fn products_in_pairs_change_no_bit() {
    let Some([pairs, chains]) = with_and_without_pairs() else { return };
    for (n, m, d) in [(1, 1, 1), (5, 40, 2), (33, 70, 127), (130, 131, 129), (300, 290, 513), (130, 4, 1024)] {
        let (x, y) = pair::<bf16>(n, m, d);
        for normalization in [Normalization::None, Normalization::L2] {
            let want = found(&chains, &x, &y, d, normalization);
            assert_eq!(found(&pairs, &x, &y, d, normalization), want, "{n} x {m} x {d}");
        }
        // Of magnitudes from 2^-40 to 2^40, the whole range that pairs are used for.
        let scale = |v: &[bf16], seed| -> Vec<bf16> {
            v.iter().zip(noise(v.len(), seed)).map(|(v, e)| bf16::from_f64(v.to_f64() * (e * 38.0).exp2())).collect()
        };
        let (x, y) = (scale(&x, 7), scale(&y, 8));
        let want = found(&chains, &x, &y, d, Normalization::None);
        assert_eq!(found(&pairs, &x, &y, d, Normalization::None), want, "{n} x {m} x {d}, scaled");
    }
}

#[test]
fn what_pairs_cannot_hold_is_not_multiplied_in_pairs() {
    let Some([pairs, chains]) = with_and_without_pairs() else { return };
    let (n, m, d) = (40, 45, 66);
    // Subnormal inputs, products and sums, and what is not finite.
    for special in [1e-39, 1e-30, 3e38, f64::INFINITY, f64::NEG_INFINITY, -0.0] {
        for at in [0, 7 * d + 65, n * d - 1] {
            let (mut x, y) = pair::<bf16>(n, m, d);
            x[at] = bf16::from_f64(special);
            for normalization in [Normalization::None, Normalization::L2] {
                let want = found(&chains, &x, &y, d, normalization);
                assert_eq!(found(&pairs, &x, &y, d, normalization), want, "{special} at {at}");
            }
        }
    }
    // Products of 2^-140: subnormal, and not 0.
    let tiny: Vec<bf16> = noise(n * d, 9).iter().map(|v| bf16::from_f64(v * (-70f64).exp2())).collect();
    let s = similarities(&pairs, &tiny, &tiny, d, Normalization::None);
    assert!(s.iter().any(|&v| v != 0.0 && !v.is_normal()), "no subnormal similarity to compare");
    assert_eq!(bits(&s), bits(&similarities(&chains, &tiny, &tiny, d, Normalization::None)));
}

/// Gradients of a step on one path.
type Gradients = (f64, Vec<f32>, Vec<f32>);

fn off(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let size: f64 = b.iter().map(|&v| square(f64::from(v))).sum();
    let off: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    (off / size.max(1e-30)).sqrt()
}

fn agree(name: &str, run: impl Fn(&Cpu) -> Gradients) {
    let mut paths = paths().into_iter();
    let want = run(&paths.next().unwrap());
    assert!(want.1.iter().any(|v| *v != 0.0), "{name}: no gradient");
    for cpu in paths {
        let got = run(&cpu);
        let path = cpu.instruction_set();
        assert!((got.0 - want.0).abs() <= 2e-5 * want.0.abs().max(1e-2), "{name} {path}: loss {} {}", got.0, want.0);
        for (got, want) in [(&got.1, &want.1), (&got.2, &want.2)] {
            assert!(off(got, want) < 2e-5, "{name} {path}: {}", off(got, want));
        }
    }
}

fn unit(rows: &[f32], d: usize) -> Vec<f32> {
    let of_row = |row: &[f32]| {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter().map(|v| v / norm).collect::<Vec<_>>()
    };
    rows.chunks(d).flat_map(of_row).collect()
}

#[test]
fn gradients_of_every_path_agree() {
    // One wave by slices of features, with whole and with ragged tiles, and several waves.
    for (n, d) in [(37, 19), (128, 64), (130, 200), (1100, 9)] {
        let (x, y) = pair::<f32>(n, n, d);
        let ids: Vec<i64> = (0..n as i64).map(|i| i / 3).collect();
        let (xm, ym) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
        let step = |run: &dyn Fn(MatMut<'_, f32>, MatMut<'_, f32>) -> f64| -> Gradients {
            let (mut dx, mut dy) = (vec![f32::NAN; n * d], vec![f32::NAN; n * d]);
            let loss = run(MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
            (loss, dx, dy)
        };
        for normalization in [Normalization::None, Normalization::L2] {
            let groups = Some(Groups { rows: &ids, cols: &ids });
            for objective in PairwiseObjective::ALL {
                // Rows as they are have similarities far outside those that the objectives are made for.
                if normalization == Normalization::None {
                    continue;
                }
                let options = PairwiseOptions { normalization, groups, ..PairwiseOptions::default() };
                agree(&format!("{objective} {n} x {d}"), |cpu| {
                    step(&|dx, dy| cpu::pairwise_step(cpu, xm, ym, &objective, &options, dx, dy).unwrap().loss)
                });
            }
            let objective: Objective = "nca-lin".parse().unwrap();
            let options = StepOptions { normalization, groups, ..StepOptions::default() };
            agree(&format!("{objective} {n} x {d} {normalization:?}"), |cpu| {
                step(&|dx, dy| cpu::goal_step(cpu, xm, ym, &objective, &options, dx, dy).unwrap().mean_positive)
            });
        }
        let [ux, uy] = [&x, &y].map(|rows| unit(rows, d));
        let (um, vm) = (MatRef::new(&ux, n, d).unwrap(), MatRef::new(&uy, n, d).unwrap());
        let options = PairwiseOptions { normalization: Normalization::None, ..PairwiseOptions::default() };
        for objective in PairwiseObjective::ALL {
            agree(&format!("{objective} {n} x {d}, unit rows"), |cpu| {
                step(&|dx, dy| cpu::pairwise_step(cpu, um, vm, &objective, &options, dx, dy).unwrap().loss)
            });
        }
    }
}

#[test]
fn no_path_depends_on_the_number_of_threads() {
    let (n, d) = (200, 70);
    let (x, y) = pair::<bf16>(n, n, d);
    for name in Cpu::instruction_sets() {
        let run = |threads: usize| {
            let cpu = Cpu::with_instruction_set(threads, name).unwrap();
            let (mut dx, mut dy) = (vec![0f32; n * d], vec![0f32; n * d]);
            let (xm, ym) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
            let (dxm, dym) = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
            let objective = PairwiseObjective::InfoNce { scale: 10.0 };
            let report = cpu::pairwise_step(&cpu, xm, ym, &objective, &PairwiseOptions::default(), dxm, dym).unwrap();
            (report, bits(&dx), bits(&dy), found(&cpu, &x, &y, d, Normalization::L2))
        };
        let one = run(1);
        for threads in [2, 3, 6] {
            assert_eq!(run(threads), one, "{name}, {threads} threads");
        }
    }
}
