//! Run-time choice of the instruction set, and the register-blocked product of packed tiles.
//!
//! This is the only file with intrinsics. A [`Kernel`] is a loop written once in safe code; [`Isa::run`] compiles it
//! for every instruction set and calls the one that this machine has.
//!
//! A similarity is the sum over blocks of [`K_BLOCK`] features, in ascending order, of one sequential multiply-add
//! chain per block. Nothing else enters: tiles at the edge are padded with zero rows, never with shorter chains. So a
//! similarity does not depend on where in a tile it sits, on the shape of the problem, or on the threads. A single
//! chain over all features would keep that too, but its rounding error grows with the partial sum: at 1024 features and
//! a similarity of 1 it passes 1e-6, the blocked sum stays below half of that.

use super::real::Real;

/// Features per multiply-add chain. A panel of `Y` of this depth (16 KiB) stays in the first-level cache while all
/// panels of a band of `X` pass over it.
pub(crate) const K_BLOCK: usize = 128;

/// Vector operations of one instruction set on one element type.
///
/// The implementations other than the portable one may be called only on a machine with that instruction set, which
/// [`Isa::run`] guarantees: it is the one place that hands them to a [`Kernel`].
pub trait Simd<A>: 'static {
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
}

/// The instruction sets of an element type.
pub trait Lanes: Sized {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Self>;
    type Portable: Simd<Self>;
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
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
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

/// What a register tile does with its sums.
#[derive(Clone, Copy)]
pub struct Stage<'a, A> {
    /// The first block of features overwrites the tile, later ones add to it.
    pub first: bool,
    /// After the last block: factors per row and per column of the tile, applied as `sum * (row * column)`.
    pub scale: Option<(&'a [A], &'a [A])>,
}

/// `out[r, c] (+)= Σ_k a[r, k] b[k, c]` for `MR` rows and `NV` vectors of columns, then the scaling of `stage`.
///
/// `a` is `(MR, K_BLOCK)`, `b` is `(k, NR)` for any `k` up to `K_BLOCK`, `out` has row stride `ld`.
#[inline(always)]
fn register_tile<A: Real, S: Simd<A>, const MR: usize, const NV: usize>(
    a: &[A],
    b: &[A],
    out: &mut [A],
    ld: usize,
    stage: Stage<'_, A>,
) {
    let (a, _) = a.as_chunks::<K_BLOCK>();
    let Ok(a) = <&[[A; K_BLOCK]; MR]>::try_from(a) else { return };
    let mut acc = [[S::splat(A::ZERO); NV]; MR];
    for (k, b) in (0..K_BLOCK).zip(b.chunks_exact(NV * S::LANES)) {
        let mut columns = [S::splat(A::ZERO); NV];
        for (v, column) in columns.iter_mut().enumerate() {
            *column = S::load(&b[v * S::LANES..]);
        }
        for r in 0..MR {
            let x = S::splat(a[r][k]);
            for v in 0..NV {
                acc[r][v] = S::mul_add(x, columns[v], acc[r][v]);
            }
        }
    }
    for r in 0..MR {
        for v in 0..NV {
            let out = &mut out[r * ld + v * S::LANES..][..S::LANES];
            let mut sum = if stage.first { acc[r][v] } else { S::add(S::load(out), acc[r][v]) };
            if let Some((rows, columns)) = stage.scale {
                sum = S::mul(sum, S::mul(S::splat(rows[r]), S::load(&columns[v * S::LANES..])));
            }
            S::store(sum, out);
        }
    }
}

/// Product of a packed band of `X` and consecutive packed panels of `Y`; kernel of [`Isa::run`].
pub(crate) struct Multiply<'a, A> {
    /// `(k blocks, tiles of MR rows, MR, K_BLOCK)`
    pub(crate) band: &'a [A],
    /// `(panels, depth, NR)`
    pub(crate) panels: &'a [A],
    /// Features.
    pub(crate) depth: usize,
    /// `(tiles * MR, panels * NR)`, row stride `panels * NR`.
    pub(crate) out: &'a mut [A],
    /// Factors per row and per column of `out`.
    pub(crate) scale: Option<(&'a [A], &'a [A])>,
}

impl<A: Real> Kernel<A> for Multiply<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let blocks = self.depth.div_ceil(K_BLOCK);
        let tile_len = S::MR * K_BLOCK;
        let ld = self.panels.len() / self.depth;
        for (block, slab) in self.band.chunks_exact(self.band.len() / blocks).enumerate() {
            let k0 = block * K_BLOCK;
            let k1 = self.depth.min(k0 + K_BLOCK);
            for (p, panel) in self.panels.chunks_exact(self.depth * S::NR).enumerate() {
                let columns = &panel[k0 * S::NR..k1 * S::NR];
                for (t, tile) in slab.chunks_exact(tile_len).enumerate() {
                    let scale = match self.scale {
                        Some((rows, cols)) if k1 == self.depth => Some((&rows[t * S::MR..], &cols[p * S::NR..])),
                        _ => None,
                    };
                    let stage = Stage { first: block == 0, scale };
                    S::micro(tile, columns, &mut self.out[t * S::MR * ld + p * S::NR..], ld, stage);
                }
            }
        }
    }
}

