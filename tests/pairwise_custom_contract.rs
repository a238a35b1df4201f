//! What a step with formulas on device memory promises beside its results: waves, capture, workspace, launches, failures, and
//! what is said where there is no compiler.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{
    Guarded, HOT_CALLS, by_groups, calls_between, capture, child, device, emulated, gpu_required, is_child,
    kernel_nodes, numbers, say, turn,
};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::{bf16, f16};
use simgrad::cpu::{self, Cpu};
use simgrad::cuda::host::{self, Cuda};
use simgrad::cuda::raw::{self, RawPairwiseCustom, RawUpstream};
use simgrad::cuda::*;
use simgrad::expression::Expression;
use simgrad::{DType, Error, GradientOf, MatMut, MatRef, Normalization, PairwiseOptions, PairwiseReport, WriteMode};

const L2: Normalization = Normalization::L2;

/// Needs every statistic.
const FORMULAS: &str = "
    logit    = 6 * s
    negative = (1 + hardest_of_row) * exp(logit - row.lse) + (1 + hardest_of_col) * exp(logit - col.lse) / col.negatives
    positive = sigmoid(row.hardest - s) - 2 + 0.1 * (row.lse_positives - col.lse_positives)
";

/// Needs near pairs, which take a sweep of their own.
const NEAR: &str = "
    near_negative = hardest - s
    near_positive = hardest + 0.05 - s
    negative = sigmoid(2 * s) + row.near_negatives * hardest_of_row + col.near_positives * hardest_of_col
    positive = -1 - row.near_positives * col.near_negatives
";

/// Needs none.
const SIMPLE: &str = "negative = sigmoid(4 * s)\npositive = -sigmoid(-4 * s)";

fn parse(text: &str) -> Expression {
    text.parse().unwrap()
}

