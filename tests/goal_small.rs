//! The GOAL step in three launches against the one in four, bit for bit. That the result is right, tests/goal.rs checks.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{Guarded, Step, capture, device, kernel_nodes, numbers, turn};
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use simgrad::cuda::raw::{self, RawGoalStep, RawGroups, RawUpstream};
use simgrad::cuda::{
    DeviceElement, DeviceStepOptions, Kernels, RawBuf, RawMat, goal_detail_from_words, goal_detail_len,
    goal_step_launches, goal_step_workspace_bytes,
};
use simgrad::{GradientOf, Normalization, Objective, StepDetail, StepReport, WriteMode};

/// Inputs and options of a step.
struct Case<T> {
    x: Vec<T>,
    y: Vec<T>,
    n: usize,
    d: usize,
    objective: Objective,
    normalization: Normalization,
    groups: Option<[Vec<i64>; 2]>,
    /// From the device, or a factor of 1.
    upstream: Option<f32>,
    write: WriteMode,
    detail: bool,
    /// Elements between the rows of all matrices: with an odd number, rows are not aligned.
    gap: usize,
}

/// What a step wrote.
struct Written {
    dx: Vec<u8>,
    dy: Vec<u8>,
    report: Vec<u8>,
    detail: Vec<u32>,
}

impl Written {
    fn report(&self) -> StepReport {
        *bytemuck::from_bytes(&self.report)
    }

    fn detail(&self, n: usize) -> StepDetail<f32> {
        goal_detail_from_words(n, &self.detail)
    }
}

impl<T: DeviceElement> Case<T> {
    fn new(n: usize, d: usize, objective: &str, seed: u64) -> Self {
        Self {
            x: numbers(n * d, seed),
            y: numbers(n * d, seed + 1),
            n,
            d,
            objective: objective.parse().expect("a name"),
            normalization: Normalization::L2,
            groups: None,
            upstream: None,
            write: WriteMode::Overwrite,
            detail: false,
            gap: 0,
        }
    }

    fn with_groups(mut self, kinds: usize) -> Self {
        let ids = |seed: u64| numbers::<f32>(self.n, seed).iter().map(|v| (v * kinds as f32) as i64).collect();
        self.groups = Some([ids(5), ids(6)]);
        self
    }

    /// The elements with gaps between the rows.
    fn spread(&self, stream: &Arc<CudaStream>, values: &[T]) -> Guarded<T> {
        let mut out = vec![T::from_f64(0.0); self.n * (self.d + self.gap)];
        for (to, from) in out.chunks_mut(self.d + self.gap).zip(values.chunks(self.d)) {
            to[..self.d].copy_from_slice(from);
        }
        Guarded::of(stream, &out)
    }

    fn matrix<V>(&self, view: CudaView<'_, V>, stream: &CudaStream, dtype: simgrad::DType) -> RawMat {
        RawMat { row_stride: self.d + self.gap, ..RawMat::new(view.device_ptr(stream).0, self.n, self.d, dtype) }
    }

