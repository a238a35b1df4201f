//! The triplet hinge on mined negatives.

use super::row_norms::count_special;
use super::top_k::mine_top_k;
use super::weighted_grad::gradient;
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::mined_triplet::{MinedTriplet, MinedTripletReport};
use crate::objective::Reduction;
use crate::options::StepOptions;
use crate::outputs::NONE;
use crate::top_k::{TopK, TopKOptions};

/// Everything about one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MinedTripletReference {
    /// Gradient with respect to `x`, `n × d`.
    pub dx: Vec<f64>,
    /// Gradient with respect to `y`, `m × d`.
    pub dy: Vec<f64>,
    /// The report; `overflow` is 0.
    pub report: MinedTripletReport,
    /// What was mined.
    pub mined: TopK<f64>,
}

/// Mining, hinge and gradient. `options.write` is not looked at: the result is never added to anything.
pub fn mined_triplet_step<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &MinedTriplet,
    options: &StepOptions<'_>,
) -> MinedTripletReference {
    let pairs = x.rows().min(y.rows());
    let mined = mine_top_k(
        x,
        y,
        &TopKOptions {
            normalization: options.normalization,
            groups: options.groups,
            window: objective.window,
            below_positive: objective.below_positive,
            fallback: objective.fallback,
            skip: objective.skip,
            k: objective.k,
            pick: objective.pick,
        },
    );
    let factor = match objective.reduction {
        Reduction::Mean if pairs > 0 => 1.0 / pairs as f64,
        _ => 1.0,
    };
    let mut report = MinedTripletReport { pairs: pairs as u32, ..MinedTripletReport::default() };
    let mut triples = Vec::new();
    for anchor in 0..pairs {
        let p = mined.positive[anchor];
        report.mean_positive += p / pairs as f64;
        for (selected, is_row) in [(&mined.rows, true), (&mined.cols, false)] {
            let places = anchor * objective.k..(anchor + 1) * objective.k;
            let negatives: Vec<_> = places.filter(|&q| selected.index[q] != NONE).collect();
            let empty = if is_row { &mut report.empty_rows } else { &mut report.empty_cols };
            *empty += u32::from(negatives.is_empty());
            for q in negatives {
                let (j, s) = (selected.index[q] as usize, selected.value[q]);
                let violation = objective.margin + s - p;
                report.triplets += 1;
                report.mean_negative += s;
                if violation > 0.0 || violation.is_nan() {
                    let weight = if violation.is_nan() { f64::NAN } else { 1.0 };
                    report.active += 1;
                    report.loss += violation * factor;
                    triples.push((anchor, anchor, -weight));
                    triples.push(if is_row { (anchor, j, weight) } else { (j, anchor, weight) });
                }
            }
        }
    }
    if report.triplets > 0 {
        report.mean_negative /= report.triplets as f64;
    }
    ((report.zero_x, report.nan_x), (report.zero_y, report.nan_y)) = (count_special(x), count_special(y));
    let (dx, dy) = gradient(x, y, &triples, options.normalization, options.upstream * factor);
    MinedTripletReference { dx, dy, report, mined }
}
