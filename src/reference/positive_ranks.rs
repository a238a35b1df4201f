//! Ranks of all relevant pairs by sorting, and the figures by walking down the sorted lists.

use std::cmp::Ordering;

use super::cosine_matrix::cosine_matrix;
use crate::dtype::Element;
use crate::matrix::MatRef;
use crate::metrics::{AtCutoff, DirectionMetrics, EvaluationReport, Gain, MetricOptions};
use crate::options::{PositiveRanksOptions, TiePolicy};
use crate::outputs::{PositiveRanks, QueryRanks};
use crate::relevance::RelevantPairs;

/// A candidate of one query.
struct Candidate {
    index: usize,
    score: f64,
    grade: Option<f32>,
}

/// Which of two candidates comes first.
fn order(a: &Candidate, b: &Candidate, ties: TiePolicy) -> Ordering {
    // NaN: before every number if not relevant, behind every number if relevant.
    let class = |c: &Candidate| match (c.score.is_nan(), c.grade) {
        (true, None) => 0,
        (false, _) => 1,
        (true, Some(_)) => 2,
    };
    let grade = |c: &Candidate| c.grade.unwrap_or(-1.0);
    let tie = || match ties {
        TiePolicy::LowestIndex => Ordering::Equal,
        TiePolicy::Optimistic => grade(b).total_cmp(&grade(a)),
        TiePolicy::Pessimistic => grade(a).total_cmp(&grade(b)),
    };
    let by_score = || b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
    class(a).cmp(&class(b)).then_with(by_score).then_with(tie).then(a.index.cmp(&b.index))
}

fn direction(
    queries: usize,
    pool: usize,
    score: impl Fn(usize, usize) -> f64,
    grade: impl Fn(usize, usize) -> Option<f32>,
    graded: bool,
    ties: TiePolicy,
) -> QueryRanks {
    let mut out = QueryRanks { offsets: vec![0], pool, ..QueryRanks::default() };
    for q in 0..queries {
        let candidate = |index: usize| Candidate { index, score: score(q, index), grade: grade(q, index) };
        let mut sorted: Vec<Candidate> = (0..pool).map(candidate).collect();
        sorted.sort_by(|a, b| order(a, b, ties));
        let mut found: Vec<(usize, usize, f32)> =
            sorted.iter().enumerate().filter_map(|(rank, c)| c.grade.map(|grade| (c.index, rank, grade))).collect();
        found.sort_by_key(|f| f.0);
        for (index, rank, grade) in found {
            out.candidates.push(index as i32);
            out.ranks.push(rank as i32);
            out.grades.extend(graded.then_some(grade));
        }
        out.offsets.push(out.candidates.len() as u32);
    }
    out
}

/// The ranks in a matrix of scores, row-major, as many rows and columns as `relevant` has.
pub fn positive_ranks_of(scores: &[f64], relevant: &RelevantPairs, ties: TiePolicy) -> PositiveRanks {
    let (n, m) = (relevant.rows(), relevant.cols());
    let mut grades = vec![None; n * m];
    for i in 0..n {
        for p in relevant.offsets()[i]..relevant.offsets()[i + 1] {
            let grade = relevant.grades().get(p as usize).copied().unwrap_or(1.0);
            grades[i * m + relevant.candidates()[p as usize] as usize] = Some(grade);
        }
    }
    let graded = !relevant.grades().is_empty();
    PositiveRanks {
        rows: direction(n, m, |i, j| scores[i * m + j], |i, j| grades[i * m + j], graded, ties),
        cols: direction(m, n, |j, i| scores[i * m + j], |j, i| grades[i * m + j], graded, ties),
    }
}

/// The 0-based rank of every relevant pair among the candidates of its row, and of its column.
pub fn positive_ranks<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    relevant: &RelevantPairs,
    options: &PositiveRanksOptions,
) -> PositiveRanks {
    positive_ranks_of(&cosine_matrix(x, y, options.normalization), relevant, options.ties)
}

/// The figures of [`positive_ranks`], from the list of grades that each query's ranking has.
pub fn metrics(ranks: &PositiveRanks, options: &MetricOptions) -> EvaluationReport {
    let (x_to_y, y_to_x) = (walk_all(&ranks.rows, options), walk_all(&ranks.cols, options));
    let rsum = x_to_y.recall_sum + y_to_x.recall_sum;
    EvaluationReport { x_to_y, y_to_x, rsum }
}

fn walk_all(ranks: &QueryRanks, options: &MetricOptions) -> DirectionMetrics {
    let mut out = DirectionMetrics::default();
    out.at.extend(options.cutoffs.iter().map(|&k| AtCutoff { k, ..AtCutoff::default() }));
    let mut firsts = Vec::new();
    for q in 0..ranks.offsets.len() - 1 {
        let mut list = vec![0f32; ranks.pool];
        for p in ranks.offsets[q] as usize..ranks.offsets[q + 1] as usize {
            list[ranks.ranks[p] as usize] = ranks.grades.get(p).copied().unwrap_or(1.0);
        }
        match list.iter().position(|&grade| grade > 0.0) {
            None => out.without_relevant += 1,
            Some(first) => {
                firsts.push(first);
                walk(&list, options, &mut out);
            }
        }
    }
    out.queries = firsts.len();
    if firsts.is_empty() {
        return out;
    }
    let queries = firsts.len() as f64;
    let within = |k: usize| firsts.iter().filter(|&&first| first < k).count();
    for at in &mut out.at {
        (at.hits, at.recall) = (within(at.k), 100.0 * within(at.k) as f64 / queries);
        at.ndcg /= queries;
    }
    out.recall_sum = [1, 5, 10].map(|k| 100.0 * within(k) as f64 / queries).iter().sum();
    out.mrr = firsts.iter().map(|&first| 1.0 / (first as f64 + 1.0)).sum::<f64>() / queries;
    out.mean_rank = firsts.iter().map(|&first| first as f64 + 1.0).sum::<f64>() / queries;
    firsts.sort_unstable();
    out.median_rank = ((firsts[(firsts.len() - 1) / 2] + firsts[firsts.len() / 2]) / 2 + 1) as f64;
    for sum in [&mut out.map, &mut out.map_at_r, &mut out.r_precision, &mut out.ndcg] {
        *sum /= queries;
    }
    out
}

/// Adds one query's figures to the sums, place after place of its ranking.
fn walk(list: &[f32], options: &MetricOptions, out: &mut DirectionMetrics) {
    let relevant = list.iter().filter(|&&grade| grade > 0.0).count();
    let mut ideal = list.to_vec();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let worth = |grade: f32| match options.gain {
        Gain::Exponential => 2f64.powf(f64::from(grade)) - 1.0,
        Gain::Linear => f64::from(grade),
    };
    let (mut seen, mut dcg, mut best) = (0, 0.0, 0.0);
    for (place, (&grade, &ideal)) in (1..).zip(list.iter().zip(&ideal)) {
        let discount = (place as f64 + 1.0).ln() / 2f64.ln();
        dcg += worth(grade) / discount;
        best += worth(ideal) / discount;
        if grade > 0.0 {
            seen += 1;
            let precision = f64::from(seen) / place as f64 / relevant as f64;
            out.map += precision;
            if place <= relevant {
                out.map_at_r += precision;
            }
        }
        if place == relevant {
            out.r_precision += f64::from(seen) / relevant as f64;
        }
        for at in out.at.iter_mut().filter(|at| at.k == place || (at.k > place && place == list.len())) {
            at.ndcg += dcg / best;
        }
    }
    out.ndcg += dcg / best;
}
