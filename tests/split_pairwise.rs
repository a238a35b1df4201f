//! Steps over all pairs of f32 rows in parts of bf16, against the f64 reference. Devices that do not multiply so, and the CPU,
//! give the bits of full precision.
#![cfg(feature = "cuda")]

mod common;
mod cuda_support;

use common::data::{Kind, LAYOUTS, Matrix, TIGHT, pair};
use common::pairwise::{PairwiseCase, pairwise_case, relative};
use common::{cuda, gpu_required, on_every_backend};
use cuda_support::pairwise::{InParts, L2, PLENTY, Step, plain, replay_equals_eager};
use cuda_support::{Guarded, by_groups, device, turn};
use simgrad::cuda::{
    DeviceGroups, DeviceMat, DeviceMatMut, DevicePairwiseOptions, pairwise_mixture, pairwise_mixture_workspace_bytes,
    pairwise_single_workspace_bytes, pairwise_step, pairwise_step_single, pairwise_workspace_bytes,
};
use simgrad::{
    Backend, DType, Groups, MixtureObjective, Normalization, Objective, PairwiseObjective, PairwiseOptions,
    PairwisePart, PairwiseReport, Precision, WriteMode, reference,
};

const SPLIT: Precision = Precision::SplitBf16;

/// The CUDA backend, if there is one, and whether it multiplies in parts.
fn backend() -> Option<(&'static Backend, bool)> {
    match cuda() {
        Ok(backend) => {
            let Backend::Cuda(cuda) = backend else { return None };
            let device = cuda.kernels().plan_device();
            Some((backend, device.compute_capability == (9, 0) && device.group_code))
        }
        Err(reason) => {
            assert!(!gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            eprintln!("note: skipped: {reason}");
            None
        }
    }
}

fn case(shape: (usize, usize, usize), objective: PairwiseObjective) -> PairwiseCase<f32> {
    PairwiseCase { precision: SPLIT, ..pairwise_case(Kind::Sphere, shape, objective, 5) }
}

#[test]
fn every_objective() {
    let Some((backend, _)) = backend() else { return };
    for (at, objective) in PairwiseObjective::ALL.into_iter().enumerate() {
        let check = |what: &str, case: &PairwiseCase<f32>| {
            let (n, m, d) = (case.x.rows, case.y.rows, case.x.cols);
            let got = case.run::<f32>(backend, LAYOUTS[at % 4]);
            // Logits are up to 256 times similarities, whose errors have a standard deviation of 5e-6 / √d.
            let of_logits = 256.0 * 1e-5 / (d as f64).sqrt();
            case.check(&format!("{what} {objective} {n}x{m}x{d}"), &got, relative::<f32>() + of_logits);
        };
        check("plain", &case((7, 9, 5), objective));
        check("plain", &case((130, 67, 64), objective));
        check("everything", &case((61, 140, 33), objective).with_everything(at as u64));
        check("set", &PairwiseCase { single: true, ..case((70, 70, 20), objective) });
        check("raw", &PairwiseCase { normalization: Normalization::None, ..case((33, 20, 72), objective) });
    }
}

/// Of the Frobenius norm of a gradient, over both.
fn error(got: [&[f64]; 2], want: [&[f64]; 2]) -> f64 {
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        (0..2).flat_map(|i| got[i].iter().zip(want[i])).map(|(g, w)| of(*g, *w)).sum()
    };
    (sum(&|g, w| (g - w) * (g - w)) / sum(&|_, w| w * w)).sqrt()
}

/// Weights in bf16 alone would make an error of 1e-3, rows in bf16 alone one of 2e-3.
#[test]
fn gradients_are_of_f32_grade() {
    let Some((backend, parts)) = backend() else { return };
    for name in ["infonce", "siglip", "contrastive", "triplet-all", "circle"] {
        let objective = name.parse().unwrap();
        let split = case((200, 150, 64), objective);
        let want = split.reference();
        let run = |precision| {
            let got = PairwiseCase { precision, ..split.clone() }.run::<f32>(backend, TIGHT);
            (got.dx.written(name), got.dy.written(name))
        };
        let ((dx, dy), full) = (run(SPLIT), run(Precision::Full));
        let off = error([&dx, &dy], [&want.dx, &want.dy]);
        assert!(off <= 5e-5, "{name}: {off:e}");
        assert_eq!((dx, dy) != full, parts, "{name}: in parts exactly where there are kernels for that");
    }
}

