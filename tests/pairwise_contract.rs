//! What the pairwise step on device memory promises beside its results: waves, capture, workspace, launches, failures.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{
    Guarded, HOT_CALLS, by_groups, calls_between, capture, child, device, emulated, is_child, kernel_nodes, numbers,
    say, turn,
};
use cudarc::driver::{CudaSlice, CudaStream};
use half::{bf16, f16};
use simgrad::cuda::host::{self, Cuda};
use simgrad::cuda::raw::{self, RawPairwiseStep, RawUpstream};
use simgrad::cuda::*;
use simgrad::{
    DType, Error, GradientOf, MatMut, MatRef, Normalization, PairwiseObjective, PairwiseOptions, PairwiseReport,
    Precision, WriteMode, reference,
};

const L2: Normalization = Normalization::L2;

fn objective(name: &str) -> PairwiseObjective {
    name.parse().unwrap()
}

/// Everything that a step on device memory needs.
struct Step<T, G> {
    shape: [usize; 3],
    wave_bytes: usize,
    x: Guarded<T>,
    y: Guarded<T>,
    dx: Guarded<G>,
    dy: Guarded<G>,
    report: CudaSlice<PairwiseReport>,
    workspace: Guarded<u8>,
}

#[derive(Debug, PartialEq)]
struct Outcome<G> {
    dx: Vec<G>,
    dy: Vec<G>,
    report: PairwiseReport,
}

impl<T: DeviceElement, G: GradientOf<T> + DeviceElement> Step<T, G> {
    fn new(
        stream: &Arc<CudaStream>,
        [n, m, d]: [usize; 3],
        objective: &PairwiseObjective,
        wave_bytes: usize,
        seed: u64,
    ) -> Self {
        let bytes = pairwise_workspace_bytes(n, m, d, T::DTYPE, objective, L2, wave_bytes, 0, Precision::Full).unwrap();
        let report = PairwiseReport { loss: f64::NAN, overflow: 77, ..PairwiseReport::default() };
        Self {
            shape: [n, m, d],
            wave_bytes,
            x: Guarded::of(stream, &numbers(n * d, seed)),
            y: Guarded::of(stream, &numbers(m * d, seed + 1)),
            dx: Guarded::poisoned(stream, n * d),
            dy: Guarded::poisoned(stream, m * d),
            report: stream.clone_htod(&[report]).unwrap(),
            workspace: Guarded::poisoned(stream, bytes),
        }
    }

    fn enqueue(
        &mut self,
        kernels: &Kernels,
        stream: &CudaStream,
        objective: &PairwiseObjective,
        options: DevicePairwiseOptions<'_>,
    ) -> simgrad::Result<()> {
        let [n, m, d] = self.shape;
        let options = DevicePairwiseOptions { wave_bytes: self.wave_bytes, ..options };
        let x = DeviceMat::new(self.x.view(), n, d)?;
        let y = DeviceMat::new(self.y.view(), m, d)?;
        let mut dx = DeviceMatMut::new(self.dx.view_mut(), n, d)?;
        let mut dy = DeviceMatMut::new(self.dy.view_mut(), m, d)?;
        let report = &mut self.report.as_view_mut();
        let workspace = &mut self.workspace.view_mut();
        pairwise_step(kernels, stream, &x, &y, objective, &options, &mut dx, &mut dy, report, workspace)
    }

    fn outcome(&self, stream: &Arc<CudaStream>) -> Outcome<G> {
        self.workspace.read(stream, "workspace");
        Outcome {
            dx: self.dx.read(stream, "dx"),
            dy: self.dy.read(stream, "dy"),
            report: stream.clone_dtoh(&self.report).unwrap()[0],
        }
    }
}

fn plain() -> DevicePairwiseOptions<'static> {
    DevicePairwiseOptions::default()
}

fn largest_difference(got: &[f32], want: &[f64]) -> f64 {
    let largest = want.iter().fold(0.0f64, |a, w| a.max(w.abs()));
    got.iter().zip(want).fold(0.0f64, |a, (g, w)| a.max((f64::from(*g) - w).abs())) / largest
}

