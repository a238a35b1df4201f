//! Objectives over all pairs.

use super::cosine_matrix::cosine_matrix;
use super::row_norms::{count_special, normalize_backward, prepared};
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::options::Normalization;
use crate::pairwise::{PairwiseObjective, PairwiseOptions, PairwiseReport};

/// Everything about one pairwise step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairwiseReference {
    /// Gradient with respect to `x`, `n × d`.
    pub dx: Vec<f64>,
    /// Gradient with respect to `y`, `m × d`.
    pub dy: Vec<f64>,
    /// `W`, `n × m`, before the upstream factor.
    pub weights: Vec<f64>,
    /// The report; `overflow` is 0.
    pub report: PairwiseReport,
}

/// One anchor's candidates.
struct Anchor {
    ignored: bool,
    weight: f64,
    positives: Vec<usize>,
    negatives: Vec<usize>,
}

/// The loss of an anchor and the weights of its pairs, before the division by the number of anchors.
type Terms = (f64, Vec<(usize, f64)>);

fn softplus(z: f64) -> f64 {
    if z > 0.0 { z + (-z).exp().ln_1p() } else { z.exp().ln_1p() }
}

fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

/// Whether a violation is one; NaN is, so that it shows.
fn counts(violation: f64) -> bool {
    violation > 0.0 || violation.is_nan()
}

/// −∞ for an empty set.
fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY && !values.iter().any(|v| v.is_nan()) {
        return largest;
    }
    largest + values.iter().map(|v| (v - largest).exp()).sum::<f64>().ln()
}

/// Softmax weights of `values`.
fn softmax(values: &[f64]) -> Vec<f64> {
    let total = log_sum_exp(values);
    values.iter().map(|v| (v - total).exp()).collect()
}

fn distance(s: f64) -> (f64, f64) {
    let d = (2.0 - 2.0 * s).max(0.0).sqrt();
    let d = if s.is_nan() { s } else { d };
    (d, if d == 0.0 { 0.0 } else { 1.0 / d })
}

fn cross_entropy(a: &Anchor, scale: f64, logit: &dyn Fn(usize) -> f64) -> Terms {
    let count = a.positives.len() as f64;
    let all: Vec<usize> = a.positives.iter().chain(&a.negatives).copied().collect();
    let logits: Vec<f64> = all.iter().map(|&j| logit(j)).collect();
    let p = softmax(&logits);
    let mean = a.positives.iter().map(|&j| logit(j)).sum::<f64>() / count;
    let negatives: Vec<f64> = a.negatives.iter().map(|&j| logit(j)).collect();
    let mut weights: Vec<(usize, f64)> = all.iter().zip(&p).map(|(&j, p)| (j, scale * p)).collect();
    for (k, &j) in a.positives.iter().enumerate() {
        // p − 1 with one positive, without its cancellation.
        weights[k].1 = match count {
            1.0 => -scale * sigmoid(log_sum_exp(&negatives) - logit(j)),
            _ => scale * (p[k] - 1.0 / count),
        };
    }
    let loss = match count {
        1.0 => softplus(log_sum_exp(&negatives) - mean),
        _ => log_sum_exp(&logits) - mean,
    };
    (loss, weights)
}

fn sig_lip(a: &Anchor, scale: f64, bias: f64, s: &dyn Fn(usize) -> f64) -> Terms {
    let logit = |j: usize| scale * s(j) + bias;
    let loss = a.positives.iter().map(|&j| softplus(-logit(j))).sum::<f64>()
        + a.negatives.iter().map(|&j| softplus(logit(j))).sum::<f64>();
    let positives = a.positives.iter().map(|&j| (j, -scale * sigmoid(-logit(j))));
    let negatives = a.negatives.iter().map(|&j| (j, scale * sigmoid(logit(j))));
    (loss, positives.chain(negatives).collect())
}

