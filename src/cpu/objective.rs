//! Triplet weights, pair weights and losses of one triplet, in `f64`.

use crate::objective::{Objective, PairWeight, TripletWeight};

/// `1 / (1 + exp(-z))` without overflow.
fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 {
        1.0 / (1.0 + (-z).exp())
    } else {
        let e = z.exp();
        e / (1.0 + e)
    }
}

/// `ln(1 + exp(z))` without overflow.
fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p() + if z.is_nan() { z } else { 0.0 }
}

/// `1 / (exp(-z) + relative)` without overflow.
fn relative_sigmoid(z: f64, relative: f64) -> f64 {
    if z <= 0.0 {
        let e = z.exp();
        e / (1.0 + relative * e)
    } else {
        1.0 / ((-z).exp() + relative)
    }
}

/// Argument of the circle weight: how far outside the decision circle `(p, n)` is.
fn outside_circle(p: f64, n: f64, offset: f64) -> f64 {
    n * n + (1.0 - p) * (1.0 - p) - offset
}

/// `T(P, N)`; NaN if `p` or `n` is.
pub(super) fn triplet_weight(triplet: TripletWeight, p: f64, n: f64) -> f64 {
    if p.is_nan() || n.is_nan() {
        return f64::NAN;
    }
    match triplet {
        TripletWeight::Con => 1.0,
        TripletWeight::Hinge { margin } => f64::from(u8::from(margin + n - p > 0.0)),
        TripletWeight::Nca { tau } => sigmoid(tau * (n - p)),
        TripletWeight::Cir { tau, offset } => sigmoid(tau * outside_circle(p, n, offset)),
    }
}

/// `(w⁺, w⁻)` with the relative similarities `rs`, which the weights without them ignore.
pub(super) fn pair_weights(pair: PairWeight, p: f64, n: f64, rs: (f64, f64)) -> (f64, f64) {
    match pair {
        PairWeight::Con => (1.0, 1.0),
        PairWeight::Lin => (1.0 - p, n),
        PairWeight::Sig { alpha, beta, lambda } => (sigmoid(-alpha * (p - lambda)), sigmoid(beta * (n - lambda))),
        PairWeight::LinMs { .. } => ((1.0 - rs.0) * (1.0 - p), (1.0 + rs.1) * n),
        PairWeight::SigMs { alpha, beta, lambda, .. } => {
            (relative_sigmoid(-alpha * (p - lambda), rs.0), relative_sigmoid(beta * (n - lambda), rs.1))
        }
    }
}

/// The triplet's share of the loss, or of the logged quantity where there is no loss.
pub(super) fn loss(objective: &Objective, p: f64, n: f64) -> f64 {
    match (objective.triplet(), objective.pair()) {
        (TripletWeight::Con, PairWeight::Lin) => ((1.0 - p) * (1.0 - p) + n * n) / 2.0,
        (TripletWeight::Con, PairWeight::Sig { alpha, beta, lambda }) => {
            softplus(-alpha * (p - lambda)) / alpha + softplus(beta * (n - lambda)) / beta
        }
        (TripletWeight::Hinge { margin }, PairWeight::Con) => {
            let violation = margin + n - p;
            if violation <= 0.0 { 0.0 } else { violation }
        }
        (TripletWeight::Nca { tau }, PairWeight::Con) => softplus(tau * (n - p)) / tau,
        (TripletWeight::Cir { tau, offset }, PairWeight::Lin) => {
            softplus(tau * outside_circle(p, n, offset)) / (2.0 * tau)
        }
        _ => n - p,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoids_are_stable_at_both_ends() {
        assert_eq!((sigmoid(1e3), sigmoid(-1e3), sigmoid(0.0)), (1.0, 0.0, 0.5));
        assert_eq!((softplus(1e3), softplus(-1e3)), (1e3, 0.0));
        assert!(softplus(f64::NAN).is_nan() && sigmoid(f64::NAN).is_nan());
        assert_eq!(relative_sigmoid(-1e3, 0.5), 0.0);
        assert_eq!(relative_sigmoid(1e3, 0.5), 2.0);
    }

    #[test]
    fn hinge_is_active_only_for_a_strict_violation() {
        let hinge = TripletWeight::Hinge { margin: 0.25 };
        assert_eq!(triplet_weight(hinge, 0.75, 0.5), 0.0);
        assert_eq!(triplet_weight(hinge, 0.75, 0.5001), 1.0);
        assert!(triplet_weight(hinge, f64::NAN, 0.0).is_nan());
        assert!(triplet_weight(TripletWeight::Con, 0.0, f64::NAN).is_nan());
    }

    /// The weights are the derivative of the loss where there is one.
    #[test]
    fn weights_are_the_derivative_of_the_potential() {
        use crate::objective::LossKind;
        let h = 1e-6;
        for objective in Objective::all().into_iter().filter(|o| o.loss_kind() == LossKind::Potential) {
            for (p, n) in [(0.3, 0.8), (0.7, 0.6), (0.1, -0.4)] {
                let t = triplet_weight(objective.triplet(), p, n);
                let (w_pos, w_neg) = pair_weights(objective.pair(), p, n, (0.0, 0.0));
                let dp = (loss(&objective, p + h, n) - loss(&objective, p - h, n)) / (2.0 * h);
                let dn = (loss(&objective, p, n + h) - loss(&objective, p, n - h)) / (2.0 * h);
                assert!((dp + t * w_pos).abs() < 1e-8, "{objective}");
                assert!((dn - t * w_neg).abs() < 1e-8, "{objective}");
            }
        }
    }
}
