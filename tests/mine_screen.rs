//! Mining of f32 rows through a screen gives what mining in f32 gives, whatever the rows, and says how it went.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{Guarded, capture, device, kernel_nodes, numbers, turn};
use cudarc::driver::CudaStream;
use half::{bf16, f16};
use simgrad::cuda::{
    DeviceGroups, DeviceHardest, DeviceMat, DeviceMineOptions, DeviceMined, Kernels, Scheme, ScreenOutcome, mine,
    mine_workspace_bytes,
};
use simgrad::{DType, NONE, Normalization};

/// Two sets of rows of `d` elements, with group ids or without.
#[derive(Clone)]
struct Rows {
    n: usize,
    m: usize,
    d: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    groups: Option<(Vec<i64>, Vec<i64>)>,
    normalization: Normalization,
}

impl Rows {
    fn random((n, m, d): (usize, usize, usize), seed: u64) -> Self {
        let (x, y) = (numbers::<f32>(n * d, seed), numbers::<f32>(m * d, seed + 1));
        Self { n, m, d, x, y, groups: None, normalization: Normalization::L2 }
    }

    fn grouped(mut self, kinds: i64) -> Self {
        let ids = |len: usize, step: i64| (0..len as i64).map(|i| i * step % kinds).collect();
        self.groups = Some((ids(self.n, 7), ids(self.m, 3)));
        self
    }

    fn plain(mut self) -> Self {
        self.normalization = Normalization::None;
        self
    }

    fn row(&mut self, i: usize) -> &mut [f32] {
        &mut self.x[i * self.d..(i + 1) * self.d]
    }

    fn col(&mut self, j: usize) -> &mut [f32] {
        &mut self.y[j * self.d..(j + 1) * self.d]
    }
}

/// Everything that mining gives, values as bits, -0 as +0 and every NaN alike.
#[derive(Debug, PartialEq, Eq)]
struct Result {
    positive: Vec<u32>,
    rows: (Vec<u32>, Vec<i32>),
    cols: (Vec<u32>, Vec<i32>),
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { u32::MAX } else { (v + 0.0).to_bits() }).collect()
}

struct Buffers {
    x: Guarded<f32>,
    y: Guarded<f32>,
    ids: Option<(Guarded<i64>, Guarded<i64>)>,
    floats: [Guarded<f32>; 3],
    ints: [Guarded<i32>; 2],
    report: Guarded<u32>,
    workspace: Guarded<u8>,
}

impl Buffers {
    fn new(stream: &Arc<CudaStream>, r: &Rows) -> Self {
        let floats = [r.n.min(r.m), r.n, r.m].map(|len| Guarded::poisoned(stream, len));
        let ints = [r.n, r.m].map(|len| Guarded::poisoned(stream, len));
        let bytes = mine_workspace_bytes(r.n, r.m, r.d, DType::F32, r.normalization, false).unwrap();
        Self {
            x: Guarded::of(stream, &r.x),
            y: Guarded::of(stream, &r.y),
            ids: r.groups.as_ref().map(|(x, y)| (Guarded::of(stream, x), Guarded::of(stream, y))),
            floats,
            ints,
            report: Guarded::poisoned(stream, 2),
            workspace: Guarded::poisoned(stream, bytes),
        }
    }

    fn enqueue(&mut self, kernels: &Kernels, stream: &Arc<CudaStream>, r: &Rows) {
        let options = DeviceMineOptions {
            normalization: r.normalization,
            groups: self.ids.as_ref().map(|(x, y)| DeviceGroups { rows: x.view(), cols: y.view() }),
        };
        let x = DeviceMat::new(self.x.view(), r.n, r.d).unwrap();
        let y = DeviceMat::new(self.y.view(), r.m, r.d).unwrap();
        let [positive, row_value, col_value] = &mut self.floats;
        let [row_index, col_index] = &mut self.ints;
        let mut out = DeviceMined {
            positive: positive.view_mut(),
            rows: DeviceHardest { value: row_value.view_mut(), index: row_index.view_mut(), second: None },
            cols: DeviceHardest { value: col_value.view_mut(), index: col_index.view_mut(), second: None },
            screen: Some(self.report.view_mut()),
        };
        mine(kernels, stream, &x, &y, &options, &mut out, &mut self.workspace.view_mut()).unwrap();
    }

    fn result(&self, stream: &Arc<CudaStream>) -> (Result, u32, ScreenOutcome) {
        let values = |at: usize, name: &str| bits(&self.floats[at].read(stream, name));
        let (positive, row_value, col_value) =
            (values(0, "positive"), values(1, "rows.value"), values(2, "cols.value"));
        let report = self.report.read(stream, "screen");
        let rows = (row_value, self.ints[0].read(stream, "rows.index"));
        let cols = (col_value, self.ints[1].read(stream, "cols.index"));
        (Result { positive, rows, cols }, report[0], ScreenOutcome::from_word(report[1]).expect("an outcome"))
    }
}

