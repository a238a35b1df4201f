//! The rank of every relevant pair, by counting in one sweep what is ahead of it.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::pack::Rows;
use super::pool::Cpu;
use super::real::Real;
use super::row_norms::unit_scales;
use super::sweep::{Tile, sweep};
use super::tile::{Kernel, Simd};
use crate::check;
use crate::dtype::{Accum, Element};
use crate::error::Result;
use crate::matrix::MatRef;
use crate::options::{PositiveRanksOptions, TiePolicy};
use crate::outputs::{PositiveRanks, QueryRanks};
use crate::relevance::RelevantPairs;

/// Pairs of a query up to which every candidate is compared with each of them; more are searched.
const DIRECT: usize = 32;

/// The pairs of row `i` whose candidates are in `cols`.
fn pairs_within(relevant: &RelevantPairs, i: usize, cols: &Range<usize>) -> Range<usize> {
    let of = relevant.of(i);
    let candidates = &relevant.candidates()[of.clone()];
    let below = |end: usize| candidates.partition_point(|&j| (j as usize) < end);
    of.start + below(cols.start)..of.start + below(cols.end)
}

/// First sweep, over the tiles that hold pairs: their similarities.
fn pair_scores<T: Element>(cpu: &Cpu, x: Rows<'_, T>, y: Rows<'_, T>, relevant: &RelevantPairs) -> Vec<T::Acc> {
    let mut scores = vec![T::Acc::NAN; relevant.pairs()];
    let visit = |part: &mut Vec<(usize, T::Acc)>, tile: Tile<'_, T::Acc>| {
        for (row, i) in tile.data.chunks_exact(tile.ld).zip(tile.rows) {
            let pairs = pairs_within(relevant, i, &tile.cols);
            part.extend(pairs.map(|p| (p, row[relevant.candidates()[p] as usize - tile.cols.start])));
        }
    };
    sweep(
        cpu,
        x,
        y,
        |rows, cols| rows.clone().any(|i| !pairs_within(relevant, i, cols).is_empty()),
        |_| Vec::new(),
        visit,
        |_, part| part.into_iter().for_each(|(p, score)| scores[p] = score),
    );
    scores
}

/// The pairs of one direction in ranking order, query after query, and what has been counted ahead of each.
struct Bars<'a, A> {
    relevant: &'a RelevantPairs,
    ties: TiePolicy,
    /// Number of the pair at each place.
    pair: Vec<u32>,
    /// Its similarity. Descending within a query, NaN at the end.
    score: Vec<A>,
    /// The index below which a candidate of the same similarity is counted.
    limit: Vec<i32>,
    /// For a query of at most [`DIRECT`] pairs the candidates ahead of each; otherwise the candidates ahead of this pair
    /// and not of the one before it.
    ahead: Vec<AtomicU32>,
}

impl<'a, A: Accum> Bars<'a, A> {
    /// `scores` has the similarity of every pair.
    fn new(relevant: &'a RelevantPairs, scores: &[A], ties: TiePolicy) -> Self {
        let grade = |p: usize| relevant.grades().get(p).copied().unwrap_or(1.0);
        // Equal similarities: by index, which is the order of the numbers, or as is best or worst for the figures.
        let among_ties = |a: usize, b: usize| match ties {
            TiePolicy::LowestIndex => a.cmp(&b),
            TiePolicy::Optimistic => grade(b).total_cmp(&grade(a)).then(a.cmp(&b)),
            TiePolicy::Pessimistic => grade(a).total_cmp(&grade(b)).then(a.cmp(&b)),
        };
        let by_score = |a: A, b: A| b.partial_cmp(&a).unwrap_or_else(|| a.not_a_number().cmp(&b.not_a_number()));
        let order = |&a: &u32, &b: &u32| -> Ordering {
            let (a, b) = (a as usize, b as usize);
            by_score(scores[a], scores[b]).then_with(|| among_ties(a, b))
        };
        let mut pair: Vec<u32> = (0..relevant.pairs() as u32).collect();
        for i in 0..relevant.rows() {
            pair[relevant.of(i)].sort_unstable_by(order);
        }
        let limit = |&p: &u32| match ties {
            TiePolicy::LowestIndex => relevant.candidates()[p as usize],
            TiePolicy::Optimistic => 0,
            TiePolicy::Pessimistic => i32::MAX,
        };
        Self {
            relevant,
            ties,
            score: pair.iter().map(|&p| scores[p as usize]).collect(),
            limit: pair.iter().map(limit).collect(),
            ahead: pair.iter().map(|_| AtomicU32::new(0)).collect(),
            pair,
        }
    }

