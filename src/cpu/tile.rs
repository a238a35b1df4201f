//! Run-time choice of the instruction set, and its vectors.
//!
//! A [`Kernel`] is a loop written once in safe code; [`Isa::run`] compiles it for every instruction set and calls the one
//! that this machine has.

use bytemuck::Zeroable;
use half::{bf16, f16};

use super::product::{K_BLOCK, Multiply, Stage, register_tile};
use super::real::Real;
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::dtype::{Accum, DType, Element};

/// Vector operations of one instruction set on one element type.
///
/// The implementations other than the portable one may be called only on a machine with that instruction set, which
/// [`Isa::run`] guarantees: it is the one place that hands them to a [`Kernel`].
pub trait Simd<A>: Sized + 'static {
    type V: Copy;
    /// Elements of a `V`.
    const LANES: usize;
    /// Rows of `X` per register tile.
    const MR: usize;
    /// Rows of `Y` per register tile, a multiple of `LANES`.
    const NR: usize;
    fn splat(x: A) -> Self::V;
    fn load(x: &[A]) -> Self::V;
    fn store(v: Self::V, x: &mut [A]);
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise maximum of numbers; unspecified for NaN.
    fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise minimum of numbers; unspecified for NaN.
    fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the instruction set can, and then in every kernel alike.
    fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// As [`Self::mul_add`] on one element, with the same rounding.
    fn mul_add_one(a: A, b: A, c: A) -> A;
    /// Asks for the cache line of `x`.
    #[inline(always)]
    fn prefetch(_: &A) {}
    /// One register tile: see [`register_tile`].
    fn micro(a: &[A], b: &[A], out: &mut [A], ld: usize, stage: Stage<'_, A>);
    /// `dst[k * dst_ld + r] = src[r * src_ld + k]` for `r, k < 8`.
    #[inline(always)]
    fn transpose_8x8(src: &[A], src_ld: usize, dst: &mut [A], dst_ld: usize)
    where
        A: Copy,
    {
        for r in 0..8 {
            for k in 0..8 {
                dst[k * dst_ld + r] = src[r * src_ld + k];
            }
        }
    }
    /// Widens the first `LANES` elements.
    #[inline(always)]
    fn load_f16(x: &[f16]) -> Self::V
    where
        A: Accum,
    {
        Self::load(&each_lane(x, |x| A::from_f64(x.to_f64())))
    }
    /// Widens the first `LANES` elements.
    #[inline(always)]
    fn load_bf16(x: &[bf16]) -> Self::V
    where
        A: Accum,
    {
        Self::load(&each_lane(x, |x| A::from_f64(x.to_f64())))
    }
    /// Rounds to nearest even.
    #[inline(always)]
    fn store_f16(v: Self::V, x: &mut [f16])
    where
        A: Accum,
    {
        let rounded = each_lane(&lanes::<A, Self>(v), |v| f16::from_f64(v.to_f64()));
        x[..Self::LANES].copy_from_slice(&rounded[..Self::LANES]);
    }
    /// Rounds to nearest even.
    #[inline(always)]
    fn store_bf16(v: Self::V, x: &mut [bf16])
    where
        A: Accum,
    {
        let rounded = each_lane(&lanes::<A, Self>(v), |v| bf16::from_f64(v.to_f64()));
        x[..Self::LANES].copy_from_slice(&rounded[..Self::LANES]);
    }
}

/// The instruction sets of an element type.
pub trait Lanes: Sized {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Self>;
    type Portable: Simd<Self>;
}

/// Most lanes of any vector.
pub(crate) const MAX_LANES: usize = 16;

#[inline(always)]
fn each_lane<I: Copy, O: Zeroable + Copy>(x: &[I], convert: impl Fn(I) -> O) -> [O; MAX_LANES] {
    let mut converted = [O::zeroed(); MAX_LANES];
    converted.iter_mut().zip(x).for_each(|(o, &i)| *o = convert(i));
    converted
}

/// The first `LANES` elements in the computing type.
#[inline(always)]
pub(crate) fn load<T: Element, S: Simd<T::Acc>>(x: &[T]) -> S::V {
    match T::DTYPE {
        DType::F16 => S::load_f16(bytemuck::cast_slice(x)),
        DType::Bf16 => S::load_bf16(bytemuck::cast_slice(x)),
        DType::F32 | DType::F64 => S::load(bytemuck::cast_slice(x)),
    }
}

/// Up to `LANES` elements, and zeros behind them.
#[inline(always)]
pub(crate) fn load_part<T: Element, S: Simd<T::Acc>>(x: &[T]) -> S::V {
    let mut padded = [T::zeroed(); MAX_LANES];
    padded[..x.len()].copy_from_slice(x);
    load::<T, S>(&padded)
}

/// Rounds to the first `LANES` elements.
#[inline(always)]
pub(crate) fn store<O: Element, S: Simd<O::Acc>>(v: S::V, x: &mut [O]) {
    match O::DTYPE {
        DType::F16 => S::store_f16(v, bytemuck::cast_slice_mut(x)),
        DType::Bf16 => S::store_bf16(v, bytemuck::cast_slice_mut(x)),
        DType::F32 | DType::F64 => S::store(v, bytemuck::cast_slice_mut(x)),
    }
}

/// Rounds to all elements, up to `LANES`.
#[inline(always)]
pub(crate) fn store_part<O: Element, S: Simd<O::Acc>>(v: S::V, x: &mut [O]) {
    let mut padded = [O::zeroed(); MAX_LANES];
    store::<O, S>(v, &mut padded);
    x.copy_from_slice(&padded[..x.len()]);
}

