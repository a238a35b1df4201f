//! One case of a pairwise step, run on a backend and compared with the reference.

use simgrad::reference::{self, PairwiseReference};
use simgrad::{
    Backend, Element, GradientOf, Groups, Normalization, PairwiseObjective, PairwiseOptions, PairwiseReport, Precision,
    WriteMode,
};

use super::check::{close, rounding, smallest};
use super::data::{Kind, Layout, Matrix, Rng, TIGHT, group_ids, pair};

/// Inputs and options that own what they are made of.
#[derive(Clone, Debug)]
pub struct PairwiseCase<T> {
    pub x: Matrix<T>,
    pub y: Matrix<T>,
    pub objective: PairwiseObjective,
    pub normalization: Normalization,
    pub upstream: f64,
    pub groups: Option<(Vec<i64>, Vec<i64>)>,
    pub ignored: Option<(Vec<bool>, Vec<bool>)>,
    pub weights: Option<(Vec<f32>, Vec<f32>)>,
    pub log_q: Option<Vec<f32>>,
    pub precision: Precision,
    /// `x` with itself; `y` is not looked at.
    pub single: bool,
}

/// What a backend gave.
#[derive(Clone, Debug)]
pub struct PairwiseGot<G> {
    pub dx: Matrix<G>,
    /// Without rows for a single set.
    pub dy: Matrix<G>,
    pub report: PairwiseReport,
    /// Whether weights were rounded to bf16 on the way: on CUDA, for 16-bit inputs.
    pub rounded: bool,
}

pub fn pairwise_case<T: Element>(
    kind: Kind,
    (n, m, d): (usize, usize, usize),
    objective: PairwiseObjective,
    seed: u64,
) -> PairwiseCase<T> {
    let (x, y) = pair(kind, seed, n, m, d);
    PairwiseCase {
        x: Matrix::new(&x, n, d, TIGHT),
        y: Matrix::new(&y, m, d, TIGHT),
        objective,
        normalization: Normalization::L2,
        upstream: 1.0,
        groups: None,
        ignored: None,
        weights: None,
        log_q: None,
        precision: Precision::Full,
        single: false,
    }
}

impl<T: Element> PairwiseCase<T> {
    /// With `kinds` different group ids.
    pub fn grouped(mut self, kinds: usize) -> Self {
        let rows = group_ids(7, self.x.rows, kinds);
        let cols = if self.single { rows.clone() } else { group_ids(8, self.y.rows, kinds) };
        self.groups = Some((rows, cols));
        self
    }

    /// With everything that the objective takes: groups, ignored rows and columns, weights, sampling corrections.
    pub fn with_everything(mut self, seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        let (n, m) = (self.x.rows, if self.single { self.x.rows } else { self.y.rows });
        let both = matches!(self.objective, PairwiseObjective::InfoNce { .. } | PairwiseObjective::TripletAll { .. });
        let softmax = matches!(self.objective, PairwiseObjective::InfoNce { .. } | PairwiseObjective::SupCon { .. });
        let mut mask = |count: usize| -> Vec<bool> { (0..count).map(|_| rng.below(5) == 0).collect() };
        self.ignored = Some((mask(n), mask(m)));
        let mut weights = |count: usize| -> Vec<f32> { (0..count).map(|_| 0.5 + rng.uniform() as f32).collect() };
        let rows = weights(n);
        self.weights = Some((rows, if both { weights(m) } else { Vec::new() }));
        self.log_q = softmax.then(|| weights(m).iter().map(|w| w.ln()).collect());
        self.upstream = -1.75;
        self.grouped(3)
    }

