//! The GOAL step's arguments, what is checked of them, and where everything lies in the workspace.

use super::descriptor::{Extent, Named, RawBuf, RawMat, check_disjoint, check_extent};
use super::gather::{Gather, RawUpstream, Terms, check_gradient_type};
use super::goal_detail::{DETAIL_PLANES, goal_detail_len};
use super::goal_params::{GoalParams, GoalSide, ObjectiveParams, ReportPart, stats_of};
use super::mine::{MineParams, Select, Stats, collected, key_words};
use super::plan::{Splits, SweepPlan};
use super::prepare::{Prepare, Wants};
use super::row_norms::same_dtype;
use super::workspace::{Layout, Region};
use crate::check;
use crate::dtype::DType;
use crate::error::Result;
use crate::objective::Objective;
use crate::options::{Normalization, WriteMode};
use crate::outputs::StepReport;

pub(super) const OP: &str = "goal_step";

/// Anchors of a block; `kGoalAnchors` in `kernels/params/goal.h`.
pub(crate) const ANCHORS: usize = 32;
/// Words that the blocks count in; `kGoalTickets` there.
pub(crate) const TICKETS: usize = 3;
/// The word at which keys begin behind them, if there are any: a multiple of their size.
pub(super) const KEYS: usize = 4;
const _: () = assert!(KEYS >= TICKETS && (KEYS * size_of::<u32>()).is_multiple_of(size_of::<u64>()));

/// Group ids in device memory, i64; see [`Groups`](crate::Groups).
#[derive(Clone, Copy, Debug)]
pub struct RawGroups {
    /// One id per row of `x`.
    pub rows: RawBuf,
    /// One id per row of `y`.
    pub cols: RawBuf,
}

/// Arguments of [`raw::goal_step`](super::raw::goal_step).
#[derive(Clone, Copy, Debug)]
pub struct RawGoalStep<'a> {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(n, d)`, of the type of `x`.
    pub y: RawMat,
    /// What the weights are.
    pub objective: &'a Objective,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// Factor on the gradient.
    pub upstream: RawUpstream,
    /// Whether the gradient is added to what is there.
    pub write: WriteMode,
    /// `(n, d)`, of the type of `x` or f32.
    pub dx: RawMat,
    /// `(n, d)`, of the type of `dx`.
    pub dy: RawMat,
    /// One [`StepReport`].
    pub report: RawBuf,
    /// [`goal_detail_len`](super::goal_detail_len) words for the anatomy of the step, or [`RawBuf::NULL`].
    pub detail: RawBuf,
    /// Bytes, at least [`goal_step_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// One direction's part of the workspace.
struct SidePlan {
    parts: Region,
    positive: Region,
    negative: Region,
    index: Region,
    list: Region,
    spare: Region,
    offsets: Region,
    blocks: Region,
    total: Region,
}

/// What the sweep before leaves for the anchors of one direction.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    at: u64,
    splits: usize,
    /// Candidates of a tile.
    unit: usize,
}

impl SidePlan {
    fn new(layout: &mut Layout, n: usize, planes: usize, splits: usize) -> Result<Self> {
        Ok(Self {
            parts: layout.take::<u32>(&[planes, splits, n])?,
            positive: layout.take::<f32>(&[n])?,
            negative: layout.take::<f32>(&[n])?,
            index: layout.take::<i32>(&[n])?,
            list: layout.take::<u32>(&[n])?,
            spare: layout.take::<u32>(&[n])?,
            offsets: layout.take::<u32>(&[n + 1])?,
            blocks: layout.take::<ReportPart>(&[blocks(n)])?,
            total: layout.take::<ReportPart>(&[1])?,
        })
    }

    fn params(
        &self,
        base: u64,
        parts: Parts,
        inv: u64,
        [anchor_groups, other_groups]: [u64; 2],
        detail: u64,
    ) -> GoalSide {
        GoalSide {
            parts: parts.at,
            inv,
            anchor_groups,
            other_groups,
            positive: self.positive.at(base),
            negative: self.negative.at(base),
            index: self.index.at(base),
            list: self.list.at(base),
            spare: self.spare.at(base),
            offsets: self.offsets.at(base),
            blocks: self.blocks.at(base),
            total: self.total.at(base),
            detail,
            skip: 0,
            splits: parts.splits as u32,
            unit: parts.unit as u32,
        }
    }
}

