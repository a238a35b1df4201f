//! What the step of a mixture on device memory promises beside its results, and that stored similarities change no bit.
#![cfg(feature = "cuda")]

mod common;
mod cuda_support;

use common::mixture::parts;
use cuda_support::pairwise::{
    Grant, L2, Outcome, PLENTY, Step, outcome_of, plain, replay_equals_eager, runs_a_hot_step,
    steps_through_a_refused_launch,
};
use cuda_support::{
    Guarded, capture, check_hot_step, check_refused_launches, device, emulated, is_child, kernel_nodes, numbers, turn,
};
use half::{bf16, f16};
use simgrad::cuda::raw::{self, RawPairwiseMixture, RawUpstream};
use simgrad::cuda::*;
use simgrad::{DType, Error, GradientOf, PairwiseObjective, PairwisePart, PairwiseReport, Precision, WriteMode};

fn run<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    shape: [usize; 3],
    parts: &[PairwisePart],
    grant: Grant,
) -> Option<Outcome<G>> {
    let (context, kernels) = device()?;
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    Some(outcome_of::<T, G>(kernels, &stream, parts, shape, grant, plain()))
}

/// Memory for every similarity.
const ALL: usize = usize::MAX;

fn stored_is_computed<T: DeviceElement, G: GradientOf<T> + DeviceElement>(shape: [usize; 3], text: &str) {
    let parts = parts(text);
    // One row of tiles at a time, and all at once.
    for wave in [0, PAIRWISE_WAVE_BYTES] {
        let Some(computed) = run::<T, G>(shape, &parts, (wave, 0)) else { return };
        let stored = run::<T, G>(shape, &parts, (wave, ALL)).unwrap();
        assert_eq!(computed, stored, "{} {text}, waves of {wave} bytes", T::DTYPE);
    }
}

#[test]
fn stored_similarities_change_no_bit() {
    for objective in PairwiseObjective::ALL {
        stored_is_computed::<f32, f32>([150, 270, 12], objective.name());
    }
    for text in ["infonce", "ms-mined"] {
        stored_is_computed::<bf16, f32>([270, 150, 24], text);
        stored_is_computed::<f16, f16>([270, 150, 24], text);
    }
    let mixed = "infonce 0.5*siglip -1*ms-mined 0.25*triplet-all";
    stored_is_computed::<f32, f32>([150, 150, 12], mixed);
    stored_is_computed::<bf16, f32>([150, 150, 12], &format!("0.1*hinge-con {mixed} 0.2*nca-sig_ms"));
    stored_is_computed::<bf16, f32>([150, 150, 12], "siglip siglip");
}

#[test]
fn room_for_similarities_is_taken_only_where_they_fit_and_save_a_sweep() {
    let bytes = |name: &str, keep: usize| {
        pairwise_workspace_bytes(300, 200, 8, DType::F32, &name.parse().unwrap(), L2, 0, keep, Precision::Full).unwrap()
    };
    let all = 384 * 256 * 4;
    assert_eq!(bytes("infonce", all) - bytes("infonce", 0), all);
    assert_eq!(bytes("infonce", all - 1), bytes("infonce", 0));
    assert_eq!(bytes("siglip", ALL), bytes("siglip", 0), "it has one sweep");
    assert_eq!(bytes("ms-mined", ALL) - bytes("ms-mined", 0), all);
}

#[test]
fn waves_of_rows_add_up_and_rows_do_not_depend_on_them() {
    let text = "infonce 0.5*siglip -0.5*circle 0.1*hinge-con";
    let parts = parts(text);
    let Some(one) = run::<f32, f32>([270, 270, 12], &parts, (0, 0)) else { return };
    let all = run::<f32, f32>([270, 270, 12], &parts, PLENTY).unwrap();
    assert_eq!(one.dx, all.dx, "a row of X does not depend on the waves");
    let largest = all.dy.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    assert!(one.dy.iter().zip(&all.dy).all(|(a, b)| (a - b).abs() <= 1e-6 * largest));
    for (one, all) in one.reports.iter().zip(&all.reports) {
        assert!(
            (one.loss / all.loss - 1.0).abs() < 1e-6 && (one.d_scale - all.d_scale).abs() <= 1e-6,
            "{one:?} {all:?}"
        );
    }
}

