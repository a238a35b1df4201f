//! One GOAL step: mine, weigh, differentiate.

use super::gather::{Gradient, Terms, gather};
use super::mine::{Statistics, statistics};
use super::objective::{loss, pair_weights, triplet_weight};
use super::pack::Rows;
use super::pool::Cpu;
use super::real::Real;
use super::relative::{Direction, Positives};
use super::row_norms::{RowKind, RowScale, row_scales};
use super::side::{Collect, NegativeSet, Side};
use super::sweep::diagonal;
use crate::check;
use crate::dtype::{Accum, Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::objective::{Objective, PairWeight};
use crate::options::{Groups, Normalization, StepOptions};
use crate::outputs::{AnchorDetail, NONE, StepDetail, StepReport};

/// Anchors per piece of work when they are weighed.
const ANCHORS_PER_ITEM: usize = 256;

/// Everything about one anchor's triplet; zeros without a negative.
#[derive(Clone, Copy, Debug, Default)]
struct Anchor {
    /// `N`, meaningful only with a negative.
    negative: f64,
    triplet: f64,
    w_pos: f64,
    w_neg: f64,
    rs_pos: (f64, u32),
    rs_neg: (f64, u32),
    loss: f64,
}

/// What the weights depend on besides the statistics.
struct Weighing<'a, A> {
    objective: &'a Objective,
    positive: &'a [f64],
    /// For the pair weights with relative similarities.
    relative: Option<(&'a Positives<'a>, NegativeSet<A>, f64)>,
}

impl<A: Accum> Weighing<'_, A> {
    fn anchor(&self, side: &Side<A>, direction: Direction, i: usize) -> Anchor {
        if side.index[i] == NONE {
            return Anchor::default();
        }
        let (p, n) = (self.positive[i], side.best[i].to_f64());
        let (mut rs_pos, mut rs_neg) = ((0.0, 0), (0.0, 0));
        if let Some((positives, set, eps)) = &self.relative {
            rs_pos = positives.relative(direction, i, n + eps);
            rs_neg = side.get(i).relative(set);
        }
        let triplet = triplet_weight(self.objective.triplet(), p, n);
        let (w_pos, w_neg) = pair_weights(self.objective.pair(), p, n, (rs_pos.0, rs_neg.0));
        Anchor { negative: n, triplet, w_pos, w_neg, rs_pos, rs_neg, loss: loss(self.objective, p, n) }
    }

    /// The anchors of both directions.
    fn anchors(&self, cpu: &Cpu, found: &Statistics<A>) -> [Vec<Anchor>; 2] {
        /// Multiply-adds that weighing one anchor takes as long as.
        const COST: usize = 1 << 9;
        let n = self.positive.len();
        let mut anchors = [vec![Anchor::default(); n], vec![Anchor::default(); n]];
        let [it, ti] = &mut anchors;
        let rows = it.chunks_mut(ANCHORS_PER_ITEM).enumerate().map(|(c, out)| (&found.rows, Direction::Rows, c, out));
        let cols = ti.chunks_mut(ANCHORS_PER_ITEM).enumerate().map(|(c, out)| (&found.cols, Direction::Cols, c, out));
        cpu.each(2 * n * COST, rows.chain(cols), |(side, direction, chunk, anchors)| {
            for (a, anchor) in anchors.iter_mut().enumerate() {
                *anchor = self.anchor(side, direction, chunk * ANCHORS_PER_ITEM + a);
            }
        });
        anchors
    }
}

/// One direction's share of the report: sums before the reduction's factor, and counts.
#[derive(Default)]
struct Tally {
    loss: f64,
    log: f64,
    negatives: f64,
    empty: u32,
    active: u32,
}

