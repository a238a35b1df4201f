//! Packing: rows of `Y` into panels, rows of `X` into bands, converted and scaled on the way.

use std::ops::Range;

use super::pool::{Cpu, Scratch};
use super::real::{Real, widen, widen_into};
use super::row_norms::RowScale;
use super::tile::{K_BLOCK, PackPanel, PackRow};
use crate::dtype::Element;
use crate::matrix::MatRef;

/// Elements of packed `Y` held at a time: 16 MiB of `f32`, about a last-level cache. A larger `Y` goes through in
/// slices.
const SLICE_ELEMENTS: usize = 4 << 20;

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
    /// The panels that hold the columns `cols`, which start at a panel's edge, and their factors.
    pub(super) fn of(&self, cols: &Range<usize>) -> (&[A], Option<&[A]>) {
        let first = (cols.start - self.cols.start) / self.nr;
        let last = (cols.end - self.cols.start).div_ceil(self.nr);
        let inv = self.inv.as_ref().map(|inv| &inv[first * self.nr..last * self.nr]);
        (&self.data[first * self.depth * self.nr..last * self.depth * self.nr], inv)
    }
}

/// `Y`, packed slice by slice; a slice is packed again only when another one was needed in between.
pub(super) struct Columns<'c, 'a, T: Element> {
    cpu: &'c Cpu,
    rows: Rows<'a, T>,
    packed: Option<Panels<'c, T::Acc>>,
}

impl<'c, 'a, T: Element> Columns<'c, 'a, T> {
    pub(super) fn new(cpu: &'c Cpu, rows: Rows<'a, T>) -> Self {
        Self { cpu, rows, packed: None }
    }

    /// Columns of the similarity matrix.
    pub(super) fn len(&self) -> usize {
        self.rows.mat.rows()
    }

    /// The slices, each a multiple of `block` columns wide but for the last.
    pub(super) fn slices(&self, block: usize) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (len, depth) = (self.len(), self.rows.mat.cols());
        let width = (SLICE_ELEMENTS / depth / block).max(1) * block;
        (0..len).step_by(width).map(move |start| start..(start + width).min(len))
    }

    pub(super) fn panels(&mut self, cols: &Range<usize>) -> &Panels<'c, T::Acc> {
        if self.packed.as_ref().is_some_and(|p| p.cols != *cols) {
            self.packed = None;
        }
        self.packed.get_or_insert_with(|| pack_panels(self.cpu, self.rows, cols))
    }
}

/// Packs the rows `cols` of `y`, panel by panel, on all threads.
pub(super) fn pack_panels<'c, T: Element>(cpu: &'c Cpu, y: Rows<'_, T>, cols: &Range<usize>) -> Panels<'c, T::Acc> {
    let (_, nr) = cpu.isa().register_rows::<T::Acc>();
    let depth = y.mat.cols();
    let padded = cols.len().next_multiple_of(nr);
    let mut data = cpu.scratch::<T::Acc>(padded * depth);
    let panels = data.chunks_exact_mut(nr * depth).enumerate();
    cpu.each(padded * depth, panels, |(p, dst)| {
        let first = cols.start + p * nr;
        pack_panel(cpu, y, first..(first + nr).min(cols.end), dst);
    });
    let inv = y.scales.map(|scales| {
        let mut inv: Vec<_> = scales[cols.clone()].iter().map(|s| s.inv).collect();
        inv.resize(padded, T::Acc::ZERO);
        inv
    });
    Panels { data, inv, cols: cols.clone(), nr, depth }
}

fn pack_panel<T: Element>(cpu: &Cpu, y: Rows<'_, T>, rows: Range<usize>, dst: &mut [T::Acc]) {
    /// Features converted at a time where the stored type is not the computing type.
    const CHUNK: usize = 256;
    let factors: Vec<T::Acc> = rows.clone().map(|j| y.scale(j).pow2).collect();
    let depth = y.mat.cols();
    if T::DTYPE == T::Acc::DTYPE {
        let ld = y.mat.row_stride();
        let src = bytemuck::cast_slice(&y.mat.data()[rows.start * ld..]);
        return cpu.isa().run(PackPanel { src, ld, factors: &factors, dst });
    }
    let nr = dst.len() / depth;
    let mut wide = vec![T::Acc::ZERO; CHUNK * factors.len()];
    for (chunk, dst) in dst.chunks_mut(CHUNK * nr).enumerate() {
        let (first, depth) = (chunk * CHUNK, dst.len() / nr);
        for (j, wide) in rows.clone().zip(wide.chunks_exact_mut(CHUNK)) {
            widen_into(&y.mat.row(j)[first..first + depth], &mut wide[..depth]);
        }
        cpu.isa().run(PackPanel { src: &wide, ld: CHUNK, factors: &factors, dst });
    }
}

/// Packs the rows `rows` of `x` into `band`, rows beyond them as zeros, and their factors into `inv`.
///
/// `band` is `(k blocks, inv.len(), K_BLOCK)`.
pub(super) fn pack_band<T: Element>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    rows: Range<usize>,
    band: &mut [T::Acc],
    inv: &mut [T::Acc],
    buffer: &mut Vec<T::Acc>,
) {
    let slab_len = inv.len() * K_BLOCK;
    if rows.len() < inv.len() {
        band.fill(T::Acc::ZERO);
        inv[rows.len()..].fill(T::Acc::ZERO);
    }
    for (r, (i, inv)) in rows.zip(inv).enumerate() {
        let scale = x.scale(i);
        *inv = scale.inv;
        let src = widen(x.mat.row(i), buffer);
        cpu.isa().run(PackRow { src, factor: scale.pow2, dst: &mut band[r * K_BLOCK..], slab_len });
    }
}
