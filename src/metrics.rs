//! Retrieval figures from the ranks of all relevant pairs.

use crate::outputs::{DirectionRecall, NONE, PositiveRanks, QueryRanks};

/// What a grade is worth in nDCG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Gain {
    /// `2^grade − 1`; infinite for grades of 1024 and above.
    #[default]
    Exponential,
    /// `grade`
    Linear,
}

impl Gain {
    /// The worth of this grade.
    pub fn of(self, grade: f32) -> f64 {
        match self {
            Self::Exponential => (f64::from(grade) * std::f64::consts::LN_2).exp_m1(),
            Self::Linear => f64::from(grade),
        }
    }
}

/// Options of [`EvaluationReport::from_ranks`].
#[derive(Clone, Debug, PartialEq)]
pub struct MetricOptions {
    /// The values of `K`; default 1, 5, 10.
    pub cutoffs: Vec<usize>,
    /// Default: [`Gain::Exponential`].
    pub gain: Gain,
}

impl Default for MetricOptions {
    fn default() -> Self {
        Self { cutoffs: vec![1, 5, 10], gain: Gain::Exponential }
    }
}

/// Figures of the first `k` candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AtCutoff {
    /// Candidates that are looked at.
    pub k: usize,
    /// Queries with a relevant candidate among them.
    pub hits: usize,
    /// The same in percent of the queries: R@K.
    pub recall: f64,
    /// nDCG@K, from 0 to 1.
    pub ndcg: f64,
}

/// Figures of one direction, over the queries that have a relevant candidate. All but the recalls are from 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirectionMetrics {
    /// One entry per cutoff, in the order of the options.
    pub at: Vec<AtCutoff>,
    /// R@1 + R@5 + R@10, whatever the cutoffs.
    pub recall_sum: f64,
    /// Median rank of the first relevant candidate, counted from 1, rounded down.
    pub median_rank: f64,
    /// Mean rank of the first relevant candidate, counted from 1.
    pub mean_rank: f64,
    /// Mean reciprocal rank of the first relevant candidate.
    pub mrr: f64,
    /// Mean average precision.
    pub map: f64,
    /// Mean average precision at R: only the first `R` places count, `R` being the query's number of relevant candidates.
    pub map_at_r: f64,
    /// Precision among the first `R`.
    pub r_precision: f64,
    /// nDCG of the whole ranking.
    pub ndcg: f64,
    /// Queries that have a relevant candidate.
    pub queries: usize,
    /// Queries without one.
    pub without_relevant: usize,
}

/// Figures of both directions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvaluationReport {
    /// Queries are the rows of `X`.
    pub x_to_y: DirectionMetrics,
    /// Queries are the rows of `Y`.
    pub y_to_x: DirectionMetrics,
    /// The six recalls added.
    pub rsum: f64,
}

/// The relevant candidates of one query.
struct Query {
    /// Ascending.
    ranks: Vec<usize>,
    /// Gain at each rank, in their order.
    gains: Vec<f64>,
}

impl Query {
    fn of(ranks: &QueryRanks, query: usize, gain: Gain) -> Self {
        let pairs = ranks.offsets[query] as usize..ranks.offsets[query + 1] as usize;
        let grade = |p: usize| ranks.grades.get(p).copied().unwrap_or(1.0);
        let mut found: Vec<(usize, f64)> = pairs
            .filter(|&p| grade(p) > 0.0)
            .filter_map(|p| {
                let rank = *ranks.ranks.get(p)?;
                Some((usize::try_from(rank).unwrap_or(ranks.pool), gain.of(grade(p))))
            })
            .collect();
        found.sort_unstable_by_key(|&(rank, _)| rank);
        let (ranks, gains) = found.into_iter().unzip();
        Self { ranks, gains }
    }

    /// Sum of the precisions at the relevant candidates of the first `k`, divided by the number of all of them.
    fn average_precision(&self, k: usize) -> f64 {
        let inside = self.ranks.iter().take_while(|&&rank| rank < k).enumerate();
        inside.map(|(at, &rank)| (at + 1) as f64 / (rank as f64 + 1.0)).sum::<f64>() / self.ranks.len() as f64
    }

    fn precision_at_r(&self) -> f64 {
        let r = self.ranks.len();
        self.ranks.partition_point(|&rank| rank < r) as f64 / r as f64
    }

