//! The second sweep: `W` wave by wave, and its two products with the rows.
//!
//! A wave is a band of rows. Its part of `W` is computed chunk by chunk of columns; each chunk adds its share to the
//! columns' gradients at once, and what remains, the band of `W`, is multiplied by the columns for the rows' gradients.
//! Every sum is taken in an order that follows from the shape alone.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::classes::{Classes, NEGATIVE, POSITIVE};
use super::coefficients::{Anchor, Anchors};
use super::form::{Coefficient, Form};
use super::positives::weight;
use super::statistics::{padded, total};
use crate::cpu::Cpu;
use crate::cpu::gather::{Term, write_gradient};
use crate::cpu::pack::{Packer, Rows, pack_band, pack_panels};
use crate::cpu::product::{K_BLOCK, Multiply};
use crate::cpu::real::Real;
use crate::cpu::row_norms::{RowKind, RowScale, bands};
use crate::cpu::tile::{Kernel, Simd, load, load_part, store, store_part};
use crate::dtype::{Accum, Element, GradientOf};
use crate::matrix::MatMut;
use crate::options::WriteMode;
use crate::pairwise::PairwiseObjective;

/// Columns per chunk, whole blocks of the products' depth.
const CHUNK: usize = 2 * K_BLOCK;

/// Blocks of columns multiplied at a time: 1024 rows of a slice of features stay in a second-level cache.
const BLOCKS: usize = 8;

/// Bytes that a wave's part of `W` may take.
const WAVE_BYTES: usize = 64 << 20;

/// Most rows of a wave.
const WAVE_ROWS: usize = 384;

/// Rows per piece of work when gradients are written.
const ROWS_PER_ITEM: usize = 16;

/// A matrix whose gradient is taken: its rows, and those of them that take no part in the products.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a, T: Element> {
    pub(super) rows: Rows<'a, T>,
    /// Rows that are ignored, or not finite: their weights are 0 or NaN, and 0 times NaN would not be 0.
    pub(super) left_out: &'a [bool],
}

/// Everything that the sweep is told.
pub(super) struct Problem<'a, T: Element, F> {
    pub(super) objective: &'a PairwiseObjective,
    pub(super) classes: Classes<'a>,
    pub(super) x: Operand<'a, T>,
    pub(super) y: Operand<'a, T>,
    pub(super) form: F,
    pub(super) anchors: &'a Anchors,
    pub(super) log_q: &'a [T::Acc],
    pub(super) rows_p: &'a [T::Acc],
    pub(super) cols_p: &'a [T::Acc],
    pub(super) upstream: f64,
}

/// What the sweep adds up besides the gradients, upstream factor included.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// `Σ W_ij S_ij`
    pub(super) weighted_similarity: f64,
    /// `Σ W_ij`
    pub(super) weight: f64,
}

/// The coefficient of an anchor's negatives. One that has none of its own weighs them with exactly 0, whatever the logit.
fn coefficient<A: Accum>(anchor: &Anchor, upstream: f64, p: A) -> Coefficient<A> {
    let m = if anchor.a == 0.0 { f64::INFINITY } else { anchor.m };
    Coefficient { a: A::from_f64(anchor.a * upstream), m: A::from_f64(m), p }
}

/// The column anchors' coefficients, part by part.
struct ColumnCoefficients<A> {
    a: Vec<A>,
    m: Vec<A>,
    p: Vec<A>,
}

impl<A: Accum> ColumnCoefficients<A> {
    fn new(anchors: &[Anchor], upstream: f64, p: &[A]) -> Self {
        let each: Vec<_> = anchors.iter().zip(p).map(|(anchor, &p)| coefficient(anchor, upstream, p)).collect();
        let part = |of: fn(&Coefficient<A>) -> A| each.iter().map(of).collect();
        Self { a: part(|c| c.a), m: part(|c| c.m), p: part(|c| c.p) }
    }

    /// Of the columns `cols`, padded to `len`; empty if columns are no anchors.
    fn of(&self, cols: &Range<usize>, len: usize) -> Self {
        if self.a.is_empty() {
            return Self { a: Vec::new(), m: Vec::new(), p: Vec::new() };
        }
        let part = |of: &[A]| padded(&of[cols.clone()], len);
        Self { a: part(&self.a), m: part(&self.m), p: part(&self.p) }
    }
}

