//! GOAL steps: cases whose discrete decisions are clear, running them, and comparing with the reference.

use simgrad::reference::{self, GoalReference};
use simgrad::{
    AnchorDetail, Backend, Element, GradientOf, Groups, NONE, Normalization, Objective, PairWeight, StepDetail,
    StepOptions, StepReport, TripletWeight, WriteMode,
};

use super::check::{bound, close, rounding, similarities, smallest};
use super::data::{Kind, Layout, Matrix, TIGHT, bits_equal, group_ids, pair, to_f64};

/// Inputs of a step.
#[derive(Clone, Debug)]
pub struct Case<T> {
    pub x: Matrix<T>,
    pub y: Matrix<T>,
    pub groups: Option<(Vec<i64>, Vec<i64>)>,
    pub objective: Objective,
    pub normalization: Normalization,
    pub upstream: f64,
}

/// What makes a case.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub kind: Kind,
    pub n: usize,
    pub d: usize,
    pub normalization: Normalization,
    pub layout: Layout,
    /// Number of different group ids; 0 for none.
    pub groups: usize,
    pub upstream: f64,
}

impl Shape {
    pub fn new(n: usize, d: usize) -> Self {
        Self { kind: Kind::Sphere, n, d, normalization: Normalization::L2, layout: TIGHT, groups: 0, upstream: 1.0 }
    }
}

impl<T: Element> Case<T> {
    /// The case of this shape and seed, whether or not its decisions are clear.
    pub fn raw(shape: &Shape, objective: Objective, seed: u64) -> Self {
        let (x, y) = pair(shape.kind, seed, shape.n, shape.n, shape.d);
        let groups = (shape.groups > 0).then(|| {
            let ids = group_ids(seed, shape.n, shape.groups);
            (ids.clone(), ids)
        });
        Self {
            x: Matrix::new(&x, shape.n, shape.d, shape.layout),
            y: Matrix::new(&y, shape.n, shape.d, shape.layout),
            groups,
            objective,
            normalization: shape.normalization,
            upstream: shape.upstream,
        }
    }

    /// A case none of whose discrete decisions (which negative, which members of the sets, hinge open or closed) can be
    /// changed by rounding: the first good seed, with `eps` and `margin` moved into the widest gap near their value.
    pub fn clear(shape: &Shape, objective: Objective, seed: u64) -> Self {
        Self::try_clear(shape, objective, seed).unwrap_or_else(|| panic!("no clear case for {shape:?} {objective}"))
    }

    /// As [`clear`](Self::clear), for shapes that may not have such a case.
    pub fn try_clear(shape: &Shape, objective: Objective, seed: u64) -> Option<Self> {
        (0..200).find_map(|k| Self::raw(shape, objective, seed + 1000 * k).tuned())
    }

