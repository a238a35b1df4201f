//! A GOAL objective as a part of a mixture: its few weights, put into the tiles that they belong to.

use super::member::{Member, Survey, Totals};
use super::statistics::{Scratch, Share, Statistics};
use super::tiles::Tile;
use crate::cpu::Cpu;
use crate::cpu::gather::Terms;
use crate::dtype::Accum;
use crate::outputs::StepReport;
use crate::pairwise::PairwiseReport;

/// A [`Member`] whose weights are known before any sweep, most of them 0.
pub(super) struct Sparse<A> {
    /// By rows, upstream factor included.
    pub(super) weights: Terms<A>,
    pub(super) report: StepReport,
}

impl<A: Accum> Survey<A> for Sparse<A> {
    fn both_sides(&self) -> bool {
        false
    }

    fn visit(&self, _: &Cpu, _: &mut Scratch<A>, _: &Tile<'_, A>, _: &mut Share<'_>) {}
}

impl<A: Accum> Member<A> for Sparse<A> {
    fn alone(&self) -> bool {
        true
    }

    fn settle(&mut self, _: &Statistics) {}

    fn weigh(&self, _: &Cpu, tile: &mut Tile<'_, A>, _: &mut [u32], _: &mut [A]) -> Totals {
        tile.data.fill(A::ZERO);
        for (row, i) in tile.data.chunks_exact_mut(tile.ld).zip(tile.rows.clone()) {
            for &(j, weight) in self.weights.of(i) {
                if tile.cols.contains(&(j as usize)) {
                    row[j as usize - tile.cols.start] += weight;
                }
            }
        }
        Totals::default()
    }

    fn report(&self, _: &Statistics, _: Totals) -> PairwiseReport {
        let StepReport { loss, mean_positive, pairs, empty_it, .. } = self.report;
        PairwiseReport {
            loss,
            mean_positive,
            positives: u64::from(pairs),
            negatives: u64::from(pairs - empty_it),
            anchors_rows: pairs,
            anchors_cols: pairs,
            ..PairwiseReport::default()
        }
    }
}