    /// Counts the candidates from `first` on, whose similarities to `query` are `line`.
    #[inline(always)]
    fn count(&self, query: usize, first: usize, line: &[A]) {
        let of = self.relevant.of(query);
        let (score, limit, ahead) = (&self.score[of.clone()], &self.limit[of.clone()], &self.ahead[of]);
        if score.len() <= DIRECT {
            for ((&score, &limit), ahead) in score.iter().zip(limit).zip(ahead) {
                let turn = (limit as usize).saturating_sub(first).min(line.len());
                let count = at_least(&line[..turn], score) + above(&line[turn..], score);
                if count > 0 {
                    ahead.fetch_add(count, Relaxed);
                }
            }
            return;
        }
        for (c, &s) in line.iter().enumerate() {
            let place = first_passed(s, (first + c) as i32, score, limit);
            if let Some(ahead) = ahead.get(place) {
                ahead.fetch_add(1, Relaxed);
            }
        }
    }

    /// The ranks, with `pool` candidates for each query.
    fn finish(self, pool: usize) -> QueryRanks {
        let mut ranks = vec![0; self.relevant.pairs()];
        for query in 0..self.relevant.rows() {
            self.rank_query(query, pool, &mut ranks);
        }
        QueryRanks {
            offsets: self.relevant.offsets().to_vec(),
            candidates: self.relevant.candidates().to_vec(),
            grades: self.relevant.grades().to_vec(),
            ranks,
            pool,
        }
    }

    /// The ranks of one query's pairs, from what was counted ahead of them.
    fn rank_query(&self, query: usize, pool: usize, ranks: &mut [i32]) {
        let of = self.relevant.of(query);
        let (score, pair) = (&self.score[of.clone()], &self.pair[of.clone()]);
        let mut ahead: Vec<u32> = self.ahead[of].iter().map(|a| a.load(Relaxed)).collect();
        if ahead.len() > DIRECT {
            ahead.iter_mut().fold(0, |sum, a| {
                *a += sum;
                *a
            });
        }
        let numbers = score.partition_point(|s| !s.not_a_number());
        let unknown = score.len() - numbers;
        let mut first = 0;
        while first < numbers {
            let tied = score[first..numbers].iter().take_while(|&&s| s == score[first]).count();
            for (t, k) in (first..first + tied).enumerate() {
                // Every NaN was counted, but a relevant one is behind, not ahead.
                let ahead = ahead[k] as usize - unknown;
                ranks[pair[k] as usize] = match self.ties {
                    TiePolicy::LowestIndex => ahead,
                    TiePolicy::Optimistic => ahead + t,
                    // The tied pairs themselves were counted among the ties.
                    TiePolicy::Pessimistic => ahead - tied + t,
                } as i32;
            }
            first += tied;
        }
        for (k, &pair) in pair.iter().enumerate().skip(numbers) {
            ranks[pair as usize] = (pool - score.len() + k) as i32;
        }
    }
}

/// How many of `line` are at least `bar`, or NaN.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord)] // The negation is what admits NaN.
fn at_least<A: Real>(line: &[A], bar: A) -> u32 {
    line.iter().map(|&s| u32::from(!(s < bar))).sum()
}

/// How many of `line` are larger than `bar`, or NaN.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn above<A: Real>(line: &[A], bar: A) -> u32 {
    line.iter().map(|&s| u32::from(!(s <= bar))).sum()
}

