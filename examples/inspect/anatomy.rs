//! Runs one step and collects everything about it, whatever backend and element type.

use std::collections::BTreeMap;

use half::{bf16, f16};
use simgrad::{
    AnchorDetail, Backend, Element, GradientOf, Groups, MatMut, MatRef, NONE, Normalization, Objective, StepDetail,
    StepOptions, StepReport, reference,
};

use crate::args::{Args, BackendName, DTypeChoice, YesNo};
use crate::common::backend::{BackendChoice, Chosen};
use crate::common::npy::Npy;
use crate::common::{Failure, Outcome};

/// One batch as it was read.
pub struct Batch {
    /// Pairs.
    pub n: usize,
    /// Columns.
    pub d: usize,
    x: Vec<f64>,
    y: Vec<f64>,
    groups: Option<Vec<i64>>,
}

/// Everything about one step, as f64.
pub struct Anatomy {
    /// `cpu`, `cuda` or `reference`.
    pub backend: &'static str,
    /// Why that one.
    pub reason: String,
    /// The step's report.
    pub report: StepReport,
    /// What led to the weights.
    pub detail: StepDetail<f64>,
    /// Gradient with respect to x.
    pub grad_x: Vec<f64>,
    /// Gradient with respect to y.
    pub grad_y: Vec<f64>,
    /// Entries of `W`, with reduction and upstream factor: `(row, column) → weight`.
    pub w: BTreeMap<(i64, i64), f64>,
    /// Kernel launches of the step.
    pub launches: u64,
    /// Bytes of device memory that the step needs besides inputs and outputs.
    pub workspace_bytes: u64,
}

impl Batch {
    /// Reads the files that the command line names.
    pub fn read(args: &Args) -> Outcome<Self> {
        let x = Npy::read(&args.x)?;
        let (n, d) = x.matrix_shape()?;
        if n == 0 || d == 0 {
            return Err(Failure::file(&args.x, format!("has shape [{n}, {d}], expected at least one row and column")));
        }
        let y = Npy::read(&args.y)?;
        if y.matrix_shape()? != (n, d) {
            let expected = format!("[{n}, {d}] as in {}", args.x.display());
            return Err(Failure::file(&args.y, format!("has shape {:?}, expected {expected}", y.shape())));
        }
        let groups = args.group_ids.as_ref().map(|path| {
            let ids = Npy::read(path)?;
            match ids.vector_len()? {
                len if len == n => ids.to_i64(),
                len => Err(Failure::file(path, format!("has {len} ids, expected one for each of {n} pairs"))),
            }
        });
        Ok(Self { n, d, x: x.to_f64(), y: y.to_f64(), groups: groups.transpose()? })
    }
}

/// Runs the step.
pub fn dissect(args: &Args, objective: &Objective, batch: &Batch) -> Outcome<Anatomy> {
    match args.dtype {
        DTypeChoice::F32 => dissect_as::<f32>(args, objective, batch),
        DTypeChoice::F16 => dissect_as::<f16>(args, objective, batch),
        DTypeChoice::Bf16 => dissect_as::<bf16>(args, objective, batch),
        DTypeChoice::F64 => dissect_as::<f64>(args, objective, batch),
    }
}

fn dissect_as<T: Element>(args: &Args, objective: &Objective, batch: &Batch) -> Outcome<Anatomy>
where
    T::Acc: GradientOf<T>,
{
    let rounded = |values: &[f64]| -> Vec<T> { values.iter().map(|&v| T::from_f64(v)).collect() };
    let (x, y) = (rounded(&batch.x), rounded(&batch.y));
    let (x, y) = (MatRef::new(&x, batch.n, batch.d)?, MatRef::new(&y, batch.n, batch.d)?);
    let normalization = if args.normalize == YesNo::Yes { Normalization::L2 } else { Normalization::None };
    let groups = batch.groups.as_ref().map(|ids| Groups { rows: ids, cols: ids });
    let options = StepOptions { normalization, groups, upstream: args.upstream, ..StepOptions::default() };
    let mut anatomy = match open(args)? {
        None => of_reference(x, y, objective, &options),
        Some(chosen) => of_backend(&chosen, x, y, objective, &options)?,
    };
    anatomy.w = weights(&anatomy.detail, args.upstream * objective.reduction_factor(batch.n));
    Ok(anatomy)
}