fn tally<A>(side: &Side<A>, anchors: &[Anchor], positive: &[f64]) -> Tally {
    let mut tally = Tally::default();
    for ((anchor, &index), p) in anchors.iter().zip(&side.index).zip(positive) {
        if index == NONE {
            tally.empty += 1;
            continue;
        }
        tally.loss += anchor.loss;
        tally.log += anchor.negative - p;
        tally.negatives += anchor.negative;
        tally.active += u32::from(anchor.triplet != 0.0);
    }
    tally
}

/// Mean of `sum` over `count`, 0 over none.
fn mean(sum: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

fn report<A>(
    objective: &Objective,
    positive: &[f64],
    found: &Statistics<A>,
    it: &[Anchor],
    ti: &[Anchor],
) -> StepReport {
    let n = positive.len();
    let factor = objective.reduction_factor(n);
    let (rows, cols) = (tally(&found.rows, it, positive), tally(&found.cols, ti, positive));
    StepReport {
        loss: (rows.loss + cols.loss) * factor,
        log_it: rows.log * factor,
        log_ti: cols.log * factor,
        mean_positive: mean(positive.iter().sum(), n),
        mean_negative_it: mean(rows.negatives, n - rows.empty as usize),
        mean_negative_ti: mean(cols.negatives, n - cols.empty as usize),
        pairs: n as u32,
        empty_it: rows.empty,
        empty_ti: cols.empty,
        active_it: rows.active,
        active_ti: cols.active,
        ..StepReport::default()
    }
}

/// Weight `u · T · w`: 0 for an inactive triplet, also where `w` has overflowed.
fn coefficient(upstream: f64, triplet: f64, weight: f64) -> f64 {
    if triplet == 0.0 { upstream * 0.0 } else { upstream * (triplet * weight) }
}

/// The sparse weight matrix by rows and by columns. Each target's terms: its pair, its own negative, then the anchors
/// that it is the negative of, ascending. Terms of weight 0 (of a hinge, most of them once it is trained) are left out
/// if all rows are `finite`: otherwise `0 · ∞` must come out as NaN.
fn weights<A: Accum>(
    found: &Statistics<A>,
    it: &[Anchor],
    ti: &[Anchor],
    upstream: f64,
    finite: bool,
) -> [Terms<A>; 2] {
    let n = it.len();
    let coefficient = |t: f64, w: f64| coefficient(upstream, t, w);
    let counts = move |&(_, _, w): &(usize, usize, A)| !(finite && w == A::ZERO);
    let pair =
        |i: usize| A::from_f64(-(coefficient(it[i].triplet, it[i].w_pos) + coefficient(ti[i].triplet, ti[i].w_pos)));
    let pairs = (0..n).filter(|&i| found.rows.index[i] != NONE || found.cols.index[i] != NONE);
    let pairs = pairs.map(move |i| (i, i, pair(i))).filter(counts);
    let row_terms = triplets(&found.rows, it, coefficient).filter(counts);
    let col_terms = triplets(&found.cols, ti, coefficient).filter(counts);
    let swap = |(anchor, negative, w): (usize, usize, A)| (negative, anchor, w);
    let by_row = Terms::new(n, pairs.clone().chain(row_terms.clone()).chain(col_terms.clone().map(swap)));
    let by_col = Terms::new(n, pairs.chain(col_terms).chain(row_terms.map(swap)));
    [by_row, by_col]
}

/// `(anchor, negative, weight)` of every triplet of one direction.
fn triplets<'a, A: Accum>(
    side: &'a Side<A>,
    anchors: &'a [Anchor],
    coefficient: impl Fn(f64, f64) -> f64 + Copy + 'a,
) -> impl Iterator<Item = (usize, usize, A)> + Clone + 'a {
    side.index.iter().zip(anchors).enumerate().filter_map(move |(anchor, (&negative, a))| {
        let negative = usize::try_from(negative).ok()?;
        Some((anchor, negative, A::from_f64(coefficient(a.triplet, a.w_neg))))
    })
}

