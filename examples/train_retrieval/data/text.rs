//! Hashed TF-IDF of split identifiers.

use super::words::for_each_word;
use super::{Block, Features};

/// Columns of hashed text features.
pub const WIDTH: usize = 1024;

/// One bucket per word of the text.
pub fn buckets(text: &str, width: usize) -> Vec<u32> {
    let mut out = Vec::new();
    for_each_word(text, |word| out.push((fnv1a(word.as_bytes()) % width as u64) as u32));
    out
}

/// The hash that decides the bucket; the same for both modalities.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Rows `(1 + ln tf) · (1 + ln((1 + n) / (1 + df)))` of unit length, with `df` counted over the first `train` rows.
pub fn tf_idf(bags: &[Vec<u32>], train: usize, width: usize) -> Features {
    let counts: Vec<Vec<(u32, u32)>> = bags.iter().map(|bag| count(bag)).collect();
    let mut df = vec![0_u32; width];
    for &(bucket, _) in counts[..train].iter().flatten() {
        df[bucket as usize] += 1;
    }
    let idf: Vec<f64> = df.iter().map(|&df| 1.0 + (f64::from(1 + train as u32) / f64::from(1 + df)).ln()).collect();
    let mut starts = vec![0];
    let mut entries = Vec::new();
    for row in &counts {
        let weight = |&(bucket, tf): &(u32, u32)| (1.0 + f64::from(tf).ln()) * idf[bucket as usize];
        let norm = row.iter().map(|e| weight(e).powi(2)).sum::<f64>().sqrt();
        entries.extend(row.iter().map(|e| (e.0, (weight(e) / norm) as f32)));
        starts.push(entries.len());
    }
    Features { rows: bags.len(), cols: width, block: Block::Sparse { starts, entries } }
}

/// Distinct buckets in ascending order, with how often each occurs.
fn count(bag: &[u32]) -> Vec<(u32, u32)> {
    let mut sorted = bag.to_vec();
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
}