#[test]
fn the_cpu_has_one_precision() {
    on_every_backend(|backend| {
        if backend.name() != "cpu" {
            return;
        }
        let split = case((40, 30, 20), PairwiseObjective::ALL[0]);
        let full = PairwiseCase { precision: Precision::Full, ..split.clone() };
        let [split, full] = [&split, &full].map(|case| case.run::<f32>(backend, TIGHT));
        assert_eq!(
            (split.dx.values(), split.dy.values(), split.report),
            (full.dx.values(), full.dy.values(), full.report)
        );
    });
}

/// Rows that are not finite, masked or not: what is not finite under full precision, and nothing else.
#[test]
fn rows_that_are_not_finite() {
    let Some((backend, _)) = backend() else { return };
    let l2 = Normalization::L2;
    let cases =
        [("infonce", false, l2), ("infonce", true, l2), ("siglip", true, l2), ("ms", false, l2), ("supcon", true, l2)];
    let raw = [("siglip", false, Normalization::None), ("contrastive", false, Normalization::None)];
    for (name, everything, normalization) in cases.into_iter().chain(raw) {
        let objective = name.parse().unwrap();
        let mut split = PairwiseCase { normalization, ..case((70, 66, 24), objective) };
        if everything {
            split = split.with_everything(3);
        }
        split.x.set_row(4, |k| if k == 2 && normalization == l2 { f64::NAN } else { 1.0 });
        split.y.set_row(9, |k| if k == 3 { f64::INFINITY } else { 0.5 });
        split.x.set_row(33, |_| 0.0);
        let full = PairwiseCase { precision: Precision::Full, ..split.clone() };
        let [split, full] = [&split, &full].map(|case| case.run::<f32>(backend, TIGHT));
        let finite = |m: &Matrix<f32>| m.written(name).iter().map(|v| v.is_finite()).collect::<Vec<_>>();
        assert_eq!([finite(&split.dx), finite(&split.dy)], [finite(&full.dx), finite(&full.dy)], "{name} {everything}");
        let counts = |r: &PairwiseReport| (r.positives, r.negatives, r.nan_x, r.nan_y, r.zero_x, r.overflow);
        assert_eq!(counts(&split.report), counts(&full.report), "{name}");
    }
}

