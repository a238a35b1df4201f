//! From statistics to the loss and to what the weights depend on, anchor by anchor, in `f64`.

use super::classes::{Classes, Counts};
use super::form::{sigmoid, softplus};
use super::positives::{PositiveCoefficient, Positives, Sum};
use super::statistics::Statistics;
use crate::pairwise::{PairwiseObjective, PairwiseOptions};

/// One anchor: what its negatives' and its positives' weights depend on, and its loss. Before the upstream factor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Anchor {
    /// Factor of the negatives' weights.
    pub(super) a: f64,
    /// Subtracted from their logits.
    pub(super) m: f64,
    pub(super) positive: PositiveCoefficient,
    pub(super) loss: f64,
}

/// `ln(e^a + e^b)`
fn log_add(a: f64, b: f64) -> f64 {
    if a == f64::NEG_INFINITY {
        return b;
    }
    let (high, low) = if a < b { (b, a) } else { (a, b) };
    high + (low - high).exp().ln_1p()
}

/// All anchors' coefficients.
pub(super) struct Anchors {
    pub(super) rows: Vec<Anchor>,
    /// Empty if columns are no anchors.
    pub(super) cols: Vec<Anchor>,
}

/// What is known of one anchor.
struct Known<'a> {
    weight: f64,
    count: (u32, u32),
    negatives: &'a Sum,
    positives: &'a Positives,
}

