//! Retrieval ranks by counting, and the figures made of them.

use std::ops::Range;

use super::pack::Rows;
use super::pool::Cpu;
use super::real::Real;
use super::row_norms::unit_scales;
use super::side::above;
use super::sweep::{Piece, Tile, diagonal, sweep};
use super::tile::{Kernel, Simd};
use crate::check;
use crate::dtype::{Accum, Element};
use crate::error::Result;
use crate::matrix::MatRef;
use crate::options::{Groups, RecallOptions, TiePolicy};
use crate::outputs::{NONE, Ranks, RetrievalReport};

/// A query's positives: the best one, how many share its score, and how many there are.
#[derive(Clone, Copy, Debug)]
struct Target<A> {
    best: A,
    index: i32,
    ties: u32,
    count: u32,
}

impl<A: Accum> Target<A> {
    const NONE: Self = Self { best: A::NEG_INFINITY, index: NONE, ties: 0, count: 0 };

    fn merge(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        let count = self.count + other.count;
        if self.count == 0 || above(other.best, self.best) {
            *self = other;
        } else if !above(self.best, other.best) {
            self.index = self.index.min(other.index);
            self.ties += other.ties;
        }
        self.count = count;
    }
}

/// Queries of both directions.
struct Both<Q> {
    rows: Vec<Q>,
    cols: Vec<Q>,
}

impl<Q: Clone> Both<Q> {
    fn new(value: &Q, rows: usize, cols: usize) -> Self {
        Self { rows: vec![value.clone(); rows], cols: vec![value.clone(); cols] }
    }
}

/// Which candidates are positives.
#[derive(Clone, Copy)]
struct Positive<'a> {
    groups: Option<Groups<'a>>,
}

impl Positive<'_> {
    fn holds(&self, i: usize, j: usize) -> bool {
        self.groups.map_or(i == j, |g| g.rows[i] == g.cols[j])
    }

    /// Whether a tile has a positive at all.
    fn any(&self, rows: &Range<usize>, cols: &Range<usize>) -> bool {
        match self.groups {
            None => rows.start < cols.end && cols.start < rows.end,
            Some(g) => rows.clone().any(|i| {
                let id = g.rows[i];
                g.cols[cols.clone()].iter().fold(false, |any, &other| any | (other == id))
            }),
        }
    }
}

/// First sweep, over the tiles that hold positives or of pairs alone: the score to beat.
fn targets<T: Element>(cpu: &Cpu, x: Rows<'_, T>, y: Rows<'_, T>, positive: Positive<'_>) -> Both<Target<T::Acc>> {
    let mut all = Both::new(&Target::NONE, x.mat.rows(), y.mat.rows());
    if positive.groups.is_none() {
        for (i, best) in diagonal(cpu, x, y).into_iter().enumerate() {
            let target = Target { best, index: i as i32, ties: 1, count: 1 };
            (all.rows[i], all.cols[i]) = (target, target);
        }
        return all;
    }
    let visit = |(piece, part): &mut (Piece, Both<Target<T::Acc>>), tile: Tile<'_, T::Acc>| {
        for (row, i) in tile.data.chunks_exact(tile.ld).zip(tile.rows) {
            for (&best, j) in row.iter().zip(tile.cols.clone()) {
                if positive.holds(i, j) {
                    let target = |index: usize| Target { best, index: index as i32, ties: 1, count: 1 };
                    part.rows[i - piece.rows.start].merge(target(j));
                    part.cols[j - piece.cols.start].merge(target(i));
                }
            }
        }
    };
    sweep(
        cpu,
        x,
        y,
        |rows, cols| positive.any(rows, cols),
        |piece| (piece.clone(), Both::new(&Target::NONE, piece.rows.len(), piece.cols.len())),
        visit,
        |piece, (_, part)| {
            all.rows[piece.rows.clone()].iter_mut().zip(part.rows).for_each(|(a, p)| a.merge(p));
            all.cols[piece.cols.clone()].iter_mut().zip(part.cols).for_each(|(a, p)| a.merge(p));
        },
    );
    all
}

/// The score to beat of every query, and the index below which a candidate of the same score counts as better.
struct Bar<A> {
    score: Vec<A>,
    limit: Vec<i32>,
}

