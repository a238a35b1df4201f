//! The pairwise family's formulas: weights against finite differences of the losses, and known identities.

use simgrad::reference::{pairwise_step, pairwise_step_single, pairwise_weights};
use simgrad::{Groups, LossKind, MatRef, Normalization, PairwiseObjective, PairwiseOptions};

/// Reproducible numbers from −1 to 1.
fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

const ROW_IDS: [i64; 6] = [3, 7, 3, -1, 9, 7];
const COL_IDS: [i64; 7] = [3, 7, 8, -1, 7, 3, 9];

fn with_groups() -> PairwiseOptions<'static> {
    PairwiseOptions { groups: Some(Groups { rows: &ROW_IDS, cols: &COL_IDS }), ..PairwiseOptions::default() }
}

#[test]
fn weights_are_the_derivative_of_the_loss() {
    let weights: Vec<f32> = noise(7, 5).iter().map(|v| 1.5 + *v as f32).collect();
    let ignore_rows = [false, false, true, false, false, false];
    let ignore_cols = [false, true, false, false, false, false, false];
    let everything = PairwiseOptions {
        row_weights: Some(&weights[..6]),
        ignore_rows: Some(&ignore_rows),
        ignore_cols: Some(&ignore_cols),
        ..with_groups()
    };
    let shape = (6, 7);
    let mut s = noise(42, 1);
    s.iter_mut().for_each(|v| *v *= 0.9);
    for objective in PairwiseObjective::ALL.into_iter().filter(|o| o.loss_kind() == LossKind::Potential) {
        for options in [PairwiseOptions::default(), with_groups(), everything] {
            let (_, w) = pairwise_weights(&s, shape, &objective, &options, false);
            assert!(w.iter().any(|w| *w != 0.0), "{objective} does something");
            for at in 0..42 {
                let h = 1e-6;
                let loss_at = |v: f64| {
                    let mut moved = s.clone();
                    moved[at] = v;
                    pairwise_weights(&moved, shape, &objective, &options, false).0
                };
                let slope = (loss_at(s[at] + h) - loss_at(s[at] - h)) / (2.0 * h);
                let scale = w.iter().fold(1.0f64, |a, b| a.max(b.abs()));
                assert!((slope - w[at]).abs() < 2e-7 * scale, "{objective} {at}: {slope} against {}", w[at]);
            }
        }
    }
}

#[test]
fn the_two_set_gradient_is_the_derivative_with_respect_to_the_rows() {
    let (n, m, d) = (6, 7, 5);
    let (x, y) = (noise(n * d, 2), noise(m * d, 3));
    for normalization in [Normalization::L2, Normalization::None] {
        let options = PairwiseOptions { normalization, ..with_groups() };
        for objective in PairwiseObjective::ALL.into_iter().filter(|o| o.loss_kind() == LossKind::Potential) {
            if normalization == Normalization::None && matches!(objective, PairwiseObjective::Lifted { .. }) {
                continue; // Its distance is that of unit rows.
            }
            let step = |x: &[f64], y: &[f64]| {
                let (x, y) = (MatRef::new(x, n, d).unwrap(), MatRef::new(y, m, d).unwrap());
                pairwise_step(x, y, &objective, &options)
            };
            let found = step(&x, &y);
            let largest = found.dx.iter().fold(1.0f64, |a, b| a.max(b.abs()));
            for at in [0, 7, 29] {
                let moved = |by: f64| {
                    let mut x = x.clone();
                    x[at] += by;
                    step(&x, &y).report.loss
                };
                let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((slope - found.dx[at]).abs() < 1e-6 * largest, "{objective}: {slope} {}", found.dx[at]);
            }
        }
    }
}

#[test]
fn parameter_gradients_are_derivatives() {
    let (n, d) = (6, 5);
    let (x, y) = (noise(n * d, 2), noise(n * d, 3));
    let options = PairwiseOptions { upstream: 3.0, ..PairwiseOptions::default() };
    let step = |objective: PairwiseObjective| {
        pairwise_step(MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap(), &objective, &options).report
    };
    let h = 1e-6;
    let slope =
        |f: &dyn Fn(f64) -> PairwiseObjective, at: f64| 3.0 * (step(f(at + h)).loss - step(f(at - h)).loss) / (2.0 * h);
    let clip = |scale| PairwiseObjective::InfoNce { scale };
    assert!((slope(&clip, 5.0) - step(clip(5.0)).d_scale).abs() < 1e-7);
    let sup_con = |scale: f64| PairwiseObjective::SupCon { tau: 1.0 / scale };
    assert!((slope(&sup_con, 5.0) - step(sup_con(5.0)).d_scale).abs() < 1e-7);
    let scaled = |scale| PairwiseObjective::SigLip { scale, bias: -3.0 };
    assert!((slope(&scaled, 5.0) - step(scaled(5.0)).d_scale).abs() < 1e-7);
    let biased = |bias| PairwiseObjective::SigLip { scale: 5.0, bias };
    assert!((slope(&biased, -3.0) - step(biased(-3.0)).d_bias).abs() < 1e-7);
}

#[test]
fn a_single_set_is_differentiated_on_both_sides() {
    let (n, d) = (6, 4);
    let x = noise(n * d, 4);
    let options =
        PairwiseOptions { groups: Some(Groups { rows: &ROW_IDS, cols: &ROW_IDS }), ..PairwiseOptions::default() };
    for objective in PairwiseObjective::ALL.into_iter().filter(|o| o.loss_kind() == LossKind::Potential) {
        let step = |x: &[f64]| pairwise_step_single(MatRef::new(x, n, d).unwrap(), &objective, &options);
        let found = step(&x);
        for at in [0, 9, 23] {
            let moved = |by: f64| {
                let mut x = x.clone();
                x[at] += by;
                step(&x).report.loss
            };
            let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((slope - found.dx[at]).abs() < 2e-5, "{objective}: {slope} against {}", found.dx[at]);
        }
    }
}

#[test]
fn a_converged_batch_at_scale_100_keeps_its_gradient() {
    // Logits 100 against 0: p − 1 would be exactly 0 in f64, the true weight is −e^{−100}.
    let s = [1.0, 0.0, 0.0, 1.0];
    let objective = PairwiseObjective::InfoNce { scale: 100.0 };
    let (loss, w) = pairwise_weights(&s, (2, 2), &objective, &PairwiseOptions::default(), false);
    let p = (-100f64).exp();
    assert!((loss / p - 1.0).abs() < 1e-12, "{loss:e}");
    assert!((w[0] / (-50.0 * p) - 1.0).abs() < 1e-12 && (w[1] / (50.0 * p) - 1.0).abs() < 1e-12, "{w:?}");
}