/// The first bar that candidate `j` of similarity `s` is ahead of; it is ahead of all later ones too. Everything is ahead
/// of a NaN.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn first_passed<A: Real>(s: A, j: i32, score: &[A], limit: &[i32]) -> usize {
    let behind = |k: usize| if j < limit[k] { s < score[k] } else { s <= score[k] };
    let (mut low, mut high) = (0, score.len());
    if high == 0 || behind(high - 1) {
        return high;
    }
    while low < high {
        let middle = usize::midpoint(low, high);
        if behind(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Counts a tile in both directions; its columns are turned into lines first.
struct Count<'a, A> {
    tile: &'a Tile<'a, A>,
    rows: &'a Bars<'a, A>,
    cols: &'a Bars<'a, A>,
    turned: &'a mut Vec<A>,
}

impl<A: Accum> Kernel<A> for Count<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let Self { tile, rows, cols, turned } = self;
        let (height, width) = (tile.rows.len(), tile.cols.len());
        for (row, i) in tile.data.chunks_exact(tile.ld).zip(tile.rows.clone()) {
            rows.count(i, tile.cols.start, &row[..width]);
        }
        let offsets = cols.relevant.offsets();
        if offsets[tile.cols.start] == offsets[tile.cols.end] {
            return;
        }
        let ld = height.next_multiple_of(8);
        turned.resize(ld * width.next_multiple_of(8), A::ZERO);
        turn::<A, S>(tile, turned, ld);
        for (column, j) in turned.chunks_exact(ld).zip(tile.cols.clone()) {
            cols.count(j, tile.rows.start, &column[..height]);
        }
    }
}

/// `turned[c, r] = tile[r, c]`
#[inline(always)]
fn turn<A: Accum, S: Simd<A>>(tile: &Tile<'_, A>, turned: &mut [A], ld: usize) {
    let (height, width) = (tile.rows.len(), tile.cols.len());
    for r in (0..height).step_by(8) {
        for c in (0..width).step_by(8) {
            if r + 8 <= height && c + 8 <= tile.ld {
                S::transpose_8x8(&tile.data[r * tile.ld + c..], tile.ld, &mut turned[c * ld + r..], ld);
                continue;
            }
            for k in c..width.min(c + 8) {
                for l in r..height.min(r + 8) {
                    turned[k * ld + l] = tile.data[l * tile.ld + k];
                }
            }
        }
    }
}

