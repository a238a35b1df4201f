//! Keys: 64-bit integers whose order is the order of selection, so that every rule is "the k largest keys".

use super::rule::{STEP, distance_factors, mix, start};
use crate::top_k::Pick;

/// An integer that orders similarities: NaN above everything, −0 equal to +0.
#[inline(always)]
pub(super) fn order(value: f64) -> u64 {
    if value.is_nan() {
        return u64::MAX;
    }
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

/// The natural logarithm of a normal positive number, by operations that round alike on every machine: no library, no
/// fused multiply-add. Its error is a few units.
#[inline(always)]
fn ln(x: f64) -> f64 {
    // x = 2^e m with m in [√½, √2), and ln m = 2 artanh z with |z| <= 0.1716: 11 terms leave less than 1e-18.
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let bits = x.to_bits();
    let exponent = (bits.wrapping_sub(SQRT_HALF) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((exponent << 52) as u64));
    let z = (m - 1.0) / (m + 1.0);
    let square = z * z;
    let mut sum = 2.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 2.0 / odd;
    }
    exponent as f64 * std::f64::consts::LN_2 + z * sum
}

/// Similarities above this count as this: distances below 0.5.
const MOST_SIMILAR: f64 = 0.875;

/// Keys of one direction.
#[derive(Debug)]
pub(super) struct Keys {
    kind: Kind,
    /// The direction's point in the sequence of random numbers.
    start: u64,
}

#[derive(Debug)]
enum Kind {
    Similarity,
    Random,
    Distance(Box<Weights>),
}

/// Keys of distance-weighted sampling, and upper bounds on their two parts: of most candidates it shows without a logarithm
/// that others come first.
#[derive(Debug)]
struct Weights {
    far: f64,
    near: f64,
    /// Of the logarithm of the weight, by similarity in steps of `1 / BINS`. Infinite where nothing is known.
    log_weight: [f64; Self::BINS],
    /// Of the noise, by the highest 8 random bits.
    noise: [f64; 256],
}

impl Weights {
    const BINS: usize = 512;

    fn new(d: usize) -> Self {
        let (far, near) = distance_factors(d);
        let mut all = Self { far, near, log_weight: [f64::INFINITY; Self::BINS], noise: [f64::INFINITY; 256] };
        // The logarithm of the weight is convex from three features on, so that it is largest at an end of a bin.
        if d >= 3 {
            let end = |bin: usize| all.log_weight(bin as f64 / Self::BINS as f64);
            all.log_weight = std::array::from_fn(|bin| above(end(bin).max(end(bin + 1))));
        }
        for (byte, bound) in all.noise.iter_mut().enumerate().take(255) {
            *bound = above(-ln(-ln((byte as f64 + 1.0) / 256.0)));
        }
        all
    }

    #[inline(always)]
    fn log_weight(&self, similarity: f64) -> f64 {
        let s = if similarity < MOST_SIMILAR { similarity } else { MOST_SIMILAR };
        self.far * ln(2.0 - 2.0 * s) + self.near * ln((1.0 + s) / 2.0)
    }

    #[inline(always)]
    fn key(&self, bits: u64, similarity: f64) -> f64 {
        let uniform = ((bits >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64);
        self.log_weight(similarity) - ln(-ln(uniform))
    }

    /// As [`Keys::key`]. Apart, so that it does not weigh on the loops of the other keys.
    #[inline(never)]
    fn key_from(&self, floor: u64, bits: u64, similarity: f64) -> Option<u64> {
        let late = order(self.bound(bits, similarity)) < floor;
        if late { None } else { Some(order(self.key(bits, similarity))) }
    }

    /// What a key is not above.
    #[inline(always)]
    fn bound(&self, bits: u64, similarity: f64) -> f64 {
        let bin = (similarity * Self::BINS as f64) as usize;
        self.log_weight[bin.min(Self::BINS - 1)] + self.noise[(bits >> 56) as usize]
    }
}

/// Room for the rounding errors of logarithms and sums.
fn above(value: f64) -> f64 {
    value + 1e-9 * (1.0 + value.abs())
}

impl Keys {
    /// `direction` is 0 for rows and 1 for columns, `d` the number of features.
    pub(super) fn new(pick: Pick, direction: u64, d: usize) -> Self {
        let kind = match pick {
            Pick::Hardest => Kind::Similarity,
            Pick::Random { .. } => Kind::Random,
            Pick::DistanceWeighted { .. } => Kind::Distance(Box::new(Weights::new(d))),
        };
        Self { kind, start: start(pick, direction) }
    }

    /// The key of a candidate, which has a weight if weights are asked for; `None` only if the key is less than `floor`.
    #[inline(always)]
    pub(super) fn key(&self, floor: u64, anchor: usize, candidate: i32, similarity: f64) -> Option<u64> {
        match &self.kind {
            Kind::Similarity => Some(order(similarity)),
            Kind::Random => Some(self.bits(anchor, candidate)),
            Kind::Distance(weights) => weights.key_from(floor, self.bits(anchor, candidate), similarity),
        }
    }

    #[inline(always)]
    fn bits(&self, anchor: usize, candidate: i32) -> u64 {
        let pair = ((anchor as u64) << 32) | u64::from(candidate as u32);
        mix(self.start.wrapping_add(pair.wrapping_mul(STEP)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn order_is_that_of_similarities() {
        let ascending = [f64::NEG_INFINITY, -1.0, -1e-310, 0.0, 1e-310, 0.5, f64::INFINITY, f64::NAN];
        assert!(ascending.windows(2).all(|w| order(w[0]) < order(w[1])));
        assert_eq!(order(-0.0), order(0.0));
        assert_eq!(order(-f64::NAN), order(f64::NAN));
    }

    #[test]
    fn ln_is_within_a_few_ulp() {
        for i in 1..200_000 {
            for x in [f64::from(i) * 1e-5, 0.5f64.powi(i % 60) * (1.0 + f64::from(i) * 1e-6), 1.0 - 0.5f64.powi(i % 54)]
            {
                if x > 0.0 {
                    assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs(), "{x}: {} {}", ln(x), x.ln());
                }
            }
        }
    }

    #[test]
    fn random_bits_are_those_of_the_reference() {
        for (seed, a, c) in [(0, 0, 0), (7, 1, 0), (7, 0, 1), (u64::MAX, 123_456, i32::MAX)] {
            for direction in 0..2 {
                let keys = Keys::new(Pick::Random { seed }, direction, 8);
                let want = reference::random_bits(seed, direction, a as u32, c as u32);
                assert_eq!(keys.key(0, a, c, 0.3), Some(want));
            }
        }
    }

    #[test]
    fn bounds_are_above_the_keys_and_not_far() {
        for d in [1, 2, 3, 8, 512, 4096] {
            let keys = Keys::new(Pick::DistanceWeighted { seed: 1 }, 0, d);
            let Kind::Distance(weights) = &keys.kind else { panic!("no weights") };
            let mut close = 0;
            for i in 0..100_000 {
                let s = 0.02 + f64::from(i) * 1.2e-5;
                let bits = keys.bits(i as usize, 7);
                let (key, bound) = (weights.key(bits, s), weights.bound(bits, s));
                assert!(key <= bound, "{d} {s}: {key} above {bound}");
                close += u32::from(bound - key < 0.1 + 0.01 * d as f64);
            }
            assert!(d < 3 || close > 90_000, "{d}: {close}");
        }
    }
}
