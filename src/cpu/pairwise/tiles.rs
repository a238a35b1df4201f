//! The similarity matrix in tiles: waves of rows times chunks of columns, computed when they are first asked for, and kept
//! as far as memory is granted.

use std::ops::Range;

use crate::cpu::Cpu;
use crate::cpu::pack::{Packer, Rows, band_len, pack_band, pack_panels, packed_depth};
use crate::cpu::pairs;
use crate::cpu::pool::Scratch;
use crate::cpu::product::{K_BLOCK, Multiply};
use crate::cpu::real::Real;
use crate::cpu::row_norms::{RowKind, RowScale};
use crate::dtype::{Accum, Element};

/// Chunks to aim for. A chunk has at most [`K_BLOCK`] columns.
const WANTED_CHUNKS: usize = 8;

/// Most rows of a wave of a larger matrix.
const WAVE_ROWS: usize = 384;

/// Similarities up to which a matrix is one wave.
const WHOLE: usize = 1 << 18;

/// Bytes that a wave's tiles may take, unless it has few rows already.
const WAVE_BYTES: usize = 32 << 20;

/// Bytes of tiles that are kept from one sweep to the next; the others are computed again.
const KEPT_BYTES: usize = 48 << 20;

/// Threads, and waves, up to which each thread packs the rows of a wave for itself: in many waves what it saves is little
/// beside the memory.
const EACH_PACKS: usize = 4;

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

/// Whether more than two pieces of work cost more than they spread over threads.
fn tiny(n: usize, m: usize, depth: usize) -> bool {
    n.saturating_mul(m).saturating_mul(depth) <= 1 << 22
}

impl Cut {
    /// As [`tiny`] says.
    pub(super) fn tiny(&self) -> bool {
        tiny(self.n, self.m, self.depth)
    }

    fn new<A: Accum>(cpu: &Cpu, n: usize, m: usize, depth: usize) -> Self {
        let (mr, nr) = cpu.isa().register_rows::<A>();
        let unit = if mr.is_multiple_of(8) { mr } else { mr * 8 };
        let chunks = if tiny(n, m, depth) { 2 } else { WANTED_CHUNKS };
        let chunk = m.div_ceil(chunks).next_multiple_of(nr).clamp(nr, K_BLOCK);
        let wide = m.next_multiple_of(chunk).max(1);
        let fit = WAVE_BYTES / (wide * size_of::<A>());
        let rows = if n.saturating_mul(wide) <= WHOLE { n } else { WAVE_ROWS };
        Self { n, m, depth, wave: fit.clamp(1, rows.max(1)).next_multiple_of(unit), chunk, unit, nr }
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

    /// Whether the tiles of a wave, one behind the other, are a band `(column blocks, rows, K_BLOCK)`.
    pub(super) fn is_band(&self) -> bool {
        self.chunk == K_BLOCK
    }

    /// Row stride of a tile of the columns `cols`.
    pub(super) fn ld(&self, cols: &Range<usize>) -> usize {
        if self.is_band() { K_BLOCK } else { cols.len().next_multiple_of(self.nr) }
    }

    /// Elements of a wave at most.
    fn wave_len(&self) -> usize {
        self.wave * self.chunk * self.chunks()
    }
}

/// What a sweep does with the tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    /// It reads them.
    Survey,
    /// It is the last one, and turns them into weights that [`Tiles::wave`] gives until the next wave.
    Weigh,
}

/// One tile: row stride `ld`, not less than the padded number of columns; padding holds arbitrary values.
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
    /// Whether features are multiplied in pairs.
    pairs: bool,
    /// The first `places` waves, from the first sweep on.
    memory: Scratch<'a, T::Acc>,
    places: usize,
    /// Waves at the front that hold similarities.
    filled: usize,
}

impl<'a, T: Element> Tiles<'a, T> {
    pub(super) fn new(cpu: &'a Cpu, x: Operand<'a, T>, y: Operand<'a, T>) -> Self {
        let cut = Cut::new::<T::Acc>(cpu, x.rows.mat.rows(), y.rows.mat.rows(), x.rows.mat.cols());
        let pairs = pairs::fit(cpu, x.rows, y.rows);
        Self { cpu, x, y, cut, pairs, memory: cpu.scratch(0), places: 0, filled: 0 }
    }

