//! Candidates of a tile of similarities, while it is in the cache.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lists::{Lists, Ranking};
use crate::cpu::pool::Cpu;
use crate::cpu::scan::Exclusion;
use crate::cpu::sweep::Tile;
use crate::cpu::tile::{Kernel, Simd};
use crate::dtype::Accum;

/// Anchors that share a lock, and columns looked at together.
pub(super) const GROUP: usize = 32;

/// What is no candidate.
#[derive(Clone, Copy)]
pub(super) enum Excluded<'a> {
    Batch(Exclusion<'a>),
    /// Entries of a bank: those of the anchor's own id with a stamp of `oldest` or more.
    Bank {
        anchors: &'a [i64],
        entries: &'a [i64],
        stamps: &'a [u64],
        oldest: u64,
    },
}

impl Excluded<'_> {
    fn excludes(&self, i: usize, j: usize) -> bool {
        match self {
            Self::Batch(exclusion) => exclusion.excludes(i, j),
            Self::Bank { anchors, entries, stamps, oldest } => anchors[i] == entries[j] && stamps[j] >= *oldest,
        }
    }

    /// Marks by NaN what is no candidate of row `i`, in a tile's part of it.
    fn mark<A: Accum>(&self, row: &mut [A], i: usize, cols: &Range<usize>) {
        let same = |row: &mut [A], ids: &[i64], id: i64| {
            for (x, &other) in row.iter_mut().zip(ids) {
                *x = if other == id { A::NAN } else { *x };
            }
        };
        match self {
            Self::Batch(exclusion) => {
                if i < exclusion.pairs && cols.contains(&i) {
                    row[i - cols.start] = A::NAN;
                }
                if let Some(groups) = exclusion.groups {
                    same(row, &groups.cols[cols.clone()], groups.rows[i]);
                }
            }
            Self::Bank { anchors, entries, stamps, oldest } => {
                let entries = entries[cols.clone()].iter().zip(&stamps[cols.clone()]);
                for (x, (&id, stamp)) in row.iter_mut().zip(entries) {
                    *x = if (stamp >= oldest) & (id == anchors[i]) { A::NAN } else { *x };
                }
            }
        }
    }
}

/// The anchors of one direction. Which thread adds a candidate first is left to chance and changes nothing: the best of a
/// set do not depend on an order.
pub(super) struct Side<A> {
    pub(super) ranking: Ranking,
    pub(super) groups: Vec<Mutex<Lists<A>>>,
}

impl<A: Accum> Side<A> {
    fn lock(&self, group: usize) -> MutexGuard<'_, Lists<A>> {
        self.groups[group].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the lists of each group that `anchors` touch, the place of the first anchor in them, and the anchors.
    fn each_group(&self, anchors: Range<usize>, mut f: impl FnMut(&mut Lists<A>, usize, Range<usize>)) {
        let mut first = anchors.start;
        while first < anchors.end {
            let end = ((first / GROUP + 1) * GROUP).min(anchors.end);
            f(&mut self.lock(first / GROUP), first % GROUP, first..end);
            first = end;
        }
    }

    /// One candidate, whatever its value.
    fn offer(&self, lists: &mut Lists<A>, a: usize, value: A, index: i32) {
        let survives = (value >= lists.low[a] && value <= lists.high[a]) || (self.ranking.nan && value.not_a_number());
        lists.survivors[a] += u32::from(survives);
        lists.offer(&self.ranking, a, value, index, survives);
    }
}

/// Offers the candidates of a tile, whose columns are the candidates from `offset` on, to the rows, and to the columns
/// where they are anchors too.
pub(super) fn visit<A: Accum>(
    cpu: &Cpu,
    rows: &Side<A>,
    cols: Option<&Side<A>>,
    mut tile: Tile<'_, A>,
    offset: usize,
    excluded: &Excluded<'_>,
) {
    let width = tile.cols.len();
    let lines = || tile.data.chunks_exact(tile.ld).take(tile.rows.len());
    if lines().any(|row| cpu.isa().run(AnyNan { row: &row[..width] })) {
        return visit_one_by_one(rows, cols, &tile, offset, excluded);
    }
    for (row, i) in tile.data.chunks_exact_mut(tile.ld).zip(tile.rows.clone()) {
        excluded.mark(&mut row[..width], i, &tile.cols);
    }
    visit_rows(cpu, rows, &mut tile, offset);
    if let Some(cols) = cols {
        visit_cols(cpu, cols, &tile);
    }
}

