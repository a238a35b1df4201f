//! Sums over the negatives and positives of every anchor.

use super::classes::{Classes, NEGATIVE, POSITIVE};
use super::form::{Form, NEAR};
use super::member::Survey;
use super::positives::{Positives, Sum};
use super::tiles::{Sweep, Tile, Tiles};
use crate::cpu::Cpu;
use crate::cpu::row_norms::fold;
use crate::cpu::tile::{Kernel, MAX_LANES, Simd, lanes};
use crate::dtype::{Accum, Element};
use crate::pairwise::PairwiseObjective;

/// What a sweep is told about the anchors.
pub(super) struct Question<'a, A> {
    pub(super) objective: &'a PairwiseObjective,
    pub(super) classes: Classes<'a>,
    /// One per column, zeros where there is no correction.
    pub(super) log_q: &'a [A],
    /// Parameter `p` of the row anchors' negatives.
    pub(super) rows_p: &'a [A],
    /// Parameter `p` of the column anchors' negatives; empty if columns are no anchors.
    pub(super) cols_p: &'a [A],
    /// The miner's threshold of the row anchors' positives; empty without one.
    pub(super) highest: &'a [f64],
}

/// What the sweep finds.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    pub(super) rows: Vec<Sum>,
    /// Empty if columns are no anchors.
    pub(super) cols: Vec<Sum>,
    /// Of the row anchors.
    pub(super) positives: Vec<Positives>,
}

impl Statistics {
    /// Of `n` rows and `m` columns, before anything is added.
    pub(super) fn new(n: usize, m: usize, both: bool) -> Self {
        Self {
            rows: vec![Sum::default(); n],
            cols: vec![Sum::default(); if both { m } else { 0 }],
            positives: vec![Positives::default(); n],
        }
    }

    /// Adds the rows of a share, of which the first is `first`.
    pub(super) fn add_rows(&mut self, first: usize, share: Share<'_>) {
        self.add(first, &share.rows);
    }

    fn add(&mut self, first: usize, rows: &RowsOfShare) {
        for (r, (negatives, positives)) in rows.iter().enumerate() {
            self.rows[first + r].add(*negatives);
            self.positives[first + r].merge(positives);
        }
    }
}

/// What a tile finds of its rows.
type RowsOfShare = Vec<(Sum, Positives)>;

/// What a tile finds: of its rows, and its columns' sums so far.
pub(super) struct Share<'a> {
    count: usize,
    /// Empty before [`Self::begin`].
    pub(super) rows: RowsOfShare,
    pub(super) cols: &'a mut [Sum],
}

impl<'a> Share<'a> {
    /// Of a wave of `rows` rows, and these columns' sums.
    pub(super) fn new(rows: usize, cols: &'a mut [Sum]) -> Self {
        Self { count: rows, rows: Vec::new(), cols }
    }

    /// To be called before the first tile by the thread that has it: memory that another one has written is slow to write.
    pub(super) fn begin(&mut self) {
        self.rows.resize_with(self.count, Default::default);
    }
}

/// Memory for a tile's rows.
pub(super) struct Scratch<A> {
    class: Vec<u32>,
    terms: Vec<A>,
    products: Vec<A>,
    col_max: Vec<A>,
    col_sum: Vec<A>,
    col_extra: Vec<A>,
    /// The tile's terms of the columns, or of both sides.
    tile: Vec<A>,
    /// Where the sides share terms, the largest of every row.
    row_max: Vec<A>,
}

impl<A: Accum> Scratch<A> {
    pub(super) fn new(chunk: usize, nr: usize) -> Self {
        let long = chunk.next_multiple_of(nr);
        let zeros = || vec![A::ZERO; long];
        Self {
            class: vec![0; long],
            terms: zeros(),
            products: zeros(),
            col_max: zeros(),
            col_sum: zeros(),
            col_extra: zeros(),
            tile: Vec::new(),
            row_max: Vec::new(),
        }
    }

