//! One step of an objective over all pairs: statistics of every anchor, weights of every pair, gradients.

mod classes;
mod coefficients;
mod custom;
mod form;
mod gradient;
mod member;
mod operands;
mod positives;
mod slices;
mod sparse;
mod statistics;
mod tiles;

use self::classes::{Classes, Counts};
use self::custom::{ColumnPositives, Custom, Hardest, NearNegatives, NearPositives};
use self::form::{Circle, Hinge, Lifted, MultiSimilarity, RankedList, SigLip, Softmax};
use self::gradient::gradient;
use self::member::{Formed, Member, Parameters, Survey};
use self::sparse::Sparse;
use self::statistics::{Statistics, statistics};
use self::tiles::{Operand, Tiles, left_out};
use super::goal::weight_matrix;
use super::pack::Rows;
use super::pool::Cpu;
use super::real::Real;
use super::row_norms::{RowKind, RowScale, row_scales};
use super::sweep::diagonal;
use crate::check;
use crate::custom::PairObjective;
use crate::dtype::{Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::mixture::{Conflict, MixtureObjective, MixtureReport, PairwisePart};
use crate::options::{Normalization, WriteMode};
use crate::pairwise::{PairwiseObjective, PairwiseOptions, PairwiseReport};

/// A step's matrices and what all of its objectives share.
struct Inputs<'a, T: Element> {
    x: Operand<'a, T>,
    y: Operand<'a, T>,
    options: &'a PairwiseOptions<'a>,
    /// One per column, zeros where there is no correction.
    log_q: &'a [T::Acc],
    /// Whether rows and columns are the same set.
    single: bool,
}

/// Similarity of the own pair of every anchor that has one, +∞ for the others: nothing violates their margin.
fn own_similarities<T: Element>(cpu: &Cpu, inputs: &Inputs<'_, T>, classes: &Classes<'_>) -> [Vec<T::Acc>; 2] {
    let pairs = diagonal(cpu, inputs.x.rows, inputs.y.rows);
    let side = |count: usize| -> Vec<T::Acc> {
        let of = |k: usize| pairs.get(k).filter(|_| classes.own_pair(k)).copied();
        (0..count).map(|k| of(k).unwrap_or(T::Acc::from_f64(f64::INFINITY))).collect()
    };
    [side(inputs.x.rows.mat.rows()), side(inputs.y.rows.mat.rows())]
}

/// What the anchors' negatives are compared with. For a miner that takes a sweep.
fn parameters<T: Element>(
    tiles: &mut Tiles<'_, T>,
    inputs: &Inputs<'_, T>,
    objective: &PairwiseObjective,
    classes: Classes<'_>,
) -> Parameters<T::Acc> {
    let (n, m) = (inputs.x.rows.mat.rows(), inputs.y.rows.mat.rows());
    let rows = |value: T::Acc| Parameters { rows: vec![value; n], cols: Vec::new(), highest: Vec::new() };
    match objective {
        PairwiseObjective::TripletAll { .. } => {
            let [rows, cols] = own_similarities(tiles.cpu, inputs, &classes);
            Parameters { rows, cols, highest: Vec::new() }
        }
        PairwiseObjective::InfoNce { .. } => Parameters { cols: vec![T::Acc::ZERO; m], ..rows(T::Acc::ZERO) },
        PairwiseObjective::MultiSimilarity { epsilon: None, .. } => rows(T::Acc::NEG_INFINITY),
        PairwiseObjective::MultiSimilarity { epsilon: Some(_), .. } => {
            let (form, all) = (Softmax { scale: T::Acc::ONE }, rows(T::Acc::ZERO));
            let (options, log_q) = (inputs.options, inputs.log_q);
            let extremes = Formed::new(*objective, 1.0, options, classes, Counts::default(), all, log_q, form);
            let Some(found) = statistics(tiles, &[&extremes]).pop() else { return rows(T::Acc::ZERO) };
            Parameters {
                rows: found.positives.iter().map(|p| T::Acc::from_f64(p.least)).collect(),
                cols: Vec::new(),
                highest: found.rows.iter().map(|negatives| negatives.max).collect(),
            }
        }
        _ => rows(T::Acc::ZERO),
    }
}

