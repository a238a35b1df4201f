//! One sweep over the tiles of the similarity matrix: how it is cut into pieces, and the loop over a piece.

use std::ops::Range;

use super::pack::{Columns, Panels, Rows, pack_band};
use super::pool::Cpu;
use super::product::{Diagonal, K_BLOCK, Multiply};
use super::real::Real;
use crate::dtype::Element;

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
    /// Columns of a piece of work, a multiple of `block`.
    piece_cols: usize,
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
    pub(super) fn new<A: Real>(cpu: &Cpu, n: usize, m: usize) -> Self {
        /// Bands per piece are chosen so that the column statistics of all pieces stay this many times those of one.
        const MOST_PIECE_ROWS: usize = 64;
        /// Pieces to aim for, so that a late thread costs little.
        const WANTED_PIECES: usize = 8;
        let (mr, nr) = cpu.isa().register_rows::<A>();
        // 96 rows amortise the traffic of `Y` from memory to less than a byte per cycle; a small batch is cut into at
        // least 8 bands, but not below 16 rows, where reading `Y` from the second-level cache would dominate.
        let band = n.div_ceil(WANTED_PIECES).clamp(16, 96).next_multiple_of(mr);
        let block = 8 * nr;
        let piece_rows = n.div_ceil(band).div_ceil(MOST_PIECE_ROWS).max(1) * band;
        let row_pieces = n.div_ceil(piece_rows).max(1);
        let col_pieces = WANTED_PIECES.div_ceil(row_pieces);
        let piece_cols = m.div_ceil(col_pieces).max(1).next_multiple_of(block);
        Self { band, block, piece_rows, piece_cols }
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

/// Computes the tiles of `piece` that `want` (given the rows and columns of one) asks for, and hands each to `visit`,
/// band by band, columns ascending.
pub(super) fn sweep_piece<T: Element>(
    cpu: &Cpu,
    plan: Plan,
    x: Rows<'_, T>,
    panels: &Panels<'_, T::Acc>,
    piece: &Piece,
    want: impl Fn(&Range<usize>, &Range<usize>) -> bool,
    mut visit: impl FnMut(Tile<'_, T::Acc>),
) {
    let (mr, nr) = cpu.isa().register_rows::<T::Acc>();
    let depth = x.mat.cols();
    let band_len = depth.div_ceil(K_BLOCK) * plan.band.min(piece.rows.len().next_multiple_of(mr)) * K_BLOCK;
    let mut scratch = cpu.scratch::<T::Acc>(band_len + plan.band * plan.block);
    let (band, tile) = scratch.split_at_mut(band_len);
    let mut inv = vec![T::Acc::ZERO; plan.band];
    for row in piece.rows.clone().step_by(plan.band) {
        let rows = row..(row + plan.band).min(piece.rows.end);
        let padded = rows.len().next_multiple_of(mr);
        let band = &mut band[..depth.div_ceil(K_BLOCK) * padded * K_BLOCK];
        let mut packed = false;
        for col in piece.cols.clone().step_by(plan.block) {
            let cols = col..(col + plan.block).min(piece.cols.end);
            if !want(&rows, &cols) {
                continue;
            }
            if !packed {
                pack_band(cpu, x, rows.clone(), band, &mut inv[..padded]);
                packed = true;
            }
            let ld = cols.len().next_multiple_of(nr);
            let (columns, col_inv) = panels.of(&cols);
            let out = &mut tile[..padded * ld];
            let scale = col_inv.map(|c| (&inv[..], c));
            cpu.isa().run(Multiply { band, panels: columns, depth, out, scale });
            visit(Tile { data: out, ld, rows: rows.clone(), cols });
        }
    }
}

/// Sweeps the whole matrix. Each piece gets its own result, begun by `start` and filled by `visit`; `merge` receives
/// the results in a fixed order.
pub(super) fn sweep<T: Element, P: Send>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    columns: &mut Columns<'_, '_, T>,
    want: impl Fn(&Range<usize>, &Range<usize>) -> bool + Sync,
    start: impl Fn(&Piece) -> P + Sync,
    visit: impl Fn(&mut P, Tile<'_, T::Acc>) + Sync,
    mut merge: impl FnMut(&Piece, P),
) {
    let (n, depth) = (x.mat.rows(), x.mat.cols());
    let plan = Plan::new::<T::Acc>(cpu, n, columns.len());
    for cols in columns.slices(plan.block) {
        let panels = columns.panels(&cols);
        let pieces = plan.pieces(n, &cols);
        let work = n.saturating_mul(cols.len()).saturating_mul(depth);
        let parts = cpu.map(work, pieces.len(), |p| {
            let mut part = start(&pieces[p]);
            sweep_piece(cpu, plan, x, panels, &pieces[p], &want, |tile| visit(&mut part, tile));
            part
        });
        for (piece, part) in pieces.iter().zip(parts) {
            merge(piece, part);
        }
    }
}

/// `S[i, i]` for every `i < min(n, m)`, with the bits that a sweep gives it.
pub(super) fn diagonal<T: Element>(cpu: &Cpu, x: Rows<'_, T>, columns: &mut Columns<'_, '_, T>) -> Vec<T::Acc> {
    let plan = Plan::new::<T::Acc>(cpu, x.mat.rows(), columns.len());
    let (mr, _) = cpu.isa().register_rows::<T::Acc>();
    let (depth, pairs) = (x.mat.cols(), x.mat.rows().min(columns.len()));
    let blocks = depth.div_ceil(K_BLOCK);
    let mut positive = vec![T::Acc::ZERO; pairs];
    for cols in columns.slices(plan.block) {
        if cols.start >= pairs {
            break;
        }
        let panels = columns.panels(&cols);
        let (packed, col_inv) = panels.of(&cols);
        let end = cols.end.min(pairs);
        let bands = positive[cols.start..end].chunks_mut(plan.band).enumerate();
        cpu.each((end - cols.start) * depth * 8, bands, |(b, out)| {
            let first = b * plan.band;
            let rows = cols.start + first..cols.start + first + out.len();
            let padded = rows.len().next_multiple_of(mr);
            let mut band = cpu.scratch::<T::Acc>(blocks * padded * K_BLOCK);
            let mut inv = vec![T::Acc::ZERO; padded];
            pack_band(cpu, x, rows, &mut band, &mut inv);
            let scale = col_inv.map(|c| (&inv[..], c));
            cpu.isa().run(Diagonal { band: &band, panels: packed, depth, first, scale, out });
        });
    }
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
        let mut columns = Columns::new(cpu, y);
        let mut s = vec![f32::NAN; x.mat.rows() * y.mat.rows()];
        let m = y.mat.rows();
        let visit = |part: &mut Vec<(usize, f32)>, tile: Tile<'_, f32>| {
            for (r, i) in tile.rows.clone().enumerate() {
                part.extend(tile.cols.clone().enumerate().map(|(c, j)| (i * m + j, tile.data[r * tile.ld + c])));
            }
        };
        let merge = |_: &Piece, part: Vec<(usize, f32)>| part.into_iter().for_each(|(at, v)| s[at] = v);
        sweep(cpu, x, &mut columns, |_, _| true, |_| Vec::new(), visit, merge);
        let diagonal = diagonal(cpu, x, &mut columns);
        for (i, p) in diagonal.iter().enumerate() {
            assert_eq!(p.to_bits(), s[i * m + i].to_bits(), "pair {i}");
        }
        s
    }

    #[test]
    fn similarities_are_right_and_independent_of_position() {
        for isa in Isa::available() {
            for (n, m, d) in [(1, 1, 1), (7, 33, 5), (100, 70, 129), (130, 300, 257)] {
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
            let plan = Plan::new::<f32>(&cpu, n, m);
            let area: usize = plan.pieces(n, &(0..m)).iter().map(|p| p.rows.len() * p.cols.len()).sum();
            assert_eq!(area, n * m);
            assert!(n.div_ceil(plan.piece_rows) <= 64);
        }
    }
}
