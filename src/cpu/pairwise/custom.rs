//! Objectives of the caller's, pair by pair and in `f64`.

use super::classes::{Classes, Counts, IGNORED, NEGATIVE, POSITIVE};
use super::member::{Member, Survey, Totals};
use super::positives::{Positives, Sum};
use super::statistics::{Scratch, Share, Statistics};
use super::tiles::Tile;
use crate::cpu::Cpu;
use crate::custom::{AnchorView, PairObjective, PairView};
use crate::dtype::Accum;
use crate::pairwise::{PairwiseOptions, PairwiseReport};

/// An objective of the caller's. It takes part in two sweeps, once to be told its anchors and once to weigh.
pub(super) struct Custom<'a> {
    pub(super) objective: &'a dyn PairObjective,
    pub(super) options: &'a PairwiseOptions<'a>,
    pub(super) classes: Classes<'a>,
    pub(super) counts: Counts,
    anchors: [Vec<AnchorView>; 2],
    /// Index of the hardest negative of every row and column.
    hardest: [Vec<Option<usize>>; 2],
}

/// The hardest negatives and the own pairs, for [`Custom::meet`].
pub(super) struct Hardest<'a>(pub(super) Classes<'a>);

/// Sums over the positives of the columns, as negatives of this are; for [`Custom::meet`].
pub(super) struct ColumnPositives<'a>(pub(super) &'a Custom<'a>);

impl<'a> Custom<'a> {
    pub(super) fn new(
        objective: &'a dyn PairObjective,
        options: &'a PairwiseOptions<'a>,
        classes: Classes<'a>,
        counts: Counts,
    ) -> Self {
        Self { objective, options, classes, counts, anchors: Default::default(), hardest: Default::default() }
    }

    /// Learns the anchors: `hardest` of [`Hardest`], `sums` of itself, `columns` of [`ColumnPositives`], and the similarity
    /// of every own pair.
    pub(super) fn meet(&mut self, hardest: &Statistics, sums: &Statistics, columns: &Statistics, own: [Vec<f64>; 2]) {
        let [own_rows, own_cols] = own;
        let at = |sums: &[Sum]| -> Vec<Option<usize>> {
            sums.iter().map(|s| (s.max > f64::NEG_INFINITY).then_some(s.at as usize)).collect()
        };
        self.hardest = [at(&hardest.rows), at(&hardest.cols)];
        let row = |i: usize| AnchorView {
            pair: own_rows[i],
            hardest: hardest.rows[i].max,
            lse_negatives: sums.rows[i].log(),
            lse_positives: sums.positives[i].soft.log(),
            positives: self.counts.rows[i].0,
            negatives: self.counts.rows[i].1,
            near_negatives: 0.0,
            near_positives: 0.0,
        };
        let col = |j: usize| AnchorView {
            pair: own_cols[j],
            hardest: hardest.cols[j].max,
            lse_negatives: sums.cols[j].log(),
            lse_positives: columns.cols[j].log(),
            positives: self.counts.cols[j].0,
            negatives: self.counts.cols[j].1,
            near_negatives: 0.0,
            near_positives: 0.0,
        };
        self.anchors = [(0..self.counts.rows.len()).map(row).collect(), (0..self.counts.cols.len()).map(col).collect()];
    }

    /// Learns the means over the near pairs, `negatives` of [`NearNegatives`] and `positives` of [`NearPositives`].
    pub(super) fn meet_near(&mut self, negatives: &Statistics, positives: &Statistics) {
        let mean = |sum: &Sum| if sum.extra == 0.0 { 0.0 } else { sum.sum / sum.extra };
        let [rows, cols] = &mut self.anchors;
        for ((anchor, negatives), positives) in rows.iter_mut().zip(&negatives.rows).zip(&positives.rows) {
            (anchor.near_negatives, anchor.near_positives) = (mean(negatives), mean(positives));
        }
        for ((anchor, negatives), positives) in cols.iter_mut().zip(&negatives.cols).zip(&positives.cols) {
            (anchor.near_negatives, anchor.near_positives) = (mean(negatives), mean(positives));
        }
    }
}

