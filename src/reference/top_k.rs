//! Several negatives per anchor.

use super::cosine_matrix::cosine_matrix;
use super::mine::{above, excluded};
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::memory_bank::{BankColumns, MemoryBank};
use crate::outputs::NONE;
use crate::top_k::{Fallback, Margin, Pick, Selected, TopK, TopKOptions};

/// 64 random bits for one anchor and candidate of a direction (0 for rows, 1 for columns): two rounds of SplitMix64.
pub fn random_bits(seed: u64, direction: u64, anchor: u32, candidate: u32) -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let start = mix(seed.wrapping_add((direction + 1).wrapping_mul(STEP)));
    let pair = (u64::from(anchor) << 32) | u64::from(candidate);
    mix(start.wrapping_add(pair.wrapping_mul(STEP)))
}

/// The logarithm of a candidate's weight in distance-weighted sampling with `d` features; `None` where it is 0.
pub fn distance_log_weight(similarity: f64, d: usize) -> Option<f64> {
    let s = similarity.min(1.0 - 0.5 * 0.5 * 0.5);
    let d = d as f64;
    (similarity > 0.02).then(|| -(d - 2.0) / 2.0 * (2.0 - 2.0 * s).ln() - (d - 3.0) / 2.0 * ((1.0 + s) / 2.0).ln())
}

/// A number in (0, 1) from random bits.
fn uniform(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

struct Direction<'a> {
    number: u64,
    d: usize,
    options: &'a TopKOptions<'a>,
}

impl Direction<'_> {
    fn survives(&self, s: f64, positive: Option<f64>) -> bool {
        let in_window = self.options.window.is_none_or(|(low, high)| low <= s && s <= high);
        let below = self.options.below_positive.is_none_or(|margin| {
            positive.is_some_and(|p| match margin {
                Margin::Absolute(margin) => s < p - margin,
                Margin::Relative(margin) => s < p - margin * p.abs(),
            })
        });
        let weighted = matches!(self.options.pick, Pick::DistanceWeighted { .. });
        in_window && below && (!weighted || distance_log_weight(s, self.d).is_some())
    }

    /// Puts what is to be selected first in front.
    fn order(&self, anchor: usize, survivors: &mut [(usize, f64)]) {
        let bits = |seed, c: &(usize, f64)| random_bits(seed, self.number, anchor as u32, c.0 as u32);
        match self.options.pick {
            Pick::Hardest => {}
            Pick::Random { seed } => survivors.sort_by_key(|c| std::cmp::Reverse(bits(seed, c))),
            Pick::DistanceWeighted { seed } => {
                let key = |c: &(usize, f64)| {
                    let gumbel = -(-uniform(bits(seed, c)).ln()).ln();
                    distance_log_weight(c.1, self.d).unwrap_or(f64::NEG_INFINITY) + gumbel
                };
                survivors.sort_by(|a, b| key(b).total_cmp(&key(a)));
            }
        }
    }

    fn anchor(&self, out: &mut Selected<f64>, anchor: usize, positive: Option<f64>, candidates: &[(usize, f64)]) {
        let mut sorted = candidates.to_vec();
        // Stable: equal similarities stay in the order of their indices.
        sorted.sort_by(|a, b| match (above(a.1, b.1), above(b.1, a.1)) {
            (true, _) => std::cmp::Ordering::Less,
            (_, true) => std::cmp::Ordering::Greater,
            _ => std::cmp::Ordering::Equal,
        });
        let easiest = sorted.last().and_then(|l| sorted.iter().find(|c| !above(c.1, l.1)).copied());
        let mut survivors: Vec<_> = sorted.into_iter().filter(|c| self.survives(c.1, positive)).collect();
        out.survivors.push(survivors.len() as u32);
        if survivors.is_empty() && self.options.fallback == Fallback::Easiest {
            survivors.extend(easiest);
        } else {
            survivors.drain(..self.options.skip.min(survivors.len()));
            self.order(anchor, &mut survivors);
        }
        for place in 0..self.options.k {
            let (index, value) = survivors.get(place).map_or((NONE, f64::NEG_INFINITY), |c| (c.0 as i32, c.1));
            out.index.push(index);
            out.value.push(value);
        }
    }
}

/// The negatives that every row and every column selects.
pub fn mine_top_k<T: Element>(x: MatRef<'_, T>, y: MatRef<'_, T>, options: &TopKOptions<'_>) -> TopK<f64> {
    let bank = MemoryBank::new(1, x.cols()).unwrap_or_else(|e| panic!("{e}"));
    let ids = vec![0; x.rows()];
    mine_top_k_with_bank(x, y, &BankColumns { bank: &bank, ids: &ids, self_within: None }, options)
}

/// As [`mine_top_k`], with the entries of a bank as candidates of the rows behind those of `y`.
pub fn mine_top_k_with_bank<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    extra: &BankColumns<'_, T>,
    options: &TopKOptions<'_>,
) -> TopK<f64> {
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    let bank = extra.bank;
    let s = cosine_matrix(x, y, options.normalization);
    let t = cosine_matrix(x, bank.embeddings(), options.normalization);
    let positive: Vec<f64> = (0..n.min(m)).map(|i| s[i * m + i]).collect();
    let none = || Selected { k: options.k, ..Selected::default() };
    let (mut rows, mut cols) = (none(), none());
    for i in 0..n {
        let batch = (0..m).filter(|&j| !excluded(options.groups, i, j)).map(|j| (j, s[i * m + j]));
        let own = |e: usize| {
            let age = bank.pushes() - bank.stamps()[e];
            bank.ids()[e] == extra.ids[i] && extra.self_within.is_none_or(|within| age < within)
        };
        let banked = (0..bank.len()).filter(|&e| !own(e)).map(|e| (m + e, t[i * bank.len() + e]));
        let candidates: Vec<_> = batch.chain(banked).collect();
        Direction { number: 0, d, options }.anchor(&mut rows, i, positive.get(i).copied(), &candidates);
    }
    for j in 0..m {
        let candidates: Vec<_> =
            (0..n).filter(|&i| !excluded(options.groups, i, j)).map(|i| (i, s[i * m + j])).collect();
        Direction { number: 1, d, options }.anchor(&mut cols, j, positive.get(j).copied(), &candidates);
    }
    TopK { positive, rows, cols }
}
