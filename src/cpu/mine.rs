//! Hard-negative mining.

use super::pack::Rows;
use super::pool::Cpu;
use super::real::Real;
use super::row_norms::unit_scales;
use super::scan::{Exclusion, Scan};
use super::side::{Collect, Side};
use super::sweep::{Plan, sweep};
use crate::check;
use crate::dtype::{Accum, Element};
use crate::error::Result;
use crate::matrix::MatRef;
use crate::options::{Groups, MineOptions};
use crate::outputs::{Hardest, Mined, NONE};

/// Statistics of both directions.
pub(super) struct Statistics<A> {
    pub(super) positive: Vec<A>,
    pub(super) rows: Side<A>,
    pub(super) cols: Side<A>,
}

/// One sweep over all tiles.
pub(super) fn statistics<T: Element>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    y: Rows<'_, T>,
    groups: Option<Groups<'_>>,
    collect: &Collect<T::Acc>,
) -> Statistics<T::Acc> {
    let (n, m) = (x.mat.rows(), y.mat.rows());
    let plan = Plan::new::<T::Acc>(cpu, n, m, x.mat.cols());
    let exclusion = Exclusion { pairs: n.min(m), groups };
    let mut all = Statistics {
        positive: vec![T::Acc::ZERO; exclusion.pairs],
        rows: Side::new(n, collect),
        cols: Side::new(m, collect),
    };
    sweep(
        cpu,
        x,
        y,
        |_, _| true,
        |piece| (piece.clone(), Scan::new(piece, plan.band, plan.block, collect)),
        |(piece, scan), tile| scan.visit(cpu, piece, tile, &exclusion, collect),
        |piece, (_, scan)| {
            all.rows.add_all(piece.rows.start, &scan.rows, collect);
            all.cols.add_all(piece.cols.start, &scan.cols, collect);
            for (i, value) in scan.positive {
                all.positive[i] = value;
            }
        },
    );
    find_lowest(&mut all.rows, m, |i, j| !exclusion.excludes(i, j));
    find_lowest(&mut all.cols, n, |j, i| !exclusion.excludes(i, j));
    all
}

/// An anchor without an index has no candidate, or only such of value −∞: then the first of them is the hardest.
fn find_lowest<A: Accum>(side: &mut Side<A>, candidates: usize, is_candidate: impl Fn(usize, usize) -> bool) {
    for (anchor, index) in side.index.iter_mut().enumerate().filter(|(_, index)| **index == NONE) {
        if let Some(first) = (0..candidates).find(|&c| is_candidate(anchor, c)) {
            *index = first as i32;
        }
    }
}

/// Hardest negative of every row and of every column, in one sweep over tiles of similarities.
///
/// With `S = X̂ Ŷᵀ` (rows normalised according to `options.normalization`): `rows` holds, for each of the `n` rows of
/// `x`, the largest `S[i, j]` over its candidates `j` and its index; `cols` the same for each of the `m` rows of `y`
/// over `i`. The pair `(i, i)` is never a candidate, nor is `(i, j)` with equal group ids. `positive` holds `S[i, i]`
/// for `i < min(n, m)`. Ties go to the lowest index; a NaN is larger than everything, so that it is never hidden; an
/// anchor without a candidate has index [`NONE`](crate::NONE) and value −∞. With `options.second`, `second` is the
/// largest value among the other candidates.
///
/// `x` is `n × d`, `y` is `m × d`, of any element type; similarities are computed and returned in `T::Acc`. `n` and `m`
/// may be 0. Allocates the result, statistics of `O(n + m)` per piece of work (at most 64 pieces in a column) and, from
/// the handle's scratch memory, the packed operands (at most 16 MiB of `Y` at a time and one band of `X` per thread);
/// `S` is never stored. The result is the same bits run to run and for every number of threads.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// feature dimensions differ or the numbers of group ids are not `n` and `m`,
/// [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX` rows.
pub fn mine<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &MineOptions<'_>,
) -> Result<Mined<T::Acc>> {
    let ids = options.groups.map(|g| (g.rows.len(), g.cols.len()));
    check::mine("mine", (x.rows(), x.cols()), (y.rows(), y.cols()), ids)?;
    let _awake = cpu.session(x.rows().saturating_mul(y.rows()).saturating_mul(x.cols()));
    let [x_scales, y_scales] = unit_scales(cpu, x, y, options.normalization);
    let x = Rows { mat: x, scales: x_scales.as_deref() };
    let y = Rows { mat: y, scales: y_scales.as_deref() };
    let collect = Collect { second: options.second, set: None };
    let found = statistics(cpu, x, y, options.groups, &collect);
    Ok(Mined { positive: found.positive, rows: hardest(found.rows), cols: hardest(found.cols) })
}

fn hardest<A>(side: Side<A>) -> Hardest<A> {
    Hardest { value: side.best, index: side.index, second: side.second }
}
