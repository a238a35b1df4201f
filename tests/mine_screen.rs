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

/// Everything that mining gives, values as bits.
#[derive(Debug, PartialEq, Eq)]
struct Result {
    positive: Vec<u32>,
    rows: (Vec<u32>, Vec<i32>),
    cols: (Vec<u32>, Vec<i32>),
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
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

/// Blocks with several tiles, whose batches and pipelines go on from one to the next.
#[test]
fn a_screen_of_many_tiles_changes_no_bit() {
    check("many tiles", &Rows::random((2200, 2300, 16), 20), ScreenOutcome::Used);
}

/// How far rounding to 16 bits misleads: `middle ± offset` is rounded up and down by nearly half a unit in the last place.
#[derive(Clone, Copy)]
struct Misled {
    middle: f32,
    offset: f32,
    /// By which what is rounded down is larger in the end.
    more: f32,
    /// Of the rows that are rounded, which are normalised then.
    norm: Option<f32>,
}

const D: usize = 40;

impl Misled {
    fn new(bits: i32, offset: i32, more: i32, norm: Option<f32>) -> Self {
        let power = |e: i32| 0.5f32.powi(e);
        Self { middle: 1.0 + power(bits + 1), offset: power(offset), more: power(more), norm }
    }

    /// A row with these elements from feature 0 on, filled up to the norm in features from `fill_at` on.
    fn row(&self, elements: &[f32], fill_at: usize) -> Vec<f32> {
        let mut v = vec![0.0; D];
        v[..elements.len()].copy_from_slice(elements);
        if let Some(norm) = self.norm {
            // A coarse part that 16 bits hold, and what is left.
            let left = |v: &[f32]| (norm * norm - v.iter().map(|v| v * v).sum::<f32>()).sqrt();
            v[fill_at] = (left(&v) * 16.0).floor() / 16.0;
            v[fill_at + 1] = left(&v);
        }
        v
    }

    fn rows(&self, anchor: Vec<f32>, closer: Vec<f32>, other: Vec<f32>, one: Vec<f32>) -> Rows {
        let small = |seed: u64| -> Vec<f32> { numbers::<f32>(D, seed).iter().map(|v| v * 0.01).collect() };
        let x = [anchor, closer, small(2)].concat();
        let y = [small(3), other, one, small(4), small(5)].concat();
        let normalization = if self.norm.is_some() { Normalization::L2 } else { Normalization::None };
        Rows { n: 3, m: 5, d: D, x, y, groups: None, normalization }
    }

    /// Row 0 is told from 16 bits, and its candidates 1 and 2 are rounded. Row 1 is closer to 2 than row 0 is, so that
    /// nothing but the bound of row 0 brings that up; it has no error of its own.
    fn candidates(&self) -> Rows {
        let of = |element: f32, last: f32| [vec![element; 32], vec![last]].concat();
        let closer = [vec![0.75; 28], vec![0.5]].concat();
        let closer = [closer, vec![0.0; D - 29]].concat();
        let closer = if self.norm.is_some() { closer } else { closer.iter().map(|v| v * 4.0).collect() };
        self.rows(
            self.row(&of(1.0, 1.0), 33),
            closer,
            self.row(&of(self.middle + self.offset, 0.0), 35),
            self.row(&of(self.middle - self.offset, self.more), 35),
        )
    }

