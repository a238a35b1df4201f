//! Statistics of a tile of similarities, while it is in the cache.

use std::ops::Range;

use super::Cpu;
use super::real::Real;
use super::side::{Collect, Entry, NegativeSet, Side};
use super::sweep::{Piece, Tile};
use super::tile::{Kernel, Simd};
use crate::dtype::Accum;
use crate::options::Groups;
use crate::outputs::NONE;

/// Which pairs are no candidates: the pair itself by index, and pairs of the same group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exclusion<'a> {
    pub(super) pairs: usize,
    pub(super) groups: Option<Groups<'a>>,
}

impl Exclusion<'_> {
    pub(super) fn excludes(&self, i: usize, j: usize) -> bool {
        (i == j && i < self.pairs) || self.groups.is_some_and(|g| g.rows[i] == g.cols[j])
    }
}

/// Statistics of a piece, and the scratch to collect those of a tile.
pub(super) struct Scan<A> {
    pub(super) rows: Side<A>,
    pub(super) cols: Side<A>,
    /// `S[i, i]` for the pairs of the piece, ascending.
    pub(super) positive: Vec<(usize, A)>,
    tile_rows: Side<A>,
    tile_cols: Side<A>,
    terms: Vec<A>,
}

impl<A: Accum> Scan<A> {
    pub(super) fn new(piece: &Piece, band: usize, block: usize, collect: &Collect<A>) -> Self {
        Self {
            rows: Side::new(piece.rows.len(), collect),
            cols: Side::new(piece.cols.len(), collect),
            positive: Vec::new(),
            tile_rows: Side::new(band, collect),
            tile_cols: Side::new(block, collect),
            terms: vec![A::ZERO; if collect.set.is_some() { block } else { 0 }],
        }
    }

    /// Adds a tile's candidates.
    pub(super) fn visit(
        &mut self,
        cpu: &Cpu,
        piece: &Piece,
        mut tile: Tile<'_, A>,
        exclusion: &Exclusion<'_>,
        collect: &Collect<A>,
    ) {
        self.mask(cpu, &mut tile, exclusion);
        self.tile_cols.clear();
        let clean = cpu.isa().run(Extremes {
            tile: &*tile.data,
            ld: tile.ld,
            count: tile.rows.len(),
            second: collect.second,
            rows: &mut self.tile_rows,
            cols: &mut self.tile_cols,
        });
        // Excluded candidates are marked by -inf, which a threshold of -inf would admit.
        let marked = collect.set.is_none_or(|set| set.threshold > A::NEG_INFINITY);
        if !(clean && marked) {
            return self.visit_one_by_one(piece, &tile, exclusion, collect);
        }
        if let Some(set) = collect.set {
            cpu.isa().run(Members {
                data: &mut *tile.data,
                ld: tile.ld,
                count: tile.rows.len(),
                set,
                rows: &mut self.tile_rows,
                cols: &mut self.tile_cols,
                terms: &mut self.terms,
            });
        }
        let (rows, cols) = offsets(piece, &tile);
        add_tile(&mut self.rows, rows, &self.tile_rows, tile.cols.start, collect);
        add_tile(&mut self.cols, cols, &self.tile_cols, tile.rows.start, collect);
    }

    /// Keeps the pairs' similarities, and marks everything that is no candidate by −∞.
    fn mask(&mut self, cpu: &Cpu, tile: &mut Tile<'_, A>, exclusion: &Exclusion<'_>) {
        let width = tile.cols.len();
        for (row, i) in tile.data.chunks_exact_mut(tile.ld).zip(tile.rows.clone()) {
            row[width..].fill(A::NEG_INFINITY);
            if i < exclusion.pairs && tile.cols.contains(&i) {
                let pair = &mut row[i - tile.cols.start];
                self.positive.push((i, *pair));
                *pair = A::NEG_INFINITY;
            }
            if let Some(groups) = exclusion.groups {
                cpu.isa().run(MaskGroup { row, cols: &groups.cols[tile.cols.clone()], group: groups.rows[i] });
            }
        }
    }

    /// The definition, for tiles that the vectorised loops do not cover.
    fn visit_one_by_one(&mut self, piece: &Piece, tile: &Tile<'_, A>, exclusion: &Exclusion<'_>, collect: &Collect<A>) {
        for (row, i) in tile.data.chunks_exact(tile.ld).zip(tile.rows.clone()) {
            for (&value, j) in row.iter().zip(tile.cols.clone()) {
                if !exclusion.excludes(i, j) {
                    self.rows.add(i - piece.rows.start, Entry::single(value, j as i32), collect);
                    self.cols.add(j - piece.cols.start, Entry::single(value, i as i32), collect);
                }
            }
        }
    }
}

