//! One step of an objective over all pairs: statistics of every anchor, weights of every pair, gradients.

mod classes;
mod coefficients;
mod form;
mod gradient;
mod operands;
mod positives;
mod statistics;
mod tiles;

use self::classes::{Classes, Counts};
use self::coefficients::{Anchors, anchors};
use self::form::{Circle, Form, Hinge, Lifted, MultiSimilarity, RankedList, SigLip, Softmax};
use self::gradient::{Found, Problem, gradient};
use self::positives::Positives;
use self::statistics::{Question, Statistics, statistics};
use self::tiles::{Operand, Tiles, left_out};
use super::pack::Rows;
use super::pool::Cpu;
use super::real::Real;
use super::row_norms::{RowKind, RowScale, row_scales};
use super::sweep::diagonal;
use crate::check;
use crate::dtype::{Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::options::Normalization;
use crate::pairwise::{PairwiseObjective, PairwiseOptions, PairwiseReport};

/// The matrices of a step with their factors.
struct Inputs<'a, T: Element> {
    x: Operand<'a, T>,
    y: Operand<'a, T>,
    classes: Classes<'a>,
    counts: Counts,
}

/// What the anchors' negatives are compared with, per row and per column.
struct Parameters<A> {
    rows: Vec<A>,
    /// Empty if columns are no anchors.
    cols: Vec<A>,
    /// What the miner compares the rows' positives with; empty without one.
    highest: Vec<f64>,
}

/// Similarity of the own pair of every anchor that has one, +∞ for the others: nothing violates their margin.
fn own_similarities<T: Element>(cpu: &Cpu, inputs: &Inputs<'_, T>) -> [Vec<T::Acc>; 2] {
    let pairs = diagonal(cpu, inputs.x.rows, inputs.y.rows);
    let side = |count: usize| -> Vec<T::Acc> {
        let of = |k: usize| pairs.get(k).filter(|_| inputs.classes.own_pair(k)).copied();
        (0..count).map(|k| of(k).unwrap_or(T::Acc::from_f64(f64::INFINITY))).collect()
    };
    [side(inputs.x.rows.mat.rows()), side(inputs.y.rows.mat.rows())]
}

fn parameters<T: Element>(
    tiles: &mut Tiles<'_, T>,
    inputs: &Inputs<'_, T>,
    objective: &PairwiseObjective,
    log_q: &[T::Acc],
) -> Parameters<T::Acc> {
    let (n, m) = (inputs.x.rows.mat.rows(), inputs.y.rows.mat.rows());
    let rows = |value: T::Acc| vec![value; n];
    match objective {
        PairwiseObjective::TripletAll { .. } => {
            let [rows, cols] = own_similarities(tiles.cpu, inputs);
            Parameters { rows, cols, highest: Vec::new() }
        }
        PairwiseObjective::InfoNce { .. } => {
            Parameters { rows: rows(T::Acc::ZERO), cols: vec![T::Acc::ZERO; m], highest: Vec::new() }
        }
        PairwiseObjective::MultiSimilarity { epsilon: None, .. } => {
            Parameters { rows: rows(T::Acc::NEG_INFINITY), cols: Vec::new(), highest: Vec::new() }
        }
        PairwiseObjective::MultiSimilarity { epsilon: Some(_), .. } => {
            let all = rows(T::Acc::ZERO);
            let question =
                Question { objective, classes: inputs.classes, log_q, rows_p: &all, cols_p: &[], highest: &[] };
            let found = statistics(tiles, Softmax { scale: T::Acc::ONE }, &question);
            Parameters {
                rows: found.positives.iter().map(|p| T::Acc::from_f64(p.least)).collect(),
                cols: Vec::new(),
                highest: found.rows.iter().map(|negatives| negatives.max).collect(),
            }
        }
        _ => Parameters { rows: rows(T::Acc::ZERO), cols: Vec::new(), highest: Vec::new() },
    }
}

/// Statistics of the columns' own pairs, for objectives in which columns are anchors.
fn own_pairs<A>(
    objective: &PairwiseObjective,
    classes: &Classes<'_>,
    parameters: &Parameters<A>,
    found: &Statistics,
) -> Vec<Positives> {
    let of = |j: usize| {
        let mut own = Positives::default();
        if let Some(row) = found.positives.get(j).filter(|_| classes.own_pair(j)) {
            // The only positive of the row with the same number.
            own.add(objective, row.similarity, 0.0, f64::INFINITY);
        }
        own
    };
    (0..parameters.cols.len()).map(of).collect()
}

