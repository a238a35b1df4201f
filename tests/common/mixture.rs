//! One case of a step of a mixture, run on a backend and compared with the sum of its parts' references.

use simgrad::reference;
use simgrad::{
    Backend, Element, GradientOf, MixtureObjective, MixtureReport, PairwiseObjective, PairwisePart, PairwiseReport,
    Result, StepOptions, WriteMode,
};

use super::check::{close, rounding, smallest};
use super::data::{Layout, Matrix};
use super::pairwise::{PairwiseCase, ROUNDED};

/// A batch, whose own objective is not looked at, and what it is stepped with.
#[derive(Clone, Debug)]
pub struct MixtureCase<T> {
    pub batch: PairwiseCase<T>,
    pub parts: Vec<PairwisePart>,
}

pub struct MixtureGot<G> {
    pub report: Result<MixtureReport>,
    pub dx: Matrix<G>,
    /// Without rows for a single set.
    pub dy: Matrix<G>,
    /// As in [`PairwiseGot`](super::pairwise::PairwiseGot).
    pub rounded: bool,
}

/// What a part is to do alone, its weight not included.
struct Alone {
    dx: Vec<f64>,
    dy: Vec<f64>,
    report: PairwiseReport,
}

/// Every objective over all pairs, some of them pulling the other way.
pub fn every_pairwise() -> Vec<PairwisePart> {
    let weight = |k: usize| [1.0, -0.5, 2.0, 0.25][k % 4];
    PairwiseObjective::ALL.into_iter().enumerate().map(|(k, o)| PairwisePart::new(weight(k), o)).collect()
}

/// Of `weight*name` for each part.
pub fn parts(text: &str) -> Vec<PairwisePart> {
    let part = |text: &str| {
        let (weight, name) = text.split_once('*').unwrap_or(("1", text));
        PairwisePart::new(weight.parse().unwrap(), name.parse::<MixtureObjective>().unwrap())
    };
    text.split_whitespace().map(part).collect()
}

impl<T: Element> MixtureCase<T> {
    pub fn run<G: GradientOf<T>>(&self, backend: &Backend, conflict: bool, layout: Layout) -> MixtureGot<G> {
        let rows = if self.batch.single { 0 } else { self.batch.y.rows };
        let dx = Matrix::poisoned(self.batch.x.rows, self.batch.x.cols, layout);
        let dy = Matrix::poisoned(rows, self.batch.x.cols, layout);
        self.run_onto(backend, conflict, WriteMode::Overwrite, dx, dy)
    }

    pub fn run_onto<G: GradientOf<T>>(
        &self,
        backend: &Backend,
        conflict: bool,
        write: WriteMode,
        mut dx: Matrix<G>,
        mut dy: Matrix<G>,
    ) -> MixtureGot<G> {
        let (x, y, options) = (self.batch.x.view(), self.batch.y.view(), self.batch.options(write));
        let report = if self.batch.single {
            backend.pairwise_mixture_single(x, &self.parts, &options, conflict, dx.view_mut())
        } else {
            backend.pairwise_mixture(x, y, &self.parts, &options, conflict, dx.view_mut(), dy.view_mut())
        };
        MixtureGot { report, dx, dy, rounded: backend.name() == "cuda" && size_of::<T>() == 2 }
    }

    fn alone(&self, part: &PairwisePart) -> Alone {
        let batch = &self.batch;
        match part.objective {
            MixtureObjective::Pairwise(objective) => {
                let mut one = PairwiseCase { objective, ..batch.clone() };
                // An option that the objective has no use for is not its.
                let softmax = matches!(objective.name(), "infonce" | "supcon");
                let both = matches!(objective.name(), "infonce" | "triplet-all");
                one.log_q = one.log_q.filter(|_| softmax);
                one.weights = one.weights.map(|(rows, cols)| (rows, if both { cols } else { Vec::new() }));
                let found = one.reference();
                Alone { dx: found.dx, dy: found.dy, report: found.report }
            }
            MixtureObjective::Goal(objective) => {
                let all = batch.options(WriteMode::Overwrite);
                let options = StepOptions {
                    normalization: all.normalization,
                    groups: all.groups,
                    upstream: all.upstream,
                    ..StepOptions::default()
                };
                let found = reference::goal_step(batch.x.view(), batch.y.view(), &objective, &options);
                let r = found.report;
                let report = PairwiseReport {
                    loss: r.loss,
                    mean_positive: r.mean_positive,
                    positives: u64::from(r.pairs),
                    negatives: u64::from(r.pairs - r.empty_it),
                    anchors_rows: r.pairs,
                    anchors_cols: r.pairs,
                    zero_x: r.zero_x,
                    zero_y: r.zero_y,
                    nan_x: r.nan_x,
                    nan_y: r.nan_y,
                    ..PairwiseReport::default()
                };
                Alone { dx: found.dx, dy: found.dy, report }
            }
            _ => unreachable!("an objective that this file does not know"),
        }
    }

