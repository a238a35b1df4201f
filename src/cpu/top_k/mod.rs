//! Mining of several negatives per anchor.

mod keys;
mod lists;
pub(crate) mod rule;
mod scan;

use std::sync::{Mutex, PoisonError};

use lists::{Lists, Ranking};
use rule::{at_most, window};
use scan::{Excluded, GROUP, Side, visit};

use super::pack::Rows;
use super::pool::Cpu;
use super::row_norms::unit_scales;
use super::scan::Exclusion;
use super::sweep::{diagonal, sweep};
use crate::check;
use crate::dtype::{Accum, Element};
use crate::error::Result;
use crate::matrix::MatRef;
use crate::memory_bank::BankColumns;
use crate::outputs::NONE;
use crate::top_k::{Margin, Selected, TopK, TopKOptions};

/// The largest value that is below `value`; NaN if there is none.
fn below<A: Accum>(value: f64) -> A {
    if value == f64::NEG_INFINITY { A::NAN } else { at_most(value.next_down()) }
}

/// The similarities with which a candidate survives, for an anchor whose pair has this similarity.
fn bounds<A: Accum>(options: &TopKOptions<'_>, positive: Option<A>) -> (A, A) {
    let (low, mut high) = window::<A>(options);
    if let Some(margin) = options.below_positive {
        let p = positive.map_or(f64::NAN, |p| p.to_f64());
        let limit = match margin {
            Margin::Absolute(margin) => below::<A>(p - margin),
            Margin::Relative(margin) => below::<A>(p - margin * p.abs()),
        };
        high = if limit.not_a_number() { limit } else { high.smaller(limit) };
    }
    (low, high)
}

/// Empty lists for anchors that have up to `candidates` candidates.
fn side<A: Accum>(
    options: &TopKOptions<'_>,
    (direction, d): (u64, usize),
    anchors: usize,
    candidates: usize,
    positive: &[A],
) -> Side<A> {
    let ranking = Ranking::new(options, direction, d);
    let bounds: Vec<(A, A)> = (0..anchors).map(|a| bounds(options, positive.get(a).copied())).collect();
    let lists = |(g, bounds)| Mutex::new(Lists::new(&ranking, g * GROUP, bounds, candidates));
    let groups = bounds.chunks(GROUP).enumerate().map(lists).collect();
    Side { ranking, groups }
}

/// What the anchors have selected.
fn finish<A: Accum>(cpu: &Cpu, side: Side<A>, anchors: usize, k: usize) -> Selected<A> {
    /// Multiply-adds that sorting one entry takes as long as.
    const COST: usize = 1 << 8;
    let mut out = Selected {
        k,
        index: vec![NONE; anchors * k],
        value: vec![A::NEG_INFINITY; anchors * k],
        survivors: vec![0; anchors],
    };
    let Side { ranking, groups } = side;
    let index = out.index.chunks_mut(GROUP * k);
    let value = out.value.chunks_mut(GROUP * k);
    let survivors = out.survivors.chunks_mut(GROUP);
    let items = groups.into_iter().zip(index.zip(value).zip(survivors));
    cpu.each(anchors * k * COST, items, |(lists, ((index, value), survivors))| {
        let lists = lists.into_inner().unwrap_or_else(PoisonError::into_inner);
        lists.finish(&ranking, index, value, survivors);
    });
    out
}

/// No rows of `d` elements.
fn nothing<T: Element>(d: usize) -> MatRef<'static, T> {
    MatRef::new(&[], 0, d).unwrap_or_else(|_| unreachable!("no rows need no elements"))
}

fn run<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    extra: Option<&BankColumns<'_, T>>,
    options: &TopKOptions<'_>,
) -> TopK<T::Acc> {
    let entries = extra.map_or(0, |extra| extra.bank.len());
    let _awake = cpu.session(x.rows().saturating_mul(y.rows() + entries).saturating_mul(x.cols()));
    let [x_scales, y_scales] = unit_scales(cpu, x, y, options.normalization);
    let x = Rows { mat: x, scales: x_scales.as_deref() };
    let y = Rows { mat: y, scales: y_scales.as_deref() };
    select(cpu, x, y, extra, options)
}

