//! Positive pairs, one by one and in `f64`.

use crate::pairwise::PairwiseObjective;

/// A running `Σ e^logit`, `(maximum, sum of exponentials relative to it, sum with a factor)`; or plain sums.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    /// −∞ while there is nothing.
    pub(super) max: f64,
    pub(super) sum: f64,
    /// The same with a factor, see [`super::form::Form::extra`].
    pub(super) extra: f64,
    /// Where the maximum is, the lowest of several; only of what sets it.
    pub(super) at: u32,
}

impl Default for Sum {
    fn default() -> Self {
        Self { max: f64::NEG_INFINITY, sum: 0.0, extra: 0.0, at: 0 }
    }
}

impl Sum {
    /// Adds sums relative to `other.max`; plain sums have the maximum 0.
    pub(super) fn add(&mut self, other: Self) {
        if other.max == f64::NEG_INFINITY && other.sum == 0.0 {
            return;
        }
        if self.sum == 0.0 || other.max > self.max || (other.max == self.max && other.at < self.at) {
            self.at = other.at;
        }
        let max = self.max.max(other.max);
        let factor = |m: f64| if m == max { 1.0 } else { (m - max).exp() };
        let (a, b) = (factor(self.max), factor(other.max));
        self.sum = if self.sum == 0.0 { other.sum * b } else { self.sum * a + other.sum * b };
        self.extra = if self.extra == 0.0 { other.extra * b } else { self.extra * a + other.extra * b };
        self.max = max;
    }

    /// `ln Σ e^logit`, −∞ for an empty sum.
    pub(super) fn log(&self) -> f64 {
        if self.sum == 0.0 { f64::NEG_INFINITY } else { self.max + self.sum.ln() }
    }
}

/// Statistics of one anchor's positives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Positives {
    /// Exponentials of the logits.
    pub(super) soft: Sum,
    /// Sum of logits or summands.
    pub(super) total: f64,
    /// Those of them that the objective counts.
    pub(super) active: f64,
    /// Sum of similarities.
    pub(super) similarity: f64,
    /// The lowest similarity, +∞ without a positive; NaN is passed over.
    pub(super) least: f64,
}

impl Default for Positives {
    fn default() -> Self {
        Self { soft: Sum::default(), total: 0.0, active: 0.0, similarity: 0.0, least: f64::INFINITY }
    }
}

impl Positives {
    /// Adds a positive of similarity `s`; `highest` is the miner's threshold, see [`kept`].
    pub(super) fn add(&mut self, objective: &PairwiseObjective, s: f64, log_q: f64, highest: f64) {
        self.similarity += s;
        self.least = self.least.min(s);
        let term = term(objective, s, log_q);
        if soft(objective) {
            self.total += term;
            if kept(objective, s, highest) {
                let sum = if term.is_nan() { f64::NAN } else { 1.0 };
                self.soft.add(Sum { max: term, sum, ..Sum::default() });
            }
        } else if term > 0.0 || term.is_nan() {
            self.total += term;
            self.active += 1.0;
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.soft.add(other.soft);
        self.total += other.total;
        self.active += other.active;
        self.similarity += other.similarity;
        self.least = self.least.min(other.least);
    }
}

/// Whether the positives enter by exponentials of logits.
fn soft(objective: &PairwiseObjective) -> bool {
    use PairwiseObjective as P;
    !matches!(objective, P::SigLip { .. } | P::TripletAll { .. } | P::Contrastive { .. } | P::RankedList { .. })
}

/// Whether a miner keeps a positive of similarity `s`, if `highest` is the largest similarity of a negative.
fn kept(objective: &PairwiseObjective, s: f64, highest: f64) -> bool {
    match objective {
        PairwiseObjective::MultiSimilarity { epsilon: Some(epsilon), .. } => s - epsilon < highest || s.is_nan(),
        _ => true,
    }
}

fn open(margin: f64, s: f64) -> f64 {
    let open = 1.0 + margin - s;
    if open < 0.0 { 0.0 } else { open }
}

fn distance(s: f64) -> f64 {
    super::form::distance(s)
}

fn inverse_distance(s: f64) -> f64 {
    let d = distance(s);
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The logit, or the summand, of which only positive ones count.
pub(super) fn term(objective: &PairwiseObjective, s: f64, log_q: f64) -> f64 {
    match *objective {
        PairwiseObjective::InfoNce { scale } => scale * s - log_q,
        PairwiseObjective::SupCon { tau } => s / tau - log_q,
        PairwiseObjective::SigLip { scale, bias } => super::form::softplus(-(scale * s + bias)),
        PairwiseObjective::MultiSimilarity { alpha, lambda, .. } => -alpha * (s - lambda),
        PairwiseObjective::Circle { gamma, margin, .. } => -gamma * open(margin, s) * (s - 1.0 + margin),
        PairwiseObjective::Contrastive { pos_margin, .. } => pos_margin - s,
        PairwiseObjective::Lifted { pos_margin, .. } => distance(s) - pos_margin,
        PairwiseObjective::RankedList { alpha, margin, .. } => distance(s) - (alpha - margin),
        PairwiseObjective::TripletAll { .. } => s,
    }
}

/// What the weight of an anchor's positives depends on besides their similarity: `scale · e^(logit − m) · slope + shift`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PositiveCoefficient {
    pub(super) scale: f64,
    pub(super) m: f64,
    pub(super) shift: f64,
    /// The miner's threshold, see [`kept`].
    pub(super) highest: f64,
}

/// The weight of a positive pair.
pub(super) fn weight(objective: &PairwiseObjective, s: f64, log_q: f64, c: &PositiveCoefficient) -> f64 {
    if s.is_nan() {
        return s;
    }
    // No anchor, no part in a loss: what the exponential would be does not matter.
    if c.scale == 0.0 {
        return c.shift;
    }
    let term = term(objective, s, log_q);
    let exponential = || c.scale * (term - c.m).exp();
    match *objective {
        PairwiseObjective::InfoNce { .. } | PairwiseObjective::SupCon { .. } => exponential() + c.shift,
        PairwiseObjective::SigLip { scale, bias } => c.scale * super::form::sigmoid(-(scale * s + bias)),
        PairwiseObjective::MultiSimilarity { .. } => {
            if kept(objective, s, c.highest) {
                exponential()
            } else {
                0.0
            }
        }
        PairwiseObjective::Circle { margin, detached, .. } => {
            let open = 1.0 + margin - s;
            let slope = if detached { open } else { 2.0 * (1.0 - s) };
            if open > 0.0 { exponential() * slope } else { 0.0 }
        }
        PairwiseObjective::Lifted { .. } => exponential() * inverse_distance(s),
        PairwiseObjective::RankedList { .. } => {
            if term <= 0.0 {
                0.0
            } else {
                c.scale * inverse_distance(s)
            }
        }
        PairwiseObjective::Contrastive { .. } => {
            if term <= 0.0 {
                0.0
            } else {
                c.scale
            }
        }
        PairwiseObjective::TripletAll { .. } => c.shift,
    }
}