/// Gradients, the anchors' losses and the sums, for the negatives of one form.
#[allow(clippy::too_many_arguments)]
fn solve<T: Element, F: Form<T::Acc>, G: GradientOf<T>>(
    cpu: &Cpu,
    inputs: &Inputs<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    form: F,
    log_q: &[T::Acc],
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> (Anchors, Found) {
    let mut tiles = Tiles::new(cpu, inputs.x, inputs.y);
    let parameters = parameters(&mut tiles, inputs, objective, log_q);
    let question = Question {
        objective,
        classes: inputs.classes,
        log_q,
        rows_p: &parameters.rows,
        cols_p: &parameters.cols,
        highest: &parameters.highest,
    };
    let weigh = |found: &Statistics| {
        let own = own_pairs(objective, &inputs.classes, &parameters, found);
        anchors(objective, options, &inputs.classes, &inputs.counts, found, &own, &parameters.highest)
    };
    let before = if F::ALONE {
        Statistics::new(tiles.cut.n, tiles.cut.m, false)
    } else {
        statistics(&mut tiles, form, &question)
    };
    let anchors = weigh(&before);
    let problem = Problem { question, form, anchors: &anchors, upstream: options.upstream };
    let mut found = gradient(&mut tiles, &problem, options.write, dx, dy);
    if F::ALONE {
        // The weights were known; the losses are known after the sweep.
        return (weigh(&found.statistics), found);
    }
    found.statistics = before;
    (anchors, found)
}

/// [`solve`] with the form of the objective.
fn solve_objective<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    inputs: &Inputs<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> (Anchors, Found) {
    let of = T::Acc::from_f64;
    let m = inputs.y.rows.mat.rows();
    let log_q: Vec<T::Acc> = match options.log_q {
        Some(log_q) => log_q.iter().map(|&q| of(f64::from(q))).collect(),
        None => vec![T::Acc::ZERO; m],
    };
    macro_rules! with {
        ($form:expr) => {
            solve(cpu, inputs, objective, options, $form, &log_q, dx, dy)
        };
    }
    match *objective {
        PairwiseObjective::InfoNce { scale } => with!(Softmax { scale: of(scale) }),
        PairwiseObjective::SupCon { tau } => with!(Softmax { scale: of(1.0 / tau) }),
        PairwiseObjective::SigLip { scale, bias } => with!(SigLip { scale: of(scale), bias: of(bias) }),
        PairwiseObjective::MultiSimilarity { beta, lambda, epsilon, .. } => {
            with!(MultiSimilarity { beta: of(beta), lambda: of(lambda), epsilon: of(epsilon.unwrap_or(0.0)) })
        }
        PairwiseObjective::Circle { gamma, margin, detached } => {
            with!(Circle { gamma: of(gamma), margin: of(margin), detached })
        }
        PairwiseObjective::Lifted { neg_margin, .. } => with!(Lifted { margin: of(neg_margin) }),
        PairwiseObjective::RankedList { alpha, temperature, .. } => {
            with!(RankedList { alpha: of(alpha), temperature: of(temperature) })
        }
        PairwiseObjective::TripletAll { margin } => with!(Hinge { margin: of(margin) }),
        PairwiseObjective::Contrastive { neg_margin, .. } => with!(Hinge { margin: of(-neg_margin) }),
    }
}

fn count_kind<A>(scales: &[RowScale<A>], kind: RowKind) -> u32 {
    scales.iter().filter(|s| s.kind == kind).count() as u32
}

/// A step, of a single set if `dy` is `None`.
#[allow(clippy::too_many_arguments)]
fn step<T: Element, G: GradientOf<T>>(
    op: &'static str,
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> Result<PairwiseReport> {
    let extent = |mat: &MatMut<'_, G>| (mat.rows(), mat.cols());
    let dy_extent = dy.as_ref().map_or((y.rows(), y.cols()), extent);
    let (x_extent, y_extent) = ((x.rows(), x.cols()), (y.rows(), y.cols()));
    check::pairwise_step(op, x_extent, y_extent, objective, options, extent(&dx), dy_extent)?;
    let (n, m) = (x.rows(), y.rows());
    let _awake = cpu.session(n.saturating_mul(m).saturating_mul(x.cols()));
    let [x_scales, y_scales] = row_scales(cpu, x, y);
    let raw = options.normalization == Normalization::L2;
    let classes = Classes::new(objective, options, dy.is_none());
    let x_left_out = left_out(&x_scales, raw, |i| classes.row_ignored(i));
    let y_left_out = left_out(&y_scales, raw, |j| classes.col_ignored(j));
    let inputs = Inputs {
        x: Operand { rows: Rows { mat: x, scales: raw.then_some(&x_scales[..]) }, left_out: &x_left_out },
        y: Operand { rows: Rows { mat: y, scales: raw.then_some(&y_scales[..]) }, left_out: &y_left_out },
        classes,
        counts: classes.counts(n, m),
    };
    let (anchors, Found { totals, overflow, statistics: found }) =
        solve_objective(cpu, &inputs, objective, options, dx, dy);
    let counts = &inputs.counts;
    let sum = |of: fn(&(u32, u32)) -> u32| counts.rows.iter().map(|c| u64::from(of(c))).sum::<u64>();
    let (positives, negatives) = (sum(|c| c.0), sum(|c| c.1));
    let similarity: f64 = found.positives.iter().map(|p| p.similarity).sum();
    let per_scale = |value: f64| objective.scale().map_or(0.0, |scale| value / scale);
    let bias = matches!(objective, PairwiseObjective::SigLip { .. });
    Ok(PairwiseReport {
        loss: anchors.rows.iter().chain(&anchors.cols).map(|a| a.loss).sum(),
        d_scale: per_scale(totals.weighted_similarity),
        d_bias: if bias { per_scale(totals.weight) } else { 0.0 },
        mean_positive: if positives == 0 { 0.0 } else { similarity / positives as f64 },
        positives,
        negatives,
        anchors_rows: counts.rows.iter().filter(|c| c.0 > 0).count() as u32,
        anchors_cols: counts.cols.iter().filter(|c| c.0 > 0).count() as u32,
        zero_x: count_kind(&x_scales, RowKind::Zero),
        zero_y: count_kind(&y_scales, RowKind::Zero),
        nan_x: count_kind(&x_scales, RowKind::NotFinite),
        nan_y: count_kind(&y_scales, RowKind::NotFinite),
        overflow,
        reserved: 0,
    })
}

/// One step of an objective over all pairs of `x` (`n × d`) and `y` (`m × d`): its loss, and the gradients
/// `dx (+)= u W ŷ` and `dy (+)= u Wᵀ x̂` with `W = dL/dS` and `u = options.upstream`.
///
/// Formulas: [`PairwiseObjective`]; which pairs are positive, negative or ignored: [`PairwiseOptions`]. Under
/// [`Normalization::L2`] gradients go through the Jacobian of the normalisation, as in
/// [`weighted_grad`](super::weighted_grad). The gradients of the logits' scale and bias are in the report.
///
/// A positive's weight is computed from the sums over the negatives, so it keeps its relative precision when a batch has
/// converged. NaN in a row makes the gradients of all anchors that meet it NaN; an ignored pair or row has no effect
/// whatever it holds. A zero row gets the gradient 0 under [`Normalization::L2`].
///
/// `dx` and `dy` have the shapes of `x` and `y`, in `T` or `T::Acc`; sums are in `T::Acc`, sums over tiles and the report in
/// `f64`. Neither `S` nor `W` is stored as a whole unless it is small: allocates `O(n + m)`, at most 40 MiB of similarities
/// that are kept from one sweep to the next, bands of 384 rows or about 32 MiB, and, unless `dy` is overwritten in
/// `T::Acc`, `m × d` sums. The result is the same bits run to run and for every number of threads.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for
/// shapes and lengths, [`Error::InvalidOption`](crate::Error::InvalidOption) for a parameter out of range or an option
/// that the objective has no use for, [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX` rows; nothing is
/// written then.
pub fn pairwise_step<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<PairwiseReport> {
    step("pairwise_step", cpu, x, y, objective, options, dx, Some(dy))
}

/// As [`pairwise_step`] for one set: the rows of `x` are anchors and candidates at once, a row is no candidate of its own,
/// and `dx (+)= u (W + Wᵀ) x̂`.
///
/// Positives come from the groups, of which rows and columns are the same; without groups there are none.
///
/// # Errors
/// As [`pairwise_step`].
pub fn pairwise_step_single<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
) -> Result<PairwiseReport> {
    step("pairwise_step_single", cpu, x, x, objective, options, dx, None)
}