fn visit_rows<A: Accum>(cpu: &Cpu, side: &Side<A>, tile: &mut Tile<'_, A>, offset: usize) {
    let width = tile.cols.len();
    let first = (tile.cols.start + offset) as i32;
    side.each_group(tile.rows.clone(), |lists, at, rows| {
        for (a, i) in (at..).zip(rows) {
            let row = &tile.data[(i - tile.rows.start) * tile.ld..][..width];
            let (low, high) = (lists.low[a], lists.high[a]);
            let scan = RowScan { row, low, high, threshold: lists.threshold[a], easiest: lists.easiest[a] };
            let (count, mut hits) = cpu.isa().run(scan);
            lists.survivors[a] += count;
            while hits != 0 {
                let chunk = hits.trailing_zeros() as usize * GROUP;
                hits &= hits - 1;
                for (c, &value) in row.iter().enumerate().skip(chunk).take(GROUP) {
                    let survives = value >= low && value <= high;
                    if (survives && value >= lists.threshold[a]) || value <= lists.easiest[a] {
                        lists.offer(&side.ranking, a, value, first + c as i32, survives);
                    }
                }
            }
        }
    });
}

fn visit_cols<A: Accum>(cpu: &Cpu, side: &Side<A>, tile: &Tile<'_, A>) {
    side.each_group(tile.cols.clone(), |lists, at, cols| {
        let (width, data) = (cols.len(), &tile.data[cols.start - tile.cols.start..]);
        let mut first = 0;
        while first < tile.rows.len() {
            let count = (tile.rows.len() - first).min(64);
            let mut hits =
                cpu.isa().run(ColScan { data: &data[first * tile.ld..], ld: tile.ld, count, at, width, lists });
            while hits != 0 {
                let r = first + hits.trailing_zeros() as usize;
                hits &= hits - 1;
                for (c, &value) in data[r * tile.ld..][..width].iter().enumerate() {
                    let a = at + c;
                    let survives = value >= lists.low[a] && value <= lists.high[a];
                    if (survives && value >= lists.threshold[a]) || value <= lists.easiest[a] {
                        lists.offer(&side.ranking, a, value, (tile.rows.start + r) as i32, survives);
                    }
                }
            }
            first += count;
        }
    });
}

/// The definition, for tiles with a NaN.
fn visit_one_by_one<A: Accum>(
    rows: &Side<A>,
    cols: Option<&Side<A>>,
    tile: &Tile<'_, A>,
    offset: usize,
    excluded: &Excluded<'_>,
) {
    let value = |i: usize, j: usize| tile.data[(i - tile.rows.start) * tile.ld + j - tile.cols.start];
    rows.each_group(tile.rows.clone(), |lists, at, anchors| {
        for (a, i) in (at..).zip(anchors) {
            for j in tile.cols.clone().filter(|&j| !excluded.excludes(i, j)) {
                rows.offer(lists, a, value(i, j), (j + offset) as i32);
            }
        }
    });
    let Some(cols) = cols else { return };
    cols.each_group(tile.cols.clone(), |lists, at, anchors| {
        for (a, j) in (at..).zip(anchors) {
            for i in tile.rows.clone().filter(|&i| !excluded.excludes(i, j)) {
                cols.offer(lists, a, value(i, j), i as i32);
            }
        }
    });
}

struct AnyNan<'a, A> {
    row: &'a [A],
}

impl<A: Accum> Kernel<A> for AnyNan<'_, A> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> bool {
        self.row.iter().fold(0, |nan, x| nan | u32::from(x.not_a_number())) != 0
    }
}

/// Survivors of a row, and by chunk of `GROUP` columns whether one of them may be among the best.
struct RowScan<'a, A> {
    row: &'a [A],
    low: A,
    high: A,
    threshold: A,
    easiest: A,
}

impl<A: Accum> Kernel<A> for RowScan<'_, A> {
    type Out = (u32, u64);

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> (u32, u64) {
        let Self { row, low, high, threshold, easiest } = self;
        let (mut count, mut hits) = (0, 0);
        for (c, chunk) in row.chunks(GROUP).enumerate() {
            let mut hit = 0;
            for &x in chunk {
                let survives = (x >= low) & (x <= high);
                count += u32::from(survives);
                hit |= u32::from((survives & (x >= threshold)) | (x <= easiest));
            }
            hits |= u64::from(hit != 0) << c;
        }
        (count, hits)
    }
}

/// Counts the survivors of up to `GROUP` columns, and says by row, of up to 64, whether one of them may be among the best.
struct ColScan<'a, A> {
    data: &'a [A],
    ld: usize,
    count: usize,
    at: usize,
    width: usize,
    lists: &'a mut Lists<A>,
}

impl<A: Accum> Kernel<A> for ColScan<'_, A> {
    type Out = u64;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> u64 {
        let Self { data, ld, count, at, width, lists } = self;
        let all = at..at + width;
        let (low, high) = (&lists.low[all.clone()], &lists.high[all.clone()]);
        let (threshold, easiest) = (&lists.threshold[all.clone()], &lists.easiest[all.clone()]);
        let survivors = &mut lists.survivors[all];
        let mut hits = 0;
        for r in 0..count {
            let row = &data[r * ld..][..width];
            let mut hit = 0;
            for c in 0..width {
                let x = row[c];
                let survives = (x >= low[c]) & (x <= high[c]);
                survivors[c] += u32::from(survives);
                hit |= u32::from((survives & (x >= threshold[c])) | (x <= easiest[c]));
            }
            hits |= u64::from(hit != 0) << r;
        }
        hits
    }
}