#[test]
fn a_parts_weight_does_not_touch_its_loss_and_scales_its_derivatives() {
    let shape = [140, 140, 8];
    let mixed = parts("-0.5*infonce 4*siglip 0*supcon 0.25*hinge-con");
    let Some(found) = run::<bf16, f32>(shape, &mixed, PLENTY) else { return };
    for (part, report) in mixed.iter().zip(&found.reports) {
        let alone = run::<bf16, f32>(shape, &[PairwisePart { weight: 1.0, ..*part }], PLENTY).unwrap().reports[0];
        let scaled =
            PairwiseReport { d_scale: part.weight * alone.d_scale, d_bias: part.weight * alone.d_bias, ..alone };
        assert_eq!(*report, scaled, "{}", part.objective);
    }
}

/// Kernels of a step: `waves` waves.
fn launches_of(parts: &[PairwisePart], waves: usize) -> usize {
    let before = |part: &PairwisePart| match part.objective.to_string().as_str() {
        "siglip" => 1,
        "triplet-all" => 3,
        "ms-mined" => 4,
        _ => 2,
    };
    2 + parts.iter().map(|part| before(part) + 1).sum::<usize>() + waves * (parts.len() + 1)
}

fn replays<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    text: &str,
    shape: [usize; 3],
    grant: Grant,
    waves: usize,
) {
    let Some((_, kernels)) = device() else { return };
    let parts = parts(text);
    replay_equals_eager::<T, G>(kernels, &parts[..], text, shape, grant, launches_of(&parts, waves));
}

#[test]
fn a_captured_step_replays_with_new_inputs() {
    replays::<bf16, bf16>("infonce 0.5*siglip", [20, 30, 16], PLENTY, 1);
    replays::<f32, f32>("triplet-all -1*ms-mined 0.5*nca-lin_ms", [140, 140, 9], (0, ALL), 2);
    replays::<f32, f32>("hinge-con", [10, 10, 9], PLENTY, 1);
}

#[test]
fn a_set_with_itself_can_be_captured() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (n, d, parts) = (20, 8, parts("supcon 0.5*siglip"));
    let x = Guarded::of(&stream, &numbers::<f32>(n * d, 1));
    let ids = Guarded::of(&stream, &(0..n as i64).map(|i| i % 4).collect::<Vec<i64>>());
    let mut dx = Guarded::<f32>::poisoned(&stream, n * d);
    let mut reports = stream.clone_htod(&[PairwiseReport::default(); 2]).unwrap();
    let bytes = pairwise_mixture_single_workspace_bytes(
        n,
        d,
        DType::F32,
        &parts,
        L2,
        PAIRWISE_WAVE_BYTES,
        0,
        Precision::Full,
        true,
    )
    .unwrap();
    let mut work = Guarded::poisoned(&stream, bytes);
    let mut conflict = Guarded::poisoned(&stream, pairwise_conflict_len(2));
    let graph = capture(&stream, || {
        let groups = Some(DeviceGroups { rows: ids.view(), cols: ids.view() });
        let options = DevicePairwiseOptions { groups, ..plain() };
        let x = DeviceMat::new(x.view(), n, d).unwrap();
        let mut dx = DeviceMatMut::new(dx.view_mut(), n, d).unwrap();
        let (reports, work) = (&mut reports.as_view_mut(), &mut work.view_mut());
        let conflict = Some(&mut conflict.view_mut());
        pairwise_mixture_single(kernels, &stream, &x, &parts, &options, &mut dx, reports, conflict, work).unwrap();
    });
    assert_eq!(kernel_nodes(&graph), launches_of(&parts, 1) + launches_of_conflict(&parts, 1));
    graph.launch().unwrap();
    assert!(dx.read(&stream, "dx").iter().all(|v| v.is_finite()));
    work.read(&stream, "workspace");
    assert!(stream.clone_dtoh(&reports).unwrap().iter().all(|r| r.positives == 4 * 5 * 4));
}

