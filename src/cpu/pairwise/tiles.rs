//! The similarity matrix in tiles: waves of rows times chunks of columns, computed when they are first asked for, and kept
//! as far as memory is granted.

use std::ops::Range;

use crate::cpu::Cpu;
use crate::cpu::pack::{Packer, Rows, pack_band, pack_panels};
use crate::cpu::pool::Scratch;
use crate::cpu::product::{K_BLOCK, Multiply};
use crate::cpu::real::Real;
use crate::cpu::row_norms::{RowKind, RowScale};
use crate::dtype::{Accum, Element};

/// Most columns of a chunk, and chunks to aim for.
const CHUNK: usize = 2 * K_BLOCK;
const WANTED_CHUNKS: usize = 8;

/// Most rows of a wave.
const WAVE_ROWS: usize = 384;

/// Bytes that a wave's tiles may take, unless it has few rows already.
const WAVE_BYTES: usize = 32 << 20;

/// Bytes of tiles that are kept from one sweep to the next; the others are computed again.
const KEPT_BYTES: usize = 32 << 20;

/// A matrix and those of its rows that take no part in products.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a, T: Element> {
    pub(super) rows: Rows<'a, T>,
    /// Rows that are ignored, or not finite: their weights are 0 or NaN, and 0 times NaN would not be 0.
    pub(super) left_out: &'a [bool],
}

/// The rows that take no part in products; see [`Operand::left_out`].
pub(super) fn left_out<A>(scales: &[RowScale<A>], normalised: bool, ignored: impl Fn(usize) -> bool) -> Vec<bool> {
    let not_finite = |kind: RowKind| normalised && kind == RowKind::NotFinite;
    scales.iter().enumerate().map(|(i, scale)| ignored(i) || not_finite(scale.kind)).collect()
}

/// How the matrix is cut: by its shape alone, since sums depend on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) n: usize,
    pub(super) m: usize,
    pub(super) depth: usize,
    /// Rows of a wave.
    pub(super) wave: usize,
    /// Columns of a chunk.
    pub(super) chunk: usize,
    /// Padding of a wave's rows: whole register tiles, and whole blocks of a transposition.
    unit: usize,
    pub(super) nr: usize,
}

impl Cut {
    fn new<A: Accum>(cpu: &Cpu, n: usize, m: usize, depth: usize) -> Self {
        let (mr, nr) = cpu.isa().register_rows::<A>();
        let unit = if mr.is_multiple_of(8) { mr } else { mr * 8 };
        let chunk = m.div_ceil(WANTED_CHUNKS).next_multiple_of(nr).clamp(nr, CHUNK);
        let fit = WAVE_BYTES / (m.next_multiple_of(chunk).max(1) * size_of::<A>());
        Self { n, m, depth, wave: fit.clamp(1, WAVE_ROWS).next_multiple_of(unit), chunk, unit, nr }
    }

    pub(super) fn waves(&self) -> usize {
        self.n.div_ceil(self.wave)
    }

    pub(super) fn chunks(&self) -> usize {
        self.m.div_ceil(self.chunk)
    }

    pub(super) fn rows(&self, wave: usize) -> Range<usize> {
        wave * self.wave..((wave + 1) * self.wave).min(self.n)
    }

    pub(super) fn cols(&self, chunk: usize) -> Range<usize> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.m)
    }

    /// Rows of a wave with padding.
    pub(super) fn padded(&self, wave: usize) -> usize {
        self.rows(wave).len().next_multiple_of(self.unit)
    }

    /// Elements of a tile at most.
    fn tile_len(&self) -> usize {
        self.wave * self.chunk
    }

    fn wave_len(&self) -> usize {
        self.tile_len() * self.chunks()
    }
}

/// One tile: row stride `ld`, the padded number of columns; padding holds arbitrary values.
pub(super) struct Tile<'a, A> {
    pub(super) data: &'a mut [A],
    pub(super) ld: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