    /// nDCG of the first `k`, with the gains in the best order in `ideal`.
    fn ndcg(&self, ideal: &[f64], k: usize) -> f64 {
        let discount = |rank: usize| 1.0 / (rank as f64 + 2.0).log2();
        let inside = self.ranks.iter().zip(&self.gains).take_while(|&(&rank, _)| rank < k);
        let got: f64 = inside.map(|(&rank, gain)| gain * discount(rank)).sum();
        let best: f64 = ideal.iter().take(k).enumerate().map(|(rank, gain)| gain * discount(rank)).sum();
        if best > 0.0 { got / best } else { 0.0 }
    }
}

impl QueryRanks {
    /// The rank of each query's first relevant candidate; [`NONE`] for a query without one.
    pub fn first(&self) -> Vec<i32> {
        let relevant = |&p: &usize| self.grades.get(p).is_none_or(|&grade| grade > 0.0);
        let of = |ends: &[u32]| {
            (ends[0] as usize..ends[1] as usize).filter(relevant).filter_map(|p| self.ranks.get(p).copied()).min()
        };
        self.offsets.windows(2).map(|ends| of(ends).unwrap_or(NONE)).collect()
    }
}

impl DirectionMetrics {
    /// The figures of one direction's ranks. Sums are taken query after query.
    pub fn from_ranks(ranks: &QueryRanks, options: &MetricOptions) -> Self {
        let first = ranks.first();
        let recall = DirectionRecall::from_ranks(&first);
        let mut out = Self {
            at: options.cutoffs.iter().map(|&k| AtCutoff { k, ..AtCutoff::default() }).collect(),
            recall_sum: recall.r1 + recall.r5 + recall.r10,
            median_rank: recall.median_rank,
            mean_rank: recall.mean_rank,
            queries: recall.queries,
            without_relevant: recall.without_positive,
            ..Self::default()
        };
        for query in (0..first.len()).filter(|&q| first[q] != NONE) {
            out.add(&Query::of(ranks, query, options.gain));
        }
        let share = 1.0 / (out.queries.max(1)) as f64;
        for at in &mut out.at {
            at.recall = if out.queries == 0 { 0.0 } else { 100.0 * at.hits as f64 / out.queries as f64 };
            at.ndcg *= share;
        }
        for mean in [&mut out.mrr, &mut out.map, &mut out.map_at_r, &mut out.r_precision, &mut out.ndcg] {
            *mean *= share;
        }
        out
    }

    fn add(&mut self, query: &Query) {
        let mut ideal = query.gains.clone();
        ideal.sort_unstable_by(|a, b| b.total_cmp(a));
        for at in &mut self.at {
            at.hits += usize::from(query.ranks[0] < at.k);
            at.ndcg += query.ndcg(&ideal, at.k);
        }
        self.mrr += 1.0 / (query.ranks[0] as f64 + 1.0);
        self.map += query.average_precision(usize::MAX);
        self.map_at_r += query.average_precision(query.ranks.len());
        self.r_precision += query.precision_at_r();
        self.ndcg += query.ndcg(&ideal, usize::MAX);
    }

    /// The mean of every figure over reports of the same options; counts are added.
    fn mean(parts: &[&Self]) -> Self {
        let Some(&first) = parts.first() else { return Self::default() };
        let mean = |of: &dyn Fn(&Self) -> f64| parts.iter().map(|p| of(p)).sum::<f64>() / parts.len() as f64;
        let at = |c: usize| AtCutoff {
            k: first.at[c].k,
            hits: parts.iter().map(|p| p.at[c].hits).sum(),
            recall: mean(&|p| p.at[c].recall),
            ndcg: mean(&|p| p.at[c].ndcg),
        };
        Self {
            at: (0..first.at.len()).map(at).collect(),
            recall_sum: mean(&|p| p.recall_sum),
            median_rank: mean(&|p| p.median_rank),
            mean_rank: mean(&|p| p.mean_rank),
            mrr: mean(&|p| p.mrr),
            map: mean(&|p| p.map),
            map_at_r: mean(&|p| p.map_at_r),
            r_precision: mean(&|p| p.r_precision),
            ndcg: mean(&|p| p.ndcg),
            queries: parts.iter().map(|p| p.queries).sum(),
            without_relevant: parts.iter().map(|p| p.without_relevant).sum(),
        }
    }
}

