//! Mining and the step against plain `f64` loops that follow the definitions, on every instruction set.

use half::{bf16, f16};

use super::pool::Cpu;
use super::tile::Isa;
use super::{goal_step, goal_step_detail, mine};
use crate::dtype::{Element, GradientOf};
use crate::matrix::{MatMut, MatRef};
use crate::objective::{Objective, PairWeight, Reduction, TripletWeight};
use crate::options::{Groups, MineOptions, Normalization, StepOptions, WriteMode};
use crate::outputs::{NONE, StepDetail, StepReport};

fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
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

/// Rows in `f64`, divided by their norms or not, and the norms.
fn unit_rows<T: Element>(x: &[T], d: usize, normalization: Normalization) -> (Vec<Vec<f64>>, Vec<f64>) {
    x.chunks(d)
        .map(|row| {
            let row: Vec<f64> = row.iter().map(|v| v.to_f64()).collect();
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            match normalization {
                Normalization::L2 if norm > 0.0 => (row.iter().map(|v| v / norm).collect(), norm),
                _ => (row, norm),
            }
        })
        .unzip()
}

fn product(x: &[Vec<f64>], y: &[Vec<f64>]) -> Vec<Vec<f64>> {
    x.iter().map(|x| y.iter().map(|y| x.iter().zip(y).map(|(a, b)| a * b).sum()).collect()).collect()
}

/// `(hardest, index, second)` of one row of similarities.
fn hardest(s: &[f64], candidate: impl Fn(usize) -> bool) -> (f64, i32, f64) {
    let mut found = (f64::NEG_INFINITY, NONE, f64::NEG_INFINITY);
    for (j, &v) in s.iter().enumerate().filter(|(j, _)| candidate(*j)) {
        if found.1 == NONE || v > found.0 || (v.is_nan() && !found.0.is_nan()) {
            found = (v, j as i32, if found.1 == NONE { f64::NEG_INFINITY } else { found.0 });
        } else if v > found.2 || v.is_nan() {
            found.2 = v;
        }
    }
    found
}

fn transpose(s: &[Vec<f64>], m: usize) -> Vec<Vec<f64>> {
    (0..m).map(|j| s.iter().map(|row| row[j]).collect()).collect()
}

fn ids(len: usize, kinds: i64, seed: u64) -> Vec<i64> {
    noise(len, seed).into_iter().map(|v| ((v + 1.0) * 0.5 * kinds as f64) as i64 * 1_000_003 - 5).collect()
}

#[test]
fn mining_agrees_with_the_definition() {
    for isa in Isa::available() {
        let cpu = Cpu::build(2, isa).unwrap();
        for (n, m, d) in [(1, 1, 3), (5, 3, 4), (40, 90, 7), (150, 130, 20), (3, 1200, 5), (700, 2, 5)] {
            // Integers: many exact ties.
            let mut x: Vec<f32> = noise(n * d, 5).iter().map(|v| (v * 3.0).round() as f32).collect();
            let y: Vec<f32> = noise(m * d, 6).iter().map(|v| (v * 3.0).round() as f32).collect();
            if n == 150 {
                (x[7 * d], x[100 * d + 2]) = (f32::NAN, f32::NEG_INFINITY);
            }
            let (row_ids, col_ids) = (ids(n, 6, 1), ids(m, 6, 2));
            for groups in [None, Some(Groups { rows: &row_ids, cols: &col_ids })] {
                let options = MineOptions { normalization: Normalization::None, groups, second: true };
                let (xs, ys) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
                let found = mine(&cpu, xs, ys, &options).unwrap();
                let s = product(&unit_rows(&x, d, Normalization::None).0, &unit_rows(&y, d, Normalization::None).0);
                let open = |i: usize, j: usize| i != j && groups.is_none_or(|g| g.rows[i] != g.cols[j]);
                let same = |a: f32, b: f64| f64::from(a) == b || (a.is_nan() && b.is_nan());
                for (i, row) in s.iter().enumerate() {
                    let (value, index, second) = hardest(row, |j| open(i, j));
                    let case = format!("{} row {i} of {n} x {m}: {value} {index} {second}", isa.name());
                    assert_eq!(found.rows.index[i], index, "{case}");
                    assert!(same(found.rows.value[i], value) && same(found.rows.second[i], second), "{case}");
                }
                for (j, col) in transpose(&s, m).iter().enumerate() {
                    let (value, index, second) = hardest(col, |i| open(i, j));
                    let case = format!("{} col {j} of {n} x {m}: {value} {index} {second}", isa.name());
                    assert_eq!(found.cols.index[j], index, "{case}");
                    assert!(same(found.cols.value[j], value) && same(found.cols.second[j], second), "{case}");
                }
                assert!(found.positive.iter().enumerate().all(|(i, &p)| same(p, s[i][i])));
            }
        }
    }
}

