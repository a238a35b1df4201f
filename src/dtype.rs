//! Element types and the rules that tie them together.

use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

/// Name of an element type at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE half precision, 16 bits.
    F16,
    /// bfloat16, 16 bits.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision; CPU only.
    F64,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// An element of an embedding matrix: `f32`, `f16`, `bf16`, and on the CPU `f64`.
pub trait Element: sealed::Sealed + Pod + Send + Sync + PartialEq + fmt::Debug + fmt::Display + 'static {
    /// The type that sums and similarities are computed in: `f32`, and `f64` for `f64`.
    type Acc: Accum + GradientOf<Self>;
    /// This type's name at run time.
    const DTYPE: DType;
    /// Widens without loss.
    fn to_acc(self) -> Self::Acc;
    /// Rounds to nearest even; beyond the largest finite value gives infinity.
    fn from_acc(value: Self::Acc) -> Self;
    /// Widens without loss.
    fn to_f64(self) -> f64;
    /// Rounds to nearest even.
    fn from_f64(value: f64) -> Self;
}

/// A type to compute in: `f32` or `f64`.
pub trait Accum: Element<Acc = Self> + PartialOrd + crate::cpu::Real {}
impl Accum for f32 {}
impl Accum for f64 {}

/// Rounds so that a second rounding, to 16 bits, gives what rounding once would: towards zero, with the lowest bit set if
/// anything was lost.
fn round_to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || value.is_nan() {
        return near;
    }
    let beyond = u32::from(f64::from(near).abs() > value.abs());
    f32::from_bits((near.to_bits() - beyond) | 1)
}

macro_rules! element {
    ($t:ty, $acc:ty, $dtype:ident, $to_acc:expr, $from_acc:expr, $to_f64:expr, $from_f64:expr) => {
        impl Element for $t {
            type Acc = $acc;
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_acc(self) -> $acc {
                $to_acc(self)
            }
            #[inline(always)]
            fn from_acc(value: $acc) -> Self {
                $from_acc(value)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                $from_f64(value)
            }
        }
    };
}
element!(f16, f32, F16, f16::to_f32, f16::from_f32, f16::to_f64, |v| f16::from_f32(round_to_odd(v)));
element!(bf16, f32, Bf16, bf16::to_f32, bf16::from_f32, bf16::to_f64, |v| bf16::from_f32(round_to_odd(v)));
element!(f32, f32, F32, |v| v, |v| v, f64::from, |v| v as f32);
element!(f64, f64, F64, |v| v, |v| v, |v| v, |v| v);

/// A type that the gradient with respect to a matrix of `T` may be written in: `T` itself, or its accumulation type.
pub trait GradientOf<T: Element>: Element<Acc = T::Acc> {}
impl GradientOf<f16> for f16 {}
impl GradientOf<f16> for f32 {}
impl GradientOf<bf16> for bf16 {}
impl GradientOf<bf16> for f32 {}
impl GradientOf<f32> for f32 {}
impl GradientOf<f64> for f64 {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_rounded_once() {
        // Halfway between two values, and off it by less than `f32` resolves.
        let half = 1.0 + 0.5f64.powi(11);
        let next = 1.0 + 0.5f64.powi(10);
        assert_eq!(<f16 as Element>::from_f64(half).to_f64(), 1.0);
        assert_eq!(<f16 as Element>::from_f64(half + 1e-12).to_f64(), next);
        assert_eq!(<f16 as Element>::from_f64(-half - 1e-12).to_f64(), -next);
        assert_eq!(<f16 as Element>::from_f64(half - 1e-12).to_f64(), 1.0);
        let half = 1.0 + 0.5f64.powi(8);
        assert_eq!(<bf16 as Element>::from_f64(half).to_f64(), 1.0);
        assert_eq!(<bf16 as Element>::from_f64(half + 1e-12).to_f64(), 1.0 + 0.5f64.powi(7));
        assert_eq!(<f16 as Element>::from_f64(1e300), f16::INFINITY);
        assert_eq!(<bf16 as Element>::from_f64(-1e300), bf16::NEG_INFINITY);
        assert_eq!(<f16 as Element>::from_f64(1e-300).to_f64(), 0.0);
        assert!(<f16 as Element>::from_f64(f64::NAN).is_nan());
    }
}
