//! Run-time choice of the instruction set, and its vectors.
//!
//! This is the only file with intrinsics. A [`Kernel`] is a loop written once in safe code; [`Isa::run`] compiles it
//! for every instruction set and calls the one that this machine has.

use bytemuck::Zeroable;
use half::{bf16, f16};

use super::product::{Stage, register_tile};
use super::real::Real;
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
            Level::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::run_avx2(kernel) },
            Level::Portable => kernel.run::<A::Portable>(),
        }
    }

    /// Rows of a register tile on both sides, `(MR, NR)`.
    pub(crate) fn register_rows<A: Real>(self) -> (usize, usize) {
        const fn of<A, S: Simd<A>>() -> (usize, usize) {
            (S::MR, S::NR)
        }
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => of::<A, A::Avx512>(),
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
        register_tile::<A, Self, 4, 2>(a, b, out, ld, stage);
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{Kernel, Lanes, PortableLanes, Real, Simd, Stage, register_tile};

    /// # Safety
    /// The machine has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512<A: Real, K: Kernel<A>>(kernel: K) -> K::Out {
        kernel.run::<A::Avx512>()
    }

    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2<A: Real, K: Kernel<A>>(kernel: K) -> K::Out {
        kernel.run::<A::Avx2>()
    }

    #[derive(Clone, Copy, Debug)]
    pub struct Avx512Lanes;
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2Lanes;

    // 8 x 2 accumulators of 16 need 19 of the 32 registers of AVX-512 and give the multiply-adds more independent
    // chains than they take cycles; 8 also divides the usual batch sizes, so that no row is padding. AVX2 has 16
    // registers: 6 x 2 accumulators, 2 columns and 1 row.
    impl Lanes for f32 {
        type Avx512 = Avx512Lanes;
        type Avx2 = Avx2Lanes;
        type Portable = PortableLanes;
    }
    impl Lanes for f64 {
        type Avx512 = Avx512Lanes;
        type Avx2 = Avx2Lanes;
        type Portable = PortableLanes;
    }

    macro_rules! simd {
        ($name:ident, $t:ty, $v:ty, $lanes:literal, $mr:literal, $set1:ident, $loadu:ident, $storeu:ident, $add:ident,
         $mul:ident, $max:ident, $min:ident, $fmadd:ident, {$($stored:item)*}) => {
            impl Simd<$t> for $name {
                type V = $v;
                const LANES: usize = $lanes;
                const MR: usize = $mr;
                const NR: usize = 2 * $lanes;
                #[inline(always)]
                fn splat(x: $t) -> $v {
                    // SAFETY: the machine has the instruction, see `Simd`.
                    unsafe { $set1(x) }
                }
                #[inline(always)]
                fn load(x: &[$t]) -> $v {
                    let x = &x[..$lanes];
                    // SAFETY: `x` has as many elements as are read; the machine has the instruction, see `Simd`.
                    unsafe { $loadu(x.as_ptr()) }
                }
                #[inline(always)]
                fn store(v: $v, x: &mut [$t]) {
                    let x = &mut x[..$lanes];
                    // SAFETY: `x` has as many elements as are written; the machine has the instruction, see `Simd`.
                    unsafe { $storeu(x.as_mut_ptr(), v) }
                }
                #[inline(always)]
                fn add(a: $v, b: $v) -> $v {
                    // SAFETY: the machine has the instruction, see `Simd`.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                fn mul(a: $v, b: $v) -> $v {
                    // SAFETY: the machine has the instruction, see `Simd`.
                    unsafe { $mul(a, b) }
                }
                #[inline(always)]
                fn max(a: $v, b: $v) -> $v {
                    // SAFETY: the machine has the instruction, see `Simd`.
                    unsafe { $max(a, b) }
                }
                #[inline(always)]
                fn min(a: $v, b: $v) -> $v {
                    // SAFETY: the machine has the instruction, see `Simd`.
                    unsafe { $min(a, b) }
                }
                #[inline(always)]
                fn mul_add(a: $v, b: $v, c: $v) -> $v {
                    // SAFETY: the machine has the instruction, see `Simd`.
                    unsafe { $fmadd(a, b, c) }
                }
                #[inline(always)]
                fn mul_add_one(a: $t, b: $t, c: $t) -> $t {
                    a.mul_add(b, c)
                }
                #[inline(always)]
                fn micro(a: &[$t], b: &[$t], out: &mut [$t], ld: usize, stage: Stage<'_, $t>) {
                    register_tile::<$t, Self, $mr, 2>(a, b, out, ld, stage);
                }
                $($stored)*
            }
        };
    }
    #[rustfmt::skip]
    simd!(Avx512Lanes, f32, __m512, 16, 8, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
          _mm512_mul_ps, _mm512_max_ps, _mm512_min_ps, _mm512_fmadd_ps, {
        #[inline(always)]
        fn transpose_8x8(src: &[f32], src_ld: usize, dst: &mut [f32], dst_ld: usize) {
            transpose_8x8(src, src_ld, dst, dst_ld);
        }
        #[inline(always)]
        fn load_f16(x: &[f16]) -> __m512 {
            let x = &x[..16];
            // SAFETY: `x` has the 32 bytes that are read; the machine has the instructions, see `Simd`.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_bf16(x: &[bf16]) -> __m512 {
            let x = &x[..16];
            // SAFETY: `x` has the 32 bytes that are read; the machine has the instructions, see `Simd`.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        fn store_f16(v: __m512, x: &mut [f16]) {
            let x = &mut x[..16];
            // SAFETY: `x` has the 32 bytes that are written; the machine has the instructions, see `Simd`.
            unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_NO_EXC>(v)) }
        }
        #[inline(always)]
        fn store_bf16(v: __m512, x: &mut [bf16]) {
            let x = &mut x[..16];
            // SAFETY: `x` has the 32 bytes that are written; the machine has the instructions, see `Simd`.
            unsafe {
                // Adding half a unit less the lowest kept bit rounds to even; a NaN must not carry into infinity.
                let bits = _mm512_castps_si512(v);
                let high = _mm512_srli_epi32::<16>(bits);
                let half = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let kept = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
                _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(kept));
            }
        }
    });
    #[rustfmt::skip]
    simd!(Avx512Lanes, f64, __m512d, 8, 8, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd,
          _mm512_mul_pd, _mm512_max_pd, _mm512_min_pd, _mm512_fmadd_pd, {});
    #[rustfmt::skip]
    simd!(Avx2Lanes, f32, __m256, 8, 6, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
          _mm256_mul_ps, _mm256_max_ps, _mm256_min_ps, _mm256_fmadd_ps, {
        #[inline(always)]
        fn transpose_8x8(src: &[f32], src_ld: usize, dst: &mut [f32], dst_ld: usize) {
            transpose_8x8(src, src_ld, dst, dst_ld);
        }
        #[inline(always)]
        fn load_f16(x: &[f16]) -> __m256 {
            let x = &x[..8];
            // SAFETY: `x` has the 16 bytes that are read; the machine has the instructions, see `Simd`.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_bf16(x: &[bf16]) -> __m256 {
            let x = &x[..8];
            // SAFETY: `x` has the 16 bytes that are read; the machine has the instructions, see `Simd`.
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        fn store_f16(v: __m256, x: &mut [f16]) {
            let x = &mut x[..8];
            // SAFETY: `x` has the 16 bytes that are written; the machine has the instructions, see `Simd`.
            unsafe { _mm_storeu_si128(x.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
        }
        #[inline(always)]
        fn store_bf16(v: __m256, x: &mut [bf16]) {
            let x = &mut x[..8];
            // SAFETY: `x` has the 16 bytes that are written; the machine has the instructions, see `Simd`.
            unsafe {
                // As with 16 lanes.
                let bits = _mm256_castps_si256(v);
                let high = _mm256_srli_epi32::<16>(bits);
                let half = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
                let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
                let kept = _mm256_blendv_epi8(rounded, quiet, nan);
                let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(_mm256_packus_epi32(kept, kept));
                _mm_storeu_si128(x.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
            }
        }
    });
    #[rustfmt::skip]
    simd!(Avx2Lanes, f64, __m256d, 4, 6, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd,
          _mm256_mul_pd, _mm256_max_pd, _mm256_min_pd, _mm256_fmadd_pd, {});

    /// [`Simd::transpose_8x8`] by three rounds of pairwise exchange. No closures: they would be compiled for the baseline.
    #[inline(always)]
    fn transpose_8x8(src: &[f32], src_ld: usize, dst: &mut [f32], dst_ld: usize) {
        let mut rows = [<Avx2Lanes as Simd<f32>>::splat(0.0); 8];
        for r in 0..8 {
            rows[r] = <Avx2Lanes as Simd<f32>>::load(&src[r * src_ld..]);
        }
        let mut fours = rows;
        // SAFETY: the machine has the instructions, see `Simd`.
        unsafe {
            for q in [0, 4] {
                let (a, b) = (_mm256_unpacklo_ps(rows[q], rows[q + 1]), _mm256_unpackhi_ps(rows[q], rows[q + 1]));
                let (c, d) =
                    (_mm256_unpacklo_ps(rows[q + 2], rows[q + 3]), _mm256_unpackhi_ps(rows[q + 2], rows[q + 3]));
                fours[q] = _mm256_shuffle_ps::<0x44>(a, c);
                fours[q + 1] = _mm256_shuffle_ps::<0xee>(a, c);
                fours[q + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                fours[q + 3] = _mm256_shuffle_ps::<0xee>(b, d);
            }
            for k in 0..4 {
                rows[k] = _mm256_permute2f128_ps::<0x20>(fours[k], fours[k + 4]);
                rows[k + 4] = _mm256_permute2f128_ps::<0x31>(fours[k], fours[k + 4]);
            }
        }
        for k in 0..8 {
            <Avx2Lanes as Simd<f32>>::store(rows[k], &mut dst[k * dst_ld..]);
        }
    }
}