#[test]
fn waves_of_rows_add_up_to_the_whole_gradient() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let shape @ [n, m, d] = [300, 140, 12];
    let (x, y) = (numbers::<f32>(n * d, 5), numbers::<f32>(m * d, 6));
    let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
    for name in ["infonce", "siglip", "triplet-all"] {
        let objective = objective(name);
        let want = reference::pairwise_step(x, y, &objective, &PairwiseOptions::default());
        let outcome = |wave_bytes| {
            let mut step = Step::<f32, f32>::new(&stream, shape, &objective, wave_bytes, 5);
            step.enqueue(kernels, &stream, &objective, plain()).unwrap();
            step.outcome(&stream)
        };
        // Rows of weights are 256 columns wide: one row of tiles, and two, at a time.
        let (one, two, all) = (outcome(0), outcome(2 * 128 * 256 * 4), outcome(PAIRWISE_WAVE_BYTES));
        for found in [&one, &two, &all] {
            assert!(largest_difference(&found.dx, &want.dx) < 1e-5, "{name} dx");
            assert!(largest_difference(&found.dy, &want.dy) < 1e-5, "{name} dy");
            assert!((found.report.d_scale - want.report.d_scale).abs() < 1e-6, "{name}");
            assert!((found.report.loss / want.report.loss - 1.0).abs() < 1e-5, "{name}");
            assert_eq!(found.report.anchors_cols, want.report.anchors_cols, "{name}");
        }
        assert_eq!(one.dx, all.dx, "{name}: a row of X does not depend on the waves");
    }
}

#[test]
fn waves_of_16_bit_rows_add_up_too() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let shape @ [n, m, d] = [270, 140, 24];
    let (x, y) = (numbers::<bf16>(n * d, 5), numbers::<bf16>(m * d, 6));
    let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
    let objective = objective("infonce");
    let want = reference::pairwise_step(x, y, &objective, &PairwiseOptions::default());
    let outcome = |wave_bytes| {
        let mut step = Step::<bf16, f32>::new(&stream, shape, &objective, wave_bytes, 5);
        step.enqueue(kernels, &stream, &objective, plain()).unwrap();
        step.outcome(&stream)
    };
    let (one, all) = (outcome(0), outcome(PAIRWISE_WAVE_BYTES));
    for found in [&one, &all] {
        assert!(largest_difference(&found.dx, &want.dx) < 6e-3 && largest_difference(&found.dy, &want.dy) < 6e-3);
    }
    assert_eq!(one.dx, all.dx, "a row of X does not depend on the waves");
}

fn launches_of(objective: &PairwiseObjective, waves: usize) -> usize {
    2 * waves
        + match objective.name() {
            "siglip" => 3,
            "triplet-all" => 5,
            "ms-mined" => 6,
            _ => 4,
        }
}

fn replay_equals_eager<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    name: &str,
    shape @ [n, m, d]: [usize; 3],
    wave_bytes: usize,
    waves: usize,
) {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective = objective(name);
    let mut captured = Step::<T, G>::new(&stream, shape, &objective, wave_bytes, 1);
    let graph = capture(&stream, || captured.enqueue(kernels, &stream, &objective, plain()).unwrap());
    // f16 rows are split for products by warpgroups.
    let split = usize::from(T::DTYPE == DType::F16 && by_groups(kernels));
    assert_eq!(kernel_nodes(&graph), launches_of(&objective, waves) + split, "{name}: launches of a step");
    for seed in [1, 40] {
        captured.x.set(&stream, &numbers(n * d, seed));
        captured.y.set(&stream, &numbers(m * d, seed + 1));
        graph.launch().unwrap();
        let mut eager = Step::<T, G>::new(&stream, shape, &objective, wave_bytes, seed);
        eager.enqueue(kernels, &stream, &objective, plain()).unwrap();
        assert_eq!(captured.outcome(&stream), eager.outcome(&stream), "{name}, inputs {seed}");
    }
    context.check_err().unwrap();
}

#[test]
fn a_captured_step_is_kernels_alone_and_replays_with_other_inputs() {
    replay_equals_eager::<bf16, f32>("infonce", [40, 40, 24], PAIRWISE_WAVE_BYTES, 1);
    replay_equals_eager::<f32, f32>("infonce", [140, 30, 8], 0, 2);
    replay_equals_eager::<f16, f32>("siglip", [140, 30, 8], 0, 2);
    replay_equals_eager::<bf16, bf16>("ms-mined", [40, 20, 9], PAIRWISE_WAVE_BYTES, 1);
    replay_equals_eager::<f32, f32>("triplet-all", [10, 20, 9], PAIRWISE_WAVE_BYTES, 1);
}

