//! Parameter blocks of the kernel that evaluates a GOAL objective.

use super::launch::params;
use super::mine::Stats;
use crate::objective::{LossKind, Objective, PairWeight, TripletWeight};

params! {
    /// Twin of the struct in `kernels/params/goal.h`.
    #[derive(PartialEq)]
    ObjectiveParams: 64 {
        margin: f64,
        tau: f64,
        offset: f64,
        alpha: f64,
        beta: f64,
        lambda: f64,
        eps: f32,
        triplet: u32,
        pair: u32,
        potential: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/goal.h`.
    GoalSide: 120 {
        parts: u64,
        inv: u64,
        anchor_groups: u64,
        other_groups: u64,
        positive: u64,
        negative: u64,
        index: u64,
        list: u64,
        spare: u64,
        offsets: u64,
        blocks: u64,
        total: u64,
        detail: u64,
        skip: u64,
        splits: u32,
        unit: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/goal.h`.
    GoalParams: 360 {
        it: GoalSide,
        ti: GoalSide,
        pos: u64,
        pmin: u64,
        tickets: u64,
        report: u64,
        objective: ObjectiveParams,
        factor: f64,
        n: u32,
        pmin_count: u32,
        stats: u32,
        pad_: u32,
    }
}

/// Twin of `ReportPart` in `kernels/params/goal.h`: one direction's share of the report.
#[repr(C)]
pub(crate) struct ReportPart {
    sums: [f64; 4],
    counts: [u32; 4],
}
const _: () = assert!(size_of::<ReportPart>() == 48);

/// A slope as f32 holds it: an infinite one would turn a difference of 0 into NaN.
fn slope(value: f64) -> f64 {
    value.min(f64::from(f32::MAX))
}

impl ObjectiveParams {
    pub(crate) fn new(objective: &Objective) -> Self {
        let mut p = Self {
            margin: 0.0,
            tau: 0.0,
            offset: 0.0,
            alpha: 0.0,
            beta: 0.0,
            lambda: 0.0,
            eps: objective.pair().eps().unwrap_or(0.0) as f32,
            triplet: 0,
            pair: 0,
            potential: u32::from(objective.loss_kind() == LossKind::Potential),
        };
        match objective.triplet() {
            TripletWeight::Con => {}
            TripletWeight::Hinge { margin } => (p.triplet, p.margin) = (1, margin),
            TripletWeight::Nca { tau } => (p.triplet, p.tau) = (2, slope(tau)),
            TripletWeight::Cir { tau, offset } => (p.triplet, p.tau, p.offset) = (3, slope(tau), offset),
        }
        match objective.pair() {
            PairWeight::Con => {}
            PairWeight::Lin => p.pair = 1,
            PairWeight::Sig { alpha, beta, lambda } => {
                (p.pair, p.alpha, p.beta, p.lambda) = (2, slope(alpha), slope(beta), lambda);
            }
            PairWeight::LinMs { .. } => p.pair = 3,
            PairWeight::SigMs { alpha, beta, lambda, .. } => {
                (p.pair, p.alpha, p.beta, p.lambda) = (4, slope(alpha), slope(beta), lambda);
            }
        }
        p
    }
}

/// What the sweep has to collect for an objective; with `second`, for its anatomy.
pub(crate) fn stats_of(objective: &Objective, second: bool) -> Stats {
    match objective.pair() {
        PairWeight::LinMs { .. } => Stats::Lin,
        PairWeight::SigMs { .. } => Stats::Sig,
        _ if second => Stats::Second,
        _ => Stats::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_objective_has_its_own_code_and_parameters() {
        let all: Vec<ObjectiveParams> = Objective::all().iter().map(ObjectiveParams::new).collect();
        for (i, a) in all.iter().enumerate() {
            assert_eq!((a.triplet, a.pair), (i as u32 / 5, i as u32 % 5));
            assert!(all[..i].iter().all(|b| a != b));
        }
        let sig_ms = &all[4];
        assert_eq!((sig_ms.alpha, sig_ms.beta, sig_ms.lambda, sig_ms.eps), (2.0, 10.0, 0.5, 0.1));
        assert_eq!(all[5].margin, 0.2);
    }

    #[test]
    fn a_slope_beyond_f32_stays_finite() {
        let o = Objective::new(TripletWeight::Nca { tau: 1e300 }, PairWeight::Con).unwrap();
        assert!((ObjectiveParams::new(&o).tau as f32).is_finite());
    }
}
