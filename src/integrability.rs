//! Whether an objective's weights are the gradient of a loss.
//!
//! An objective that is defined by its gradient has a weight `W_ab` for every pair. There is a loss `L(S)` with
//! `W = dL/dS` only if the derivatives of the weights are symmetric, `∂W_ab/∂S_cd = ∂W_cd/∂S_ab` for all pairs. Where they
//! are not, a curve of whatever is logged in place of a loss need not fall while training succeeds. The derivatives are
//! taken numerically in `f64` at a few random matrices of similarities. They miss what happens at a threshold, where
//! weights jump: so the field is also integrated along closed paths, around which the work done by a gradient is 0.
//!
//! ```
//! use simgrad::{Objective, integrability};
//!
//! let vse: Objective = "hinge-con".parse()?;
//! let goal: Objective = "nca-sig".parse()?;
//! assert!(integrability::of_goal(&vse).is_gradient());
//! assert!(!integrability::of_goal(&goal).is_gradient());
//! # Ok::<(), simgrad::Error>(())
//! ```

use crate::objective::Objective;
use crate::options::Groups;
use crate::pairwise::{PairwiseObjective, PairwiseOptions};
use crate::reference::{goal_weights, pairwise_weights};

/// The worst asymmetry that was found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Integrability {
    /// `max |∂W_ab/∂S_cd − ∂W_cd/∂S_ab|`
    pub asymmetry: f64,
    /// The largest magnitude of a derivative, for comparison.
    pub largest: f64,
    /// The two pairs, each `(row, column)`, with the worst asymmetry.
    pub pairs: [(usize, usize); 2],
    /// The largest `|∮ W dS|` around a rectangle of two similarities, relative to its circumference and to the largest
    /// weight on it. Jumps of the weights leave up to 1e-3 of rounding.
    pub circulation: f64,
}

/// Half the distance of the points of a difference.
const STEP: f64 = 1e-5;

/// Asymmetry relative to the largest derivative above which it is none of rounding: differences are exact to about 1e-9.
const TOLERANCE: f64 = 1e-6;

/// Points along a side of a closed path, and the circulation above which it is none of their spacing.
const POINTS: usize = 250;
const LEAST_CIRCULATION: f64 = 4e-3;

impl Integrability {
    /// Whether the field is a gradient as far as the differences can tell.
    pub fn is_gradient(&self) -> bool {
        self.asymmetry <= TOLERANCE * self.largest.max(1.0) && self.circulation < LEAST_CIRCULATION
    }

    fn worse(self, other: Self) -> Self {
        let largest = self.largest.max(other.largest);
        let worst = if other.asymmetry > self.asymmetry { other } else { self };
        Self { largest, circulation: self.circulation.max(other.circulation), ..worst }
    }
}

/// The asymmetry of `weights`, a function from similarities to weights (both with `m` columns), at one matrix `s`.
///
/// Takes two calls of `weights` per element of `s`, and memory for the square of their number.
pub fn of_field(s: &[f64], m: usize, weights: impl Fn(&[f64]) -> Vec<f64>) -> Integrability {
    let count = s.len();
    let mut moved = s.to_vec();
    let mut derivatives = Vec::with_capacity(count * count);
    for b in 0..count {
        moved[b] = s[b] + STEP;
        let up = weights(&moved);
        moved[b] = s[b] - STEP;
        let down = weights(&moved);
        moved[b] = s[b];
        derivatives.extend(up.iter().zip(&down).map(|(up, down)| (up - down) / (2.0 * STEP)));
    }
    let place = |k: usize| (k / m, k % m);
    let mut found = Integrability::default();
    for a in 0..count {
        for b in 0..=a {
            let (ab, ba) = (derivatives[a * count + b], derivatives[b * count + a]);
            found.largest = found.largest.max(ab.abs()).max(ba.abs());
            if (ab - ba).abs() > found.asymmetry {
                found.asymmetry = (ab - ba).abs();
                found.pairs = [place(a), place(b)];
            }
        }
    }
    found
}