fn multi_similarity(
    a: &Anchor,
    (alpha, beta, lambda): (f64, f64, f64),
    epsilon: Option<f64>,
    s: &dyn Fn(usize) -> f64,
) -> Terms {
    let lowest = a.positives.iter().map(|&j| s(j)).fold(f64::INFINITY, f64::min);
    let highest = a.negatives.iter().map(|&j| s(j)).fold(f64::NEG_INFINITY, f64::max);
    // NaN is kept, so that it shows.
    let keep_positive = |j: &usize| epsilon.is_none_or(|e| s(*j).is_nan() || s(*j) - e < highest);
    let keep_negative = |j: &usize| epsilon.is_none_or(|e| s(*j).is_nan() || s(*j) + e > lowest);
    let positives: Vec<usize> = a.positives.iter().copied().filter(keep_positive).collect();
    let negatives: Vec<usize> = a.negatives.iter().copied().filter(keep_negative).collect();
    let u = |j: usize| beta * (s(j) - lambda);
    let v = |j: usize| -alpha * (s(j) - lambda);
    let lp = log_sum_exp(&positives.iter().map(|&j| v(j)).collect::<Vec<_>>());
    let ln = log_sum_exp(&negatives.iter().map(|&j| u(j)).collect::<Vec<_>>());
    let weights = positives.iter().map(|&j| (j, -(v(j) - softplus(lp)).exp()));
    let weights = weights.chain(negatives.iter().map(|&j| (j, (u(j) - softplus(ln)).exp())));
    (softplus(lp) / alpha + softplus(ln) / beta, weights.collect())
}

fn circle(a: &Anchor, gamma: f64, m: f64, detached: bool, s: &dyn Fn(usize) -> f64) -> Terms {
    let open_n = |s: f64| if s + m < 0.0 { 0.0 } else { s + m };
    let open_p = |s: f64| if 1.0 + m - s < 0.0 { 0.0 } else { 1.0 + m - s };
    let u: Vec<f64> = a.negatives.iter().map(|&j| gamma * open_n(s(j)) * (s(j) - m)).collect();
    let v: Vec<f64> = a.positives.iter().map(|&j| -gamma * open_p(s(j)) * (s(j) - 1.0 + m)).collect();
    if u.is_empty() || v.is_empty() {
        return (0.0, Vec::new());
    }
    let total = log_sum_exp(&u) + log_sum_exp(&v);
    let slope_n = |s: f64| match detached {
        true => open_n(s),
        false => {
            if s + m > 0.0 {
                2.0 * s
            } else {
                s * 0.0
            }
        }
    };
    let slope_p = |s: f64| match detached {
        true => open_p(s),
        false => {
            if 1.0 + m - s > 0.0 {
                2.0 * (1.0 - s)
            } else {
                s * 0.0
            }
        }
    };
    let z = sigmoid(total);
    let negatives = a.negatives.iter().zip(softmax(&u)).map(|(&j, p)| (j, z * p * gamma * slope_n(s(j))));
    let positives = a.positives.iter().zip(softmax(&v)).map(|(&j, p)| (j, -z * p * gamma * slope_p(s(j))));
    (softplus(total), negatives.chain(positives).collect())
}

/// `value`, but NaN if `s` is: the weight of what cannot be told to be a violation.
fn unless_nan(s: f64, value: f64) -> f64 {
    if s.is_nan() { s } else { value }
}

fn triplet_all(a: &Anchor, margin: f64, s: &dyn Fn(usize) -> f64) -> Terms {
    let Some(&pair) = a.positives.first() else { return (0.0, Vec::new()) };
    let violation = |j: usize| margin + s(j) - s(pair);
    let active: Vec<usize> = a.negatives.iter().copied().filter(|&j| counts(violation(j))).collect();
    let loss = active.iter().map(|&j| violation(j)).sum();
    let pairs = std::iter::once((pair, unless_nan(s(pair), -(active.len() as f64))));
    (loss, pairs.chain(active.iter().map(|&j| (j, unless_nan(violation(j), 1.0)))).collect())
}

