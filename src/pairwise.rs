//! Objectives over all pairs of a batch: every candidate of an anchor has a weight, not the hardest one alone.
//!
//! With `S = X̂ Ŷᵀ` each objective is a loss `L(S)` (or, where [`PairwiseObjective::loss_kind`] says so, a weight field
//! without one) and the dense matrix `W = dL/dS`; the gradients are `dX = W Ŷ` and `dY = Wᵀ X̂`. Formulas and sources are
//! with the variants; `docs/maths.md` numbers them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::objective::LossKind;
use crate::options::{Groups, Normalization, Precision, WriteMode};

/// An objective over all pairs.
///
/// `A_i` are the positives of the anchor `i`, `B_i` its negatives, `LSE` the logarithm of a sum of exponentials,
/// `sp(z) = ln(1 + e^z)`, `[z]₊ = max(z, 0)`. Which pairs are positive, negative or ignored: [`PairwiseOptions`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PairwiseObjective {
    /// CLIP's symmetric cross-entropy: half of `mean_i(LSE_j(scale · S_ij) − scale · S_ii)` over the rows plus the same
    /// over the columns. One positive per anchor, its own pair; same-group candidates are ignored.
    /// Radford et al. 2021; `scale` is the exponential of CLIP's logit scale.
    InfoNce {
        /// Inverse temperature, finite and positive; default 1 / 0.07.
        scale: f64,
    },
    /// `(1/N) Σ_ij sp(−z_ij (scale · S_ij + bias))`, `z = 1` on positives and −1 on negatives, `N` rows. Every positive of
    /// a group counts. Zhai et al. 2023.
    SigLip {
        /// Finite and positive; default 10.
        scale: f64,
        /// Finite; default −10.
        bias: f64,
    },
    /// Supervised contrastive loss, "out" form: the mean over the rows with a positive of
    /// `LSE_{A_i ∪ B_i}(S_ij / tau) − mean_{A_i} S_ij / tau`. Khosla et al. 2020. With one positive per anchor this is
    /// NT-Xent (Chen et al. 2020), and at `tau = 1` the N-pair loss (Sohn 2016).
    SupCon {
        /// Temperature, finite and positive; default 0.1.
        tau: f64,
    },
    /// `(1/N) Σ_i [sp(LSE_{A_i}(−alpha (S − lambda))) / alpha + sp(LSE_{B_i}(beta (S − lambda))) / beta]`. With `epsilon`,
    /// only pairs that its miner keeps: negatives with `S + epsilon > min_{A_i} S` and positives with
    /// `S − epsilon < max_{B_i} S`. Wang et al. 2019.
    MultiSimilarity {
        /// Finite and positive; default 2.
        alpha: f64,
        /// Finite and positive; default 50.
        beta: f64,
        /// Finite; default 0.5.
        lambda: f64,
        /// Slack of the miner, finite; default 0.1. `None`: all pairs.
        epsilon: Option<f64>,
    },
    /// `(1/N) Σ_i sp(LSE_{B_i}(gamma a⁻ (S − margin)) + LSE_{A_i}(−gamma a⁺ (S − 1 + margin)))` with `a⁻ = [S + margin]₊`
    /// and `a⁺ = [1 + margin − S]₊`. Sun et al. 2020.
    Circle {
        /// Finite and positive; default 80.
        gamma: f64,
        /// Relaxation, finite; default 0.4.
        margin: f64,
        /// Whether `a⁻` and `a⁺` are held constant in the gradient, as in the paper; the weights then have no potential.
        detached: bool,
    },
    /// `Σ [margin + S_ij − S_ii]₊` over the negatives of every row and of every column: VSE++'s loss before its hardest
    /// negatives. One positive per anchor; same-group candidates are ignored. Faghri et al. 2018.
    TripletAll {
        /// Finite; default 0.2.
        margin: f64,
    },
    /// The mean of `pos_margin − S` over the positives below `pos_margin`, plus the mean of `S − neg_margin` over the
    /// negatives above `neg_margin`. Hadsell et al. 2006, on cosines.
    Contrastive {
        /// Finite; default 1.
        pos_margin: f64,
        /// Finite; default 0.
        neg_margin: f64,
    },
    /// Generalised lifted structure: `(1/N) Σ_i [LSE_{A_i}(d − pos_margin) + LSE_{B_i}(neg_margin − d)]₊` with the
    /// distance `d = √(2 − 2S)`, whose derivative is taken as 0 at `d = 0`. Hermans et al. 2017.
    Lifted {
        /// Finite; default 0.
        pos_margin: f64,
        /// Finite; default 1.
        neg_margin: f64,
    },
    /// Ranked list: `(1/N) Σ_i (1 − balance) mean_{A*_i}(d − (alpha − margin)) + balance Σ w (alpha − d) / Σ w` with
    /// `d = √(2 − 2S)`, `A*_i` the positives with `d > alpha − margin`, and over the negatives with `d < alpha` the
    /// weights `w = exp(temperature (alpha − d))`, constant in the gradient. Wang et al. 2019.
    RankedList {
        /// Radius, finite; default 1.2.
        alpha: f64,
        /// Finite; default 0.4.
        margin: f64,
        /// Finite and positive; default 10.
        temperature: f64,
        /// Share of the negatives, from 0 to 1; default 0.5.
        balance: f64,
    },
}