/// What the rows of both matrices select, for options that were checked.
pub(super) fn select<T: Element>(
    cpu: &Cpu,
    x: Rows<'_, T>,
    y: Rows<'_, T>,
    extra: Option<&BankColumns<'_, T>>,
    options: &TopKOptions<'_>,
) -> TopK<T::Acc> {
    let (n, m, d) = (x.mat.rows(), y.mat.rows(), x.mat.cols());
    let entries = extra.map_or(0, |extra| extra.bank.len());
    let positive = diagonal(cpu, x, y);
    let rows = side(options, (0, d), n, m + entries, &positive);
    let cols = side(options, (1, d), m, n, &positive);
    let excluded = Excluded::Batch(Exclusion { pairs: n.min(m), groups: options.groups });
    let visit_batch =
        |(): &mut (), tile: super::sweep::Tile<'_, T::Acc>| visit(cpu, &rows, Some(&cols), tile, 0, &excluded);
    sweep(cpu, x, y, |_, _| true, |_| (), visit_batch, |_, ()| ());
    if let Some(extra) = extra {
        let bank = extra.bank.embeddings();
        let [_, bank_scales] = unit_scales(cpu, nothing(d), bank, options.normalization);
        let bank = Rows { mat: bank, scales: bank_scales.as_deref() };
        let (entries, stamps, oldest) = (extra.bank.ids(), extra.bank.stamps(), extra.oldest());
        let excluded = Excluded::Bank { anchors: extra.ids, entries, stamps, oldest };
        let visit_bank =
            |(): &mut (), tile: super::sweep::Tile<'_, T::Acc>| visit(cpu, &rows, None, tile, m, &excluded);
        sweep(cpu, x, bank, |_, _| true, |_| (), visit_bank, |_, ()| ());
    }
    TopK { positive, rows: finish(cpu, rows, n, options.k), cols: finish(cpu, cols, m, options.k) }
}

/// Up to `k` negatives of every row and of every column, in one sweep over tiles of similarities.
///
/// With `S = X̂ Ŷᵀ` (rows normalised according to `options.normalization`) the candidates of row `i` are the `j` that are
/// neither its pair nor of its group. Those that pass `options.window` and `options.below_positive` survive; of the
/// survivors the hardest `options.skip` are left out and `options.k` of the rest selected by `options.pick`. An anchor with
/// candidates and without a survivor follows `options.fallback`. `cols` holds the same for the columns. Ties go to the
/// lowest index. NaN is the largest similarity, and passes where nothing is compared: without window, margin and weights.
/// Similarities are compared with the bounds as the exact numbers that they are.
///
/// `x` is `n × d`, `y` is `m × d`, of any element type; similarities are computed and returned in `T::Acc`. `n` and `m` may be
/// 0. Allocates the result and, beside it, lists of up to twice the `k + skip` entries of 16 bytes (`f64`: 24) per anchor, with
/// at least 16 spare ones; `S` is never stored. The result is the same bits run to run and for every number of threads.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// feature dimensions differ or the numbers of group ids are not `n` and `m`,
/// [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX` rows, [`Error::InvalidOption`](crate::Error::InvalidOption) for
/// a window without an order, a margin that is not finite, and `skip` or `k` out of range.
pub fn mine_top_k<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &TopKOptions<'_>,
) -> Result<TopK<T::Acc>> {
    check::mine_top_k("mine_top_k", (x.rows(), x.cols()), (y.rows(), y.cols()), options)?;
    Ok(run(cpu, x, y, None, options))
}

