//! The step over all pairs, of one objective and of a mixture, on matrices in host memory; see [`host`](super::host).

use super::compiled_expression::CompiledExpression;
use super::descriptor::RawBuf;
use super::gather::RawUpstream;
use super::goal_plan::RawGroups;
use super::host::{Cuda, upload_groups};
use super::host_memory::{Buffer, Session, write_rows};
use super::pairwise_arguments::check_weights;
use super::pairwise_conflict::pairwise_conflict_len;
use super::pairwise_custom::pairwise_step_custom_raw;
use super::pairwise_custom_plan::{OP as OP_CUSTOM, RawPairwiseCustom, pairwise_custom_workspace_bytes};
use super::pairwise_mixture::{RawPairwiseMixture, enqueue_raw};
use super::pairwise_plan::{Grant, Kind, PAIRWISE_WAVE_BYTES, workspace_bytes};
use crate::check;
use crate::dtype::{Element, GradientOf};
use crate::error::Result;
use crate::expression::Expression;
use crate::matrix::{MatMut, MatRef};
use crate::mixture::{Conflict, MixtureReport, PairwisePart};
use crate::pairwise::{PairwiseObjective, PairwiseOptions, PairwiseReport};

/// As [`crate::cpu::pairwise_step`].
///
/// # Errors
/// Those of the CPU, [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) for `f64`, and those of the driver.
#[allow(clippy::too_many_arguments)]
pub fn pairwise_step<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<PairwiseReport> {
    one(cuda, x, Some(y), objective, options, dx, Some(dy))
}

/// As [`crate::cpu::pairwise_step_single`].
///
/// # Errors
/// As [`pairwise_step`].
pub fn pairwise_step_single<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
) -> Result<PairwiseReport> {
    one(cuda, x, None, objective, options, dx, None)
}

/// As [`crate::cpu::pairwise_mixture`]. Similarities of up to 1 GiB are kept.
///
/// # Errors
/// As [`pairwise_step`], and [`Error::InvalidOption`](crate::Error::InvalidOption) for a weight beyond f32.
#[allow(clippy::too_many_arguments)]
pub fn pairwise_mixture<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    parts: &[PairwisePart],
    options: &PairwiseOptions<'_>,
    conflict: bool,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<MixtureReport> {
    let (reports, conflict) = step(cuda, Kind::Mixture, x, Some(y), parts, options, conflict, dx, Some(dy))?;
    Ok(MixtureReport::new(parts, reports, conflict))
}

/// As [`crate::cpu::pairwise_mixture_single`]. Similarities of up to 1 GiB are kept.
///
/// # Errors
/// As [`pairwise_mixture`].
pub fn pairwise_mixture_single<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    parts: &[PairwisePart],
    options: &PairwiseOptions<'_>,
    conflict: bool,
    dx: MatMut<'_, G>,
) -> Result<MixtureReport> {
    let (reports, conflict) = step(cuda, Kind::Mixture, x, None, parts, options, conflict, dx, None)?;
    Ok(MixtureReport::new(parts, reports, conflict))
}

/// A step of one objective.
fn one<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: Option<MatRef<'_, T>>,
    objective: &PairwiseObjective,
    options: &PairwiseOptions<'_>,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> Result<PairwiseReport> {
    let part = PairwisePart::new(1.0, *objective);
    let (reports, _) = step(cuda, Kind::Step, x, y, &[part], options, false, dx, dy)?;
    Ok(reports.first().copied().unwrap_or_default())
}

/// As [`crate::cpu::pairwise_step_custom`], for objectives that are written as text; an expression is compiled when it is met
/// first, see [`CompiledExpression::compile`].
///
/// # Errors
/// As [`pairwise_step`], and those of [`CompiledExpression::compile`].
pub fn pairwise_step_custom<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    expression: &Expression,
    options: &PairwiseOptions<'_>,
    mut dx: MatMut<'_, G>,
    mut dy: MatMut<'_, G>,
) -> Result<PairwiseReport> {
    let extents = [(x.rows(), x.cols()), (y.rows(), y.cols()), (dx.rows(), dx.cols()), (dy.rows(), dy.cols())];
    check::pairwise_custom(OP_CUSTOM, extents, &options.into())?;
    let session = Session::begin(OP_CUSTOM, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let expression = CompiledExpression::compile(cuda.kernels(), expression)?;
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    let bytes = pairwise_custom_workspace_bytes(n, m, d, T::DTYPE, options.normalization, PAIRWISE_WAVE_BYTES)?;
    let ((_x, x), (_y, y)) = (session.upload_mat(x)?, session.upload_mat(y)?);
    let arrays = Arrays::upload(&session, options)?;
    let (dx_buffer, raw_dx) = session.result_mat(dx.as_ref(), options.write)?;
    let (dy_buffer, raw_dy) = session.result_mat(dy.as_ref(), options.write)?;
    let report = session.alloc_of::<PairwiseReport>(1)?;
    let workspace = session.alloc(bytes)?;
    let args = RawPairwiseCustom {
        x,
        y,
        expression: &expression,
        normalization: options.normalization,
        groups: arrays.groups.as_ref().map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(m) }),
        ignore_rows: raw(&arrays.masks[0], n),
        ignore_cols: raw(&arrays.masks[1], m),
        row_weights: raw(&arrays.numbers[0], n),
        upstream: RawUpstream::Host(options.upstream as f32),
        write: options.write,
        dx: raw_dx,
        dy: raw_dy,
        report: report.raw(1),
        wave_bytes: PAIRWISE_WAVE_BYTES,
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { pairwise_step_custom_raw(cuda.kernels(), cuda.stream(), &args) }?;
    let report = session.download_vec::<PairwiseReport>(&report, 1)?[0];
    let (new_dx, new_dy) = (session.fetch(&dx_buffer, &dx)?, session.fetch(&dy_buffer, &dy)?);
    write_rows(&new_dx, &mut dx);
    write_rows(&new_dy, &mut dy);
    Ok(report)
}