/// The near negatives of anchors that are known; see [`PairObjective::slack`].
pub(super) struct NearNegatives<'a> {
    custom: &'a Custom<'a>,
    threshold: f64,
}

impl<'a> NearNegatives<'a> {
    pub(super) fn new(custom: &'a Custom<'a>, slack: f64) -> Self {
        // NaN is passed over.
        let lowest = custom.anchors[0].iter().map(|anchor| anchor.pair).fold(f64::INFINITY, f64::min);
        Self { custom, threshold: lowest - slack }
    }
}

/// The near positives of anchors that are known; see [`PairObjective::slack`].
pub(super) struct NearPositives<'a> {
    pub(super) custom: &'a Custom<'a>,
    pub(super) slack: f64,
}

/// A value of a near pair as a plain sum, with its part in the divisor.
fn counted(value: f64) -> Sum {
    Sum { max: 0.0, sum: value, extra: f64::from(value != 0.0), at: 0 }
}

/// One logit as a sum.
fn single(logit: f64) -> Sum {
    Sum { max: logit, sum: if logit.is_nan() { f64::NAN } else { 1.0 }, ..Sum::default() }
}

/// Calls `f(row, column, class, similarity)` for every pair of a tile that is not ignored.
fn each_pair<A: Accum>(classes: &Classes<'_>, tile: &Tile<'_, A>, mut f: impl FnMut(usize, usize, u32, f64)) {
    let mut class = vec![IGNORED; tile.cols.len()];
    for ((r, row), i) in tile.data.chunks_exact(tile.ld).enumerate().zip(tile.rows.clone()) {
        classes.of_row(i, &tile.cols, &mut class);
        for (c, &class) in class.iter().enumerate().filter(|(_, class)| **class != IGNORED) {
            f(r, c, class, row[c].to_f64());
        }
    }
}

impl<A: Accum> Survey<A> for Hardest<'_> {
    fn both_sides(&self) -> bool {
        true
    }
    fn visit(&self, _: &Cpu, _: &mut Scratch<A>, tile: &Tile<'_, A>, share: &mut Share<'_>) {
        let (first_row, first_col) = (tile.rows.start, tile.cols.start);
        each_pair(&self.0, tile, |r, c, class, s| {
            if class == NEGATIVE {
                // A sum that is not 0, for otherwise nothing would be added.
                let one = |at: usize| Sum { max: s, sum: 1.0, at: at as u32, ..Sum::default() };
                share.rows[r].0.add(one(first_col + c));
                share.cols[c].add(one(first_row + r));
            }
        });
    }
}

impl<A: Accum> Survey<A> for ColumnPositives<'_> {
    fn both_sides(&self) -> bool {
        true
    }
    fn visit(&self, _: &Cpu, _: &mut Scratch<A>, tile: &Tile<'_, A>, share: &mut Share<'_>) {
        each_pair(&self.0.classes, tile, |_, c, class, s| {
            if class == POSITIVE {
                share.cols[c].add(single(self.0.objective.logit(s)));
            }
        });
    }
}

impl<A: Accum> Survey<A> for NearNegatives<'_> {
    fn both_sides(&self) -> bool {
        true
    }
    fn visit(&self, _: &Cpu, _: &mut Scratch<A>, tile: &Tile<'_, A>, share: &mut Share<'_>) {
        let Custom { objective, anchors: [rows, cols], hardest: [row_hardest, col_hardest], .. } = self.custom;
        each_pair(&self.custom.classes, tile, |r, c, class, s| {
            // NaN is not near.
            let near = s >= self.threshold;
            if class != NEGATIVE || !near {
                return;
            }
            let (i, j) = (tile.rows.start + r, tile.cols.start + c);
            if row_hardest[i] != Some(j) {
                share.rows[r].0.add(counted(objective.near_negative(s, &rows[i])));
            }
            if col_hardest[j] != Some(i) {
                share.cols[c].add(counted(objective.near_negative(s, &cols[j])));
            }
        });
    }
}