    fn run<G: GradientOf<T> + DeviceElement>(
        &self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        four: bool,
    ) -> Written {
        let (n, d) = (self.n, self.d);
        let (x, y) = (self.spread(stream, &self.x), self.spread(stream, &self.y));
        let before = |seed| match self.write {
            WriteMode::Overwrite => Guarded::<G>::poisoned(stream, n * (d + self.gap)),
            _ => Guarded::of(stream, &numbers::<G>(n * (d + self.gap), seed)),
        };
        let (mut dx, mut dy) = (before(8), before(9));
        let groups = self.groups.as_ref().map(|g| [Guarded::of(stream, &g[0]), Guarded::of(stream, &g[1])]);
        let upstream = self.upstream.map(|u| Guarded::of(stream, &[u]));
        let mut report: CudaSlice<StepReport> = stream
            .clone_htod(&[StepReport { loss: f64::NAN, overflow: 77, pairs: 7, ..StepReport::default() }])
            .unwrap();
        let mut detail = Guarded::<u32>::poisoned(stream, if self.detail { goal_detail_len(n) } else { 0 });
        let bytes =
            goal_step_workspace_bytes(n, d, T::DTYPE, &self.objective, self.normalization, self.detail).unwrap();
        let mut workspace = Guarded::<u8>::poisoned(stream, bytes);
        let args = RawGoalStep {
            x: self.matrix(x.view(), stream, T::DTYPE),
            y: self.matrix(y.view(), stream, T::DTYPE),
            objective: &self.objective,
            normalization: self.normalization,
            groups: groups
                .as_ref()
                .map(|[rows, cols]| RawGroups { rows: buf(rows.view(), stream), cols: buf(cols.view(), stream) }),
            upstream: upstream.as_ref().map_or(RawUpstream::Host(1.0), |u| RawUpstream::Device(buf(u.view(), stream))),
            write: self.write,
            dx: self.matrix(dx.view(), stream, G::DTYPE),
            dy: self.matrix(dy.view(), stream, G::DTYPE),
            report: buf_mut(report.as_view_mut(), stream),
            detail: if self.detail { buf_mut(detail.view_mut(), stream) } else { RawBuf::NULL },
            workspace: buf_mut(workspace.view_mut(), stream),
        };
        // SAFETY: the buffers live until the stream has been waited for.
        let enqueued = unsafe {
            if four { raw::goal_step_in_four(kernels, stream, &args) } else { raw::goal_step(kernels, stream, &args) }
        };
        enqueued.unwrap();
        // Guards included: nothing is written beside the workspace.
        workspace.read(stream, "workspace");
        // NaNs that arithmetic makes are all the same on a device, but not on every emulator of one.
        let canonical = |v: G| if v.to_f64().is_nan() { G::from_f64(f64::NAN) } else { v };
        let bytes = |out: &mut Guarded<G>, name| {
            let written: Vec<G> = out.read(stream, name).into_iter().map(canonical).collect();
            bytemuck::cast_slice(&written).to_vec()
        };
        Written {
            dx: bytes(&mut dx, "dx"),
            dy: bytes(&mut dy, "dy"),
            report: bytemuck::bytes_of(&stream.clone_dtoh(&report).unwrap()[0]).to_vec(),
            detail: detail.read(stream, "detail"),
        }
    }

    /// Runs both and returns what they wrote, which is the same.
    #[track_caller]
    fn check<G: GradientOf<T> + DeviceElement>(&self) -> Option<Written> {
        let (context, kernels) = device()?;
        let _turn = turn();
        let stream = context.new_stream().unwrap();
        let (three, four) = (self.run::<G>(kernels, &stream, false), self.run::<G>(kernels, &stream, true));
        let name = format!("{} {}->{} n={} d={}", self.objective, T::DTYPE, G::DTYPE, self.n, self.d);
        // Bits: -0 is not 0.
        assert!(three.report == four.report, "{name}: {:?} and {:?}", three.report(), four.report());
        assert!(three.detail == four.detail, "{name}: {:?} and {:?}", three.detail(self.n), four.detail(self.n));
        assert!(three.dx == four.dx, "{name}: dx");
        assert!(three.dy == four.dy, "{name}: dy");
        assert_eq!(three.report().pairs, self.n as u32);
        context.check_err().unwrap();
        Some(three)
    }
}

fn buf<T>(view: CudaView<'_, T>, stream: &CudaStream) -> RawBuf {
    RawBuf::new(view.device_ptr(stream).0, view.len())
}

fn buf_mut<T>(mut view: CudaViewMut<'_, T>, stream: &CudaStream) -> RawBuf {
    let len = view.len();
    RawBuf::new(view.device_ptr_mut(stream).0, len)
}

/// One of the combinations of what a step takes, so that over all objectives each value of each meets many others.
fn combination<T: DeviceElement, G: GradientOf<T> + DeviceElement>(at: usize, objective: &Objective) {
    let sizes = [(1, 5), (2, 8), (31, 40), (33, 64), (40, 257), (65, 9), (129, 33), (130, 16)];
    let (n, d) = sizes[at % sizes.len()];
    let mut case = Case::<T>::new(n, d, "con-con", at as u64);
    case.objective = *objective;
    case.normalization = if at % 3 == 2 { Normalization::None } else { Normalization::L2 };
    case.upstream = (at % 4 == 1).then_some(-0.75);
    case.write = if at % 5 < 2 { WriteMode::Accumulate } else { WriteMode::Overwrite };
    case.detail = at % 2 == 1;
    case.gap = [0, 3, 8][at % 3];
    if at % 7 < 3 {
        case = case.with_groups(3);
    }
    case.check::<G>();
}