/// Kernels that compare the parts' gradients.
fn launches_of_conflict(parts: &[PairwisePart], waves: usize) -> usize {
    2 + parts.chunks(1).map(|one| launches_of(one, waves)).sum::<usize>()
}

#[test]
fn a_step_that_compares_gradients_can_be_captured_and_is_otherwise_the_same() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    for (text, shape) in [
        ("infonce 0*siglip -0.5*hinge-con", [140, 140, 40]),
        ("-2*circle", [5, 3, 4]),
        // More blocks for a pair of parts than a warp has lanes.
        ("infonce -0.5*siglip", [8, 8, 8200]),
    ] {
        let parts = &parts(text)[..];
        let new = || Step::<bf16, bf16>::new(&stream, parts, shape, PLENTY, 5);
        let mut step = new().with_conflict(&stream, parts);
        let graph = capture(&stream, || step.enqueue(kernels, &stream, parts, plain()).unwrap());
        assert_eq!(kernel_nodes(&graph), launches_of(parts, 1) + launches_of_conflict(parts, 1), "{text}");
        graph.launch().unwrap();
        let found = step.outcome(&stream);
        let mut without = new();
        without.enqueue(kernels, &stream, parts, plain()).unwrap();
        assert_eq!(Outcome { conflict: None, ..step.outcome(&stream) }, without.outcome(&stream), "{text}");
        // The gradients of the parts alone, in f32.
        let gradients: Vec<Vec<f64>> = parts
            .chunks(1)
            .map(|one| {
                let Outcome { dx, dy, .. } = outcome_of::<bf16, f32>(kernels, &stream, one, shape, PLENTY, plain());
                dx.iter().chain(&dy).map(|&v| f64::from(v)).collect()
            })
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let norms: Vec<f64> = gradients.iter().map(|g| dot(g, g).sqrt()).collect();
        let count = parts.len();
        let conflict = found.conflict.unwrap();
        for a in 0..count {
            assert!((conflict[a] - norms[a]).abs() <= 1e-12 * norms[a], "{text}: norm {a}");
            for b in 0..count {
                let product = norms[a] * norms[b];
                let want = if product == 0.0 { 0.0 } else { dot(&gradients[a], &gradients[b]) / product };
                assert!((conflict[count + a * count + b] - want).abs() <= 1e-12, "{text}: cosine {a} {b}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_what_was_in_the_workspace() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    for (text, grant) in [
        ("infonce 0.5*siglip ms-mined triplet-all supcon", (0, 0)),
        ("0.1*hinge-con circle 0.2*nca-sig_ms", (0, ALL)),
        ("hinge-con 0.2*nca-lin_ms", PLENTY),
    ] {
        let parts = &parts(text)[..];
        let mut step = Step::<f32, f32>::new(&stream, parts, [140, 140, 6], grant, 5);
        if grant == PLENTY {
            step = step.with_conflict(&stream, parts);
        }
        step.does_not_depend_on_its_workspace(kernels, &stream, parts, text);
    }
}

#[test]
fn the_factor_from_the_device_is_the_factor_from_the_host() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let parts = parts("infonce 0.5*siglip 0.1*hinge-con");
    let factor = Guarded::of(&stream, &[-3.0f32]);
    let outcome = |upstream| {
        let options = DevicePairwiseOptions { upstream, ..plain() };
        outcome_of::<f32, f32>(kernels, &stream, &parts[..], [20, 20, 8], PLENTY, options)
    };
    assert_eq!(outcome(Upstream::Host(-3.0)), outcome(Upstream::Device(factor.view())));
}

#[test]
fn bad_pointers_and_sizes_are_refused_before_anything_is_enqueued() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let parts = parts("infonce hinge-con");
    let mat = |ptr| RawMat::new(ptr, 4, 8, DType::F32);
    let wave = PAIRWISE_WAVE_BYTES;
    let bytes =
        pairwise_mixture_workspace_bytes(4, 4, 8, DType::F32, &parts, L2, wave, 0, Precision::Full, false).unwrap();
    let good = RawPairwiseMixture {
        x: mat(0x1000),
        y: Some(mat(0x2000)),
        parts: &parts,
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
        reports: RawBuf::new(0x5000, 2),
        conflict: RawBuf::NULL,
        wave_bytes: wave,
        keep_bytes: 0,
        precision: Precision::Full,
        workspace: RawBuf::new(0x10_0000, bytes),
    };
    let refused =
        // SAFETY: every call is refused before anything is enqueued.
        |a: &RawPairwiseMixture<'_>| unsafe { raw::pairwise_mixture(kernels, &stream, a) }.expect_err("an error");
    let op = "pairwise_mixture";
    let error = refused(&RawPairwiseMixture { reports: RawBuf::new(0x5000, 1), ..good });
    assert_eq!(error, Error::TooShort { op, arg: "reports", expected: 2, got: 1 });
    let error = refused(&RawPairwiseMixture { reports: RawBuf::new(0x3040, 2), ..good });
    assert_eq!(error, Error::Overlap { op, arg: "reports", other: "dx" });
    let error = refused(&RawPairwiseMixture { conflict: RawBuf::new(0x6000, 5), ..good });
    assert_eq!(error, Error::TooShort { op, arg: "conflict", expected: 6, got: 5 });
    let error = refused(&RawPairwiseMixture { conflict: RawBuf::new(0x6000, 6), ..good });
    assert!(matches!(error, Error::TooShort { arg: "workspace", .. }), "{error}");
    let error = refused(&RawPairwiseMixture { workspace: RawBuf::new(0x10_0000, bytes - 1), ..good });
    assert_eq!(error, Error::TooShort { op, arg: "workspace", expected: bytes, got: bytes - 1 });
    let error = refused(&RawPairwiseMixture { keep_bytes: ALL, ..good });
    assert!(matches!(error, Error::TooShort { arg: "workspace", .. }), "{error}");
    let error = refused(&RawPairwiseMixture { y: None, dy: None, ..good });
    assert!(matches!(error, Error::InvalidOption { op: "pairwise_mixture_single", arg: "parts.objective", .. }));
    let error = refused(&RawPairwiseMixture { ignore_cols: RawBuf::new(0x7000, 4), ..good });
    assert!(matches!(error, Error::InvalidOption { arg: "options.ignore_cols", .. }), "{error}");
    let error = refused(&RawPairwiseMixture { parts: &[], ..good });
    assert!(matches!(error, Error::InvalidOption { arg: "parts", .. }), "{error}");
    for weight in [1e39, -1e39] {
        let large = [PairwisePart::new(weight, PairwiseObjective::ALL[0])];
        match refused(&RawPairwiseMixture { parts: &large, ..good }) {
            Error::InvalidOption { op: of, arg: "parts.weight", expected, got } => {
                assert_eq!((of, expected.as_str(), got), (op, "a number that f32 can hold", weight.to_string()));
            }
            error => panic!("{error}"),
        }
    }
}