#[test]
fn candidates_of_minus_infinity_still_count() {
    let cpu = Cpu::with_threads(1).unwrap();
    let (x, y) = ([1f32, 1.0], [f32::NEG_INFINITY, f32::NEG_INFINITY]);
    let options = MineOptions { normalization: Normalization::None, second: true, ..MineOptions::default() };
    let found = mine(&cpu, MatRef::new(&x, 2, 1).unwrap(), MatRef::new(&y, 2, 1).unwrap(), &options).unwrap();
    assert_eq!((found.rows.index, found.cols.index), (vec![1, 0], vec![1, 0]));
    assert!(found.rows.value.iter().all(|v| *v == f32::NEG_INFINITY));
}

/// One direction by the definitions of the objective; `s[i]` are anchor `i`'s similarities.
#[allow(clippy::type_complexity)]
fn anchors(
    s: &[Vec<f64>],
    objective: &Objective,
    same_group: impl Fn(usize, usize) -> bool,
) -> Vec<(i32, f64, f64, f64, [f64; 2], [u32; 2])> {
    let p: Vec<f64> = s.iter().enumerate().map(|(i, row)| row[i]).collect();
    let lowest = p.iter().copied().fold(f64::INFINITY, f64::min);
    let one = |i: usize| {
        let (n, index, _) = hardest(&s[i], |j| i != j && !same_group(i, j));
        if index == NONE {
            return (NONE, 0.0, 0.0, 0.0, [0.0; 2], [0; 2]);
        }
        let (mut rs, mut counts) = ([0.0; 2], [0; 2]);
        if let Some(eps) = objective.pair().eps() {
            let open = |j: &usize| *j != i && !same_group(i, *j);
            let pos = (0..s.len()).filter(open).filter(|&j| p[j] <= n + eps).map(|j| p[i] - p[j]);
            let neg = (0..s.len()).filter(open).filter(|&k| k as i32 != index && s[i][k] >= lowest - eps);
            let neg = neg.map(|k| n - s[i][k]);
            let terms: [Vec<f64>; 2] = match objective.pair() {
                PairWeight::SigMs { alpha, beta, .. } => {
                    [pos.map(|v| (alpha * v).exp()).collect(), neg.map(|v| (-beta * v).exp()).collect()]
                }
                _ => [pos.filter(|v| *v != 0.0).collect(), neg.filter(|v| *v > 0.0).collect()],
            };
            counts = [terms[0].len() as u32, terms[1].len() as u32];
            rs = [0, 1].map(|t: usize| terms[t].iter().sum::<f64>() / f64::from(counts[t].max(1)));
        }
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        let t = match objective.triplet() {
            TripletWeight::Con => 1.0,
            TripletWeight::Hinge { margin } => f64::from(u8::from(margin + n - p[i] > 0.0)),
            TripletWeight::Nca { tau } => sigmoid(tau * (n - p[i])),
            TripletWeight::Cir { tau, offset } => sigmoid(tau * (n * n + (1.0 - p[i]).powi(2) - offset)),
        };
        let (w_pos, w_neg) = match objective.pair() {
            PairWeight::Con => (1.0, 1.0),
            PairWeight::Lin => (1.0 - p[i], n),
            PairWeight::Sig { alpha, beta, lambda } => {
                (sigmoid(-alpha * (p[i] - lambda)), sigmoid(beta * (n - lambda)))
            }
            PairWeight::LinMs { .. } => ((1.0 - rs[0]) * (1.0 - p[i]), (1.0 + rs[1]) * n),
            PairWeight::SigMs { alpha, beta, lambda, .. } => {
                (1.0 / ((alpha * (p[i] - lambda)).exp() + rs[0]), 1.0 / ((-beta * (n - lambda)).exp() + rs[1]))
            }
        };
        (index, t, w_pos, w_neg, rs, counts)
    };
    (0..s.len()).map(one).collect()
}