/// Where a tile's rows and columns are within the piece.
fn offsets<A>(piece: &Piece, tile: &Tile<'_, A>) -> (Range<usize>, Range<usize>) {
    let within = |part: &Range<usize>, whole: &Range<usize>| part.start - whole.start..part.end - whole.start;
    (within(&tile.rows, &piece.rows), within(&tile.cols, &piece.cols))
}

/// Adds a tile's statistics, whose indices count from `first`.
fn add_tile<A: Accum>(side: &mut Side<A>, at: Range<usize>, tile: &Side<A>, first: usize, collect: &Collect<A>) {
    for (t, at) in at.enumerate() {
        let mut entry = tile.get(t);
        if entry.index != NONE {
            entry.index += first as i32;
            side.add(at, entry, collect);
        }
    }
}

struct MaskGroup<'a, A> {
    row: &'a mut [A],
    cols: &'a [i64],
    group: i64,
}

impl<A: Real> Kernel<A> for MaskGroup<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        for (x, &g) in self.row.iter_mut().zip(self.cols) {
            *x = if g == self.group { A::NEG_INFINITY } else { *x };
        }
    }
}

/// Largest and second-largest value per row and per column of a tile, with the lowest index of the largest. Returns
/// whether there was no NaN; otherwise the statistics mean nothing.
struct Extremes<'a, A> {
    tile: &'a [A],
    ld: usize,
    count: usize,
    second: bool,
    rows: &'a mut Side<A>,
    /// Cleared beforehand.
    cols: &'a mut Side<A>,
}

impl<A: Accum> Kernel<A> for Extremes<'_, A> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> bool {
        let Self { tile, ld, count, second, rows, cols } = self;
        let mut nan = 0;
        for (r, row) in tile.chunks_exact(ld).take(count).enumerate() {
            if second {
                (rows.best[r], rows.second[r]) = two_largest::<A, S>(row);
                update_seconds(row, &cols.best[..ld], &mut cols.second[..ld]);
            } else {
                rows.best[r] = largest::<A, S>(row);
            }
            rows.index[r] = first_equal(row, rows.best[r]);
            nan |= update_columns(row, r as i32, &mut cols.best[..ld], &mut cols.index[..ld]);
        }
        nan == 0
    }
}

#[inline(always)]
fn largest<A: Real, S: Simd<A>>(row: &[A]) -> A {
    let mut pair = [S::splat(A::NEG_INFINITY); 2];
    for chunk in row.chunks_exact(2 * S::LANES) {
        pair[0] = S::max(pair[0], S::load(chunk));
        pair[1] = S::max(pair[1], S::load(&chunk[S::LANES..]));
    }
    let mut lanes = [A::NEG_INFINITY; 16];
    S::store(S::max(pair[0], pair[1]), &mut lanes);
    lanes.into_iter().fold(A::NEG_INFINITY, A::larger)
}

#[inline(always)]
fn two_largest<A: Real, S: Simd<A>>(row: &[A]) -> (A, A) {
    let (mut first, mut second) = (S::splat(A::NEG_INFINITY), S::splat(A::NEG_INFINITY));
    for chunk in row.chunks_exact(S::LANES) {
        let v = S::load(chunk);
        second = S::max(second, S::min(first, v));
        first = S::max(first, v);
    }
    let (mut firsts, mut seconds) = ([A::NEG_INFINITY; 16], [A::NEG_INFINITY; 16]);
    S::store(first, &mut firsts);
    S::store(second, &mut seconds);
    firsts.into_iter().chain(seconds).fold((A::NEG_INFINITY, A::NEG_INFINITY), |(first, second), v| {
        (first.larger(v), second.larger(first.smaller(v)))
    })
}

/// Index of the first element that equals `value`, [`NONE`] for −∞, which also marks what is no candidate.
#[inline(always)]
fn first_equal<A: Real>(row: &[A], value: A) -> i32 {
    const STEP: usize = 32;
    if value == A::NEG_INFINITY {
        return NONE;
    }
    for (c, chunk) in row.chunks(STEP).enumerate() {
        if chunk.iter().fold(0, |hits, x| hits | u32::from(*x == value)) != 0 {
            return chunk.iter().position(|x| *x == value).map_or(NONE, |l| (c * STEP + l) as i32);
        }
    }
    NONE
}

