//! What can be trained: GOAL objectives, triplets on mined negatives, objectives over all pairs with their learnable scale,
//! sums of them, and weights of one's own.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};
use simgrad::expression::Expression;
use simgrad::{
    Backend, Groups, LossKind, MatMut, MatRef, MinedTriplet, MixtureObjective, Objective, PairWeight,
    PairwiseObjective, PairwiseOptions, PairwisePart, PairwiseReport, StepOptions, TripletWeight,
};

use crate::common::objective::Parameters;
use crate::common::{Failure, Outcome};

/// Largest learnable scale, as in CLIP's training code.
const MAX_SCALE: f64 = 100.0;

/// The triplet hinge on the hardest negative: `hinge-con` by another way.
pub const HARDEST: &str = "triplet-hardest";
/// The triplet hinge on the hardest negative below the positive.
pub const SEMI_HARD: &str = "triplet-semi-hard";

/// One objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trained {
    /// Hardest negatives, with a gradient that is defined directly.
    Goal(Objective),
    /// The triplet hinge on mined negatives.
    Mined(MinedTriplet),
    /// All pairs.
    Pairwise(PairwiseObjective),
    /// A weighted sum of objectives, kept for as long as the program runs.
    Mixture(&'static [PairwisePart]),
    /// Weights written as text, kept for as long as the program runs.
    Custom(&'static Expression),
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goal(objective) => objective.fmt(f),
            Self::Mined(objective) if objective.below_positive.is_some() => f.write_str(SEMI_HARD),
            Self::Mined(_) => f.write_str(HARDEST),
            Self::Pairwise(objective) => objective.fmt(f),
            Self::Mixture(parts) => {
                for (k, part) in parts.iter().enumerate() {
                    let plus = if k > 0 { " + " } else { "" };
                    write!(f, "{plus}{}*{}", part.weight, part.objective)?;
                }
                Ok(())
            }
            Self::Custom(_) => f.write_str("expression"),
        }
    }
}

impl Trained {
    /// The objective of this name.
    pub fn named(name: &str, parameters: &Parameters) -> Outcome<Self> {
        if name.contains(['+', '*']) {
            let parts: Outcome<Vec<_>> = name.split('+').map(|text| part(text, parameters)).collect();
            return Ok(Self::Mixture(parts?.leak()));
        }
        if let Ok(objective) = name.parse::<PairwiseObjective>() {
            return Ok(Self::Pairwise(objective));
        }
        let mined = |objective: MinedTriplet| {
            let margin = parameters.margin;
            let mined = MinedTriplet { margin, ..objective };
            let refused = || Failure::option("margin", format!("is {margin}, expected a finite number"));
            margin.is_finite().then_some(Self::Mined(mined)).ok_or_else(refused)
        };
        match name {
            HARDEST => return mined(MinedTriplet::hardest()),
            SEMI_HARD => return mined(MinedTriplet::semi_hard()),
            _ => {}
        }
        parameters.objective(name).map(Self::Goal).map_err(|_| {
            let pairwise = PairwiseObjective::ALL.map(|o| o.name()).join(", ");
            let expected = format!(
                "TRIPLET-PAIR, {HARDEST}, {SEMI_HARD}, {pairwise}, a sum such as `infonce + 0.5*hinge-con`, `all`, `goal` or `pairwise`"
            );
            Failure::option("objective", format!("is `{name}`, expected {expected}"))
        })
    }

