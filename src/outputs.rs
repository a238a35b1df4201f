//! What the operations return, the same for the CPU and for CUDA.

use bytemuck::{Pod, Zeroable};

/// Index that stands for "no such candidate".
pub const NONE: i32 = -1;

/// Hardest negatives of one direction, one entry per anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hardest<A> {
    /// Similarity to the hardest negative: the largest, NaN if any candidate is NaN, −∞ without a candidate.
    pub value: Vec<A>,
    /// Its index; the lowest of those that tie; [`NONE`] without a candidate.
    pub index: Vec<i32>,
    /// The largest similarity among the other candidates, −∞ without one. Empty if it was not asked for.
    pub second: Vec<A>,
}

/// Result of `mine`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mined<A> {
    /// `S[i, i]` for every `i < min(n, m)`.
    pub positive: Vec<A>,
    /// Anchors are the rows of `X`, candidates the rows of `Y`.
    pub rows: Hardest<A>,
    /// Anchors are the rows of `Y`, candidates the rows of `X`.
    pub cols: Hardest<A>,
}

/// A sparse weight matrix as triples; duplicates add up.
#[derive(Clone, Copy, Debug)]
pub struct WeightTriples<'a, A> {
    /// Row of `X`.
    pub rows: &'a [i32],
    /// Row of `Y`.
    pub cols: &'a [i32],
    /// Weight.
    pub values: &'a [A],
}

/// Counters of `weighted_grad`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GradReport {
    /// Triples that were left out because an index is negative or too large.
    pub bad_index: u32,
    /// Gradient elements that became infinite by rounding to the output type.
    pub overflow: u32,
}

/// What one GOAL step reports. All sums are over the batch, times the reduction's factor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct StepReport {
    /// The loss, or the logged quantity `log_it + log_ti`; `Objective::loss_kind` says which.
    pub loss: f64,
    /// Sum of `N − P` over the rows that have a negative.
    pub log_it: f64,
    /// Sum of `N − P` over the columns that have a negative.
    pub log_ti: f64,
    /// Mean similarity of the pairs; 0 for an empty batch.
    pub mean_positive: f64,
    /// Mean similarity to the hardest negative over the rows that have one; 0 if none has.
    pub mean_negative_it: f64,
    /// The same over the columns.
    pub mean_negative_ti: f64,
    /// Pairs in the batch.
    pub pairs: u32,
    /// Rows without a candidate.
    pub empty_it: u32,
    /// Columns without a candidate.
    pub empty_ti: u32,
    /// Rows with a triplet weight other than 0.
    pub active_it: u32,
    /// Columns with a triplet weight other than 0.
    pub active_ti: u32,
    /// Rows of `X` that are all zero.
    pub zero_x: u32,
    /// Rows of `Y` that are all zero.
    pub zero_y: u32,
    /// Rows of `X` with a NaN or an infinity.
    pub nan_x: u32,
    /// Rows of `Y` with a NaN or an infinity.
    pub nan_y: u32,
    /// Gradient elements that became infinite by rounding to the output type.
    pub overflow: u32,
}

/// Everything that led to the weights of one direction's triplets, one entry per anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnchorDetail<A> {
    /// Index of the hardest negative, or [`NONE`].
    pub neg_index: Vec<i32>,
    /// Its similarity, −∞ without one.
    pub neg_value: Vec<A>,
    /// The second-best value, −∞ without one.
    pub second_value: Vec<A>,
    /// Triplet weight `T`, 0 without a negative.
    pub triplet: Vec<A>,
    /// Pair weight `w⁺`, 0 without a negative.
    pub w_pos: Vec<A>,
    /// Pair weight `w⁻`, 0 without a negative.
    pub w_neg: Vec<A>,
    /// Relative similarity `R⁺`; 0 for the pair weights without one.
    pub rs_pos: Vec<A>,
    /// Relative similarity `R⁻`; 0 for the pair weights without one.
    pub rs_neg: Vec<A>,
    /// Members of the set behind `R⁺`, as they are counted in its mean.
    pub rs_pos_count: Vec<u32>,
    /// Members of the set behind `R⁻`, as they are counted in its mean.
    pub rs_neg_count: Vec<u32>,
}