#[inline(always)]
fn update_columns<A: Real>(row: &[A], r: i32, best: &mut [A], index: &mut [i32]) -> u32 {
    let mut nan = 0;
    for ((&x, best), index) in row.iter().zip(best).zip(index) {
        let better = x > *best;
        *best = if better { x } else { *best };
        *index = if better { r } else { *index };
        nan |= u32::from(x.not_a_number());
    }
    nan
}

/// Before the best are updated with the same row.
#[inline(always)]
fn update_seconds<A: Real>(row: &[A], best: &[A], second: &mut [A]) {
    for ((&x, &best), second) in row.iter().zip(best).zip(second) {
        *second = second.larger(best.smaller(x));
    }
}

/// Counts and sums over the negative sets of the rows and columns of a tile, relative to the tile's own maxima.
struct Members<'a, A> {
    data: &'a mut [A],
    ld: usize,
    count: usize,
    set: NegativeSet<A>,
    /// With `best` and `index` of the tile.
    rows: &'a mut Side<A>,
    /// With `best` and `index` of the tile, and cleared counts and sums.
    cols: &'a mut Side<A>,
    /// At least `ld` elements.
    terms: &'a mut [A],
}

impl<A: Accum> Kernel<A> for Members<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let Self { data, ld, count, set, rows, cols, terms } = self;
        let terms = &mut terms[..ld];
        for (r, row) in data.chunks_exact_mut(ld).take(count).enumerate() {
            if let Some(beta) = set.beta {
                column_members::<A, true>(row, r as i32, set.threshold, beta, cols);
                row_members::<A, S, true>(row, r, set.threshold, beta, rows, terms);
            } else {
                column_members::<A, false>(row, r as i32, set.threshold, A::ZERO, cols);
                row_members::<A, S, false>(row, r, set.threshold, A::ZERO, rows, terms);
            }
        }
    }
}

/// What a member `below` the maximum contributes to the sum: `below`, or its exponential.
#[inline(always)]
fn term<A: Real, const EXP: bool>(below: A, beta: A) -> A {
    if EXP { (-(beta * below)).exp_nonpos() } else { below }
}

#[inline(always)]
fn column_members<A: Real, const EXP: bool>(row: &[A], r: i32, threshold: A, beta: A, cols: &mut Side<A>) {
    let width = row.len();
    let (best, index) = (&cols.best[..width], &cols.index[..width]);
    let (counts, ties) = (&mut cols.count[..width], &mut cols.ties[..width]);
    let sums = &mut cols.sum[..width];
    for c in 0..width {
        let x = row[c];
        let member = (x >= threshold) & (index[c] != r);
        counts[c] += u32::from(member);
        ties[c] += u32::from(member & (x == best[c]));
        let t = term::<A, EXP>(if x < best[c] { best[c] - x } else { A::ZERO }, beta);
        sums[c] += if member { t } else { A::ZERO };
    }
}

#[inline(always)]
fn row_members<A: Real, S: Simd<A>, const EXP: bool>(
    row: &mut [A],
    r: usize,
    threshold: A,
    beta: A,
    rows: &mut Side<A>,
    terms: &mut [A],
) {
    let best = rows.best[r];
    (rows.count[r], rows.ties[r], rows.sum[r]) = (0, 0, A::ZERO);
    let Ok(at) = usize::try_from(rows.index[r]) else { return };
    // The maximum itself is no member: hidden for the length of the loop.
    row[at] = A::NEG_INFINITY;
    let (mut count, mut ties) = (0, 0);
    for (&x, t) in row.iter().zip(terms.iter_mut()) {
        let member = x >= threshold;
        count += u32::from(member);
        ties += u32::from(member & (x == best));
        let value = term::<A, EXP>(if x < best { best - x } else { A::ZERO }, beta);
        *t = if member { value } else { A::ZERO };
    }
    row[at] = best;
    let mut sums = S::splat(A::ZERO);
    for chunk in terms.chunks_exact(S::LANES) {
        sums = S::add(sums, S::load(chunk));
    }
    let mut lanes = [A::ZERO; 16];
    S::store(sums, &mut lanes);
    (rows.count[r], rows.ties[r], rows.sum[r]) = (count, ties, super::row_norms::fold(lanes));
}