/// Waves of one row of tiles, an odd number of them, panels of columns and ragged rows; alone, and with similarities kept.
#[test]
fn waves_and_mixtures() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let info_nce = PairwiseObjective::InfoNce { scale: 10.0 };
    let parts =
        [PairwisePart::new(0.5, info_nce), PairwisePart::new(2.0, "siglip".parse::<PairwiseObjective>().unwrap())];
    let l2 = Normalization::L2;
    for (n, m, d, wave_bytes, keep_bytes) in
        [(300, 200, 40, 1, 0), (300, 200, 64, 1, 1 << 30), (257, 130, 130, 1 << 30, 0)]
    {
        let (x, y) = pair(Kind::Sphere, 4, n, m, d);
        let (x, y) = (Matrix::<f32>::new(&x, n, d, TIGHT), Matrix::<f32>::new(&y, m, d, TIGHT));
        let options = PairwiseOptions::default();
        for mixed in [false, true] {
            let parts = if mixed { &parts[..] } else { &parts[..1] };
            let mut want = [vec![0.0; n * d], vec![0.0; m * d]];
            for part in parts {
                let MixtureObjective::Pairwise(objective) = &part.objective else { unreachable!() };
                let one = reference::pairwise_step(x.view(), y.view(), objective, &options);
                for (sum, one) in want.iter_mut().zip([one.dx, one.dy]) {
                    let weight = if mixed { part.weight } else { 1.0 };
                    sum.iter_mut().zip(one).for_each(|(sum, g)| *sum += weight * g);
                }
            }
            let bytes = if mixed {
                pairwise_mixture_workspace_bytes(n, m, d, DType::F32, parts, l2, wave_bytes, keep_bytes, SPLIT, false)
            } else {
                pairwise_workspace_bytes(n, m, d, DType::F32, &info_nce, l2, wave_bytes, keep_bytes, SPLIT)
            };
            let [xs, ys] = [&x, &y].map(|m| Guarded::of(&stream, &m.elements()));
            let (mut dx, mut dy) = (Guarded::<f32>::poisoned(&stream, n * d), Guarded::poisoned(&stream, m * d));
            let mut workspace = Guarded::<u8>::poisoned(&stream, bytes.unwrap());
            let mut reports = stream.clone_htod(&vec![PairwiseReport::default(); parts.len()]).unwrap();
            let options =
                DevicePairwiseOptions { wave_bytes, keep_bytes, precision: SPLIT, ..DevicePairwiseOptions::default() };
            {
                let (x, y) = (DeviceMat::new(xs.view(), n, d).unwrap(), DeviceMat::new(ys.view(), m, d).unwrap());
                let mut gx = DeviceMatMut::new(dx.view_mut(), n, d).unwrap();
                let mut gy = DeviceMatMut::new(dy.view_mut(), m, d).unwrap();
                let (r, w) = (&mut reports.as_view_mut(), &mut workspace.view_mut());
                if mixed {
                    pairwise_mixture(kernels, &stream, &x, &y, parts, &options, &mut gx, &mut gy, r, None, w).unwrap();
                } else {
                    pairwise_step(kernels, &stream, &x, &y, &info_nce, &options, &mut gx, &mut gy, r, w).unwrap();
                }
            }
            workspace.read(&stream, "workspace");
            let got = [dx.read(&stream, "dx"), dy.read(&stream, "dy")].map(|g| common::data::to_f64(&g));
            let off = error([&got[0], &got[1]], [&want[0], &want[1]]);
            assert!(off <= 3e-5, "{n} {m} {d} {wave_bytes} {mixed}: {off:e}");
        }
    }
    context.check_err().unwrap();
}

/// One launch more than in full precision where rows are split, and none of it reads what was in the workspace.
#[test]
fn captured_steps_and_used_workspaces() {
    let Some((context, kernels)) = device() else { return };
    let stream = context.new_stream().unwrap();
    let split = usize::from(by_groups(kernels));
    // Launches in full precision.
    for (name, launches, shape, grant) in [
        ("infonce", 8, [140, 30, 8], (0, 0)),
        ("siglip", 5, [40, 300, 72], PLENTY),
        ("triplet-all", 7, [10, 20, 9], PLENTY),
        ("ms-mined", 8, [130, 20, 24], (PLENTY.0, 1 << 20)),
    ] {
        let of = InParts(name.parse().unwrap());
        replay_equals_eager::<f32, f32>(kernels, &of, name, shape, grant, launches + split);
        let _turn = turn();
        let step = Step::<f32, f32>::new(&stream, &of, shape, grant, 5);
        step.does_not_depend_on_its_workspace(kernels, &stream, &of, name);
    }
}

