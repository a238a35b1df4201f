//! GOAL objectives: a triplet weight times a pair weight times a direction.
//!
//! An [`Objective`] is defined by its gradient. With `P` the similarity of an anchor to its own pair and `N` the
//! similarity to its hardest negative, the anchor's triplet adds `T(P, N) · w⁻` to the weight of the negative pair and
//! subtracts `T(P, N) · w⁺` from that of the positive pair, whether or not a loss exists whose derivative that is.
//! Source: Xuan & Chen, "Dissecting Deep Metric Learning Losses for Image-Text Retrieval", WACV 2023, and the code
//! published with it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Triplet weight `T(P, N)`, one number per triplet.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum TripletWeight {
    /// `1`
    Con,
    /// `1` if `margin + N − P > 0`, else `0`. With [`PairWeight::Con`] this is the VSE++ loss.
    Hinge {
        /// Finite or infinite; default 0.2.
        margin: f64,
    },
    /// `σ(tau (N − P))`
    Nca {
        /// Inverse temperature, finite and positive; default 1.
        tau: f64,
    },
    /// `σ(tau (N² + (1 − P)² − offset))`
    Cir {
        /// Inverse temperature, finite and positive; default 1.
        tau: f64,
        /// Squared radius of the decision circle, finite; default 0.5.
        offset: f64,
    },
}

/// Pair weights `w⁺(P)` and `w⁻(N)`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PairWeight {
    /// `w⁺ = 1`, `w⁻ = 1`
    Con,
    /// `w⁺ = 1 − P`, `w⁻ = N` (negative when `N < 0`)
    Lin,
    /// `w⁺ = σ(−alpha (P − lambda))`, `w⁻ = σ(beta (N − lambda))`
    Sig {
        /// Slope of the positive side, finite and positive; default 2.
        alpha: f64,
        /// Slope of the negative side, finite and positive; default 10.
        beta: f64,
        /// Centre, finite; default 0.5.
        lambda: f64,
    },
    /// `w⁺ = (1 − R⁺)(1 − P)`, `w⁻ = (1 + R⁻) N` with the relative similarities `R`
    LinMs {
        /// Slack of the two sets behind `R`, finite and at least 0; default 0.1.
        eps: f64,
    },
    /// `w⁺ = 1 / (exp(alpha (P − lambda)) + R⁺)`, `w⁻ = 1 / (exp(−beta (N − lambda)) + R⁻)`
    SigMs {
        /// As in [`PairWeight::Sig`].
        alpha: f64,
        /// As in [`PairWeight::Sig`].
        beta: f64,
        /// As in [`PairWeight::Sig`].
        lambda: f64,
        /// As in [`PairWeight::LinMs`].
        eps: f64,
    },
}

/// How the sums over anchors are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reduction {
    /// Sums over the batch, as the paper's code.
    #[default]
    Sum,
    /// Sums divided by the number of pairs in the batch.
    Mean,
}

/// What the `loss` field of a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossKind {
    /// The objective is the gradient of a loss, and this is that loss.
    Potential,
    /// No loss has this gradient; the value is what the paper's code logs, the sum of `N − P` over both directions. It
    /// need not fall while training succeeds.
    Logged,
}

/// One GOAL objective with all its hyper-parameters, valid by construction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    triplet: TripletWeight,
    pair: PairWeight,
    reduction: Reduction,
}

impl TripletWeight {
    /// Every kind with its default parameters.
    pub const ALL: [Self; 4] =
        [Self::Con, Self::Hinge { margin: 0.2 }, Self::Nca { tau: 1.0 }, Self::Cir { tau: 1.0, offset: 0.5 }];

    /// `con`, `hinge`, `nca` or `cir`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Con => "con",
            Self::Hinge { .. } => "hinge",
            Self::Nca { .. } => "nca",
            Self::Cir { .. } => "cir",
        }
    }
}

impl PairWeight {
    /// Every kind with its default parameters.
    pub const ALL: [Self; 5] = [
        Self::Con,
        Self::Lin,
        Self::Sig { alpha: 2.0, beta: 10.0, lambda: 0.5 },
        Self::LinMs { eps: 0.1 },
        Self::SigMs { alpha: 2.0, beta: 10.0, lambda: 0.5, eps: 0.1 },
    ];