    pub fn options(&self) -> StepOptions<'_> {
        StepOptions {
            normalization: self.normalization,
            groups: self.groups.as_ref().map(|(rows, cols)| Groups { rows, cols }),
            upstream: self.upstream,
            write: WriteMode::Overwrite,
        }
    }

    pub fn reference(&self) -> GoalReference {
        reference::goal_step(self.x.view(), self.y.view(), &self.objective, &self.options())
    }

    /// The bound on the error of a similarity of this case.
    pub fn similarity_bound(&self) -> f64 {
        let largest = |m: &Matrix<T>| reference::row_norms(m.view()).into_iter().fold(0.0, f64::max);
        match self.normalization {
            Normalization::L2 => bound::<T>(),
            Normalization::None => bound::<T>() * (largest(&self.x) * largest(&self.y)).max(1.0),
        }
    }

    fn tuned(mut self) -> Option<Self> {
        // Four times the error seen in practice, a fraction of the worst case, which would leave no case at all.
        let safe = match T::DTYPE {
            simgrad::DType::F64 => 1e-11,
            simgrad::DType::F32 => 2e-6,
            _ => 4e-6,
        };
        let detail = self.reference().detail;
        let gap = |d: &AnchorDetail<f64>, i: usize| d.neg_value[i] - d.second_value[i];
        let directions = [&detail.it, &detail.ti];
        if directions.iter().any(|d| (0..self.x.rows).any(|i| d.neg_index[i] != NONE && gap(d, i) < 2.0 * safe)) {
            return None;
        }
        let mut triplet = self.objective.triplet();
        let mut pair = self.objective.pair();
        if let TripletWeight::Hinge { margin } = &mut triplet {
            let kinks = directions.iter().flat_map(|d| d.neg_value.iter().zip(&detail.positive).map(|(n, p)| p - n));
            *margin = widest_gap(kinks.collect(), *margin, 2.0 * safe)?;
        }
        if let PairWeight::LinMs { eps } | PairWeight::SigMs { eps, .. } = &mut pair {
            *eps = widest_gap(self.thresholds(&detail), *eps, 2.0 * safe)?;
            let p = &detail.positive;
            let equal = |i: usize| p[..i].iter().any(|q| (q - p[i]).abs() < safe);
            if (0..p.len()).any(equal) {
                return None;
            }
        }
        self.objective = Objective::new(triplet, pair).expect("valid").with_reduction(self.objective.reduction());
        Some(self)
    }

    /// The values of `eps` at which a member enters one of the sets.
    fn thresholds(&self, detail: &StepDetail<f64>) -> Vec<f64> {
        let least = detail.positive.iter().copied().fold(f64::INFINITY, f64::min);
        let mut out: Vec<f64> = similarities(&self.x, &self.y, self.normalization).iter().map(|s| least - s).collect();
        for n in detail.it.neg_value.iter().chain(&detail.ti.neg_value) {
            out.extend(detail.positive.iter().map(|p| p - n));
        }
        out
    }

    /// Runs the step on poisoned outputs and checks that the two entries agree bit for bit.
    pub fn run<G: GradientOf<T>>(&self, backend: &Backend, layout: Layout) -> Got<T, G> {
        let mut out = self.outputs(layout);
        let mut plain = self.outputs(layout);
        let (x, y, options) = (self.x.view(), self.y.view(), self.options());
        let (report, detail) = backend
            .goal_step_detail(x, y, &self.objective, &options, out.0.view_mut(), out.1.view_mut())
            .expect("goal_step_detail");
        let again = backend
            .goal_step(x, y, &self.objective, &options, plain.0.view_mut(), plain.1.view_mut())
            .expect("goal_step");
        assert!(bits_equal(&out.0.elements(), &plain.0.elements()), "dx of goal_step and goal_step_detail");
        assert!(bits_equal(&out.1.elements(), &plain.1.elements()), "dy of goal_step and goal_step_detail");
        assert_eq!(bytemuck::bytes_of(&report), bytemuck::bytes_of(&again), "reports of both entries");
        Got { dx: out.0, dy: out.1, report, detail }
    }

    fn outputs<G: Element>(&self, layout: Layout) -> (Matrix<G>, Matrix<G>) {
        let make = |m: &Matrix<T>| Matrix::poisoned(m.rows, m.cols, layout);
        (make(&self.x), make(&self.y))
    }

    /// Runs and compares everything with the reference.
    #[track_caller]
    pub fn check<G: GradientOf<T>>(&self, backend: &Backend, layout: Layout) {
        let want = self.reference();
        let got = self.run::<G>(backend, layout);
        let name = format!(
            "{} {} {}->{} n={} d={} {:?} groups={}",
            backend.name(),
            self.objective,
            T::DTYPE,
            G::DTYPE,
            self.x.rows,
            self.x.cols,
            self.normalization,
            self.groups.is_some()
        );
        let tolerance = Tolerance::new(self, &want);
        check_detail(&name, &got.detail, &want.detail, &tolerance);
        check_report(&name, &got.report, &want.report, &tolerance);
        let d = self.x.cols;
        let allowed = |rows: &[f64], want: &[f64], at: usize| {
            rows[at / d] + 1.01 * rounding::<G>() * want[at].abs() + smallest::<G>()
        };
        let (dx, dy) = (got.dx.written(&name), got.dy.written(&name));
        close(&format!("{name} dX"), &dx, &want.dx, |at| allowed(&tolerance.rows_x, &want.dx, at));
        close(&format!("{name} dY"), &dy, &want.dy, |at| allowed(&tolerance.rows_y, &want.dy, at));
    }
}