/// Runs a step in `T` and compares everything with the definitions.
fn check_step<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    n: usize,
    d: usize,
    objective: &Objective,
    options: &StepOptions<'_>,
    tolerance: f64,
) -> (StepReport, StepDetail<T::Acc>) {
    let mix: Vec<f64> = noise(n * d, 3);
    let x: Vec<T> = stored(&mix.iter().zip(noise(n * d, 4)).map(|(a, b)| a + 0.5 * b).collect::<Vec<_>>());
    let y: Vec<T> = stored(&mix.iter().zip(noise(n * d, 8)).map(|(a, b)| a + 0.5 * b).collect::<Vec<_>>());
    let ((xs, x_norms), (ys, y_norms)) =
        (unit_rows(&x, d, options.normalization), unit_rows(&y, d, options.normalization));
    let s = product(&xs, &ys);
    let same_group = |i: usize, j: usize| options.groups.is_some_and(|g| g.rows[i] == g.cols[j]);
    let it = anchors(&s, objective, same_group);
    let ti = anchors(&transpose(&s, n), objective, |j, i| same_group(i, j));
    let mut w = vec![vec![0.0; n]; n];
    let factor = options.upstream * objective.reduction_factor(n);
    for i in 0..n {
        for (rows, a) in [(true, &it[i]), (false, &ti[i])] {
            let Ok(k) = usize::try_from(a.0) else { continue };
            w[i][i] -= factor * a.1 * a.2;
            *(if rows { &mut w[i][k] } else { &mut w[k][i] }) += factor * a.1 * a.3;
        }
    }
    let gradient = |w: &[Vec<f64>], from: &[Vec<f64>], to: &[Vec<f64>], norms: &[f64]| -> Vec<f64> {
        let row = |i: usize| {
            let mut g = vec![0.0; d];
            for (j, from) in from.iter().enumerate() {
                g.iter_mut().zip(from).for_each(|(g, v)| *g += w[i][j] * v);
            }
            if options.normalization == Normalization::L2 {
                let along: f64 = g.iter().zip(&to[i]).map(|(a, b)| a * b).sum();
                g.iter_mut().zip(&to[i]).for_each(|(g, u)| *g = (*g - along * u) / norms[i]);
            }
            g
        };
        (0..n).flat_map(row).collect()
    };
    let want_x = gradient(&w, &ys, &xs, &x_norms);
    let want_y = gradient(&transpose(&w, n), &xs, &ys, &y_norms);

    let old = if options.write == WriteMode::Accumulate { 0.25 } else { f64::NAN };
    let mut dx = vec![G::from_f64(old); n * d];
    let mut dy = dx.clone();
    let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
    let (dxm, dym) = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
    let (report, detail) = goal_step_detail(cpu, x, y, objective, options, dxm, dym).unwrap();
    let close = |got: f64, want: f64| (got - want).abs() <= tolerance * want.abs().max(1.0);
    for (got, want) in dx.iter().zip(&want_x).chain(dy.iter().zip(&want_y)) {
        let want = if old.is_nan() { *want } else { want + old };
        assert!(close(got.to_f64(), want), "{objective} gradient {got} {want}");
    }
    for (anchors, detail) in [(&it, &detail.it), (&ti, &detail.ti)] {
        for (i, a) in anchors.iter().enumerate() {
            assert_eq!(detail.neg_index[i], a.0);
            assert_eq!([detail.rs_pos_count[i], detail.rs_neg_count[i]], a.5, "{objective} anchor {i}");
            let got = [detail.triplet[i], detail.w_pos[i], detail.w_neg[i], detail.rs_pos[i], detail.rs_neg[i]];
            for (got, want) in got.into_iter().zip([a.1, a.2, a.3, a.4[0], a.4[1]]) {
                assert!(close(got.to_f64(), want), "{objective} anchor {i}: {got} {want}");
            }
        }
    }
    let mut again = vec![G::from_f64(old); 2 * n * d];
    let (dx_again, dy_again) = again.split_at_mut(n * d);
    let (dxm, dym) = (MatMut::new(dx_again, n, d).unwrap(), MatMut::new(dy_again, n, d).unwrap());
    assert_eq!(goal_step(cpu, x, y, objective, options, dxm, dym).unwrap(), report);
    assert!(dx.iter().chain(&dy).zip(&again).all(|(a, b)| a == b));
    (report, detail)
}

#[test]
fn steps_agree_with_the_definition() {
    for isa in Isa::available() {
        let cpu = Cpu::build(2, isa).unwrap();
        let (row_ids, col_ids) = (ids(130, 40, 1), ids(130, 40, 2));
        for objective in Objective::all() {
            for (n, groups) in [(130, false), (130, true), (2, false)] {
                let groups = groups.then_some(Groups { rows: &row_ids[..n], cols: &col_ids[..n] });
                let options = StepOptions { groups, ..StepOptions::default() };
                check_step::<f64, f64>(&cpu, n, 19, &objective, &options, 1e-12);
                check_step::<f32, f32>(&cpu, n, 19, &objective, &options, 4e-5);
            }
        }
    }
}

