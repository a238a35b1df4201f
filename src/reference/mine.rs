//! Hardest negatives.

use super::cosine_matrix::cosine_matrix;
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::options::{Groups, MineOptions};
use crate::outputs::{Hardest, Mined, NONE};

/// Whether `a` ranks strictly above `b`; NaN ranks above everything.
pub(super) fn above(a: f64, b: f64) -> bool {
    !b.is_nan() && (a.is_nan() || a > b)
}

/// Whether the row `i` of `X` and the row `j` of `Y` are never each other's negatives.
pub(super) fn excluded(groups: Option<Groups<'_>>, i: usize, j: usize) -> bool {
    i == j || groups.is_some_and(|g| g.rows[i] == g.cols[j])
}

/// The first of the largest values, and its index.
pub(super) fn first_largest(candidates: impl Iterator<Item = (usize, f64)>) -> Option<(usize, f64)> {
    candidates.fold(None, |best, c| match best {
        Some((_, value)) if !above(c.1, value) => best,
        _ => Some(c),
    })
}

/// Hardest negatives of `anchors` anchors among those of `others` for which `candidate(anchor, other)` holds.
pub(super) fn hardest(
    anchors: usize,
    others: usize,
    similarity: impl Fn(usize, usize) -> f64,
    candidate: impl Fn(usize, usize) -> bool,
) -> Hardest<f64> {
    let mut out = Hardest::default();
    for a in 0..anchors {
        let all = || (0..others).filter(|&o| candidate(a, o)).map(|o| (o, similarity(a, o)));
        let first = first_largest(all());
        let second = first.and_then(|(best, _)| first_largest(all().filter(|&(o, _)| o != best)));
        out.value.push(first.map_or(f64::NEG_INFINITY, |c| c.1));
        out.index.push(first.map_or(NONE, |c| c.0 as i32));
        out.second.push(second.map_or(f64::NEG_INFINITY, |c| c.1));
    }
    out
}

/// The hardest negative of every row and of every column, and the positives `S_ii`. Ties go to the lowest index; a NaN
/// ranks above every number; a pair `(i, i)` and pairs of the same group are no candidates.
pub fn mine<T: Element>(x: MatRef<'_, T>, y: MatRef<'_, T>, options: &MineOptions<'_>) -> Mined<f64> {
    let (n, m) = (x.rows(), y.rows());
    let s = cosine_matrix(x, y, options.normalization);
    let mut mined = Mined {
        positive: (0..n.min(m)).map(|i| s[i * m + i]).collect(),
        rows: hardest(n, m, |i, j| s[i * m + j], |i, j| !excluded(options.groups, i, j)),
        cols: hardest(m, n, |j, i| s[i * m + j], |j, i| !excluded(options.groups, i, j)),
    };
    if !options.second {
        mined.rows.second.clear();
        mined.cols.second.clear();
    }
    mined
}