fn lifted(a: &Anchor, pos_margin: f64, neg_margin: f64, s: &dyn Fn(usize) -> f64) -> Terms {
    let v: Vec<f64> = a.positives.iter().map(|&j| distance(s(j)).0 - pos_margin).collect();
    let u: Vec<f64> = a.negatives.iter().map(|&j| neg_margin - distance(s(j)).0).collect();
    if u.is_empty() || v.is_empty() {
        return (0.0, Vec::new());
    }
    let total = log_sum_exp(&v) + log_sum_exp(&u);
    if total <= 0.0 {
        return (0.0, Vec::new());
    }
    let positives = a.positives.iter().zip(softmax(&v)).map(|(&j, p)| (j, -p * distance(s(j)).1));
    let negatives = a.negatives.iter().zip(softmax(&u)).map(|(&j, p)| (j, p * distance(s(j)).1));
    (total, positives.chain(negatives).collect())
}

fn ranked_list(a: &Anchor, p: (f64, f64, f64, f64), s: &dyn Fn(usize) -> f64) -> Terms {
    let (alpha, margin, temperature, balance) = p;
    let beyond = |j: usize| distance(s(j)).0 - (alpha - margin);
    let within = |j: usize| alpha - distance(s(j)).0;
    let positives: Vec<usize> = a.positives.iter().copied().filter(|&j| counts(beyond(j))).collect();
    let negatives: Vec<usize> = a.negatives.iter().copied().filter(|&j| counts(within(j))).collect();
    let w = softmax(&negatives.iter().map(|&j| temperature * within(j)).collect::<Vec<_>>());
    let share = (1.0 - balance) / positives.len().max(1) as f64;
    let loss = share * positives.iter().map(|&j| beyond(j)).sum::<f64>()
        + balance * negatives.iter().zip(&w).map(|(&j, w)| w * within(j)).sum::<f64>();
    let pull = positives.iter().map(|&j| (j, -share * distance(s(j)).1));
    let push = negatives.iter().zip(&w).map(|(&j, w)| (j, balance * w * distance(s(j)).1));
    (loss, pull.chain(push).collect())
}

/// One anchor's loss and weights; `None` if the mean is not over it.
fn terms(
    objective: &PairwiseObjective,
    a: &Anchor,
    s: &dyn Fn(usize) -> f64,
    log_q: &dyn Fn(usize) -> f64,
) -> Option<Terms> {
    if a.ignored {
        return None;
    }
    let paired = !a.positives.is_empty();
    match *objective {
        PairwiseObjective::InfoNce { scale } => paired.then(|| cross_entropy(a, scale, &|j| scale * s(j) - log_q(j))),
        PairwiseObjective::SupCon { tau } => paired.then(|| cross_entropy(a, 1.0 / tau, &|j| s(j) / tau - log_q(j))),
        PairwiseObjective::SigLip { scale, bias } => Some(sig_lip(a, scale, bias, s)),
        PairwiseObjective::MultiSimilarity { alpha, beta, lambda, epsilon } => {
            Some(multi_similarity(a, (alpha, beta, lambda), epsilon, s))
        }
        PairwiseObjective::Circle { gamma, margin, detached } => Some(circle(a, gamma, margin, detached, s)),
        PairwiseObjective::TripletAll { margin } => Some(triplet_all(a, margin, s)),
        PairwiseObjective::Lifted { pos_margin, neg_margin } => Some(lifted(a, pos_margin, neg_margin, s)),
        PairwiseObjective::RankedList { alpha, margin, temperature, balance } => {
            Some(ranked_list(a, (alpha, margin, temperature, balance), s))
        }
        PairwiseObjective::Contrastive { .. } => None,
    }
}

/// Whether `(i, j)` is positive (`Some(true)`), negative, or ignored.
fn class(
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    single: bool,
    i: usize,
    j: usize,
) -> Option<bool> {
    let ignored = |mask: Option<&[bool]>, at: usize| mask.is_some_and(|mask| mask[at]);
    if ignored(options.ignore_rows, i) || ignored(options.ignore_cols, j) || (single && i == j) {
        return None;
    }
    match options.groups {
        Some(groups) if objective.single_positive() => {
            if i == j {
                Some(true)
            } else {
                (groups.rows[i] != groups.cols[j]).then_some(false)
            }
        }
        Some(groups) => Some(groups.rows[i] == groups.cols[j]),
        None => Some(i == j),
    }
}