    pub fn options(&self, write: WriteMode) -> PairwiseOptions<'_> {
        PairwiseOptions {
            normalization: self.normalization,
            write,
            upstream: self.upstream,
            groups: self.groups.as_ref().map(|(rows, cols)| Groups { rows, cols }),
            ignore_rows: self.ignored.as_ref().map(|(rows, _)| &rows[..]),
            ignore_cols: self.ignored.as_ref().map(|(_, cols)| &cols[..]),
            row_weights: self.weights.as_ref().map(|(rows, _)| &rows[..]),
            col_weights: self.weights.as_ref().map(|(_, cols)| &cols[..]).filter(|cols| !cols.is_empty()),
            log_q: self.log_q.as_deref(),
            precision: self.precision,
        }
    }

    pub fn run<G: GradientOf<T>>(&self, backend: &Backend, layout: Layout) -> PairwiseGot<G> {
        let dx = Matrix::poisoned(self.x.rows, self.x.cols, layout);
        let rows = if self.single { 0 } else { self.y.rows };
        self.run_onto(backend, WriteMode::Overwrite, dx, Matrix::poisoned(rows, self.x.cols, layout))
    }

    pub fn run_onto<G: GradientOf<T>>(
        &self,
        backend: &Backend,
        write: WriteMode,
        mut dx: Matrix<G>,
        mut dy: Matrix<G>,
    ) -> PairwiseGot<G> {
        let (x, y, options) = (self.x.view(), self.y.view(), self.options(write));
        let report = if self.single {
            backend.pairwise_step_single(x, &self.objective, &options, dx.view_mut())
        } else {
            backend.pairwise_step(x, y, &self.objective, &options, dx.view_mut(), dy.view_mut())
        };
        let rounded = backend.name() == "cuda" && size_of::<T>() == 2;
        PairwiseGot { dx, dy, report: report.expect("a valid step"), rounded }
    }

    pub fn reference(&self) -> PairwiseReference {
        let options = self.options(WriteMode::Overwrite);
        if self.single {
            reference::pairwise_step_single(self.x.view(), &self.objective, &options)
        } else {
            reference::pairwise_step(self.x.view(), self.y.view(), &self.objective, &options)
        }
    }

    /// Compares a run with the reference: gradients relative to the largest element of both, the report to itself.
    #[track_caller]
    pub fn check<G: GradientOf<T>>(&self, name: &str, got: &PairwiseGot<G>, relative: f64) {
        let want = self.reference();
        let (dx, dy) = (got.dx.written(name), got.dy.written(name));
        let finite = |v: &&f64| v.is_finite();
        let largest = want.dx.iter().chain(&want.dy).filter(finite).fold(0.0f64, |a, b| a.max(b.abs()));
        let gradient = if got.rounded { relative.max(ROUNDED) } else { relative };
        let tolerance = |want: &[f64], i: usize| {
            (gradient * largest).max(smallest::<G>()) + 1.01 * rounding::<G>() * want[i].abs() + smallest::<G>()
        };
        close(&format!("{name} dx"), &dx, &want.dx, |i| tolerance(&want.dx, i));
        close(&format!("{name} dy"), &dy, &want.dy, |i| tolerance(&want.dy, i));
        let r = |p: &PairwiseReport| [p.loss, p.d_scale, p.d_bias, p.mean_positive];
        let (a, b) = (r(&got.report), r(&want.report));
        close(&format!("{name} report"), &a, &b, |i| {
            relative * (1e-3 + 4.0 * b[i].abs() + if i > 0 { largest } else { 0.0 })
        });
        let counts = |p: &PairwiseReport| {
            (p.positives, p.negatives, [p.anchors_rows, p.anchors_cols, p.zero_x, p.zero_y, p.nan_x, p.nan_y])
        };
        assert_eq!(counts(&got.report), counts(&want.report), "{name}: counts");
    }
}

/// What rounding weights to bf16 may change of a gradient, relative to its largest element: each term by 2⁻⁹ of itself.
pub const ROUNDED: f64 = 6e-3;

/// What a step's gradient may be off by, relative to its largest element. Logits reach a hundred, and an error of the
/// similarity comes out multiplied by them.
pub fn relative<T: Element>() -> f64 {
    match T::DTYPE {
        simgrad::DType::F64 => 1e-11,
        _ => 1e-4,
    }
}