fn detail<A: Accum>(side: Side<A>, anchors: &[Anchor]) -> AnchorDetail<A> {
    let plane = |of: fn(&Anchor) -> f64| anchors.iter().map(|a| A::from_f64(of(a))).collect();
    AnchorDetail {
        neg_index: side.index,
        neg_value: side.best,
        second_value: side.second,
        triplet: plane(|a| a.triplet),
        w_pos: plane(|a| a.w_pos),
        w_neg: plane(|a| a.w_neg),
        rs_pos: plane(|a| a.rs_pos.0),
        rs_neg: plane(|a| a.rs_neg.0),
        rs_pos_count: anchors.iter().map(|a| a.rs_pos.1).collect(),
        rs_neg_count: anchors.iter().map(|a| a.rs_neg.1).collect(),
    }
}

fn count_kind<A>(scales: &[RowScale<A>], kind: RowKind) -> u32 {
    scales.iter().filter(|s| s.kind == kind).count() as u32
}

/// Everything that the weights need, of both directions.
struct Weighed<A> {
    found: Statistics<A>,
    it: Vec<Anchor>,
    ti: Vec<Anchor>,
    positive: Vec<f64>,
}

/// Mines and weighs. The set behind the relative similarity of negatives needs the smallest similarity of a pair, so
/// the pairs are computed ahead of the sweep for the pair weights that have one.
fn weigh<T: Element>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    y: Rows<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
    second: bool,
) -> Weighed<T::Acc> {
    let to_f64 = |values: &[T::Acc]| -> Vec<f64> { values.iter().map(|p| p.to_f64()).collect() };
    let (alpha, beta) = match objective.pair() {
        PairWeight::SigMs { alpha, beta, .. } => (Some(alpha), Some(T::Acc::from_f64(beta))),
        _ => (None, None),
    };
    let Some(eps) = objective.pair().eps() else {
        let found = statistics(cpu, x, y, options.groups, &Collect { second, set: None });
        let positive = to_f64(&found.positive);
        let weighing = Weighing { objective, positive: &positive, relative: None };
        let [it, ti] = weighing.anchors(cpu, &found);
        return Weighed { found, it, ti, positive };
    };
    let positive = to_f64(&diagonal(cpu, x, y));
    let positives = Positives::new(&positive, alpha, options.groups);
    let set = NegativeSet { threshold: T::Acc::at_least(positives.lowest() - eps), beta };
    let found = statistics(cpu, x, y, options.groups, &Collect { second, set: Some(set) });
    let weighing = Weighing { objective, positive: &positive, relative: Some((&positives, set, eps)) };
    let [it, ti] = weighing.anchors(cpu, &found);
    drop(positives);
    Weighed { found, it, ti, positive }
}

/// The weight matrix of a step by rows, times `upstream` and the reduction's factor, and what there is to report of it but
/// facts about rows. Weights of 0 are left out.
pub(super) fn weight_matrix<T: Element>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    y: Rows<'_, T>,
    objective: &Objective,
    groups: Option<Groups<'_>>,
    upstream: f64,
) -> (Terms<T::Acc>, StepReport) {
    let options = StepOptions { groups, ..StepOptions::default() };
    let Weighed { found, it, ti, positive } = weigh(cpu, x, y, objective, &options, false);
    let [by_row, _] = weights(&found, &it, &ti, upstream * objective.reduction_factor(positive.len()), true);
    (by_row, report(objective, &positive, &found, &it, &ti))
}