/// As [`mine_top_k`], with the entries of a bank as further candidates of the rows: candidate `m + s` is slot `s`.
///
/// Entries of the anchor's own id are no candidates, as far back as `bank.self_within` says; `options.groups` is about the
/// batch alone. Nothing is copied from the bank.
///
/// # Errors
/// As [`mine_top_k`], and [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the bank's feature dimension or the number
/// of `bank.ids` does not fit.
pub fn mine_top_k_with_bank<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    bank: &BankColumns<'_, T>,
    options: &TopKOptions<'_>,
) -> Result<TopK<T::Acc>> {
    const OP: &str = "mine_top_k_with_bank";
    let entries = bank.bank.embeddings();
    check::mine_top_k(OP, (x.rows(), x.cols()), (y.rows(), y.cols()), options)?;
    check::bank_columns(OP, (x.rows(), x.cols()), y.rows(), (entries.rows(), entries.cols()), bank.ids.len())?;
    Ok(run(cpu, x, y, Some(bank), options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::sweep::Tile;
    use crate::top_k::{Fallback, Pick};

    /// What rows and columns select if the tiles come in this order of their first rows and columns.
    fn in_order(
        options: &TopKOptions<'_>,
        tiles: &[(usize, usize)],
        value: impl Fn(usize, usize) -> f32,
    ) -> [Selected<f32>; 2] {
        const EXTENT: usize = 160;
        let cpu = Cpu::with_threads(1).unwrap();
        let sides = [0, 1].map(|direction| side::<f32>(options, (direction, 8), EXTENT, EXTENT, &[0.5; EXTENT]));
        let excluded = Excluded::Batch(Exclusion { pairs: EXTENT, groups: None });
        for &(row, col) in tiles {
            let (rows, cols) = (row..(row + 80).min(EXTENT), col..(col + 64).min(EXTENT));
            let mut data = vec![f32::NAN; rows.len() * 64];
            for (r, i) in rows.clone().enumerate() {
                cols.clone().enumerate().for_each(|(c, j)| data[r * 64 + c] = value(i, j));
            }
            visit(&cpu, &sides[0], Some(&sides[1]), Tile { data: &mut data, ld: 64, rows, cols }, 0, &excluded);
        }
        sides.map(|side| finish(&cpu, side, EXTENT, options.k))
    }

    #[test]
    fn the_order_of_tiles_changes_nothing() {
        let ascending = [(0, 0), (0, 64), (0, 128), (80, 0), (80, 64), (80, 128)];
        let descending: Vec<_> = ascending.into_iter().rev().collect();
        let mixed = [(80, 64), (0, 128), (80, 0), (0, 0), (80, 128), (0, 64)];
        let values: [fn(usize, usize) -> f32; 3] = [
            |_, _| 0.25,
            |i, j| ((i * 7 + j * 3) % 5) as f32 / 8.0,
            |i, j| if i == 3 { f32::NAN } else { j as f32 / 256.0 },
        ];
        let random = TopKOptions { pick: Pick::Random { seed: 1 }, skip: 9, ..TopKOptions::hardest(10) };
        let rules = [
            TopKOptions::hardest(20),
            TopKOptions::semi_hard(7, Fallback::Easiest),
            random,
            TopKOptions { window: Some((2.0, 3.0)), fallback: Fallback::Easiest, ..random },
        ];
        for options in &rules {
            for value in values {
                let want = in_order(options, &ascending, value);
                for tiles in [&descending[..], &mixed] {
                    let got = in_order(options, tiles, value);
                    for (got, want) in got.iter().zip(&want) {
                        assert_eq!((&got.index, &got.survivors), (&want.index, &want.survivors));
                    }
                }
            }
        }
        let [rows, _] = in_order(&TopKOptions::hardest(3), &descending, |_, _| 0.25);
        assert_eq!((rows.of(0).0, rows.of(100).0), (&[1, 2, 3][..], &[0, 1, 2][..]));
    }
}
