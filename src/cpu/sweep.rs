//! One sweep over the tiles of the similarity matrix: how it is cut into pieces, and the loop over a piece.

use std::ops::Range;

use super::pack::{Packer, Panels, Rows, SLICE_ELEMENTS, band_len, pack_band, pack_panels, packed_depth, slices};
use super::pairs;
use super::pool::{Cpu, Scratch};
use super::product::{Diagonal, Multiply};
use super::real::Real;
use crate::dtype::{Accum, Element};

/// How a similarity matrix is cut. It follows from the shape alone (and the size of a register tile), never from the
/// number of threads: statistics that are sums depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows packed together.
    pub(super) band: usize,
    /// Columns multiplied at a time.
    pub(super) block: usize,
    /// Rows of a piece of work, a multiple of `band`.
    piece_rows: usize,
    /// Columns of a piece of work, a multiple of a panel.
    piece_cols: usize,
    /// Whether every piece packs its own columns.
    own_panels: bool,
    /// Bands of rows that a thread keeps in packed form.
    kept_bands: usize,
    /// Whether features are multiplied in pairs, which changes no bit: see [`super::pairs`].
    pairs: bool,
}

/// Similarities of some rows and columns, padded to whole register tiles.
pub(super) struct Tile<'a, A> {
    /// Row stride `ld`, which is the padded number of columns. Padding holds arbitrary values.
    pub(super) data: &'a mut [A],
    pub(super) ld: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

/// Part of the similarity matrix that one thread computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl Plan {
    /// Pieces to aim for in a small matrix, where every one costs something.
    const WANTED_PIECES: usize = 8;
    /// Pieces to aim for, so that a late thread costs little.
    const MANY_PIECES: usize = 24;
    /// Rows of a band: enough that the traffic of `Y` from memory is less than a byte per cycle.
    const BAND: usize = 96;

    /// Multiply-adds up to which each thread packs what it reads, though others pack the same.
    const SMALL: usize = 1 << 27;

    pub(super) fn new<A: Real>(cpu: &Cpu, n: usize, m: usize, depth: usize) -> Self {
        let work = n.saturating_mul(m).saturating_mul(depth);
        if work <= Self::SMALL && m.saturating_mul(depth) <= SLICE_ELEMENTS {
            Self::by_columns::<A>(cpu, n, m, depth)
        } else {
            Self::by_rows::<A>(cpu, n, m)
        }
    }

    /// As [`Self::new`] if the tiles are written to a matrix by rows: then no two pieces share a cache line of it, and of
    /// two threads none waits for lines that the other one has written.
    pub(super) fn of_output<A: Real>(cpu: &Cpu, n: usize, m: usize, depth: usize) -> Self {
        /// Elements of packed columns that each thread packs for itself: half of a second-level cache of 1 MiB in `f32`.
        const OWN_ELEMENTS: usize = 1 << 17;
        /// With fewer rows there are not enough pieces.
        const FEWEST_ROWS: usize = 64;
        let work = n.saturating_mul(m).saturating_mul(depth);
        let plan = Self::by_rows::<A>(cpu, n, m);
        if n >= FEWEST_ROWS && work <= Self::SMALL && m.saturating_mul(depth) <= OWN_ELEMENTS {
            return Self { piece_cols: m.max(1).next_multiple_of(plan.block), own_panels: true, ..plan };
        }
        if work <= Self::SMALL && m.saturating_mul(depth) <= SLICE_ELEMENTS {
            return Self::by_columns::<A>(cpu, n, m, depth);
        }
        plan
    }

    /// For a small matrix: pieces of all rows, so that no thread reads what another has packed.
    fn by_columns<A: Real>(cpu: &Cpu, n: usize, m: usize, depth: usize) -> Self {
        /// Elements of packed rows worth keeping: half of a second-level cache of 1 MiB in `f32`.
        const KEPT_ELEMENTS: usize = 1 << 17;
        let (mr, nr) = cpu.isa().register_rows::<A>();
        // Bands of equal size.
        let band = n.div_ceil(n.div_ceil(Self::BAND).max(1)).max(1).next_multiple_of(mr);
        let piece_cols = m.div_ceil(nr).div_ceil(Self::WANTED_PIECES).max(1) * nr;
        let piece_rows = n.next_multiple_of(band).max(band);
        let kept_bands = if n.saturating_mul(depth) <= KEPT_ELEMENTS { n.div_ceil(band).max(1) } else { 1 };
        Self { band, block: 8 * nr, piece_rows, piece_cols, own_panels: true, kept_bands, pairs: false }
    }

    fn by_rows<A: Real>(cpu: &Cpu, n: usize, m: usize) -> Self {
        /// Pieces in a column: the column statistics of all of them are held at once.
        const MOST_IN_COLUMN: usize = 64;
        let (mr, nr) = cpu.isa().register_rows::<A>();
        // In multiples of four, so that few threads get as many each.
        let bands = n.div_ceil(Self::BAND).next_multiple_of(4).max(Self::WANTED_PIECES);
        let band = n.div_ceil(bands).max(16).next_multiple_of(mr);
        let block = 8 * nr;
        let piece_rows = n.div_ceil(band).div_ceil(MOST_IN_COLUMN).max(1) * band;
        let row_pieces = n.div_ceil(piece_rows).max(1);
        let col_pieces = Self::MANY_PIECES.div_ceil(row_pieces);
        let piece_cols = m.div_ceil(col_pieces).max(1).next_multiple_of(block);
        Self { band, block, piece_rows, piece_cols, own_panels: false, kept_bands: 1, pairs: false }
    }

    /// With products in pairs if these rows admit it.
    pub(super) fn with_pairs<T: Element>(self, cpu: &Cpu, x: Rows<'_, T>, y: Rows<'_, T>) -> Self {
        Self { pairs: pairs::fit(cpu, x, y), ..self }
    }

    /// The slices of the `m` columns that are swept one after the other.
    pub(super) fn slices(&self, m: usize, depth: usize) -> Vec<Range<usize>> {
        if self.own_panels { std::iter::once(0..m).collect() } else { slices(m, depth, self.block).collect() }
    }

    /// The panels of a slice that all pieces use.
    pub(super) fn shared_panels<'c, T: Element>(
        &self,
        cpu: &'c Cpu,
        y: Rows<'_, T>,
        cols: &Range<usize>,
    ) -> Option<Panels<'c, T::Acc>> {
        (!self.own_panels).then(|| pack_panels(cpu, y, cols, Packer::All, self.pairs))
    }

    /// The pieces of `n` rows and the columns `cols`, row by row.
    pub(super) fn pieces(&self, n: usize, cols: &Range<usize>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for row in (0..n).step_by(self.piece_rows) {
            for col in cols.clone().step_by(self.piece_cols) {
                pieces.push(Piece {
                    rows: row..(row + self.piece_rows).min(n),
                    cols: col..(col + self.piece_cols).min(cols.end),
                });
            }
        }
        pieces
    }
}