/// The loss and `W` of a matrix of similarities, `n × m`; `single` if rows and columns are the same set.
pub fn pairwise_weights(
    s: &[f64],
    (n, m): (usize, usize),
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    single: bool,
) -> (f64, Vec<f64>) {
    let of_class = |i: usize, j: usize| class(objective, options, single, i, j);
    let weight = |weights: Option<&[f32]>, at: usize| weights.map_or(1.0, |w| f64::from(w[at]));
    let rows: Vec<Anchor> = (0..n)
        .map(|i| Anchor {
            ignored: options.ignore_rows.is_some_and(|mask| mask[i]),
            weight: weight(options.row_weights, i),
            positives: (0..m).filter(|&j| of_class(i, j) == Some(true)).collect(),
            negatives: (0..m).filter(|&j| of_class(i, j) == Some(false)).collect(),
        })
        .collect();
    let mut w = vec![0.0; n * m];
    if let PairwiseObjective::Contrastive { pos_margin, neg_margin } = *objective {
        return (contrastive(s, m, &rows, pos_margin, neg_margin, &mut w), w);
    }
    let log_q = |j: usize| options.log_q.map_or(0.0, |q| f64::from(q[j]));
    let mut loss = 0.0;
    let found: Vec<_> = (0..n).map(|i| terms(objective, &rows[i], &|j| s[i * m + j], &log_q)).collect();
    let factor = match objective {
        PairwiseObjective::TripletAll { .. } => 1.0,
        PairwiseObjective::InfoNce { .. } => 0.5 / found.iter().flatten().count() as f64,
        _ => 1.0 / found.iter().flatten().count() as f64,
    };
    for (i, (value, weights)) in found.into_iter().enumerate().filter_map(|(i, t)| Some((i, t?))) {
        loss += factor * rows[i].weight * value;
        weights.into_iter().for_each(|(j, v)| w[i * m + j] += factor * rows[i].weight * v);
    }
    if !objective.both_sides() {
        return (loss, w);
    }
    let cols: Vec<Anchor> = (0..m)
        .map(|j| Anchor {
            ignored: options.ignore_cols.is_some_and(|mask| mask[j]),
            weight: weight(options.col_weights, j),
            positives: (0..n).filter(|&i| of_class(i, j) == Some(true)).collect(),
            negatives: (0..n).filter(|&i| of_class(i, j) == Some(false)).collect(),
        })
        .collect();
    let found: Vec<_> = (0..m).map(|j| terms(objective, &cols[j], &|i| s[i * m + j], &|_| 0.0)).collect();
    let factor = match objective {
        PairwiseObjective::TripletAll { .. } => 1.0,
        _ => 0.5 / found.iter().flatten().count() as f64,
    };
    for (j, (value, weights)) in found.into_iter().enumerate().filter_map(|(j, t)| Some((j, t?))) {
        loss += factor * cols[j].weight * value;
        weights.into_iter().for_each(|(i, v)| w[i * m + j] += factor * cols[j].weight * v);
    }
    (loss, w)
}

fn contrastive(s: &[f64], m: usize, rows: &[Anchor], pos_margin: f64, neg_margin: f64, w: &mut [f64]) -> f64 {
    let value = |i: usize, j: usize| s[i * m + j];
    let pairs = |of: fn(&Anchor) -> &[usize]| {
        let of_row = move |(i, a): (usize, &Anchor)| -> Vec<(usize, usize, f64)> {
            of(a).iter().map(|&j| (i, j, a.weight)).collect()
        };
        rows.iter().enumerate().flat_map(of_row).collect::<Vec<_>>()
    };
    let mut positives = pairs(|a| &a.positives);
    positives.retain(|&(i, j, _)| counts(pos_margin - value(i, j)));
    let mut negatives = pairs(|a| &a.negatives);
    negatives.retain(|&(i, j, _)| counts(value(i, j) - neg_margin));
    let (np, nn) = (positives.len().max(1) as f64, negatives.len().max(1) as f64);
    positives.iter().for_each(|&(i, j, weight)| w[i * m + j] -= unless_nan(value(i, j), weight / np));
    negatives.iter().for_each(|&(i, j, weight)| w[i * m + j] += unless_nan(value(i, j), weight / nn));
    positives.iter().map(|&(i, j, weight)| weight * (pos_margin - value(i, j)) / np).sum::<f64>()
        + negatives.iter().map(|&(i, j, weight)| weight * (value(i, j) - neg_margin) / nn).sum::<f64>()
}