    /// Adds a tile to its share.
    pub(super) fn visit<F: Form<A>>(
        &mut self,
        cpu: &Cpu,
        tile: &Tile<'_, A>,
        share: &mut Share<'_>,
        form: F,
        q: &Question<'_, A>,
    ) {
        let (width, ld) = (tile.cols.len(), tile.ld);
        // Padding is no candidate.
        self.class[width..ld].fill(0);
        let both = !q.cols_p.is_empty();
        let cols_p: Vec<A> = if both { padded(&q.cols_p[tile.cols.clone()], ld) } else { Vec::new() };
        let log_q = padded(&q.log_q[tile.cols.clone()], ld);
        self.col_max[..ld].fill(A::NEG_INFINITY);
        self.col_sum[..ld].fill(A::ZERO);
        self.col_extra[..ld].fill(A::ZERO);
        if both && F::SOFT {
            self.tile.resize(tile.rows.len() * ld, A::ZERO);
        }
        self.row_max.clear();
        let shared = F::SHARED && both && log_q.iter().all(|&q| q == A::ZERO);
        for ((r, row), i) in tile.data.chunks_exact(ld).enumerate().zip(tile.rows.clone()) {
            let (negatives, positives) = &mut share.rows[r];
            if q.classes.of_row(i, &tile.cols, &mut self.class) {
                for (c, _) in self.class[..width].iter().enumerate().filter(|(_, c)| **c == POSITIVE) {
                    let highest = q.highest.get(i).copied().unwrap_or(f64::INFINITY);
                    positives.add(q.objective, row[c].to_f64(), log_q[c].to_f64(), highest);
                }
            }
            let (class, p) = (&self.class[..ld], q.rows_p[i]);
            if shared {
                let (terms, max) = (&mut self.tile[r * ld..][..ld], &mut self.col_max[..ld]);
                self.row_max.push(cpu.isa().run(SharedTerms { s: row, class, p, form, terms, max }));
                continue;
            }
            let (terms, products) = (&mut self.terms[..ld], &mut self.products[..ld]);
            negatives.add(cpu.isa().run(RowSums { s: row, class, log_q: &log_q, p, form, terms, products }));
            if both {
                let terms = if F::SOFT { &mut self.tile[r * ld..][..ld] } else { &mut self.terms[..ld] };
                let (max, sum) = (&mut self.col_max[..ld], &mut self.col_sum[..ld]);
                let extra = &mut self.col_extra[..ld];
                cpu.isa().run(ColumnTerms { s: row, class, p: &cols_p, form, terms, max, sum, extra });
            }
        }
        if !both {
            return;
        }
        if shared && self.share(cpu, share, ld) {
            return;
        }
        if F::SOFT {
            let (max, sum) = (&self.col_max[..ld], &mut self.col_sum[..ld]);
            cpu.isa().run(ColumnExponentials { terms: &self.tile, count: tile.rows.len(), max, sum });
        }
        for (c, total) in share.cols.iter_mut().enumerate() {
            let max = if F::SOFT { self.col_max[c].to_f64() } else { 0.0 };
            total.add(Sum { max, sum: self.col_sum[c].to_f64(), extra: self.col_extra[c].to_f64(), at: 0 });
        }
    }
}

impl<A: Accum> Scratch<A> {
    /// Adds the tile's terms to the rows, and if they are near each other with the same exponentials to the columns; returns
    /// whether they were.
    fn share(&mut self, cpu: &Cpu, share: &mut Share<'_>, ld: usize) -> bool {
        let col_max = &self.col_max[..ld];
        // What a NaN may have hidden is in a row and a column whose sums are NaN.
        let all = || self.row_max.iter().chain(col_max).map(|max| max.to_f64());
        let highest = all().fold(f64::NEG_INFINITY, f64::max);
        let near = all().all(|max| max == f64::NEG_INFINITY || highest - max <= NEAR);
        let col_sum = &mut self.col_sum[..ld];
        let rows = self.tile.chunks_exact(ld).zip(&self.row_max).zip(&mut share.rows);
        for ((terms, &max), (negatives, _)) in rows {
            let shift = if near { A::from_f64(highest) } else { max };
            let shift = if shift > A::NEG_INFINITY { shift } else { A::ZERO };
            let cols = if near { &mut *col_sum } else { &mut [] };
            let sum = cpu.isa().run(Exponentials { terms, shift, cols });
            if sum != A::ZERO {
                negatives.add(Sum { max: shift.to_f64(), sum: sum.to_f64(), ..Sum::default() });
            }
        }
        if near {
            for (&sum, total) in self.col_sum.iter().zip(share.cols.iter_mut()).filter(|(sum, _)| **sum != A::ZERO) {
                total.add(Sum { max: highest, sum: sum.to_f64(), ..Sum::default() });
            }
        }
        near
    }
}