#[test]
fn options_of_the_step_are_honoured() {
    let cpu = Cpu::with_threads(2).unwrap();
    let objective = Objective::new(TripletWeight::Nca { tau: 10.0 }, PairWeight::LinMs { eps: 0.1 }).unwrap();
    let objective = objective.with_reduction(Reduction::Mean);
    for write in [WriteMode::Overwrite, WriteMode::Accumulate] {
        for normalization in [Normalization::None, Normalization::L2] {
            let options = StepOptions { normalization, upstream: -3.0, write, groups: None };
            check_step::<f32, f32>(&cpu, 50, 8, &objective, &options, 1e-5);
            check_step::<f16, f32>(&cpu, 50, 8, &objective, &options, 1e-5);
            check_step::<bf16, f32>(&cpu, 50, 8, &objective, &options, 1e-5);
            check_step::<f16, f16>(&cpu, 50, 8, &objective, &options, 2e-3);
            check_step::<bf16, bf16>(&cpu, 50, 8, &objective, &options, 1e-2);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (row_ids, col_ids) = (ids(333, 100, 1), ids(333, 100, 2));
    let objective = Objective::all().pop().unwrap();
    let options = StepOptions { groups: Some(Groups { rows: &row_ids, cols: &col_ids }), ..StepOptions::default() };
    let (n, d) = (333, 40);
    let (x, y) = (stored::<f32>(&noise(n * d, 1)), stored::<f32>(&noise(n * d, 2)));
    let run = |threads: usize| {
        let cpu = Cpu::with_threads(threads).unwrap();
        let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
        let (mut dx, mut dy) = (vec![0f32; n * d], vec![0f32; n * d]);
        let (dxm, dym) = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
        let report = goal_step(&cpu, x, y, &objective, &options, dxm, dym).unwrap();
        (report, dx, dy)
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert_eq!(run(threads), one);
    }
}

#[test]
fn nan_reaches_every_gradient_it_belongs_to() {
    let cpu = Cpu::with_threads(1).unwrap();
    let (n, d) = (4, 3);
    let mut x = stored::<f32>(&noise(n * d, 1));
    let y = stored::<f32>(&noise(n * d, 2));
    x[d + 1] = f32::NAN;
    x[2 * d..3 * d].fill(0.0);
    let (mut dx, mut dy) = (vec![0f32; n * d], vec![0f32; n * d]);
    let (dxm, dym) = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
    let (xm, ym) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
    let objective = Objective::new(TripletWeight::Con, PairWeight::Con).unwrap();
    let (report, detail) = goal_step_detail(&cpu, xm, ym, &objective, &StepOptions::default(), dxm, dym).unwrap();
    assert_eq!((report.nan_x, report.zero_x, report.nan_y, report.zero_y), (1, 1, 0, 0));
    assert!([0, 2, 3].iter().all(|&j| detail.ti.neg_index[j] == 1) && detail.ti.neg_value[1].is_finite());
    assert!(detail.ti.triplet[0].is_nan() && detail.it.triplet[1].is_nan());
    assert!(dx[d..2 * d].iter().all(|v| v.is_nan()) && dy.iter().all(|v| v.is_nan()));
    assert!(dx[2 * d..3 * d].iter().all(|v| *v == 0.0));
    assert!(report.loss.is_nan());
}

#[test]
fn batches_of_none_and_one_are_defined() {
    let cpu = Cpu::with_threads(1).unwrap();
    for objective in Objective::all() {
        let (x, y) = ([3f32, 4.0], [1f32, 0.0]);
        let (mut dx, mut dy) = ([9f32; 2], [9f32; 2]);
        let empty = goal_step(
            &cpu,
            MatRef::new(&x, 0, 2).unwrap(),
            MatRef::new(&y, 0, 2).unwrap(),
            &objective,
            &StepOptions::default(),
            MatMut::new(&mut dx, 0, 2).unwrap(),
            MatMut::new(&mut dy, 0, 2).unwrap(),
        );
        assert_eq!(empty, Ok(StepReport::default()));
        let (dxm, dym) = (MatMut::new(&mut dx, 1, 2).unwrap(), MatMut::new(&mut dy, 1, 2).unwrap());
        let (xm, ym) = (MatRef::new(&x, 1, 2).unwrap(), MatRef::new(&y, 1, 2).unwrap());
        let report = goal_step(&cpu, xm, ym, &objective, &StepOptions::default(), dxm, dym).unwrap();
        assert_eq!((report.empty_it, report.empty_ti, report.active_it, report.loss), (1, 1, 0, 0.0));
        assert!((report.mean_positive - 0.6).abs() < 1e-7);
        assert_eq!((dx, dy), ([0.0; 2], [0.0; 2]));
    }
}
