//! The GOAL step.

use super::cosine_matrix::cosine_matrix;
use super::mine::{excluded, hardest};
use super::objective::{pair_weights, potential, triplet_weight};
use super::row_norms::count_special;
use super::weighted_grad::gradient;
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::objective::{Objective, PairWeight};
use crate::options::{Groups, StepOptions};
use crate::outputs::{AnchorDetail, NONE, StepDetail, StepReport};

/// Everything about one GOAL step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GoalReference {
    /// Gradient with respect to `x`, `n × d`.
    pub dx: Vec<f64>,
    /// Gradient with respect to `y`, `n × d`.
    pub dy: Vec<f64>,
    /// The report; `overflow` is 0.
    pub report: StepReport,
    /// What led to the weights.
    pub detail: StepDetail<f64>,
}

/// What one direction looks like from its anchors: similarities and which of the others are candidates.
struct Direction<'a> {
    similarity: &'a dyn Fn(usize, usize) -> f64,
    candidate: &'a dyn Fn(usize, usize) -> bool,
    positive: &'a [f64],
}

/// A mean that is 0 for an empty set.
fn mean(sum: f64, count: u32) -> f64 {
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

impl Direction<'_> {
    /// `R⁺` of the anchor `i` whose hardest negative has the value `n`, and the count in its mean.
    fn rs_pos(&self, pair: PairWeight, i: usize, n: f64) -> (f64, u32) {
        let p = self.positive;
        let (mut sum, mut count) = (0.0, 0);
        let Some(eps) = pair.eps() else { return (0.0, 0) };
        for j in (0..p.len()).filter(|&j| (self.candidate)(i, j) && p[j] <= n + eps) {
            let difference = p[i] - p[j];
            match pair {
                PairWeight::SigMs { alpha, .. } => {
                    sum += (alpha * difference).exp();
                    count += 1;
                }
                _ => {
                    sum += difference;
                    count += u32::from(difference != 0.0);
                }
            }
        }
        (mean(sum, count), count)
    }

    /// `R⁻` of the anchor `i` whose hardest negative is `best` with the value `n`, and the count in its mean.
    fn rs_neg(&self, pair: PairWeight, i: usize, best: usize, n: f64) -> (f64, u32) {
        let least = self.positive.iter().copied().fold(f64::INFINITY, f64::min);
        let (mut sum, mut count) = (0.0, 0);
        let Some(eps) = pair.eps() else { return (0.0, 0) };
        for k in (0..self.positive.len()).filter(|&k| k != best && (self.candidate)(i, k)) {
            let s = (self.similarity)(i, k);
            if s >= least - eps {
                match pair {
                    PairWeight::SigMs { beta, .. } => {
                        sum += (-beta * (n - s)).exp();
                        count += 1;
                    }
                    _ => {
                        sum += n - s;
                        count += u32::from(n - s > 0.0);
                    }
                }
            }
        }
        (mean(sum, count), count)
    }

    fn detail(&self, objective: &Objective) -> AnchorDetail<f64> {
        let size = self.positive.len();
        let mined = hardest(size, size, self.similarity, self.candidate);
        let mut out = AnchorDetail::default();
        for i in 0..size {
            let (p, n) = (self.positive[i], mined.value[i]);
            let (t, w, rs_pos, rs_neg) = match mined.index[i] {
                NONE => (0.0, (0.0, 0.0), (0.0, 0), (0.0, 0)),
                best => {
                    let rs_pos = self.rs_pos(objective.pair(), i, n);
                    let rs_neg = self.rs_neg(objective.pair(), i, best as usize, n);
                    let w = pair_weights(objective.pair(), p, n, rs_pos.0, rs_neg.0);
                    (triplet_weight(objective.triplet(), p, n), w, rs_pos, rs_neg)
                }
            };
            out.triplet.push(t);
            out.w_pos.push(w.0);
            out.w_neg.push(w.1);
            out.rs_pos.push(rs_pos.0);
            out.rs_neg.push(rs_neg.0);
            out.rs_pos_count.push(rs_pos.1);
            out.rs_neg_count.push(rs_neg.1);
        }
        (out.neg_index, out.neg_value, out.second_value) = (mined.index, mined.value, mined.second);
        out
    }
}