/// Blocks of one direction.
pub(super) const fn blocks(n: usize) -> usize {
    let blocks = n.div_ceil(ANCHORS);
    if blocks == 0 { 1 } else { blocks }
}

/// Where everything lies in the workspace.
pub(super) struct Plan {
    pub(super) prepare: Prepare,
    pos: Region,
    it: SidePlan,
    ti: SidePlan,
    bytes: usize,
}

impl Plan {
    fn new(
        [x, y]: [&RawMat; 2],
        objective: &Objective,
        normalization: Normalization,
        detail: bool,
        any_layout: bool,
    ) -> Result<Self> {
        let n = x.rows;
        let mut layout = Layout::new(OP);
        let wants = Wants {
            row_facts: true,
            norms: normalization == Normalization::L2,
            pmin: objective.pair().eps().is_some(),
            zeroed: match stats_of(objective, detail) {
                Stats::None => KEYS + key_words(n, n),
                _ => TICKETS,
            },
            any_layout,
        };
        let prepare = Prepare::plan(&mut layout, OP, [&(*x).into(), &(*y).into()], normalization, &wants)?;
        let room = Splits::room(n, n);
        let planes = stats_of(objective, detail).planes();
        Ok(Self {
            prepare,
            pos: layout.take::<f32>(&[n])?,
            it: SidePlan::new(&mut layout, n, planes, room.cols)?,
            ti: SidePlan::new(&mut layout, n, planes, room.rows)?,
            bytes: layout.total(),
        })
    }
}

/// Bytes of workspace that [`goal_step`](super::goal_step) needs for `n` pairs of `d` features of type `dtype`, whatever
/// the alignment of the operands; with `detail`, [`goal_step_detail`](super::goal_step_detail). Host arithmetic only.
/// `O(n)` beside the padded or converted operands.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
pub fn goal_step_workspace_bytes(
    n: usize,
    d: usize,
    dtype: DType,
    objective: &Objective,
    normalization: Normalization,
    detail: bool,
) -> Result<usize> {
    check_extent(OP, "x.rows", n)?;
    check_extent(OP, "x.cols", d)?;
    let m = RawMat::new(0, n, d, dtype);
    Ok(Plan::new([&m, &m], objective, normalization, detail, true)?.bytes)
}

/// Checks a buffer that may be left out.
fn check_optional<T>(buf: Option<RawBuf>, arg: &'static str, needed: usize) -> Result<Named> {
    let (buf, needed) = buf.map_or((RawBuf::NULL, 0), |b| (b, needed));
    Ok((arg, buf.check::<T>(OP, arg, needed)?))
}

fn check_inputs(a: &RawGoalStep<'_>) -> Result<[Named; 5]> {
    let upstream = match a.upstream {
        RawUpstream::Host(_) => None,
        RawUpstream::Device(buf) => Some(buf),
    };
    Ok([
        ("x", a.x.check(OP, "x")?),
        ("y", a.y.check(OP, "y")?),
        check_optional::<i64>(a.groups.map(|g| g.rows), "groups.rows", a.x.rows)?,
        check_optional::<i64>(a.groups.map(|g| g.cols), "groups.cols", a.y.rows)?,
        check_optional::<f32>(upstream, "upstream", 1)?,
    ])
}

fn check_outputs(a: &RawGoalStep<'_>) -> Result<[Named; 4]> {
    let detail: Extent = match a.detail {
        RawBuf::NULL => RawBuf::NULL.check::<u32>(OP, "detail", 0)?,
        buf => buf.check::<u32>(OP, "detail", goal_detail_len(a.x.rows))?,
    };
    Ok([
        ("dx", a.dx.check(OP, "dx")?),
        ("dy", a.dy.check(OP, "dy")?),
        ("report", a.report.check::<StepReport>(OP, "report", 1)?),
        ("detail", detail),
    ])
}