/// All tiles of a matrix.
pub(super) struct Tiles<'a, T: Element> {
    pub(super) cpu: &'a Cpu,
    pub(super) x: Operand<'a, T>,
    pub(super) y: Operand<'a, T>,
    pub(super) cut: Cut,
    /// The first waves.
    kept: Scratch<'a, T::Acc>,
    kept_waves: usize,
    /// Waves at the front that hold similarities.
    filled: usize,
    /// For the waves that are not kept.
    passing: Scratch<'a, T::Acc>,
}

impl<'a, T: Element> Tiles<'a, T> {
    pub(super) fn new(cpu: &'a Cpu, x: Operand<'a, T>, y: Operand<'a, T>) -> Self {
        let cut = Cut::new::<T::Acc>(cpu, x.rows.mat.rows(), y.rows.mat.rows(), x.rows.mat.cols());
        let fit = KEPT_BYTES / (cut.wave_len().max(1) * size_of::<T::Acc>());
        let kept_waves = fit.min(cut.waves());
        let kept = cpu.scratch(kept_waves * cut.wave_len());
        let passing = cpu.scratch(if kept_waves < cut.waves() { cut.wave_len() } else { 0 });
        Self { cpu, x, y, cut, kept, kept_waves, filled: 0, passing }
    }

    /// Calls `f` on every tile of a wave, on all threads, with something that each thread makes once and one of
    /// `states`. What `f` leaves in the tiles is what [`Self::wave`] gives.
    pub(super) fn each<S: Send, O>(
        &mut self,
        wave: usize,
        states: Vec<S>,
        start: impl Fn() -> O + Sync,
        f: impl Fn(&mut O, Tile<'_, T::Acc>, S) + Sync,
    ) {
        let (cut, cpu, x, y) = (self.cut, self.cpu, self.x.rows, self.y.rows);
        let (rows, padded) = (cut.rows(wave), cut.padded(wave));
        let known = wave < self.filled;
        let mut band = cpu.scratch(if known { 0 } else { cut.depth.div_ceil(K_BLOCK) * padded * K_BLOCK });
        let mut inv = vec![T::Acc::ZERO; padded];
        if !known {
            pack_band(cpu, x, rows.clone(), &mut band, &mut inv);
        }
        if wave == self.filled && wave < self.kept_waves {
            self.filled += 1;
        }
        let work = rows.len().saturating_mul(cut.m).saturating_mul(cut.depth);
        let memory = self.memory(wave);
        let items: Vec<_> = memory.chunks_mut(cut.tile_len()).zip(states).enumerate().collect();
        cpu.each_with(work, items.into_iter(), start, |own, (chunk, (data, state))| {
            let cols = cut.cols(chunk);
            let ld = cols.len().next_multiple_of(cut.nr);
            let data = &mut data[..padded * ld];
            if !known {
                let panels = pack_panels(cpu, y, &cols, Packer::Caller);
                let (panels, col_inv) = panels.of(&cols);
                let scale = col_inv.map(|c| (&inv[..], c));
                let out = &mut *data;
                cpu.isa().run(Multiply { band: &band, panels, depth: cut.depth, out, scale, add: false });
            }
            f(own, Tile { data, ld, rows: rows.clone(), cols }, state);
        });
    }

    fn memory(&mut self, wave: usize) -> &mut [T::Acc] {
        let len = self.cut.wave_len();
        if wave < self.kept_waves { &mut self.kept[wave * len..][..len] } else { &mut self.passing }
    }

    /// The tiles of a wave, as the last [`Self::each`] on it left them: chunk by chunk, [`Cut::padded`] rows each.
    pub(super) fn wave(&mut self, wave: usize) -> impl Iterator<Item = (Range<usize>, &[T::Acc])> {
        let cut = self.cut;
        let padded = cut.padded(wave);
        self.memory(wave).chunks(cut.tile_len()).enumerate().map(move |(chunk, data)| {
            let cols = cut.cols(chunk);
            let ld = cols.len().next_multiple_of(cut.nr);
            (cols, &data[..padded * ld])
        })
    }
}