impl<A: Accum> Survey<A> for NearPositives<'_> {
    fn both_sides(&self) -> bool {
        true
    }
    fn visit(&self, _: &Cpu, _: &mut Scratch<A>, tile: &Tile<'_, A>, share: &mut Share<'_>) {
        let Custom { objective, anchors: [rows, cols], .. } = self.custom;
        each_pair(&self.custom.classes, tile, |r, c, class, _| {
            if class != NEGATIVE {
                return;
            }
            // An anchor without an own pair has NaN, which is not near.
            let (row, col) = (&rows[tile.rows.start + r], &cols[tile.cols.start + c]);
            if col.pair <= row.hardest + self.slack {
                share.rows[r].0.add(counted(objective.near_positive(col.pair, row)));
            }
            if row.pair <= col.hardest + self.slack {
                share.cols[c].add(counted(objective.near_positive(row.pair, col)));
            }
        });
    }
}

impl<A: Accum> Survey<A> for Custom<'_> {
    fn both_sides(&self) -> bool {
        true
    }

    fn visit(&self, _: &Cpu, _: &mut Scratch<A>, tile: &Tile<'_, A>, share: &mut Share<'_>) {
        each_pair(&self.classes, tile, |r, c, class, s| {
            let logit = single(self.objective.logit(s));
            let (negatives, positives) = &mut share.rows[r];
            if class == POSITIVE {
                positives.merge(&Positives { soft: logit, similarity: s, ..Positives::default() });
            } else {
                negatives.add(logit);
                share.cols[c].add(logit);
            }
        });
    }
}

impl<A: Accum> Member<A> for Custom<'_> {
    fn alone(&self) -> bool {
        false
    }

    /// Its anchors are known by [`Custom::meet`].
    fn settle(&mut self, _: &Statistics) {}

    fn weigh(&self, _: &Cpu, tile: &mut Tile<'_, A>, class: &mut [u32], _: &mut [A]) -> Totals {
        let mut totals = Totals::default();
        let ([rows, cols], [row_hardest, col_hardest]) = (&self.anchors, &self.hardest);
        for (row, i) in tile.data.chunks_exact_mut(tile.ld).zip(tile.rows.clone()) {
            self.classes.of_row(i, &tile.cols, class);
            let row_weight = self.options.row_weights.map_or(1.0, |w| f64::from(w[i]));
            for (c, j) in tile.cols.clone().enumerate() {
                if class[c] == IGNORED {
                    row[c] = A::ZERO;
                    continue;
                }
                let s = row[c].to_f64();
                let pair = PairView {
                    s,
                    positive: class[c] == POSITIVE,
                    row: &rows[i],
                    col: &cols[j],
                    hardest_of_row: row_hardest[i] == Some(j),
                    hardest_of_col: col_hardest[j] == Some(i),
                    rows: rows.len(),
                    cols: cols.len(),
                };
                // Whatever the caller makes of it, NaN is not dropped.
                let weight = if s.is_nan() { s } else { self.objective.weight(&pair) };
                let w = self.options.upstream * row_weight * weight;
                totals.weighted_similarity += w * s;
                totals.weight += w;
                row[c] = A::from_f64(w);
            }
            row[tile.cols.len()..].fill(A::ZERO);
        }
        tile.data[tile.rows.len() * tile.ld..].fill(A::ZERO);
        totals
    }

    fn report(&self, found: &Statistics, totals: Totals) -> PairwiseReport {
        let counts = &self.counts;
        let sum = |of: fn(&(u32, u32)) -> u32| counts.rows.iter().map(|c| u64::from(of(c))).sum::<u64>();
        let positives = sum(|c| c.0);
        let similarity: f64 = found.positives.iter().map(|p| p.similarity).sum();
        PairwiseReport {
            loss: totals.weighted_similarity,
            mean_positive: if positives == 0 { 0.0 } else { similarity / positives as f64 },
            positives,
            negatives: sum(|c| c.1),
            anchors_rows: counts.rows.iter().filter(|c| c.0 > 0).count() as u32,
            anchors_cols: counts.cols.iter().filter(|c| c.0 > 0).count() as u32,
            ..PairwiseReport::default()
        }
    }
}
