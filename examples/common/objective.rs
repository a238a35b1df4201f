//! Hyper-parameters of the objectives as command-line options.

use simgrad::{Objective, PairWeight, TripletWeight};

use super::{Failure, Outcome};

/// One option per hyper-parameter; the defaults are those of the paper's code.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Hyper-parameters", allow_negative_numbers = true)]
pub struct Parameters {
    /// Inverse temperature of the triplet weights nca and cir
    #[arg(long, default_value_t = 1.0)]
    pub tau: f64,
    /// Slope of the positive side of the pair weights sig and sig_ms
    #[arg(long, default_value_t = 2.0)]
    pub alpha: f64,
    /// Slope of the negative side of the pair weights sig and sig_ms
    #[arg(long, default_value_t = 10.0)]
    pub beta: f64,
    /// Centre of the pair weights sig and sig_ms
    #[arg(long, default_value_t = 0.5)]
    pub lambda: f64,
    /// Slack of the relative-similarity sets of lin_ms and sig_ms
    #[arg(long, default_value_t = 0.1)]
    pub eps: f64,
    /// Squared radius of the decision circle of the triplet weight cir
    #[arg(long, default_value_t = 0.5)]
    pub circle_offset: f64,
    /// Margin of the triplet weight hinge, and of triplet-hardest and triplet-semi-hard
    #[arg(long, default_value_t = 0.2)]
    pub margin: f64,
}

impl Parameters {
    /// The objective of this name, `triplet-pair`, with these parameters.
    pub fn objective(&self, name: &str) -> Outcome<Objective> {
        let named: Objective = name.parse().map_err(|e| Failure::option("objective", e))?;
        self.apply(named)
    }

    /// The same objective with these parameters.
    pub fn apply(&self, objective: Objective) -> Outcome<Objective> {
        let triplet = match objective.triplet() {
            TripletWeight::Hinge { .. } => TripletWeight::Hinge { margin: self.margin },
            TripletWeight::Nca { .. } => TripletWeight::Nca { tau: self.tau },
            TripletWeight::Cir { .. } => TripletWeight::Cir { tau: self.tau, offset: self.circle_offset },
            other => other,
        };
        let pair = match objective.pair() {
            PairWeight::Sig { .. } => PairWeight::Sig { alpha: self.alpha, beta: self.beta, lambda: self.lambda },
            PairWeight::LinMs { .. } => PairWeight::LinMs { eps: self.eps },
            PairWeight::SigMs { .. } => {
                PairWeight::SigMs { alpha: self.alpha, beta: self.beta, lambda: self.lambda, eps: self.eps }
            }
            other => other,
        };
        let built = Objective::new(triplet, pair).map_err(|error| match error {
            simgrad::Error::InvalidOption { arg, expected, got, .. } => {
                let name = if arg == "offset" { "circle-offset" } else { arg };
                Failure::option(name, format!("is {got}, expected {expected}"))
            }
            other => other.into(),
        })?;
        Ok(built.with_reduction(objective.reduction()))
    }
}

/// What a report's `loss` is for this objective, in one word.
pub fn loss_kind(objective: &Objective) -> &'static str {
    match objective.loss_kind() {
        simgrad::LossKind::Potential => "potential",
        simgrad::LossKind::Logged => "logged",
    }
}