    /// The weights that a file holds.
    pub fn written(path: &Path) -> Outcome<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, format!("cannot be read: {e}")))?;
        let expression: Expression = text.parse().map_err(|e| Failure::file(path, e))?;
        Ok(Self::Custom(Box::leak(Box::new(expression))))
    }

    /// All objectives over all pairs.
    pub fn pairwise() -> Vec<Self> {
        PairwiseObjective::ALL.into_iter().map(Self::Pairwise).collect()
    }

    /// What a report's `loss` is, in one word.
    pub fn loss_kind(&self) -> &'static str {
        let kind = match self {
            Self::Goal(objective) => objective.loss_kind(),
            Self::Mined(_) => LossKind::Potential,
            Self::Pairwise(objective) => objective.loss_kind(),
            Self::Mixture(parts) => {
                let is_potential = |part: &PairwisePart| match part.objective {
                    MixtureObjective::Pairwise(objective) => objective.loss_kind() == LossKind::Potential,
                    MixtureObjective::Goal(objective) => objective.loss_kind() == LossKind::Potential,
                    _ => false,
                };
                if parts.iter().all(is_potential) { LossKind::Potential } else { LossKind::Logged }
            }
            Self::Custom(_) => LossKind::Logged,
        };
        match kind {
            LossKind::Potential => "potential",
            LossKind::Logged => "logged",
        }
    }

    /// The hyper-parameters by name.
    pub fn parameters(&self) -> Value {
        match self {
            Self::Goal(objective) => goal_parameters(objective),
            Self::Mined(objective) => json!({ "margin": objective.margin }),
            Self::Pairwise(objective) => pairwise_parameters(objective),
            Self::Mixture(parts) => {
                let of = |part: &PairwisePart| match &part.objective {
                    MixtureObjective::Pairwise(objective) => pairwise_parameters(objective),
                    MixtureObjective::Goal(objective) => goal_parameters(objective),
                    _ => json!({}),
                };
                json!({ "parts": parts.iter().map(of).collect::<Vec<_>>() })
            }
            Self::Custom(_) => json!({}),
        }
    }
}

/// One part of a sum: `NAME` or `WEIGHT*NAME`.
fn part(text: &str, parameters: &Parameters) -> Outcome<PairwisePart> {
    let refuse =
        |expected: &str| Failure::option("objective", format!("has a part `{}`, expected {expected}", text.trim()));
    let (weight, name) = match text.split_once('*') {
        None => (1.0, text),
        Some((weight, name)) => {
            let parsed = weight.trim().parse().ok().filter(|w: &f64| w.is_finite());
            (parsed.ok_or_else(|| refuse("a finite number before `*`"))?, name)
        }
    };
    let objective = match name.trim().parse().map_err(|_| refuse("TRIPLET-PAIR or an objective over all pairs"))? {
        MixtureObjective::Goal(objective) => parameters.apply(objective)?.into(),
        pairwise => pairwise,
    };
    Ok(PairwisePart { weight, objective })
}

fn goal_parameters(objective: &Objective) -> Value {
    let mut out = match objective.triplet() {
        TripletWeight::Hinge { margin } => json!({ "margin": margin }),
        TripletWeight::Nca { tau } => json!({ "tau": tau }),
        TripletWeight::Cir { tau, offset } => json!({ "tau": tau, "circle_offset": offset }),
        _ => json!({}),
    };
    match objective.pair() {
        PairWeight::Sig { alpha, beta, lambda } => {
            out["alpha"] = alpha.into();
            out["beta"] = beta.into();
            out["lambda"] = lambda.into();
        }
        PairWeight::LinMs { eps } => out["eps"] = eps.into(),
        PairWeight::SigMs { alpha, beta, lambda, eps } => {
            out["alpha"] = alpha.into();
            out["beta"] = beta.into();
            out["lambda"] = lambda.into();
            out["eps"] = eps.into();
        }
        _ => {}
    }
    out
}