pub(super) fn padded<A: Accum>(values: &[A], len: usize) -> Vec<A> {
    let mut out = values.to_vec();
    out.resize(len, A::ZERO);
    out
}

/// Computes the statistics of the members' anchors, in one sweep for all of them. Sums over a tile's part of a row or column
/// are taken in `T::Acc`, sums over tiles in `f64`, in an order that follows from the shape.
pub(super) fn statistics<T: Element>(tiles: &mut Tiles<'_, T>, members: &[&dyn Survey<T::Acc>]) -> Vec<Statistics> {
    let (cpu, cut) = (tiles.cpu, tiles.cut);
    let of = |member: &&dyn Survey<T::Acc>| Statistics::new(cut.n, cut.m, member.both_sides());
    let mut all: Vec<Statistics> = members.iter().map(of).collect();
    for wave in 0..cut.waves() {
        let rows = cut.rows(wave);
        let mut states: Vec<Vec<Share<'_>>> = (0..cut.chunks()).map(|_| Vec::new()).collect();
        for found in &mut all {
            let mut cols = found.cols.chunks_mut(cut.chunk);
            for state in &mut states {
                state.push(Share::new(rows.len(), cols.next().unwrap_or_default()));
            }
        }
        let start = || Scratch::new(cut.chunk, cut.nr);
        let visit = |scratch: &mut Scratch<T::Acc>, tile: Tile<'_, T::Acc>, shares: &mut Vec<Share<'_>>| {
            for (member, share) in members.iter().zip(shares) {
                share.begin();
                member.visit(cpu, scratch, &tile, share);
            }
        };
        tiles.each(wave, Sweep::Survey, states.iter_mut().collect(), start, visit);
        let found: Vec<Vec<RowsOfShare>> =
            states.into_iter().map(|shares| shares.into_iter().map(|share| share.rows).collect()).collect();
        for shares in found {
            for (all, share) in all.iter_mut().zip(shares) {
                all.add(rows.start, &share);
            }
        }
    }
    all
}

/// Sum of the elements of `values`, whose length is a multiple of the lanes.
#[inline(always)]
pub(super) fn total<A: Accum, S: Simd<A>>(values: &[A]) -> A {
    let mut sum = S::splat(A::ZERO);
    for chunk in values.chunks_exact(S::LANES) {
        sum = S::add(sum, S::load(chunk));
    }
    fold(lanes::<A, S>(sum))
}

/// The negatives of one row of a tile.
struct RowSums<'a, A, F> {
    s: &'a [A],
    class: &'a [u32],
    log_q: &'a [A],
    p: A,
    form: F,
    terms: &'a mut [A],
    products: &'a mut [A],
}

impl<A: Accum, F: Form<A>> Kernel<A> for RowSums<'_, A, F> {
    type Out = Sum;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> Sum {
        let Self { s, class, log_q, p, form, terms, products } = self;
        let none = if F::SOFT { A::NEG_INFINITY } else { A::ZERO };
        for (((t, &s), &class), &log_q) in terms.iter_mut().zip(s).zip(class).zip(log_q) {
            let term = form.term(s, log_q, p);
            *t = if class == NEGATIVE { term } else { none };
        }
        let mut max = A::ZERO;
        if F::SOFT {
            let mut largest = S::splat(A::NEG_INFINITY);
            for chunk in terms.chunks_exact(S::LANES) {
                largest = S::max(largest, S::load(chunk));
            }
            max = lanes::<A, S>(largest)[..S::LANES].iter().fold(A::NEG_INFINITY, |a, &b| a.larger(b));
            // NaN may have been passed over, or have hidden what is beside it: it makes the sum NaN either way.
            let shift = if max > A::NEG_INFINITY { max } else { A::ZERO };
            for t in terms.iter_mut() {
                *t = (*t - shift).exp_nonpos();
            }
        }
        let mut extra = A::ZERO;
        if F::EXTRA {
            for (((e, &t), &s), &class) in products.iter_mut().zip(terms.iter()).zip(s).zip(class) {
                let extra = form.extra(s, p);
                let extra = if F::SOFT { t * extra } else { extra };
                *e = if class == NEGATIVE { extra } else { A::ZERO };
            }
            extra = total::<A, S>(products);
        }
        Sum {
            max: if F::SOFT { max.to_f64() } else { 0.0 },
            sum: total::<A, S>(terms).to_f64(),
            extra: extra.to_f64(),
            at: 0,
        }
    }
}