#[test]
fn a_set_with_itself_can_be_captured() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (n, d, objective) = (20, 8, objective("supcon"));
    let x = Guarded::of(&stream, &numbers::<f32>(n * d, 1));
    let ids = Guarded::of(&stream, &(0..n as i64).map(|i| i % 4).collect::<Vec<i64>>());
    let mut dx = Guarded::<f32>::poisoned(&stream, n * d);
    let mut report = stream.clone_htod(&[PairwiseReport::default()]).unwrap();
    let bytes =
        pairwise_single_workspace_bytes(n, d, DType::F32, &objective, L2, PAIRWISE_WAVE_BYTES, 0, Precision::Full)
            .unwrap();
    let mut work = Guarded::poisoned(&stream, bytes);
    let graph = capture(&stream, || {
        let groups = Some(DeviceGroups { rows: ids.view(), cols: ids.view() });
        let options = DevicePairwiseOptions { groups, ..plain() };
        let x = DeviceMat::new(x.view(), n, d).unwrap();
        let mut dx = DeviceMatMut::new(dx.view_mut(), n, d).unwrap();
        let (report, work) = (&mut report.as_view_mut(), &mut work.view_mut());
        pairwise_step_single(kernels, &stream, &x, &objective, &options, &mut dx, report, work).unwrap();
    });
    assert_eq!(kernel_nodes(&graph), 6);
    graph.launch().unwrap();
    assert!(dx.read(&stream, "dx").iter().all(|v| v.is_finite()));
    work.read(&stream, "workspace");
    assert_eq!(stream.clone_dtoh(&report).unwrap()[0].positives, 4 * 5 * 4);
}

#[test]
fn results_do_not_depend_on_what_was_in_the_workspace() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    for objective in PairwiseObjective::ALL {
        let mut step = Step::<f32, f32>::new(&stream, [20, 33, 6], &objective, PAIRWISE_WAVE_BYTES, 5);
        step.enqueue(kernels, &stream, &objective, plain()).unwrap();
        let first = step.outcome(&stream);
        // As the first step left it, then another bit pattern.
        for fill in [None, Some(0x55)] {
            if let Some(byte) = fill {
                let len = step.workspace.view().len();
                step.workspace.set(&stream, &vec![byte; len]);
            }
            step.dx.poison(&stream);
            step.dy.poison(&stream);
            step.enqueue(kernels, &stream, &objective, plain()).unwrap();
            assert_eq!(step.outcome(&stream), first, "{objective}, workspace {fill:?}");
        }
    }
}

#[test]
fn the_factor_from_the_device_is_the_factor_from_the_host() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective = objective("siglip");
    let factor = Guarded::of(&stream, &[-3.0f32]);
    let outcome = |upstream| {
        let mut step = Step::<f32, f32>::new(&stream, [20, 20, 8], &objective, PAIRWISE_WAVE_BYTES, 5);
        step.enqueue(kernels, &stream, &objective, DevicePairwiseOptions { upstream, ..plain() }).unwrap();
        step.outcome(&stream)
    };
    assert_eq!(outcome(Upstream::Host(-3.0)), outcome(Upstream::Device(factor.view())));
}