/// The lanes of a vector, and zeros behind them.
#[inline(always)]
pub(crate) fn lanes<A: Accum, S: Simd<A>>(v: S::V) -> [A; MAX_LANES] {
    let mut lanes = [A::ZERO; MAX_LANES];
    S::store(v, &mut lanes);
    lanes
}

/// A loop to be compiled for every instruction set. `run` and all it calls must be `#[inline(always)]`, or else the
/// code is compiled for the baseline.
pub trait Kernel<A: Real> {
    type Out;
    fn run<S: Simd<A>>(self) -> Self::Out;
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// AVX-512 with products of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// Every instruction set that this machine has and this file knows, best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && is_x86_feature_detected!("avx512bf16") && x86::pairs_round_as_chains() {
                found.push(Self(Level::Avx512Bf16));
            }
            if avx2 && avx512 {
                found.push(Self(Level::Avx512));
            }
            if avx2 {
                found.push(Self(Level::Avx2));
            }
        }
        found.push(Self(Level::Portable));
        found
    }

    /// The best instruction set of this machine.
    pub(crate) fn detect() -> Self {
        Self::available()[0]
    }

    pub(crate) const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512_bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            Level::Portable => "portable",
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    #[inline]
    pub(crate) fn run<A: Real, K: Kernel<A>>(self, kernel: K) -> K::Out {
        match self.0 {
            // SAFETY: `Self` holds this level only if `available` found its features on this machine.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 | Level::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::run_avx2(kernel) },
            Level::Portable => kernel.run::<A::Portable>(),
        }
    }

    /// Whether [`Self::multiply_pairs`] can be called.
    pub(crate) fn has_pairs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Level::Avx512Bf16 {
            return true;
        }
        false
    }

    /// A product, of operands that hold two bf16 per element if `pairs` says so.
    pub(crate) fn multiply<A: Accum>(self, pairs: bool, product: Multiply<'_, A>) {
        #[cfg(target_arch = "x86_64")]
        if pairs && self.0 == Level::Avx512Bf16 {
            let Multiply { band, panels, depth, out, ld, scale, add } = product;
            let scale = scale.map(|(rows, cols)| (bytemuck::cast_slice(rows), bytemuck::cast_slice(cols)));
            let (band, panels) = (bytemuck::cast_slice(band), bytemuck::cast_slice(panels));
            let out = bytemuck::cast_slice_mut(out);
            // SAFETY: as in `run`.
            return unsafe { x86::multiply_pairs(Multiply { band, panels, depth, out, ld, scale, add }) };
        }
        debug_assert!(!pairs, "only what has them packs pairs");
        self.run(product);
    }

    /// Rows of a register tile on both sides, `(MR, NR)`.
    pub(crate) fn register_rows<A: Real>(self) -> (usize, usize) {
        const fn of<A, S: Simd<A>>() -> (usize, usize) {
            (S::MR, S::NR)
        }
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 | Level::Avx512 => of::<A, A::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => of::<A, A::Avx2>(),
            Level::Portable => of::<A, A::Portable>(),
        }
    }
}

/// Vectors as arrays, for machines without a better implementation here; the compiler may still use what they have.
#[derive(Clone, Copy, Debug)]
pub struct PortableLanes;

/// Whether `mul_add` is one instruction in the baseline that this crate is compiled for; where it is not, it would be a
/// call to a library function.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

impl<A: Accum> Simd<A> for PortableLanes {
    type V = [A; 4];
    const LANES: usize = 4;
    const MR: usize = 4;
    const NR: usize = 8;
    #[inline(always)]
    fn splat(x: A) -> [A; 4] {
        [x; 4]
    }
    #[inline(always)]
    fn load(x: &[A]) -> [A; 4] {
        [x[0], x[1], x[2], x[3]]
    }
    #[inline(always)]
    fn store(v: [A; 4], x: &mut [A]) {
        x[..4].copy_from_slice(&v);
    }
    #[inline(always)]
    fn add(a: [A; 4], b: [A; 4]) -> [A; 4] {
        std::array::from_fn(|l| a[l] + b[l])
    }
    #[inline(always)]
    fn mul(a: [A; 4], b: [A; 4]) -> [A; 4] {
        std::array::from_fn(|l| a[l] * b[l])
    }
    #[inline(always)]
    fn max(a: [A; 4], b: [A; 4]) -> [A; 4] {
        std::array::from_fn(|l| a[l].larger(b[l]))
    }
    #[inline(always)]
    fn min(a: [A; 4], b: [A; 4]) -> [A; 4] {
        std::array::from_fn(|l| a[l].smaller(b[l]))
    }
    #[inline(always)]
    fn mul_add(a: [A; 4], b: [A; 4], c: [A; 4]) -> [A; 4] {
        std::array::from_fn(|l| <Self as Simd<A>>::mul_add_one(a[l], b[l], c[l]))
    }
    #[inline(always)]
    fn mul_add_one(a: A, b: A, c: A) -> A {
        if FUSED { a.fused_mul_add(b, c) } else { a * b + c }
    }
    #[inline(always)]
    fn micro(a: &[A], b: &[A], out: &mut [A], ld: usize, stage: Stage<'_, A>) {
        register_tile::<A, Self, 4, 2, K_BLOCK>(a, b, out, ld, stage);
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Lanes for f32 {
    type Portable = PortableLanes;
}
#[cfg(not(target_arch = "x86_64"))]
impl Lanes for f64 {
    type Portable = PortableLanes;
}