impl EvaluationReport {
    /// The figures of both directions' ranks.
    pub fn from_ranks(ranks: &PositiveRanks, options: &MetricOptions) -> Self {
        let x_to_y = DirectionMetrics::from_ranks(&ranks.rows, options);
        let y_to_x = DirectionMetrics::from_ranks(&ranks.cols, options);
        let rsum = x_to_y.recall_sum + y_to_x.recall_sum;
        Self { x_to_y, y_to_x, rsum }
    }

    /// The mean of every figure over the folds; hits and numbers of queries are added.
    pub(crate) fn mean(folds: &[Self]) -> Self {
        let of = |direction: fn(&Self) -> &DirectionMetrics| {
            DirectionMetrics::mean(&folds.iter().map(direction).collect::<Vec<_>>())
        };
        let (x_to_y, y_to_x) = (of(|f| &f.x_to_y), of(|f| &f.y_to_x));
        let rsum = x_to_y.recall_sum + y_to_x.recall_sum;
        Self { x_to_y, y_to_x, rsum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(ranks: &[i32], grades: &[f32], cutoffs: &[usize], gain: Gain) -> DirectionMetrics {
        let ranks = QueryRanks {
            offsets: vec![0, ranks.len() as u32],
            candidates: (0..ranks.len() as i32).collect(),
            grades: grades.to_vec(),
            ranks: ranks.to_vec(),
            pool: 10,
        };
        DirectionMetrics::from_ranks(&ranks, &MetricOptions { cutoffs: cutoffs.to_vec(), gain })
    }

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-14, "{got} is not {want}");
    }

    /// Relevant at the places 1, 3 and 6 of ten.
    #[test]
    fn binary_relevance_by_hand() {
        let m = one(&[5, 0, 2], &[], &[1, 2, 3, 6], Gain::Exponential);
        close(m.mrr, 1.0);
        close(m.map, (1.0 + 2.0 / 3.0 + 3.0 / 6.0) / 3.0);
        close(m.map_at_r, (1.0 + 2.0 / 3.0) / 3.0);
        close(m.r_precision, 2.0 / 3.0);
        assert_eq!((m.median_rank, m.mean_rank, m.queries), (1.0, 1.0, 1));
        let (d2, d3) = (1.0 / 3f64.log2(), 0.5);
        close(m.at[0].ndcg, 1.0);
        close(m.at[1].ndcg, 1.0 / (1.0 + d2));
        close(m.at[2].ndcg, (1.0 + d3) / (1.0 + d2 + d3));
        close(m.ndcg, (1.0 + d3 + 1.0 / 7f64.log2()) / (1.0 + d2 + d3));
        assert_eq!(m.at[3].ndcg, m.ndcg);
    }

    /// Lists that do not belong together, as only a caller can make them.
    #[test]
    fn senseless_ranks_do_not_panic() {
        let ranks = QueryRanks {
            offsets: vec![0, 3, 2, 9, 7],
            ranks: vec![i32::MIN, 4, NONE, 4],
            pool: usize::MAX,
            ..QueryRanks::default()
        };
        assert_eq!(DirectionMetrics::from_ranks(&ranks, &MetricOptions::default()).queries, 1);
        let none = DirectionMetrics::from_ranks(&QueryRanks::default(), &MetricOptions::default());
        assert_eq!((none.queries, none.without_relevant, none.mean_rank), (0, 0, 0.0));
    }

    /// Places 2, 1, 4 with the grades 3, 1, 0: the last one is not relevant.
    #[test]
    fn graded_relevance_by_hand() {
        let d2 = 1.0 / 3f64.log2();
        let m = one(&[1, 0, 3], &[3.0, 1.0, 0.0], &[1, 10], Gain::Exponential);
        close(m.at[0].ndcg, 1.0 / 7.0);
        close(m.at[1].ndcg, (1.0 + 7.0 * d2) / (7.0 + d2));
        close(m.map, 1.0);
        let m = one(&[1, 0, 3], &[3.0, 1.0, 0.0], &[1, 10], Gain::Linear);
        close(m.at[0].ndcg, 1.0 / 3.0);
        close(m.ndcg, (1.0 + 3.0 * d2) / (3.0 + d2));
        let nothing = one(&[0], &[0.0], &[1], Gain::Linear);
        assert_eq!((nothing.queries, nothing.without_relevant, nothing.at[0].hits), (0, 1, 0));
    }
}