#[test]
fn what_the_host_can_see_to_be_wrong_is_refused() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective = objective("infonce");
    let mat = |ptr| RawMat::new(ptr, 4, 8, DType::F32);
    let bytes =
        pairwise_workspace_bytes(4, 4, 8, DType::F32, &objective, L2, PAIRWISE_WAVE_BYTES, 0, Precision::Full).unwrap();
    let good = RawPairwiseStep {
        x: mat(0x1000),
        y: Some(mat(0x2000)),
        objective: &objective,
        normalization: L2,
        groups: None,
        ignore_rows: RawBuf::NULL,
        ignore_cols: RawBuf::NULL,
        row_weights: RawBuf::NULL,
        col_weights: RawBuf::NULL,
        log_q: RawBuf::NULL,
        upstream: RawUpstream::Host(1.0),
        write: WriteMode::Overwrite,
        dx: mat(0x3000),
        dy: Some(mat(0x4000)),
        report: RawBuf::new(0x5000, 1),
        wave_bytes: PAIRWISE_WAVE_BYTES,
        keep_bytes: 0,
        precision: Precision::Full,
        workspace: RawBuf::new(0x10_0000, bytes),
    };
    // SAFETY: every call is refused before anything is enqueued.
    let refused = |a: &RawPairwiseStep<'_>| unsafe { raw::pairwise_step(kernels, &stream, a) }.expect_err("an error");
    let op = "pairwise_step";
    assert_eq!(refused(&RawPairwiseStep { dx: mat(0x1000), ..good }), Error::Overlap { op, arg: "dx", other: "x" });
    assert_eq!(
        refused(&RawPairwiseStep { ignore_rows: RawBuf::new(0x4000, 4), ..good }),
        Error::Overlap { op, arg: "dy", other: "options.ignore_rows" }
    );
    let error = refused(&RawPairwiseStep { dy: None, ..good });
    assert_eq!(error, Error::ShapeMismatch { op, arg: "dy.rows", expected: 4, got: 0 });
    let error = refused(&RawPairwiseStep { workspace: RawBuf::new(0x10_0000, bytes - 1), ..good });
    assert_eq!(error, Error::TooShort { op, arg: "workspace", expected: bytes, got: bytes - 1 });
    let error = refused(&RawPairwiseStep { report: RawBuf::NULL, ..good });
    assert!(matches!(error, Error::TooShort { arg: "report", .. }), "{error}");
    let error = refused(&RawPairwiseStep { y: Some(RawMat { dtype: DType::F16, ..mat(0x2000) }), ..good });
    assert!(matches!(error, Error::UnsupportedDType { arg: "y", .. }), "{error}");
    let error = refused(&RawPairwiseStep { log_q: RawBuf::new(0x7002, 4), ..good });
    assert!(matches!(error, Error::BadPointer { arg: "options.log_q", .. }), "{error}");
    let error = refused(&RawPairwiseStep { col_weights: RawBuf::new(0x7000, 3), ..good });
    assert!(matches!(error, Error::ShapeMismatch { arg: "options.col_weights", .. }), "{error}");
}

const HOT_BEGINS: &str = "the hot step begins";
const HOT_ENDS: &str = "the hot step ends";

#[test]
fn child_runs_a_hot_step() {
    if !is_child("child_runs_a_hot_step") {
        return;
    }
    let (context, kernels) = device().expect("a device");
    let stream = context.new_stream().unwrap();
    let objective = objective("infonce");
    let mut step = Step::<bf16, f32>::new(&stream, [40, 40, 16], &objective, PAIRWISE_WAVE_BYTES, 5);
    step.enqueue(kernels, &stream, &objective, plain()).unwrap();
    stream.synchronize().unwrap();
    say(HOT_BEGINS);
    step.enqueue(kernels, &stream, &objective, plain()).unwrap();
    say(HOT_ENDS);
    step.outcome(&stream);
}

#[test]
fn a_hot_step_is_launches_and_nothing_that_waits_copies_or_allocates() {
    if device().is_none() {
        return;
    }
    if !emulated("child_runs_a_hot_step") {
        return say("note: no log of driver calls here; the captured graph says the same");
    }
    let run = child("child_runs_a_hot_step", &[("GPUEMU_LOG", Some("2"))]).expect(HOT_ENDS);
    let calls = calls_between(&run.text, HOT_BEGINS, HOT_ENDS);
    assert_eq!(calls.get("cuLaunchKernel"), Some(&6), "{calls:?}");
    assert!(calls.keys().all(|call| HOT_CALLS.contains(call)), "{calls:?}");
}

// --- failures of the driver ----------------------------------------------------------------------------------------

/// A step on host memory; the outputs hold 7 before.
fn host_step(cuda: &Cuda) -> (simgrad::Result<PairwiseReport>, Vec<f32>) {
    let (n, m, d) = (6, 9, 8);
    let (x, y) = (numbers::<f32>(n * d, 1), numbers::<f32>(m * d, 2));
    let (mut dx, mut dy) = (vec![7.0f32; n * d], vec![7.0f32; m * d]);
    let ignore = [false, true, false, false, false, false];
    let weights = [0.5f32; 9];
    let options =
        PairwiseOptions { ignore_rows: Some(&ignore), col_weights: Some(&weights), ..PairwiseOptions::default() };
    let report = host::pairwise_step(
        cuda,
        MatRef::new(&x, n, d).unwrap(),
        MatRef::new(&y, m, d).unwrap(),
        &objective("infonce"),
        &options,
        MatMut::new(&mut dx, n, d).unwrap(),
        MatMut::new(&mut dy, m, d).unwrap(),
    );
    dx.extend(dy);
    (report, dx)
}