fn mined(kernels: &Kernels, stream: &Arc<CudaStream>, r: &Rows, screens: bool) -> (Result, u32, ScreenOutcome) {
    let mut buffers = Buffers::new(stream, r);
    kernels.force_screen(Some(screens));
    buffers.enqueue(kernels, stream, r);
    kernels.force_screen(None);
    buffers.result(stream)
}

/// Compares with mining in f32. Returns the number of pairs that were looked at again.
fn check(name: &str, r: &Rows, outcome: ScreenOutcome) -> u32 {
    let Some((context, kernels)) = device() else { return 0 };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (want, none, not_used) = mined(kernels, &stream, r, false);
    assert_eq!((none, not_used), (0, ScreenOutcome::NotUsed), "{name}");
    let mut counts = Vec::new();
    // In the scheme of large tiles as well, where there is one, and with the other kernel of the two sweeps.
    for scheme in [None, Some(Scheme::WarpMma), Some(Scheme::GroupMma)] {
        kernels.force_scheme(scheme);
        let (got, count, how) = mined(kernels, &stream, r, true);
        kernels.force_scheme(None);
        assert_eq!(how, outcome, "{name}, {scheme:?}");
        assert_eq!(got, want, "{name}, {scheme:?}");
        counts.push(count);
    }
    counts[0]
}

const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (2, 300, 7), (129, 127, 33), (257, 130, 64), (300, 520, 40), (64, 64, 1100)];

#[test]
fn a_screen_changes_no_bit() {
    for (at, shape) in SHAPES.into_iter().enumerate() {
        let r = Rows::random(shape, 10 + at as u64);
        let name = format!("{shape:?}");
        let count = check(&name, &r, ScreenOutcome::Used);
        if device().is_some() && shape.0 > 1 {
            let lines = (shape.0 + shape.1) as u32;
            assert!((lines / 2..4 * lines).contains(&count), "{name}: {count} candidates");
        }
        check(&format!("{name}, groups"), &r.clone().grouped(5), ScreenOutcome::Used);
        check(&format!("{name}, as they are"), &r.plain().grouped(3), ScreenOutcome::Used);
    }
}

/// The similarity of rows rounded by `round`, and of the rows.
fn rounded_disagrees(r: &Rows, round: fn(f32) -> f32) -> usize {
    let best = |f: &dyn Fn(f32) -> f32| -> Vec<usize> {
        let dot = |i: usize, j: usize| -> f64 {
            let (x, y) = (&r.x[i * r.d..][..r.d], &r.y[j * r.d..][..r.d]);
            x.iter().zip(y).map(|(&a, &b)| f64::from(f(a)) * f64::from(f(b))).sum()
        };
        let hardest = |i: usize| {
            (0..r.m).filter(|&j| j != i).max_by(|&a, &b| dot(i, a).total_cmp(&dot(i, b)).then(b.cmp(&a))).unwrap()
        };
        (0..r.n).map(hardest).collect()
    };
    let (exact, rounded) = (best(&|v| v), best(&round));
    exact.iter().zip(&rounded).filter(|(a, b)| a != b).count()
}

/// Columns so close to each other that 16 bits put others first.
fn close(normalization: Normalization) -> Rows {
    let (n, m, d) = (70, 140, 48);
    let mut r = Rows { normalization, ..Rows::random((n, m, d), 90) };
    let center: Vec<f32> = r.col(0).to_vec();
    let step = numbers::<f32>(m * d, 91);
    for j in 0..m {
        let length = if normalization == Normalization::L2 { 3e-4 } else { 3e-3 };
        for (k, v) in r.col(j).iter_mut().enumerate() {
            *v = center[k] * (1.0 + length * step[j * d + k]);
        }
    }
    let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
    if normalization == Normalization::L2 {
        for i in 0..n {
            let length = norm(r.row(i));
            r.row(i).iter_mut().for_each(|v| *v /= length);
        }
        for j in 0..m {
            let length = norm(r.col(j));
            r.col(j).iter_mut().for_each(|v| *v /= length);
        }
    }
    r
}

#[test]
fn what_16_bits_would_get_wrong_is_right() {
    let l2 = close(Normalization::L2);
    assert!(rounded_disagrees(&l2, |v| f16::from_f32(v).to_f32()) > 20, "the rows are too easy");
    let plain = close(Normalization::None);
    assert!(rounded_disagrees(&plain, |v| bf16::from_f32(v).to_f32()) > 20, "the rows are too easy");
    for (name, r) in [("normalised", l2), ("as they are", plain)] {
        let Some((context, kernels)) = device() else { return };
        let stream = context.new_stream().unwrap();
        let turn = turn();
        let (_, _, outcome) = mined(kernels, &stream, &r, true);
        drop(turn);
        // All columns come into question for all rows: whether the list is long enough is not the point.
        let count = check(name, &r, outcome);
        assert!(outcome == ScreenOutcome::Overflow || count > 210 * 2, "{name}: {count}, {outcome:?}");
    }
}

