//! The pairwise step on CUDA against the f64 reference.
#![cfg(feature = "cuda")]

mod common;

use std::sync::OnceLock;

use common::data::{Kind, Layout, Matrix, ODD, TIGHT, WIDE, group_ids, pair};
use half::{bf16, f16};
use simgrad::cuda::host::{self, Cuda};
use simgrad::reference::{self, PairwiseReference};
use simgrad::{
    DType, Element, Error, GradientOf, Groups, Normalization, PairwiseObjective, PairwiseOptions, PairwiseReport,
    WriteMode,
};

fn cuda() -> Option<&'static Cuda> {
    static CUDA: OnceLock<Result<Cuda, Error>> = OnceLock::new();
    match CUDA.get_or_init(|| Cuda::new(0)) {
        Ok(cuda) => Some(cuda),
        Err(reason) => {
            assert!(!common::gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            eprintln!("note: skipped: {reason}");
            None
        }
    }
}

/// Every f32 element within 1e-5 of the largest; of 16-bit inputs the whole within 3e-3 (weights are rounded to bf16), and
/// with a 16-bit gradient another rounding.
#[track_caller]
fn close<T: Element, G: Element>(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    for (at, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(g.is_nan(), w.is_nan(), "{name} [{at}]: {g} {w}");
    }
    let finite = || got.iter().zip(want).filter(|(_, w)| !w.is_nan());
    let largest = finite().fold(0.0f64, |a, (_, w)| a.max(w.abs()));
    if T::DTYPE == DType::F32 {
        let worst = finite().fold(0.0f64, |a, (g, w)| a.max((g - w).abs()));
        assert!(worst <= 1e-5 * largest, "{name}: off by {worst:e} of {largest:e}");
        return;
    }
    let square = finite().map(|(_, w)| w * w).sum::<f64>();
    let error = finite().map(|(g, w)| (g - w) * (g - w)).sum::<f64>();
    let allowed = if G::DTYPE == DType::F32 { 3e-3 } else { 5e-3 };
    assert!(error.sqrt() <= allowed * square.sqrt(), "{name}: off by {:e}", (error / square).sqrt());
}

#[track_caller]
fn same_report<T: Element>(name: &str, got: &PairwiseReport, want: &PairwiseReport) {
    let near = |what: &str, g: f64, w: f64, scale: f64| {
        let same = (g.is_nan() && w.is_nan()) || (g - w).abs() <= 2e-5 * scale.max(w.abs());
        assert!(same, "{name}: {what} {g:e} {w:e}");
    };
    near("loss", got.loss, want.loss, 1e-3);
    near("d_scale", got.d_scale, want.d_scale, 1e-2);
    near("d_bias", got.d_bias, want.d_bias, 1e-2);
    near("mean_positive", got.mean_positive, want.mean_positive, 1.0);
    let counts = |r: &PairwiseReport| {
        let anchors = [r.anchors_rows, r.anchors_cols];
        ([r.positives, r.negatives], anchors, [r.zero_x, r.zero_y, r.nan_x, r.nan_y, r.overflow, r.reserved])
    };
    assert_eq!(counts(got), counts(want), "{name}");
}

struct Case {
    n: usize,
    m: usize,
    d: usize,
    layout: Layout,
}

const fn case(n: usize, m: usize, d: usize) -> Case {
    Case { n, m, d, layout: TIGHT }
}

fn run<T: Element, G: GradientOf<T>>(
    name: &str,
    [x, y]: [&Matrix<T>; 2],
    layout: Layout,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
) {
    let Some(cuda) = cuda() else { return };
    let name = format!("{name} {objective} {} {}x{}x{}", T::DTYPE, x.rows, y.rows, x.cols);
    let want: PairwiseReference = reference::pairwise_step(x.view(), y.view(), objective, options);
    let mut dx = Matrix::<G>::poisoned(x.rows, x.cols, layout);
    let mut dy = Matrix::<G>::poisoned(y.rows, y.cols, layout);
    let report =
        host::pairwise_step(cuda, x.view(), y.view(), objective, options, dx.view_mut(), dy.view_mut()).unwrap();
    same_report::<T>(&name, &report, &want.report);
    close::<T, G>(&format!("{name} dx"), &dx.written(&name), &want.dx);
    close::<T, G>(&format!("{name} dy"), &dy.written(&name), &want.dy);
}

fn inputs<T: Element>(case: &Case) -> [Matrix<T>; 2] {
    let (x, y) = pair(Kind::Sphere, 1, case.n, case.m, case.d);
    [Matrix::new(&x, case.n, case.d, case.layout), Matrix::new(&y, case.m, case.d, case.layout)]
}

fn plain<T: Element, G: GradientOf<T>>(case: &Case, objective: &PairwiseObjective) {
    let [x, y] = inputs::<T>(case);
    run::<T, G>("plain", [&x, &y], case.layout, objective, &PairwiseOptions::default());
}

const SHAPES: [Case; 9] = [
    case(1, 1, 1),
    case(7, 7, 5),
    case(1, 9, 64),
    case(127, 130, 5),
    Case { n: 128, m: 128, d: 64, layout: WIDE },
    Case { n: 129, m: 40, d: 33, layout: ODD },
    case(40, 129, 100),
    case(300, 257, 8),
    case(9, 20, 513),
];

#[test]
fn info_nce_over_ragged_shapes() {
    let objective = PairwiseObjective::ALL[0];
    for case in &SHAPES {
        plain::<f32, f32>(case, &objective);
        plain::<bf16, f32>(case, &objective);
        plain::<f16, f32>(case, &objective);
    }
    plain::<bf16, bf16>(&SHAPES[3], &objective);
    plain::<f16, f16>(&SHAPES[3], &objective);
}