/// The options' arrays on the device.
struct Arrays {
    groups: Option<[Buffer; 2]>,
    masks: [Option<Buffer>; 2],
    numbers: [Option<Buffer>; 3],
}

impl Arrays {
    fn upload(session: &Session<'_>, options: &PairwiseOptions<'_>) -> Result<Self> {
        // A bool is a byte of 0 or 1.
        let mask = |m: Option<&[bool]>| m.map(|m| session.upload(bytemuck::cast_slice::<bool, u8>(m))).transpose();
        let numbers = |v: Option<&[f32]>| v.map(|v| session.upload(v)).transpose();
        Ok(Self {
            groups: upload_groups(session, options.groups)?,
            masks: [mask(options.ignore_rows)?, mask(options.ignore_cols)?],
            numbers: [numbers(options.row_weights)?, numbers(options.col_weights)?, numbers(options.log_q)?],
        })
    }
}

fn raw(buffer: &Option<Buffer>, len: usize) -> RawBuf {
    buffer.as_ref().map_or(RawBuf::NULL, |b| b.raw(len))
}

/// Reports of the parts; with `conflict`, also how their gradients relate.
#[allow(clippy::too_many_arguments)]
fn step<T: Element, G: GradientOf<T>>(
    cuda: &Cuda,
    kind: Kind,
    x: MatRef<'_, T>,
    y: Option<MatRef<'_, T>>,
    parts: &[PairwisePart],
    options: &PairwiseOptions<'_>,
    conflict: bool,
    mut dx: MatMut<'_, G>,
    mut dy: Option<MatMut<'_, G>>,
) -> Result<(Vec<PairwiseReport>, Option<Conflict>)> {
    let (xs, ys) = ((x.rows(), x.cols()), y.map_or((x.rows(), x.cols()), |y| (y.rows(), y.cols())));
    let dxs = (dx.rows(), dx.cols());
    let dys = dy.as_ref().map_or(ys, |dy| (dy.rows(), dy.cols()));
    let op = kind.op(y.is_none());
    check::pairwise_step(op, xs, ys, y.is_none(), parts, &options.into(), dxs, dys)?;
    check_weights(op, parts)?;
    let session = Session::begin(op, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let ((n, d), m) = (xs, ys.0);
    let keep_bytes = if kind == Kind::Mixture { PAIRWISE_WAVE_BYTES } else { 0 };
    let grant = Grant { wave_bytes: PAIRWISE_WAVE_BYTES, keep_bytes, precision: options.precision };
    let bytes = workspace_bytes(kind, n, y.map(|_| m), d, T::DTYPE, parts, options.normalization, grant, conflict)?;
    let (_x, x) = session.upload_mat(x)?;
    let y = y.map(|y| session.upload_mat(y)).transpose()?;
    let arrays = Arrays::upload(&session, options)?;
    let (dx_buffer, raw_dx) = session.result_mat(dx.as_ref(), options.write)?;
    let dy_result = dy.as_ref().map(|dy| session.result_mat(dy.as_ref(), options.write)).transpose()?;
    let reports = session.alloc_of::<PairwiseReport>(parts.len())?;
    let relation = if conflict { Some(session.alloc_of::<f64>(pairwise_conflict_len(parts.len()))?) } else { None };
    let workspace = session.alloc(bytes)?;
    let args = RawPairwiseMixture {
        x,
        y: y.as_ref().map(|(_, raw)| *raw),
        parts,
        normalization: options.normalization,
        groups: arrays.groups.as_ref().map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(m) }),
        ignore_rows: raw(&arrays.masks[0], n),
        ignore_cols: raw(&arrays.masks[1], m),
        row_weights: raw(&arrays.numbers[0], n),
        col_weights: raw(&arrays.numbers[1], m),
        log_q: raw(&arrays.numbers[2], m),
        upstream: RawUpstream::Host(options.upstream as f32),
        write: options.write,
        dx: raw_dx,
        dy: dy_result.as_ref().map(|(_, raw)| *raw),
        reports: reports.raw(parts.len()),
        conflict: raw(&relation, pairwise_conflict_len(parts.len())),
        wave_bytes: grant.wave_bytes,
        keep_bytes: grant.keep_bytes,
        precision: grant.precision,
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { enqueue_raw(kind, cuda.kernels(), cuda.stream(), &args) }?;
    let reports = session.download_vec::<PairwiseReport>(&reports, parts.len())?;
    let relation = relation.map(|buffer| -> Result<Conflict> {
        let mut norms = session.download_vec::<f64>(&buffer, pairwise_conflict_len(parts.len()))?;
        let cosines = norms.split_off(parts.len());
        Ok(Conflict { norms, cosines })
    });
    let relation = relation.transpose()?;
    let new_dx = session.fetch(&dx_buffer, &dx)?;
    let new_dy = match (&dy_result, &dy) {
        (Some((buffer, _)), Some(dy)) => session.fetch(buffer, dy)?,
        _ => Vec::new(),
    };
    write_rows(&new_dx, &mut dx);
    if let Some(dy) = &mut dy {
        write_rows(&new_dy, dy);
    }
    Ok((reports, relation))
}
