//! Arithmetic of the two types that the kernels compute in.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// What the kernels need of `f32` and `f64`; the bound behind `Accum`, which nothing outside the crate can implement.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + super::tile::Lanes
{
    const ZERO: Self;
    const ONE: Self;
    const NAN: Self;
    const NEG_INFINITY: Self;
    /// Sums of squares in this range have neither overflowed nor lost anything that matters to underflow.
    const SAFE_SQUARES: std::ops::Range<Self>;
    fn fused_mul_add(self, a: Self, b: Self) -> Self;
    fn magnitude(self) -> Self;
    fn finite(self) -> bool;
    fn not_a_number(self) -> bool;
    /// Power of two, at most `2^MAX_EXP`, that brings a positive finite `self` near 1: products and sums of squares of
    /// the scaled numbers neither overflow nor lose bits to underflow.
    fn pow2_scale(self) -> Self;
    /// `exp(self)` for `self <= 0`, with about one unit of error; 0 below the smallest normal result.
    fn exp_nonpos(self) -> Self;
    fn sqrt(self) -> Self;
    /// `ln(1 + self)` for `0 <= self <= 1`, with an error of about a unit.
    fn ln_1p_unit(self) -> Self;
    /// The smallest value that is not below `value`; NaN for NaN.
    fn at_least(value: f64) -> Self;

    /// `max` of values that are not NaN.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    /// `min` of values that are not NaN.
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if self < other { self } else { other }
    }
}

macro_rules! real {
    ($t:ident, $bits:ident, $mantissa:literal, $bias:literal, $ln2:expr, $round:literal, $floor:literal, $safe:expr, $poly:expr, $artanh:literal, $at_least:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NAN: Self = $t::NAN;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            const SAFE_SQUARES: std::ops::Range<Self> = $safe;
            #[inline(always)]
            fn fused_mul_add(self, a: Self, b: Self) -> Self {
                self.mul_add(a, b)
            }
            #[inline(always)]
            fn magnitude(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn finite(self) -> bool {
                self.is_finite()
            }
            #[inline(always)]
            fn not_a_number(self) -> bool {
                self.is_nan()
            }
            #[inline]
            fn pow2_scale(self) -> Self {
                // The biased exponent of 2^-e is 2 * bias - E. Clamped to normal numbers: 2^-bias itself is subnormal,
                // and a subnormal `self` (E = 0) is only brought to the normal range.
                let exponent = self.to_bits() >> $mantissa;
                Self::from_bits((2 * $bias - exponent).clamp(1, 2 * $bias) << $mantissa)
            }
            #[inline(always)]
            fn exp_nonpos(self) -> Self {
                // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^mantissa rounds to an integer that then sits in
                // the low bits, from where one shift moves it into the exponent of 2^n.
                let x = if self > $floor { self } else { $floor };
                let shifted = x * std::$t::consts::LOG2_E + $round;
                let n = shifted - $round;
                let r = (x - n * $ln2.0) - n * $ln2.1;
                let mut p = $poly[0];
                for c in &$poly[1..] {
                    p = p * r + *c;
                }
                let power = $t::from_bits((shifted.to_bits() << $mantissa).wrapping_add(($bias as $bits) << $mantissa));
                if self > $floor {
                    p * power
                } else if self.is_nan() {
                    self
                } else {
                    0.0
                }
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn ln_1p_unit(self) -> Self {
                // ln(1 + e) = 2 artanh(z), and z <= 1/3: the series' remainder is below 3^-2k.
                let z = self / (2.0 + self);
                let (square, mut sum) = (z * z, 0.0);
                for k in (0..$artanh).rev() {
                    sum = sum * square + 2.0 / (2 * k + 1) as $t;
                }
                z * sum
            }
            fn at_least(value: f64) -> Self {
                $at_least(value)
            }
        }
    };
}
// ln 2 is split so that n * high is exact for every n that occurs. Taylor coefficients, highest first: on |r| <= 0.347
// the remainder is 5e-9 (degree 7) and 5e-18 (degree 13).
real!(
    f32,
    u32,
    23,
    127,
    (0.693_359_4_f32, -2.121_944_4e-4_f32),
    12_582_912.0,
    -87.33,
    1e-24..1e30,
    [1.984_127e-4_f32, 1.388_888_9e-3, 8.333_334e-3, 4.166_666_8e-2, 0.166_666_67, 0.5, 1.0, 1.0],
    8,
    |value: f64| {
        let near = value as f32;
        if f64::from(near) < value { near.next_up() } else { near }
    }
);
real!(
    f64,
    u64,
    52,
    1023,
    (0.693_147_180_369_123_8_f64, 1.908_214_929_270_587_7e-10_f64),
    6_755_399_441_055_744.0,
    -708.0,
    1e-200..1e200,
    [
        1.605_904_383_682_161_3e-10_f64,
        2.087_675_698_786_81e-9,
        2.505_210_838_544_172e-8,
        2.755_731_922_398_589e-7,
        2.755_731_922_398_589e-6,
        2.480_158_730_158_73e-5,
        1.984_126_984_126_984e-4,
        1.388_888_888_888_889e-3,
        8.333_333_333_333_333e-3,
        4.166_666_666_666_666_4e-2,
        0.166_666_666_666_666_66,
        0.5,
        1.0,
        1.0
    ],
    18,
    |value: f64| value
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_nonpos_is_within_an_ulp_or_two() {
        for i in 0..200_000 {
            let x = f64::from(i) * -4e-4;
            let want = x.exp();
            assert!((x.exp_nonpos() - want).abs() <= 4e-16 * want, "{x}");
            let x = x as f32;
            let want = f64::from(x).exp();
            assert!((f64::from(x.exp_nonpos()) - want).abs() <= 2.5e-7 * want, "{x}");
        }
        assert_eq!(0f32.exp_nonpos(), 1.0);
        assert_eq!(f32::NEG_INFINITY.exp_nonpos(), 0.0);
        assert_eq!((-1000f64).exp_nonpos(), 0.0);
        assert!(f32::NAN.exp_nonpos().is_nan());
    }

    #[test]
    fn ln_1p_unit_is_within_a_few_ulp() {
        for i in 0..=10_000 {
            let x = f64::from(i) * 1e-4;
            assert!((x.ln_1p_unit() - x.ln_1p()).abs() <= 8e-16 * x.ln_1p(), "{x}");
            let want = f64::from(x as f32).ln_1p();
            assert!((f64::from((x as f32).ln_1p_unit()) - want).abs() <= 2.5e-7 * want, "{x}");
        }
        assert_eq!(1e-30f32.ln_1p_unit(), 1e-30);
        assert!(f32::NAN.ln_1p_unit().is_nan());
    }

    #[test]
    fn pow2_scale_brings_every_magnitude_to_the_unit_range() {
        for x in [1e-45_f32, 1e-40, 1.2e-38, 1e-30, 0.7, 1.0, 3.0, 1e30, f32::MAX] {
            let scale = x.pow2_scale();
            assert!(scale.is_normal() && scale.to_bits().trailing_zeros() >= 23);
            assert!((2e-7..4.0).contains(&(x * scale)), "{x:e} * {scale:e}");
        }
        assert_eq!(1.5f32.pow2_scale(), 1.0);
        assert_eq!(6.0f64.pow2_scale(), 0.25);
    }

    #[test]
    fn at_least_rounds_up() {
        assert!(f64::from(f32::at_least(0.1)) >= 0.1);
        assert!(f64::from(f32::at_least(-0.1)) >= -0.1);
        assert_eq!(f32::at_least(0.5), 0.5);
        assert!(f32::at_least(f64::NAN).is_nan());
    }
}