    /// `con`, `lin`, `sig`, `lin_ms` or `sig_ms`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Con => "con",
            Self::Lin => "lin",
            Self::Sig { .. } => "sig",
            Self::LinMs { .. } => "lin_ms",
            Self::SigMs { .. } => "sig_ms",
        }
    }

    /// The slack of the relative-similarity sets, `None` for the weights without such sets.
    pub const fn eps(&self) -> Option<f64> {
        match *self {
            Self::LinMs { eps } | Self::SigMs { eps, .. } => Some(eps),
            _ => None,
        }
    }
}

const OP: &str = "Objective::new";

fn require(ok: bool, arg: &'static str, expected: &str, got: f64) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::InvalidOption { op: OP, arg, expected: expected.to_owned(), got: got.to_string() })
}

fn positive(arg: &'static str, value: f64) -> Result<()> {
    require(value.is_finite() && value > 0.0, arg, "a finite number above 0", value)
}

fn finite(arg: &'static str, value: f64) -> Result<()> {
    require(value.is_finite(), arg, "a finite number", value)
}

fn slack(value: f64) -> Result<()> {
    require(value.is_finite() && value >= 0.0, "eps", "a finite number, at least 0", value)
}

impl Objective {
    /// An objective with sum reduction.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] naming the hyper-parameter and its range.
    pub fn new(triplet: TripletWeight, pair: PairWeight) -> Result<Self> {
        match triplet {
            TripletWeight::Con => {}
            TripletWeight::Hinge { margin } => require(!margin.is_nan(), "margin", "a number", margin)?,
            TripletWeight::Nca { tau } => positive("tau", tau)?,
            TripletWeight::Cir { tau, offset } => {
                positive("tau", tau)?;
                finite("offset", offset)?;
            }
        }
        match pair {
            PairWeight::Con | PairWeight::Lin => {}
            PairWeight::Sig { alpha, beta, lambda } => {
                positive("alpha", alpha)?;
                positive("beta", beta)?;
                finite("lambda", lambda)?;
            }
            PairWeight::LinMs { eps } => slack(eps)?,
            PairWeight::SigMs { alpha, beta, lambda, eps } => {
                positive("alpha", alpha)?;
                positive("beta", beta)?;
                finite("lambda", lambda)?;
                slack(eps)?;
            }
        }
        Ok(Self { triplet, pair, reduction: Reduction::Sum })
    }

    /// The same objective with this reduction.
    #[must_use]
    pub const fn with_reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// The triplet weight.
    pub const fn triplet(&self) -> TripletWeight {
        self.triplet
    }
    /// The pair weight.
    pub const fn pair(&self) -> PairWeight {
        self.pair
    }
    /// The reduction.
    pub const fn reduction(&self) -> Reduction {
        self.reduction
    }

    /// Every combination with default parameters, in the order of [`TripletWeight::ALL`] then [`PairWeight::ALL`].
    pub fn all() -> Vec<Self> {
        let pairs =
            |triplet| PairWeight::ALL.into_iter().map(move |pair| Self { triplet, pair, reduction: Reduction::Sum });
        TripletWeight::ALL.into_iter().flat_map(pairs).collect()
    }

    /// Whether the reported loss is one whose derivative this objective is.
    pub const fn loss_kind(&self) -> LossKind {
        match (self.triplet, self.pair) {
            (TripletWeight::Con, PairWeight::Con | PairWeight::Lin | PairWeight::Sig { .. })
            | (TripletWeight::Hinge { .. } | TripletWeight::Nca { .. }, PairWeight::Con)
            | (TripletWeight::Cir { .. }, PairWeight::Lin) => LossKind::Potential,
            _ => LossKind::Logged,
        }
    }

    /// The factor of the reduction for a batch of `pairs` pairs: 1, or `1 / pairs`.
    pub fn reduction_factor(&self, pairs: usize) -> f64 {
        match self.reduction {
            Reduction::Mean if pairs > 0 => 1.0 / pairs as f64,
            _ => 1.0,
        }
    }
}

/// `triplet-pair`, for example `nca-lin_ms`.
impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.triplet.name(), self.pair.name())
    }
}

/// Parses what [`Display`](fmt::Display) writes; the parameters are the defaults.
impl FromStr for Objective {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::all().into_iter().find(|o| o.to_string() == s).ok_or_else(|| Error::InvalidOption {
            op: "Objective::from_str",
            arg: "objective",
            expected:
                "TRIPLET-PAIR with TRIPLET one of con, hinge, nca, cir and PAIR one of con, lin, sig, lin_ms, sig_ms"
                    .to_owned(),
            got: format!("`{s}`"),
        })
    }
}
