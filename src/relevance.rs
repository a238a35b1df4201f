//! Which candidates are relevant to which queries.

use std::collections::HashMap;
use std::ops::Range;

use crate::check;
use crate::error::{Error, Result};
use crate::options::Groups;

const OP: &str = "RelevantPairs";

/// The relevant pairs of a retrieval task: for every row of `X` the rows of `Y` that are right answers, with a grade.
///
/// Kept in compressed rows, `O(rows + pairs)`. The same pairs serve both directions: row `j` of `Y` has row `i` of `X` as a
/// right answer exactly if `(i, j)` is a pair. A row or column may have any number of pairs, also none.
///
/// A grade says how relevant a pair is; it enters nDCG alone. A pair of grade 0 is listed but not relevant: every other
/// figure leaves it out.
#[derive(Clone, Debug, PartialEq)]
pub struct RelevantPairs {
    rows: usize,
    cols: usize,
    /// `rows + 1`
    offsets: Vec<u32>,
    /// Ascending within a row.
    candidates: Vec<i32>,
    /// One per pair, or none at all: then every grade is 1.
    grades: Vec<f32>,
}

fn refuse(arg: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::InvalidOption { op: OP, arg, expected: expected.into(), got: got.into() }
}

impl RelevantPairs {
    /// Pairs in compressed rows: those of row `i` are `candidates[offsets[i]..offsets[i + 1]]`, strictly ascending rows of
    /// `Y`; `grades`, if given, has one finite number of at least 0 per pair.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above `i32::MAX` rows or pairs, [`Error::ShapeMismatch`] if `offsets` has not `rows + 1` entries
    /// or `grades` not one per pair, [`Error::InvalidOption`] for offsets that do not ascend from 0 to the number of
    /// pairs, candidates that do not ascend within a row or are not in `0..cols`, and grades outside their range.
    pub fn new(
        rows: usize,
        cols: usize,
        offsets: &[usize],
        candidates: Vec<i32>,
        grades: Option<Vec<f32>>,
    ) -> Result<Self> {
        check_size(rows, cols, candidates.len())?;
        check::equal(OP, "offsets", rows + 1, offsets.len())?;
        if offsets[0] != 0 || offsets[rows] != candidates.len() || !offsets.is_sorted() {
            let expected = format!("an ascending list from 0 to {}, the number of candidates", candidates.len());
            return Err(refuse("offsets", expected, format!("{} … {}", offsets[0], offsets[rows])));
        }
        for (row, ends) in offsets.windows(2).enumerate() {
            check_row(row, &candidates[ends[0]..ends[1]], cols)?;
        }
        let grades = grades.unwrap_or_default();
        if !grades.is_empty() {
            check::equal(OP, "grades", candidates.len(), grades.len())?;
        }
        if let Some((pair, grade)) = grades.iter().enumerate().find(|(_, g)| !(g.is_finite() && **g >= 0.0)) {
            return Err(refuse("grades", "finite numbers of at least 0", format!("{grade} for pair {pair}")));
        }
        let offsets = offsets.iter().map(|&o| o as u32).collect();
        Ok(Self { rows, cols, offsets, candidates, grades })
    }

    /// Row `i` of `X` and row `i` of `Y`, for every index that both have.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above `i32::MAX` rows.
    pub fn paired(rows: usize, cols: usize) -> Result<Self> {
        check_size(rows, cols, 0)?;
        let pairs = rows.min(cols);
        let offsets = (0..=rows).map(|i| i.min(pairs) as u32).collect();
        Ok(Self { rows, cols, offsets, candidates: (0..pairs as i32).collect(), grades: Vec::new() })
    }

    /// `items` rows of `X` with `captions` rows of `Y` each: row `i` has the rows `captions · i` to `captions · (i + 1) − 1`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above `i32::MAX` rows.
    pub fn captions(items: usize, captions: usize) -> Result<Self> {
        let cols = items.saturating_mul(captions);
        check_size(items, cols, cols)?;
        let offsets = (0..=items).map(|i| (i * captions) as u32).collect();
        Ok(Self { rows: items, cols, offsets, candidates: (0..cols as i32).collect(), grades: Vec::new() })
    }

    /// Every row and column of the same group id.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above `i32::MAX` rows or pairs.
    pub fn from_groups(groups: Groups<'_>) -> Result<Self> {
        let (rows, cols) = (groups.rows.len(), groups.cols.len());
        check_size(rows, cols, 0)?;
        let mut members: HashMap<i64, Vec<i32>> = HashMap::new();
        for (j, &id) in groups.cols.iter().enumerate() {
            members.entry(id).or_default().push(j as i32);
        }
        let of = |id: &i64| members.get(id).map_or(&[][..], Vec::as_slice);
        let pairs = groups.rows.iter().fold(0usize, |sum, id| sum.saturating_add(of(id).len()));
        check_size(rows, cols, pairs)?;
        let (mut offsets, mut candidates) = (Vec::with_capacity(rows + 1), Vec::with_capacity(pairs));
        offsets.push(0);
        for id in groups.rows {
            candidates.extend_from_slice(of(id));
            offsets.push(candidates.len() as u32);
        }
        Ok(Self { rows, cols, offsets, candidates, grades: Vec::new() })
    }

    /// Rows of `X`.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of `Y`.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Number of pairs.
    pub const fn pairs(&self) -> usize {
        self.candidates.len()
    }

    /// Where the pairs of each row begin, and at the end the number of pairs.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// The candidate of every pair, row by row, ascending within a row.
    pub fn candidates(&self) -> &[i32] {
        &self.candidates
    }

