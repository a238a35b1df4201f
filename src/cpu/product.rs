//! The register-blocked product of packed tiles.
//!
//! A similarity is the sum over blocks of [`K_BLOCK`] features, in ascending order, of one sequential multiply-add
//! chain per block. Nothing else enters: tiles at the edge are padded with zero rows, never with shorter chains. So a
//! similarity does not depend on where in a tile it sits, on the shape of the problem, or on the threads. A single
//! chain over all features would keep that too, but its rounding error grows with the partial sum: at 1024 features and
//! a similarity of 1 it passes 1e-6, the blocked sum stays below half of that.

use std::marker::PhantomData;

use super::real::Real;
use super::tile::{Kernel, Simd};

/// Features per multiply-add chain. A panel of `Y` of this depth (16 KiB) stays in the first-level cache while all
/// panels of a band of `X` pass over it.
pub(crate) const K_BLOCK: usize = 128;

/// Elements of at most a cache line.
const LINE: usize = 16;

/// What a register tile does with its sums.
#[derive(Clone, Copy)]
pub struct Stage<'a, A> {
    /// The first block of features overwrites the tile, later ones add to it.
    pub first: bool,
    /// After the last block: factors per row and per column of the tile, applied as `sum * (row * column)`.
    pub scale: Option<(&'a [A], &'a [A])>,
    /// What is read soon, at most [`K_BLOCK`] cache lines.
    pub ahead: &'a [A],
}

/// `out[r, c] (+)= Σ_k a[r, k] b[k, c]` for `MR` rows and `NV` vectors of columns, then the scaling of `stage`.
///
/// `a` is `(MR, BLOCK)`, `b` is `(k, NR)` for any `k` up to `BLOCK`, `out` has row stride `ld`.
#[inline(always)]
pub(crate) fn register_tile<A: Real, S: Simd<A>, const MR: usize, const NV: usize, const BLOCK: usize>(
    a: &[A],
    b: &[A],
    out: &mut [A],
    ld: usize,
    stage: Stage<'_, A>,
) {
    let (a, _) = a.as_chunks::<BLOCK>();
    let Ok(a) = <&[[A; BLOCK]; MR]>::try_from(a) else { return };
    let mut acc = [[S::splat(A::ZERO); NV]; MR];
    for (k, b) in (0..BLOCK).zip(b.chunks_exact(NV * S::LANES)) {
        let mut columns = [S::splat(A::ZERO); NV];
        if let Some(line) = stage.ahead.get(k * LINE) {
            S::prefetch(line);
        }
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

/// How operands are packed, and the register tile for it.
pub(crate) trait Micro<A> {
    /// Rows of `X` per register tile.
    const MR: usize;
    /// Rows of `Y` per register tile.
    const NR: usize;
    /// Elements per row and block of a band: [`K_BLOCK`] features.
    const BLOCK: usize;
    fn tile(a: &[A], b: &[A], out: &mut [A], ld: usize, stage: Stage<'_, A>);
}

/// An element per feature.
struct Single<S>(PhantomData<S>);

impl<A: Real, S: Simd<A>> Micro<A> for Single<S> {
    const MR: usize = S::MR;
    const NR: usize = S::NR;
    const BLOCK: usize = K_BLOCK;
    #[inline(always)]
    fn tile(a: &[A], b: &[A], out: &mut [A], ld: usize, stage: Stage<'_, A>) {
        S::micro(a, b, out, ld, stage);
    }
}

/// Product of a packed band of `X` and consecutive packed panels of `Y`; kernel of [`Isa::run`].
pub(crate) struct Multiply<'a, A> {
    /// `(k blocks, tiles of MR rows, MR, BLOCK)`
    pub(crate) band: &'a [A],
    /// `(panels, depth, NR)`
    pub(crate) panels: &'a [A],
    /// Features, or pairs of them.
    pub(crate) depth: usize,
    /// `(tiles * MR, panels * NR)`
    pub(crate) out: &'a mut [A],
    /// Row stride of `out`, at least `panels * NR`.
    pub(crate) ld: usize,
    /// Factors per row and per column of `out`.
    pub(crate) scale: Option<(&'a [A], &'a [A])>,
    /// Whether the product is added to what `out` holds.
    pub(crate) add: bool,
}

impl<A: Real> Kernel<A> for Multiply<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        self.tiles::<Single<S>>();
    }
}

impl<A: Real> Multiply<'_, A> {
    /// Tile by tile.
    #[inline(always)]
    pub(crate) fn tiles<S: Micro<A>>(self) {
        let blocks = self.depth.div_ceil(S::BLOCK);
        let tile_len = S::MR * S::BLOCK;
        let ld = self.ld;
        for (block, slab) in self.band.chunks_exact(self.band.len() / blocks).enumerate() {
            let k0 = block * S::BLOCK;
            let k1 = self.depth.min(k0 + S::BLOCK);
            let tiles = slab.len() / tile_len;
            for (p, panel) in self.panels.chunks_exact(self.depth * S::NR).enumerate() {
                // Of the next panel the same block, of the last one's successors the first panel's next block. The
                // hardware does not foresee either jump.
                let ahead = match p * self.depth * S::NR {
                    at if at + panel.len() < self.panels.len() => at + panel.len() + k0 * S::NR,
                    _ => k1 * S::NR,
                };
                let ahead = self.panels.get(ahead..ahead + (k1 - k0) * S::NR).unwrap_or(&[]);
                let share = ahead.len().div_ceil(tiles).next_multiple_of(LINE).max(LINE);
                let columns = &panel[k0 * S::NR..k1 * S::NR];
                for (t, tile) in slab.chunks_exact(tile_len).enumerate() {
                    let scale = match self.scale {
                        Some((rows, cols)) if k1 == self.depth => Some((&rows[t * S::MR..], &cols[p * S::NR..])),
                        _ => None,
                    };
                    let ahead = ahead.chunks(share).nth(t).unwrap_or(&[]);
                    let stage = Stage { first: block == 0 && !self.add, scale, ahead };
                    S::tile(tile, columns, &mut self.out[t * S::MR * ld + p * S::NR..], ld, stage);
                }
            }
        }
    }
}

/// The diagonal of the product of as many rows as columns, with the bits that [`Multiply`] gives it.
pub(crate) struct Diagonal<'a, A> {
    /// As in [`Multiply`].
    pub(crate) band: &'a [A],
    /// As in [`Multiply`].
    pub(crate) panels: &'a [A],
    /// As in [`Multiply`].
    pub(crate) depth: usize,
    /// As in [`Multiply`].
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
                let c = g * GROUP + l.min(out.len() - 1);
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
                    Some((x, y)) => total[l] * (x[r] * y[r]),
                    None => total[l],
                };
            }
        }
    }
}
