//! Mixtures of objectives over one batch: their parts, and what a step of them reports.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::pairwise::{PairwiseObjective, PairwiseReport};

/// An objective that can be a part of a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum MixtureObjective {
    /// One that weighs every pair.
    Pairwise(PairwiseObjective),
    /// One that weighs the own pair and the hardest negative of every anchor. It needs as many rows of `X` as of `Y`,
    /// keeps to groups as [`goal_step`](crate::cpu::goal_step) does, and takes neither masks nor weights of rows and
    /// columns.
    Goal(Objective),
}

impl From<PairwiseObjective> for MixtureObjective {
    fn from(objective: PairwiseObjective) -> Self {
        Self::Pairwise(objective)
    }
}

impl From<Objective> for MixtureObjective {
    fn from(objective: Objective) -> Self {
        Self::Goal(objective)
    }
}

impl MixtureObjective {
    /// The objective over all pairs, if it is one.
    pub(crate) const fn pairwise(&self) -> Option<&PairwiseObjective> {
        match self {
            Self::Pairwise(objective) => Some(objective),
            Self::Goal(_) => None,
        }
    }

    /// The GOAL objective, if it is one.
    #[cfg(feature = "cuda")]
    pub(crate) const fn goal(&self) -> Option<Objective> {
        match *self {
            Self::Pairwise(_) => None,
            Self::Goal(objective) => Some(objective),
        }
    }
}

/// The objective's own name; [`FromStr`] takes it back, with default parameters.
impl fmt::Display for MixtureObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pairwise(objective) => objective.fmt(f),
            Self::Goal(objective) => objective.fmt(f),
        }
    }
}

impl FromStr for MixtureObjective {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = s.parse().map(Self::Pairwise).or_else(|_: Error| s.parse().map(Self::Goal));
        found.map_err(|_| Error::InvalidOption {
            op: "MixtureObjective::from_str",
            arg: "name",
            expected: format!(
                "{}, or a GOAL objective as TRIPLET-PAIR",
                PairwiseObjective::ALL.map(|o| o.name()).join(", ")
            ),
            got: s.to_owned(),
        })
    }
}

/// One objective of a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairwisePart {
    /// Factor of its loss and gradient, finite.
    pub weight: f64,
    /// The objective.
    pub objective: MixtureObjective,
}

impl PairwisePart {
    /// `weight` times `objective`.
    pub fn new(weight: f64, objective: impl Into<MixtureObjective>) -> Self {
        Self { weight, objective: objective.into() }
    }
}

/// What a step of a mixture reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MixtureReport {
    /// Sum of the parts' losses times their weights.
    pub loss: f64,
    /// What each part would report alone; `d_scale` and `d_bias` with the part's weight, counts of rows and `overflow` those
    /// of the whole step. Of a GOAL objective every row has one positive and at most one negative, its hardest.
    pub parts: Vec<PairwiseReport>,
    /// How the parts' gradients relate, if it was asked for.
    pub conflict: Option<Conflict>,
}

impl MixtureReport {
    pub(crate) fn new(parts: &[PairwisePart], reports: Vec<PairwiseReport>, conflict: Option<Conflict>) -> Self {
        let loss = parts.iter().zip(&reports).map(|(part, report)| part.weight * report.loss).sum();
        Self { loss, parts: reports, conflict }
    }
}

/// How the gradients of the parts of a mixture relate. The gradient of a part is that of both matrices together, weight and
/// upstream factor included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conflict {
    /// Euclidean norm of each part's gradient.
    pub norms: Vec<f64>,
    /// Cosine between the gradients of every two parts, row-major; 0 where one of them is 0.
    pub cosines: Vec<f64>,
}

impl Conflict {
    /// Of gradients of the same length.
    pub(crate) fn of(gradients: &[Vec<f64>]) -> Self {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let norms: Vec<f64> = gradients.iter().map(|g| dot(g, g).sqrt()).collect();
        let mut cosines = Vec::with_capacity(gradients.len() * gradients.len());
        for (a, norm_a) in gradients.iter().zip(&norms) {
            for (b, norm_b) in gradients.iter().zip(&norms) {
                let product = norm_a * norm_b;
                cosines.push(if product == 0.0 { 0.0 } else { dot(a, b) / product });
            }
        }
        Self { norms, cosines }
    }
}
