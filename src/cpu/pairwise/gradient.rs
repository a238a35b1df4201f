//! The last sweep: `W` wave by wave, and its two products with the rows.
//!
//! Each tile of a wave turns into its part of `W` and adds its share to the columns' gradients at once; then the wave's
//! whole band of `W` is multiplied by the columns for the rows' gradients. Every sum is taken in an order that follows
//! from the shape alone.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::member::{Member, Totals};
use super::operands::{Turn, pack_all_features, pack_features};
use super::slices;
use super::statistics::{Scratch, Share, Statistics};
use super::tiles::{Operand, Sweep, Tile, Tiles};
use crate::cpu::Cpu;
use crate::cpu::gather::{along, write_part};
use crate::cpu::pool;
use crate::cpu::product::{K_BLOCK, Multiply};
use crate::cpu::real::Real;
use crate::cpu::row_norms::bands;
use crate::dtype::{Accum, Element, GradientOf};
use crate::matrix::MatMut;
use crate::options::WriteMode;

/// Blocks of columns multiplied at a time: 1024 rows of a slice of features stay in a second-level cache.
pub(super) const BLOCKS: usize = 8;

/// Rows per piece of work when gradients are written.
const ROWS_PER_ITEM: usize = 16;

/// What the sweep gives besides the gradients.
pub(super) struct Found {
    /// Of every member.
    pub(super) totals: Vec<Totals>,
    /// Gradient elements that overflowed the output type.
    pub(super) overflow: u32,
    /// Of the members that need none before: see [`Member::alone`]; of the others empty.
    pub(super) statistics: Vec<Statistics>,
}

/// Computes both gradients, or for a single set (`dy` is `None`) their sum.
pub(super) fn gradient<T: Element, G: GradientOf<T>>(
    tiles: &mut Tiles<'_, T>,
    members: &[&dyn Member<T::Acc>],
    write: WriteMode,
    mut dx: MatMut<'_, G>,
    mut dy: Option<MatMut<'_, G>>,
) -> Found {
    let (cpu, cut, y) = (tiles.cpu, tiles.cut, tiles.y);
    let single = dy.is_none();
    let statistics = |member: &&dyn Member<T::Acc>| {
        if member.alone() { Statistics::new(cut.n, cut.m, false) } else { Statistics::default() }
    };
    let mut found = Found {
        totals: vec![Totals::default(); members.len()],
        overflow: 0,
        statistics: members.iter().map(statistics).collect(),
    };
    if slices::fit(&cut) {
        let mut step = Step { members, found: &mut found };
        found.overflow = slices::gradient(&mut step, tiles, write, dx, dy);
        return found;
    }
    // What the columns' gradients are summed in: their own memory where it will do.
    let in_place = write == WriteMode::Overwrite && G::DTYPE == <T::Acc as Element>::DTYPE;
    let mut own = Vec::new();
    let sums = match dy.as_mut().filter(|_| in_place) {
        Some(dy) => {
            (0..cut.m).for_each(|j| dy.row_mut(j).fill(G::zeroed()));
            let (rows, cols, stride) = (dy.rows(), dy.cols(), dy.row_stride());
            MatMut::with_stride(bytemuck::cast_slice_mut(dy.data_mut()), rows, cols, stride)
        }
        None => {
            own = vec![T::Acc::ZERO; cut.m * cut.depth];
            MatMut::new(&mut own, cut.m, cut.depth)
        }
    };
    // The shapes were checked: it is a matrix.
    let Ok(mut sums) = sums else { return found };
    let mut step = Step { members, found: &mut found };
    for wave in 0..cut.waves() {
        let of_rows = step.wave(tiles, wave, sums.reborrow());
        let rows = cut.rows(wave);
        if single {
            of_rows.add(&rows, &mut sums);
        } else {
            step.found.overflow += of_rows.finish(cpu, &tiles.x, &rows, write, dx.reborrow());
        }
    }
    let columns = if single { Some(dx) } else { dy };
    if let Some(columns) = columns {
        found.overflow += finish_columns(cpu, &y, &own, write, columns);
    }
    found
}

