//! What the pairwise step on device memory promises beside its results: waves, capture, workspace, launches, failures.
#![cfg(feature = "cuda")]

mod cuda_support;

use cuda_support::pairwise::{
    L2, PLENTY, Step, check_failing_allocations, largest_difference, outcome_of, plain, replay_equals_eager,
    runs_a_hot_step, steps_and_retries, steps_through_a_refused_launch,
};
use cuda_support::{
    Guarded, capture, check_hot_step, check_refused_launches, child, device, emulated, is_child, kernel_nodes, numbers,
    pairwise, say, turn,
};
use half::{bf16, f16};
use simgrad::cuda::host::{self, Cuda};
use simgrad::cuda::raw::{self, RawPairwiseStep, RawUpstream};
use simgrad::cuda::*;
use simgrad::{
    DType, Error, GradientOf, MatRef, PairwiseObjective, PairwiseOptions, PairwiseReport, Precision, WriteMode,
    reference,
};

fn objective(name: &str) -> PairwiseObjective {
    name.parse().unwrap()
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
        let outcome = |wave| outcome_of::<f32, f32>(kernels, &stream, &objective, shape, (wave, 0), plain());
        // Rows of weights are 256 columns wide: one row of tiles, and two, at a time.
        let (one, two, all) = (outcome(0), outcome(2 * 128 * 256 * 4), outcome(PAIRWISE_WAVE_BYTES));
        for found in [&one, &two, &all] {
            assert!(largest_difference(&found.dx, &want.dx) < 1e-5, "{name} dx");
            assert!(largest_difference(&found.dy, &want.dy) < 1e-5, "{name} dy");
            let report = found.report();
            assert!((report.d_scale - want.report.d_scale).abs() < 1e-6, "{name}");
            assert!((report.loss / want.report.loss - 1.0).abs() < 1e-5, "{name}");
            assert_eq!(report.anchors_cols, want.report.anchors_cols, "{name}");
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
    let outcome = |wave| outcome_of::<bf16, f32>(kernels, &stream, &objective, shape, (wave, 0), plain());
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

fn replays<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    name: &str,
    shape: [usize; 3],
    wave_bytes: usize,
    waves: usize,
) {
    let Some((_, kernels)) = device() else { return };
    let objective = objective(name);
    let launches = launches_of(&objective, waves);
    replay_equals_eager::<T, G>(kernels, &objective, name, shape, (wave_bytes, 0), launches);
}

#[test]
fn a_captured_step_is_kernels_alone_and_replays_with_other_inputs() {
    replays::<bf16, f32>("infonce", [40, 40, 24], PAIRWISE_WAVE_BYTES, 1);
    replays::<f32, f32>("infonce", [140, 30, 8], 0, 2);
    replays::<f16, f32>("siglip", [140, 30, 8], 0, 2);
    replays::<bf16, bf16>("ms-mined", [40, 20, 9], PAIRWISE_WAVE_BYTES, 1);
    replays::<f32, f32>("triplet-all", [10, 20, 9], PAIRWISE_WAVE_BYTES, 1);
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
        let step = Step::<f32, f32>::new(&stream, &objective, [20, 33, 6], PLENTY, 5);
        step.does_not_depend_on_its_workspace(kernels, &stream, &objective, objective.name());
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
        let options = DevicePairwiseOptions { upstream, ..plain() };
        outcome_of::<f32, f32>(kernels, &stream, &objective, [20, 20, 8], PLENTY, options)
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

#[test]
fn child_runs_a_hot_step() {
    if is_child("child_runs_a_hot_step") {
        let (_, kernels) = device().expect("a device");
        runs_a_hot_step(kernels, &objective("infonce"), || {});
    }
}

#[test]
fn a_hot_step_is_launches_and_nothing_that_waits_copies_or_allocates() {
    if device().is_some() {
        check_hot_step(6);
    }
}

// --- failures of the driver ----------------------------------------------------------------------------------------

fn host_step(cuda: &Cuda) -> (simgrad::Result<PairwiseReport>, Vec<f32>) {
    pairwise::host_step(|[x, y], options, [dx, dy]| {
        let options = PairwiseOptions { col_weights: Some(&[0.5; 9]), ..options };
        host::pairwise_step(cuda, x, y, &objective("infonce"), &options, dx, dy)
    })
}

#[test]
fn child_steps_and_retries() {
    if is_child("child_steps_and_retries") {
        let cuda = Cuda::new(0).unwrap();
        let gradients = steps_and_retries("pairwise_step", || host_step(&cuda));
        assert!(gradients.iter().all(|v| v.is_finite() && *v != 7.0));
    }
}

#[test]
fn every_failing_allocation_is_an_error_that_leaks_nothing_and_can_be_retried() {
    if device().is_some() && emulated("child_steps_and_retries") {
        // x, y, a mask, weights, dx, dy, the report, the workspace.
        check_failing_allocations(8);
    }
}

#[test]
fn child_steps_through_refused_launches() {
    if is_child("child_steps_through_refused_launches") {
        let (_, kernels) = device().expect("a device");
        steps_through_a_refused_launch::<f32>(kernels, &objective("ms-mined"), [10, 12, 8]);
    }
}

#[test]
fn every_refused_launch_names_its_kernel_and_leaves_the_gradients_alone() {
    if device().is_none() || !emulated("child_steps_through_refused_launches") {
        return;
    }
    check_refused_launches(&[
        "prepare_f32",
        "pairwise_stats_f32",
        "pairwise_extremes",
        "pairwise_stats_f32",
        "pairwise_finalize",
        "pairwise_weights_f32",
        "pairwise_grad_f32",
        "pairwise_finish_f32_f32",
    ]);
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
