//! Statistics per anchor: hardest candidate, second best, and the set behind the relative similarity of negatives.

use crate::dtype::Accum;
use crate::outputs::NONE;

/// The set of the candidates `s >= threshold` other than the hardest, and what is summed over it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NegativeSet<A> {
    pub(super) threshold: A,
    /// Sum of `exp(-beta (max - s))`; `None`: sum of `max - s`.
    pub(super) beta: Option<A>,
}

/// What is collected besides the hardest candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Collect<A> {
    pub(super) second: bool,
    pub(super) set: Option<NegativeSet<A>>,
}

/// Statistics of one anchor over some of its candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry<A> {
    pub(super) best: A,
    pub(super) index: i32,
    pub(super) second: A,
    /// Members of the set.
    pub(super) count: u32,
    /// Those of them that equal `best`.
    pub(super) ties: u32,
    pub(super) sum: A,
}

/// Statistics of consecutive anchors, one plane per field; planes that are not collected are empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Side<A> {
    pub(super) best: Vec<A>,
    pub(super) index: Vec<i32>,
    pub(super) second: Vec<A>,
    pub(super) count: Vec<u32>,
    pub(super) ties: Vec<u32>,
    pub(super) sum: Vec<A>,
}

/// The order of similarities: NaN above everything, otherwise by value.
#[inline(always)]
pub(super) fn above<A: Accum>(a: A, b: A) -> bool {
    a > b || (a.not_a_number() && !b.not_a_number())
}

fn max_of<A: Accum>(a: A, b: A) -> A {
    if above(b, a) { b } else { a }
}

impl<A: Accum> Entry<A> {
    pub(super) const EMPTY: Self =
        Self { best: A::NEG_INFINITY, index: NONE, second: A::NEG_INFINITY, count: 0, ties: 0, sum: A::ZERO };

    /// Statistics of a single candidate.
    pub(super) const fn single(value: A, index: i32) -> Self {
        Self { best: value, index, ..Self::EMPTY }
    }

    /// Whether the candidate comes before another one; no candidate comes after all.
    #[inline]
    fn beats(&self, best: A, index: i32) -> bool {
        match (self.index, index) {
            (NONE, _) => false,
            (_, NONE) => true,
            _ => above(self.best, best) || (!above(best, self.best) && self.index < index),
        }
    }

    /// Statistics of the union of two disjoint sets of candidates.
    ///
    /// The running maximum stays outside the sum, so that nothing ever has to be subtracted: the side with the lower
    /// maximum is shifted to the higher one, and its own maximum becomes a member if it passes the threshold.
    pub(super) fn merge(self, other: Self, collect: &Collect<A>) -> Self {
        let (winner, loser) = match (self.index, other.index) {
            (_, NONE) => return self,
            (NONE, _) => return other,
            _ if other.beats(self.best, self.index) => (other, self),
            _ => (self, other),
        };
        let mut result = winner;
        if collect.second {
            result.second = max_of(winner.second, loser.best);
        }
        if let Some(set) = &collect.set {
            let admitted = loser.best >= set.threshold;
            result.count += loser.count + u32::from(admitted);
            if loser.best == winner.best {
                result.ties += loser.ties + u32::from(admitted);
            }
            result.sum += loser.shifted_sum(winner.best, admitted, set);
        }
        result
    }

    /// The sum over the members, and over the own maximum if it is `admitted`, relative to a higher maximum.
    fn shifted_sum(&self, best: A, admitted: bool, set: &NegativeSet<A>) -> A {
        let below = if best == self.best { A::ZERO } else { best - self.best };
        let members = A::from_f64(f64::from(self.count + u32::from(admitted)));
        match set.beta {
            _ if self.count == 0 && !admitted => A::ZERO,
            None => self.sum + if below == A::ZERO { A::ZERO } else { members * below },
            Some(beta) => {
                let own = if admitted { A::ONE } else { A::ZERO };
                (self.sum + own) * (-(beta * below)).exp_nonpos()
            }
        }
    }

    /// `R⁻` and the number of members in its mean. The linear form counts only differences above 0.
    pub(super) fn relative(&self, set: &NegativeSet<A>) -> (f64, u32) {
        let counted = match set.beta {
            None if self.best.not_a_number() => 0,
            None => self.count - self.ties,
            Some(_) => self.count,
        };
        let mean = if counted == 0 { 0.0 } else { self.sum.to_f64() / f64::from(counted) };
        (mean, counted)
    }
}