#[test]
fn child_steps_and_retries() {
    if !is_child("child_steps_and_retries") {
        return;
    }
    let cuda = Cuda::new(0).unwrap();
    let mut failures = 0;
    loop {
        match host_step(&cuda) {
            (Ok(_), gradient) => break assert!(gradient.iter().all(|v| v.is_finite() && *v != 7.0)),
            (Err(Error::OutOfMemory { op: "pairwise_step", wanted }), untouched) if failures < 1 && wanted > 0 => {
                assert!(untouched.iter().all(|&v| v == 7.0), "a failed call has written something");
                failures += 1;
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    drop(cuda);
    say(&format!("failures: {failures}"));
}

#[test]
fn every_failing_allocation_is_an_error_that_leaks_nothing_and_can_be_retried() {
    if device().is_none() || !emulated("child_steps_and_retries") {
        return;
    }
    // x, y, a mask, weights, dx, dy, the report, the workspace.
    for k in 1..=9 {
        let rule = format!("alloc:{k}");
        let vars = [("GPUEMU_FAIL", Some(rule.as_str())), ("GPUEMU_LEAKS", Some("1"))];
        let run = child("child_steps_and_retries", &vars).expect("leaks: none");
        let expected = if k <= 8 { "failures: 1" } else { "failures: 0" };
        assert!(run.text.contains(expected), "{k}: {}", run.text);
    }
}

#[test]
fn child_steps_through_refused_launches() {
    if !is_child("child_steps_through_refused_launches") {
        return;
    }
    let (context, kernels) = device().expect("a device");
    let stream = context.new_stream().unwrap();
    let objective = objective("ms-mined");
    let mut step = Step::<f32, f32>::new(&stream, [10, 12, 8], &objective, PAIRWISE_WAVE_BYTES, 3);
    let ones = (vec![1.0f32; 80], vec![1.0f32; 96]);
    step.dx.set(&stream, &ones.0);
    step.dy.set(&stream, &ones.1);
    let options = || DevicePairwiseOptions { write: WriteMode::Accumulate, ..plain() };
    match step.enqueue(kernels, &stream, &objective, options()) {
        Err(Error::LaunchRefused { kernel, .. }) => say(&format!("refused: {kernel}")),
        other => panic!("{other:?}"),
    }
    assert_eq!(step.dx.read(&stream, "dx"), ones.0, "a refused step has added to dx");
    assert_eq!(step.dy.read(&stream, "dy"), ones.1, "a refused step has added to dy");
    step.enqueue(kernels, &stream, &objective, options()).unwrap();
    assert_ne!(step.dx.read(&stream, "dx"), ones.0);
    context.check_err().unwrap();
}

#[test]
fn every_refused_launch_names_its_kernel_and_leaves_the_gradients_alone() {
    if device().is_none() || !emulated("child_steps_through_refused_launches") {
        return;
    }
    let kernels = [
        "prepare_f32",
        "pairwise_stats_f32",
        "pairwise_extremes",
        "pairwise_stats_f32",
        "pairwise_finalize",
        "pairwise_weights_f32",
        "pairwise_grad_f32",
        "pairwise_finish_f32_f32",
    ];
    for (k, kernel) in (1..).zip(kernels) {
        let rule = format!("launch:{k}");
        let vars = [("GPUEMU_FAIL", Some(rule.as_str()))];
        child("child_steps_through_refused_launches", &vars).expect(&format!("refused: {kernel}"));
    }
}

#[test]
fn child_meets_a_faulting_kernel() {
    if !is_child("child_meets_a_faulting_kernel") {
        return;
    }
    let cuda = Cuda::new(0).expect("a device");
    for _ in 0..2 {
        let (report, untouched) = host_step(&cuda);
        assert!(matches!(report, Err(Error::ContextPoisoned { .. })), "{report:?}");
        assert!(untouched.iter().all(|&v| v == 7.0), "a faulted call has written something");
    }
    drop(cuda);
    say("survived");
}

#[test]
fn after_a_fault_every_call_says_so() {
    if device().is_none() || !emulated("child_meets_a_faulting_kernel") {
        return;
    }
    for k in 1..=6 {
        let rule = format!("launch:{k}:700");
        let run = child("child_meets_a_faulting_kernel", &[("GPUEMU_FAIL", Some(rule.as_str()))]).expect("survived");
        assert!(!run.text.contains("panicked"), "{}", run.text);
    }
}
