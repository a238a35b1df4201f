//! Lists of the best candidates so far, for some consecutive anchors.

use super::keys::{Keys, order};
use crate::dtype::Accum;
use crate::outputs::NONE;
use crate::top_k::{Fallback, Pick, TopKOptions};

/// A candidate and its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<A> {
    pub(super) key: u64,
    pub(super) value: A,
    pub(super) index: i32,
}

impl<A> Entry<A> {
    /// Larger keys come first, then lower indices; no two candidates of an anchor are equal. One number, so that it is
    /// compared without a branch.
    #[inline(always)]
    fn rank(&self) -> u128 {
        rank(self.key, self.index)
    }
}

/// The place of a key and an index that is not negative.
#[inline(always)]
fn rank(key: u64, index: i32) -> u128 {
    u128::from(key) << 32 | u128::from(!index.cast_unsigned())
}

/// Similarity and index of every entry in one word, whose order is that of the entries and which is sorted in a fraction of
/// the time. Returns whether there are such words: not for f64, nor for a NaN, whose bits they would not keep.
fn words_of<A: Accum>(list: &[Entry<A>], words: &mut Vec<u64>) -> bool {
    words.clear();
    if size_of::<A>() != size_of::<f32>() {
        return false;
    }
    words.extend(list.iter().map(|e| {
        // The value is an f32.
        let bits = (e.value.to_f64() as f32 + 0.0).to_bits();
        let order = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        u64::from(order) << 32 | u64::from(!e.index.cast_unsigned())
    }));
    list.iter().all(|e| !e.value.not_a_number())
}

/// What [`words_of`] has made a word of, -0 as +0.
fn of_word<A: Accum>(word: u64) -> (i32, A) {
    let order = (word >> 32) as u32;
    let bits = if order >> 31 == 1 { order ^ 1 << 31 } else { !order };
    ((!word as u32).cast_signed(), A::from_f64(f64::from(f32::from_bits(bits))))
}

/// Per anchor the `keep` best of the entries that were offered, in no order, and some that are still to be sorted out.
struct Best<A> {
    keep: usize,
    /// Places per anchor, more than `keep`.
    room: usize,
    entries: Vec<Entry<A>>,
    len: Vec<usize>,
    /// Entries that rank no higher are not among the `keep` best.
    floor: Vec<u128>,
}

impl<A: Accum> Best<A> {
    fn new(anchors: usize, keep: usize) -> Self {
        // Sorting out costs a pass over all places; this many entries share it.
        let room = keep + keep.clamp(16, 128);
        Self {
            keep,
            room,
            entries: vec![Entry { key: 0, value: A::ZERO, index: NONE }; anchors * room],
            len: vec![0; anchors],
            floor: vec![rank(0, i32::MAX); anchors],
        }
    }

    fn list(&mut self, a: usize) -> &mut [Entry<A>] {
        &mut self.entries[a * self.room..][..self.len[a]]
    }

    /// Whether the list was full, so that the caller has to sort it out.
    fn add(&mut self, a: usize, entry: Entry<A>) -> bool {
        self.entries[a * self.room + self.len[a]] = entry;
        self.len[a] += 1;
        self.len[a] == self.room
    }

    /// Drops all but the best entries, hands those that are dropped to `out`, and returns the last that stays.
    fn sort_out(&mut self, a: usize, mut out: impl FnMut(Entry<A>)) -> Option<Entry<A>> {
        let keep = self.keep;
        let list = self.list(a);
        if list.len() < keep {
            return None;
        }
        let (_, &mut last, rest) = list.select_nth_unstable_by_key(keep - 1, |e| std::cmp::Reverse(e.rank()));
        rest.iter().for_each(|&e| out(e));
        self.len[a] = keep;
        self.floor[a] = last.rank();
        Some(last)
    }
}

