//! The triplet hinge on mined negatives on device memory: capture, replay, workspace, guards, and refusals.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{Guarded, capture, device, kernel_nodes, turn};
use cudarc::driver::CudaStream;
use simgrad::cuda::{
    DeviceElement, DeviceGroups, DeviceMat, DeviceMatMut, DeviceStepOptions, Kernels, Upstream, mined_triplet_step,
    mined_triplet_workspace_bytes,
};
use simgrad::{
    DType, Error, Fallback, Groups, MatRef, MinedTriplet, MinedTripletReport, Normalization, Reduction, StepOptions,
    WriteMode, reference,
};

/// Multiples of 1/16, whose similarities are exact.
fn sixteenths<T: DeviceElement>(len: usize, seed: u64, unit: f64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::from_f64(((state >> 33) % 5) as f64 * unit - 2.0 * unit)
    };
    (0..len).map(|_| next()).collect()
}

/// Outputs of a call between guards.
struct Out {
    shape: [usize; 3],
    dx: Guarded<f32>,
    dy: Guarded<f32>,
    report: Guarded<MinedTripletReport>,
    workspace: Guarded<u8>,
}

impl Out {
    fn new(stream: &Arc<CudaStream>, [n, m, d]: [usize; 3], bytes: usize) -> Self {
        Self {
            shape: [n, m, d],
            dx: Guarded::poisoned(stream, n * d),
            dy: Guarded::poisoned(stream, m * d),
            report: Guarded::poisoned(stream, 1),
            workspace: Guarded::poisoned(stream, bytes),
        }
    }

    fn enqueue<T: DeviceElement>(
        &mut self,
        (kernels, stream): (&Kernels, &CudaStream),
        x: &DeviceMat<'_, T>,
        y: &DeviceMat<'_, T>,
        objective: &MinedTriplet,
        options: &DeviceStepOptions<'_>,
    ) -> simgrad::Result<()>
    where
        f32: simgrad::GradientOf<T>,
    {
        let [n, m, d] = self.shape;
        let mut dx = DeviceMatMut::new(self.dx.view_mut(), n, d).unwrap();
        let mut dy = DeviceMatMut::new(self.dy.view_mut(), m, d).unwrap();
        let (report, workspace) = (&mut self.report.view_mut(), &mut self.workspace.view_mut());
        mined_triplet_step(kernels, stream, x, y, objective, options, &mut dx, &mut dy, report, workspace)
    }

    fn read(&self, stream: &Arc<CudaStream>) -> (MinedTripletReport, Vec<f32>, Vec<f32>) {
        self.workspace.read(stream, "workspace");
        let report = self.report.read(stream, "report")[0];
        (report, self.dx.read(stream, "dx"), self.dy.read(stream, "dy"))
    }
}

/// Captured and replayed on a workspace that holds what the first run has left, against the reference; integers, so that
/// nothing is rounded but the loss.
fn case<T: DeviceElement>([n, m, d]: [usize; 3], objective: &MinedTriplet)
where
    f32: simgrad::GradientOf<T>,
{
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (x, y) = (sixteenths::<T>(n * d, 1, 0.0625), sixteenths::<T>(m * d, 2, 1.0));
    let row_ids: Vec<i64> = (0..n as i64).map(|i| i % 17).collect();
    let col_ids: Vec<i64> = (0..m as i64).map(|j| j % 19).collect();
    let (device_x, device_y) = (Guarded::of(&stream, &x), Guarded::of(&stream, &y));
    let (device_rows, device_cols) = (Guarded::of(&stream, &row_ids), Guarded::of(&stream, &col_ids));
    let upstream = Guarded::of(&stream, &[0.5f32]);
    let want = reference::mined_triplet_step(
        MatRef::new(&x, n, d).unwrap(),
        MatRef::new(&y, m, d).unwrap(),
        objective,
        &StepOptions {
            normalization: Normalization::None,
            groups: Some(Groups { rows: &row_ids, cols: &col_ids }),
            upstream: 0.5,
            write: WriteMode::Overwrite,
        },
    );
    assert!(want.report.active > 0 && want.report.active < want.report.triplets, "{:?}", want.report);
    let options = DeviceStepOptions {
        normalization: Normalization::None,
        groups: Some(DeviceGroups { rows: device_rows.view(), cols: device_cols.view() }),
        upstream: Upstream::Device(upstream.view()),
        write: WriteMode::Overwrite,
    };
    let (x, y) = (DeviceMat::new(device_x.view(), n, d).unwrap(), DeviceMat::new(device_y.view(), m, d).unwrap());
    let bytes = mined_triplet_workspace_bytes(n, m, d, T::DTYPE, objective, Normalization::None).unwrap();
    let mut out = Out::new(&stream, [n, m, d], bytes);
    let graph = capture(&stream, || out.enqueue((kernels, &stream), &x, &y, objective, &options).unwrap());
    // Few weights are sorted by one block per side.
    assert!(kernel_nodes(&graph) <= if n.min(m) * (1 + 2 * objective.k) <= 2048 { 9 } else { 12 });
    let check = |out: &Out| {
        let (report, dx, dy) = out.read(&stream);
        let close = |got: f64, want: f64| assert!((got - want).abs() <= 1e-12 * want.abs(), "{got} {want}");
        close(report.loss, want.report.loss);
        close(report.mean_positive, want.report.mean_positive);
        close(report.mean_negative, want.report.mean_negative);
        let (loss, mean_positive, mean_negative) = (report.loss, report.mean_positive, report.mean_negative);
        assert_eq!(report, MinedTripletReport { loss, mean_positive, mean_negative, ..want.report });
        let scale = if objective.reduction == Reduction::Mean { 1e-6 } else { 0.0 };
        for (got, want) in [(&dx, &want.dx), (&dy, &want.dy)] {
            assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() <= scale * w.abs()));
        }
        (report, dx, dy)
    };
    graph.launch().unwrap();
    let first = check(&out);
    graph.launch().unwrap();
    assert_eq!(check(&out), first, "other bits in the second run");
    context.check_err().unwrap();
}