/// A step, and what led to it; `second` asks for the second-best values.
#[allow(clippy::too_many_arguments)]
fn step<T: Element, G: GradientOf<T>>(
    op: &'static str,
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
    second: bool,
) -> Result<(StepReport, Weighed<T::Acc>)> {
    let ids = options.groups.map(|g| (g.rows.len(), g.cols.len()));
    check::goal_step(
        op,
        (x.rows(), x.cols()),
        (y.rows(), y.cols()),
        ids,
        (dx.rows(), dx.cols()),
        (dy.rows(), dy.cols()),
    )?;
    let n = x.rows();
    let _awake = cpu.session(n.saturating_mul(n).saturating_mul(x.cols()));
    let [x_scales, y_scales] = row_scales(cpu, x, y);
    let raw = options.normalization == Normalization::L2;
    let x = Rows { mat: x, scales: raw.then_some(&x_scales[..]) };
    let y = Rows { mat: y, scales: raw.then_some(&y_scales[..]) };
    let weighed = weigh(cpu, x, y, objective, options, second);
    let Weighed { found, it, ti, positive } = &weighed;
    let finite = [&x_scales, &y_scales].iter().all(|scales| count_kind(scales, RowKind::NotFinite) == 0);
    let [by_row, by_col] = weights(found, it, ti, options.upstream * objective.reduction_factor(n), finite);
    let dx = Gradient { target: x, source: y, terms: &by_row, out: dx };
    let dy = Gradient { target: y, source: x, terms: &by_col, out: dy };
    let overflow = gather(cpu, options.write, [dx, dy]);
    let report = StepReport {
        zero_x: count_kind(&x_scales, RowKind::Zero),
        zero_y: count_kind(&y_scales, RowKind::Zero),
        nan_x: count_kind(&x_scales, RowKind::NotFinite),
        nan_y: count_kind(&y_scales, RowKind::NotFinite),
        overflow,
        ..report(objective, positive, found, it, ti)
    };
    Ok((report, weighed))
}

/// One GOAL step over a batch of pairs `(x[i], y[i])`: hardest negatives both ways, triplet and pair weights, and the
/// gradient with respect to `x` and `y`.
///
/// With `S = X̂ Ŷᵀ`, `P_i = S[i, i]`, and for the anchor `x[i]` the hardest negative `N_i = S[i, n_i]` (for `y[j]`,
/// `N'_j = S[m_j, j]`), the sparse weight matrix is
///
/// ```text
/// W[i, i]   = −(T_i w⁺_i + T'_i w'⁺_i)      W[i, n_i] += T_i w⁻_i      W[m_j, j] += T'_j w'⁻_j
/// ```
///
/// with the triplet weights `T` and pair weights `w` of `objective`, and `dx (+)= u f W ŷ`, `dy (+)= u f Wᵀ x̂`, where `u`
/// is `options.upstream` and `f` the reduction's factor; under [`Normalization::L2`] through the Jacobian of the
/// normalisation, as in [`weighted_grad`](super::weighted_grad). Candidates, ties, NaN and groups are as in
/// [`mine`](super::mine). An anchor without a candidate contributes nothing in its direction. NaN in `P` or `N` makes the
/// weights and so the gradient NaN. A zero row gets the gradient 0 under [`Normalization::L2`].
///
/// `x`, `y`, `dx` and `dy` are `n × d`; the gradient is written in `T` or `T::Acc`, summed in `T::Acc` and rounded once.
/// The report's sums are in `f64`; `upstream` does not enter them. `S` is never stored: allocates `O(n)`, and packed
/// operands as [`mine`](super::mine). The result is the same bits run to run and for every number of threads. With
/// `n = 0` nothing is written.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// shapes differ or the numbers of group ids are not `n`, [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX`
/// rows; nothing is written then.
pub fn goal_step<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<StepReport> {
    step("goal_step", cpu, x, y, objective, options, dx, dy, false).map(|(report, _)| report)
}

/// As [`goal_step`], and also everything that led to the weights, before reduction and upstream factor.
///
/// Costs the second-best values on top of the step, and allocates the detail.
///
/// # Errors
/// As [`goal_step`].
pub fn goal_step_detail<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<(StepReport, StepDetail<T::Acc>)> {
    let (report, weighed) = step("goal_step", cpu, x, y, objective, options, dx, dy, true)?;
    let Weighed { found, it, ti, .. } = weighed;
    let detail = StepDetail { positive: found.positive, it: detail(found.rows, &it), ti: detail(found.cols, &ti) };
    Ok((report, detail))
}