    /// Compares a run with the reference: gradients relative to the largest that cancellation leaves room for, the parts'
    /// reports to themselves, and the conflict where there is one.
    #[track_caller]
    pub fn check<G: GradientOf<T>>(&self, name: &str, got: &MixtureGot<G>, relative: f64) {
        let report = got.report.as_ref().expect("a valid step");
        let all: Vec<Alone> = self.parts.iter().map(|part| self.alone(part)).collect();
        let largest = |alone: &Alone| {
            let finite = alone.dx.iter().chain(&alone.dy).filter(|v| v.is_finite());
            finite.fold(0.0f64, |a, b| a.max(b.abs()))
        };
        let magnitude: f64 = all.iter().zip(&self.parts).map(|(alone, part)| part.weight.abs() * largest(alone)).sum();
        let gradient = if got.rounded { relative.max(ROUNDED) } else { relative };
        let sum = |of: fn(&Alone) -> &[f64]| -> Vec<f64> {
            let len = all.first().map_or(0, |alone| of(alone).len());
            (0..len)
                .map(|i| all.iter().zip(&self.parts).map(|(alone, part)| part.weight * of(alone)[i]).sum())
                .collect()
        };
        for (side, got, want) in
            [("dx", got.dx.written(name), sum(|a| &a.dx)), ("dy", got.dy.written(name), sum(|a| &a.dy))]
        {
            close(&format!("{name} {side}"), &got, &want, |i| {
                (gradient * magnitude).max(smallest::<G>()) + 1.01 * rounding::<G>() * want[i].abs() + smallest::<G>()
            });
        }
        assert_eq!(report.parts.len(), self.parts.len(), "{name}");
        let mut loss = 0.0;
        for ((alone, part), got) in all.iter().zip(&self.parts).zip(&report.parts) {
            let name = format!("{name} {}", part.objective);
            let want = &alone.report;
            loss += part.weight * got.loss;
            let scaled = |r: &PairwiseReport, w: f64| [r.loss, w * r.d_scale, w * r.d_bias, r.mean_positive];
            let b = scaled(want, part.weight);
            close(&format!("{name} report"), &scaled(got, 1.0), &b, |i| {
                relative * (1e-3 + 4.0 * b[i].abs() + if i > 0 { largest(alone) * part.weight.abs() } else { 0.0 })
            });
            let counts = |p: &PairwiseReport| {
                (p.positives, p.negatives, [p.anchors_rows, p.anchors_cols, p.zero_x, p.zero_y, p.nan_x, p.nan_y])
            };
            assert_eq!(counts(got), counts(want), "{name}: counts");
        }
        close(&format!("{name} loss"), &[report.loss], &[loss], |_| 1e-12 * (1.0 + loss.abs()));
        let Some(conflict) = &report.conflict else { return };
        let gradients: Vec<Vec<f64>> = all
            .iter()
            .zip(&self.parts)
            .map(|(alone, part)| alone.dx.iter().chain(&alone.dy).map(|v| part.weight * v).collect())
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let norms: Vec<f64> = gradients.iter().map(|g| dot(g, g).sqrt()).collect();
        let allowed = 2.0 * (gradient + rounding::<G>());
        close(&format!("{name} norms"), &conflict.norms, &norms, |i| allowed * norms[i]);
        let cosine = |a: usize, b: usize| match norms[a] * norms[b] {
            0.0 => 0.0,
            product => dot(&gradients[a], &gradients[b]) / product,
        };
        let count = self.parts.len();
        let want: Vec<f64> = (0..count * count).map(|at| cosine(at / count, at % count)).collect();
        close(&format!("{name} cosines"), &conflict.cosines, &want, |_| allowed);
    }
}
