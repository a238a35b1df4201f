//! Learning curves.

use plotters::prelude::*;
use simgrad::{PairWeight, PairwiseObjective, TripletWeight};

use crate::common::{Failure, Outcome};
use crate::data::Dataset;
use crate::objective::Trained;
use crate::train::Run;

const SIZE: (u32, u32) = (1000, 460);

/// An SVG with validation R@1 by epoch, one panel per direction.
pub fn learning_curves(dataset: &Dataset, runs: &[Run]) -> Outcome<String> {
    let mut svg = String::new();
    draw(&mut svg, dataset, runs).map_err(|e| Failure::new(format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

fn draw(svg: &mut String, dataset: &Dataset, runs: &[Run]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}: validation R@1 by epoch, percent", dataset.name);
    let panels = root.titled(&title, ("sans-serif", 18))?.split_evenly((1, 2));
    let r1 = |run: &Run, panel: usize| -> Vec<(f64, f64)> {
        let curve = run.epochs.iter().zip(1..);
        curve
            .map(|(epoch, number)| {
                let direction = if panel == 0 { &epoch.val.x_to_y } else { &epoch.val.y_to_x };
                (f64::from(number), direction.r1)
            })
            .collect()
    };
    let last = runs.iter().map(|run| run.epochs.len()).max().unwrap_or(1).max(2) as f64;
    let top = (0..2).flat_map(|p| runs.iter().flat_map(move |run| r1(run, p))).map(|(_, v)| v).fold(1.0, f64::max);
    for (p, (panel, caption)) in panels.iter().zip(["x retrieves y", "y retrieves x"]).enumerate() {
        let mut chart = ChartBuilder::on(panel)
            .caption(caption, ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(40)
            .build_cartesian_2d(1.0..last, 0.0..top * 1.05)?;
        chart
            .configure_mesh()
            .x_desc("epoch")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .light_line_style(WHITE)
            .draw()?;
        for (r, run) in runs.iter().enumerate() {
            let colour = colour(run, r, runs.len());
            let points = r1(run, p);
            let line = LineSeries::new(points.clone(), colour.stroke_width(2));
            let label = chart.draw_series(line)?.label(run.objective.to_string());
            label.legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            chart.draw_series(points.into_iter().map(|point| Circle::new(point, 2, colour.filled())))?;
        }
        if p == 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .label_font(("sans-serif", 11))
                .draw()?;
        }
    }
    root.present()?;
    Ok(())
}

/// A few runs get distant hues; of the whole grid, triplet weights differ in hue and pair weights in lightness, and
/// objectives over all pairs run through the hues in a pale colour.
fn colour(run: &Run, number: usize, of: usize) -> HSLColor {
    if of <= 4 {
        return HSLColor(number as f64 / of as f64, 0.75, 0.42);
    }
    let place = |names: &[&str], name: &str| names.iter().position(|n| *n == name).unwrap_or(0) as f64;
    match run.objective {
        Trained::Goal(objective) => {
            let triplet = place(&TripletWeight::ALL.map(|t| t.name()), objective.triplet().name());
            let pair = place(&PairWeight::ALL.map(|p| p.name()), objective.pair().name());
            HSLColor(triplet / 4.0, 0.75, 0.25 + 0.1 * pair)
        }
        Trained::Pairwise(objective) => {
            let all = PairwiseObjective::ALL.map(|o| o.name());
            HSLColor(place(&all, objective.name()) / all.len() as f64, 0.4, 0.5)
        }
        Trained::Mined(_) => HSLColor(0.25, 0.75, 0.6),
        Trained::Mixture(_) => HSLColor(0.75, 0.75, 0.4),
        Trained::Custom(_) => HSLColor(0.0, 0.0, 0.3),
    }
}