/// The diagonal of the product alone: entry `r` of `out` is row `r` of the band times column `first + r` of the panels,
/// with the bits that [`Multiply`] gives it. Entries whose column is beyond the panels are left alone.
pub(crate) struct Diagonal<'a, A> {
    /// As in [`Multiply`].
    pub(crate) band: &'a [A],
    /// As in [`Multiply`].
    pub(crate) panels: &'a [A],
    /// As in [`Multiply`].
    pub(crate) depth: usize,
    /// Column of the panels that belongs to row 0 of the band.
    pub(crate) first: usize,
    /// As in [`Multiply`], the columns' factors counted from column 0 of the panels.
    pub(crate) scale: Option<(&'a [A], &'a [A])>,
    /// One entry per row.
    pub(crate) out: &'a mut [A],
}

impl<A: Real> Kernel<A> for Diagonal<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        // Rows at a time: one chain is bound by the latency of its additions, eight hide it.
        const GROUP: usize = 8;
        let blocks = self.depth.div_ceil(K_BLOCK);
        let slab_len = self.band.len() / blocks;
        for (g, out) in self.out.chunks_mut(GROUP).enumerate() {
            let row = |l: usize| (g * GROUP + l.min(out.len() - 1)) * K_BLOCK;
            let column = |l: usize| {
                let c = self.first + g * GROUP + l.min(out.len() - 1);
                c / S::NR * self.depth * S::NR + c % S::NR
            };
            let rows: [usize; GROUP] = std::array::from_fn(row);
            let columns: [usize; GROUP] = std::array::from_fn(column);
            let mut total = [A::ZERO; GROUP];
            for block in 0..blocks {
                let k0 = block * K_BLOCK;
                let mut acc = [A::ZERO; GROUP];
                for k in 0..K_BLOCK.min(self.depth - k0) {
                    for l in 0..GROUP {
                        let x = self.band[block * slab_len + rows[l] + k];
                        acc[l] = S::mul_add_one(x, self.panels[columns[l] + (k0 + k) * S::NR], acc[l]);
                    }
                }
                for l in 0..GROUP {
                    total[l] = if block == 0 { acc[l] } else { total[l] + acc[l] };
                }
            }
            for (l, out) in out.iter_mut().enumerate() {
                let r = g * GROUP + l;
                *out = match self.scale {
                    Some((x, y)) => total[l] * (x[r] * y[self.first + r]),
                    None => total[l],
                };
            }
        }
    }
}

/// Puts one row of `X`, times `factor`, into its place in a band: blocks of [`K_BLOCK`] features, `slab_len` apart.
pub(crate) struct PackRow<'a, A> {
    pub(crate) src: &'a [A],
    pub(crate) factor: A,
    /// The band from this row's first block on.
    pub(crate) dst: &'a mut [A],
    pub(crate) slab_len: usize,
}

impl<A: Real> Kernel<A> for PackRow<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        for (src, dst) in self.src.chunks(K_BLOCK).zip(self.dst.chunks_mut(self.slab_len)) {
            for (src, dst) in src.iter().zip(dst) {
                *dst = *src * self.factor;
            }
        }
    }
}

/// Transposes up to `NR` rows of `Y`, each times its factor, into a panel `(features, NR)`; missing rows become 0.
pub(crate) struct PackPanel<'a, A> {
    /// Rows `ld` elements apart.
    pub(crate) src: &'a [A],
    pub(crate) ld: usize,
    /// One per row.
    pub(crate) factors: &'a [A],
    pub(crate) dst: &'a mut [A],
}

impl<A: Real> Kernel<A> for PackPanel<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        if self.factors.len() < S::NR {
            self.dst.fill(A::ZERO);
        }
        // Blocks of 16 features: the destination lines of a block stay in the cache while all rows write to them.
        const STEP: usize = 16;
        for (block, dst) in self.dst.chunks_mut(STEP * S::NR).enumerate() {
            for (r, &factor) in self.factors.iter().enumerate() {
                let src = &self.src[r * self.ld + block * STEP..][..dst.len() / S::NR];
                for (k, x) in src.iter().enumerate() {
                    dst[k * S::NR + r] = *x * factor;
                }
            }
        }
    }
}

/// Vectors as arrays, for machines without a better implementation here; the compiler may still use what they have.
#[derive(Clone, Copy, Debug)]
pub struct PortableLanes;

/// Whether `mul_add` is one instruction in the baseline that this crate is compiled for; where it is not, it would be a
/// call to a library function.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

impl<A: Real + 'static> Simd<A> for PortableLanes {
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

    use super::{Kernel, Lanes, PortableLanes, Real, Simd, Stage, register_tile};

    /// # Safety
    /// The machine has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn run_avx512<A: Real, K: Kernel<A>>(kernel: K) -> K::Out {
        kernel.run::<A::Avx512>()
    }

    /// # Safety
    /// The machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
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
         $mul:ident, $max:ident, $min:ident, $fmadd:ident) => {
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
            }
        };
    }
    #[rustfmt::skip]
    simd!(Avx512Lanes, f32, __m512, 16, 8, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
          _mm512_mul_ps, _mm512_max_ps, _mm512_min_ps, _mm512_fmadd_ps);
    #[rustfmt::skip]
    simd!(Avx512Lanes, f64, __m512d, 8, 8, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd,
          _mm512_mul_pd, _mm512_max_pd, _mm512_min_pd, _mm512_fmadd_pd);
    #[rustfmt::skip]
    simd!(Avx2Lanes, f32, __m256, 8, 6, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
          _mm256_mul_ps, _mm256_max_ps, _mm256_min_ps, _mm256_fmadd_ps);
    #[rustfmt::skip]
    simd!(Avx2Lanes, f64, __m256d, 4, 6, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd,
          _mm256_mul_pd, _mm256_max_pd, _mm256_min_pd, _mm256_fmadd_pd);
}