/// 0-based rank of every relevant pair among all candidates of its query, both ways.
///
/// With `S` as in [`cosine_matrix`](super::cosine_matrix), the queries `rows` are the rows of `x` (`n × d`) and rank the
/// rows of `y` (`m × d`) by `S[i, ·]`; the queries `cols` are the rows of `y` and rank the rows of `x` by `S[·, j]`. The
/// ranks of a query are places in one order of its candidates, so that no two of its pairs share one. Among equal
/// similarities that order follows `options.ties`: by index; relevant candidates first, those of a higher grade before
/// those of a lower; or relevant ones last, those of a lower grade first. A candidate with a NaN is first if it is not
/// relevant, last if it is.
///
/// The elements are of any type. `S` is never stored: it is computed twice, first only where it holds pairs, then
/// everywhere, with the same bits, so that ties are exact. Besides, a candidate costs a comparison per pair of its query, and
/// beyond 32 pairs the logarithm of their number. Allocates `O(n + m + pairs)`, and packed operands as
/// [`mine`](super::mine). The result is the same run to run and for every number of threads.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// feature dimensions differ or `relevant` is not for `n` rows and `m` columns,
/// [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX` rows.
pub fn positive_ranks<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    relevant: &RelevantPairs,
    options: &PositiveRanksOptions,
) -> Result<PositiveRanks> {
    let (n, m) = (x.rows(), y.rows());
    check::positive_ranks("positive_ranks", (n, x.cols()), (m, y.cols()), (relevant.rows(), relevant.cols()))?;
    let _awake = cpu.session(n.saturating_mul(m).saturating_mul(x.cols()));
    let [x_scales, y_scales] = unit_scales(cpu, x, y, options.normalization);
    let x = Rows { mat: x, scales: x_scales.as_deref() };
    let y = Rows { mat: y, scales: y_scales.as_deref() };
    let scores = pair_scores(cpu, x, y, relevant);
    let (turned, numbers) = relevant.transposed();
    let turned_scores: Vec<T::Acc> = numbers.iter().map(|&p| scores[p as usize]).collect();
    let rows = Bars::new(relevant, &scores, options.ties);
    let cols = Bars::new(&turned, &turned_scores, options.ties);
    if relevant.pairs() > 0 {
        sweep(
            cpu,
            x,
            y,
            |_, _| true,
            |_| Vec::new(),
            |turned, tile| cpu.isa().run(Count { tile: &tile, rows: &rows, cols: &cols, turned }),
            |_, _| (),
        );
    }
    Ok(PositiveRanks { rows: rows.finish(m), cols: cols.finish(n) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Normalization;

    /// Queries of 1 against candidates of these similarities.
    fn ranks(scores: &[f32], relevant: &[i32], grades: Option<Vec<f32>>, ties: TiePolicy) -> Vec<i32> {
        let pairs = RelevantPairs::new(1, scores.len(), &[0, relevant.len()], relevant.to_vec(), grades).unwrap();
        let options = PositiveRanksOptions { normalization: Normalization::None, ties };
        let (x, y) = (MatRef::new(&[1f32], 1, 1).unwrap(), MatRef::new(scores, scores.len(), 1).unwrap());
        positive_ranks(&Cpu::with_threads(1).unwrap(), x, y, &pairs, &options).unwrap().rows.ranks
    }

    #[test]
    fn ties_follow_the_policy_and_the_grades() {
        let scores = [2.0, 3.0, 2.0, 2.0, 1.0, 2.0];
        let relevant = [2, 3, 4];
        let of = |grades: Option<[f32; 3]>, ties| ranks(&scores, &relevant, grades.map(Vec::from), ties);
        assert_eq!(of(None, TiePolicy::LowestIndex), [2, 3, 5]);
        assert_eq!(of(None, TiePolicy::Optimistic), [1, 2, 5]);
        assert_eq!(of(None, TiePolicy::Pessimistic), [3, 4, 5]);
        let graded = Some([1.0, 2.0, 3.0]);
        assert_eq!(of(graded, TiePolicy::LowestIndex), [2, 3, 5]);
        assert_eq!(of(graded, TiePolicy::Optimistic), [2, 1, 5]);
        assert_eq!(of(graded, TiePolicy::Pessimistic), [3, 4, 5]);
    }

    #[test]
    fn nan_is_first_unless_it_is_relevant() {
        let scores = [f32::NAN, 2.0, f32::NAN, 1.0, f32::NAN];
        for ties in [TiePolicy::LowestIndex, TiePolicy::Optimistic, TiePolicy::Pessimistic] {
            assert_eq!(ranks(&scores, &[1, 2, 3, 4], None, ties), [1, 3, 2, 4]);
        }
        assert_eq!(ranks(&[f32::NEG_INFINITY, 0.0], &[0], None, TiePolicy::Pessimistic), [1]);
    }

    #[test]
    fn searching_and_comparing_count_alike() {
        // Seven values, so that every run of ties is long.
        let scores: Vec<f32> = (0..200).map(|j| ((j * j) % 7) as f32).collect();
        for ties in [TiePolicy::LowestIndex, TiePolicy::Optimistic, TiePolicy::Pessimistic] {
            let many: Vec<i32> = (0..200).filter(|j| j % 3 != 1).collect();
            let searched = ranks(&scores, &many, None, ties);
            let mut order: Vec<usize> = (0..200).collect();
            let late = |j: usize| match ties {
                TiePolicy::LowestIndex => false,
                TiePolicy::Optimistic => j % 3 == 1,
                TiePolicy::Pessimistic => j % 3 != 1,
            };
            order.sort_by_key(|&j| (-(scores[j] as i32), late(j), j));
            let want: Vec<i32> =
                many.iter().map(|&j| order.iter().position(|&o| o == j as usize).unwrap() as i32).collect();
            assert!(many.len() > DIRECT);
            assert_eq!(searched, want, "{ties:?}");
        }
    }
}