impl PairwiseObjective {
    /// Every kind with its default parameters.
    pub const ALL: [Self; 11] = [
        Self::InfoNce { scale: 1.0 / 0.07 },
        Self::SigLip { scale: 10.0, bias: -10.0 },
        Self::SupCon { tau: 0.1 },
        Self::MultiSimilarity { alpha: 2.0, beta: 50.0, lambda: 0.5, epsilon: None },
        Self::MultiSimilarity { alpha: 2.0, beta: 50.0, lambda: 0.5, epsilon: Some(0.1) },
        Self::Circle { gamma: 80.0, margin: 0.4, detached: true },
        Self::Circle { gamma: 80.0, margin: 0.4, detached: false },
        Self::TripletAll { margin: 0.2 },
        Self::Contrastive { pos_margin: 1.0, neg_margin: 0.0 },
        Self::Lifted { pos_margin: 0.0, neg_margin: 1.0 },
        Self::RankedList { alpha: 1.2, margin: 0.4, temperature: 10.0, balance: 0.5 },
    ];

    /// NT-Xent of SimCLR: [`PairwiseObjective::SupCon`], for batches with one positive per anchor.
    pub const fn nt_xent(tau: f64) -> Self {
        Self::SupCon { tau }
    }

    /// The N-pair loss without its penalty on the norms: [`PairwiseObjective::SupCon`] at temperature 1, meant for
    /// [`Normalization::None`].
    pub const fn n_pair() -> Self {
        Self::SupCon { tau: 1.0 }
    }

    /// A short name; [`FromStr`] takes it back, with default parameters.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::InfoNce { .. } => "infonce",
            Self::SigLip { .. } => "siglip",
            Self::SupCon { .. } => "supcon",
            Self::MultiSimilarity { epsilon: None, .. } => "ms",
            Self::MultiSimilarity { epsilon: Some(_), .. } => "ms-mined",
            Self::Circle { detached: true, .. } => "circle",
            Self::Circle { detached: false, .. } => "circle-full",
            Self::TripletAll { .. } => "triplet-all",
            Self::Contrastive { .. } => "contrastive",
            Self::Lifted { .. } => "lifted",
            Self::RankedList { .. } => "ranked-list",
        }
    }

    /// Whether `loss` in the report has the weights as its derivative.
    pub const fn loss_kind(&self) -> LossKind {
        match self {
            Self::Circle { detached: true, .. } | Self::RankedList { .. } => LossKind::Logged,
            _ => LossKind::Potential,
        }
    }

    /// Whether columns are anchors too.
    pub(crate) const fn both_sides(&self) -> bool {
        matches!(self, Self::InfoNce { .. } | Self::TripletAll { .. })
    }

    /// Whether an anchor's own pair is its only positive, and other pairs of the same group are ignored.
    pub(crate) const fn single_positive(&self) -> bool {
        self.both_sides()
    }

    /// Whether the sampling correction of the columns makes sense: in a softmax over them.
    pub(crate) const fn takes_log_q(&self) -> bool {
        matches!(self, Self::InfoNce { .. } | Self::SupCon { .. })
    }

    /// The parameter that the report's `d_scale` differentiates by: factor of `S` in the logits.
    pub(crate) const fn scale(&self) -> Option<f64> {
        match *self {
            Self::InfoNce { scale } | Self::SigLip { scale, .. } => Some(scale),
            Self::SupCon { tau } => Some(1.0 / tau),
            _ => None,
        }
    }

    /// [`Error::InvalidOption`] for the first parameter that is out of its range.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let refuse = |arg, expected: &str, got: f64| {
            Err(Error::InvalidOption { op, arg, expected: expected.to_owned(), got: got.to_string() })
        };
        let finite = |arg, v: f64| if v.is_finite() { Ok(()) } else { refuse(arg, "a finite number", v) };
        let positive = |arg, v: f64| {
            // Also its reciprocal, as a temperature's is the factor of the similarities; and both must fit into f32.
            let fits = |v: f64| (1e-30..=1e30).contains(&v);
            if fits(v) { Ok(()) } else { refuse(arg, "a number from 1e-30 to 1e30", v) }
        };
        match *self {
            Self::InfoNce { scale } => positive("objective.scale", scale),
            Self::SigLip { scale, bias } => positive("objective.scale", scale).and(finite("objective.bias", bias)),
            Self::SupCon { tau } => positive("objective.tau", tau),
            Self::MultiSimilarity { alpha, beta, lambda, epsilon } => positive("objective.alpha", alpha)
                .and(positive("objective.beta", beta))
                .and(finite("objective.lambda", lambda))
                .and(finite("objective.epsilon", epsilon.unwrap_or(0.0))),
            Self::Circle { gamma, margin, .. } => {
                positive("objective.gamma", gamma).and(finite("objective.margin", margin))
            }
            Self::TripletAll { margin } => finite("objective.margin", margin),
            Self::Contrastive { pos_margin, neg_margin } | Self::Lifted { pos_margin, neg_margin } => {
                finite("objective.pos_margin", pos_margin).and(finite("objective.neg_margin", neg_margin))
            }
            Self::RankedList { alpha, margin, temperature, balance } => {
                finite("objective.alpha", alpha)
                    .and(finite("objective.margin", margin))
                    .and(positive("objective.temperature", temperature))?;
                if (0.0..=1.0).contains(&balance) {
                    Ok(())
                } else {
                    refuse("objective.balance", "a number from 0 to 1", balance)
                }
            }
        }
    }
}