/// How candidates of one direction are ranked.
#[derive(Debug)]
pub(super) struct Ranking {
    pub(super) keys: Keys,
    by_similarity: bool,
    skip: usize,
    k: usize,
    pub(super) easiest: bool,
    /// Whether NaN survives.
    pub(super) nan: bool,
}

impl Ranking {
    pub(super) fn new(options: &TopKOptions<'_>, direction: u64, d: usize) -> Self {
        Self {
            keys: Keys::new(options.pick, direction, d),
            by_similarity: options.pick == Pick::Hardest,
            skip: options.skip,
            k: options.k,
            easiest: options.fallback == Fallback::Easiest,
            nan: options.admits_nan(),
        }
    }
}

/// The state of some consecutive anchors.
pub(super) struct Lists<A> {
    /// Survivors lie in `low ..= high`; a NaN as a bound lets none survive.
    pub(super) low: Vec<A>,
    pub(super) high: Vec<A>,
    /// A survivor below this is not among the best.
    pub(super) threshold: Vec<A>,
    pub(super) survivors: Vec<u32>,
    /// What the smallest similarity of a candidate is not above, if it is asked for; otherwise NaN.
    pub(super) easiest: Vec<A>,
    /// The candidate of the smallest similarity among those that do not survive.
    easiest_entry: Vec<Entry<A>>,
    first: usize,
    /// Where hardest survivors are left out before a sample is drawn: those so far.
    left_out: Option<Best<A>>,
    best: Best<A>,
}

impl<A: Accum> Lists<A> {
    /// For anchors from `first` on, with these bounds, of which each has at most `candidates` candidates.
    pub(super) fn new(ranking: &Ranking, first: usize, bounds: &[(A, A)], candidates: usize) -> Self {
        let anchors = bounds.len();
        let (skip, k) = (ranking.skip.min(candidates), ranking.k.min(candidates).max(1));
        let apart = !ranking.by_similarity && skip > 0;
        Self {
            low: bounds.iter().map(|b| b.0).collect(),
            high: bounds.iter().map(|b| b.1).collect(),
            threshold: vec![A::NEG_INFINITY; anchors],
            survivors: vec![0; anchors],
            easiest: vec![if ranking.easiest { -A::NEG_INFINITY } else { A::NAN }; anchors],
            easiest_entry: vec![Entry { key: u64::MAX, value: A::NAN, index: NONE }; anchors],
            first,
            left_out: apart.then(|| Best::new(anchors, skip)),
            best: Best::new(anchors, if apart { k } else { k + skip }),
        }
    }

    /// A candidate that survives or is not larger than the easiest so far. Survivors are counted elsewhere.
    #[inline(always)]
    pub(super) fn offer(&mut self, ranking: &Ranking, a: usize, value: A, index: i32, survives: bool) {
        if ranking.easiest && !survives {
            self.offer_easiest(a, value, index);
        }
        if survives {
            self.offer_survivor(ranking, a, value, index);
        }
    }

    fn offer_easiest(&mut self, a: usize, value: A, index: i32) {
        let (key, held) = (order(value.to_f64()), self.easiest_entry[a]);
        if held.index == NONE || (key, index) < (held.key, held.index) {
            self.easiest_entry[a] = Entry { key, value, index };
            // A NaN gives way to any number.
            self.easiest[a] = if value.not_a_number() { -A::NEG_INFINITY } else { value };
        }
    }

    #[inline(always)]
    fn offer_survivor(&mut self, ranking: &Ranking, a: usize, value: A, index: i32) {
        if self.left_out.is_some() {
            return self.offer_to_both(ranking, a, value, index);
        }
        let floor = (self.best.floor[a] >> 32) as u64;
        if let Some(key) = ranking.keys.key(floor, self.first + a, index, value.to_f64()) {
            self.offer_best(ranking, a, Entry { key, value, index });
        }
    }