impl<A: Accum> Side<A> {
    pub(super) fn new(len: usize, collect: &Collect<A>) -> Self {
        let seconds = if collect.second { len } else { 0 };
        let members = if collect.set.is_some() { len } else { 0 };
        Self {
            best: vec![A::NEG_INFINITY; len],
            index: vec![NONE; len],
            second: vec![A::NEG_INFINITY; seconds],
            count: vec![0; members],
            ties: vec![0; members],
            sum: vec![A::ZERO; members],
        }
    }

    pub(super) fn clear(&mut self) {
        self.best.fill(A::NEG_INFINITY);
        self.index.fill(NONE);
        self.second.fill(A::NEG_INFINITY);
        self.count.fill(0);
        self.ties.fill(0);
        self.sum.fill(A::ZERO);
    }

    pub(super) fn get(&self, at: usize) -> Entry<A> {
        let mut entry = Entry { best: self.best[at], index: self.index[at], ..Entry::EMPTY };
        if let Some(&second) = self.second.get(at) {
            entry.second = second;
        }
        if let (Some(&count), Some(&ties), Some(&sum)) = (self.count.get(at), self.ties.get(at), self.sum.get(at)) {
            (entry.count, entry.ties, entry.sum) = (count, ties, sum);
        }
        entry
    }

    pub(super) fn add(&mut self, at: usize, other: Entry<A>, collect: &Collect<A>) {
        if !collect.second && collect.set.is_none() {
            if other.beats(self.best[at], self.index[at]) {
                (self.best[at], self.index[at]) = (other.best, other.index);
            }
            return;
        }
        let merged = self.get(at).merge(other, collect);
        (self.best[at], self.index[at]) = (merged.best, merged.index);
        if collect.second {
            self.second[at] = merged.second;
        }
        if collect.set.is_some() {
            (self.count[at], self.ties[at], self.sum[at]) = (merged.count, merged.ties, merged.sum);
        }
    }

    /// Adds the statistics of the anchors from `first` on.
    pub(super) fn add_all(&mut self, first: usize, other: &Self, collect: &Collect<A>) {
        for at in 0..other.best.len() {
            self.add(first + at, other.get(at), collect);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merging in any grouping gives what a direct evaluation of the definition gives.
    #[test]
    fn merge_agrees_with_the_definition() {
        let values = [0.3, 0.9, -0.2, 0.9, 0.5, 0.85, 0.9, -0.8, 0.1];
        for beta in [None, Some(10.0)] {
            let set = NegativeSet { threshold: 0.0, beta };
            let collect = Collect { second: true, set: Some(set) };
            for split in 0..=values.len() {
                let part = |range: std::ops::Range<usize>| {
                    range.fold(Entry::EMPTY, |e, i| e.merge(Entry::single(values[i], i as i32), &collect))
                };
                let (left, right) = (part(0..split), part(split..values.len()));
                for all in [left.merge(right, &collect), right.merge(left, &collect)] {
                    assert_eq!((all.best, all.index, all.second), (0.9, 1, 0.9));
                    assert_eq!((all.count, all.ties), (6, 2));
                    let members = [0.3, 0.9, 0.5, 0.85, 0.9, 0.1_f64];
                    let term = |s: &f64| beta.map_or(0.9 - s, |b: f64| (-b * (0.9 - s)).exp());
                    assert!((all.sum - members.iter().map(term).sum::<f64>()).abs() < 1e-12);
                    assert_eq!(all.relative(&set).1, if beta.is_some() { 6 } else { 4 });
                }
            }
        }
    }

    #[test]
    fn nan_is_the_largest_and_the_lowest_index_wins() {
        let collect = Collect { second: true, set: None };
        let of = |v, i| Entry::single(v, i);
        let all = of(1.0, 0).merge(of(f64::NAN, 3), &collect).merge(of(f64::NAN, 2), &collect);
        assert!(all.best.is_nan() && all.index == 2 && all.second.is_nan());
        let none = Entry::<f64>::EMPTY.merge(Entry::EMPTY, &collect);
        assert_eq!(none.index, NONE);
        let lowest = Entry::EMPTY.merge(of(f64::NEG_INFINITY, 4), &collect);
        assert_eq!(lowest.index, 4);
    }
}