/// `∮ W dS` around the rectangle that the similarities `a` and `b` span between their values in `s` and in `to`, as in
/// [`Integrability::circulation`].
pub fn circulation(s: &[f64], to: &[f64], [a, b]: [usize; 2], weights: impl Fn(&[f64]) -> Vec<f64>) -> f64 {
    let (mut work, mut largest, mut length) = (0.0, 0.0f64, 0.0);
    let mut at = s.to_vec();
    // Each side moves one of the two from where it is to the other end.
    for (k, end) in [(a, to[a]), (b, to[b]), (a, s[a]), (b, s[b])] {
        let start = at[k];
        let step = (end - start) / POINTS as f64;
        for point in 0..POINTS {
            at[k] = start + (point as f64 + 0.5) * step;
            let w = weights(&at);
            work += w[k] * step;
            largest = largest.max(w[a].abs()).max(w[b].abs());
        }
        length += (end - start).abs();
        at[k] = end;
    }
    if largest == 0.0 { 0.0 } else { work.abs() / (largest * length) }
}

/// [`of_field`] at `s`, and the circulation around a few rectangles from there.
fn trial(seed: u64, weights: impl Fn(&[f64]) -> Vec<f64>) -> Integrability {
    let (s, to) = (similarities(seed, SIZE * SIZE), similarities(seed + 1000, SIZE * SIZE));
    let mut found = of_field(&s, SIZE, &weights);
    // Its own pair with one of the same row, of the same column and with another's, and two others of one row.
    for i in 0..SIZE {
        let (own, other) = (i * SIZE + i, (i + seed as usize) % SIZE);
        let (in_row, in_column, apart) = (i * SIZE + other, other * SIZE + i, other * SIZE + other);
        for [a, b] in [[own, in_row], [own, in_column], [own, apart], [in_row, i * SIZE + (other + 1) % SIZE]] {
            if a != b {
                found.circulation = found.circulation.max(circulation(&s, &to, [a, b], &weights));
            }
        }
    }
    found
}

/// Random similarities in (−0.9, 0.9), the same in every call.
fn similarities(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        1.8 * ((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5)
    };
    (0..count).map(|_| next()).collect()
}

/// Matrices that are tried.
const TRIALS: u64 = 4;
const SIZE: usize = 5;

/// Whether a GOAL objective is the gradient of a loss.
pub fn of_goal(objective: &Objective) -> Integrability {
    let one = |seed| trial(seed, |s| goal_weights(s, SIZE, objective, None));
    (1..=TRIALS).map(one).fold(Integrability::default(), Integrability::worse)
}

/// Whether an objective over all pairs is the gradient of a loss; tried with one and with several positives per anchor.
pub fn of_pairwise(objective: &PairwiseObjective) -> Integrability {
    const IDS: [i64; SIZE] = [1, 2, 1, 3, 2];
    let plain = PairwiseOptions::default();
    let grouped = PairwiseOptions { groups: Some(Groups { rows: &IDS, cols: &IDS }), ..plain };
    let one = |seed| {
        let options = if seed % 2 == 0 { &plain } else { &grouped };
        trial(seed, |s: &[f64]| pairwise_weights(s, (SIZE, SIZE), objective, options, false).1)
    };
    (1..=TRIALS).map(one).fold(Integrability::default(), Integrability::worse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::LossKind;

    #[test]
    fn objectives_are_gradients_exactly_where_they_say_so() {
        for objective in Objective::all() {
            let found = of_goal(&objective);
            assert_eq!(found.is_gradient(), objective.loss_kind() == LossKind::Potential, "{objective}: {found:?}");
        }
        for objective in PairwiseObjective::ALL {
            let found = of_pairwise(&objective);
            // What these two divide by, or keep, jumps, and their losses jump with it: derivatives everywhere else.
            let jumps = matches!(objective.name(), "ms-mined" | "contrastive");
            let potential = objective.loss_kind() == LossKind::Potential;
            assert_eq!(found.is_gradient(), potential && !jumps, "{objective}: {found:?}");
            assert!(!jumps || found.asymmetry <= TOLERANCE * found.largest.max(1.0), "{objective}: {found:?}");
        }
    }

    #[test]
    fn an_asymmetric_field_is_found_out_where_it_is_asymmetric() {
        // W_01 grows with S_00, W_00 does not with S_01.
        let found = of_field(&[0.1, 0.2, 0.3, 0.4], 2, |s| vec![s[0], 2.0 * s[0], s[2], s[3]]);
        assert!(!found.is_gradient() && (found.asymmetry - 2.0).abs() < 1e-6, "{found:?}");
        assert_eq!(found.pairs, [(0, 1), (0, 0)]);
    }
}