/// Adds one row of a tile to its columns. Soft: keeps its terms, and takes their maxima.
struct ColumnTerms<'a, A, F> {
    s: &'a [A],
    class: &'a [u32],
    p: &'a [A],
    form: F,
    terms: &'a mut [A],
    max: &'a mut [A],
    sum: &'a mut [A],
    extra: &'a mut [A],
}

impl<A: Accum, F: Form<A>> Kernel<A> for ColumnTerms<'_, A, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let Self { s, class, p, form, terms, max, sum, extra } = self;
        let width = s.len();
        let (class, p, max) = (&class[..width], &p[..width], &mut max[..width]);
        let (sum, extra, terms) = (&mut sum[..width], &mut extra[..width], &mut terms[..width]);
        for c in 0..width {
            let negative = class[c] == NEGATIVE;
            let term = form.term(s[c], A::ZERO, p[c]);
            if F::SOFT {
                let term = if negative { term } else { A::NEG_INFINITY };
                max[c] = max[c].larger(term);
                terms[c] = term;
            } else {
                sum[c] += if negative { term } else { A::ZERO };
                if F::EXTRA {
                    let counted = form.extra(s[c], p[c]);
                    extra[c] += if negative { counted } else { A::ZERO };
                }
            }
        }
    }
}

/// The terms of one row for both sides: takes the columns' maxima, returns the row's.
struct SharedTerms<'a, A, F> {
    s: &'a [A],
    class: &'a [u32],
    p: A,
    form: F,
    terms: &'a mut [A],
    max: &'a mut [A],
}

impl<A: Accum, F: Form<A>> Kernel<A> for SharedTerms<'_, A, F> {
    type Out = A;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> A {
        let Self { s, class, p, form, terms, max } = self;
        let width = s.len();
        let (class, terms, max) = (&class[..width], &mut terms[..width], &mut max[..width]);
        for c in 0..width {
            let term = form.term(s[c], A::ZERO, p);
            let term = if class[c] == NEGATIVE { term } else { A::NEG_INFINITY };
            max[c] = max[c].larger(term);
            terms[c] = term;
        }
        let mut largest = S::splat(A::NEG_INFINITY);
        for chunk in terms.chunks_exact(S::LANES) {
            largest = S::max(largest, S::load(chunk));
        }
        lanes::<A, S>(largest)[..S::LANES].iter().fold(A::NEG_INFINITY, |a, &b| a.larger(b))
    }
}

/// `Σ_c e^(terms[c] − shift)`, of which each is also added to its column's sum, if there are any.
struct Exponentials<'a, A> {
    terms: &'a [A],
    shift: A,
    cols: &'a mut [A],
}

impl<A: Accum> Kernel<A> for Exponentials<'_, A> {
    type Out = A;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> A {
        let Self { terms, shift, cols } = self;
        let mut sums = [A::ZERO; MAX_LANES];
        let sums = &mut sums[..S::LANES];
        if cols.is_empty() {
            for terms in terms.chunks_exact(S::LANES) {
                for (sum, &t) in sums.iter_mut().zip(terms) {
                    *sum += (t - shift).exp_nonpos();
                }
            }
        } else {
            for (terms, cols) in terms.chunks_exact(S::LANES).zip(cols.chunks_exact_mut(S::LANES)) {
                for ((sum, &t), col) in sums.iter_mut().zip(terms).zip(cols) {
                    let e = (t - shift).exp_nonpos();
                    *sum += e;
                    *col += e;
                }
            }
        }
        total::<A, S>(sums)
    }
}

/// `sum[c] += Σ_r e^(terms[r, c] − max[c])`
struct ColumnExponentials<'a, A> {
    terms: &'a [A],
    count: usize,
    max: &'a [A],
    sum: &'a mut [A],
}

impl<A: Accum> Kernel<A> for ColumnExponentials<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let Self { terms, count, max, sum } = self;
        let width = max.len();
        for row in terms.chunks_exact(width).take(count) {
            for c in 0..width {
                let shift = if max[c] > A::NEG_INFINITY { max[c] } else { A::ZERO };
                sum[c] += (row[c] - shift).exp_nonpos();
            }
        }
    }
}