/// A set with itself in several waves, with groups and rows that are left out.
#[test]
fn waves_of_a_set() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (n, d) = (300, 40);
    let (x, _) = pair(Kind::Sphere, 4, n, n, d);
    let x = Matrix::<f32>::new(&x, n, d, TIGHT);
    let ids: Vec<i64> = (0..n as i64).map(|i| i % 70).collect();
    let ignored: Vec<bool> = (0..n).map(|i| i % 11 == 3).collect();
    let (xs, there) = (Guarded::of(&stream, &x.elements()), Guarded::of(&stream, &ids));
    let masks = Guarded::of(&stream, &ignored.iter().map(|&ignored| u8::from(ignored)).collect::<Vec<_>>());
    for name in ["supcon", "ms-mined", "circle"] {
        let objective: PairwiseObjective = name.parse().unwrap();
        let run = |wave_bytes, precision| {
            let bytes =
                pairwise_single_workspace_bytes(n, d, DType::F32, &objective, L2, wave_bytes, 0, precision).unwrap();
            let mut workspace = Guarded::<u8>::poisoned(&stream, bytes);
            let mut dx = Guarded::<f32>::poisoned(&stream, n * d);
            let mut report = stream.clone_htod(&[PairwiseReport::default()]).unwrap();
            {
                let groups = Some(DeviceGroups { rows: there.view(), cols: there.view() });
                let ignore_rows = Some(masks.view());
                let options = DevicePairwiseOptions { groups, ignore_rows, wave_bytes, precision, ..plain() };
                let x = DeviceMat::new(xs.view(), n, d).unwrap();
                let mut dx = DeviceMatMut::new(dx.view_mut(), n, d).unwrap();
                let (report, work) = (&mut report.as_view_mut(), &mut workspace.view_mut());
                pairwise_step_single(kernels, &stream, &x, &objective, &options, &mut dx, report, work).unwrap();
            }
            workspace.read(&stream, "workspace");
            dx.read(&stream, "dx")
        };
        let (one, all, full) = (run(1, SPLIT), run(PLENTY.0, SPLIT), run(PLENTY.0, Precision::Full));
        assert_eq!(all != full, by_groups(kernels), "{name}: in parts exactly where there are kernels for that");
        let groups = Some(Groups { rows: &ids, cols: &ids });
        let options = PairwiseOptions { groups, ignore_rows: Some(&ignored), ..PairwiseOptions::default() };
        let want = reference::pairwise_step_single(x.view(), &objective, &options).dx;
        for (waves, got) in [("several", one), ("one", all)] {
            let off = error([&common::data::to_f64(&got), &[]], [&want, &[]]);
            assert!(off <= 5e-5, "{name} in {waves}: {off:e}");
        }
    }
    context.check_err().unwrap();
}

/// Gradients are added to what is there.
#[test]
fn accumulation() {
    let Some((backend, _)) = backend() else { return };
    let split = case((40, 50, 24), PairwiseObjective::ALL[0]);
    let fresh = split.run::<f32>(backend, TIGHT);
    let ones = |m: &Matrix<f32>| Matrix::<f32>::new(&vec![1.0; m.rows * m.cols], m.rows, m.cols, TIGHT);
    let added = split.run_onto::<f32>(backend, WriteMode::Accumulate, ones(&fresh.dx), ones(&fresh.dy));
    for (added, fresh) in [(&added.dx, &fresh.dx), (&added.dy, &fresh.dy)] {
        let want: Vec<f32> = fresh.elements().iter().map(|g| 1.0 + g).collect();
        assert_eq!(added.elements(), want);
    }
}

/// A GOAL part mines among the similarities that the other parts see; conflicts are computed by steps of the same kind.
#[test]
fn mixtures_with_goal_parts() {
    let Some((backend, in_parts)) = backend() else { return };
    let (n, d) = (140, 48);
    let (x, y) = pair(Kind::Sphere, 8, n, n, d);
    let (x, y) = (Matrix::<f32>::new(&x, n, d, TIGHT), Matrix::<f32>::new(&y, n, d, TIGHT));
    let goal = |name: &str| PairwisePart::new(0.7, name.parse::<Objective>().unwrap());
    let info_nce = PairwisePart::new(0.5, PairwiseObjective::InfoNce { scale: 10.0 });
    for parts in [vec![goal("nca-sig_ms")], vec![goal("hinge-con"), info_nce, goal("cir-lin_ms")]] {
        let run = |precision| {
            let (mut dx, mut dy) = (Matrix::<f32>::poisoned(n, d, TIGHT), Matrix::<f32>::poisoned(n, d, TIGHT));
            let options = PairwiseOptions { precision, ..PairwiseOptions::default() };
            let (gx, gy) = (dx.view_mut(), dy.view_mut());
            let report = backend.pairwise_mixture(x.view(), y.view(), &parts, &options, true, gx, gy).unwrap();
            (dx.written("dx"), dy.written("dy"), report.conflict.unwrap())
        };
        let (split, full) = (run(SPLIT), run(Precision::Full));
        assert_eq!(split.0 != full.0, in_parts, "{parts:?}");
        let off = error([&split.0, &split.1], [&full.0, &full.1]);
        assert!(off <= 1e-4, "{parts:?}: {off:e}");
        for (g, w) in split.2.norms.iter().chain(&split.2.cosines).zip(full.2.norms.iter().chain(&full.2.cosines)) {
            assert!((g - w).abs() <= 1e-4 * w.abs().max(1.0), "{parts:?}: {g} {w}");
        }
    }
}