/// What a step gave.
#[derive(Clone, Debug)]
pub struct Got<T: Element, G> {
    pub dx: Matrix<G>,
    pub dy: Matrix<G>,
    pub report: StepReport,
    pub detail: StepDetail<T::Acc>,
}

/// The middle of the widest interval without a kink, between half and one and a half times `around`.
fn widest_gap(mut kinks: Vec<f64>, around: f64, least: f64) -> Option<f64> {
    let (low, high) = (0.5 * around, 1.5 * around);
    kinks.retain(|k| (low..high).contains(k));
    kinks.extend([low, high]);
    kinks.sort_by(f64::total_cmp);
    let widest = kinks.windows(2).max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0])))?;
    (widest[1] - widest[0] > 2.0 * least).then(|| f64::midpoint(widest[0], widest[1]))
}

/// How far each quantity may be off, derived from the bound `similarity` on similarities and the unit roundoff `unit`.
pub struct Tolerance {
    similarity: f64,
    unit: f64,
    /// Relative error of `T`, and absolute error too because `T <= 1`.
    triplet: f64,
    /// Error of a pair weight, relative to `|w| + 1`; of `R`, relative to `|R| + 1`.
    pair: f64,
    /// Error of every element of a row of the gradient, before rounding to the output type.
    pub rows_x: Vec<f64>,
    pub rows_y: Vec<f64>,
    factor: f64,
}

impl Tolerance {
    fn new<T: Element>(case: &Case<T>, want: &GoalReference) -> Self {
        let (similarity, unit) = (case.similarity_bound(), rounding::<T::Acc>());
        let reach = want.detail.positive.iter().chain(&want.detail.it.neg_value).chain(&want.detail.ti.neg_value);
        let reach = reach.filter(|v| v.is_finite()).fold(1.0, |m: f64, v| m.max(v.abs()));
        // |dT/dS| <= slope T, |dw/dS| <= slope (|w| + 1).
        let triplet = match case.objective.triplet() {
            TripletWeight::Nca { tau } => tau,
            TripletWeight::Cir { tau, .. } => 4.0 * tau * reach,
            _ => 0.0,
        };
        let pair = match case.objective.pair() {
            PairWeight::Con => 0.0,
            PairWeight::Lin => 1.0,
            PairWeight::LinMs { .. } => 4.0 * reach,
            PairWeight::Sig { alpha, beta, .. } => alpha.max(beta),
            PairWeight::SigMs { alpha, beta, .. } => 4.0 * alpha.max(beta),
            _ => unreachable!("a pair weight that this test does not know"),
        };
        // The exponents themselves are rounded: slope × value × unit roundoff.
        let of = |slope: f64| slope * (2.0 * similarity + 8.0 * reach * unit) + 16.0 * unit;
        let factor = case.objective.reduction_factor(case.x.rows);
        let mut out = Self {
            similarity,
            unit,
            triplet: of(triplet),
            pair: of(pair),
            rows_x: vec![0.0; case.x.rows],
            rows_y: vec![0.0; case.x.rows],
            factor,
        };
        let (rx, ry) = (reference::row_norms(case.x.view()), reference::row_norms(case.y.view()));
        let length = |r: f64| if case.normalization == Normalization::L2 { 1.0 } else { r };
        let relative = (out.triplet + out.pair + 64.0 * unit) * (case.upstream * factor).abs();
        let mut add = |i: usize, j: usize, weight: f64| {
            out.rows_x[i] += relative * weight * length(ry[j]);
            out.rows_y[j] += relative * weight * length(rx[i]);
        };
        for i in 0..case.x.rows {
            for (direction, flip) in [(&want.detail.it, false), (&want.detail.ti, true)] {
                let Ok(k) = usize::try_from(direction.neg_index[i]) else { continue };
                let t = direction.triplet[i].abs();
                add(i, i, t * (direction.w_pos[i].abs() + 1.0));
                let (row, col) = if flip { (k, i) } else { (i, k) };
                add(row, col, t * (direction.w_neg[i].abs() + 1.0));
            }
        }
        if case.normalization == Normalization::L2 {
            // The Jacobian subtracts the radial part, as large as the gradient at most, and divides by the norm.
            let through = |rows: &mut Vec<f64>, r: &[f64]| rows.iter_mut().zip(r).for_each(|(v, r)| *v *= 2.0 / r);
            through(&mut out.rows_x, &rx);
            through(&mut out.rows_y, &ry);
        }
        out
    }
}