#[test]
fn every_objective_and_type() {
    for (at, objective) in Objective::all().iter().enumerate() {
        combination::<f32, f32>(at, objective);
        combination::<f16, f16>(at + 1, objective);
        combination::<f16, f32>(at + 2, objective);
        combination::<bf16, bf16>(at + 3, objective);
        combination::<bf16, f32>(at + 5, objective);
    }
}

/// Two and four pairs per block, several tiles, and as many pairs as there can be.
#[test]
fn more_pairs_per_block() {
    for (n, objective) in [(300, "nca-sig_ms"), (512, "hinge-con"), (513, "cir-lin_ms"), (1024, "nca-sig")] {
        let mut case = Case::<bf16>::new(n, 8, objective, 3);
        case.detail = n < 1024;
        let written = case.check::<f32>();
        assert!(written.is_none_or(|w| w.report().empty_it == 0 && w.report().loss.is_finite()), "{objective}");
    }
    Case::<f32>::new(1021, 3, "cir-sig_ms", 4).with_groups(4).check::<f32>();
}

/// One row per block at a time, rows of several rounds, and rows wider than a block is.
#[test]
fn wide_rows() {
    for (n, d) in [(5, 700), (3, 1100), (260, 1030), (2, 2049), (3, 4100)] {
        Case::<bf16>::new(n, d, "nca-sig", 5).check::<bf16>();
        let mut case = Case::<f32>::new(n.min(9), d, "con-lin_ms", 6);
        case.normalization = Normalization::None;
        case.check::<f32>();
    }
}

/// Row 7 of both sides is the hardest negative of almost every anchor.
#[test]
fn a_row_that_everyone_chooses() {
    let (n, d) = (390, 128);
    for objective in ["con-con", "cir-sig_ms"] {
        let mut case = Case::<f32>::new(n, d, objective, 7);
        for (rows, seed) in [(&mut case.x, 1), (&mut case.y, 2)] {
            let noise = numbers::<f32>(n * d, seed);
            for (i, row) in rows.chunks_mut(d).enumerate() {
                let spread = if i == 7 { 0.0 } else { 0.8 };
                row.iter_mut().zip(&noise[i * d..]).for_each(|(v, e)| *v = 1.0 + spread * e);
            }
        }
        case.detail = true;
        if let Some(written) = case.check::<f32>() {
            let detail = written.detail(n);
            for direction in [&detail.it, &detail.ti] {
                let of_seven = direction.neg_index.iter().filter(|&&i| i == 7).count();
                assert!(of_seven > n / 2, "{of_seven} anchors chose the row");
            }
        }
    }
}

/// Rows of NaN, infinity and zeros, and equal rows, among which the lowest index wins.
#[test]
fn special_rows() {
    let (n, d) = (140, 12);
    for (at, objective) in Objective::all().iter().enumerate().step_by(3) {
        let mut case = Case::<f32>::new(n, d, "con-con", at as u64);
        case.objective = *objective;
        case.detail = at % 2 == 0;
        case.x[3 * d] = f32::NAN;
        case.y[9 * d + 1] = f32::INFINITY;
        case.x[20 * d..21 * d].fill(0.0);
        case.y[130 * d..131 * d].fill(0.0);
        case.y.copy_within(40 * d..41 * d, 135 * d);
        case.x.copy_within(d..2 * d, 2 * d);
        if let Some(written) = case.check::<f32>() {
            let report = written.report();
            assert_eq!((report.nan_x, report.nan_y, report.zero_x, report.zero_y), (1, 1, 1, 1), "{objective}");
        }
        case.x[3 * d] = 1.0;
        case.y[9 * d + 1] = 1.0;
        case.check::<f32>();
    }
}

