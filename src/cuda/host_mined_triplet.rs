//! The triplet hinge on mined negatives, on matrices in host memory; see [`host`](super::host).

use super::gather::RawUpstream;
use super::goal_plan::RawGroups;
use super::host::{Cuda, upload_groups};
use super::host_memory::{Session, write_rows};
use super::mined_triplet::{OP, RawMinedTriplet, mined_triplet_step_raw, mined_triplet_workspace_bytes};
use crate::check;
use crate::dtype::{Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::mined_triplet::{MinedTriplet, MinedTripletReport};
use crate::options::StepOptions;

/// As [`crate::cpu::mined_triplet_step`].
///
/// # Errors
/// Those of the CPU, [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) for `f64`, and those of the driver.
#[allow(clippy::too_many_arguments)]
pub fn mined_triplet_step<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &MinedTriplet,
    options: &StepOptions<'_>,
    mut dx: MatMut<'_, G>,
    mut dy: MatMut<'_, G>,
) -> Result<MinedTripletReport> {
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    let gradients = [(dx.rows(), dx.cols()), (dy.rows(), dy.cols())];
    let rules = objective.rules(options.normalization, options.groups);
    check::mined_triplet(OP, (n, d), (m, y.cols()), objective, &rules, gradients)?;
    let session = Session::begin(OP, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = mined_triplet_workspace_bytes(n, m, d, T::DTYPE, objective, options.normalization)?;
    let (_x, x) = session.upload_mat(x)?;
    let (_y, y) = session.upload_mat(y)?;
    let groups = upload_groups(&session, options.groups)?;
    let (dx_buffer, raw_dx) = session.result_mat(dx.as_ref(), options.write)?;
    let (dy_buffer, raw_dy) = session.result_mat(dy.as_ref(), options.write)?;
    let report = session.alloc_of::<MinedTripletReport>(1)?;
    let workspace = session.alloc(bytes)?;
    let args = RawMinedTriplet {
        x,
        y,
        objective,
        normalization: options.normalization,
        groups: groups.as_ref().map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(m) }),
        upstream: RawUpstream::Host(options.upstream as f32),
        write: options.write,
        dx: raw_dx,
        dy: raw_dy,
        report: report.raw(1),
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { mined_triplet_step_raw(cuda.kernels(), cuda.stream(), &args) }?;
    let report = session.download_vec::<MinedTripletReport>(&report, 1)?[0];
    let (new_dx, new_dy) = (session.fetch(&dx_buffer, &dx)?, session.fetch(&dy_buffer, &dy)?);
    write_rows(&new_dx, &mut dx);
    write_rows(&new_dy, &mut dy);
    Ok(report)
}