fn step<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    single: bool,
) -> PairwiseReference {
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    let s = cosine_matrix(x, y, options.normalization);
    let (loss, weights) = pairwise_weights(&s, (n, m), objective, options, single);
    let (xs, ys) = (prepared(x, options.normalization), prepared(y, options.normalization));
    let (mut dx, mut dy) = (vec![0.0; n * d], vec![0.0; m * d]);
    for i in 0..n {
        for j in 0..m {
            // Ignored pairs have no weight, and what they hold must not matter.
            let w = options.upstream * weights[i * m + j];
            if class(objective, options, single, i, j).is_some() {
                (0..d).for_each(|k| dx[i * d + k] += w * ys[j * d + k]);
                (0..d).for_each(|k| dy[j * d + k] += w * xs[i * d + k]);
            }
        }
    }
    if options.normalization == Normalization::L2 {
        (dx, dy) = (normalize_backward(x, &dx), normalize_backward(y, &dy));
    }
    let report = report(x, y, &s, loss, &weights, objective, options, single);
    PairwiseReference { dx, dy, weights, report }
}

#[allow(clippy::too_many_arguments)]
fn report<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    s: &[f64],
    loss: f64,
    weights: &[f64],
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    single: bool,
) -> PairwiseReport {
    let (n, m) = (x.rows(), y.rows());
    let cells = || (0..n).flat_map(|i| (0..m).map(move |j| (i, j)));
    let of = |(i, j): (usize, usize)| class(objective, options, single, i, j);
    let positive: Vec<(usize, usize)> = cells().filter(|&c| of(c) == Some(true)).collect();
    let scale = objective.scale();
    let sum = |f: &dyn Fn(usize, usize) -> f64| cells().filter(|&c| of(c).is_some()).map(|(i, j)| f(i, j)).sum::<f64>();
    let ((zero_x, nan_x), (zero_y, nan_y)) = (count_special(x), count_special(y));
    let bias = matches!(objective, PairwiseObjective::SigLip { .. });
    PairwiseReport {
        loss,
        d_scale: scale.map_or(0.0, |t| options.upstream * sum(&|i, j| weights[i * m + j] * s[i * m + j]) / t),
        d_bias: scale.filter(|_| bias).map_or(0.0, |t| options.upstream * sum(&|i, j| weights[i * m + j]) / t),
        mean_positive: positive.iter().map(|&(i, j)| s[i * m + j]).sum::<f64>() / positive.len().max(1) as f64,
        positives: positive.len() as u64,
        negatives: cells().filter(|&c| of(c) == Some(false)).count() as u64,
        anchors_rows: (0..n).filter(|&i| (0..m).any(|j| of((i, j)) == Some(true))).count() as u32,
        anchors_cols: (0..m).filter(|&j| (0..n).any(|i| of((i, j)) == Some(true))).count() as u32,
        zero_x,
        zero_y,
        nan_x,
        nan_y,
        ..PairwiseReport::default()
    }
}

/// Loss, weights and gradients of one batch. `options.write` is not looked at: the result is never added to anything.
pub fn pairwise_step<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
) -> PairwiseReference {
    step(x, y, objective, options, false)
}

/// As [`pairwise_step`] for rows that are anchors and candidates at once, `x` with itself and without the diagonal; `dx` is
/// the whole gradient, `dy` is empty.
pub fn pairwise_step_single<T: Element>(
    x: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
) -> PairwiseReference {
    let mut out = step(x, x, objective, options, true);
    let dy = std::mem::take(&mut out.dy);
    out.dx.iter_mut().zip(dy).for_each(|(a, b)| *a += b);
    out
}