/// How the rows are cut into waves: by the shape alone.
#[derive(Clone, Copy, Debug)]
struct Waves {
    rows: usize,
    /// Padding of a wave's rows: whole register tiles, and whole blocks of the transposition.
    unit: usize,
}

impl Waves {
    fn new<A: Accum>(cpu: &Cpu, m: usize) -> Self {
        let (mr, _) = cpu.isa().register_rows::<A>();
        let unit = if mr % 8 == 0 { mr } else { mr * 8 };
        let fit = WAVE_BYTES / (m.next_multiple_of(CHUNK).max(1) * size_of::<A>());
        Self { rows: fit.clamp(1, WAVE_ROWS).next_multiple_of(unit), unit }
    }
}

/// Computes both gradients, or for a single set (`dy` is `None`) their sum. Returns how many of their elements overflowed.
pub(super) fn gradient<T: Element, F: Form<T::Acc>, G: GradientOf<T>>(
    cpu: &Cpu,
    problem: &Problem<'_, T, F>,
    write: WriteMode,
    mut dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> (u32, Totals) {
    let single = dy.is_none();
    let (n, m, d) = (problem.x.rows.mat.rows(), problem.y.rows.mat.rows(), problem.x.rows.mat.cols());
    let waves = Waves::new::<T::Acc>(cpu, m);
    let columns = ColumnCoefficients::new(&problem.anchors.cols, problem.upstream, problem.cols_p);
    // What the columns' gradients are summed in: their own memory where it will do.
    let mut own = Vec::new();
    let mut rest = dy;
    let in_place = write == WriteMode::Overwrite && G::DTYPE == <T::Acc as Element>::DTYPE;
    if single || !in_place {
        own = vec![T::Acc::ZERO; m * d];
    }
    let mut totals = Totals::default();
    let mut overflow = 0;
    {
        let mut sums = match rest.as_mut().filter(|_| in_place) {
            Some(dy) => {
                (0..m).for_each(|j| dy.row_mut(j).fill(G::zeroed()));
                let (rows, cols, stride) = (dy.rows(), dy.cols(), dy.row_stride());
                MatMut::with_stride(bytemuck::cast_slice_mut(dy.data_mut()), rows, cols, stride)
            }
            None => MatMut::new(&mut own, m, d),
        };
        let Ok(sums) = sums.as_mut() else { return (0, totals) };
        for first in (0..n).step_by(waves.rows) {
            let rows = first..(first + waves.rows).min(n);
            let wave = Wave {
                problem,
                columns: &columns,
                rows: rows.clone(),
                padded: rows.len().next_multiple_of(waves.unit),
            };
            let of_rows = wave.run(cpu, sums.reborrow(), &mut totals);
            if single {
                wave.add(&of_rows, sums);
            } else {
                overflow += wave.finish(cpu, &of_rows, write, dx.reborrow());
            }
        }
    }
    let columns = if single { Some(dx) } else { rest };
    if let Some(columns) = columns {
        overflow += finish_columns(cpu, &problem.y, &own, write, columns);
    }
    (overflow, totals)
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
        let (mut sum, mut g) = (cpu.scratch::<T::Acc>(d), cpu.scratch::<T::Acc>(d));
        let mut lost = 0;
        for r in 0..band.rows() {
            let j = first + r;
            if sums.is_empty() {
                sum.copy_from_slice(bytemuck::cast_slice(&*band.row_mut(r)));
            } else {
                sum.copy_from_slice(&sums[j * d..][..d]);
            }
            lost += finish(cpu, y, j, &sum, &mut g, write, band.row_mut(r));
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
    sum: &[T::Acc],
    g: &mut [T::Acc],
    write: WriteMode,
    out: &mut [G],
) -> u32 {
    let through = of.rows.scales.map(|scales| (of.rows.mat.row(i), scales[i]));
    let term = Term { row: sum, pow2: T::Acc::ONE, factor: T::Acc::ONE };
    write_gradient(cpu, &[term], through, g, write, out)
}

/// A band of rows.
struct Wave<'a, T: Element, F> {
    problem: &'a Problem<'a, T, F>,
    columns: &'a ColumnCoefficients<T::Acc>,
    rows: Range<usize>,
    /// Rows with padding.
    padded: usize,
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
}

impl<T: Element, F: Form<T::Acc>> Wave<'_, T, F> {
    /// Adds to the columns' `sums`, and returns the rows' gradients.
    fn run(&self, cpu: &Cpu, sums: MatMut<'_, T::Acc>, totals: &mut Totals) -> OfRows<T::Acc> {
        let (m, d) = (self.problem.y.rows.mat.rows(), self.problem.y.rows.mat.cols());
        let (_, nr) = cpu.isa().register_rows::<T::Acc>();
        let mut band = cpu.scratch::<T::Acc>(d.div_ceil(K_BLOCK) * self.padded * K_BLOCK);
        let mut inv = vec![T::Acc::ZERO; self.padded];
        pack_band(cpu, self.problem.x.rows, self.rows.clone(), &mut band, &mut inv);
        let mut features = cpu.scratch::<T::Acc>(d.next_multiple_of(nr) * self.rows.len());
        pack_features(cpu, &self.problem.x, self.rows.clone(), 0..d, &mut features);
        let shared = Shared { band: &band, inv: &inv, features: &features };
        let mut weights = cpu.scratch::<T::Acc>(m.next_multiple_of(CHUNK) * self.padded);
        let mut parts = vec![Totals::default(); m.div_ceil(CHUNK)];
        let work = self.rows.len().saturating_mul(m).saturating_mul(d);
        let chunks = weights.chunks_mut(CHUNK * self.padded).zip(parts.iter_mut()).zip(bands(sums, CHUNK));
        let chunks: Vec<_> = chunks.collect();
        let start = || Chunk::new(cpu, self, nr);
        cpu.each_with(work.saturating_mul(2), chunks.into_iter(), start, |own, ((weights, part), (first, sums))| {
            let cols = first..(first + CHUNK).min(m);
            *part = self.chunk(cpu, &shared, own, &cols, weights, sums);
        });
        for part in parts {
            totals.weighted_similarity += part.weighted_similarity;
            totals.weight += part.weight;
        }
        self.products(cpu, &weights, nr)
    }

    /// `W` of the columns `cols`: into `weights` as a band of the rows' product, and times the rows onto `sums`.
    fn chunk(
        &self,
        cpu: &Cpu,
        shared: &Shared<'_, T::Acc>,
        own: &mut Chunk<'_, T::Acc>,
        cols: &Range<usize>,
        weights: &mut [T::Acc],
        mut sums: MatMut<'_, T::Acc>,
    ) -> Totals {
        let d = self.problem.y.rows.mat.cols();
        let (mr, nr) = cpu.isa().register_rows::<T::Acc>();
        let panels = pack_panels(cpu, self.problem.y.rows, cols, Packer::Caller);
        let (panels, col_inv) = panels.of(cols);
        let ld = cols.len().next_multiple_of(nr);
        let tile = &mut own.tile[..self.padded * ld];
        let scale = col_inv.map(|c| (shared.inv, c));
        cpu.isa().run(Multiply { band: shared.band, panels, depth: d, out: tile, scale, add: false });
        let totals = self.weigh(cpu, tile, ld, cols, &mut own.row);
        // The band's padding takes part in no sum: the depth of both products ends before it.
        for (block, out) in weights.chunks_exact_mut(self.padded * K_BLOCK).enumerate().take(ld.div_ceil(K_BLOCK)) {
            let at = block * K_BLOCK;
            let width = K_BLOCK.min(ld - at);
            for (row, out) in tile.chunks_exact(ld).zip(out.chunks_exact_mut(K_BLOCK)) {
                out[..width].copy_from_slice(&row[at..at + width]);
            }
        }
        let padded_cols = cols.len().next_multiple_of(mr);
        let turned = &mut own.turned[..self.padded.div_ceil(K_BLOCK) * padded_cols * K_BLOCK];
        cpu.isa().run(Turn { tile, ld, rows: self.padded, out: turned, out_rows: padded_cols });
        let blocks = self.rows.len().div_ceil(K_BLOCK);
        let turned = &turned[..blocks * padded_cols * K_BLOCK];
        let wide = d.next_multiple_of(nr);
        let out = &mut own.product[..padded_cols * wide];
        let depth = self.rows.len();
        cpu.isa().run(Multiply { band: turned, panels: shared.features, depth, out, scale: None, add: false });
        for (j, row) in out.chunks_exact(wide).enumerate().take(cols.len()) {
            for (sum, v) in sums.row_mut(j).iter_mut().zip(row) {
                *sum += *v;
            }
        }
        totals
    }

    /// Replaces the similarities of a tile by weights.
    fn weigh(
        &self,
        cpu: &Cpu,
        tile: &mut [T::Acc],
        ld: usize,
        cols: &Range<usize>,
        own: &mut RowScratch<T::Acc>,
    ) -> Totals {
        let problem = self.problem;
        let (anchors, objective) = (problem.anchors, problem.objective);
        let columns = self.columns.of(cols, ld);
        let log_q = padded(&problem.log_q[cols.clone()], ld);
        own.class[cols.len()..ld].fill(0);
        let mut totals = Totals::default();
        let mut positives: Vec<(usize, f64)> = Vec::new();
        for (row, i) in tile.chunks_exact_mut(ld).zip(self.rows.clone()) {
            positives.clear();
            if problem.classes.of_row(i, cols, &mut own.class) {
                for c in (0..cols.len()).filter(|&c| own.class[c] == POSITIVE) {
                    let (s, j) = (row[c].to_f64(), cols.start + c);
                    let mut w = weight(objective, s, log_q[c].to_f64(), &anchors.rows[i].positive);
                    if let Some(column) = anchors.cols.get(j) {
                        w += weight(objective, s, 0.0, &column.positive);
                    }
                    let w = w * problem.upstream;
                    totals.weighted_similarity += w * s;
                    totals.weight += w;
                    positives.push((c, w));
                }
            }
            let [similarity, sum] = cpu.isa().run(Weigh {
                s: row,
                class: &own.class[..ld],
                log_q: &log_q,
                row: coefficient(&anchors.rows[i], problem.upstream, problem.rows_p[i]),
                columns: &columns,
                form: problem.form,
                products: &mut own.products[..ld],
            });
            totals.weighted_similarity += similarity;
            totals.weight += sum;
            for &(c, w) in &positives {
                row[c] = T::Acc::from_f64(w);
            }
        }
        tile[self.rows.len() * ld..].fill(T::Acc::ZERO);
        totals
    }

    /// The band of `W` times the columns.
    fn products(&self, cpu: &Cpu, weights: &[T::Acc], nr: usize) -> OfRows<T::Acc> {
        let (m, d) = (self.problem.y.rows.mat.rows(), self.problem.y.rows.mat.cols());
        let width = (2 * nr).min(d.next_multiple_of(nr));
        let mut data = vec![T::Acc::ZERO; self.padded * d.next_multiple_of(width)];
        let work = self.rows.len().saturating_mul(m).saturating_mul(d);
        let slices = data.chunks_exact_mut(self.padded * width).enumerate();
        let start = || cpu.scratch::<T::Acc>(BLOCKS * K_BLOCK * width);
        cpu.each_with(work, slices, start, |panels, (slice, out)| {
            let features = slice * width..((slice + 1) * width).min(d);
            for first in (0..m).step_by(BLOCKS * K_BLOCK) {
                let cols = first..(first + BLOCKS * K_BLOCK).min(m);
                let panels = &mut panels[..cols.len() * width];
                pack_features(cpu, &self.problem.y, cols.clone(), features.clone(), panels);
                let band = &weights[first * self.padded..][..cols.len().div_ceil(K_BLOCK) * K_BLOCK * self.padded];
                cpu.isa().run(Multiply { band, panels, depth: cols.len(), out, scale: None, add: first > 0 });
            }
        });
        OfRows { data, width, padded: self.padded }
    }

    /// Adds the rows' gradients to those of the same rows as columns.
    fn add(&self, of_rows: &OfRows<T::Acc>, sums: &mut MatMut<'_, T::Acc>) {
        let mut row = vec![T::Acc::ZERO; sums.cols()];
        for (r, i) in self.rows.clone().enumerate() {
            of_rows.row(r, &mut row);
            sums.row_mut(i).iter_mut().zip(&row).for_each(|(sum, v)| *sum += *v);
        }
    }

    /// Writes the rows' gradients.
    fn finish<G: GradientOf<T>>(
        &self,
        cpu: &Cpu,
        of_rows: &OfRows<T::Acc>,
        write: WriteMode,
        dx: MatMut<'_, G>,
    ) -> u32 {
        let d = dx.cols();
        let (total, stride) = (dx.rows(), dx.row_stride());
        let start = self.rows.start * stride;
        let data = dx.into_data();
        // The last row may end short of its stride.
        let end = if self.rows.end == total { data.len() } else { self.rows.end * stride };
        let Ok(part) = MatMut::with_stride(&mut data[start..end], self.rows.len(), d, stride) else { return 0 };
        let overflow = AtomicU32::new(0);
        cpu.each(self.rows.len().saturating_mul(d), bands(part, ROWS_PER_ITEM), |(first, mut band)| {
            let (mut sum, mut g) = (cpu.scratch::<T::Acc>(d), cpu.scratch::<T::Acc>(d));
            let mut lost = 0;
            for r in 0..band.rows() {
                of_rows.row(first + r, &mut sum);
                lost += finish(cpu, &self.problem.x, self.rows.start + first + r, &sum, &mut g, write, band.row_mut(r));
            }
            overflow.fetch_add(lost, Ordering::Relaxed);
        });
        overflow.into_inner()
    }
}