    #[inline(always)]
    fn offer_best(&mut self, ranking: &Ranking, a: usize, entry: Entry<A>) {
        if entry.rank() > self.best.floor[a] && self.best.add(a, entry) {
            let last = self.best.sort_out(a, |_| ());
            if let Some(last) = last.filter(|_| ranking.by_similarity) {
                self.threshold[a] = last.value;
            }
        }
    }

    /// To the hardest ones first; whatever does not belong there can be drawn.
    fn offer_to_both(&mut self, ranking: &Ranking, a: usize, value: A, index: i32) {
        let entry = Entry { key: order(value.to_f64()), value, index };
        let Some(left_out) = &mut self.left_out else { return };
        if entry.rank() <= left_out.floor[a] {
            return self.draw(ranking, a, entry);
        }
        if left_out.add(a, entry) {
            self.settle(ranking, a);
        }
    }

    fn draw(&mut self, ranking: &Ranking, a: usize, entry: Entry<A>) {
        let floor = (self.best.floor[a] >> 32) as u64;
        if let Some(key) = ranking.keys.key(floor, self.first + a, entry.index, entry.value.to_f64()) {
            self.offer_best(ranking, a, Entry { key, ..entry });
        }
    }

    /// Draws among what turns out not to be among the hardest.
    fn settle(&mut self, ranking: &Ranking, a: usize) {
        let mut dropped = Vec::new();
        if let Some(left_out) = &mut self.left_out {
            left_out.sort_out(a, |e| dropped.push(e));
        }
        dropped.into_iter().for_each(|e| self.draw(ranking, a, e));
    }

    /// Writes what every anchor has selected, `k` places each.
    pub(super) fn finish(mut self, ranking: &Ranking, index: &mut [i32], value: &mut [A], survivors: &mut [u32]) {
        survivors.copy_from_slice(&self.survivors);
        let places = index.chunks_exact_mut(ranking.k).zip(value.chunks_exact_mut(ranking.k));
        let mut words = Vec::new();
        for (a, (index, value)) in places.enumerate() {
            self.settle(ranking, a);
            let skip = if self.left_out.is_some() { 0 } else { ranking.skip };
            let chosen = index.iter_mut().zip(value.iter_mut());
            if ranking.by_similarity && words_of(self.best.list(a), &mut words) {
                words.sort_unstable_by(|a, b| b.cmp(a));
                for ((index, value), &word) in chosen.zip(words.iter().skip(skip)) {
                    (*index, *value) = of_word(word);
                }
            } else {
                self.best.sort_out(a, |_| ());
                let list = self.best.list(a);
                list.sort_unstable_by_key(|e| std::cmp::Reverse(e.rank()));
                for ((index, value), e) in chosen.zip(list.iter().skip(skip)) {
                    (*index, *value) = (e.index, e.value);
                }
            }
            let easiest = self.easiest_entry[a];
            if self.survivors[a] == 0 && easiest.index != NONE {
                (index[0], value[0]) = (easiest.index, easiest.value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_the_order_of_entries_and_keep_them() {
        let values = [-1.0f32, -1e-40, -0.0, 0.0, 1e-45, 0.25, 0.25, f32::INFINITY, f32::NEG_INFINITY, -f32::MAX];
        let entry = |(i, &value): (usize, &f32)| Entry { key: order(value.into()), value, index: i as i32 * 7 };
        let mut list: Vec<Entry<f32>> = values.iter().enumerate().map(entry).collect();
        let mut words = Vec::new();
        assert!(words_of(&list, &mut words));
        words.sort_unstable_by(|a, b| b.cmp(a));
        list.sort_unstable_by_key(|e| std::cmp::Reverse(e.rank()));
        let back: Vec<(i32, f32)> = words.iter().map(|&word| of_word(word)).collect();
        assert_eq!(back, list.iter().map(|e| (e.index, e.value)).collect::<Vec<_>>());
        list[3].value = f32::NAN;
        assert!(!words_of(&list, &mut words));
        assert!(!words_of(&[Entry { key: 1, value: 1.0f64, index: 0 }], &mut words));
    }
}