/// Takes the columns' summed gradients through the Jacobian; `sums` is empty if they are in `out`.
fn finish_columns<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    y: &Operand<'_, T>,
    sums: &[T::Acc],
    write: WriteMode,
    out: MatMut<'_, G>,
) -> u32 {
    let d = out.cols();
    let overflow = AtomicU32::new(0);
    cpu.each(out.rows().saturating_mul(d), bands(out, ROWS_PER_ITEM), |(first, mut band)| {
        let mut sum = cpu.scratch::<T::Acc>(d);
        let mut lost = 0;
        for r in 0..band.rows() {
            let j = first + r;
            if sums.is_empty() {
                sum.copy_from_slice(bytemuck::cast_slice(&*band.row_mut(r)));
            } else {
                sum.copy_from_slice(&sums[j * d..][..d]);
            }
            lost += finish(cpu, y, j, &mut sum, write, band.row_mut(r));
        }
        overflow.fetch_add(lost, Ordering::Relaxed);
    });
    overflow.into_inner()
}

/// Writes the gradient of row `i`, given the one with respect to its unit row.
fn finish<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    of: &Operand<'_, T>,
    i: usize,
    sum: &mut [T::Acc],
    write: WriteMode,
    out: &mut [G],
) -> u32 {
    let x = of.rows.mat.row(i);
    let through = of.rows.scales.map(|scales| (x, scales[i], along(cpu, x, scales[i].pow2, sum)));
    write_part(cpu, through, sum, write, out)
}

/// The rows' gradients with respect to their unit rows, slice by slice of features.
struct OfRows<A> {
    data: Vec<A>,
    /// Features per slice.
    width: usize,
    padded: usize,
}

impl<A: Accum> OfRows<A> {
    /// The gradient of the wave's row `r` into `out`.
    fn row(&self, r: usize, out: &mut [A]) {
        let slice_len = self.padded * self.width;
        for (slice, out) in self.data.chunks_exact(slice_len).zip(out.chunks_mut(self.width)) {
            out.copy_from_slice(&slice[r * self.width..][..out.len()]);
        }
    }

    /// Adds them to those of the same rows as columns.
    fn add(&self, rows: &Range<usize>, sums: &mut MatMut<'_, A>) {
        let mut row = vec![A::ZERO; sums.cols()];
        for (r, i) in rows.clone().enumerate() {
            self.row(r, &mut row);
            sums.row_mut(i).iter_mut().zip(&row).for_each(|(sum, v)| *sum += *v);
        }
    }

    /// Writes them.
    fn finish<T: Element<Acc = A>, G: GradientOf<T>>(
        &self,
        cpu: &Cpu,
        x: &Operand<'_, T>,
        rows: &Range<usize>,
        write: WriteMode,
        dx: MatMut<'_, G>,
    ) -> u32 {
        let (total, d, stride) = (dx.rows(), dx.cols(), dx.row_stride());
        let data = dx.into_data();
        // The last row may end short of its stride.
        let end = if rows.end == total { data.len() } else { rows.end * stride };
        let Ok(part) = MatMut::with_stride(&mut data[rows.start * stride..end], rows.len(), d, stride) else {
            return 0;
        };
        let overflow = AtomicU32::new(0);
        cpu.each(rows.len().saturating_mul(d), bands(part, ROWS_PER_ITEM), |(first, mut band)| {
            let mut sum = cpu.scratch::<A>(d);
            let mut lost = 0;
            for r in 0..band.rows() {
                self.row(first + r, &mut sum);
                lost += finish(cpu, x, rows.start + first + r, &mut sum, write, band.row_mut(r));
            }
            overflow.fetch_add(lost, Ordering::Relaxed);
        });
        overflow.into_inner()
    }
}

/// The sweep.
pub(super) struct Step<'a, A> {
    members: &'a [&'a dyn Member<A>],
    found: &'a mut Found,
}

/// What a thread keeps from tile to tile in order to weigh them.
struct Own<A> {
    /// Similarities, and one member's weights, where there are several.
    similarities: Vec<A>,
    weights: Vec<A>,
    class: Vec<u32>,
    products: Vec<A>,
    statistics: Scratch<A>,
}

/// What the members find in a tile.
struct Part<'a> {
    totals: Vec<Totals>,
    /// Of the members that need statistics of this sweep.
    shares: Vec<Option<Share<'a>>>,
}