/// What all chunks of a wave read.
struct Shared<'a, A> {
    /// The rows as the left operand of `S`.
    band: &'a [A],
    inv: &'a [A],
    /// The rows as the right operand of the columns' product.
    features: &'a [A],
}

/// What a thread keeps from chunk to chunk.
struct Chunk<'c, A> {
    tile: crate::cpu::pool::Scratch<'c, A>,
    turned: crate::cpu::pool::Scratch<'c, A>,
    product: crate::cpu::pool::Scratch<'c, A>,
    row: RowScratch<A>,
}

/// Memory for one row of a tile.
struct RowScratch<A> {
    class: Vec<u32>,
    products: Vec<A>,
}

impl<'c, A: Accum> Chunk<'c, A> {
    fn new<T: Element<Acc = A>, F>(cpu: &'c Cpu, wave: &Wave<'_, T, F>, nr: usize) -> Self {
        let (mr, _) = cpu.isa().register_rows::<A>();
        let wide = wave.problem.y.rows.mat.cols().next_multiple_of(nr);
        let (high, long) = (CHUNK.next_multiple_of(mr), CHUNK.next_multiple_of(nr));
        Self {
            tile: cpu.scratch(wave.padded * long),
            turned: cpu.scratch(wave.padded.div_ceil(K_BLOCK) * high * K_BLOCK),
            product: cpu.scratch(high * wide),
            row: RowScratch { class: vec![0; long], products: vec![A::ZERO; long] },
        }
    }
}