#[test]
fn a_captured_call_is_kernels_alone_and_can_be_replayed() {
    case::<f32>([150, 200, 12], &MinedTriplet { margin: 0.21, k: 40, ..MinedTriplet::semi_hard() });
    case::<half::bf16>([140, 60, 16], &MinedTriplet { margin: 0.21, skip: 2, k: 40, ..MinedTriplet::random(40, 4) });
    let mean = MinedTriplet { reduction: Reduction::Mean, fallback: Fallback::Easiest, ..MinedTriplet::semi_hard() };
    case::<half::f16>([270, 130, 8], &MinedTriplet { margin: 0.21, k: 9, ..mean });
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_enqueued() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let x = Guarded::of(&stream, &[1.0f32; 12]);
    let mat = || DeviceMat::new(x.view(), 3, 4).unwrap();
    let good = MinedTriplet::semi_hard();
    let bytes = mined_triplet_workspace_bytes(3, 3, 4, DType::F32, &good, Normalization::L2).unwrap();
    let refused = |shape, bytes, objective: MinedTriplet| {
        let mut out = Out::new(&stream, shape, bytes);
        let options = DeviceStepOptions::default();
        let error = out.enqueue((kernels, &stream), &mat(), &mat(), &objective, &options).expect_err("an error");
        let (_, dx, dy) = out.read(&stream);
        assert!(dx.iter().chain(&dy).all(|v| v.is_nan()), "{error}: something was written");
        error
    };
    let error = refused([3, 3, 4], bytes - 1, good);
    assert!(error.to_string().contains("workspace"), "{error}");
    let error = refused([2, 3, 4], bytes, good);
    assert!(matches!(error, Error::ShapeMismatch { arg: "dx.rows", expected: 3, got: 2, .. }), "{error}");
    let error = refused([3, 3, 4], bytes, MinedTriplet { k: 0, ..good });
    assert!(matches!(error, Error::InvalidOption { arg: "options.k", .. }), "{error}");
    let error = refused([3, 3, 4], bytes, MinedTriplet { margin: f64::NAN, ..good });
    assert!(matches!(error, Error::InvalidOption { arg: "objective.margin", .. }), "{error}");
    let most = mined_triplet_workspace_bytes(
        1 << 21,
        1 << 21,
        4,
        DType::F32,
        &MinedTriplet { k: 1024, ..good },
        Normalization::L2,
    );
    assert!(matches!(most, Err(Error::TooLarge { arg: "places for weights", .. })), "{most:?}");
    for (arg, objective) in [
        ("options.k", MinedTriplet { k: usize::MAX, ..good }),
        ("options.skip", MinedTriplet { skip: usize::MAX, ..good }),
    ] {
        let bytes = mined_triplet_workspace_bytes(3, 3, 4, DType::F32, &objective, Normalization::L2);
        assert!(matches!(bytes, Err(Error::InvalidOption { arg: named, .. }) if named == arg), "{bytes:?}");
    }
}
