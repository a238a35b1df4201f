//! Triplet weights, pair weights and losses of one triplet, as functions of a few numbers.

use crate::objective::{LossKind, Objective, PairWeight, TripletWeight};

/// `σ(z)` without overflow.
fn logistic(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

/// `ln(1 + exp(z))` without overflow.
fn softplus(z: f64) -> f64 {
    if z.is_nan() { z } else { z.max(0.0) + (-z.abs()).exp().ln_1p() }
}

/// `1 / (exp(−z) + r)` without overflow, for `r >= 0`.
fn bounded_exponential(z: f64, r: f64) -> f64 {
    if z <= 0.0 { z.exp() / (1.0 + r * z.exp()) } else { 1.0 / ((-z).exp() + r) }
}

/// `T(p, n)`; NaN if `p` or `n` is.
pub fn triplet_weight(weight: TripletWeight, p: f64, n: f64) -> f64 {
    if p.is_nan() || n.is_nan() {
        return f64::NAN;
    }
    match weight {
        TripletWeight::Con => 1.0,
        TripletWeight::Hinge { margin } => f64::from(u8::from(margin + n - p > 0.0)),
        TripletWeight::Nca { tau } => logistic(tau * (n - p)),
        TripletWeight::Cir { tau, offset } => logistic(tau * (n * n + (1.0 - p) * (1.0 - p) - offset)),
    }
}

/// `(w⁺, w⁻)` for the relative similarities `rs_pos` and `rs_neg`, which only `lin_ms` and `sig_ms` look at.
pub fn pair_weights(weight: PairWeight, p: f64, n: f64, rs_pos: f64, rs_neg: f64) -> (f64, f64) {
    match weight {
        PairWeight::Con => (1.0, 1.0),
        PairWeight::Lin => (1.0 - p, n),
        PairWeight::Sig { alpha, beta, lambda } => (logistic(-alpha * (p - lambda)), logistic(beta * (n - lambda))),
        PairWeight::LinMs { .. } => ((1.0 - rs_pos) * (1.0 - p), (1.0 + rs_neg) * n),
        PairWeight::SigMs { alpha, beta, lambda, .. } => {
            (bounded_exponential(-alpha * (p - lambda), rs_pos), bounded_exponential(beta * (n - lambda), rs_neg))
        }
    }
}

/// The loss of one triplet for the objectives that have one, whose derivatives by `n` and `p` are `T w⁻` and `−T w⁺`;
/// `n − p` for the others.
pub fn potential(objective: &Objective, p: f64, n: f64) -> f64 {
    if objective.loss_kind() == LossKind::Logged {
        return n - p;
    }
    match (objective.triplet(), objective.pair()) {
        (TripletWeight::Con, PairWeight::Lin) => ((1.0 - p) * (1.0 - p) + n * n) / 2.0,
        (TripletWeight::Con, PairWeight::Sig { alpha, beta, lambda }) => {
            softplus(-alpha * (p - lambda)) / alpha + softplus(beta * (n - lambda)) / beta
        }
        (TripletWeight::Hinge { margin }, _) => {
            let z = margin + n - p;
            if z < 0.0 { 0.0 } else { z }
        }
        (TripletWeight::Nca { tau }, _) => softplus(tau * (n - p)) / tau,
        (TripletWeight::Cir { tau, offset }, _) => {
            softplus(tau * (n * n + (1.0 - p) * (1.0 - p) - offset)) / (2.0 * tau)
        }
        _ => n - p,
    }
}