/// Checks everything that the host can see.
pub(super) fn check_arguments(a: &RawGoalStep<'_>) -> Result<Plan> {
    let (x, y) = ((a.x.rows, a.x.cols), (a.y.rows, a.y.cols));
    let (dx, dy) = ((a.dx.rows, a.dx.cols), (a.dy.rows, a.dy.cols));
    check::goal_step(OP, x, y, a.groups.map(|g| (g.rows.len, g.cols.len)), dx, dy)?;
    check_extent(OP, "x.rows + y.rows", a.x.rows.saturating_add(a.y.rows))?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    check_gradient_type(OP, "dx", a.x.dtype, a.dx.dtype)?;
    same_dtype(OP, "dy", a.dx.dtype, a.dy.dtype)?;
    let inputs = check_inputs(a)?;
    let [dx, dy, report, detail] = check_outputs(a)?;
    let plan = Plan::new([&a.x, &a.y], a.objective, a.normalization, a.detail != RawBuf::NULL, false)?;
    let workspace = ("workspace", a.workspace.check_workspace(OP, plan.bytes)?);
    check_disjoint(OP, &[dx, dy, report, detail, workspace], &inputs)?;
    Ok(plan)
}

/// The parameters of the last three kernels.
pub(super) struct Step<'a> {
    pub(super) a: &'a RawGoalStep<'a>,
    pub(super) plan: &'a Plan,
    /// Address of the workspace.
    pub(super) base: u64,
    /// How the similarities are swept.
    pub(super) sweep: SweepPlan,
}

