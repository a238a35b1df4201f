//! Packing: rows of `Y` into panels, rows of `X` into bands, converted and scaled on the way.

use std::ops::Range;

use super::pairs::words;
use super::pool::{Cpu, Scratch};
use super::product::K_BLOCK;
use super::real::Real;
use super::row_norms::RowScale;
use super::tile::{Kernel, Simd, load, load_part, store_part};
use crate::dtype::Element;
use crate::matrix::MatRef;

/// Elements of packed `Y` held at a time: 16 MiB of `f32`, about a last-level cache. A larger `Y` goes through in
/// slices.
pub(super) const SLICE_ELEMENTS: usize = 4 << 20;

/// Rows of a matrix with the factors that make them unit rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a, T: Element> {
    pub(super) mat: MatRef<'a, T>,
    /// `None`: the rows are taken as they are.
    pub(super) scales: Option<&'a [RowScale<T::Acc>]>,
}

impl<T: Element> Rows<'_, T> {
    pub(super) fn scale(&self, row: usize) -> RowScale<T::Acc> {
        self.scales.map_or(RowScale::IDENTITY, |s| s[row])
    }
}

/// Consecutive rows of `Y` in packed form.
pub(super) struct Panels<'c, A> {
    data: Scratch<'c, A>,
    /// `1 / |y|` per row, 0 for padding; `None` where the rows are taken as they are.
    inv: Option<Vec<A>>,
    cols: Range<usize>,
    nr: usize,
    depth: usize,
}

impl<A: Real + bytemuck::Pod> Panels<'_, A> {
    /// Whether they are the panels of exactly these columns.
    pub(super) fn holds(&self, cols: &Range<usize>) -> bool {
        self.cols == *cols
    }

    /// The panels that hold the columns `cols`, which start at a panel's edge, and their factors.
    pub(super) fn of(&self, cols: &Range<usize>) -> (&[A], Option<&[A]>) {
        let first = (cols.start - self.cols.start) / self.nr;
        let last = (cols.end - self.cols.start).div_ceil(self.nr);
        let inv = self.inv.as_ref().map(|inv| &inv[first * self.nr..last * self.nr]);
        (&self.data[first * self.depth * self.nr..last * self.depth * self.nr], inv)
    }
}

/// Slices of `columns` columns of `depth` features, each a multiple of `block` columns wide but for the last.
pub(super) fn slices(columns: usize, depth: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    let width = (SLICE_ELEMENTS / depth / block).max(1) * block;
    (0..columns).step_by(width).map(move |start| start..(start + width).min(columns))
}

/// Who packs panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packer {
    /// All threads: for panels that all of them read.
    All,
    /// The calling thread, which is also the one that reads them: what another thread has written is slow to read.
    Caller,
}

/// Packs the rows `cols` of `y`, panel by panel.
pub(super) fn pack_panels<'c, T: Element>(
    cpu: &'c Cpu,
    y: Rows<'_, T>,
    cols: &Range<usize>,
    packer: Packer,
    pairs: bool,
) -> Panels<'c, T::Acc> {
    let (_, nr) = cpu.isa().register_rows::<T::Acc>();
    let depth = packed_depth(y.mat.cols(), pairs);
    let padded = cols.len().next_multiple_of(nr);
    let mut data = cpu.scratch::<T::Acc>(padded * depth);
    let panels = data.chunks_exact_mut(nr * depth).enumerate();
    let pack = |(p, dst): (usize, &mut [T::Acc])| {
        let first = cols.start + p * nr;
        pack_panel(cpu, y, first..(first + nr).min(cols.end), pairs, dst);
    };
    match packer {
        Packer::All => cpu.each(padded * depth, panels, pack),
        Packer::Caller => panels.for_each(pack),
    }
    let inv = y.scales.map(|scales| {
        let mut inv: Vec<_> = scales[cols.clone()].iter().map(|s| s.inv).collect();
        inv.resize(padded, T::Acc::ZERO);
        inv
    });
    Panels { data, inv, cols: cols.clone(), nr, depth }
}

/// Elements that a row of `depth` features is packed into.
pub(super) fn packed_depth(depth: usize, pairs: bool) -> usize {
    if pairs { depth.div_ceil(2) } else { depth }
}

/// Elements of a packed band of `rows` rows.
pub(super) fn band_len(rows: usize, depth: usize, pairs: bool) -> usize {
    depth.div_ceil(K_BLOCK) * rows * block(pairs)
}

/// Elements of a band's row and block.
fn block(pairs: bool) -> usize {
    packed_depth(K_BLOCK, pairs)
}

