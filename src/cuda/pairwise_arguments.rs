//! The arguments of a pairwise step, and what is checked of them.

use super::descriptor::{Named, RawBuf, RawMat, check_disjoint, check_extent};
use super::gather::{RawUpstream, check_gradient_type};
use super::goal_plan::RawGroups;
use super::mine::check_optional;
use super::pairwise_conflict::{ConflictPlan, pairwise_conflict_len};
use super::pairwise_mixture::RawPairwiseMixture;
use super::pairwise_plan::{Grant, Kind, Plan, check_bytes};
use super::plan::tiles;
use super::row_norms::same_dtype;
use crate::check::{self, PairwiseLengths};
use crate::error::{Error, Result};
use crate::mixture::PairwisePart;
use crate::options::{Normalization, Precision, WriteMode};
use crate::pairwise::{PairwiseObjective, PairwiseReport};

/// Arguments of [`raw::pairwise_step`](super::raw::pairwise_step). Buffers that are left out are [`RawBuf::NULL`].
#[derive(Clone, Copy, Debug)]
pub struct RawPairwiseStep<'a> {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`. `None`: `x` with itself, without the diagonal; `m = n`.
    pub y: Option<RawMat>,
    /// What the weights are.
    pub objective: &'a PairwiseObjective,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// `n` bytes, not 0: the row is ignored. Or left out.
    pub ignore_rows: RawBuf,
    /// `m` bytes, not 0: the column is ignored. Or left out.
    pub ignore_cols: RawBuf,
    /// `n` f32: factors of the rows' terms. Or left out.
    pub row_weights: RawBuf,
    /// `m` f32: factors of the columns' terms. Left out unless columns are anchors.
    pub col_weights: RawBuf,
    /// `m` f32: logarithms of the columns' sampling probabilities. Left out unless the objective is a softmax.
    pub log_q: RawBuf,
    /// Factor on the gradient.
    pub upstream: RawUpstream,
    /// Whether the gradient is added to what is there.
    pub write: WriteMode,
    /// `(n, d)`, of the type of `x` or f32.
    pub dx: RawMat,
    /// `(m, d)`, of the type of `dx`; `None` exactly where `y` is.
    pub dy: Option<RawMat>,
    /// One [`PairwiseReport`].
    pub report: RawBuf,
    /// The most bytes of the workspace that hold weights at a time, rounded up to 128 rows of them: fewer take longer.
    pub wave_bytes: usize,
    /// The most bytes of the workspace that hold all similarities, so that they are computed once; if they need more, they
    /// are computed in every sweep.
    pub keep_bytes: usize,
    /// How f32 rows are multiplied.
    pub precision: Precision,
    /// Bytes, at least [`pairwise_workspace_bytes`](super::pairwise_workspace_bytes), aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

impl RawPairwiseStep<'_> {
    /// The same step as a mixture of `parts`, which hold its objective.
    pub(super) const fn as_mixture<'b>(&'b self, parts: &'b [PairwisePart]) -> RawPairwiseMixture<'b> {
        RawPairwiseMixture {
            x: self.x,
            y: self.y,
            parts,
            normalization: self.normalization,
            groups: self.groups,
            ignore_rows: self.ignore_rows,
            ignore_cols: self.ignore_cols,
            row_weights: self.row_weights,
            col_weights: self.col_weights,
            log_q: self.log_q,
            upstream: self.upstream,
            write: self.write,
            dx: self.dx,
            dy: self.dy,
            reports: self.report,
            conflict: RawBuf::NULL,
            wave_bytes: self.wave_bytes,
            keep_bytes: self.keep_bytes,
            precision: self.precision,
            workspace: self.workspace,
        }
    }
}