fn pairwise_parameters(objective: &PairwiseObjective) -> Value {
    match *objective {
        PairwiseObjective::InfoNce { scale } => json!({ "scale": scale }),
        PairwiseObjective::SigLip { scale, bias } => json!({ "scale": scale, "bias": bias }),
        PairwiseObjective::SupCon { tau } => json!({ "tau": tau }),
        PairwiseObjective::MultiSimilarity { alpha, beta, lambda, epsilon } => {
            json!({ "alpha": alpha, "beta": beta, "lambda": lambda, "epsilon": epsilon })
        }
        PairwiseObjective::Circle { gamma, margin, detached } => {
            json!({ "gamma": gamma, "margin": margin, "detached": detached })
        }
        PairwiseObjective::TripletAll { margin } => json!({ "margin": margin }),
        PairwiseObjective::Contrastive { pos_margin, neg_margin }
        | PairwiseObjective::Lifted { pos_margin, neg_margin } => {
            json!({ "pos_margin": pos_margin, "neg_margin": neg_margin })
        }
        PairwiseObjective::RankedList { alpha, margin, temperature, balance } => {
            json!({ "alpha": alpha, "margin": margin, "temperature": temperature, "balance": balance })
        }
        _ => json!({}),
    }
}

/// What a step leaves behind, per pair where it is a sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outline {
    /// The loss or the logged value, per pair.
    pub loss: f64,
    /// Mean similarity of the pairs.
    pub positive: f64,
    /// Mean similarity to the hardest negative, and the share of anchors with a weight other than 0; of objectives
    /// on mined negatives.
    pub hardest: Option<(f64, f64)>,
    /// Whether an embedding stopped being finite.
    pub diverged: bool,
}

/// The embeddings of a batch and their gradients, rows of `dim` columns.
pub struct Batch<'a> {
    pub x: &'a [f32],
    pub y: &'a [f32],
    pub dx: &'a mut [f32],
    pub dy: &'a mut [f32],
    pub dim: usize,
    /// Groups of the pairs.
    pub groups: Option<&'a [i64]>,
}

/// An objective in training: with the parameters that are learned.
pub struct Learner {
    objective: Trained,
    /// Of a mixture.
    parts: Vec<PairwisePart>,
    /// Of every objective over all pairs.
    adam: Vec<Adam>,
}

impl Learner {
    pub fn new(objective: Trained) -> Self {
        let parts = match objective {
            Trained::Mixture(parts) => parts.to_vec(),
            _ => Vec::new(),
        };
        Self { objective, adam: vec![Adam::default(); parts.len().max(1)], parts }
    }

    /// The scale and bias now, of objectives that have them; of a mixture those of its first such part.
    pub fn learned(&self) -> (Option<f64>, Option<f64>) {
        let of = |objective: &PairwiseObjective| match *objective {
            PairwiseObjective::InfoNce { scale } => Some((Some(scale), None)),
            PairwiseObjective::SigLip { scale, bias } => Some((Some(scale), Some(bias))),
            _ => None,
        };
        let of_part = |part: &PairwisePart| match &part.objective {
            MixtureObjective::Pairwise(objective) => of(objective),
            _ => None,
        };
        let found = match &self.objective {
            Trained::Pairwise(objective) => of(objective),
            _ => self.parts.iter().find_map(of_part),
        };
        found.unwrap_or((None, None))
    }