impl fmt::Display for PairwiseObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PairwiseObjective {
    type Err = Error;

    /// The kind of that [`name`](Self::name), with default parameters.
    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|o| o.name() == s).ok_or_else(|| Error::InvalidOption {
            op: "PairwiseObjective::from_str",
            arg: "name",
            expected: Self::ALL.map(|o| o.name()).join(", "),
            got: s.to_owned(),
        })
    }
}

/// What a pairwise step is done with.
///
/// A pair `(i, j)` is, in this order:
/// * ignored if row `i` or column `j` is ignored, or if the set is single and `i = j`;
/// * with groups: for an objective with one positive per anchor, positive if `i = j` and else ignored if the groups are
///   equal; for the others positive if the groups are equal;
/// * without groups: positive if `i = j`;
/// * negative otherwise.
///
/// So columns beyond the last row are extra negatives unless a group says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct PairwiseOptions<'a> {
    /// Whether rows are normalised; default [`Normalization::L2`].
    pub normalization: Normalization,
    /// Whether the gradients replace or add to what is there; default replace.
    pub write: WriteMode,
    /// Factor of both gradients and of `d_scale` and `d_bias`; default 1.
    pub upstream: f64,
    /// One id per row and per column; equal ids make a positive or ignored pair, see above.
    pub groups: Option<Groups<'a>>,
    /// Rows that are neither anchors nor candidates, `n`.
    pub ignore_rows: Option<&'a [bool]>,
    /// Columns that are neither anchors nor candidates, `m`.
    pub ignore_cols: Option<&'a [bool]>,
    /// Factor of each row anchor's terms, `n`; divisors stay counts.
    pub row_weights: Option<&'a [f32]>,
    /// Factor of each column anchor's terms, `m`; only for objectives with column anchors.
    pub col_weights: Option<&'a [f32]>,
    /// `ln q_j`, the logarithm of the probability that column `j` is sampled, subtracted from its logits in the rows'
    /// softmax, `m`; only for [`PairwiseObjective::InfoNce`] and [`PairwiseObjective::SupCon`]. Yi et al. 2019.
    pub log_q: Option<&'a [f32]>,
    /// Of products of f32 rows on CUDA, similarities and both gradients, on devices of compute capability 9.0; see
    /// `cuda::pairwise_step`. Elsewhere, and for objectives of one's own, it changes nothing: full precision. Default:
    /// [`Precision::Full`].
    pub precision: Precision,
}

impl Default for PairwiseOptions<'_> {
    fn default() -> Self {
        Self {
            normalization: Normalization::default(),
            write: WriteMode::default(),
            upstream: 1.0,
            groups: None,
            ignore_rows: None,
            ignore_cols: None,
            row_weights: None,
            col_weights: None,
            log_q: None,
            precision: Precision::Full,
        }
    }
}

/// What one pairwise step reports. `upstream` enters `d_scale` and `d_bias` alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PairwiseReport {
    /// The loss, or what [`LossKind::Logged`] stands for: the formula's value with detached factors.
    pub loss: f64,
    /// Gradient with respect to the factor of `S` in the logits (`scale`, `1 / tau`); 0 where there is none.
    pub d_scale: f64,
    /// Gradient with respect to `bias`; 0 where there is none.
    pub d_bias: f64,
    /// Mean similarity of the positive pairs; 0 without one.
    pub mean_positive: f64,
    /// Positive pairs, of the rows.
    pub positives: u64,
    /// Negative pairs, of the rows.
    pub negatives: u64,
    /// Rows that are not ignored and have a positive.
    pub anchors_rows: u32,
    /// Columns that are not ignored and have a positive.
    pub anchors_cols: u32,
    /// Rows of `X` that are all zero.
    pub zero_x: u32,
    /// Rows of `Y` that are all zero.
    pub zero_y: u32,
    /// Rows of `X` with a NaN or an infinity.
    pub nan_x: u32,
    /// Rows of `Y` with a NaN or an infinity.
    pub nan_y: u32,
    /// Gradient elements that became infinite by rounding to the output type.
    pub overflow: u32,
    /// Always 0.
    pub reserved: u32,
}
