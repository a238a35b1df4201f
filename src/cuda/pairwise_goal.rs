//! A GOAL objective as a part of a mixture: its kernels leave one weight per anchor where other parts have coefficients.

use cudarc::driver::CudaStream;

use super::goal::THREADS;
use super::goal_params::{GoalParams, GoalSide, ObjectiveParams, ReportPart, stats_of};
use super::goal_plan::blocks;
use super::kernels::Kernels;
use super::launch::launch;
use super::mine::{MineParams, Select, Stats, collected, launch_sweep};
use super::pairwise_plan::PartPlan;
use super::pairwise_step::Step;
use super::plan::Splits;
use super::workspace::{Layout, Region};
use crate::error::Result;
use crate::objective::Objective;
use crate::outputs::StepReport;

/// One direction's part of the workspace, for one GOAL part after the other.
#[derive(Clone, Copy)]
struct Side {
    parts: Region,
    list: Region,
    spare: Region,
    offsets: Region,
    blocks: Region,
    total: Region,
}

impl Side {
    fn new(layout: &mut Layout, n: usize, planes: usize, splits: usize) -> Result<Self> {
        Ok(Self {
            parts: layout.take::<u32>(&[planes, splits, n])?,
            list: layout.take::<u32>(&[n])?,
            spare: layout.take::<u32>(&[n])?,
            offsets: layout.take::<u32>(&[n + 1])?,
            blocks: layout.take::<ReportPart>(&[blocks(n)])?,
            total: layout.take::<ReportPart>(&[1])?,
        })
    }
}

/// What all GOAL parts of a mixture share.
pub(super) struct GoalScratch {
    sides: [Side; 2],
}

impl GoalScratch {
    /// For `n` pairs in at most so many splits; `None` without a GOAL part.
    pub(super) fn new(
        layout: &mut Layout,
        n: usize,
        room: Splits,
        objectives: impl Iterator<Item = Objective>,
    ) -> Result<Option<Self>> {
        let Some(planes) = objectives.map(|o| stats_of(&o, true).planes()).max() else { return Ok(None) };
        let sides = [Side::new(layout, n, planes, room.cols)?, Side::new(layout, n, planes, room.rows)?];
        Ok(Some(Self { sides }))
    }
}

/// A GOAL part's own.
pub(super) struct GoalPart {
    pub objective: Objective,
    pub report: Region,
}

impl GoalPart {
    pub(super) fn new(layout: &mut Layout, objective: Objective) -> Result<Self> {
        Ok(Self { objective, report: layout.take::<StepReport>(&[1])? })
    }
}

impl Step<'_> {
    /// Never keys, which would have to be cleared between the parts.
    fn goal_stats(&self, goal: &GoalPart) -> Stats {
        match collected(&self.sweeps.mined, stats_of(&goal.objective, false)) {
            Stats::Keys => Stats::Second,
            stats => stats,
        }
    }

    fn goal_mine(&self, scratch: &GoalScratch, part: &PartPlan, goal: &GoalPart) -> MineParams {
        let objective = ObjectiveParams::new(&goal.objective);
        let [row_groups, col_groups] = self.groups();
        let (pmin, pmin_count) = self.plan.prepare.pmin(self.base);
        MineParams {
            row_groups,
            col_groups,
            pmin,
            row_parts: self.at(scratch.sides[0].parts),
            col_parts: self.at(scratch.sides[1].parts),
            row_splits: self.sweeps.mined.splits.rows as u32,
            col_splits: self.sweeps.mined.splits.cols as u32,
            pmin_count,
            select: Select::Negatives as u32,
            stats: self.goal_stats(goal) as u32,
            eps: objective.eps,
            beta: objective.beta as f32,
            ..self.pairs(part)
        }
    }

    fn goal_finalize(&self, scratch: &GoalScratch, part: &PartPlan, goal: &GoalPart) -> GoalParams {
        let n = self.plan.shape.n;
        let [rows, cols] = self.groups();
        let inv = self.plan.prepare.row_inv(self.base);
        let (pmin, pmin_count) = self.plan.prepare.pmin(self.base);
        let splits = [self.sweeps.mined.splits.cols, self.sweeps.mined.splits.rows];
        // Planes of a part's coefficients: the negative's number, its weight, and the own pair's.
        let first = [self.at(part.row_coefficients), self.at(part.col_coefficients)];
        let own_plane = [4, 2];
        let side = |at: usize, anchor_groups: u64, other_groups: u64| {
            let s = &scratch.sides[at];
            let plane = |plane: usize| first[at] + (plane * n * size_of::<f32>()) as u64;
            GoalSide {
                parts: self.at(s.parts),
                inv: inv[at],
                anchor_groups,
                other_groups,
                positive: plane(own_plane[at]),
                negative: plane(1),
                index: plane(0),
                list: self.at(s.list),
                spare: self.at(s.spare),
                offsets: self.at(s.offsets),
                blocks: self.at(s.blocks),
                total: self.at(s.total),
                detail: 0,
                skip: self.skip(at),
                splits: splits[at] as u32,
                unit: if at == 0 { self.sweeps.mined.tile_cols } else { self.sweeps.mined.tile_rows } as u32,
            }
        };
        GoalParams {
            it: side(0, rows, cols),
            ti: side(1, cols, rows),
            pos: self.at(self.plan.pos),
            pmin,
            tickets: self.zeroed(part.words),
            report: self.at(goal.report),
            objective: ObjectiveParams::new(&goal.objective),
            factor: goal.objective.reduction_factor(n),
            n: n as u32,
            pmin_count,
            stats: self.goal_stats(goal) as u32,
            pad_: 0,
        }
    }

    /// Mines and weighs.
    ///
    /// # Safety
    /// As [`Step::launch`].
    pub(super) unsafe fn launch_goal(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        part: &PartPlan,
        goal: &GoalPart,
    ) -> Result<()> {
        let Some(scratch) = &self.plan.goal else { return Ok(()) };
        let n = self.plan.shape.n;
        // SAFETY: by the caller's promise.
        unsafe {
            if n > 0 {
                launch_sweep(kernels, stream, self.sweeps.dtype, &self.goal_mine(scratch, part, goal))?;
            }
            let (grid, params) = ((blocks(n) as u32, 2, 1), self.goal_finalize(scratch, part, goal));
            launch(kernels, stream, "goal_finalize", grid, THREADS, 0, &params)
        }
    }
}
