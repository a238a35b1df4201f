//! The gradient field over the (positive, negative) plane, with the batch's own triplets.
//!
//! A step against the gradient moves the positive similarity `P` of a triplet by `T w⁺` and the negative one `N` by
//! `−T w⁻`. The relative similarities of the `_ms` weights depend on the batch: at a point of the plane `R⁺` is that
//! of a further anchor of this batch with these `P` and `N`, and `R⁻` is the mean over the batch's anchors.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use simgrad::{AnchorDetail, NONE, Objective, PairWeight, reference};

use crate::anatomy::Anatomy;
use crate::common::{Failure, Outcome};

const SIZE: (u32, u32) = (820, 760);
/// Cells per axis of the background, and arrows per axis.
const CELLS: usize = 60;
const ARROWS: usize = 20;

type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The field of one batch.
struct Field<'a> {
    objective: &'a Objective,
    positive: &'a [f64],
    rs_neg: f64,
}

impl Field<'_> {
    /// Change of `(P, N)` by a step against the gradient.
    fn at(&self, p: f64, n: f64) -> (f64, f64) {
        let t = reference::triplet_weight(self.objective.triplet(), p, n);
        let (w_pos, w_neg) =
            reference::pair_weights(self.objective.pair(), p, n, self.relative_positive(p, n), self.rs_neg);
        (t * w_pos, -t * w_neg)
    }

    fn relative_positive(&self, p: f64, n: f64) -> f64 {
        let Some(eps) = self.objective.pair().eps() else { return 0.0 };
        let members = self.positive.iter().filter(|&&other| other <= n + eps);
        let terms: Vec<f64> = match self.objective.pair() {
            PairWeight::SigMs { alpha, .. } => members.map(|other| (alpha * (p - other)).exp()).collect(),
            _ => members.map(|other| p - other).filter(|&difference| difference != 0.0).collect(),
        };
        if terms.is_empty() { 0.0 } else { terms.iter().sum::<f64>() / terms.len() as f64 }
    }
}

/// An SVG of the field.
pub fn draw(objective: &Objective, anatomy: &Anatomy) -> Outcome<String> {
    let mut svg = String::new();
    paint(&mut svg, objective, anatomy).map_err(|e| Failure::new(format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

fn paint(svg: &mut String, objective: &Objective, anatomy: &Anatomy) -> Drawn {
    let detail = &anatomy.detail;
    let rs_neg = mean(detail.it.rs_neg.iter().chain(&detail.ti.rs_neg));
    let field = Field { objective, positive: &detail.positive, rs_neg };
    let triplets = [("it", triplets(&detail.positive, &detail.it)), ("ti", triplets(&detail.positive, &detail.ti))];
    // Unit vectors stay within [-1, 1]; un-normalised inputs may need more.
    let all = triplets.iter().flat_map(|(_, points)| points.iter().flat_map(|&(p, n)| [p.abs(), n.abs()]));
    let bound = 1.05 * all.fold(1.0, f64::max);
    let root: DrawingArea<SVGBackend<'_>, Shift> = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{objective}: change of (P, N) by a step against the gradient"), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(-bound..bound, -bound..bound)?;
    background(&mut chart, &field, bound)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("P, similarity of the pair")
        .y_desc("N, similarity to the hardest negative")
        .draw()?;
    chart.draw_series(LineSeries::new([(-bound, -bound), (bound, bound)], BLACK.mix(0.4)))?;
    arrows(&mut chart, &field, bound)?;
    for ((name, points), colour) in triplets.iter().zip([RED, BLUE]) {
        let marks = points.iter().map(|&point| Circle::new(point, 4, colour.mix(0.8).filled()));
        let label = format!("{name}: {} triplets of the batch", points.len());
        let series = chart.draw_series(marks)?.label(label);
        series.legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.mix(0.8).filled()));
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    labels.draw()?;
    root.present()?;
    Ok(())
}

fn triplets(positive: &[f64], anchors: &AnchorDetail<f64>) -> Vec<(f64, f64)> {
    let with_negative = anchors.neg_index.iter().zip(positive.iter().zip(&anchors.neg_value));
    let points = with_negative.filter(|(index, _)| **index != NONE).map(|(_, (&p, &n))| (p, n));
    points.filter(|(p, n)| p.is_finite() && n.is_finite()).collect()
}

fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let finite: Vec<f64> = values.copied().filter(|v| v.is_finite()).collect();
    if finite.is_empty() { 0.0 } else { finite.iter().sum::<f64>() / finite.len() as f64 }
}

/// Centres of `count` cells of `[-bound, bound]`, and half a cell.
fn centres(count: usize, bound: f64) -> (Vec<f64>, f64) {
    let half = bound / count as f64;
    ((0..count).map(|i| -bound + half * (2 * i + 1) as f64).collect(), half)
}

/// Darker where the gradient is longer, on a scale from the plane's own shortest to its longest.
fn background(chart: &mut Plane<'_, '_>, field: &Field<'_>, bound: f64) -> Drawn {
    let (axis, half) = centres(CELLS, bound);
    let points: Vec<(f64, f64)> = axis.iter().flat_map(|&p| axis.iter().map(move |&n| (p, n))).collect();
    let length = |&(p, n): &(f64, f64)| {
        let (dp, dn) = field.at(p, n);
        dp.hypot(dn).ln_1p()
    };
    let lengths: Vec<f64> = points.iter().map(length).collect();
    let finite = lengths.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let cells = points.iter().zip(&lengths).map(|(&(p, n), &length)| {
        let share = if high > low { ((length - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 };
        let style = HSLColor(0.12, 0.8, 0.97 - 0.4 * share).filled();
        Rectangle::new([(p - half, n - half), (p + half, n + half)], style)
    });
    chart.draw_series(cells)?;
    Ok(())
}

/// Directions only; their length is the background's matter.
fn arrows(chart: &mut Plane<'_, '_>, field: &Field<'_>, bound: f64) -> Drawn {
    let (axis, half) = centres(ARROWS, bound);
    let mut drawn = Vec::new();
    for (&p, &n) in axis.iter().flat_map(|p| axis.iter().map(move |n| (p, n))) {
        let (dp, dn) = field.at(p, n);
        let length = dp.hypot(dn);
        if length > 0.0 && length.is_finite() {
            let (u, v) = (0.7 * half * dp / length, 0.7 * half * dn / length);
            let tip = (p + u, n + v);
            let barb = |side: f64| (p + 0.3 * u - side * 0.35 * v, n + 0.3 * v + side * 0.35 * u);
            drawn.push(PathElement::new(vec![(p - u, n - v), tip], BLACK.mix(0.65)));
            drawn.push(PathElement::new(vec![barb(1.0), tip, barb(-1.0)], BLACK.mix(0.65)));
        }
    }
    chart.draw_series(drawn)?;
    Ok(())
}