    /// The grade of every pair; empty if all are 1.
    pub fn grades(&self) -> &[f32] {
        &self.grades
    }

    /// The pairs of row `i`, as indices into [`candidates`](Self::candidates).
    pub(crate) fn of(&self, i: usize) -> Range<usize> {
        self.offsets[i] as usize..self.offsets[i + 1] as usize
    }

    /// The same pairs with rows and columns exchanged, and for each of them, in the order there, its number here.
    pub fn transposed(&self) -> (Self, Vec<u32>) {
        let mut offsets = vec![0u32; self.cols + 1];
        for &j in &self.candidates {
            offsets[j as usize + 1] += 1;
        }
        for j in 0..self.cols {
            offsets[j + 1] += offsets[j];
        }
        let mut next = offsets.clone();
        let (mut candidates, mut numbers) = (vec![0; self.pairs()], vec![0; self.pairs()]);
        for i in 0..self.rows {
            for pair in self.of(i) {
                let place = &mut next[self.candidates[pair] as usize];
                candidates[*place as usize] = i as i32;
                numbers[*place as usize] = pair as u32;
                *place += 1;
            }
        }
        let grade = |&pair: &u32| self.grades[pair as usize];
        let grades = if self.grades.is_empty() { Vec::new() } else { numbers.iter().map(grade).collect() };
        (Self { rows: self.cols, cols: self.rows, offsets, candidates, grades }, numbers)
    }
}

fn check_size(rows: usize, cols: usize, pairs: usize) -> Result<()> {
    check::at_most(OP, "rows", check::MAX_ROWS, rows)?;
    check::at_most(OP, "cols", check::MAX_ROWS, cols)?;
    check::at_most(OP, "pairs", check::MAX_ROWS, pairs)
}

fn check_row(row: usize, candidates: &[i32], cols: usize) -> Result<()> {
    let inside = |&j: &i32| usize::try_from(j).is_ok_and(|j| j < cols);
    if let Some(outside) = candidates.iter().find(|j| !inside(j)) {
        return Err(refuse("candidates", format!("indices in 0..{cols}"), format!("{outside} in row {row}")));
    }
    if let Some(pair) = candidates.windows(2).find(|pair| pair[0] >= pair[1]) {
        let got = format!("{} before {} in row {row}", pair[0], pair[1]);
        return Err(refuse("candidates", "strictly ascending indices within a row", got));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_make_pairs_agrees() {
        let groups = Groups { rows: &[0, 1, 2], cols: &[0, 0, 1, 1, 2, 2] };
        let listed = RelevantPairs::new(3, 6, &[0, 2, 4, 6], (0..6).collect(), None).unwrap();
        assert_eq!(RelevantPairs::from_groups(groups).unwrap(), listed);
        assert_eq!(RelevantPairs::captions(3, 2).unwrap(), listed);
        assert_eq!(RelevantPairs::captions(3, 1).unwrap(), RelevantPairs::paired(3, 3).unwrap());
        assert_eq!(RelevantPairs::paired(4, 2).unwrap().offsets(), [0, 1, 2, 2, 2]);
    }

    #[test]
    fn transposing_twice_changes_nothing() {
        let grades = Some(vec![1.0, 2.0, 0.0, 4.0, 5.0]);
        let pairs = RelevantPairs::new(3, 4, &[0, 2, 2, 5], vec![1, 3, 0, 1, 2], grades).unwrap();
        let (transposed, numbers) = pairs.transposed();
        assert_eq!(transposed.offsets(), [0, 1, 3, 4, 5]);
        assert_eq!(transposed.candidates(), [2, 0, 2, 2, 0]);
        assert_eq!(numbers, [2, 0, 3, 4, 1]);
        assert_eq!(transposed.grades(), [0.0, 1.0, 4.0, 5.0, 2.0]);
        assert_eq!(transposed.transposed().0, pairs);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |offsets: &[usize], candidates: &[i32], grades: Option<Vec<f32>>| {
            RelevantPairs::new(2, 3, offsets, candidates.to_vec(), grades).unwrap_err()
        };
        let arg = |error: Error| match error {
            Error::ShapeMismatch { arg, .. } | Error::InvalidOption { arg, .. } | Error::TooLarge { arg, .. } => arg,
            other => panic!("{other}"),
        };
        assert_eq!(arg(of(&[0, 1], &[0], None)), "offsets");
        assert_eq!(arg(of(&[1, 1, 1], &[0], None)), "offsets");
        assert_eq!(arg(of(&[0, 2, 1], &[0], None)), "offsets");
        assert_eq!(arg(of(&[0, 1, 1], &[3], None)), "candidates");
        assert_eq!(arg(of(&[0, 1, 1], &[-1], None)), "candidates");
        assert_eq!(arg(of(&[0, 2, 2], &[1, 1], None)), "candidates");
        assert_eq!(arg(of(&[0, 1, 2], &[2, 1], Some(vec![1.0]))), "grades");
        assert_eq!(arg(of(&[0, 1, 2], &[2, 1], Some(vec![1.0, f32::NAN]))), "grades");
        assert_eq!(arg(of(&[0, 1, 2], &[2, 1], Some(vec![1.0, -1.0]))), "grades");
        assert_eq!(arg(RelevantPairs::captions(usize::MAX, 5).unwrap_err()), "rows");
        assert_eq!(arg(RelevantPairs::captions(1 << 30, 5).unwrap_err()), "cols");
    }
}