impl<A: Accum> Step<'_, A> {
    /// Turns the tiles of a wave into tiles of `W`, and calls `then` on each with one of `states` and something that each
    /// thread makes once.
    pub(super) fn weigh<T: Element<Acc = A>, S: Send, O>(
        &mut self,
        tiles: &mut Tiles<'_, T>,
        wave: usize,
        states: Vec<S>,
        start: impl Fn() -> O + Sync,
        then: impl Fn(&mut O, Tile<'_, A>, S) + Sync,
    ) {
        let (cpu, cut, members) = (tiles.cpu, tiles.cut, self.members);
        let rows = cut.rows(wave);
        let part = |_| {
            let share = |member: &&dyn Member<A>| member.alone().then(|| Share::new(rows.len(), &mut []));
            Part { totals: vec![Totals::default(); members.len()], shares: members.iter().map(share).collect() }
        };
        let mut parts: Vec<Part<'_>> = (0..cut.chunks()).map(part).collect();
        let start = || {
            let own = Own {
                similarities: Vec::new(),
                weights: Vec::new(),
                class: vec![0; cut.chunk],
                products: vec![A::ZERO; cut.chunk],
                statistics: Scratch::new(cut.chunk, cut.nr),
            };
            (own, start())
        };
        let states: Vec<_> = parts.iter_mut().zip(states).collect();
        tiles.each(wave, Sweep::Weigh, states, start, |(own, other), mut tile, (part, state)| {
            weigh_tile(cpu, members, own, &mut tile, part);
            then(other, tile, state);
        });
        for part in parts {
            for (all, part) in self.found.totals.iter_mut().zip(part.totals) {
                all.weighted_similarity += part.weighted_similarity;
                all.weight += part.weight;
            }
            for (all, share) in self.found.statistics.iter_mut().zip(part.shares) {
                if let Some(share) = share {
                    all.add_rows(rows.start, share);
                }
            }
        }
    }

    /// Adds to the columns' `sums`, and returns the rows' gradients.
    fn wave<T: Element<Acc = A>>(&mut self, tiles: &mut Tiles<'_, T>, wave: usize, sums: MatMut<'_, A>) -> OfRows<A> {
        let (cpu, cut) = (tiles.cpu, tiles.cut);
        let (rows, padded_rows) = (cut.rows(wave), cut.padded(wave));
        let (mr, nr) = cpu.isa().register_rows::<A>();
        let wide = cut.depth.next_multiple_of(nr);
        let mut features = cpu.scratch::<A>(wide * rows.len());
        pack_all_features(cpu, &tiles.x, &rows, &mut features);
        let start = || {
            let turned = cpu.scratch::<A>(padded_rows.div_ceil(K_BLOCK) * cut.chunk.next_multiple_of(mr) * K_BLOCK);
            (turned, cpu.scratch::<A>(cut.chunk.next_multiple_of(mr) * wide))
        };
        let states = bands(sums, cut.chunk).map(|(_, band)| band).collect();
        self.weigh(tiles, wave, states, start, |(turned, product), tile, band| {
            add_tile(cpu, turned, product, tile, &features, band);
        });
        products(tiles, wave)
    }
}

/// Turns a tile of similarities into one of `W`.
fn weigh_tile<A: Accum>(
    cpu: &Cpu,
    members: &[&dyn Member<A>],
    own: &mut Own<A>,
    tile: &mut Tile<'_, A>,
    part: &mut Part<'_>,
) {
    for (member, share) in members.iter().zip(&mut part.shares) {
        if let Some(share) = share {
            share.begin();
            member.visit(cpu, &mut own.statistics, tile, share);
        }
    }
    if let [member] = members {
        part.totals[0] = member.weigh(cpu, tile, &mut own.class, &mut own.products);
    } else {
        mix(cpu, members, own, tile, &mut part.totals);
    }
}

/// The transposed tile as a band `(row blocks, columns, K_BLOCK)`, of as many columns as `out` has room for.
pub(super) fn turn<A: Accum>(cpu: &Cpu, tile: &Tile<'_, A>, out: &mut [A]) {
    let out_rows = out.len() / (tile.rows.len().div_ceil(K_BLOCK) * K_BLOCK);
    cpu.isa().run(Turn { tile: tile.data, ld: tile.ld, rows: tile.data.len() / tile.ld, out, out_rows });
}

/// Adds the product of a transposed tile of `W` with the wave's rows to `sums`.
fn add_tile<A: Accum>(
    cpu: &Cpu,
    turned: &mut [A],
    product: &mut [A],
    tile: Tile<'_, A>,
    features: &[A],
    mut sums: MatMut<'_, A>,
) {
    let (mr, _) = cpu.isa().register_rows::<A>();
    let depth = tile.rows.len();
    let cols = tile.cols.len().next_multiple_of(mr);
    let turned = &mut turned[..depth.div_ceil(K_BLOCK) * cols * K_BLOCK];
    turn(cpu, &tile, turned);
    let wide = features.len() / depth;
    let out = &mut product[..cols * wide];
    cpu.isa().run(Multiply { band: turned, panels: features, depth, out, ld: wide, scale: None, add: false });
    for (j, row) in out.chunks_exact(wide).enumerate().take(tile.cols.len()) {
        for (sum, v) in sums.row_mut(j).iter_mut().zip(row) {
            *sum += *v;
        }
    }
}