impl<A: Accum> Bar<A> {
    fn new(targets: &[Target<A>], ties: TiePolicy) -> Self {
        let limit = |t: &Target<A>| match ties {
            TiePolicy::LowestIndex => t.index,
            TiePolicy::Optimistic => 0,
            TiePolicy::Pessimistic => i32::MAX,
        };
        Self { score: targets.iter().map(|t| t.best).collect(), limit: targets.iter().map(limit).collect() }
    }
}

/// Counts the candidates of a tile that come before the positive; NaN counts as better.
struct Count<'a, A> {
    tile: &'a Tile<'a, A>,
    piece: &'a Piece,
    rows: &'a Bar<A>,
    cols: &'a Bar<A>,
    ahead: &'a mut Both<u32>,
}

impl<A: Real> Kernel<A> for Count<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let Self { tile, piece, rows, cols, ahead } = self;
        let width = tile.cols.len();
        let within = tile.cols.start - piece.cols.start;
        let col_ahead = &mut ahead.cols[within..within + width];
        let (scores, limits) = (&cols.score[tile.cols.clone()], &cols.limit[tile.cols.clone()]);
        for (row, i) in tile.data.chunks_exact(tile.ld).zip(tile.rows.clone()) {
            let row = &row[..width];
            let (score, limit) = (rows.score[i], rows.limit[i]);
            let (first, index) = (tile.cols.start as i32, i as i32);
            let mut before = 0;
            for (c, &s) in row.iter().enumerate() {
                let better = (s > score) | s.not_a_number();
                before += u32::from(better | ((s == score) & (first + (c as i32) < limit)));
            }
            ahead.rows[i - piece.rows.start] += before;
            for c in 0..width {
                let better = (row[c] > scores[c]) | row[c].not_a_number();
                col_ahead[c] += u32::from(better | ((row[c] == scores[c]) & (index < limits[c])));
            }
        }
    }
}

/// The 0-based rank of a query from the number of candidates that came before its best positive.
fn rank<A: Accum>(target: &Target<A>, ahead: u32, candidates: usize, ties: TiePolicy) -> i32 {
    if target.count == 0 {
        NONE
    } else if target.best.not_a_number() {
        // Nothing is known to be worse than NaN.
        (candidates - target.count as usize) as i32
    } else if ties == TiePolicy::Pessimistic {
        // Its own positives were counted among the ties.
        (ahead - target.ties) as i32
    } else {
        ahead as i32
    }
}

/// 0-based rank of the best positive of every query, both ways: how many candidates have a higher score.
///
/// With `S` as in [`cosine_matrix`](super::cosine_matrix), the queries `rows` are the rows of `x` and rank the rows of
/// `y` by `S[i, ·]`; the queries `cols` are the rows of `y` and rank the rows of `x` by `S[·, j]`. The positives of a
/// query are the candidates of its group, or without groups the candidate of its own index. Other positives of the query
/// are never in the way. Candidates of exactly the positive's score count by `options.ties`; a NaN candidate counts as
/// higher, a NaN positive ranks behind all other candidates; a query without a positive has rank
/// [`NONE`](crate::NONE).
///
/// `x` is `n × d`, `y` is `m × d`, of any element type. `S` is never stored: it is computed twice, first only where it
/// holds positives, then everywhere, with the same bits, so that ties are exact. Allocates `O(n + m)` per piece of work,
/// and packed operands as [`mine`](super::mine). The result is the same run to run and for every number of threads.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// feature dimensions differ or the numbers of group ids are not `n` and `m`,
/// [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX` rows.
pub fn ranks<T: Element>(cpu: &Cpu, x: MatRef<'_, T>, y: MatRef<'_, T>, options: &RecallOptions<'_>) -> Result<Ranks> {
    ranks_as("ranks", cpu, x, y, options)
}

