//! The relative similarity of positives, `R⁺`.
//!
//! Its set holds the pairs `j` with `P_j <= N_i + eps`, other than the anchor's own and those of its group: in sorted
//! order, a prefix with holes. Each stretch between holes is summed by a tree of partial sums, so that no entry ever has
//! to be subtracted from a sum that it dominates.

use std::ops::Range;

use crate::options::Groups;

/// Group ids in sorted order, to list the members of a group.
#[derive(Debug)]
pub(super) struct GroupIndex<'a> {
    ids: &'a [i64],
    order: Vec<u32>,
}

impl<'a> GroupIndex<'a> {
    fn new(ids: &'a [i64]) -> Self {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&i| ids[i as usize]);
        Self { ids, order }
    }

    fn members(&self, id: i64) -> &[u32] {
        let start = self.order.partition_point(|&i| self.ids[i as usize] < id);
        let end = self.order.partition_point(|&i| self.ids[i as usize] <= id);
        &self.order[start..end]
    }
}

/// Which direction's anchors: rows of `X` or rows of `Y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Rows,
    Cols,
}

/// The similarities of all pairs, sorted.
#[derive(Debug)]
pub(super) struct Positives<'a> {
    values: &'a [f64],
    /// Slope of the exponential form, `None` for the linear one.
    alpha: Option<f64>,
    /// Values without NaN, ascending.
    sorted: Vec<f64>,
    /// Place of every pair in `sorted`; beyond its end for NaN.
    place: Vec<u32>,
    /// Leaves from `sorted.len()` on: the value, or `exp(-alpha (value − lowest))`; each node above sums two.
    tree: Vec<f64>,
    groups: Option<(Groups<'a>, GroupIndex<'a>, GroupIndex<'a>)>,
}