    /// Row 0 is rounded, and its candidates 1 and 2 are not.
    fn anchor(&self) -> Rows {
        let exact = |first: f32, second: f32, last: f32| {
            [vec![first; 16], vec![second; 16], vec![last], vec![0.0; D - 33]].concat()
        };
        let elements = [vec![self.middle + self.offset; 16], vec![self.middle - self.offset; 16], vec![1.0]].concat();
        self.rows(self.row(&elements, 33), exact(0.0, 4.0, 0.0), exact(1.0, 0.0, 0.0), exact(0.0, 1.0, self.more))
    }
}

#[test]
fn errors_of_nearly_the_bound_exclude_nobody() {
    type Round = fn(f32) -> f32;
    let plain = Misled::new(7, 20, 10, None);
    let normalised = Misled::new(10, 18, 9, Some(8.0));
    let bf16: Round = |v| bf16::from_f32(v).to_f32();
    // By a power of two, which the norm is.
    let f16: Round = |v| f16::from_f32(v / 8.0).to_f32() * 8.0;
    for (name, r, round) in [
        ("candidates in bf16", plain.candidates(), bf16),
        ("an anchor in bf16", plain.anchor(), bf16),
        ("candidates in f16", normalised.candidates(), f16),
        ("an anchor in f16", normalised.anchor(), f16),
    ] {
        let dot =
            |j: usize, f: Round| -> f64 { (0..D).map(|k| f64::from(f(r.x[k])) * f64::from(f(r.y[j * D + k]))).sum() };
        assert!(dot(2, |v| v) > dot(1, |v| v) && dot(2, round) < dot(1, round), "{name}: nobody is misled");
        check(name, &r, ScreenOutcome::Used);
        let turned = Rows { n: r.m, m: r.n, x: r.y.clone(), y: r.x.clone(), ..r.clone() };
        check(&format!("{name}, turned"), &turned, ScreenOutcome::Used);
        let Some((context, kernels)) = device() else { return };
        let _turn = turn();
        let stream = context.new_stream().unwrap();
        assert_eq!(mined(kernels, &stream, &r, true).0.rows.1[0], 2, "{name}");
        assert_eq!(mined(kernels, &stream, &turned, true).0.cols.1[0], 2, "{name}");
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
    check("zeros, groups", &r.clone().grouped(3), ScreenOutcome::Used);
    // As many as fill up a batch: all of their similarities are alike, and none needs a place in the list.
    let mut padded = Rows::random((300, 310, 20), 51);
    (0..60).for_each(|i| padded.row(5 * i).fill(0.0));
    (0..150).for_each(|j| padded.col(2 * j).fill(0.0));
    check("padded", &padded, ScreenOutcome::Used);
    check("padded, groups", &padded.grouped(6), ScreenOutcome::Used);
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
    for factor in [1e12, 1e-9, 1e-19, 1e-30, 1e-42] {
        let mut r = Rows::random((20, 30, 12), 71).plain();
        r.x.iter_mut().for_each(|v| *v *= factor);
        r.y.iter_mut().for_each(|v| *v *= factor);
        let count = check("small", &r, ScreenOutcome::Used);
        assert!(factor > 1e-18 || count == 20 * 30 - 20 || device().is_none(), "{factor}: {count}");
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

#[test]
fn a_bad_buffer_for_the_report_is_refused_and_none_is_needed() {
    use simgrad::Error;
    use simgrad::cuda::raw::{self, RawHardest, RawMine};
    use simgrad::cuda::{RawBuf, RawMat};
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    // Rows inside of wider ones, which are read where they lie.
    let (n, m, d, ld) = (150, 140, 12, 20);
    let wide = Rows::random((n, m, ld), 33);
    let narrow = |v: &[f32]| v.chunks(ld).flat_map(|row| row[..d].to_vec()).collect::<Vec<_>>();
    let r = Rows { d, x: narrow(&wide.x), y: narrow(&wide.y), ..wide.clone().plain() };
    let (want, ..) = mined(kernels, &stream, &r, false);

    let mut b = Buffers::new(&stream, &r);
    (b.x, b.y) = (Guarded::of(&stream, &wide.x), Guarded::of(&stream, &wide.y));
    let mut second = Guarded::<f32>::poisoned(&stream, n);
    let address = |view: &cudarc::driver::CudaView<'_, f32>| {
        use cudarc::driver::DevicePtr;
        view.device_ptr(&stream).0
    };
    let [x, y] = [&b.x, &b.y].map(|buffer| address(&buffer.view()));
    let [positive, row_value, col_value] = [&b.floats[0], &b.floats[1], &b.floats[2]].map(|f| address(&f.view()));
    use cudarc::driver::DevicePtrMut;
    let [row_index, col_index] = [0, 1].map(|at| b.ints[at].view_mut().device_ptr_mut(&stream).0);
    let report = b.report.view_mut().device_ptr_mut(&stream).0;
    let bytes = mine_workspace_bytes(n, m, d, DType::F32, Normalization::None, true)
        .unwrap()
        .max(mine_workspace_bytes(n, m, d, DType::F32, Normalization::None, false).unwrap());
    let mut room = Guarded::<u8>::poisoned(&stream, bytes);
    let workspace = RawBuf::new(room.view_mut().device_ptr_mut(&stream).0, bytes);
    let matrix = |ptr, rows| RawMat { row_stride: ld, ..RawMat::new(ptr, rows, d, DType::F32) };
    let args = RawMine {
        x: matrix(x, n),
        y: matrix(y, m),
        normalization: Normalization::None,
        groups: None,
        positive: RawBuf::NULL,
        rows: RawHardest { value: RawBuf::new(row_value, n), index: RawBuf::new(row_index, n), second: RawBuf::NULL },
        cols: RawHardest { value: RawBuf::new(col_value, m), index: RawBuf::new(col_index, m), second: RawBuf::NULL },
        screen: RawBuf::NULL,
        workspace,
    };
    kernels.force_screen(Some(true));
    let mine = |args: &RawMine| {
        // SAFETY: the buffers are there until the stream is done.
        let result = unsafe { raw::mine(kernels, &stream, args) };
        stream.synchronize().unwrap();
        result
    };
    assert!(matches!(
        mine(&RawMine { screen: RawBuf::new(report, 1), ..args }),
        Err(Error::TooShort { arg: "screen", .. })
    ));
    assert!(matches!(
        mine(&RawMine { screen: RawBuf::new(report + 2, 2), ..args }),
        Err(Error::BadPointer { arg: "screen", .. })
    ));
    let overlapping = RawMine { positive: RawBuf::new(positive, m), screen: RawBuf::new(positive + 8, 2), ..args };
    assert!(matches!(mine(&overlapping), Err(Error::Overlap { .. })));
    let reported = |b: &Buffers| b.report.read(&stream, "screen");
    let untouched = reported(&b);

    mine(&args).unwrap();
    assert_eq!(reported(&b), untouched);
    assert_eq!(bits(&b.floats[1].read(&stream, "rows.value")), want.rows.0);
    assert_eq!(b.ints[1].read(&stream, "cols.index"), want.cols.1);
    mine(&RawMine { positive: RawBuf::new(positive, m), screen: RawBuf::new(report, 2), ..args }).unwrap();
    let (got, count, outcome) = b.result(&stream);
    assert_eq!((got, outcome), (want, ScreenOutcome::Used));
    assert!(count > 0);
    // Second-best values take the way without.
    let second = RawBuf::new(second.view_mut().device_ptr_mut(&stream).0, n);
    mine(&RawMine { rows: RawHardest { second, ..args.rows }, screen: RawBuf::new(report, 2), ..args }).unwrap();
    assert_eq!(reported(&b), [0, ScreenOutcome::NotUsed as u32]);
    kernels.force_screen(None);
}
