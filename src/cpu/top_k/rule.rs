//! Numbers that follow from the options alone, the same for every backend.

use crate::dtype::Accum;
use crate::top_k::{Pick, TopKOptions};

/// Increment of the SplitMix64 generator.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Similarities up to this have no weight: distances from 1.4 on.
const LEAST_SIMILAR: f64 = 0.02;

/// Output function of SplitMix64 (Steele, Lea & Flood 2014).
#[inline(always)]
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where in the sequence of random numbers a direction starts: 0 for rows, 1 for columns.
pub(crate) const fn start(pick: Pick, direction: u64) -> u64 {
    match pick {
        Pick::Hardest => 0,
        Pick::Random { seed } | Pick::DistanceWeighted { seed } => {
            mix(seed.wrapping_add((direction + 1).wrapping_mul(STEP)))
        }
    }
}

/// Factors of `ln(2 − 2s)` and of `ln((1 + s)/2)` in the logarithm of a weight, for `d` features.
pub(crate) const fn distance_factors(d: usize) -> (f64, f64) {
    (-(d as f64 - 2.0) / 2.0, -(d as f64 - 3.0) / 2.0)
}

/// The largest value that is not above `value`; NaN for NaN.
pub(crate) fn at_most<A: Accum>(value: f64) -> A {
    -A::at_least(-value)
}

/// The similarities with which a candidate survives as far as no positive is concerned.
pub(crate) fn window<A: Accum>(options: &TopKOptions<'_>) -> (A, A) {
    let (low, high) = options.window.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    let low = A::at_least(low);
    let weighted = matches!(options.pick, Pick::DistanceWeighted { .. });
    (if weighted { low.larger(A::at_least(LEAST_SIMILAR.next_up())) } else { low }, at_most(high))
}