/// Similarities of one row to weights of its negatives, 0 for all else; returns `[Σ w s, Σ w]`.
struct Weigh<'a, A, F> {
    s: &'a mut [A],
    class: &'a [u32],
    log_q: &'a [A],
    row: Coefficient<A>,
    /// Empty if columns are no anchors.
    columns: &'a ColumnCoefficients<A>,
    form: F,
    products: &'a mut [A],
}

impl<A: Accum, F: Form<A>> Kernel<A> for Weigh<'_, A, F> {
    type Out = [f64; 2];

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> [f64; 2] {
        let Self { s, class, log_q, row, columns, form, products } = self;
        let width = s.len();
        let (class, log_q, products) = (&class[..width], &log_q[..width], &mut products[..width]);
        if columns.a.is_empty() {
            for c in 0..width {
                let w = form.weight(s[c], log_q[c], row);
                let w = if class[c] == NEGATIVE { w } else { A::ZERO };
                products[c] = if class[c] == NEGATIVE { w * s[c] } else { A::ZERO };
                s[c] = w;
            }
        } else {
            let (a, m, p) = (&columns.a[..width], &columns.m[..width], &columns.p[..width]);
            for c in 0..width {
                let column = Coefficient { a: a[c], m: m[c], p: p[c] };
                let w = form.weight(s[c], log_q[c], row) + form.weight(s[c], A::ZERO, column);
                let w = if class[c] == NEGATIVE { w } else { A::ZERO };
                products[c] = if class[c] == NEGATIVE { w * s[c] } else { A::ZERO };
                s[c] = w;
            }
        }
        [total::<A, S>(products).to_f64(), total::<A, S>(s).to_f64()]
    }
}