/// What the report says about one direction, before the reduction.
#[derive(Default)]
struct Sums {
    potential: f64,
    log: f64,
    negative: f64,
    anchors: u32,
    active: u32,
}

fn sums(objective: &Objective, positive: &[f64], anchors: &AnchorDetail<f64>) -> Sums {
    let mut out = Sums::default();
    for i in (0..positive.len()).filter(|&i| anchors.neg_index[i] != NONE) {
        let (p, n) = (positive[i], anchors.neg_value[i]);
        out.potential += potential(objective, p, n);
        out.log += n - p;
        out.negative += n;
        out.anchors += 1;
        out.active += u32::from(anchors.triplet[i] != 0.0);
    }
    out
}

fn report<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    detail: &StepDetail<f64>,
) -> StepReport {
    let pairs = x.rows() as u32;
    let factor = objective.reduction_factor(x.rows());
    let it = sums(objective, &detail.positive, &detail.it);
    let ti = sums(objective, &detail.positive, &detail.ti);
    let ((zero_x, nan_x), (zero_y, nan_y)) = (count_special(x), count_special(y));
    StepReport {
        loss: factor * (it.potential + ti.potential),
        log_it: factor * it.log,
        log_ti: factor * ti.log,
        mean_positive: mean(detail.positive.iter().sum(), pairs),
        mean_negative_it: mean(it.negative, it.anchors),
        mean_negative_ti: mean(ti.negative, ti.anchors),
        pairs,
        empty_it: pairs - it.anchors,
        empty_ti: pairs - ti.anchors,
        active_it: it.active,
        active_ti: ti.active,
        zero_x,
        zero_y,
        nan_x,
        nan_y,
        overflow: 0,
    }
}

/// The non-zeros of `W` as triples, duplicates not yet added: an anchor without a negative has none.
fn weights(detail: &StepDetail<f64>) -> Vec<(usize, usize, f64)> {
    let mut triples = Vec::new();
    for i in 0..detail.positive.len() {
        let (it, ti) = (&detail.it, &detail.ti);
        if it.neg_index[i] != NONE {
            triples.push((i, i, -it.triplet[i] * it.w_pos[i]));
            triples.push((i, it.neg_index[i] as usize, it.triplet[i] * it.w_neg[i]));
        }
        if ti.neg_index[i] != NONE {
            triples.push((i, i, -ti.triplet[i] * ti.w_pos[i]));
            triples.push((ti.neg_index[i] as usize, i, ti.triplet[i] * ti.w_neg[i]));
        }
    }
    triples
}

/// What led to the weights of a matrix of similarities, `n × n`.
fn anatomy(s: &[f64], n: usize, objective: &Objective, groups: Option<Groups<'_>>) -> StepDetail<f64> {
    let positive: Vec<f64> = (0..n).map(|i| s[i * n + i]).collect();
    let rows =
        Direction { similarity: &|i, j| s[i * n + j], candidate: &|i, j| !excluded(groups, i, j), positive: &positive };
    let cols =
        Direction { similarity: &|j, i| s[i * n + j], candidate: &|j, i| !excluded(groups, i, j), positive: &positive };
    let (it, ti) = (rows.detail(objective), cols.detail(objective));
    StepDetail { positive, it, ti }
}

/// `W` of a matrix of similarities, `n × n`, with the reduction's factor.
pub fn goal_weights(s: &[f64], n: usize, objective: &Objective, groups: Option<Groups<'_>>) -> Vec<f64> {
    let mut w = vec![0.0; n * n];
    for (i, j, weight) in weights(&anatomy(s, n, objective, groups)) {
        w[i * n + j] += weight * objective.reduction_factor(n);
    }
    w
}

/// Mining, weights, gradient and report of one batch. `options.write` is not looked at: the result is never added to
/// anything.
pub fn goal_step<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
) -> GoalReference {
    let n = x.rows();
    assert_eq!(n, y.rows(), "rows of x and y");
    let s = cosine_matrix(x, y, options.normalization);
    let detail = anatomy(&s, n, objective, options.groups);
    let factor = options.upstream * objective.reduction_factor(n);
    let (dx, dy) = gradient(x, y, &weights(&detail), options.normalization, factor);
    GoalReference { dx, dy, report: report(x, y, objective, &detail), detail }
}