fn pack_panel<T: Element>(cpu: &Cpu, y: Rows<'_, T>, rows: Range<usize>, pairs: bool, dst: &mut [T::Acc]) {
    let factors: Vec<T::Acc> = rows.clone().map(|j| y.scale(j).pow2).collect();
    let (ld, cols) = (y.mat.row_stride(), y.mat.cols());
    cpu.isa().run(PackPanel { src: &y.mat.data()[rows.start * ld..], ld, cols, factors: &factors, pairs, dst });
}

/// Transposes up to `NR` rows of `Y`, each times its factor, into a panel `(features, NR)`; missing rows become 0.
struct PackPanel<'a, T: Element> {
    /// Rows `ld` elements apart.
    src: &'a [T],
    ld: usize,
    /// Features.
    cols: usize,
    /// One per row; not looked at in pairs.
    factors: &'a [T::Acc],
    pairs: bool,
    dst: &'a mut [T::Acc],
}

impl<T: Element> Kernel<T::Acc> for PackPanel<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) {
        /// Features at a time: eight rows of them and the panel's part stay in the first-level cache.
        const STEP: usize = 64;
        let Self { src, ld, cols, factors, pairs, dst } = self;
        let mut rows = [T::Acc::ZERO; 8 * STEP];
        for (block, dst) in dst.chunks_mut(STEP * S::NR).enumerate() {
            let depth = dst.len() / S::NR;
            for first in (0..S::NR).step_by(8) {
                for (r, wide) in rows.chunks_exact_mut(STEP).enumerate() {
                    match factors.get(first + r) {
                        Some(_) if pairs => {
                            let row = &src[(first + r) * ld..][..cols];
                            let row = &row[2 * block * STEP..cols.min(2 * (block * STEP + depth))];
                            words(bytemuck::cast_slice(row), &mut wide[..depth]);
                        }
                        Some(&factor) => {
                            let row = &src[(first + r) * ld + block * STEP..][..depth];
                            scale_into::<T, S>(row, factor, &mut wide[..depth]);
                        }
                        None => wide.fill(T::Acc::ZERO),
                    }
                }
                let whole = depth / 8 * 8;
                for k in (0..whole).step_by(8) {
                    S::transpose_8x8(&rows[k..], STEP, &mut dst[k * S::NR + first..], S::NR);
                }
                for k in whole..depth {
                    for r in 0..8 {
                        dst[k * S::NR + first + r] = rows[r * STEP + k];
                    }
                }
            }
        }
    }
}

/// `dst = src * factor` in the computing type.
#[inline(always)]
fn scale_into<T: Element, S: Simd<T::Acc>>(src: &[T], factor: T::Acc, dst: &mut [T::Acc]) {
    let factor = S::splat(factor);
    for (src, dst) in src.chunks(S::LANES).zip(dst.chunks_mut(S::LANES)) {
        if src.len() == S::LANES {
            S::store(S::mul(load::<T, S>(src), factor), dst);
        } else {
            store_part::<T::Acc, S>(S::mul(load_part::<T, S>(src), factor), dst);
        }
    }
}

/// Puts one row of `X`, times `factor`, into its place in a band: blocks of [`K_BLOCK`] features, `slab_len` apart.
struct PackRow<'a, T: Element> {
    src: &'a [T],
    /// Not looked at in pairs.
    factor: T::Acc,
    pairs: bool,
    /// The band from this row's first block on.
    dst: &'a mut [T::Acc],
    slab_len: usize,
}

impl<T: Element> Kernel<T::Acc> for PackRow<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) {
        for (src, dst) in self.src.chunks(K_BLOCK).zip(self.dst.chunks_mut(self.slab_len)) {
            if self.pairs {
                words(bytemuck::cast_slice(src), &mut dst[..src.len().div_ceil(2)]);
            } else {
                scale_into::<T, S>(src, self.factor, &mut dst[..src.len()]);
            }
        }
    }
}

/// Packs the rows `rows` of `x` into `band`, rows beyond them as zeros, and their factors into `inv`.
///
/// `band` is `(k blocks, inv.len(), K_BLOCK)`, or with `pairs` half as long: see [`band_len`].
pub(super) fn pack_band<T: Element>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    rows: Range<usize>,
    pairs: bool,
    band: &mut [T::Acc],
    inv: &mut [T::Acc],
) {
    let slab_len = inv.len() * block(pairs);
    if rows.len() < inv.len() {
        band.fill(T::Acc::ZERO);
        inv[rows.len()..].fill(T::Acc::ZERO);
    }
    for (r, (i, inv)) in rows.zip(inv).enumerate() {
        let scale = x.scale(i);
        *inv = scale.inv;
        cpu.isa().run(PackRow {
            src: x.mat.row(i),
            factor: scale.pow2,
            pairs,
            dst: &mut band[r * block(pairs)..],
            slab_len,
        });
    }
}
