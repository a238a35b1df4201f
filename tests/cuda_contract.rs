//! What the functions on device memory promise beside their results: they only enqueue kernels, can be captured and
//! replayed, do not depend on what was in their buffers, write nothing beside them, and leave the caller's thread as it
//! was.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{Guarded, Step, capture, check_hot_step, device, hot, is_child, kernel_nodes, numbers, turn};
use cudarc::driver::{CudaStream, result};
use half::{bf16, f16};
use simgrad::cuda::*;
use simgrad::{CosineOptions, Error, GradReport, Normalization, Objective, Precision, TiePolicy, WriteMode};

fn objective(name: &str) -> Objective {
    name.parse().unwrap()
}

fn replay_equals_eager<T: DeviceElement, G: simgrad::GradientOf<T> + DeviceElement>(name: &str, n: usize, d: usize) {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective = objective(name);
    let options = DeviceStepOptions::default();
    let mut captured = Step::<T, G>::new(&stream, n, d, &objective, 1);
    let graph = capture(&stream, || captured.enqueue(kernels, &stream, &objective, &options).unwrap());
    assert_eq!(kernel_nodes(&graph), 3, "launches of a step");
    for seed in [1, 40, 80] {
        captured.x.set(&stream, &numbers(n * d, seed));
        captured.y.set(&stream, &numbers(n * d, seed + 1));
        graph.launch().unwrap();
        let mut eager = Step::<T, G>::new(&stream, n, d, &objective, seed);
        eager.enqueue(kernels, &stream, &objective, &options).unwrap();
        assert_eq!(captured.outcome(&stream), eager.outcome(&stream), "{name}, inputs {seed}");
    }
    context.check_err().unwrap();
}

#[test]
fn a_captured_step_is_three_kernels_and_replays_with_other_inputs() {
    replay_equals_eager::<f32, f32>("con-con", 40, 20);
    replay_equals_eager::<bf16, f32>("nca-lin_ms", 40, 24);
    replay_equals_eager::<f16, f16>("cir-sig_ms", 130, 9);
}

/// Captures one call of every other operation.
#[test]
fn every_operation_can_be_captured_strictly() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (n, m, d) = (33, 20, 12);
    let x = Guarded::of(&stream, &numbers::<f32>(n * d, 1));
    let y = Guarded::of(&stream, &numbers::<f32>(m * d, 2));
    let x_mat = || DeviceMat::new(x.view(), n, d).unwrap();
    let y_mat = || DeviceMat::new(y.view(), m, d).unwrap();

    let mut norms = Guarded::<f32>::poisoned(&stream, n);
    let graph = capture(&stream, || row_norms(kernels, &stream, &x_mat(), &mut norms.view_mut()).unwrap());
    assert_eq!(kernel_nodes(&graph), 1);

    let mut unit = Guarded::<f32>::poisoned(&stream, n * d);
    let graph = capture(&stream, || {
        let mut out = DeviceMatMut::new(unit.view_mut(), n, d).unwrap();
        normalize(kernels, &stream, &x_mat(), &mut out).unwrap();
    });
    assert_eq!(kernel_nodes(&graph), 1);

    let grad = Guarded::of(&stream, &numbers::<f32>(n * d, 3));
    let graph = capture(&stream, || {
        let mut out = DeviceMatMut::new(unit.view_mut(), n, d).unwrap();
        let grad = DeviceMat::new(grad.view(), n, d).unwrap();
        normalize_backward(kernels, &stream, &x_mat(), &grad, WriteMode::Overwrite, &mut out).unwrap();
    });
    assert_eq!(kernel_nodes(&graph), 1);

    for precision in [Precision::Full, Precision::SplitBf16] {
        let options = CosineOptions { precision, ..CosineOptions::default() };
        let mut s = Guarded::<f16>::poisoned(&stream, n * m);
        let bytes = cosine_matrix_workspace_bytes(1, n, m, d, simgrad::DType::F32, &options).unwrap();
        let mut work = Guarded::poisoned(&stream, bytes);
        let graph = capture(&stream, || {
            let x = DeviceBatch::new(x.view(), 1, n, d).unwrap();
            let y = DeviceBatch::new(y.view(), 1, m, d).unwrap();
            let mut out = DeviceBatchMut::new(s.view_mut(), 1, n, m).unwrap();
            let mut short = work.view_mut();
            let refused = cosine_matrix(kernels, &stream, &x, &y, &options, &mut out, &mut short.slice_mut(256..));
            assert!(matches!(refused, Err(Error::TooShort { arg: "workspace", expected, .. }) if expected == bytes));
            cosine_matrix(kernels, &stream, &x, &y, &options, &mut out, &mut work.view_mut()).unwrap();
        });
        assert_eq!(kernel_nodes(&graph), 2);
        graph.launch().unwrap();
        stream.synchronize().unwrap();
        // Everything was written, and nothing beside it.
        assert!(s.read(&stream, "similarities").iter().all(|v| v.is_finite()));
    }

    mining_can_be_captured(kernels, &stream, &x_mat(), &y_mat());
    gradients_can_be_captured(kernels, &stream, &x_mat(), &y_mat());
    context.check_err().unwrap();
}

