//! Ranks of the positives.

use super::cosine_matrix::cosine_matrix;
use super::mine::{above, first_largest};
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::options::{RecallOptions, TiePolicy};
use crate::outputs::{NONE, Ranks, RetrievalReport};

fn rank(scores: &[f64], positive: &dyn Fn(usize) -> bool, ties: TiePolicy) -> i32 {
    let all = || scores.iter().copied().enumerate();
    let Some((best, score)) = first_largest(all().filter(|&(j, _)| positive(j))) else { return NONE };
    let others = || all().filter(|&(j, _)| !positive(j));
    if score.is_nan() {
        return others().count() as i32;
    }
    let greater = others().filter(|&(_, s)| above(s, score)).count();
    let equal = match ties {
        TiePolicy::LowestIndex => others().filter(|&(j, s)| s == score && j < best).count(),
        TiePolicy::Optimistic => 0,
        TiePolicy::Pessimistic => others().filter(|&(_, s)| s == score).count(),
    };
    (greater + equal) as i32
}

/// The 0-based rank of the best positive among the candidates that are no positives, for every row and every column.
/// A candidate with a NaN score ranks above every number; a query whose best positive is NaN ranks last.
pub fn ranks<T: Element>(x: MatRef<'_, T>, y: MatRef<'_, T>, options: &RecallOptions<'_>) -> Ranks {
    let (n, m) = (x.rows(), y.rows());
    let s = cosine_matrix(x, y, options.normalization);
    let positive = |i: usize, j: usize| options.groups.map_or(i == j, |g| g.rows[i] == g.cols[j]);
    let row = |i: usize| rank(&s[i * m..][..m], &|j| positive(i, j), options.ties);
    let col = |j: usize| {
        let scores: Vec<f64> = (0..n).map(|i| s[i * m + j]).collect();
        rank(&scores, &|i| positive(i, j), options.ties)
    };
    Ranks { rows: (0..n).map(row).collect(), cols: (0..m).map(col).collect() }
}

/// The figures of [`ranks`].
pub fn recall<T: Element>(x: MatRef<'_, T>, y: MatRef<'_, T>, options: &RecallOptions<'_>) -> RetrievalReport {
    RetrievalReport::from_ranks(&ranks(x, y, options))
}
