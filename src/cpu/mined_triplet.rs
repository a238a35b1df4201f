//! The triplet hinge on mined negatives: mine, weigh, differentiate.

use super::gather::{Gradient, Terms, gather};
use super::pack::Rows;
use super::pool::Cpu;
use super::row_norms::{RowKind, row_scales};
use super::top_k::select;
use crate::check;
use crate::dtype::{Accum, Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::mined_triplet::{MinedTriplet, MinedTripletReport};
use crate::options::{Normalization, StepOptions};
use crate::outputs::NONE;
use crate::top_k::{Selected, TopK};

/// A weight of `W`: row, column, value.
type Triple = (usize, usize, f64);

/// The triplets of one direction: its negatives' weights, and what they add to the anchors' pairs and to the report.
fn triplets<A: Accum>(
    selected: &Selected<A>,
    positive: &[A],
    margin: f64,
    pairs: &mut [f64],
    report: &mut MinedTripletReport,
) -> (Vec<Triple>, u32) {
    let (mut triples, mut empty) = (Vec::new(), 0);
    let (k, mut loss, mut negative) = (selected.k, 0.0, 0.0);
    for (anchor, (p, pair)) in positive.iter().zip(pairs).enumerate() {
        let places = anchor * k..(anchor + 1) * k;
        let chosen = selected.index[places.clone()].iter().zip(&selected.value[places]);
        let before = report.triplets;
        for (&j, s) in chosen.take_while(|(j, _)| **j != NONE) {
            let violation = margin + s.to_f64() - p.to_f64();
            report.triplets += 1;
            negative += s.to_f64();
            if violation <= 0.0 {
                continue;
            }
            // Positive or NaN.
            let weight = if violation.is_nan() { f64::NAN } else { 1.0 };
            report.active += 1;
            loss += violation;
            *pair -= weight;
            triples.push((anchor, j as usize, weight));
        }
        empty += u32::from(report.triplets == before);
    }
    report.loss += loss;
    report.mean_negative += negative;
    (triples, empty)
}

/// The weights that are not 0, in the order in which they are added up: pairs, rows' negatives, columns' negatives. And the
/// report without the counts of rows.
fn weigh<A: Accum>(mined: &TopK<A>, objective: &MinedTriplet) -> (Vec<Triple>, MinedTripletReport) {
    let count = mined.positive.len();
    let factor = objective.factor(count);
    let mut report = MinedTripletReport { pairs: count as u32, ..MinedTripletReport::default() };
    let mut pairs = vec![0.0; count];
    let margin = objective.margin;
    let (rows, empty_rows) = triplets(&mined.rows, &mined.positive, margin, &mut pairs, &mut report);
    let (cols, empty_cols) = triplets(&mined.cols, &mined.positive, margin, &mut pairs, &mut report);
    (report.empty_rows, report.empty_cols) = (empty_rows, empty_cols);
    let mean = |sum: f64, count: u64| if count == 0 { 0.0 } else { sum / count as f64 };
    report.loss *= factor;
    report.mean_positive = mean(mined.positive.iter().map(|p| p.to_f64()).sum(), count as u64);
    report.mean_negative = mean(report.mean_negative, report.triplets);
    let pairs = pairs.into_iter().enumerate().filter(|(_, weight)| *weight != 0.0);
    let mut triples: Vec<Triple> = pairs.map(|(i, weight)| (i, i, weight)).collect();
    triples.extend(rows);
    triples.extend(cols.into_iter().map(|(j, i, weight)| (i, j, weight)));
    (triples, report)
}

/// One step of the triplet hinge on mined negatives: its loss, and the gradients `dx (+)= u W ŷ` and `dy (+)= u Wᵀ x̂` with
/// `W = dL/dS` and `u = options.upstream`.
///
/// The formula and its sources: [`MinedTriplet`]. Candidates, ties, NaN, groups and the order of the rules are those of
/// [`mine_top_k`](super::mine_top_k); under [`Normalization::L2`] the gradient goes through the Jacobian of the normalisation,
/// as in [`weighted_grad`](super::weighted_grad). A triplet with a NaN has the weight NaN; triplets without a violation are
/// left out. `x` and `dx` are `n × d`, `y` and `dy` are `m × d`; only the first `min(n, m)` rows and columns have a pair and so
/// triplets, and all are candidates. Gradients are written in `T` or `T::Acc`, summed in `T::Acc` and rounded once; the report's
/// sums are in `f64`. `S` is never stored: allocates as [`mine_top_k`](super::mine_top_k) does, and `O((n + m) k)`. The result
/// is the same bits run to run and for every number of threads.
///
/// # Errors
/// Those of [`mine_top_k`](super::mine_top_k), and [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for `dx` and `dy`,
/// [`Error::InvalidOption`](crate::Error::InvalidOption) for a margin that is not finite,
/// [`Error::TooLarge`](crate::Error::TooLarge) if there is room for more than `i32::MAX` weights; nothing is written then.
pub fn mined_triplet_step<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &MinedTriplet,
    options: &StepOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<MinedTripletReport> {
    let rules = objective.rules(options.normalization, options.groups);
    let (n, m) = (x.rows(), y.rows());
    let gradients = [(dx.rows(), dx.cols()), (dy.rows(), dy.cols())];
    check::mined_triplet("mined_triplet_step", (n, x.cols()), (m, y.cols()), objective, &rules, gradients)?;
    let _awake = cpu.session(n.saturating_mul(m).saturating_mul(x.cols()));
    let [x_scales, y_scales] = row_scales(cpu, x, y);
    let normalised = options.normalization == Normalization::L2;
    let x = Rows { mat: x, scales: normalised.then_some(&x_scales[..]) };
    let y = Rows { mat: y, scales: normalised.then_some(&y_scales[..]) };
    let (triples, report) = weigh(&select(cpu, x, y, None, &rules), objective);
    let factor = options.upstream * objective.factor(n.min(m));
    let triples = triples.iter().map(|&(i, j, weight)| (i, j, T::Acc::from_f64(factor * weight)));
    let by_row = Terms::new(n, triples.clone());
    let by_col = Terms::new(m, triples.map(|(i, j, weight)| (j, i, weight)));
    let dx = Gradient { target: x, source: y, terms: &by_row, out: dx };
    let dy = Gradient { target: y, source: x, terms: &by_col, out: dy };
    let overflow = gather(cpu, options.write, [dx, dy]);
    let count = |scales: &[super::row_norms::RowScale<T::Acc>], kind| {
        scales.iter().filter(|scale| scale.kind == kind).count() as u32
    };
    Ok(MinedTripletReport {
        zero_x: count(&x_scales, RowKind::Zero),
        zero_y: count(&y_scales, RowKind::Zero),
        nan_x: count(&x_scales, RowKind::NotFinite),
        nan_y: count(&y_scales, RowKind::NotFinite),
        overflow,
        ..report
    })
}