fn check_buffers(a: &RawPairwiseMixture<'_>, op: &'static str, m: usize) -> Result<Vec<Named>> {
    let n = a.x.rows;
    let [row_groups, col_groups] = a.groups.map_or([RawBuf::NULL; 2], |g| [g.rows, g.cols]);
    let mut inputs = vec![
        ("x", a.x.check(op, "x")?),
        check_optional::<i64>(op, "groups.rows", row_groups, n)?,
        check_optional::<i64>(op, "groups.cols", col_groups, m)?,
        check_optional::<u8>(op, "options.ignore_rows", a.ignore_rows, n)?,
        check_optional::<u8>(op, "options.ignore_cols", a.ignore_cols, m)?,
        check_optional::<f32>(op, "options.row_weights", a.row_weights, n)?,
        check_optional::<f32>(op, "options.col_weights", a.col_weights, m)?,
        check_optional::<f32>(op, "options.log_q", a.log_q, m)?,
    ];
    if let Some(y) = a.y {
        inputs.insert(1, ("y", y.check(op, "y")?));
    }
    if let RawUpstream::Device(buf) = a.upstream {
        inputs.push(("upstream", buf.check::<f32>(op, "upstream", 1)?));
    }
    Ok(inputs)
}

/// Weights are multiplied in f32, where an infinite one would make NaN of a pair's 0.
pub(super) fn check_weights(op: &'static str, parts: &[PairwisePart]) -> Result<()> {
    match parts.iter().find(|part| !(part.weight as f32).is_finite()) {
        None => Ok(()),
        Some(part) => Err(Error::InvalidOption {
            op,
            arg: "parts.weight",
            expected: "a number that f32 can hold".to_owned(),
            got: part.weight.to_string(),
        }),
    }
}

/// Checks everything that the host can see.
pub(super) fn check_arguments(kind: Kind, a: &RawPairwiseMixture<'_>) -> Result<(Plan, Option<ConflictPlan>)> {
    let op = kind.op(a.y.is_none());
    let extent = |m: &RawMat| (m.rows, m.cols);
    let y = a.y.unwrap_or(a.x);
    let dy = match (a.y, a.dy) {
        (None, _) => a.dx,
        (Some(_), Some(dy)) => dy,
        (Some(_), None) => RawMat::new(0, 0, 0, a.dx.dtype),
    };
    let length = |buf: RawBuf| (buf != RawBuf::NULL).then_some(buf.len);
    let lengths = PairwiseLengths {
        groups: a.groups.map(|g| (g.rows.len, g.cols.len)),
        ignore_rows: length(a.ignore_rows),
        ignore_cols: length(a.ignore_cols),
        row_weights: length(a.row_weights),
        col_weights: length(a.col_weights),
        log_q: length(a.log_q),
    };
    let single = a.y.is_none();
    check::pairwise_step(op, extent(&a.x), extent(&y), single, a.parts, &lengths, extent(&a.dx), extent(&dy))?;
    check_weights(op, a.parts)?;
    check_extent(op, "x.rows + y.rows", a.x.rows.saturating_add(y.rows))?;
    same_dtype(op, "y", a.x.dtype, y.dtype)?;
    check_gradient_type(op, "dx", a.x.dtype, a.dx.dtype)?;
    same_dtype(op, "dy", a.dx.dtype, dy.dtype)?;
    let inputs = check_buffers(a, op, y.rows)?;
    let mut outputs = vec![("dx", a.dx.check(op, "dx")?)];
    if a.y.is_some() {
        outputs.push(("dy", dy.check(op, "dy")?));
    }
    let reports = if kind == Kind::Step { "report" } else { "reports" };
    outputs.push((reports, a.reports.check::<PairwiseReport>(op, reports, a.parts.len())?));
    let grant = Grant { wave_bytes: a.wave_bytes, keep_bytes: a.keep_bytes, precision: a.precision };
    let plan = Plan::new(kind, &a.x, a.y.as_ref(), a.parts, a.normalization, grant, false)?;
    let conflict = if a.conflict == RawBuf::NULL {
        None
    } else {
        let needed = pairwise_conflict_len(a.parts.len());
        outputs.push(("conflict", a.conflict.check::<f64>(op, "conflict", needed)?));
        Some(ConflictPlan::new(&a.x, a.y.as_ref(), a.parts, a.normalization, grant, false)?)
    };
    let most = tiles(a.x.rows).saturating_add(tiles(y.rows)).saturating_mul(tiles(a.x.cols));
    check_extent(op, "tiles of the gradients", most)?;
    let bytes = check_bytes(op, plan.bytes + conflict.as_ref().map_or(0, |conflict| conflict.bytes))?;
    outputs.push(("workspace", a.workspace.check_workspace(op, bytes)?));
    check_disjoint(op, &outputs, &inputs)?;
    Ok((plan, conflict))
}