    /// Computes the gradients of a batch, and takes a step with the parameters of the objective at this rate.
    pub fn step(&mut self, backend: &Backend, batch: Batch<'_>, rate: f64) -> Outcome<Outline> {
        let Batch { x, y, dx, dy, dim, groups } = batch;
        let rows = x.len() / dim;
        let (x, y) = (MatRef::new(x, rows, dim)?, MatRef::new(y, rows, dim)?);
        let (dx, dy) = (MatMut::new(dx, rows, dim)?, MatMut::new(dy, rows, dim)?);
        let groups = groups.map(|ids| Groups { rows: ids, cols: ids });
        match &mut self.objective {
            Trained::Goal(objective) => {
                let options = StepOptions { groups, ..StepOptions::default() };
                let report = backend.goal_step(x, y, objective, &options, dx, dy)?;
                let pairs = f64::from(report.pairs);
                let negative = f64::midpoint(report.mean_negative_it, report.mean_negative_ti);
                Ok(Outline {
                    loss: report.loss / pairs,
                    positive: report.mean_positive,
                    hardest: Some((negative, f64::from(report.active_it + report.active_ti) / (2.0 * pairs))),
                    diverged: report.nan_x + report.nan_y > 0,
                })
            }
            Trained::Mined(objective) => {
                let options = StepOptions { groups, ..StepOptions::default() };
                let report = backend.mined_triplet_step(x, y, objective, &options, dx, dy)?;
                let pairs = f64::from(report.pairs);
                Ok(Outline {
                    loss: report.loss / pairs,
                    positive: report.mean_positive,
                    hardest: Some((report.mean_negative, report.active as f64 / (2.0 * pairs))),
                    diverged: report.nan_x + report.nan_y > 0,
                })
            }
            Trained::Pairwise(objective) => {
                let options = PairwiseOptions { groups, ..PairwiseOptions::default() };
                let report = backend.pairwise_step(x, y, objective, &options, dx, dy)?;
                self.adam.iter_mut().for_each(|adam| adam.learn(objective, &report, rate));
                // A sum over the batch; the others are means.
                let summed = matches!(objective, PairwiseObjective::TripletAll { .. });
                Ok(Outline {
                    loss: if summed { report.loss / rows as f64 } else { report.loss },
                    positive: report.mean_positive,
                    hardest: None,
                    diverged: report.nan_x + report.nan_y > 0,
                })
            }
            Trained::Mixture(_) => {
                let options = PairwiseOptions { groups, ..PairwiseOptions::default() };
                let report = backend.pairwise_mixture(x, y, &self.parts, &options, false, dx, dy)?;
                let (mut loss, mut outline) = (0.0, Outline::default());
                for ((part, adam), report) in self.parts.iter_mut().zip(&mut self.adam).zip(&report.parts) {
                    // Sums over the batch; the others are means.
                    let summed = match &mut part.objective {
                        MixtureObjective::Pairwise(objective) => {
                            adam.learn(objective, report, rate);
                            matches!(objective, PairwiseObjective::TripletAll { .. })
                        }
                        _ => true,
                    };
                    loss += part.weight * if summed { report.loss / rows as f64 } else { report.loss };
                    outline.positive = report.mean_positive;
                    outline.diverged = report.nan_x + report.nan_y > 0;
                }
                Ok(Outline { loss, ..outline })
            }
            Trained::Custom(expression) => {
                let options = PairwiseOptions { groups, ..PairwiseOptions::default() };
                let report = backend.pairwise_step_custom(x, y, expression, &options, dx, dy)?;
                Ok(Outline {
                    loss: report.loss / rows as f64,
                    positive: report.mean_positive,
                    hardest: None,
                    diverged: report.nan_x + report.nan_y > 0,
                })
            }
        }
    }
}

/// Adam on the logarithm of a scale and on a bias.
#[derive(Clone, Copy, Debug, Default)]
struct Adam {
    moments: [[f64; 2]; 2],
    steps: i32,
}

impl Adam {
    /// Takes a step with the parameters that `objective` has; the scale stays within 1 and 100.
    fn learn(&mut self, objective: &mut PairwiseObjective, report: &PairwiseReport, rate: f64) {
        self.steps += 1;
        match objective {
            PairwiseObjective::InfoNce { scale } => {
                *scale = (*scale * self.change(0, report.d_scale * *scale, rate).exp()).clamp(1.0, MAX_SCALE);
            }
            PairwiseObjective::SigLip { scale, bias } => {
                *scale = (*scale * self.change(0, report.d_scale * *scale, rate).exp()).clamp(1.0, MAX_SCALE);
                *bias += self.change(1, report.d_bias, rate);
            }
            _ => {}
        }
    }

    fn change(&mut self, which: usize, gradient: f64, rate: f64) -> f64 {
        let [m, v] = &mut self.moments[which];
        *m = 0.9 * *m + 0.1 * gradient;
        *v = 0.999 * *v + 0.001 * gradient * gradient;
        let (m, v) = (*m / (1.0 - 0.9f64.powi(self.steps)), *v / (1.0 - 0.999f64.powi(self.steps)));
        -rate * m / (v.sqrt() + 1e-8)
    }
}