/// An objective with everything that it needs before the statistics.
fn member<'a, T: Element>(
    tiles: &mut Tiles<'_, T>,
    inputs: &Inputs<'a, T>,
    part: &PairwisePart,
) -> Box<dyn Member<T::Acc> + 'a> {
    let of = T::Acc::from_f64;
    let objective = match part.objective {
        MixtureObjective::Pairwise(objective) => objective,
        MixtureObjective::Goal(objective) => {
            let (groups, factor) = (inputs.options.groups, inputs.options.upstream * part.weight);
            let (x, y) = (inputs.x.rows, inputs.y.rows);
            let (weights, report) = weight_matrix(tiles.cpu, x, y, &objective, groups, factor);
            return Box::new(Sparse { weights, report });
        }
    };
    let classes = Classes::new(objective.single_positive(), inputs.options, inputs.single);
    let counts = classes.counts(tiles.cut.n, tiles.cut.m);
    let parameters = parameters(tiles, inputs, &objective, classes);
    let (options, log_q) = (inputs.options, inputs.log_q);
    macro_rules! with {
        ($form:expr) => {
            Box::new(Formed::new(objective, part.weight, options, classes, counts, parameters, log_q, $form))
        };
    }
    match objective {
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

/// Gradients, the members' reports, and the number of elements that overflowed.
fn solve<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    inputs: &Inputs<'_, T>,
    parts: &[PairwisePart],
    write: WriteMode,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> (Vec<PairwiseReport>, u32) {
    let mut tiles = Tiles::new(cpu, inputs.x, inputs.y);
    let mut members: Vec<_> = parts.iter().map(|part| member(&mut tiles, inputs, part)).collect();
    let early = |members: &[Box<dyn Member<T::Acc> + '_>]| -> Vec<usize> {
        (0..members.len()).filter(|&k| !members[k].alone()).collect()
    };
    let before = early(&members);
    let asked: Vec<&dyn Survey<T::Acc>> = before.iter().map(|&k| &*members[k] as &dyn Survey<T::Acc>).collect();
    let found_before = if asked.is_empty() { Vec::new() } else { statistics(&mut tiles, &asked) };
    let nothing = || Statistics::new(tiles.cut.n, tiles.cut.m, false);
    let mut found: Vec<Statistics> = members.iter().map(|_| nothing()).collect();
    for (k, statistics) in before.into_iter().zip(found_before) {
        found[k] = statistics;
    }
    members.iter_mut().zip(&found).for_each(|(member, found)| member.settle(found));
    let all: Vec<&dyn Member<T::Acc>> = members.iter().map(|member| &**member).collect();
    let swept = gradient(&mut tiles, &all, write, dx, dy);
    for ((member, found), swept) in members.iter_mut().zip(&mut found).zip(swept.statistics) {
        if member.alone() {
            // The weights were known; the losses are known after the sweep.
            *found = swept;
            member.settle(found);
        }
    }
    let reports = members.iter().zip(&found).zip(&swept.totals).map(|((m, found), totals)| m.report(found, *totals));
    (reports.collect(), swept.overflow)
}

fn count_kind<A>(scales: &[RowScale<A>], kind: RowKind) -> u32 {
    scales.iter().filter(|s| s.kind == kind).count() as u32
}

/// Calls `f` with the inputs of a step, of a single set if so; adds the counts of rows to the reports that it returns.
fn with_inputs<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &PairwiseOptions<'_>,
    single: bool,
    f: impl FnOnce(&Inputs<'_, T>) -> (Vec<PairwiseReport>, u32),
) -> Vec<PairwiseReport> {
    let (n, m) = (x.rows(), y.rows());
    let _awake = cpu.session(n.saturating_mul(m).saturating_mul(x.cols()));
    let [x_scales, y_scales] = row_scales(cpu, x, y);
    let raw = options.normalization == Normalization::L2;
    let ignored = |mask: Option<&[bool]>, at: usize| mask.is_some_and(|mask| mask[at]);
    let x_left_out = left_out(&x_scales, raw, |i| ignored(options.ignore_rows, i));
    let y_left_out = left_out(&y_scales, raw, |j| ignored(options.ignore_cols, j));
    let log_q: Vec<T::Acc> = match options.log_q {
        Some(log_q) => log_q.iter().map(|&q| T::Acc::from_f64(f64::from(q))).collect(),
        None => vec![T::Acc::ZERO; m],
    };
    let (mut reports, overflow) = f(&Inputs {
        x: Operand { rows: Rows { mat: x, scales: raw.then_some(&x_scales[..]) }, left_out: &x_left_out },
        y: Operand { rows: Rows { mat: y, scales: raw.then_some(&y_scales[..]) }, left_out: &y_left_out },
        options,
        log_q: &log_q,
        single,
    });
    for report in &mut reports {
        report.zero_x = count_kind(&x_scales, RowKind::Zero);
        report.zero_y = count_kind(&y_scales, RowKind::Zero);
        report.nan_x = count_kind(&x_scales, RowKind::NotFinite);
        report.nan_y = count_kind(&y_scales, RowKind::NotFinite);
        report.overflow = overflow;
    }
    reports
}

/// A step, of a single set if `dy` is `None`: the members' reports. With `conflict`, each part's gradients are also computed
/// alone.
#[allow(clippy::too_many_arguments)]
fn step<T: Element, G: GradientOf<T>>(
    op: &'static str,
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    parts: &[PairwisePart],
    options: &PairwiseOptions<'_>,
    conflict: bool,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> Result<(Vec<PairwiseReport>, Option<Conflict>)> {
    let extent = |mat: &MatMut<'_, G>| (mat.rows(), mat.cols());
    let dy_extent = dy.as_ref().map_or((y.rows(), y.cols()), extent);
    let (x_extent, y_extent) = ((x.rows(), x.cols()), (y.rows(), y.cols()));
    let single = dy.is_none();
    check::pairwise_step(op, x_extent, y_extent, single, parts, &options.into(), extent(&dx), dy_extent)?;
    let mut relation = None;
    let reports = with_inputs(cpu, x, y, options, single, |inputs| {
        relation = conflict.then(|| alone(cpu, inputs, parts));
        solve(cpu, inputs, parts, options.write, dx, dy)
    });
    Ok((reports, relation))
}

/// [`solve`] for an objective of the caller's.
fn solve_custom<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    inputs: &Inputs<'_, T>,
    objective: &dyn PairObjective,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> (Vec<PairwiseReport>, u32) {
    let mut tiles = Tiles::new(cpu, inputs.x, inputs.y);
    let classes = Classes::new(objective.one_positive(), inputs.options, inputs.single);
    let counts = classes.counts(tiles.cut.n, tiles.cut.m);
    let mut custom = Custom::new(objective, inputs.options, classes, counts);
    let found = statistics(&mut tiles, &[&Hardest(classes), &custom, &ColumnPositives(&custom)]);
    let [hardest, sums, columns] = &found[..] else { return (Vec::new(), 0) };
    let own = own_similarities(cpu, inputs, &classes).map(|side| {
        let of = |s: &T::Acc| if s.to_f64() == f64::INFINITY { f64::NAN } else { s.to_f64() };
        side.iter().map(of).collect()
    });
    custom.meet(hardest, sums, columns, own);
    if let Some(slack) = objective.slack() {
        let near =
            [&NearNegatives::new(&custom, slack) as &dyn Survey<T::Acc>, &NearPositives { custom: &custom, slack }];
        if let [negatives, positives] = &statistics(&mut tiles, &near)[..] {
            custom.meet_near(negatives, positives);
        }
    }
    let swept = gradient(&mut tiles, &[&custom], inputs.options.write, dx, dy);
    let member: &dyn Member<T::Acc> = &custom;
    (vec![member.report(sums, swept.totals[0])], swept.overflow)
}

/// Norms of, and cosines between, the gradients of the parts, each computed alone. In `T::Acc`, whatever the step's gradients
/// are rounded to: there they may overflow.
fn alone<T: Element>(cpu: &Cpu, inputs: &Inputs<'_, T>, parts: &[PairwisePart]) -> Conflict {
    let (n, m, d) = (inputs.x.rows.mat.rows(), inputs.y.rows.mat.rows(), inputs.x.rows.mat.cols());
    let gradient_of = |part: &PairwisePart| -> Vec<f64> {
        let (mut dx, mut dy) = (vec![T::Acc::ZERO; n * d], vec![T::Acc::ZERO; m * d]);
        if let (Ok(dx), Ok(dy)) = (MatMut::new(&mut dx, n, d), MatMut::new(&mut dy, m, d)) {
            solve(cpu, inputs, &[*part], WriteMode::Overwrite, dx, (!inputs.single).then_some(dy));
        }
        dx.iter().chain(&dy).map(|v| v.to_f64()).collect()
    };
    let gradients: Vec<Vec<f64>> = parts.iter().map(gradient_of).collect();
    Conflict::of(&gradients)
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
/// `f64`. Neither `S` nor `W` is stored as a whole unless it is small: allocates `O(n + m)`, at most 48 MiB of similarities
/// that are kept from one sweep to the next (at least a wave of 384 rows or about 32 MiB), and, unless `dy` is overwritten in
/// `T::Acc`, `m × d` sums; up to `2^18` similarities (or 384 rows) and `m · d = 2^20` the sums of both
/// sides and `W` a second time. The result is the same bits run to run and for every number of threads.
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
    one("pairwise_step", cpu, x, y, objective, options, dx, Some(dy))
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
    one("pairwise_step_single", cpu, x, x, objective, options, dx, None)
}

/// One step of a weighted sum of objectives over one batch, `L = Σ_k w_k L_k`: one sweep over `S` takes the statistics of all of
/// them, their weight matrices are added, and the gradient's two products are taken once. A miner and a GOAL objective have a
/// sweep of their own before.
///
/// `options` are those of every part; a part that has no use for an option goes without it, but one of them must have a
/// use. A part may be a GOAL objective, whose few weights are added to the others': it takes pairs (`n = m`) and groups, and
/// masks and weights of rows and columns are refused beside it. With `conflict` the report also says how long each part's
/// gradient is and how much the parts agree, for which each part is computed once more by itself, into memory of the size of
/// both gradients in `T::Acc`, and of those in `f64` per part.
///
/// # Errors
/// As [`pairwise_step`], and [`Error::InvalidOption`](crate::Error::InvalidOption) for a weight that is not finite or for
/// no parts.
#[allow(clippy::too_many_arguments)]
pub fn pairwise_mixture<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    parts: &[PairwisePart],
    options: &PairwiseOptions<'_>,
    conflict: bool,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<MixtureReport> {
    let (reports, conflict) = step("pairwise_mixture", cpu, x, y, parts, options, conflict, dx, Some(dy))?;
    Ok(MixtureReport::new(parts, reports, conflict))
}

/// As [`pairwise_mixture`] for one set, as [`pairwise_step_single`]; there are no GOAL parts then.
///
/// # Errors
/// As [`pairwise_mixture`].
pub fn pairwise_mixture_single<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    parts: &[PairwisePart],
    options: &PairwiseOptions<'_>,
    conflict: bool,
    dx: MatMut<'_, G>,
) -> Result<MixtureReport> {
    let (reports, conflict) = step("pairwise_mixture_single", cpu, x, x, parts, options, conflict, dx, None)?;
    Ok(MixtureReport::new(parts, reports, conflict))
}

/// A step of one objective.
#[allow(clippy::too_many_arguments)]
fn one<T: Element, G: GradientOf<T>>(
    op: &'static str,
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> Result<PairwiseReport> {
    let part = PairwisePart::new(1.0, *objective);
    let (reports, _) = step(op, cpu, x, y, &[part], options, false, dx, dy)?;
    Ok(reports.first().copied().unwrap_or_default())
}

/// One step of an objective of your own over all pairs: the gradients `dx (+)= u W ŷ` and `dy (+)= u Wᵀ x̂` for the weights
/// `W` that `objective` gives, as [`pairwise_step`].
///
/// Weights are computed pair by pair in `f64`, once; logits twice. An objective with a [slack](PairObjective::slack) takes one
/// more sweep over the similarities. `row_weights` multiply all weights of a row. `loss` in the
/// report is `Σ W_ij S_ij` with the upstream factor: something to watch, not a loss, for nothing says that there is one
/// ([`integrability`](crate::integrability) does). A pair whose similarity is NaN has the weight NaN.
///
/// # Errors
/// As [`pairwise_step`]; `col_weights` and `log_q` are refused.
pub fn pairwise_step_custom<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &dyn PairObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<PairwiseReport> {
    let extents = [(x.rows(), x.cols()), (y.rows(), y.cols()), (dx.rows(), dx.cols()), (dy.rows(), dy.cols())];
    check::pairwise_custom("pairwise_step_custom", extents, &options.into())?;
    let solve = |inputs: &Inputs<'_, T>| solve_custom(cpu, inputs, objective, dx, Some(dy));
    Ok(with_inputs(cpu, x, y, options, false, solve).first().copied().unwrap_or_default())
}