fn ranks_as<T: Element>(
    op: &'static str,
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &RecallOptions<'_>,
) -> Result<Ranks> {
    let ids = options.groups.map(|g| (g.rows.len(), g.cols.len()));
    check::mine(op, (x.rows(), x.cols()), (y.rows(), y.cols()), ids)?;
    let (n, m) = (x.rows(), y.rows());
    let _awake = cpu.session(x.rows().saturating_mul(y.rows()).saturating_mul(x.cols()));
    let [x_scales, y_scales] = unit_scales(cpu, x, y, options.normalization);
    let x = Rows { mat: x, scales: x_scales.as_deref() };
    let y = Rows { mat: y, scales: y_scales.as_deref() };
    let found = targets(cpu, x, y, Positive { groups: options.groups });
    let (rows, cols) = (Bar::new(&found.rows, options.ties), Bar::new(&found.cols, options.ties));
    let mut ahead = Both::new(&0, n, m);
    sweep(
        cpu,
        x,
        y,
        |_, _| true,
        |piece| (piece.clone(), Both::new(&0, piece.rows.len(), piece.cols.len())),
        |(piece, part), tile| {
            cpu.isa().run(Count { tile: &tile, piece, rows: &rows, cols: &cols, ahead: part });
        },
        |piece, (_, part)| {
            ahead.rows[piece.rows.clone()].iter_mut().zip(part.rows).for_each(|(a, p)| *a += p);
            ahead.cols[piece.cols.clone()].iter_mut().zip(part.cols).for_each(|(a, p)| *a += p);
        },
    );
    let of = |targets: &[Target<T::Acc>], ahead: &[u32], candidates| {
        targets.iter().zip(ahead).map(|(t, &a)| rank(t, a, candidates, options.ties)).collect()
    };
    Ok(Ranks { rows: of(&found.rows, &ahead.rows, m), cols: of(&found.cols, &ahead.cols, n) })
}

/// Recall at 1, 5 and 10, median and mean rank, both ways, from [`ranks`].
///
/// # Errors
/// As [`ranks`].
pub fn recall<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &RecallOptions<'_>,
) -> Result<RetrievalReport> {
    ranks_as("recall", cpu, x, y, options).map(|ranks| RetrievalReport::from_ranks(&ranks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Normalization;

    fn one_dimensional(y: &[f32], ties: TiePolicy) -> Ranks {
        // x is 1, so that row i's scores are y itself.
        let x = vec![1f32; y.len()];
        let options = RecallOptions { normalization: Normalization::None, ties, groups: None };
        let (x, y) = (MatRef::new(&x, y.len(), 1).unwrap(), MatRef::new(y, y.len(), 1).unwrap());
        ranks(&Cpu::with_threads(1).unwrap(), x, y, &options).unwrap()
    }

    #[test]
    fn ties_follow_the_policy() {
        let y = [2.0, 3.0, 2.0, 2.0, 1.0];
        assert_eq!(one_dimensional(&y, TiePolicy::LowestIndex).rows, [1, 0, 2, 3, 4]);
        assert_eq!(one_dimensional(&y, TiePolicy::Optimistic).rows, [1, 0, 1, 1, 4]);
        assert_eq!(one_dimensional(&y, TiePolicy::Pessimistic).rows, [3, 0, 3, 3, 4]);
        assert_eq!(one_dimensional(&y, TiePolicy::LowestIndex).cols, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn nan_candidates_are_ahead_and_nan_positives_last() {
        assert_eq!(one_dimensional(&[2.0, f32::NAN, 1.0], TiePolicy::LowestIndex).rows, [1, 2, 2]);
        let lowest = one_dimensional(&[f32::NEG_INFINITY, 0.0], TiePolicy::Pessimistic);
        assert_eq!(lowest.rows, [1, 0]);
    }

    #[test]
    fn positives_of_the_group_are_not_in_the_way() {
        let (x, y) = ([1f32, -1.0, 1.0], [3f32, 2.0, 2.0, 1.0]);
        let groups = Groups { rows: &[7, 7, 9], cols: &[7, 7, 8, 7] };
        let options =
            RecallOptions { normalization: Normalization::None, groups: Some(groups), ties: TiePolicy::Pessimistic };
        let (x, y) = (MatRef::new(&x, 3, 1).unwrap(), MatRef::new(&y, 4, 1).unwrap());
        let found = ranks(&Cpu::with_threads(1).unwrap(), x, y, &options).unwrap();
        assert_eq!(found.rows, [0, 0, NONE]);
        assert_eq!(found.cols, [1, 1, NONE, 1]);
    }
}