/// The whole anatomy of one GOAL step, before reduction and upstream factor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepDetail<A> {
    /// Similarity of each pair.
    pub positive: Vec<A>,
    /// Anchors are the rows of `X` ("image to text").
    pub it: AnchorDetail<A>,
    /// Anchors are the rows of `Y` ("text to image").
    pub ti: AnchorDetail<A>,
}

/// 0-based rank of the best positive of each query; [`NONE`] for a query without a positive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranks {
    /// Queries are the rows of `X`.
    pub rows: Vec<i32>,
    /// Queries are the rows of `Y`.
    pub cols: Vec<i32>,
}

/// Retrieval figures of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DirectionRecall {
    /// Percent of the queries whose best positive ranks first.
    pub r1: f64,
    /// … among the first 5.
    pub r5: f64,
    /// … among the first 10.
    pub r10: f64,
    /// Median rank, counted from 1, rounded down.
    pub median_rank: f64,
    /// Mean rank, counted from 1.
    pub mean_rank: f64,
    /// Queries that have a positive; the figures are over these.
    pub queries: usize,
    /// Queries without one.
    pub without_positive: usize,
}

/// Retrieval figures of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RetrievalReport {
    /// Queries are the rows of `X`.
    pub x_to_y: DirectionRecall,
    /// Queries are the rows of `Y`.
    pub y_to_x: DirectionRecall,
    /// The six recalls added.
    pub rsum: f64,
}

/// 0-based ranks of all relevant pairs of one direction, in compressed rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryRanks {
    /// The pairs of query `q` are `offsets[q]..offsets[q + 1]` of the other lists.
    pub offsets: Vec<u32>,
    /// Index of each pair's candidate, ascending within a query.
    pub candidates: Vec<i32>,
    /// How relevant each is; empty if all grades are 1.
    pub grades: Vec<f32>,
    /// Rank of each among the query's candidates; no two pairs of a query share one.
    pub ranks: Vec<i32>,
    /// Candidates of every query.
    pub pool: usize,
}

/// Result of `positive_ranks`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PositiveRanks {
    /// Queries are the rows of `X`.
    pub rows: QueryRanks,
    /// Queries are the rows of `Y`.
    pub cols: QueryRanks,
}

impl DirectionRecall {
    /// The figures of a list of 0-based ranks, in which [`NONE`] marks a query without a positive.
    pub fn from_ranks(ranks: &[i32]) -> Self {
        let mut found: Vec<i32> = ranks.iter().copied().filter(|&r| r != NONE).collect();
        found.sort_unstable();
        let queries = found.len();
        let without_positive = ranks.len() - queries;
        if queries == 0 {
            return Self { without_positive, ..Self::default() };
        }
        let recall = |k: i32| 100.0 * found.partition_point(|&r| r < k) as f64 / queries as f64;
        let median = f64::midpoint(f64::from(found[(queries - 1) / 2]), f64::from(found[queries / 2]));
        let mean = found.iter().map(|&r| f64::from(r)).sum::<f64>() / queries as f64;
        Self {
            r1: recall(1),
            r5: recall(5),
            r10: recall(10),
            median_rank: median.floor() + 1.0,
            mean_rank: mean + 1.0,
            queries,
            without_positive,
        }
    }
}

impl RetrievalReport {
    /// The figures of both directions' ranks.
    pub fn from_ranks(ranks: &Ranks) -> Self {
        let x_to_y = DirectionRecall::from_ranks(&ranks.rows);
        let y_to_x = DirectionRecall::from_ranks(&ranks.cols);
        let rsum = x_to_y.r1 + x_to_y.r5 + x_to_y.r10 + y_to_x.r1 + y_to_x.r5 + y_to_x.r10;
        Self { x_to_y, y_to_x, rsum }
    }
}