#[track_caller]
fn check_anchors<A: Element>(name: &str, got: &AnchorDetail<A>, want: &AnchorDetail<f64>, tol: &Tolerance) {
    assert_eq!(got.neg_index, want.neg_index, "{name} negative's index");
    let relative = |w: &[f64], at: usize, by: f64| by * (w[at].abs() + 1.0);
    let same = |what: &str, got: &[A], want: &[f64], by: f64| {
        close(&format!("{name} {what}"), &to_f64(got), want, |at| relative(want, at, by));
    };
    let similarity = |what: &str, got: &[A], want: &[f64]| {
        close(&format!("{name} {what}"), &to_f64(got), want, |_| tol.similarity);
    };
    similarity("negative's value", &got.neg_value, &want.neg_value);
    similarity("second value", &got.second_value, &want.second_value);
    same("T", &got.triplet, &want.triplet, tol.triplet);
    same("w+", &got.w_pos, &want.w_pos, tol.pair);
    same("w-", &got.w_neg, &want.w_neg, tol.pair);
    same("R+", &got.rs_pos, &want.rs_pos, tol.pair);
    same("R-", &got.rs_neg, &want.rs_neg, tol.pair);
    assert_eq!(got.rs_pos_count, want.rs_pos_count, "{name} count behind R+");
    assert_eq!(got.rs_neg_count, want.rs_neg_count, "{name} count behind R-");
}

/// Compares the anatomy.
#[track_caller]
pub fn check_detail<A: Element>(name: &str, got: &StepDetail<A>, want: &StepDetail<f64>, tol: &Tolerance) {
    close(&format!("{name} positive"), &to_f64(&got.positive), &want.positive, |_| tol.similarity);
    check_anchors(&format!("{name} it"), &got.it, &want.it, tol);
    check_anchors(&format!("{name} ti"), &got.ti, &want.ti, tol);
}

/// The counters of a report.
pub fn counters(r: &StepReport) -> [u32; 9] {
    [r.pairs, r.empty_it, r.empty_ti, r.active_it, r.active_ti, r.zero_x, r.zero_y, r.nan_x, r.nan_y]
}

/// Compares the report, but for the overflow counter.
#[track_caller]
pub fn check_report(name: &str, got: &StepReport, want: &StepReport, tol: &Tolerance) {
    assert_eq!(counters(got), counters(want), "{name} counters of the report");
    let sum = 4.0 * f64::from(want.pairs) * tol.factor * (tol.similarity + tol.triplet.min(1.0) * 1e-2);
    let sums = |r: &StepReport| [r.loss, r.log_it, r.log_ti];
    let means = |r: &StepReport| [r.mean_positive, r.mean_negative_it, r.mean_negative_ti];
    let wanted = sums(want);
    close(&format!("{name} loss and logs"), &sums(got), &wanted, |at| sum + 64.0 * tol.unit * wanted[at].abs());
    close(&format!("{name} means"), &means(got), &means(want), |_| tol.similarity + 64.0 * tol.unit);
}