fn mining_can_be_captured(kernels: &Kernels, stream: &Arc<CudaStream>, x: &DeviceMat<'_, f32>, y: &DeviceMat<'_, f32>) {
    let (n, m, d, l2) = (x.rows(), y.rows(), x.cols(), Normalization::L2);
    let floats = |len| Guarded::<f32>::poisoned(stream, len);
    let ints = |len| Guarded::<i32>::poisoned(stream, len);
    let (mut pos, mut row_value, mut col_value) = (floats(n.min(m)), floats(n), floats(m));
    let (mut row_second, mut col_second) = (floats(n), floats(m));
    let (mut row_index, mut col_index) = (ints(n), ints(m));
    let bytes = mine_workspace_bytes(n, m, d, simgrad::DType::F32, l2, true).unwrap();
    let mut work = Guarded::poisoned(stream, bytes);
    let mut out = DeviceMined {
        positive: pos.view_mut(),
        rows: DeviceHardest {
            value: row_value.view_mut(),
            index: row_index.view_mut(),
            second: Some(row_second.view_mut()),
        },
        cols: DeviceHardest {
            value: col_value.view_mut(),
            index: col_index.view_mut(),
            second: Some(col_second.view_mut()),
        },
        screen: None,
    };
    let options = DeviceMineOptions::default();
    let graph = capture(stream, || mine(kernels, stream, x, y, &options, &mut out, &mut work.view_mut()).unwrap());
    assert_eq!(kernel_nodes(&graph), 3);
    graph.launch().unwrap();
    assert!(row_index.read(stream, "row_index").iter().all(|&i| (0..m as i32).contains(&i)));

    let (mut rows, mut cols) = (ints(n), ints(m));
    let mut work = Guarded::poisoned(stream, ranks_workspace_bytes(n, m, d, simgrad::DType::F32, l2, false).unwrap());
    let options = DeviceRanksOptions { ties: TiePolicy::Pessimistic, ..DeviceRanksOptions::default() };
    let graph = capture(stream, || {
        let (rows, cols) = (&mut rows.view_mut(), &mut cols.view_mut());
        ranks(kernels, stream, x, y, &options, rows, cols, &mut work.view_mut()).unwrap();
    });
    assert!(kernel_nodes(&graph) <= 4);
    graph.launch().unwrap();
    assert!(cols.read(stream, "cols").iter().all(|&r| (0..n as i32).contains(&r)));
}

