//! The vectors of AVX2 and AVX-512. The only file with intrinsics.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::product::{K_BLOCK, Micro, Multiply, Stage, register_tile};
use super::real::Real;
use super::tile::{Kernel, Lanes, PortableLanes, Simd};

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

/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn multiply_pairs(product: Multiply<'_, f32>) {
    product.tiles::<Pairs>();
}

/// The lanes of AVX-512, of which a multiply-add takes two products of bf16 instead of one of f32.
struct PairLanes;

impl Simd<f32> for PairLanes {
    type V = __m512;
    const LANES: usize = 16;
    const MR: usize = <Avx512Lanes as Simd<f32>>::MR;
    const NR: usize = <Avx512Lanes as Simd<f32>>::NR;
    #[inline(always)]
    fn splat(x: f32) -> __m512 {
        // As an integer: what it holds is no f32.
        // SAFETY: the machine has the instruction, see `Simd`.
        unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(x.to_bits() as i32)) }
    }
    #[inline(always)]
    fn load(x: &[f32]) -> __m512 {
        Avx512Lanes::load(x)
    }
    #[inline(always)]
    fn store(v: __m512, x: &mut [f32]) {
        Avx512Lanes::store(v, x);
    }
    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        <Avx512Lanes as Simd<f32>>::add(a, b)
    }
    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        <Avx512Lanes as Simd<f32>>::mul(a, b)
    }
    #[inline(always)]
    fn max(a: __m512, b: __m512) -> __m512 {
        <Avx512Lanes as Simd<f32>>::max(a, b)
    }
    #[inline(always)]
    fn min(a: __m512, b: __m512) -> __m512 {
        <Avx512Lanes as Simd<f32>>::min(a, b)
    }
    #[inline(always)]
    fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: vectors of the same size; the machine has the instruction, see `Simd`.
        unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a);
            let b = std::mem::transmute::<__m512, __m512bh>(b);
            _mm512_dpbf16_ps(c, a, b)
        }
    }
    #[inline(always)]
    fn mul_add_one(a: f32, b: f32, c: f32) -> f32 {
        let half =
            |x: f32, high: bool| f32::from_bits(if high { x.to_bits() & 0xffff_0000 } else { x.to_bits() << 16 });
        half(a, false).mul_add(half(b, false), half(a, true).mul_add(half(b, true), c))
    }
    #[inline(always)]
    fn prefetch(x: &f32) {
        <Avx512Lanes as Simd<f32>>::prefetch(x);
    }
    #[inline(always)]
    fn micro(a: &[f32], b: &[f32], out: &mut [f32], ld: usize, stage: Stage<'_, f32>) {
        Pairs::tile(a, b, out, ld, stage);
    }
}

/// Two bf16 per element; see [`super::pairs`].
struct Pairs;

impl Micro<f32> for Pairs {
    const MR: usize = <Avx512Lanes as Simd<f32>>::MR;
    const NR: usize = <Avx512Lanes as Simd<f32>>::NR;
    const BLOCK: usize = K_BLOCK / 2;
    #[inline(always)]
    fn tile(a: &[f32], b: &[f32], out: &mut [f32], ld: usize, stage: Stage<'_, f32>) {
        const MR: usize = <Avx512Lanes as Simd<f32>>::MR;
        register_tile::<f32, PairLanes, MR, 2, { K_BLOCK / 2 }>(a, b, out, ld, stage);
    }
}

/// Whether the products of pairs round as two fused multiply-adds do, as they should: asked once.
pub(super) fn pairs_round_as_chains() -> bool {
    static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| {
        // Mantissas of 8 bits, and sums of all magnitudes beside them.
        let number =
            |i: u32| f32::from_bits((0x3f00_0000 + (i.wrapping_mul(0x9e37_79b1) >> 5 & 0x00ff_0000)) | (i & 1) << 31);
        (0..4096u32).all(|i| {
            let [x0, y0, x1, y1] = [0, 1, 2, 3].map(|k| number(4 * i + k + i % 7));
            let sum = number(i * 77) * 1.000_1 * f32::from_bits((117 + i % 20) << 23);
            let pair = |first: f32, second: f32| first.to_bits() & 0xffff_0000 | second.to_bits() >> 16;
            // SAFETY: the caller has found the instruction on this machine.
            let got = unsafe { add_pair(pair(x0, x1), pair(y0, y1), sum) };
            got.to_bits() == x1.mul_add(y1, x0.mul_add(y0, sum)).to_bits()
        })
    })
}

/// # Safety
/// The machine has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn add_pair(x: u32, y: u32, sum: f32) -> f32 {
    let (x, y) = (_mm512_set1_epi32(x.cast_signed()), _mm512_set1_epi32(y.cast_signed()));
    // SAFETY: vectors of the same size; every bit pattern is one of bf16.
    let (x, y) = unsafe { (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(y)) };
    _mm512_cvtss_f32(_mm512_dpbf16_ps(_mm512_set1_ps(sum), x, y))
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
            fn prefetch(x: &$t) {
                // SAFETY: a prefetch reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()) }
            }
            #[inline(always)]
            fn micro(a: &[$t], b: &[$t], out: &mut [$t], ld: usize, stage: Stage<'_, $t>) {
                register_tile::<$t, Self, $mr, 2, K_BLOCK>(a, b, out, ld, stage);
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
            let (c, d) = (_mm256_unpacklo_ps(rows[q + 2], rows[q + 3]), _mm256_unpackhi_ps(rows[q + 2], rows[q + 3]));
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