/// Every similarity is -infinity, the value of a split without a candidate: only the indices tell these apart.
#[test]
fn similarities_of_minus_infinity() {
    let (n, d) = (300, 2);
    for (objective, kinds) in [("con-con", 0), ("con-con", 2), ("con-lin_ms", 2), ("con-con", 1)] {
        let mut case = Case::<f32>::new(n, d, objective, 11);
        case.normalization = Normalization::None;
        case.detail = true;
        case.x.chunks_mut(d).for_each(|row| row[0] = 1.0 + row[0].abs());
        case.y.chunks_mut(d).for_each(|row| row[0] = f32::NEG_INFINITY);
        if kinds > 0 {
            // Some anchors have no candidate in the first tile, others in no but the first.
            let ids: Vec<i64> = (0..n).map(|i| if i < 128 { 0 } else { (i % kinds) as i64 }).collect();
            case.groups = Some([ids.clone(), ids]);
        }
        if let Some(written) = case.check::<f32>() {
            let index = written.detail(n).it.neg_index;
            let first = |i: usize| match kinds {
                0 => i32::from(i == 0),
                1 => -1,
                _ if i < 128 || i.is_multiple_of(2) => 129,
                _ => 0,
            };
            assert!((0..n).all(|i| index[i] == first(i)), "{objective}: {index:?}");
        }
    }
}

#[test]
fn overflows_are_counted() {
    for factor in [1.0f32, 1e9] {
        let mut case = Case::<f16>::new(70, 24, "con-con", 9);
        case.upstream = Some(factor);
        if let Some(written) = case.check::<f16>() {
            assert_eq!(written.report().overflow > 0, factor > 1.0, "{:?}", written.report());
        }
    }
}

#[test]
fn an_empty_batch_is_two_launches_and_a_report_of_zeros() {
    let written = Case::<f32>::new(0, 5, "nca-sig", 1).check::<f32>();
    assert!(written.is_none_or(|w| w.report() == StepReport::default()));
}

/// The launches of a step of `n` pairs, captured.
fn launches(n: usize) -> Option<usize> {
    let (context, kernels) = device()?;
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective = "hinge-con".parse().unwrap();
    let mut step = Step::<f32, f32>::new(&stream, n, 4, &objective, 1);
    let graph = capture(&stream, || step.enqueue(kernels, &stream, &objective, &DeviceStepOptions::default()).unwrap());
    Some(kernel_nodes(&graph))
}

#[test]
fn launches_are_as_stated() {
    for (n, expected) in [(0, 2), (1, 3), (128, 3), (1024, 3), (1025, 4)] {
        assert_eq!(goal_step_launches(n), expected);
        assert!(launches(n).is_none_or(|captured| captured == expected as usize), "n = {n}");
    }
}

/// Counters start at 0 in every replay, whatever the one before left.
#[test]
fn replays_count_afresh() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective: Objective = "cir-sig_ms".parse().unwrap();
    let options = || DeviceStepOptions { upstream: simgrad::cuda::Upstream::Host(1e9), ..DeviceStepOptions::default() };
    let (n, d) = (270, 10);
    let mut captured = Step::<f16, f16>::new(&stream, n, d, &objective, 1);
    let graph = capture(&stream, || captured.enqueue(kernels, &stream, &objective, &options()).unwrap());
    assert_eq!(kernel_nodes(&graph), 3);
    for seed in [1, 1, 30] {
        captured.x.set(&stream, &numbers(n * d, seed));
        captured.y.set(&stream, &numbers(n * d, seed + 1));
        graph.launch().unwrap();
        let mut eager = Step::<f16, f16>::new(&stream, n, d, &objective, seed);
        eager.enqueue(kernels, &stream, &objective, &options()).unwrap();
        let outcome = captured.outcome(&stream);
        assert_eq!(outcome, eager.outcome(&stream), "inputs {seed}");
        let report: &StepReport = bytemuck::from_bytes(&outcome.report);
        assert!(report.overflow > 0 && report.pairs == n as u32, "{report:?}");
    }
    context.check_err().unwrap();
}