/// What a thread keeps from one piece to the next: packed bands of `X`, and memory for a tile.
pub(super) struct Bands<'c, A> {
    data: Scratch<'c, A>,
    band_len: usize,
    inv: Vec<A>,
    /// First row of the band in each place.
    held: Vec<Option<usize>>,
    /// The panels of the last piece that packed its own.
    panels: Option<Panels<'c, A>>,
}

impl<'c, A: Accum> Bands<'c, A> {
    pub(super) fn new(cpu: &'c Cpu, plan: Plan, depth: usize) -> Self {
        let band_len = band_len(plan.band, depth, plan.pairs);
        Self {
            data: cpu.scratch(plan.kept_bands * band_len + plan.band * plan.block),
            band_len,
            inv: vec![A::ZERO; plan.kept_bands * plan.band],
            held: vec![None; plan.kept_bands],
            panels: None,
        }
    }

    /// The packed columns of a piece; those that the last one left if they are the same.
    fn take_panels<T: Element<Acc = A>>(
        &mut self,
        cpu: &'c Cpu,
        plan: Plan,
        y: Rows<'_, T>,
        cols: &Range<usize>,
    ) -> Panels<'c, A> {
        let held = self.panels.take();
        held.filter(|held| held.holds(cols)).unwrap_or_else(|| pack_panels(cpu, y, cols, Packer::Caller, plan.pairs))
    }

    /// The packed band of `rows`, padded to `padded` rows, its factors, and memory for a tile.
    fn get<T: Element<Acc = A>>(
        &mut self,
        cpu: &Cpu,
        plan: Plan,
        x: Rows<'_, T>,
        rows: &Range<usize>,
        padded: usize,
    ) -> (&[A], &[A], &mut [A]) {
        let place = rows.start / plan.band % self.held.len();
        let (bands, tile) = self.data.split_at_mut(self.held.len() * self.band_len);
        let band = &mut bands[place * self.band_len..][..band_len(padded, x.mat.cols(), plan.pairs)];
        let inv = &mut self.inv[place * plan.band..][..padded];
        if self.held[place] != Some(rows.start) {
            pack_band(cpu, x, rows.clone(), plan.pairs, band, inv);
            self.held[place] = Some(rows.start);
        }
        (band, inv, tile)
    }
}

