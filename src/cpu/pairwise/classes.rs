//! Which pairs are positive, negative or ignored, and how many.

use std::collections::HashMap;
use std::ops::Range;

use crate::pairwise::PairwiseOptions;

/// Neither anchor and candidate nor anything else.
pub(super) const IGNORED: u32 = 0;
pub(super) const NEGATIVE: u32 = 1;
pub(super) const POSITIVE: u32 = 2;

/// The classes of all pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Classes<'a> {
    groups: Option<(&'a [i64], &'a [i64])>,
    ignore_rows: Option<&'a [bool]>,
    ignore_cols: Option<&'a [bool]>,
    single_positive: bool,
    /// Whether rows and columns are the same set.
    single_set: bool,
}

/// Positives and negatives of every row and of every column.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) rows: Vec<(u32, u32)>,
    pub(super) cols: Vec<(u32, u32)>,
}

impl<'a> Classes<'a> {
    pub(super) fn new(single_positive: bool, options: &PairwiseOptions<'a>, single_set: bool) -> Self {
        Self {
            groups: options.groups.map(|g| (g.rows, g.cols)),
            ignore_rows: options.ignore_rows,
            ignore_cols: options.ignore_cols,
            single_positive,
            single_set,
        }
    }

    pub(super) fn row_ignored(&self, i: usize) -> bool {
        self.ignore_rows.is_some_and(|mask| mask[i])
    }

    pub(super) fn col_ignored(&self, j: usize) -> bool {
        self.ignore_cols.is_some_and(|mask| mask[j])
    }

    /// Whether `i = j` is a positive pair whatever the groups.
    fn own_pairs(&self) -> bool {
        !self.single_set && (self.single_positive || self.groups.is_none())
    }

    /// Whether `(i, i)` is a positive pair.
    pub(super) fn own_pair(&self, i: usize) -> bool {
        self.own_pairs() && !self.row_ignored(i) && !self.col_ignored(i)
    }

    /// The classes of row `i` and the columns `cols` into `out`; whether one of them is positive.
    pub(super) fn of_row(&self, i: usize, cols: &Range<usize>, out: &mut [u32]) -> bool {
        let out = &mut out[..cols.len()];
        if self.row_ignored(i) {
            out.fill(IGNORED);
            return false;
        }
        let mut positive = 0;
        if let Some((rows, columns)) = self.groups {
            let same = if self.single_positive { IGNORED } else { POSITIVE };
            let group = rows[i];
            for (class, &g) in out.iter_mut().zip(&columns[cols.clone()]) {
                *class = if g == group { same } else { NEGATIVE };
            }
        } else {
            out.fill(NEGATIVE);
        }
        if cols.contains(&i) {
            let at = i - cols.start;
            if self.single_set {
                out[at] = IGNORED;
            } else if self.own_pairs() {
                out[at] = POSITIVE;
            }
        }
        if let Some(mask) = self.ignore_cols {
            for (class, &ignored) in out.iter_mut().zip(&mask[cols.clone()]) {
                *class = if ignored { IGNORED } else { *class };
            }
        }
        for &class in out.iter() {
            positive |= class & POSITIVE;
        }
        positive != 0
    }

    /// The numbers of positives and negatives, in `O(n + m)`.
    pub(super) fn counts(&self, n: usize, m: usize) -> Counts {
        let present =
            |count: usize, ignored: &dyn Fn(usize) -> bool| (0..count).filter(|&k| !ignored(k)).count() as u32;
        let row_ignored = |i: usize| self.row_ignored(i);
        let col_ignored = |j: usize| self.col_ignored(j);
        let (rows_present, cols_present) = (present(n, &row_ignored), present(m, &col_ignored));
        let side = |count: usize,
                    others: usize,
                    ignored: &dyn Fn(usize) -> bool,
                    other_ignored: &dyn Fn(usize) -> bool,
                    ids: Option<(&[i64], &[i64])>,
                    others_present: u32| {
            let mut members: HashMap<i64, u32> = HashMap::new();
            if let Some((_, other_ids)) = ids {
                for (k, id) in other_ids.iter().enumerate().filter(|(k, _)| !other_ignored(*k)) {
                    debug_assert!(k < others);
                    *members.entry(*id).or_default() += 1;
                }
            }
            let of = |k: usize| -> (u32, u32) {
                if ignored(k) {
                    return (0, 0);
                }
                let twin = k < others && !other_ignored(k);
                let grouped = ids.map(|(own, _)| members.get(&own[k]).copied().unwrap_or(0));
                let twin_in_group = twin && ids.is_some_and(|(own, other)| own[k] == other[k]);
                let twin = u32::from(twin);
                match grouped {
                    Some(same) if self.single_positive => {
                        // The pair itself is positive in or out of the group, the rest of the group is ignored.
                        let outside = others_present - same - (twin - u32::from(twin_in_group));
                        if self.single_set { (0, outside) } else { (twin, outside) }
                    }
                    Some(same) if self.single_set => {
                        (same - u32::from(twin_in_group), others_present - same - (twin - u32::from(twin_in_group)))
                    }
                    Some(same) => (same, others_present - same),
                    None if self.single_set => (0, others_present - twin),
                    None => (twin, others_present - twin),
                }
            };
            (0..count).map(of).collect()
        };
        let flipped = self.groups.map(|(rows, cols)| (cols, rows));
        Counts {
            rows: side(n, m, &row_ignored, &col_ignored, self.groups, cols_present),
            cols: side(m, n, &col_ignored, &row_ignored, flipped, rows_present),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Groups;

    /// The counts against the classes of every single pair.
    #[test]
    fn counts_are_those_of_the_classes() {
        let (rows, cols) = ([5, 1, 5, -7, 2, 2], [5, 5, 1, -7, 9, 2, 2]);
        let ignore_rows = [false, true, false, false, false, false];
        let ignore_cols = [true, false, false, true, false, false, false];
        let plain = PairwiseOptions::default();
        let grouped = PairwiseOptions { groups: Some(Groups { rows: &rows, cols: &cols }), ..plain };
        let masked = PairwiseOptions { ignore_rows: Some(&ignore_rows), ignore_cols: Some(&ignore_cols), ..plain };
        let both = PairwiseOptions { groups: grouped.groups, ..masked };
        for options in [plain, grouped, masked, both] {
            for (one_positive, single, m) in [(true, false, 7), (false, false, 7), (false, true, 6)] {
                let options = if single {
                    let groups = options.groups.map(|_| Groups { rows: &rows, cols: &rows });
                    PairwiseOptions { groups, ignore_cols: options.ignore_rows, ..options }
                } else {
                    options
                };
                let classes = Classes::new(one_positive, &options, single);
                let counts = classes.counts(6, m);
                let mut all = [[IGNORED; 7]; 6];
                all.iter_mut().enumerate().for_each(|(i, out)| {
                    classes.of_row(i, &(0..m), out);
                });
                let count = |cells: Vec<u32>| {
                    let of = |class| cells.iter().filter(|c| **c == class).count() as u32;
                    (of(POSITIVE), of(NEGATIVE))
                };
                for (i, row) in all.iter().enumerate() {
                    assert_eq!(counts.rows[i], count(row[..m].to_vec()), "{one_positive} row {i} {options:?}");
                }
                for j in 0..m {
                    let col = all.iter().map(|row| row[j]).collect();
                    assert_eq!(counts.cols[j], count(col), "{one_positive} column {j} {options:?}");
                }
            }
        }
    }
}
