//! The statistics of a pairwise step alone: its loss, bit for bit, and no gradient.
#![cfg(feature = "cuda")]

mod cuda_support;

use cuda_support::pairwise::{L2, Step};
use cuda_support::{POISON, device, turn};
use cudarc::driver::DevicePtr;
use half::bf16;
use simgrad::cuda::raw::{self, RawPairwiseStep, RawUpstream};
use simgrad::cuda::{DeviceElement, RawBuf, RawMat};
use simgrad::{DType, Error, GradientOf, PairwiseObjective, Precision, WriteMode};

const WAVE: usize = 1 << 20;

/// Runs the step or its statistics; the report's loss, and whether a gradient was written.
fn loss<T: DeviceElement>(
    objective: &PairwiseObjective,
    statistics: bool,
    workspace_short: usize,
) -> Result<(f64, bool), Error>
where
    f32: GradientOf<T>,
{
    let (context, kernels) = device().expect("a device");
    let stream = context.new_stream().unwrap();
    let (n, m, d) = (130, 70, 40);
    let step = Step::<T, f32>::new(&stream, objective, [n, m, d], (WAVE, 0), 1);
    let (workspace, reports) = (step.workspace.view(), step.reports.view());
    let a = RawPairwiseStep {
        x: RawMat::new(step.x.view().device_ptr(&stream).0, n, d, T::DTYPE),
        y: Some(RawMat::new(step.y.view().device_ptr(&stream).0, m, d, T::DTYPE)),
        objective,
        normalization: L2,
        groups: None,
        ignore_rows: RawBuf::NULL,
        ignore_cols: RawBuf::NULL,
        row_weights: RawBuf::NULL,
        col_weights: RawBuf::NULL,
        log_q: RawBuf::NULL,
        upstream: RawUpstream::Host(1.0),
        write: WriteMode::Overwrite,
        dx: RawMat::new(step.dx.view().device_ptr(&stream).0, n, d, DType::F32),
        dy: Some(RawMat::new(step.dy.view().device_ptr(&stream).0, m, d, DType::F32)),
        report: RawBuf::new(reports.device_ptr(&stream).0, 1),
        wave_bytes: WAVE,
        keep_bytes: 0,
        precision: Precision::Full,
        workspace: RawBuf::new(workspace.device_ptr(&stream).0, workspace.len() - workspace_short),
    };
    // SAFETY: every buffer is a live allocation of this length; the stream is waited for below.
    unsafe {
        if statistics {
            raw::pairwise_statistics(kernels, &stream, &a)?;
        } else {
            raw::pairwise_step(kernels, &stream, &a)?;
        }
    }
    let found = step.outcome(&stream);
    let written = |g: &[f32]| g.iter().any(|v| v.to_bits() != u32::from_ne_bytes([POISON; 4]));
    Ok((found.report().loss, written(&found.dx) || written(&found.dy)))
}

fn same<T: DeviceElement>()
where
    f32: GradientOf<T>,
{
    for objective in [PairwiseObjective::InfoNce { scale: 20.0 }, PairwiseObjective::SupCon { tau: 0.1 }] {
        let (whole, written) = loss::<T>(&objective, false, 0).unwrap();
        assert!(written && whole.is_finite() && whole > 0.1, "{objective}: {whole}");
        let (alone, written) = loss::<T>(&objective, true, 0).unwrap();
        assert_eq!(alone.to_bits(), whole.to_bits(), "{objective} {}: {alone} {whole}", T::DTYPE);
        assert!(!written, "{objective} {}: a gradient was written", T::DTYPE);
    }
}

#[test]
fn the_loss_is_that_of_the_step_and_no_gradient_is_written() {
    if device().is_none() {
        return;
    }
    let _turn = turn();
    same::<f32>();
    same::<bf16>();
}

#[test]
fn arguments_are_checked_as_those_of_the_step() {
    if device().is_none() {
        return;
    }
    let _turn = turn();
    let objective = PairwiseObjective::InfoNce { scale: 20.0 };
    let [step, statistics] = [false, true].map(|alone| loss::<f32>(&objective, alone, 1).unwrap_err());
    assert!(matches!(step, Error::TooShort { op: "pairwise_step", arg: "workspace", .. }), "{step}");
    assert_eq!(statistics, step);
}