/// Computes the tiles of `piece` that `want` (given the rows and columns of one) asks for, and hands each to `visit`,
/// band by band, columns ascending. Packs the columns where no `shared` panels hold them.
#[allow(clippy::too_many_arguments)]
pub(super) fn sweep_piece<'c, T: Element>(
    cpu: &'c Cpu,
    plan: Plan,
    x: Rows<'_, T>,
    y: Rows<'_, T>,
    shared: Option<&Panels<'_, T::Acc>>,
    bands: &mut Bands<'c, T::Acc>,
    piece: &Piece,
    want: impl Fn(&Range<usize>, &Range<usize>) -> bool,
    mut visit: impl FnMut(Tile<'_, T::Acc>),
) {
    let (mr, nr) = cpu.isa().register_rows::<T::Acc>();
    let depth = packed_depth(x.mat.cols(), plan.pairs);
    let own = shared.is_none().then(|| bands.take_panels(cpu, plan, y, &piece.cols));
    let Some(panels) = shared.or(own.as_ref()) else { return };
    for row in piece.rows.clone().step_by(plan.band) {
        let rows = row..(row + plan.band).min(piece.rows.end);
        let padded = rows.len().next_multiple_of(mr);
        for col in piece.cols.clone().step_by(plan.block) {
            let cols = col..(col + plan.block).min(piece.cols.end);
            if !want(&rows, &cols) {
                continue;
            }
            let (band, inv, tile) = bands.get(cpu, plan, x, &rows, padded);
            let ld = cols.len().next_multiple_of(nr);
            let (columns, col_inv) = panels.of(&cols);
            let out = &mut tile[..padded * ld];
            let scale = col_inv.map(|c| (inv, c));
            let product = Multiply { band, panels: columns, depth, out, ld, scale, add: false };
            cpu.isa().multiply(plan.pairs, product);
            visit(Tile { data: out, ld, rows: rows.clone(), cols });
        }
    }
    bands.panels = own;
}

/// Sweeps the whole matrix. Each piece gets its own result, begun by `start` and filled by `visit`; `merge` receives
/// the results in a fixed order.
pub(super) fn sweep<T: Element, P: Send>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    y: Rows<'_, T>,
    want: impl Fn(&Range<usize>, &Range<usize>) -> bool + Sync,
    start: impl Fn(&Piece) -> P + Sync,
    visit: impl Fn(&mut P, Tile<'_, T::Acc>) + Sync,
    mut merge: impl FnMut(&Piece, P),
) {
    let (n, m, depth) = (x.mat.rows(), y.mat.rows(), x.mat.cols());
    let plan = Plan::new::<T::Acc>(cpu, n, m, depth).with_pairs(cpu, x, y);
    for cols in plan.slices(m, depth) {
        let shared = plan.shared_panels(cpu, y, &cols);
        let pieces = plan.pieces(n, &cols);
        let work = n.saturating_mul(cols.len()).saturating_mul(depth);
        let bands = || Bands::new(cpu, plan, depth);
        let parts = cpu.map_with(work, pieces.len(), bands, |bands, p| {
            let mut part = start(&pieces[p]);
            sweep_piece(cpu, plan, x, y, shared.as_ref(), bands, &pieces[p], &want, |tile| visit(&mut part, tile));
            part
        });
        for (piece, part) in pieces.iter().zip(parts) {
            merge(piece, part);
        }
    }
}