fn gradients_can_be_captured(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    x: &DeviceMat<'_, f32>,
    y: &DeviceMat<'_, f32>,
) {
    let (n, m, d, l2) = (x.rows(), y.rows(), x.cols(), Normalization::L2);
    let rows = Guarded::of(stream, &[0, 5, 5, -1, n as i32 - 1]);
    let cols = Guarded::of(stream, &[0, 3, 3, 2, m as i32]);
    let values = Guarded::of(stream, &[1.0f32, 2.0, 3.0, 4.0, 5.0]);
    let upstream = Guarded::of(stream, &[0.5f32]);
    let (mut dx, mut dy) = (Guarded::<f32>::poisoned(stream, n * d), Guarded::<f32>::poisoned(stream, m * d));
    let mut report = stream.clone_htod(&[GradReport { bad_index: 9, overflow: 9 }]).unwrap();
    let bytes = weighted_grad_workspace_bytes(n, m, d, simgrad::DType::F32, 5, l2).unwrap();
    let mut work = Guarded::poisoned(stream, bytes);
    let options = DeviceGradOptions { upstream: Upstream::Device(upstream.view()), ..DeviceGradOptions::default() };
    let graph = capture(stream, || {
        let w = DeviceTriples { rows: rows.view(), cols: cols.view(), values: values.view() };
        let (mut dx, mut dy) =
            (DeviceMatMut::new(dx.view_mut(), n, d).unwrap(), DeviceMatMut::new(dy.view_mut(), m, d).unwrap());
        let (report, work) = (&mut report.as_view_mut(), &mut work.view_mut());
        weighted_grad(kernels, stream, x, y, &w, &options, &mut dx, &mut dy, report, work).unwrap();
    });
    assert_eq!(kernel_nodes(&graph), 3);
    graph.launch().unwrap();
    assert!(dx.read(stream, "dx").iter().all(|v| v.is_finite()));
    assert_eq!(stream.clone_dtoh(&report).unwrap()[0], GradReport { bad_index: 2, overflow: 0 });
}

#[test]
fn results_do_not_depend_on_what_was_in_the_workspace() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    for name in ["hinge-con", "con-sig_ms"] {
        let objective = objective(name);
        let mut step = Step::<f32, f32>::new(&stream, 70, 16, &objective, 5);
        step.enqueue(kernels, &stream, &objective, &DeviceStepOptions::default()).unwrap();
        let first = step.outcome(&stream);
        // As the first step left it, then other bit patterns.
        for fill in [None, Some(0u8), Some(0x55)] {
            if let Some(byte) = fill {
                let len = step.workspace.view().len();
                step.workspace.set(&stream, &vec![byte; len]);
            }
            step.dx.poison(&stream);
            step.dy.poison(&stream);
            step.enqueue(kernels, &stream, &objective, &DeviceStepOptions::default()).unwrap();
            assert_eq!(step.outcome(&stream), first, "{name}, workspace {fill:?}");
        }
    }
}

#[test]
fn the_factor_from_the_device_is_the_factor_from_the_host() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective = objective("nca-sig");
    let factor = Guarded::of(&stream, &[-3.0f32]);
    let outcome = |upstream| {
        let mut step = Step::<f32, f32>::new(&stream, 20, 8, &objective, 5);
        let options = DeviceStepOptions { upstream, ..DeviceStepOptions::default() };
        step.enqueue(kernels, &stream, &objective, &options).unwrap();
        step.outcome(&stream)
    };
    assert_eq!(outcome(Upstream::Host(-3.0)), outcome(Upstream::Device(factor.view())));
}

#[test]
fn a_call_from_another_thread_leaves_that_threads_context_as_it_was() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let objective = objective("con-lin");
    let mut step = Step::<f32, f32>::new(&stream, 12, 8, &objective, 5);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            assert_eq!(result::ctx::get_current().unwrap(), None, "a thread begins without a context");
            step.enqueue(kernels, &stream, &objective, &DeviceStepOptions::default()).unwrap();
            assert_eq!(result::ctx::get_current().unwrap(), None);
            step.outcome(&stream)
        });
        call.join().unwrap()
    });
}

#[test]
fn child_runs_a_hot_step() {
    if !is_child("child_runs_a_hot_step") {
        return;
    }
    let (context, kernels) = device().expect("a device");
    let stream = context.new_stream().unwrap();
    let objective = objective("nca-sig_ms");
    let options = DeviceStepOptions::default();
    let mut step = Step::<bf16, f32>::new(&stream, 40, 16, &objective, 5);
    step.enqueue(kernels, &stream, &objective, &options).unwrap();
    stream.synchronize().unwrap();
    hot(|| step.enqueue(kernels, &stream, &objective, &options).unwrap());
    step.outcome(&stream);
}

#[test]
fn a_hot_step_is_three_launches_and_nothing_that_waits_copies_or_allocates() {
    if device().is_some() {
        check_hot_step(3);
    }
}