/// Softmax of one anchor with a positive; `factor` is the mean's.
fn cross_entropy(known: &Known<'_>, scale: f64, factor: f64) -> Anchor {
    let (negative, positive) = (known.negatives.log(), known.positives.soft.log());
    let count = f64::from(known.count.0);
    let a = known.weight * factor * scale;
    if known.count.0 == 1 {
        // p − 1 and ln p without their cancellation, and all three from one exponential and one logarithm.
        let ahead = negative - positive;
        let up = ahead >= 0.0;
        let e = if up { -ahead } else { ahead }.exp();
        let rest = e.ln_1p();
        let behind = if up { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
        let loss = if up { ahead + rest } else { rest };
        let m = if up { negative } else { positive } + rest;
        let positive = PositiveCoefficient { shift: -a * behind, ..PositiveCoefficient::default() };
        return Anchor { a, m, positive, loss: known.weight * factor * loss };
    }
    let all = log_add(negative, positive);
    let positive = PositiveCoefficient { scale: a, m: all, shift: -a / count, ..PositiveCoefficient::default() };
    Anchor { a, m: all, positive, loss: known.weight * factor * (all - known.positives.total / count) }
}

/// One anchor of the objectives that are a mean over all anchors or a sum; `factor` is the mean's.
fn other(objective: &PairwiseObjective, known: &Known<'_>, factor: f64, highest: f64) -> Anchor {
    let weight = known.weight * factor;
    let (negatives, positives) = (known.negatives, known.positives);
    let (ln, lp) = (negatives.log(), positives.soft.log());
    let paired = known.count.0 > 0 && known.count.1 > 0;
    let plain = PositiveCoefficient::default();
    match *objective {
        PairwiseObjective::SigLip { scale, .. } => {
            let (a, loss) = (weight * scale, weight * (positives.total + negatives.sum));
            Anchor { a, m: 0.0, positive: PositiveCoefficient { scale: -a, ..plain }, loss }
        }
        PairwiseObjective::MultiSimilarity { alpha, beta, .. } => Anchor {
            a: weight,
            m: softplus(ln),
            positive: PositiveCoefficient { scale: -weight, m: softplus(lp), highest, ..plain },
            loss: weight * (softplus(lp) / alpha + softplus(ln) / beta),
        },
        PairwiseObjective::Circle { gamma, .. } if paired => {
            let a = weight * sigmoid(ln + lp) * gamma;
            let positive = PositiveCoefficient { scale: -a, m: lp, ..plain };
            Anchor { a, m: ln, positive, loss: weight * softplus(ln + lp) }
        }
        PairwiseObjective::Lifted { .. } if paired && (ln + lp > 0.0 || (ln + lp).is_nan()) => {
            let positive = PositiveCoefficient { scale: -weight, m: lp, ..plain };
            Anchor { a: weight, m: ln, positive, loss: weight * (ln + lp) }
        }
        PairwiseObjective::RankedList { balance, .. } => {
            let share = (1.0 - balance) / positives.active.max(1.0);
            let within = if negatives.sum == 0.0 { 0.0 } else { negatives.extra / negatives.sum };
            let positive = PositiveCoefficient { scale: -weight * share, ..plain };
            Anchor {
                a: weight * balance,
                m: if ln == f64::NEG_INFINITY { 0.0 } else { ln },
                positive,
                loss: weight * (share * positives.total + balance * within),
            }
        }
        PairwiseObjective::TripletAll { .. } if known.count.0 > 0 => {
            let positive = PositiveCoefficient { shift: -weight * negatives.extra, ..plain };
            Anchor { a: weight, m: 0.0, positive, loss: weight * negatives.sum }
        }
        _ => Anchor::default(),
    }
}

fn weight(weights: Option<&[f32]>, at: usize) -> f64 {
    weights.map_or(1.0, |w| f64::from(w[at]))
}

/// The coefficients of every anchor. `highest`: the miner's threshold per row, empty without one. `own`: the statistics of
/// the columns' own pairs, for objectives with one positive per anchor.
pub(super) fn anchors(
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    classes: &Classes<'_>,
    counts: &Counts,
    found: &Statistics,
    own: &[Positives],
    highest: &[f64],
) -> Anchors {
    if let PairwiseObjective::Contrastive { .. } = objective {
        return contrastive(options, found);
    }
    let with_positive = |side: &[(u32, u32)]| side.iter().filter(|c| c.0 > 0).count() as f64;
    // Objectives that are a mean over all anchors have none but rows.
    let rows = counts.rows.len();
    let present = (0..rows).filter(|&i| !classes.row_ignored(i)).count() as f64;
    let factor = |side: &[(u32, u32)]| match objective {
        PairwiseObjective::InfoNce { .. } => 0.5 / with_positive(side),
        PairwiseObjective::SupCon { .. } => 1.0 / with_positive(side),
        PairwiseObjective::TripletAll { .. } => 1.0,
        _ => 1.0 / present,
    };
    let anchor = |known: &Known<'_>, ignored: bool, factor: f64, highest: f64| match objective {
        _ if ignored => Anchor::default(),
        PairwiseObjective::InfoNce { .. } | PairwiseObjective::SupCon { .. } => match objective.scale() {
            Some(scale) if known.count.0 > 0 => cross_entropy(known, scale, factor),
            _ => Anchor::default(),
        },
        _ => other(objective, known, factor, highest),
    };
    let rows_factor = factor(&counts.rows);
    let row = |i: usize| {
        let known = Known {
            weight: weight(options.row_weights, i),
            count: counts.rows[i],
            negatives: &found.rows[i],
            positives: &found.positives[i],
        };
        anchor(&known, classes.row_ignored(i), rows_factor, highest.get(i).copied().unwrap_or(f64::INFINITY))
    };
    let cols_factor = factor(&counts.cols);
    let none = Positives::default();
    let col = |j: usize| {
        let known = Known {
            weight: weight(options.col_weights, j),
            count: counts.cols[j],
            negatives: &found.cols[j],
            positives: own.get(j).unwrap_or(&none),
        };
        anchor(&known, classes.col_ignored(j), cols_factor, f64::INFINITY)
    };
    Anchors { rows: (0..rows).map(row).collect(), cols: (0..found.cols.len()).map(col).collect() }
}

/// The mean is over pairs, not anchors.
fn contrastive(options: &PairwiseOptions<'_>, found: &Statistics) -> Anchors {
    let negatives = found.rows.iter().map(|r| r.extra).sum::<f64>().max(1.0);
    let positives = found.positives.iter().map(|p| p.active).sum::<f64>().max(1.0);
    let row = |(i, (n, p)): (usize, (&Sum, &Positives))| {
        let weight = weight(options.row_weights, i);
        Anchor {
            a: weight / negatives,
            m: 0.0,
            positive: PositiveCoefficient { scale: -weight / positives, ..PositiveCoefficient::default() },
            loss: weight * (n.sum / negatives + p.total / positives),
        }
    };
    Anchors { rows: found.rows.iter().zip(&found.positives).enumerate().map(row).collect(), cols: Vec::new() }
}
