//! What a step with formulas on device memory promises beside its results: waves, capture, workspace, launches, failures, and
//! what is said where there is no compiler.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::pairwise::{
    L2, PLENTY, Step, check_failing_allocations, largest_difference, outcome_of, plain, replay_equals_eager,
    runs_a_hot_step, steps_and_retries, steps_through_a_refused_launch,
};
use cuda_support::{
    Guarded, HOT_ENDS, by_groups, calls_between, check_hot_step, check_refused_launches, child, device, emulated,
    gpu_required, is_child, numbers, pairwise, say, turn,
};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::{bf16, f16};
use simgrad::cpu::{self, Cpu};
use simgrad::cuda::host::{self, Cuda};
use simgrad::cuda::raw::{self, RawPairwiseCustom, RawUpstream};
use simgrad::cuda::*;
use simgrad::expression::Expression;
use simgrad::{DType, Error, GradientOf, MatMut, MatRef, PairwiseOptions, PairwiseReport, WriteMode};

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
    let outcome = |wave| outcome_of::<T, f32>(kernels, &stream, &expression, shape, (wave, 0), plain());
    // Rows are 256 columns wide: one row of tiles, and two, at a time.
    let (one, two, all) = (outcome(0), outcome(2 * 128 * 256 * element), outcome(PAIRWISE_WAVE_BYTES));
    for found in [&one, &two, &all] {
        assert!(largest_difference(&found.dx, &dx) < tolerance, "dx");
        assert!(largest_difference(&found.dy, &dy) < tolerance, "dy");
        let report = found.report();
        assert!((report.loss - want.loss).abs() < 1e-4 * want.loss.abs().max(1.0), "{report:?} {want:?}");
        assert!((report.mean_positive - want.mean_positive).abs() < 1e-6);
        let counts = |r: &PairwiseReport| [r.positives, r.negatives, r.anchors_rows.into(), r.anchors_cols.into()];
        assert_eq!(counts(&report), counts(&want));
    }
}

#[test]
fn waves_of_rows_add_up_to_the_whole_gradient() {
    waves::<f32>(FORMULAS, [300, 140, 12], 4, 1e-5);
    waves::<f32>(NEAR, [300, 140, 12], 4, 1e-5);
    waves::<bf16>(FORMULAS, [270, 140, 24], 6, 6e-3);
    waves::<f16>(FORMULAS, [270, 140, 24], 6, 6e-3);
}

fn replays<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    text: &str,
    shape: [usize; 3],
    wave_bytes: usize,
    launches: usize,
) {
    let Some((_, kernels)) = ready() else { return };
    replay_equals_eager::<T, G>(kernels, &compile(kernels, text), text, shape, (wave_bytes, 0), launches);
}

#[test]
fn a_captured_step_is_kernels_alone_and_replays_with_other_inputs() {
    replays::<bf16, f32>(FORMULAS, [40, 40, 24], PAIRWISE_WAVE_BYTES, 8);
    replays::<f32, f32>(FORMULAS, [140, 30, 8], 0, 15);
    replays::<bf16, f32>(NEAR, [40, 40, 24], PAIRWISE_WAVE_BYTES, 11);
    replays::<f32, f32>(NEAR, [140, 30, 8], 0, 22);
    replays::<f16, f16>(SIMPLE, [30, 40, 9], PAIRWISE_WAVE_BYTES, 8);
}

#[test]
fn results_do_not_depend_on_what_was_in_the_workspace() {
    let Some((context, kernels)) = ready() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    for text in [FORMULAS, NEAR, SIMPLE] {
        let expression = compile(kernels, text);
        let step = Step::<f32, f32>::new(&stream, &expression, [20, 33, 6], PLENTY, 5);
        step.does_not_depend_on_its_workspace(kernels, &stream, &expression, text);
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
        let options = DevicePairwiseOptions { upstream, ..plain() };
        outcome_of::<f32, f32>(kernels, &stream, &expression, [20, 20, 8], PLENTY, options)
    };
    let (host, plain) = (outcome(Upstream::Host(-3.0)), outcome(Upstream::Host(1.0)));
    assert_eq!(host, outcome(Upstream::Device(factor.view())));
    let (host, plain) = (host.report().loss, plain.report().loss);
    assert!((host + 3.0 * plain).abs() < 1e-12 * host.abs());
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

    let mut step = Step::<f32, f32>::new(&stream, expression, [20, 20, 8], PLENTY, 5);
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
    let outcome = |expression| outcome_of::<f32, f32>(kernels, &stream, expression, [9, 7, 8], PLENTY, plain());
    assert_eq!(outcome(&mine), outcome(&theirs));
}

#[test]
fn child_runs_a_hot_step() {
    if is_child("child_runs_a_hot_step") {
        let (_, kernels) = device().expect("a device");
        // Known formulas: nothing is compiled or loaded.
        runs_a_hot_step(kernels, &compile(kernels, FORMULAS), || drop(compile(kernels, FORMULAS)));
    }
}

#[test]
fn a_hot_step_is_launches_and_nothing_that_waits_copies_or_allocates() {
    if ready().is_some() {
        check_hot_step(8);
    }
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
    let new = || Step::<f32, f32>::new(&stream, &held, [9, 7, 8], PLENTY, 5);
    let (mut step, mut again) = (new(), new());
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

#[test]
fn child_steps_and_retries() {
    if is_child("child_steps_and_retries") {
        let cuda = Cuda::new(0).unwrap();
        let step = || {
            pairwise::host_step(|[x, y], options, [dx, dy]| {
                let options = PairwiseOptions { row_weights: Some(&[0.5; 6]), ..options };
                host::pairwise_step_custom(&cuda, x, y, &parse(FORMULAS), &options, dx, dy)
            })
        };
        let gradients = steps_and_retries("pairwise_step_custom", step);
        assert!(gradients[8..].iter().all(|v| v.is_finite() && *v != 7.0));
    }
}

#[test]
fn every_failing_allocation_is_an_error_that_leaks_nothing_and_can_be_retried() {
    if ready().is_some() && emulated("child_runs_a_hot_step") {
        // x, y, a mask, weights, dx, dy, the report, the workspace.
        check_failing_allocations(8);
    }
}

#[test]
fn child_steps_through_refused_launches() {
    if is_child("child_steps_through_refused_launches") {
        let (_, kernels) = device().expect("a device");
        steps_through_a_refused_launch::<bf16>(kernels, &compile(kernels, FORMULAS), [10, 12, 8]);
    }
}

#[test]
fn every_refused_launch_names_its_kernel_and_leaves_the_gradients_alone() {
    let Some((_, loaded)) = ready().filter(|_| emulated("child_runs_a_hot_step")) else { return };
    check_refused_launches(&[
        "prepare_bf16",
        "cosine_matrix_bf16",
        "pairwise_custom_rows",
        "pairwise_custom_cols",
        "pairwise_custom_anchors",
        "pairwise_custom_weights_bf16",
        if by_groups(loaded) { "pairwise_grad_hopper_bf16" } else { "pairwise_grad_bf16" },
        "pairwise_finish_bf16_f32",
    ]);
}