#[test]
fn equal_similarities_keep_the_lowest_index() {
    let mut r = Rows::random((140, 300, 24), 40);
    for j in [7, 130, 131, 299] {
        let other = r.col(5).to_vec();
        r.col(j).copy_from_slice(&other);
    }
    for i in [100, 139] {
        let other = r.row(60).to_vec();
        r.row(i).copy_from_slice(&other);
    }
    check("repeated", &r, ScreenOutcome::Used);
    check("repeated, groups", &r.grouped(4), ScreenOutcome::Used);
}

#[test]
fn zero_rows_and_anchors_without_a_negative_are_those_of_f32() {
    let mut r = Rows::random((40, 35, 17), 50);
    for i in [0, 9, 39] {
        r.row(i).fill(0.0);
    }
    r.col(9).fill(-0.0);
    r.col(20).fill(0.0);
    check("zeros", &r, ScreenOutcome::Used);
    let alone = Rows { groups: Some((vec![1; 40], vec![1; 35])), ..r };
    check("one group", &alone, ScreenOutcome::Used);
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let (result, count, _) = mined(kernels, &context.new_stream().unwrap(), &alone, true);
    assert!(count == 0 && result.rows.1.iter().chain(&result.cols.1).all(|&i| i == NONE));
}

#[test]
fn rows_that_are_not_fit_are_mined_in_f32() {
    for (name, value) in [("NaN", f32::NAN), ("infinity", f32::INFINITY), ("-infinity", f32::NEG_INFINITY)] {
        for normalization in [Normalization::L2, Normalization::None] {
            let mut r = Rows { normalization, ..Rows::random((130, 70, 12), 60) };
            r.row(129)[11] = value;
            check(name, &r, ScreenOutcome::Unfit);
            let mut r = Rows { normalization, ..Rows::random((20, 131, 12), 61) };
            r.col(130)[0] = value;
            check(name, &r, ScreenOutcome::Unfit);
        }
    }
    // Similarities beyond f32, and rows whose norm alone is.
    for factor in [1e19, 1e37] {
        let mut r = Rows::random((50, 60, 12), 62).plain();
        r.row(3).iter_mut().for_each(|v| *v *= factor);
        check("huge", &r, ScreenOutcome::Unfit);
    }
}

#[test]
fn rows_of_any_norm_are_mined_as_in_f32() {
    // Normalised they are ordinary.
    for factor in [1e-38, 1e-20, 1e18, 1e30] {
        let mut r = Rows::random((60, 50, 12), 70);
        r.x.iter_mut().step_by(3).for_each(|v| *v *= 1e-3);
        r.x.iter_mut().for_each(|v| *v *= factor);
        check("scaled", &r, ScreenOutcome::Used);
    }
    // As they are, bounds hold for norms of all sizes; below the floor of the norms they exclude nobody.
    for (factor, count) in [(1e12, 0), (1e-9, 0), (1e-19, 1), (1e-30, 1), (1e-42, 1)] {
        let mut r = Rows::random((20, 30, 12), 71).plain();
        r.x.iter_mut().for_each(|v| *v *= factor);
        r.y.iter_mut().for_each(|v| *v *= factor);
        let Some((context, kernels)) = device() else { return };
        let turn_taken = turn();
        let (_, _, outcome) = mined(kernels, &context.new_stream().unwrap(), &r, true);
        drop(turn_taken);
        assert!(matches!(outcome, ScreenOutcome::Used | ScreenOutcome::Overflow), "{factor}: {outcome:?}");
        let again = check("small", &r, outcome);
        assert!(count == 0 || outcome == ScreenOutcome::Overflow || again > 250, "{factor}: {again}");
    }
    // Large and small rows beside each other.
    let mut r = Rows::random((120, 140, 20), 72).plain();
    for i in 0..120 {
        let factor = 10f32.powi(i as i32 % 7 - 3);
        r.row(i).iter_mut().for_each(|v| *v *= factor);
    }
    check("mixed", &r, ScreenOutcome::Used);
}

#[test]
fn too_many_candidates_are_mined_in_f32() {
    let mut r = Rows::random((150, 200, 16), 80);
    let row = r.row(0).to_vec();
    for j in 0..200 {
        r.col(j).copy_from_slice(&row);
    }
    check("all columns equal", &r, ScreenOutcome::Overflow);
}

#[test]
fn a_screen_is_captured_and_replayed_and_counts_the_same_every_time() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let r = Rows::random((260, 390, 32), 95);
    let mut buffers = Buffers::new(&stream, &r);
    kernels.force_screen(Some(true));
    let graph = capture(&stream, || buffers.enqueue(kernels, &stream, &r));
    kernels.force_screen(None);
    assert_eq!(kernel_nodes(&graph), 8, "launches with a screen");
    let mut first = None;
    for seed in [95, 97, 95] {
        let other = Rows::random((r.n, r.m, r.d), seed);
        buffers.x.set(&stream, &other.x);
        buffers.y.set(&stream, &other.y);
        graph.launch().unwrap();
        let got = buffers.result(&stream);
        let (want, ..) = mined(kernels, &stream, &other, false);
        assert_eq!(got.0, want);
        match (&first, seed) {
            (Some(first), 95) => assert_eq!(&got, first, "the same rows again"),
            (None, _) => first = Some(got),
            _ => {}
        }
    }
}