/// A device on which formulas can be compiled; as [`device`] without the compiler.
fn ready() -> Option<(&'static Arc<CudaContext>, &'static Kernels)> {
    let (context, kernels) = device()?;
    let Err(missing @ Error::NvrtcNotFound { .. }) = CompiledExpression::compile(kernels, &parse(SIMPLE)) else {
        return Some((context, kernels));
    };
    assert!(!gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but {missing}");
    say(&format!("note: skipped: {missing}"));
    None
}

fn compile(kernels: &Kernels, text: &str) -> CompiledExpression {
    CompiledExpression::compile(kernels, &parse(text)).unwrap()
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
    fn new(stream: &Arc<CudaStream>, [n, m, d]: [usize; 3], wave_bytes: usize, seed: u64) -> Self {
        let bytes = pairwise_custom_workspace_bytes(n, m, d, T::DTYPE, L2, wave_bytes).unwrap();
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
        expression: &CompiledExpression,
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
        pairwise_step_custom(kernels, stream, &x, &y, expression, &options, &mut dx, &mut dy, report, workspace)
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

fn waves<T: DeviceElement>(text: &str, shape @ [n, m, d]: [usize; 3], element: usize, tolerance: f64)
where
    f32: GradientOf<T>,
{
    let Some((context, kernels)) = ready() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let wide = |len, seed| numbers::<T>(len, seed).iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
    let (x, y) = (wide(n * d, 5), wide(m * d, 6));
    let (mut dx, mut dy) = (vec![0.0f64; n * d], vec![0.0f64; m * d]);
    let cpu = Cpu::with_threads(1).unwrap();
    let want = cpu::pairwise_step_custom(
        &cpu,
        MatRef::new(&x, n, d).unwrap(),
        MatRef::new(&y, m, d).unwrap(),
        &parse(text),
        &PairwiseOptions::default(),
        MatMut::new(&mut dx, n, d).unwrap(),
        MatMut::new(&mut dy, m, d).unwrap(),
    )
    .unwrap();
    let expression = compile(kernels, text);
    let outcome = |wave_bytes| {
        let mut step = Step::<T, f32>::new(&stream, shape, wave_bytes, 5);
        step.enqueue(kernels, &stream, &expression, plain()).unwrap();
        step.outcome(&stream)
    };
    // Rows are 256 columns wide: one row of tiles, and two, at a time.
    let (one, two, all) = (outcome(0), outcome(2 * 128 * 256 * element), outcome(PAIRWISE_WAVE_BYTES));
    for found in [&one, &two, &all] {
        assert!(largest_difference(&found.dx, &dx) < tolerance, "dx");
        assert!(largest_difference(&found.dy, &dy) < tolerance, "dy");
        assert!((found.report.loss - want.loss).abs() < 1e-4 * want.loss.abs().max(1.0), "{:?} {want:?}", found.report);
        assert!((found.report.mean_positive - want.mean_positive).abs() < 1e-6);
        let counts = |r: &PairwiseReport| [r.positives, r.negatives, r.anchors_rows.into(), r.anchors_cols.into()];
        assert_eq!(counts(&found.report), counts(&want));
    }
}

#[test]
fn waves_of_rows_add_up_to_the_whole_gradient() {
    waves::<f32>(FORMULAS, [300, 140, 12], 4, 1e-5);
    waves::<f32>(NEAR, [300, 140, 12], 4, 1e-5);
    waves::<bf16>(FORMULAS, [270, 140, 24], 6, 6e-3);
    waves::<f16>(FORMULAS, [270, 140, 24], 6, 6e-3);
}

fn replay_equals_eager<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    text: &str,
    shape @ [n, m, d]: [usize; 3],
    wave_bytes: usize,
    launches: usize,
) {
    let Some((context, kernels)) = ready() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let expression = compile(kernels, text);
    let mut captured = Step::<T, G>::new(&stream, shape, wave_bytes, 1);
    let graph = capture(&stream, || captured.enqueue(kernels, &stream, &expression, plain()).unwrap());
    // f16 rows are split for products by warpgroups.
    let split = usize::from(T::DTYPE == DType::F16 && by_groups(kernels));
    assert_eq!(kernel_nodes(&graph), launches + split, "launches of a step");
    for seed in [1, 40] {
        captured.x.set(&stream, &numbers(n * d, seed));
        captured.y.set(&stream, &numbers(m * d, seed + 1));
        graph.launch().unwrap();
        let mut eager = Step::<T, G>::new(&stream, shape, wave_bytes, seed);
        eager.enqueue(kernels, &stream, &expression, plain()).unwrap();
        assert_eq!(captured.outcome(&stream), eager.outcome(&stream), "inputs {seed}");
    }
    context.check_err().unwrap();
}

#[test]
fn a_captured_step_is_kernels_alone_and_replays_with_other_inputs() {
    replay_equals_eager::<bf16, f32>(FORMULAS, [40, 40, 24], PAIRWISE_WAVE_BYTES, 8);
    replay_equals_eager::<f32, f32>(FORMULAS, [140, 30, 8], 0, 15);
    replay_equals_eager::<bf16, f32>(NEAR, [40, 40, 24], PAIRWISE_WAVE_BYTES, 11);
    replay_equals_eager::<f32, f32>(NEAR, [140, 30, 8], 0, 22);
    replay_equals_eager::<f16, f16>(SIMPLE, [30, 40, 9], PAIRWISE_WAVE_BYTES, 8);
}

#[test]
fn results_do_not_depend_on_what_was_in_the_workspace() {
    let Some((context, kernels)) = ready() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    for text in [FORMULAS, NEAR, SIMPLE] {
        let expression = compile(kernels, text);
        let mut step = Step::<f32, f32>::new(&stream, [20, 33, 6], PAIRWISE_WAVE_BYTES, 5);
        step.enqueue(kernels, &stream, &expression, plain()).unwrap();
        let first = step.outcome(&stream);
        // As the first step left it, then another bit pattern.
        for fill in [None, Some(0x55)] {
            if let Some(byte) = fill {
                let len = step.workspace.view().len();
                step.workspace.set(&stream, &vec![byte; len]);
            }
            step.dx.poison(&stream);
            step.dy.poison(&stream);
            step.enqueue(kernels, &stream, &expression, plain()).unwrap();
            assert_eq!(step.outcome(&stream), first, "workspace {fill:?}");
        }
    }
}

#[test]
fn the_factor_from_the_device_is_the_factor_from_the_host() {
    let Some((context, kernels)) = ready() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let expression = compile(kernels, FORMULAS);
    let factor = Guarded::of(&stream, &[-3.0f32]);
    let outcome = |upstream| {
        let mut step = Step::<f32, f32>::new(&stream, [20, 20, 8], PAIRWISE_WAVE_BYTES, 5);
        step.enqueue(kernels, &stream, &expression, DevicePairwiseOptions { upstream, ..plain() }).unwrap();
        step.outcome(&stream)
    };
    let (host, plain) = (outcome(Upstream::Host(-3.0)), outcome(Upstream::Host(1.0)));
    assert_eq!(host, outcome(Upstream::Device(factor.view())));
    assert!((host.report.loss + 3.0 * plain.report.loss).abs() < 1e-12 * host.report.loss.abs());
}

#[test]
fn what_the_host_can_see_to_be_wrong_is_refused() {
    let Some((context, kernels)) = ready() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let expression = &compile(kernels, SIMPLE);
    let mat = |ptr| RawMat::new(ptr, 4, 8, DType::F32);
    let bytes = pairwise_custom_workspace_bytes(4, 4, 8, DType::F32, L2, PAIRWISE_WAVE_BYTES).unwrap();
    let good = RawPairwiseCustom {
        x: mat(0x1000),
        y: mat(0x2000),
        expression,
        normalization: L2,
        groups: None,
        ignore_rows: RawBuf::NULL,
        ignore_cols: RawBuf::NULL,
        row_weights: RawBuf::NULL,
        upstream: RawUpstream::Host(1.0),
        write: WriteMode::Overwrite,
        dx: mat(0x3000),
        dy: mat(0x4000),
        report: RawBuf::new(0x5000, 1),
        wave_bytes: PAIRWISE_WAVE_BYTES,
        workspace: RawBuf::new(0x10_0000, bytes),
    };
    let refused = |a: &RawPairwiseCustom<'_>| {
        // SAFETY: every call is refused before anything is enqueued.
        unsafe { raw::pairwise_step_custom(kernels, &stream, a) }.expect_err("an error")
    };
    let op = "pairwise_step_custom";
    assert_eq!(refused(&RawPairwiseCustom { dx: mat(0x1000), ..good }), Error::Overlap { op, arg: "dx", other: "x" });
    let overlap = Error::Overlap { op, arg: "dy", other: "options.ignore_rows" };
    assert_eq!(refused(&RawPairwiseCustom { ignore_rows: RawBuf::new(0x4000, 4), ..good }), overlap);
    let error = refused(&RawPairwiseCustom { dy: RawMat { rows: 3, ..mat(0x4000) }, ..good });
    assert_eq!(error, Error::ShapeMismatch { op, arg: "dy.rows", expected: 4, got: 3 });
    let error = refused(&RawPairwiseCustom { workspace: RawBuf::new(0x10_0000, bytes - 1), ..good });
    assert_eq!(error, Error::TooShort { op, arg: "workspace", expected: bytes, got: bytes - 1 });
    let error = refused(&RawPairwiseCustom { report: RawBuf::NULL, ..good });
    assert!(matches!(error, Error::TooShort { arg: "report", .. }), "{error}");
    let error = refused(&RawPairwiseCustom { y: RawMat { dtype: DType::F16, ..mat(0x2000) }, ..good });
    assert!(matches!(error, Error::UnsupportedDType { arg: "y", .. }), "{error}");
    let error = refused(&RawPairwiseCustom { row_weights: RawBuf::new(0x7002, 4), ..good });
    assert!(matches!(error, Error::BadPointer { arg: "options.row_weights", .. }), "{error}");

    let mut step = Step::<f32, f32>::new(&stream, [20, 20, 8], PAIRWISE_WAVE_BYTES, 5);
    let numbers = Guarded::of(&stream, &[0.0f32; 20]);
    for (options, arg) in [
        (DevicePairwiseOptions { log_q: Some(numbers.view()), ..plain() }, "options.log_q"),
        (DevicePairwiseOptions { col_weights: Some(numbers.view()), ..plain() }, "options.col_weights"),
    ] {
        let error = step.enqueue(kernels, &stream, expression, options).expect_err("an error");
        assert!(matches!(error, Error::InvalidOption { arg: got, .. } if got == arg), "{error}");
    }
}

#[test]
fn an_expression_of_other_kernels_is_refused_only_in_another_context() {
    let Some((context, kernels)) = ready() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let others = Kernels::load(context).unwrap();
    let (mine, theirs) = (compile(kernels, SIMPLE), compile(&others, SIMPLE));
    assert!(!mine.same_code(&theirs), "each has its own");
    // The module outlives the kernels with which it was compiled.
    drop(others);
    let outcome = |expression| {
        let mut step = Step::<f32, f32>::new(&stream, [9, 7, 8], PAIRWISE_WAVE_BYTES, 5);
        step.enqueue(kernels, &stream, expression, plain()).unwrap();
        step.outcome(&stream)
    };
    assert_eq!(outcome(&mine), outcome(&theirs));
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
    let expression = compile(kernels, FORMULAS);
    let mut step = Step::<bf16, f32>::new(&stream, [40, 40, 16], PAIRWISE_WAVE_BYTES, 5);
    step.enqueue(kernels, &stream, &expression, plain()).unwrap();
    stream.synchronize().unwrap();
    say(HOT_BEGINS);
    step.enqueue(kernels, &stream, &expression, plain()).unwrap();
    // Known formulas: nothing is compiled or loaded.
    compile(kernels, FORMULAS);
    say(HOT_ENDS);
    step.outcome(&stream);
}

#[test]
fn a_hot_step_is_launches_and_nothing_that_waits_copies_or_allocates() {
    if ready().is_none() {
        return;
    }
    if !emulated("child_runs_a_hot_step") {
        return say("note: no log of driver calls here; the captured graph says the same");
    }
    let run = child("child_runs_a_hot_step", &[("GPUEMU_LOG", Some("2"))]).expect(HOT_ENDS);
    let calls = calls_between(&run.text, HOT_BEGINS, HOT_ENDS);
    assert_eq!(calls.get("cuLaunchKernel"), Some(&8), "{calls:?}");
    assert!(calls.keys().all(|call| HOT_CALLS.contains(call)), "{calls:?}");
}

const KEPT: usize = 64;
const FULL: &str = "as many as are kept";
const CAPTURED: &str = "the capture has ended";
const AFTERWARDS: &str = "after the capture";

/// Formulas with another number each time.
#[test]
fn child_compiles_more_than_is_kept() {
    if !is_child("child_compiles_more_than_is_kept") {
        return;
    }
    let (context, kernels) = device().expect("a device");
    let stream = context.new_stream().unwrap();
    let text = |i: usize| format!("negative = {i} * s\npositive = -1");
    let held = compile(kernels, &text(0));
    let mut step = Step::<f32, f32>::new(&stream, [9, 7, 8], PAIRWISE_WAVE_BYTES, 5);
    // Enqueued, and not waited for, with formulas that are the first to go.
    step.enqueue(kernels, &stream, &compile(kernels, &text(1)), plain()).unwrap();
    (2..KEPT).for_each(|i| drop(compile(kernels, &text(i))));
    say(FULL);
    // Whoever captures in the mode that allows it can load modules, but not wait for the context.
    let captured = context.new_stream().unwrap();
    captured.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    (KEPT..KEPT + 2).for_each(|i| drop(compile(kernels, &text(i))));
    let _ = captured.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    say(CAPTURED);
    compile(kernels, &text(KEPT + 2));
    say(AFTERWARDS);
    assert!(held.same_code(&compile(kernels, &text(0))), "what is held was given up");
    let mut again = Step::<f32, f32>::new(&stream, [9, 7, 8], PAIRWISE_WAVE_BYTES, 5);
    again.enqueue(kernels, &stream, &compile(kernels, &text(1)), plain()).unwrap();
    assert_eq!(step.outcome(&stream), again.outcome(&stream));
    context.check_err().unwrap();
    say(HOT_ENDS);
}

#[test]
fn formulas_beyond_what_is_kept_are_unloaded_when_nothing_uses_them() {
    if ready().is_none() || !emulated("child_runs_a_hot_step") {
        return;
    }
    let run = child("child_compiles_more_than_is_kept", &[("GPUEMU_LOG", Some("2"))]).expect(HOT_ENDS);
    let count = |begin, end, call| calls_between(&run.text, begin, end).get(call).copied().unwrap_or(0);
    assert_eq!(count(FULL, CAPTURED, "cuModuleLoadData"), 2);
    assert_eq!(count(FULL, CAPTURED, "cuModuleUnload"), 0, "unloaded during a capture");
    assert_eq!(count(CAPTURED, AFTERWARDS, "cuModuleUnload"), 3);
    assert_eq!(count(CAPTURED, AFTERWARDS, "cuCtxSynchronize"), 1);
    // The one that was in use by then and is compiled anew.
    assert_eq!(count(AFTERWARDS, HOT_ENDS, "cuModuleLoadData"), 1);
}

// --- failures --------------------------------------------------------------------------------------------------------

#[test]
fn child_compiles_an_expression() {
    if !is_child("child_compiles_an_expression") {
        return;
    }
    let (_, kernels) = device().expect("a device");
    let failed = CompiledExpression::compile(kernels, &parse(SIMPLE)).expect_err("an error");
    say(&format!("refused: {failed} {failed:?}"));
    // With the next one it is tried anew, and the kernels are as good as before.
    let again = CompiledExpression::compile(kernels, &parse(SIMPLE));
    say(&format!("again: {}", again.is_ok()));
}

#[test]
fn without_the_compiler_the_error_says_what_was_looked_for() {
    if device().is_none() {
        return;
    }
    let vars = [("SIMGRAD_NVRTC", Some("/nonexistent"))];
    let run = child("child_compiles_an_expression", &vars).expect("refused: no NVRTC library found");
    for part in ["NvrtcNotFound", "/nonexistent", "SIMGRAD_NVRTC", "libnvrtc.so", "again: false"] {
        assert!(run.text.contains(part), "{part}: {}", run.text);
    }
}

#[test]
fn a_module_that_does_not_load_is_tried_again() {
    if ready().is_none() || !emulated("child_runs_a_hot_step") {
        return;
    }
    // Every embedded image loads; the compiled one is the last.
    let log = child("child_runs_a_hot_step", &[("GPUEMU_LOG", Some("2"))]).expect(HOT_ENDS).text;
    let modules = log.lines().filter(|line| line.starts_with("[gpuemu] cuModuleLoadData")).count();
    for (code, expected) in [("200", "ImageRejected"), ("2", "OutOfMemory"), ("222", "NvrtcTooNew")] {
        let rule = format!("module:{modules}:{code}");
        let run = child("child_compiles_an_expression", &[("GPUEMU_FAIL", Some(&rule))]).expect(expected);
        assert!(run.text.contains("again: true"), "{}", run.text);
        if expected == "NvrtcTooNew" {
            assert!(run.text.contains("SIMGRAD_NVRTC") && !run.text.contains("SIMGRAD_CUDA_ARCHS"), "{}", run.text);
        }
    }
}

/// A step on host memory; the outputs hold 7 before.
fn host_step(cuda: &Cuda) -> (simgrad::Result<PairwiseReport>, Vec<f32>) {
    let (n, m, d) = (6, 9, 8);
    let (x, y) = (numbers::<f32>(n * d, 1), numbers::<f32>(m * d, 2));
    let (mut dx, mut dy) = (vec![7.0f32; n * d], vec![7.0f32; m * d]);
    let ignore = [false, true, false, false, false, false];
    let weights = [0.5f32; 6];
    let options =
        PairwiseOptions { ignore_rows: Some(&ignore), row_weights: Some(&weights), ..PairwiseOptions::default() };
    let report = host::pairwise_step_custom(
        cuda,
        MatRef::new(&x, n, d).unwrap(),
        MatRef::new(&y, m, d).unwrap(),
        &parse(FORMULAS),
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
            (Ok(_), gradient) => break assert!(gradient[8..].iter().all(|v| v.is_finite() && *v != 7.0)),
            (Err(Error::OutOfMemory { op: "pairwise_step_custom", wanted }), untouched)
                if failures < 1 && wanted > 0 =>
            {
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
    if ready().is_none() || !emulated("child_runs_a_hot_step") {
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
    let expression = compile(kernels, FORMULAS);
    let mut step = Step::<bf16, f32>::new(&stream, [10, 12, 8], PAIRWISE_WAVE_BYTES, 3);
    let ones = (vec![1.0f32; 80], vec![1.0f32; 96]);
    step.dx.set(&stream, &ones.0);
    step.dy.set(&stream, &ones.1);
    let options = || DevicePairwiseOptions { write: WriteMode::Accumulate, ..plain() };
    match step.enqueue(kernels, &stream, &expression, options()) {
        Err(Error::LaunchRefused { kernel, .. }) => say(&format!("refused: {kernel}")),
        other => panic!("{other:?}"),
    }
    assert_eq!(step.dx.read(&stream, "dx"), ones.0, "a refused step has added to dx");
    assert_eq!(step.dy.read(&stream, "dy"), ones.1, "a refused step has added to dy");
    step.enqueue(kernels, &stream, &expression, options()).unwrap();
    assert_ne!(step.dx.read(&stream, "dx"), ones.0);
    context.check_err().unwrap();
}

#[test]
fn every_refused_launch_names_its_kernel_and_leaves_the_gradients_alone() {
    let Some((_, loaded)) = ready().filter(|_| emulated("child_runs_a_hot_step")) else { return };
    let kernels = [
        "prepare_bf16",
        "cosine_matrix_bf16",
        "pairwise_custom_rows",
        "pairwise_custom_cols",
        "pairwise_custom_anchors",
        "pairwise_custom_weights_bf16",
        if by_groups(loaded) { "pairwise_grad_hopper_bf16" } else { "pairwise_grad_bf16" },
        "pairwise_finish_bf16_f32",
    ];
    for (k, kernel) in (1..).zip(kernels) {
        let rule = format!("launch:{k}");
        let vars = [("GPUEMU_FAIL", Some(rule.as_str()))];
        child("child_steps_through_refused_launches", &vars).expect(&format!("refused: {kernel}"));
    }
}