/// A tile `(rows, ld)` transposed into a band `(row blocks, out_rows, K_BLOCK)`.
struct Turn<'a, A> {
    tile: &'a [A],
    ld: usize,
    /// A multiple of 8.
    rows: usize,
    out: &'a mut [A],
    out_rows: usize,
}

impl<A: Accum> Kernel<A> for Turn<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let Self { tile, ld, rows, out, out_rows } = self;
        for (block, out) in out.chunks_exact_mut(out_rows * K_BLOCK).enumerate() {
            let first = block * K_BLOCK;
            for r in (first..rows.min(first + K_BLOCK)).step_by(8) {
                for c in (0..ld.min(out_rows / 8 * 8)).step_by(8) {
                    S::transpose_8x8(&tile[r * ld + c..], ld, &mut out[c * K_BLOCK + (r - first)..], K_BLOCK);
                }
                for c in out_rows / 8 * 8..out_rows {
                    for k in 0..8 {
                        out[c * K_BLOCK + (r - first) + k] = if c < ld { tile[(r + k) * ld + c] } else { A::ZERO };
                    }
                }
            }
        }
    }
}

/// Packs the features `features` of the unit rows `rows` into panels `(rows, NR)`, with zeros for rows that are left out
/// and behind the features.
fn pack_features<T: Element>(
    cpu: &Cpu,
    of: &Operand<'_, T>,
    rows: Range<usize>,
    features: Range<usize>,
    out: &mut [T::Acc],
) {
    let (_, nr) = cpu.isa().register_rows::<T::Acc>();
    let count = rows.len();
    for (panel, out) in out.chunks_exact_mut(count * nr).enumerate() {
        let from = features.start + panel * nr;
        if from >= features.end {
            out.fill(T::Acc::ZERO);
            continue;
        }
        let to = (from + nr).min(features.end);
        for (j, out) in rows.clone().zip(out.chunks_exact_mut(nr)) {
            if of.left_out[j] {
                out.fill(T::Acc::ZERO);
            } else {
                cpu.isa().run(UnitPart { x: &of.rows.mat.row(j)[from..to], scale: of.rows.scale(j), out });
            }
        }
    }
}

/// `out = (x * pow2) * inv`, and zeros behind it.
struct UnitPart<'a, T: Element> {
    x: &'a [T],
    scale: RowScale<T::Acc>,
    out: &'a mut [T::Acc],
}

impl<T: Element> Kernel<T::Acc> for UnitPart<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) {
        let (pow2, inv) = (S::splat(self.scale.pow2), S::splat(self.scale.inv));
        let (out, rest) = self.out.split_at_mut(self.x.len());
        for (x, out) in self.x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
            if x.len() == S::LANES {
                store::<T::Acc, S>(S::mul(S::mul(load::<T, S>(x), pow2), inv), out);
            } else {
                store_part::<T::Acc, S>(S::mul(S::mul(load_part::<T, S>(x), pow2), inv), out);
            }
        }
        rest.fill(T::Acc::ZERO);
    }
}

/// The rows that take no part in products; see [`Operand::left_out`].
pub(super) fn left_out<A>(scales: &[RowScale<A>], normalised: bool, ignored: impl Fn(usize) -> bool) -> Vec<bool> {
    let not_finite = |kind: RowKind| normalised && kind == RowKind::NotFinite;
    scales.iter().enumerate().map(|(i, scale)| ignored(i) || not_finite(scale.kind)).collect()
}
