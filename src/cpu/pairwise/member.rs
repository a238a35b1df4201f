//! One objective of a step, as the sweeps see it: what it adds up of a tile, and how it weighs one.

use std::ops::Range;

use super::classes::{Classes, Counts, NEGATIVE, POSITIVE};
use super::coefficients::{Anchor, Anchors, anchors};
use super::form::{Coefficient, Form, NEAR};
use super::positives::{Positives, weight};
use super::statistics::{Question, Scratch, Share, Statistics, padded, total};
use super::tiles::Tile;
use crate::cpu::Cpu;
use crate::cpu::tile::{Kernel, Simd};
use crate::dtype::Accum;
use crate::pairwise::{PairwiseObjective, PairwiseOptions, PairwiseReport};

/// What the sweep adds up besides the gradients, upstream factor included.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// `Σ W_ij S_ij`
    pub(super) weighted_similarity: f64,
    /// `Σ W_ij`
    pub(super) weight: f64,
}

/// The coefficient of an anchor's negatives. One that has none of its own weighs them with exactly 0, whatever the logit.
fn coefficient<A: Accum>(anchor: &Anchor, upstream: f64, p: A) -> Coefficient<A> {
    let m = if anchor.a == 0.0 { f64::INFINITY } else { anchor.m };
    Coefficient { a: A::from_f64(anchor.a * upstream), m: A::from_f64(m), p }
}

/// The column anchors' coefficients, part by part.
struct ColumnCoefficients<A> {
    a: Vec<A>,
    m: Vec<A>,
    p: Vec<A>,
}

impl<A: Accum> ColumnCoefficients<A> {
    fn new(anchors: &[Anchor], upstream: f64, p: &[A]) -> Self {
        let each: Vec<_> = anchors.iter().zip(p).map(|(anchor, &p)| coefficient(anchor, upstream, p)).collect();
        let part = |of: fn(&Coefficient<A>) -> A| each.iter().map(of).collect();
        Self { a: part(|c| c.a), m: part(|c| c.m), p: part(|c| c.p) }
    }

    /// Replaces the factors by those on `e^(m_row − origin) e^(term − m_row)`, where `m_row` is any row's, if no row and no
    /// column are further apart than [`NEAR`]; returns the origin then. `rows` are the rows of the tile.
    fn share(&mut self, log_q: &[A], rows: &[Anchor]) -> Option<f64> {
        let of_col = |c: usize| self.m[c].to_f64() - log_q[c].to_f64();
        let cols = (0..self.a.len()).filter(|&c| self.a[c] != A::ZERO).map(of_col);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for m in rows.iter().map(|row| row.m).chain(cols) {
            if !m.is_finite() {
                return None;
            }
            (low, high) = (low.min(m), high.max(m));
        }
        // A row without weights of its own has no logarithm to share.
        if high - low > NEAR || rows.iter().any(|row| row.a == 0.0) {
            return None;
        }
        let factor = |(c, a): (usize, &A)| {
            if *a == A::ZERO { A::ZERO } else { A::from_f64(a.to_f64() * (low - of_col(c)).exp()) }
        };
        self.a = self.a.iter().enumerate().map(factor).collect();
        Some(low)
    }

    /// Of the columns `cols`, padded to `len`; empty if columns are no anchors.
    fn of(&self, cols: &Range<usize>, len: usize) -> Self {
        if self.a.is_empty() {
            return Self { a: Vec::new(), m: Vec::new(), p: Vec::new() };
        }
        let part = |of: &[A]| padded(&of[cols.clone()], len);
        Self { a: part(&self.a), m: part(&self.m), p: part(&self.p) }
    }
}

/// What the anchors' negatives are compared with, per row and per column.
pub(super) struct Parameters<A> {
    pub(super) rows: Vec<A>,
    /// Empty if columns are no anchors.
    pub(super) cols: Vec<A>,
    /// What the miner compares the rows' positives with; empty without one.
    pub(super) highest: Vec<f64>,
}

/// What a sweep adds up of the tiles.
pub(super) trait Survey<A>: Sync {
    /// Whether columns are anchors.
    fn both_sides(&self) -> bool;
    /// Adds a tile to its share of the statistics.
    fn visit(&self, cpu: &Cpu, scratch: &mut Scratch<A>, tile: &Tile<'_, A>, share: &mut Share<'_>);
}