/// The backend asked for; `None` for the reference.
fn open(args: &Args) -> Outcome<Option<Chosen>> {
    let choice = match args.backend {
        BackendName::Reference => return Ok(None),
        BackendName::Auto if args.dtype == DTypeChoice::F64 => {
            let reason = "auto: f64 exists on the CPU only".to_owned();
            return Ok(Some(Chosen { backend: Backend::cpu(), reason }));
        }
        BackendName::Cpu => BackendChoice::Cpu,
        BackendName::Cuda => BackendChoice::Cuda,
        BackendName::Auto => BackendChoice::Auto,
    };
    choice.open().map(Some)
}

fn of_reference<T: Element>(
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
) -> Anatomy {
    let step = reference::goal_step(x, y, objective, options);
    Anatomy {
        backend: "reference",
        reason: "asked for".to_owned(),
        report: step.report,
        detail: step.detail,
        grad_x: step.dx,
        grad_y: step.dy,
        w: BTreeMap::new(),
        launches: 0,
        workspace_bytes: 0,
    }
}

fn of_backend<T: Element>(
    chosen: &Chosen,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    objective: &Objective,
    options: &StepOptions<'_>,
) -> Outcome<Anatomy>
where
    T::Acc: GradientOf<T>,
{
    let (n, d) = (x.rows(), x.cols());
    let mut grad_x = vec![T::Acc::from_f64(0.0); n * d];
    let mut grad_y = grad_x.clone();
    let (dx, dy) = (MatMut::new(&mut grad_x, n, d)?, MatMut::new(&mut grad_y, n, d)?);
    let (report, detail) = chosen.backend.goal_step_detail(x, y, objective, options, dx, dy)?;
    let (launches, workspace_bytes) = device_work::<T>(&chosen.backend, (n, d), objective, options.normalization)?;
    Ok(Anatomy {
        backend: chosen.backend.name(),
        reason: chosen.reason.clone(),
        report,
        detail: StepDetail {
            positive: widened(&detail.positive),
            it: widened_anchors(detail.it),
            ti: widened_anchors(detail.ti),
        },
        grad_x: widened(&grad_x),
        grad_y: widened(&grad_y),
        w: BTreeMap::new(),
        launches,
        workspace_bytes,
    })
}

/// Launches and workspace of the step; both 0 where there is no device.
#[cfg(feature = "cuda")]
fn device_work<T: Element>(
    backend: &Backend,
    (n, d): (usize, usize),
    objective: &Objective,
    normalization: Normalization,
) -> Outcome<(u64, u64)> {
    use simgrad::cuda::{goal_step_launches, goal_step_workspace_bytes};
    if !matches!(backend, Backend::Cuda(_)) {
        return Ok((0, 0));
    }
    let bytes = goal_step_workspace_bytes(n, d, T::DTYPE, objective, normalization, true)?;
    Ok((u64::from(goal_step_launches(n)), bytes as u64))
}

/// Without CUDA there is no device to launch on.
#[cfg(not(feature = "cuda"))]
#[allow(clippy::extra_unused_type_parameters, clippy::unnecessary_wraps)]
fn device_work<T: Element>(_: &Backend, _: (usize, usize), _: &Objective, _: Normalization) -> Outcome<(u64, u64)> {
    Ok((0, 0))
}

fn widened<A: Element>(values: &[A]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

fn widened_anchors<A: Element>(a: AnchorDetail<A>) -> AnchorDetail<f64> {
    AnchorDetail {
        neg_index: a.neg_index,
        neg_value: widened(&a.neg_value),
        second_value: widened(&a.second_value),
        triplet: widened(&a.triplet),
        w_pos: widened(&a.w_pos),
        w_neg: widened(&a.w_neg),
        rs_pos: widened(&a.rs_pos),
        rs_neg: widened(&a.rs_neg),
        rs_pos_count: a.rs_pos_count,
        rs_neg_count: a.rs_neg_count,
    }
}

/// The non-zeros of `W` (objectives: `W_ii -= T w⁺ + T' w'⁺`, `W_{i,n_i} += T w⁻`, `W_{m_j,j} += T' w'⁻`), times `factor`.
fn weights(detail: &StepDetail<f64>, factor: f64) -> BTreeMap<(i64, i64), f64> {
    let mut w = BTreeMap::new();
    for (direction, it) in [(&detail.it, true), (&detail.ti, false)] {
        for (anchor, &negative) in direction.neg_index.iter().enumerate() {
            if negative == NONE {
                continue;
            }
            let (t, own, other) = (direction.triplet[anchor], anchor as i64, i64::from(negative));
            *w.entry((own, own)).or_insert(0.0) -= factor * t * direction.w_pos[anchor];
            let at = if it { (own, other) } else { (other, own) };
            *w.entry(at).or_insert(0.0) += factor * t * direction.w_neg[anchor];
        }
    }
    // A NaN is not a zero and stays.
    w.retain(|_, value| *value != 0.0);
    w
}