    /// Where the tiles of a wave are. The last sweep needs the first wave no more when it comes to one that is not kept;
    /// the others need none of such a wave's tiles for longer than they look at it.
    fn place(&mut self, wave: usize, sweep: Sweep) -> Option<Range<usize>> {
        let (cut, len) = (self.cut, self.cut.wave_len());
        if self.places == 0 {
            let fit = match sweep {
                Sweep::Survey => KEPT_BYTES / (len.max(1) * size_of::<T::Acc>()),
                Sweep::Weigh => 1,
            };
            self.places = fit.clamp(1, cut.waves().max(1));
            self.memory = self.cpu.scratch(self.places * len);
        }
        let place = match sweep {
            _ if wave < self.places => wave,
            Sweep::Survey => return None,
            Sweep::Weigh => 0,
        };
        Some(place * len..place * len + cut.padded(wave) * cut.chunk * cut.chunks())
    }

    /// Calls `f` on every tile of a wave, on all threads, with something that each thread makes once and one of
    /// `states`.
    pub(super) fn each<S: Send, O>(
        &mut self,
        wave: usize,
        sweep: Sweep,
        states: Vec<S>,
        start: impl Fn() -> O + Sync,
        f: impl Fn(&mut O, Tile<'_, T::Acc>, S) + Sync,
    ) {
        let (cut, cpu, x, y) = (self.cut, self.cpu, self.x.rows, self.y.rows);
        let (rows, padded, pairs) = (cut.rows(wave), cut.padded(wave), self.pairs);
        let known = wave < self.filled;
        let packed = || {
            let mut band = cpu.scratch(band_len(padded, cut.depth, pairs));
            let mut inv = vec![T::Acc::ZERO; padded];
            pack_band(cpu, x, rows.clone(), pairs, &mut band, &mut inv);
            (band, inv)
        };
        // Few threads pack the rows faster than they read what one of them has packed.
        let each_packs = cpu.threads() <= EACH_PACKS && cut.waves() <= EACH_PACKS;
        let common = (!known && !each_packs).then(packed);
        let place = self.place(wave, sweep);
        if wave == self.filled && wave < self.places {
            self.filled += 1;
        }
        let work = rows.len().saturating_mul(cut.m).saturating_mul(cut.depth);
        let tile_len = padded * cut.chunk;
        let passing = if place.is_none() { tile_len } else { 0 };
        let mut kept = place.map(|place| self.memory[place].chunks_mut(tile_len));
        let mut items = Vec::with_capacity(states.len());
        for (chunk, state) in states.into_iter().enumerate() {
            items.push((chunk, kept.as_mut().and_then(Iterator::next), state));
        }
        let start = || (start(), cpu.scratch(passing), (!known && each_packs).then(packed));
        cpu.each_with(work, items.into_iter(), start, |(own, passing, packed), (chunk, kept, state)| {
            let cols = cut.cols(chunk);
            let ld = cut.ld(&cols);
            let data = &mut kept.unwrap_or(passing)[..padded * ld];
            if let Some((band, inv)) = packed.as_ref().or(common.as_ref()) {
                let panels = pack_panels(cpu, y, &cols, Packer::Caller, pairs);
                let (panels, col_inv) = panels.of(&cols);
                let scale = col_inv.map(|c| (&inv[..], c));
                let out = &mut *data;
                let depth = packed_depth(cut.depth, pairs);
                cpu.isa().multiply(pairs, Multiply { band, panels, depth, out, ld, scale, add: false });
            }
            f(own, Tile { data, ld, rows: rows.clone(), cols }, state);
        });
    }

    /// The tiles of a wave one behind the other, as [`Self::each`] of the last sweep has just left them, with
    /// [`Cut::padded`] rows each.
    pub(super) fn wave(&mut self, wave: usize) -> &[T::Acc] {
        match self.place(wave, Sweep::Weigh) {
            Some(place) => &self.memory[place],
            None => &[],
        }
    }
}