const HOT: &str = "infonce 0.5*siglip 0.1*hinge-con";

#[test]
fn child_runs_a_hot_step() {
    if is_child("child_runs_a_hot_step") {
        let (_, kernels) = device().expect("a device");
        runs_a_hot_step(kernels, &parts(HOT)[..], || {});
    }
}

#[test]
fn a_hot_step_is_launches_and_nothing_that_waits_copies_or_allocates() {
    if device().is_some() {
        check_hot_step(launches_of(&parts(HOT), 1));
    }
}

#[test]
fn child_steps_through_refused_launches() {
    if is_child("child_steps_through_refused_launches") {
        let (_, kernels) = device().expect("a device");
        steps_through_a_refused_launch::<f32>(kernels, &parts("infonce hinge-con")[..], [10, 10, 8]);
    }
}

#[test]
fn every_refused_launch_names_its_kernel_and_leaves_the_gradients_alone() {
    if device().is_none() || !emulated("child_steps_through_refused_launches") {
        return;
    }
    check_refused_launches(&[
        "prepare_f32",
        "pairwise_stats_both_f32",
        "pairwise_finalize",
        "mine_small_f32",
        "goal_finalize",
        "pairwise_weights_both_f32",
        "pairwise_weights_both_f32",
        "pairwise_grad_f32",
        "pairwise_mixture_report",
        "pairwise_mixture_report",
        "pairwise_finish_f32_f32",
    ]);
}