/// An objective of a step.
pub(super) trait Member<A>: Survey<A> {
    /// Whether its weights depend on no statistics.
    fn alone(&self) -> bool;
    /// Computes the anchors' coefficients and losses.
    fn settle(&mut self, found: &Statistics);
    /// Replaces the similarities of a tile by weights, upstream factor included.
    fn weigh(&self, cpu: &Cpu, tile: &mut Tile<'_, A>, class: &mut [u32], products: &mut [A]) -> Totals;
    /// What there is to report of it alone, before its share in a mixture.
    fn report(&self, found: &Statistics, totals: Totals) -> PairwiseReport;
}

/// A [`Member`] whose negatives have the form `F`.
pub(super) struct Formed<'a, A, F> {
    pub(super) objective: PairwiseObjective,
    pub(super) options: &'a PairwiseOptions<'a>,
    pub(super) classes: Classes<'a>,
    pub(super) counts: Counts,
    pub(super) parameters: Parameters<A>,
    pub(super) log_q: &'a [A],
    pub(super) form: F,
    /// Upstream factor times share.
    factor: f64,
    anchors: Anchors,
    columns: ColumnCoefficients<A>,
}

impl<'a, A: Accum, F: Form<A>> Formed<'a, A, F> {
    /// `share`: the objective's weight in the mixture.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        objective: PairwiseObjective,
        share: f64,
        options: &'a PairwiseOptions<'a>,
        classes: Classes<'a>,
        counts: Counts,
        parameters: Parameters<A>,
        log_q: &'a [A],
        form: F,
    ) -> Self {
        let anchors = Anchors { rows: Vec::new(), cols: Vec::new() };
        let columns = ColumnCoefficients { a: Vec::new(), m: Vec::new(), p: Vec::new() };
        let factor = options.upstream * share;
        Self { objective, options, classes, counts, parameters, log_q, form, factor, anchors, columns }
    }

    /// Statistics of the columns' own pairs, for objectives in which columns are anchors.
    fn own_pairs(&self, found: &Statistics) -> Vec<Positives> {
        let of = |j: usize| {
            let mut own = Positives::default();
            if let Some(row) = found.positives.get(j).filter(|_| self.classes.own_pair(j)) {
                // The only positive of the row with the same number.
                own.add(&self.objective, row.similarity, 0.0, f64::INFINITY);
            }
            own
        };
        (0..self.parameters.cols.len()).map(of).collect()
    }
}

impl<A: Accum, F: Form<A>> Survey<A> for Formed<'_, A, F> {
    fn both_sides(&self) -> bool {
        !self.parameters.cols.is_empty()
    }

    fn visit(&self, cpu: &Cpu, scratch: &mut Scratch<A>, tile: &Tile<'_, A>, share: &mut Share<'_>) {
        let question = Question {
            objective: &self.objective,
            classes: self.classes,
            log_q: self.log_q,
            rows_p: &self.parameters.rows,
            cols_p: &self.parameters.cols,
            highest: &self.parameters.highest,
        };
        scratch.visit(cpu, tile, share, self.form, &question);
    }
}