/// Replaces the similarities of a tile by the sum of the members' weights.
fn mix<A: Accum>(
    cpu: &Cpu,
    members: &[&dyn Member<A>],
    own: &mut Own<A>,
    tile: &mut Tile<'_, A>,
    totals: &mut [Totals],
) {
    own.similarities.clear();
    own.similarities.extend_from_slice(tile.data);
    tile.data.fill(A::ZERO);
    for (member, totals) in members.iter().zip(totals) {
        own.weights.clone_from(&own.similarities);
        let mut one = Tile { data: &mut own.weights, ld: tile.ld, rows: tile.rows.clone(), cols: tile.cols.clone() };
        *totals = member.weigh(cpu, &mut one, &mut own.class, &mut own.products);
        tile.data.iter_mut().zip(&own.weights).for_each(|(sum, w)| *sum += *w);
    }
}

/// A wave's band of `W` times the columns.
fn products<T: Element>(tiles: &mut Tiles<'_, T>, wave: usize) -> OfRows<T::Acc> {
    let (cpu, cut, y) = (tiles.cpu, tiles.cut, tiles.y);
    let padded_rows = cut.padded(wave);
    let width = (2 * cut.nr).min(cut.depth.next_multiple_of(cut.nr));
    let copied = (!cut.is_band()).then(|| band(tiles, wave));
    let band = copied.as_deref().unwrap_or_else(|| tiles.wave(wave));
    let mut data = vec![T::Acc::ZERO; padded_rows * cut.depth.next_multiple_of(width)];
    let work = cut.rows(wave).len().saturating_mul(cut.m).saturating_mul(cut.depth);
    let slices = data.chunks_exact_mut(padded_rows * width).enumerate();
    let start = || cpu.scratch::<T::Acc>(BLOCKS * K_BLOCK * width);
    cpu.each_with(work, slices, start, |panels, (slice, out)| {
        let features = slice * width..((slice + 1) * width).min(cut.depth);
        for first in (0..cut.m).step_by(BLOCKS * K_BLOCK) {
            let cols = first..(first + BLOCKS * K_BLOCK).min(cut.m);
            let panels = &mut panels[..cols.len() * width];
            pack_features(cpu, &y, &cols, features.clone(), panels);
            let band = &band[first * padded_rows..][..cols.len().div_ceil(K_BLOCK) * K_BLOCK * padded_rows];
            let (depth, ld) = (cols.len(), width);
            cpu.isa().run(Multiply { band, panels, depth, out, ld, scale: None, add: first > 0 });
        }
    });
    OfRows { data, width, padded: padded_rows }
}

/// The narrow tiles of a wave as one band `(column blocks, rows, K_BLOCK)`. What is behind the last column takes part in no
/// sum.
pub(super) fn band<'c, T: Element>(tiles: &mut Tiles<'c, T>, wave: usize) -> pool::Scratch<'c, T::Acc> {
    let (cpu, cut) = (tiles.cpu, tiles.cut);
    let padded_rows = cut.padded(wave);
    let mut band = cpu.scratch::<T::Acc>(cut.m.div_ceil(K_BLOCK) * padded_rows * K_BLOCK);
    let all = tiles.wave(wave).chunks(padded_rows * cut.chunk).enumerate();
    let all: Vec<_> = all.map(|(chunk, data)| (cut.cols(chunk), data)).collect();
    let work = padded_rows.saturating_mul(cut.m);
    cpu.each(work, band.chunks_exact_mut(padded_rows * K_BLOCK).enumerate(), |(block, out)| {
        let wanted = block * K_BLOCK..((block + 1) * K_BLOCK).min(cut.m);
        for (cols, tile) in all.iter().filter(|(cols, _)| cols.start < wanted.end && wanted.start < cols.end) {
            let (from, to) = (wanted.start.max(cols.start), wanted.end.min(cols.end));
            for (row, out) in tile.chunks_exact(cut.ld(cols)).zip(out.chunks_exact_mut(K_BLOCK)) {
                out[from - wanted.start..to - wanted.start].copy_from_slice(&row[from - cols.start..to - cols.start]);
            }
        }
    });
    band
}