/// `S[i, i]` for every `i < min(n, m)`, with the bits that a sweep gives it.
pub(super) fn diagonal<T: Element>(cpu: &Cpu, x: Rows<'_, T>, y: Rows<'_, T>) -> Vec<T::Acc> {
    let (mr, nr) = cpu.isa().register_rows::<T::Acc>();
    let depth = x.mat.cols();
    let mut positive = vec![T::Acc::ZERO; x.mat.rows().min(y.mat.rows())];
    let work = positive.len().saturating_mul(depth).saturating_mul(nr);
    cpu.each(work, positive.chunks_mut(nr).enumerate(), |(p, out)| {
        let pairs = p * nr..p * nr + out.len();
        let padded = pairs.len().next_multiple_of(mr);
        let mut band = cpu.scratch::<T::Acc>(band_len(padded, depth, false));
        let mut inv = vec![T::Acc::ZERO; padded];
        pack_band(cpu, x, pairs.clone(), false, &mut band, &mut inv);
        let panels = pack_panels(cpu, y, &pairs, Packer::Caller, false);
        let (panels, col_inv) = panels.of(&pairs);
        let scale = col_inv.map(|c| (&inv[..], c));
        cpu.isa().run(Diagonal { band: &band, panels, depth, scale, out });
    });
    positive
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::tile::Isa;
    use crate::matrix::MatRef;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn all_similarities(cpu: &Cpu, x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Vec<f32> {
        let (x, y) = (Rows { mat: x, scales: None }, Rows { mat: y, scales: None });
        let mut s = vec![f32::NAN; x.mat.rows() * y.mat.rows()];
        let m = y.mat.rows();
        let visit = |part: &mut Vec<(usize, f32)>, tile: Tile<'_, f32>| {
            for (r, i) in tile.rows.clone().enumerate() {
                part.extend(tile.cols.clone().enumerate().map(|(c, j)| (i * m + j, tile.data[r * tile.ld + c])));
            }
        };
        let merge = |_: &Piece, part: Vec<(usize, f32)>| part.into_iter().for_each(|(at, v)| s[at] = v);
        sweep(cpu, x, y, |_, _| true, |_| Vec::new(), visit, merge);
        let diagonal = diagonal(cpu, x, y);
        for (i, p) in diagonal.iter().enumerate() {
            assert_eq!(p.to_bits(), s[i * m + i].to_bits(), "pair {i}");
        }
        s
    }

    #[test]
    fn similarities_are_right_and_independent_of_position() {
        for isa in Isa::available() {
            for (n, m, d) in [(1, 1, 1), (7, 33, 5), (100, 70, 129), (130, 300, 257), (300, 700, 700)] {
                let (x, y) = (noise(n * d, 1), noise(m * d, 2));
                let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
                let s = all_similarities(&Cpu::build(2, isa).unwrap(), x, y);
                for i in 0..n {
                    for j in 0..m {
                        let want: f64 = (0..d).map(|k| f64::from(x.row(i)[k]) * f64::from(y.row(j)[k])).sum();
                        assert!((f64::from(s[i * m + j]) - want).abs() < 2e-5, "{} {i} {j}", isa.name());
                    }
                }
                let (i, j) = (n / 2, m / 2);
                let (x1, y1) = (MatRef::new(x.row(i), 1, d).unwrap(), MatRef::new(y.row(j), 1, d).unwrap());
                let alone = all_similarities(&Cpu::build(1, isa).unwrap(), x1, y1);
                assert_eq!(alone[0].to_bits(), s[i * m + j].to_bits());
            }
        }
    }

    #[test]
    fn pieces_cover_the_matrix_once() {
        let cpu = Cpu::with_threads(1).unwrap();
        for (n, m) in [(1, 1), (5, 100_000), (128, 128), (4096, 4096), (100_000, 3)] {
            for depth in [1, 1024] {
                let plan = Plan::new::<f32>(&cpu, n, m, depth);
                let pieces = plan.slices(m, depth).into_iter().flat_map(|cols| plan.pieces(n, &cols));
                assert_eq!(pieces.map(|p| p.rows.len() * p.cols.len()).sum::<usize>(), n * m);
                assert!(n.div_ceil(plan.piece_rows) <= 64);
            }
        }
    }
}