impl Step<'_> {
    fn groups(&self) -> [u64; 2] {
        self.a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr])
    }

    /// Address of the pairs' similarities: the last plane of the anatomy if that is wanted.
    fn pos(&self) -> u64 {
        match self.a.detail {
            RawBuf::NULL => self.plan.pos.at(self.base),
            buf => buf.ptr + (2 * DETAIL_PLANES * self.a.x.rows * size_of::<u32>()) as u64,
        }
    }

    fn stats(&self) -> Stats {
        collected(&self.sweep, stats_of(self.a.objective, self.a.detail != RawBuf::NULL))
    }

    /// Of "it", then of "ti".
    fn parts(&self) -> [Parts; 2] {
        let [it, ti] = match self.stats() {
            Stats::Keys => {
                let keys = self.plan.prepare.zeroed(self.base) + (KEYS * size_of::<u32>()) as u64;
                [keys, keys + (self.a.x.rows * size_of::<u64>()) as u64]
            }
            _ => [&self.plan.it, &self.plan.ti].map(|side| side.parts.at(self.base)),
        };
        let SweepPlan { splits, tile_rows, tile_cols, .. } = self.sweep;
        let keyed = self.stats() == Stats::Keys;
        let part = |at, splits, unit| Parts { at, splits: if keyed { 1 } else { splits }, unit };
        [part(it, splits.cols, tile_cols), part(ti, splits.rows, tile_rows)]
    }

    pub(super) fn mine(&self) -> MineParams {
        let (x, y) = (self.plan.prepare.x(self.base), self.plan.prepare.y(self.base));
        let [row_groups, col_groups] = self.groups();
        let objective = ObjectiveParams::new(self.a.objective);
        let (pmin, pmin_count) = self.plan.prepare.pmin(self.base);
        MineParams {
            x: x.ptr,
            y: y.ptr,
            inv_x: x.inv,
            inv_y: y.inv,
            row_groups,
            col_groups,
            pmin,
            pos: self.pos(),
            row_parts: self.parts()[0].at,
            col_parts: self.parts()[1].at,
            screen: 0,
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            n: self.a.x.rows as u32,
            m: self.a.y.rows as u32,
            d: self.a.x.cols as u32,
            row_splits: self.sweep.splits.rows as u32,
            col_splits: self.sweep.splits.cols as u32,
            pmin_count,
            select: Select::Negatives as u32,
            stats: self.stats() as u32,
            eps: objective.eps,
            beta: objective.beta as f32,
        }
    }

    pub(super) fn finalize(&self) -> GoalParams {
        let n = self.a.x.rows;
        let [rows, cols] = self.groups();
        let [inv_x, inv_y] = self.plan.prepare.row_inv(self.base);
        let detail = |side: usize| match self.a.detail {
            RawBuf::NULL => 0,
            buf => buf.ptr + (side * DETAIL_PLANES * n * size_of::<u32>()) as u64,
        };
        let (pmin, pmin_count) = self.plan.prepare.pmin(self.base);
        let [it, ti] = self.parts();
        GoalParams {
            it: self.plan.it.params(self.base, it, inv_x, [rows, cols], detail(0)),
            ti: self.plan.ti.params(self.base, ti, inv_y, [cols, rows], detail(1)),
            pos: self.pos(),
            pmin,
            tickets: self.plan.prepare.zeroed(self.base),
            report: self.a.report.ptr,
            objective: ObjectiveParams::new(self.a.objective),
            factor: self.a.objective.reduction_factor(n),
            n: n as u32,
            pmin_count,
            stats: self.stats() as u32,
            pad_: 0,
        }
    }

    /// Terms of the rows of `X`: the pair, the own negative of "it", and the anchors of "ti" that chose the row; of the
    /// rows of `Y` with the directions exchanged.
    fn terms(&self, own: &SidePlan, other: &SidePlan) -> Terms {
        let at = |region: Region| region.at(self.base);
        Terms {
            diagonal: [at(self.plan.it.positive), at(self.plan.ti.positive)],
            negative: [at(own.index), at(own.negative)],
            offsets: at(other.offsets),
            list: at(other.list),
            source: 0,
            weight: at(other.negative),
            hubs: 0,
        }
    }

    pub(super) fn gather(&self) -> Gather {
        let Plan { prepare, it, ti, .. } = self.plan;
        let (inv, exponent) = match self.a.normalization {
            Normalization::L2 => (prepare.row_inv(self.base), prepare.row_exponent(self.base)),
            Normalization::None => ([0; 2], [0; 2]),
        };
        let (upstream, factor) = self.a.upstream.parts();
        let reduction = self.a.objective.reduction_factor(self.a.x.rows);
        Gather {
            op: OP,
            operands: [prepare.x(self.base), prepare.y(self.base)],
            norms: [0, 1].map(|i| [inv[i], exponent[i]]),
            terms: [self.terms(it, ti), self.terms(ti, it)],
            out: [self.a.dx, self.a.dy],
            dtype: self.a.x.dtype,
            upstream,
            factor: (f64::from(factor) * reduction) as f32,
            write: self.a.write,
            pairs: self.a.x.rows,
            entries: 0,
            overflow: self.a.report.ptr + std::mem::offset_of!(StepReport, overflow) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_grows_with_the_rows_and_not_with_their_square() {
        for objective in Objective::all() {
            let bytes = |n| {
                let operands = 2 * n * 64 * 4;
                goal_step_workspace_bytes(n, 64, DType::F32, &objective, Normalization::L2, true).unwrap() - operands
            };
            // 16 partial states of 6 words in both directions, 10 arrays of a word per row, and some per matrix.
            assert!(bytes(1 << 16) < (1 << 16) * 4 * (2 * 16 * 6 + 32), "{objective}");
            assert!(bytes(1 << 16) <= 2 * bytes(1 << 15) + (1 << 16), "{objective}");
        }
    }

    #[test]
    fn sizes_beyond_the_address_space_are_refused() {
        let objective = Objective::all()[0];
        let bytes = |n, d| goal_step_workspace_bytes(n, d, DType::F32, &objective, Normalization::L2, false);
        assert!(matches!(bytes(usize::MAX, 8), Err(crate::Error::TooLarge { arg: "x.rows", .. })));
        assert!(matches!(bytes(1 << 30, 1 << 30), Err(crate::Error::TooLarge { .. })));
    }
}