impl<'a> Positives<'a> {
    pub(super) fn new(values: &'a [f64], alpha: Option<f64>, groups: Option<Groups<'a>>) -> Self {
        let mut order: Vec<u32> = (0..values.len() as u32).filter(|&i| !values[i as usize].is_nan()).collect();
        order.sort_unstable_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]).then(a.cmp(&b)));
        let sorted: Vec<f64> = order.iter().map(|&i| values[i as usize]).collect();
        let mut place = vec![u32::MAX; values.len()];
        for (at, &i) in order.iter().enumerate() {
            place[i as usize] = at as u32;
        }
        let leaf = |v: &f64| alpha.map_or(*v, |alpha| (-alpha * (v - sorted[0])).exp());
        let mut tree = vec![0.0; sorted.len()];
        tree.extend(sorted.iter().map(leaf));
        for node in (1..sorted.len()).rev() {
            tree[node] = tree[2 * node] + tree[2 * node + 1];
        }
        let groups = groups.map(|g| (g, GroupIndex::new(g.rows), GroupIndex::new(g.cols)));
        Self { values, alpha, sorted, place, tree, groups }
    }

    /// The smallest similarity of a pair, +∞ if there is none but NaN.
    pub(super) fn lowest(&self) -> f64 {
        self.sorted.first().copied().unwrap_or(f64::INFINITY)
    }

    /// `R⁺` of an anchor whose set ends at `limit`, and the number of pairs in its mean.
    pub(super) fn relative(&self, direction: Direction, anchor: usize, limit: f64) -> (f64, u32) {
        let end = self.sorted.partition_point(|&p| p <= limit);
        let group = self.group(direction, anchor);
        if end == 0 {
            return (0.0, 0);
        }
        if group.len() * 8 > end {
            return self.by_definition(direction, anchor, limit);
        }
        let own = self.values[anchor];
        let mut holes: Vec<Range<usize>> = Vec::with_capacity(1 + group.len());
        let place = |i: usize| self.place[i] as usize;
        holes.extend(group.iter().map(|&i| place(i as usize)..place(i as usize).saturating_add(1)));
        holes.push(match self.alpha {
            // A difference of exactly 0 is not counted.
            None => self.sorted.partition_point(|&p| p < own)..self.sorted.partition_point(|&p| p <= own),
            Some(_) => place(anchor)..place(anchor).saturating_add(1),
        });
        holes.sort_unstable_by_key(|h| h.start);
        let (mut sum, mut count, mut from) = (0.0, 0, 0);
        for hole in holes.into_iter().chain(std::iter::once(end..end)) {
            let to = hole.start.min(end);
            if from < to {
                sum += self.sum(from..to);
                count += to - from;
            }
            from = from.max(hole.end);
        }
        self.mean(anchor, sum, count).unwrap_or_else(|| self.by_definition(direction, anchor, limit))
    }

    /// The mean behind `sum`; `None` where the exponential form left the range of numbers.
    fn mean(&self, anchor: usize, sum: f64, count: usize) -> Option<(f64, u32)> {
        let own = self.values[anchor];
        if count == 0 {
            return Some((0.0, 0));
        }
        let total = match self.alpha {
            None => count as f64 * own - sum,
            Some(alpha) => sum * (alpha * (own - self.lowest())).exp(),
        };
        let in_range = self.alpha.is_none() || (total.is_finite() && sum > f64::MIN_POSITIVE);
        in_range.then_some((total / count as f64, count as u32))
    }

    fn group(&self, direction: Direction, anchor: usize) -> &[u32] {
        match (&self.groups, direction) {
            (None, _) => &[],
            (Some((groups, _, cols)), Direction::Rows) => cols.members(groups.rows[anchor]),
            (Some((groups, rows, _)), Direction::Cols) => rows.members(groups.cols[anchor]),
        }
    }

    /// Sum of the leaves `range`.
    fn sum(&self, range: Range<usize>) -> f64 {
        let n = self.sorted.len();
        let (mut left, mut right) = (range.start + n, range.end + n);
        let (mut low, mut high) = (0.0, 0.0);
        while left < right {
            if left % 2 == 1 {
                low += self.tree[left];
                left += 1;
            }
            if right % 2 == 1 {
                right -= 1;
                high += self.tree[right];
            }
            left /= 2;
            right /= 2;
        }
        low + high
    }

    fn by_definition(&self, direction: Direction, anchor: usize, limit: f64) -> (f64, u32) {
        let same_group = |other: usize| {
            self.groups.as_ref().is_some_and(|(g, ..)| match direction {
                Direction::Rows => g.rows[anchor] == g.cols[other],
                Direction::Cols => g.rows[other] == g.cols[anchor],
            })
        };
        let own = self.values[anchor];
        let (mut sum, mut count) = (0.0, 0);
        for (other, &p) in self.values.iter().enumerate() {
            if other == anchor || p > limit || p.is_nan() || same_group(other) {
                continue;
            }
            match self.alpha {
                None if p == own => {}
                None => (sum, count) = (sum + (own - p), count + 1),
                Some(alpha) => (sum, count) = (sum + (alpha * (own - p)).exp(), count + 1),
            }
        }
        (if count == 0 { 0.0 } else { sum / f64::from(count) }, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_sums_agree_with_the_definition() {
        let mut values: Vec<f64> = (0..70).map(|i| f64::from(i * 37 % 70) / 70.0 - 0.2).collect();
        values[9] = values[33];
        values[50] = f64::NAN;
        let ids: Vec<i64> = (0..70).map(|i| i % 40).collect();
        for groups in [None, Some(Groups { rows: &ids, cols: &ids })] {
            for alpha in [None, Some(2.0), Some(900.0)] {
                let positives = Positives::new(&values, alpha, groups);
                for anchor in (0..70).filter(|&i| i != 50) {
                    for limit in [-1.0, 0.1, 0.5, f64::NAN, 2.0] {
                        for direction in [Direction::Rows, Direction::Cols] {
                            let (mean, count) = positives.relative(direction, anchor, limit);
                            let limit = if limit.is_nan() { f64::NEG_INFINITY } else { limit };
                            let (want, members) = positives.by_definition(direction, anchor, limit);
                            assert_eq!(count, members);
                            let close = (mean - want).abs() <= 1e-12 * want.abs().max(1e-3);
                            assert!(close || mean == want, "{mean} {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn own_entry_does_not_cancel() {
        // The anchor's own term is 1, the others are exp(-60): a difference of sums would lose them.
        let values = [0.0, 30.0, 30.0];
        let positives = Positives::new(&values, Some(2.0), None);
        let (mean, count) = positives.relative(Direction::Rows, 0, 40.0);
        assert_eq!(count, 2);
        assert!((mean / (-60f64).exp() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn empty_batches_and_nan_only_batches_have_no_lowest() {
        assert_eq!(Positives::new(&[], None, None).lowest(), f64::INFINITY);
        assert_eq!(Positives::new(&[f64::NAN], Some(1.0), None).lowest(), f64::INFINITY);
    }
}