impl<A: Accum, F: Form<A>> Member<A> for Formed<'_, A, F> {
    fn alone(&self) -> bool {
        F::ALONE
    }

    fn settle(&mut self, found: &Statistics) {
        let own = self.own_pairs(found);
        let highest = &self.parameters.highest;
        self.anchors = anchors(&self.objective, self.options, &self.classes, &self.counts, found, &own, highest);
        self.columns = ColumnCoefficients::new(&self.anchors.cols, self.factor, &self.parameters.cols);
    }

    /// Replaces the similarities of a tile by weights.
    fn weigh(&self, cpu: &Cpu, tile: &mut Tile<'_, A>, class: &mut [u32], products: &mut [A]) -> Totals {
        let (anchors, objective, ld) = (&self.anchors, &self.objective, tile.ld);
        let mut columns = self.columns.of(&tile.cols, ld);
        let log_q = padded(&self.log_q[tile.cols.clone()], ld);
        let of_tile = &anchors.rows[tile.rows.clone()];
        let origin = if F::SHARED { columns.share(&log_q, of_tile) } else { None };
        class[tile.cols.len()..ld].fill(0);
        let mut totals = Totals::default();
        let mut positives: Vec<(usize, f64)> = Vec::new();
        for (row, i) in tile.data.chunks_exact_mut(ld).zip(tile.rows.clone()) {
            positives.clear();
            if self.classes.of_row(i, &tile.cols, class) {
                for c in (0..tile.cols.len()).filter(|&c| class[c] == POSITIVE) {
                    let (s, j) = (row[c].to_f64(), tile.cols.start + c);
                    let mut w = weight(objective, s, log_q[c].to_f64(), &anchors.rows[i].positive);
                    if let Some(column) = anchors.cols.get(j) {
                        w += weight(objective, s, 0.0, &column.positive);
                    }
                    let w = w * self.factor;
                    totals.weighted_similarity += w * s;
                    totals.weight += w;
                    positives.push((c, w));
                }
            }
            let [similarity, sum] = cpu.isa().run(Weigh {
                s: row,
                class: &class[..ld],
                log_q: &log_q,
                row: coefficient(&anchors.rows[i], self.factor, self.parameters.rows[i]),
                columns: &columns,
                shared: origin.map(|origin| A::from_f64((anchors.rows[i].m - origin).exp())),
                form: self.form,
                products: &mut products[..ld],
            });
            totals.weighted_similarity += similarity;
            totals.weight += sum;
            for &(c, w) in &positives {
                row[c] = A::from_f64(w);
            }
        }
        tile.data[tile.rows.len() * ld..].fill(A::ZERO);
        totals
    }

    fn report(&self, found: &Statistics, totals: Totals) -> PairwiseReport {
        let counts = &self.counts;
        let sum = |of: fn(&(u32, u32)) -> u32| counts.rows.iter().map(|c| u64::from(of(c))).sum::<u64>();
        let (positives, negatives) = (sum(|c| c.0), sum(|c| c.1));
        let similarity: f64 = found.positives.iter().map(|p| p.similarity).sum();
        let per_scale = |value: f64| self.objective.scale().map_or(0.0, |scale| value / scale);
        let bias = matches!(self.objective, PairwiseObjective::SigLip { .. });
        PairwiseReport {
            loss: self.anchors.rows.iter().chain(&self.anchors.cols).map(|a| a.loss).sum(),
            d_scale: per_scale(totals.weighted_similarity),
            d_bias: if bias { per_scale(totals.weight) } else { 0.0 },
            mean_positive: if positives == 0 { 0.0 } else { similarity / positives as f64 },
            positives,
            negatives,
            anchors_rows: counts.rows.iter().filter(|c| c.0 > 0).count() as u32,
            anchors_cols: counts.cols.iter().filter(|c| c.0 > 0).count() as u32,
            ..PairwiseReport::default()
        }
    }
}

/// Similarities of one row to weights of its negatives, 0 for all else; returns `[Σ w s, Σ w]`.
struct Weigh<'a, A, F> {
    s: &'a mut [A],
    class: &'a [u32],
    log_q: &'a [A],
    row: Coefficient<A>,
    /// Empty if columns are no anchors.
    columns: &'a ColumnCoefficients<A>,
    /// The row's factor on those of the columns, if they share its exponential.
    shared: Option<A>,
    form: F,
    products: &'a mut [A],
}

impl<A: Accum, F: Form<A>> Kernel<A> for Weigh<'_, A, F> {
    type Out = [f64; 2];

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> [f64; 2] {
        let Self { s, class, log_q, row, columns, shared, form, products } = self;
        let width = s.len();
        let (class, log_q, products) = (&class[..width], &log_q[..width], &mut products[..width]);
        if columns.a.is_empty() {
            for c in 0..width {
                let w = form.weight(s[c], log_q[c], row);
                let w = if class[c] == NEGATIVE { w } else { A::ZERO };
                products[c] = if class[c] == NEGATIVE { w * s[c] } else { A::ZERO };
                s[c] = w;
            }
        } else if let Some(shared) = shared {
            let a = &columns.a[..width];
            let one = Coefficient { a: A::ONE, ..row };
            for c in 0..width {
                let w = form.weight(s[c], log_q[c], one) * (row.a + shared * a[c]);
                let w = if class[c] == NEGATIVE { w } else { A::ZERO };
                products[c] = if class[c] == NEGATIVE { w * s[c] } else { A::ZERO };
                s[c] = w;
            }
        } else {
            let (a, m, p) = (&columns.a[..width], &columns.m[..width], &columns.p[..width]);
            for c in 0..width {
                let column = Coefficient { a: a[c], m: m[c], p: p[c] };
                let w = form.weight(s[c], log_q[c], row) + form.weight(s[c], A::ZERO, column);
                let w = if class[c] == NEGATIVE { w } else { A::ZERO };
                products[c] = if class[c] == NEGATIVE { w * s[c] } else { A::ZERO };
                s[c] = w;
            }
        }
        [total::<A, S>(products).to_f64(), total::<A, S>(s).to_f64()]
    }
}
