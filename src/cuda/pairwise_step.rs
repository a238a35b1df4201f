//! The parameters and launches of a step of one objective over all pairs, or of several.

use cudarc::driver::CudaStream;

use super::descriptor::{RawBuf, RawMat};
use super::kernels::Kernels;
use super::launch::launch;
use super::mine::{MineParams, Select, Stats, launch_sweep};
use super::pairwise_gradient::{GradientStep, ReportOfWeights, SplitProducts};
use super::pairwise_mixture::RawPairwiseMixture;
use super::pairwise_params::{
    Form, Keep, LINES, MIX_ADD, MIX_KEEP, PairwiseExtremesParams, PairwiseFinalizeParams, PairwiseMixtureReportParams,
    PairwiseStatsParams, PairwiseTiles, PairwiseWeightsParams, WAVE_SUMS, ZEROED,
};
use super::pairwise_plan::{Kept, Kind, PartPlan, Plan, Wave, finalize_blocks};
use super::pairwise_sweep::{STATS, Sweeps, WEIGHTS};
use super::plan::SweepPlan;
use super::prepare::Operand;
use super::tile_kernel::launch_tiles;
use super::workspace::Region;
use crate::dtype::DType;
use crate::error::Result;
use crate::options::Normalization;
use crate::pairwise::PairwiseReport;

/// A checked step on one stream.
pub(super) struct Step<'a> {
    pub a: &'a RawPairwiseMixture<'a>,
    pub plan: &'a Plan,
    /// Address of the workspace.
    pub base: u64,
    pub sweeps: Sweeps,
}

impl<'a> Step<'a> {
    /// `base` is the address of the plan's workspace.
    pub(super) fn new(kernels: &Kernels, a: &'a RawPairwiseMixture<'a>, plan: &'a Plan, base: u64) -> Self {
        Self { a, plan, base, sweeps: Sweeps::new(kernels.plan_device(), plan, a.x.dtype) }
    }
}

impl Step<'_> {
    pub(super) fn at(&self, region: Region) -> u64 {
        region.at(self.base)
    }

    /// What the sweeps multiply.
    fn multiplied(&self) -> [Operand; 2] {
        match self.sweeps.split(self.plan) {
            Some(split) => [split.x(self.base), split.y(self.base)],
            None => self.plan.operands(self.base),
        }
    }

    /// Enqueues what makes the operands.
    ///
    /// # Safety
    /// As [`Self::launch`].
    unsafe fn launch_operands(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        // SAFETY: by the caller's promise.
        unsafe {
            self.plan.prepare.launch(kernels, stream, self.base)?;
            match self.sweeps.split(self.plan) {
                Some(split) => split.launch_from(kernels, stream, self.base, self.plan.operands(self.base)),
                None => Ok(()),
            }
        }
    }

    /// Columns that are anchors have a region, others have not.
    fn of_both(&self, part: &PartPlan, region: Region) -> u64 {
        if part.form.both { self.at(region) } else { 0 }
    }

    /// Address of word `word` of those that `prepare` has cleared.
    pub(super) fn zeroed(&self, word: usize) -> u64 {
        self.plan.prepare.zeroed(self.base) + (word * size_of::<u32>()) as u64
    }

    /// The first of the flags, behind the parts' words.
    fn flags(&self) -> usize {
        self.plan.parts.len() * ZEROED
    }

    /// A flag per column that has a positive, the same for every part; own pairs need none.
    fn col_flags(&self, part: &PartPlan) -> u64 {
        if part.form.both { 0 } else { self.zeroed(self.flags()) }
    }

    /// Where the waves are to leave what statistics would say: flags of rows, of columns, counters.
    fn fused(&self, part: &PartPlan) -> [u64; 3] {
        if part.form.has_statistics() {
            return [0; 3];
        }
        [self.zeroed(self.flags() + self.plan.shape.m), self.col_flags(part), self.zeroed(part.words)]
    }

    /// Whether rows are left out of the products: those that no pair counts, which may hold anything, and under L2 those that
    /// are not finite. Which ones, `pairwise_finalize` says or, of a GOAL objective, which knows no masks, `goal_finalize`; for
    /// every part the same.
    pub(super) fn skip(&self, side: usize) -> u64 {
        let parts = &self.plan.parts;
        let masked = self.a.ignore_rows != RawBuf::NULL || self.a.ignore_cols != RawBuf::NULL;
        let normalised = self.a.normalization == Normalization::L2;
        // Groups keep some pairs apart, and a GOAL objective's only row meets nothing.
        let apart = |part: &PartPlan| part.form.both && (self.a.groups.is_some() || !part.dense());
        if masked || (normalised && parts.iter().any(apart)) { self.at(self.plan.skip[side]) } else { 0 }
    }

    /// The corrections of the columns, for the parts that have a use for them.
    fn log_q(&self, part: &PartPlan) -> u64 {
        if part.form.form == Form::Softmax { self.a.log_q.ptr } else { 0 }
    }

    pub(super) fn groups(&self) -> [u64; 2] {
        self.a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr])
    }

    fn report(&self, at: usize) -> u64 {
        self.a.reports.ptr + (at * size_of::<PairwiseReport>()) as u64
    }

    fn has_pairs(&self) -> bool {
        self.plan.shape.n > 0 && self.plan.shape.m > 0
    }

    fn tiles(&self, part: &PartPlan, (keep, first_kept): (Keep, usize)) -> PairwiseTiles {
        let Self { a, plan, .. } = self;
        let [x, y] = self.multiplied();
        let [row_groups, col_groups] = self.groups();
        let extremes = plan.extremes.map(|r| if part.form.mined { self.at(r) } else { 0 });
        let kept = match (keep, plan.kept) {
            (Keep::Store | Keep::Load, Kept::Wave(region) | Kept::All(region)) => self.at(region),
            _ => 0,
        };
        PairwiseTiles {
            x: x.ptr,
            y: y.ptr,
            inv_x: x.inv,
            inv_y: y.inv,
            row_groups,
            col_groups,
            ignore_rows: a.ignore_rows.ptr,
            ignore_cols: a.ignore_cols.ptr,
            log_q: self.log_q(part),
            pos: self.of_both(part, plan.pos),
            lowest: extremes[0],
            highest: extremes[1],
            kept,
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            n: plan.shape.n as u32,
            m: plan.shape.m as u32,
            d: self.sweeps.d as u32,
            form: part.form.form as u32,
            single: u32::from(plan.shape.single),
            single_positive: u32::from(part.form.both),
            c: part.form.c,
            keep: keep as u32,
            first_kept: first_kept as u32,
        }
    }

    fn stats(&self, part: &PartPlan, extremes: bool, keep: Keep) -> PairwiseStatsParams {
        let plan = self.plan;
        // The pairs' similarities come from a sweep of their own where this one compares with them.
        let writes_pairs = part.form.both && part.form.form != Form::Triplet;
        PairwiseStatsParams {
            tiles: self.tiles(part, (keep, 0)),
            row_parts: self.at(plan.row_parts),
            other_parts: self.at(plan.other_parts),
            pos: if writes_pairs { self.at(plan.pos) } else { 0 },
            col_flags: self.col_flags(part),
            counts: self.zeroed(part.words),
            row_splits: self.sweeps.stats.splits.rows as u32,
            col_splits: self.sweeps.stats.splits.cols as u32,
            extremes: u32::from(extremes),
            pad_: 0,
        }
    }

    /// The similarities of the pairs alone; what else this sweep finds out is overwritten by the next.
    pub(super) fn pairs(&self, part: &PartPlan) -> MineParams {
        let (plan, t) = (self.plan, self.tiles(part, (Keep::Nothing, 0)));
        MineParams {
            x: t.x,
            y: t.y,
            inv_x: t.inv_x,
            inv_y: t.inv_y,
            row_groups: 0,
            col_groups: 0,
            pmin: 0,
            pos: t.pos,
            row_parts: self.at(plan.row_parts),
            col_parts: self.at(plan.other_parts),
            screen: 0,
            ldx: t.ldx,
            ldy: t.ldy,
            n: t.n,
            m: t.m,
            d: t.d,
            row_splits: 1,
            col_splits: 1,
            pmin_count: 0,
            select: Select::Pair as u32,
            stats: Stats::None as u32,
            eps: 0.0,
            beta: 0.0,
        }
    }

    fn extremes(&self) -> PairwiseExtremesParams {
        let plan = self.plan;
        PairwiseExtremesParams {
            neg_parts: self.at(plan.row_parts),
            pos_parts: self.at(plan.other_parts),
            lowest: self.at(plan.extremes[0]),
            highest: self.at(plan.extremes[1]),
            n: plan.shape.n as u32,
            splits: self.sweeps.stats.splits.cols as u32,
        }
    }

    fn finalize(&self, at: usize) -> PairwiseFinalizeParams {
        let Self { a, plan, .. } = self;
        let [inv_x, inv_y] = plan.both_sides(plan.prepare.row_inv(self.base));
        let part = &plan.parts[at];
        let statistics = self.has_pairs() && part.form.has_statistics();
        let splits = |of: usize| if statistics { of as u32 } else { 0 };
        PairwiseFinalizeParams {
            row_parts: self.at(plan.row_parts),
            other_parts: self.at(plan.other_parts),
            pos: self.of_both(part, plan.pos),
            col_flags: self.col_flags(part),
            counts: self.zeroed(part.words),
            inv_x,
            inv_y,
            ignore_rows: a.ignore_rows.ptr,
            ignore_cols: a.ignore_cols.ptr,
            row_weights: a.row_weights.ptr,
            col_weights: a.col_weights.ptr,
            log_q: self.log_q(part),
            row_coefficients: self.at(part.row_coefficients),
            col_coefficients: self.of_both(part, part.col_coefficients),
            skip_x: self.skip(0),
            skip_y: self.skip(1),
            blocks: self.at(plan.blocks),
            // The word behind the two counters.
            ticket: self.zeroed(part.words + 4),
            scale: self.at(part.scale),
            report: self.report(at),
            k: part.form.k,
            n: plan.shape.n as u32,
            m: plan.shape.m as u32,
            row_splits: splits(self.sweeps.stats.column_states()),
            col_splits: splits(self.sweeps.stats.splits.cols),
            form: part.form.form as u32,
            both: u32::from(part.form.both),
            single: u32::from(plan.shape.single),
            normalised: u32::from(a.normalization == Normalization::L2),
        }
    }

    fn weights(&self, at: usize, wave: &Wave, keep: Keep) -> PairwiseWeightsParams {
        let plan = self.plan;
        let part = &plan.parts[at];
        let [row_flags, col_flags, counts] = self.fused(part);
        let first_kept = if matches!(plan.kept, Kept::Wave(_)) { wave.first } else { 0 };
        let (first, last) = (at == 0, at + 1 == plan.parts.len());
        PairwiseWeightsParams {
            tiles: self.tiles(part, (keep, first_kept)),
            row_coefficients: self.at(part.row_coefficients),
            col_coefficients: self.of_both(part, part.col_coefficients),
            scale: if part.dense() { self.at(part.scale) } else { 0 },
            w: self.at(plan.weights),
            low: self.split_products().map_or(0, |split| self.low_weights(&split)),
            mixed: if first && last { 0 } else { self.at(plan.mixed) },
            diagonal: self.at(plan.diagonal),
            sums: self.at(part.sums) + (wave.blocks_before * WAVE_SUMS * size_of::<f64>()) as u64,
            row_flags,
            col_flags,
            counts,
            ldw: plan.ld_weights as i64,
            first_tile: wave.first as u32,
            end_tile: wave.end as u32,
            row_splits: wave.splits.rows as u32,
            col_splits: wave.splits.cols as u32,
            share: part.share as f32,
            mix: if first { 0 } else { MIX_ADD } | if last { 0 } else { MIX_KEEP },
        }
    }

    fn split_products(&self) -> Option<SplitProducts> {
        self.sweeps.split(self.plan).map(|_| SplitProducts { operands: self.multiplied(), rest: self.plan.wave_rows })
    }

    /// Where the rests of the weights go: they fill what f32 takes.
    fn low_weights(&self, split: &SplitProducts) -> u64 {
        self.at(self.plan.weights) + (split.rest * self.plan.ld_weights * DType::Bf16.size()) as u64
    }

    fn gradient(&self) -> GradientStep {
        let Self { a, plan, .. } = self;
        let normalised = a.normalization == Normalization::L2;
        let (inv, exponent) = if normalised {
            (plan.prepare.row_inv(self.base), plan.prepare.row_exponent(self.base))
        } else {
            ([0; 2], [0; 2])
        };
        GradientStep {
            op: plan.kind.op(plan.shape.single),
            dtype: a.x.dtype,
            shape: plan.shape,
            operands: plan.operands(self.base),
            inv,
            exponent,
            skip: [self.skip(0), self.skip(1)],
            parts: plan.both_sides(plan.bf16_parts.map(|r| self.at(r))),
            split: self.split_products(),
            weights: self.at(plan.weights),
            ld_weights: plan.ld_weights,
            sums: plan.gradients.map(|r| if self.has_pairs() { self.at(r) } else { 0 }),
            ld_sums: plan.ld_gradients,
            diagonal: self.at(plan.diagonal),
            write: a.write,
            upstream: a.upstream,
            dx: a.dx,
            dy: a.dy.filter(|_| !plan.shape.single).unwrap_or(RawMat { rows: 0, ..a.dx }),
            report: self.report(0),
            more_reports: plan.parts.len().saturating_sub(1),
        }
    }

    /// Of a step of one objective; the parts of a mixture have their reports from a kernel of its own.
    fn report_of_weights(&self) -> ReportOfWeights {
        let plan = self.plan;
        let alone = plan.parts.first().filter(|_| plan.kind == Kind::Step);
        let [row_flags, col_flags, counts] = alone.map_or([0; 3], |part| self.fused(part));
        ReportOfWeights {
            sums: alone.map_or(0, |part| self.at(part.sums)),
            count: alone.map_or(0, |_| self.sweeps.sum_blocks()),
            row_flags,
            col_flags,
            counts,
            per_scale: per(alone.and_then(|part| part.form.per_scale)),
            per_bias: per(alone.and_then(|part| part.form.per_bias)),
            is_loss: false,
        }
    }

    fn mixture_report(&self, at: usize) -> PairwiseMixtureReportParams {
        let Self { a, plan, .. } = self;
        let part = &plan.parts[at];
        let [row_flags, col_flags, counts] = self.fused(part);
        let (upstream, factor) = a.upstream.parts();
        PairwiseMixtureReportParams {
            upstream,
            sums: self.at(part.sums),
            row_flags,
            col_flags,
            counts,
            goal: part.goal.as_ref().map_or(0, |goal| self.at(goal.report)),
            report: self.report(at),
            per_scale: per(part.form.per_scale),
            per_bias: per(part.form.per_bias),
            share: part.share,
            factor,
            sums_count: self.sweeps.sum_blocks() as u32,
            n: plan.shape.n as u32,
            m: plan.shape.m as u32,
        }
    }

    /// Sweeps of one objective before its weights, and its coefficients. `kept` tells whether all similarities are in
    /// memory.
    ///
    /// # Safety
    /// As [`Self::launch`].
    unsafe fn launch_part(&self, kernels: &Kernels, stream: &CudaStream, at: usize, kept: &mut bool) -> Result<()> {
        let plan = self.plan;
        let (part, dtype, shape) = (&plan.parts[at], self.sweeps.dtype, plan.shape);
        let (stats, sweep) = (&STATS[usize::from(part.form.both)], &self.sweeps.stats);
        let operands = self.multiplied();
        let lines = |count: usize| (count.div_ceil(LINES) as u32, 1, 1);
        let keep = |kept: &mut bool| match plan.kept {
            Kept::All(_) if std::mem::replace(kept, true) => Keep::Load,
            Kept::All(_) => Keep::Store,
            _ => Keep::Nothing,
        };
        // SAFETY: by the caller's promise.
        unsafe {
            if let Some(goal) = &part.goal {
                return self.launch_goal(kernels, stream, part, goal);
            }
            if self.has_pairs() {
                if part.form.form == Form::Triplet {
                    launch_sweep(kernels, stream, dtype, &self.pairs(part))?;
                }
                // The extremes are the same for every part with a miner.
                if part.form.mined && !plan.parts[..at].iter().any(|part| part.form.mined) {
                    let params = self.stats(part, true, keep(kept));
                    launch_tiles(kernels, stream, stats, sweep, operands, &params)?;
                    launch(kernels, stream, "pairwise_extremes", lines(shape.n), LINES as u32, 0, &self.extremes())?;
                }
                if part.form.has_statistics() {
                    let params = self.stats(part, false, keep(kept));
                    launch_tiles(kernels, stream, stats, sweep, operands, &params)?;
                }
            }
            let grid = (finalize_blocks(shape.n, shape.m) as u32, 1, 1);
            launch(kernels, stream, "pairwise_finalize", grid, LINES as u32, 0, &self.finalize(at))
        }
    }

    /// What comes before the weights: operands, statistics and coefficients.
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub(super) unsafe fn launch_statistics(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        let mut kept = false;
        // SAFETY: by the caller's promise.
        unsafe {
            self.launch_operands(kernels, stream)?;
            (0..self.plan.parts.len()).try_for_each(|at| self.launch_part(kernels, stream, at, &mut kept))
        }
    }

    /// Weights of a wave, part after part.
    ///
    /// # Safety
    /// As [`Self::launch`].
    unsafe fn launch_wave(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        (wave, sweep): (&Wave, &SweepPlan),
        mut kept: bool,
    ) -> Result<()> {
        let plan = self.plan;
        for (at, part) in plan.parts.iter().enumerate() {
            let keep = match plan.kept {
                _ if !part.dense() => Keep::Skip,
                Kept::Nothing => Keep::Nothing,
                _ if std::mem::replace(&mut kept, true) => Keep::Load,
                _ => Keep::Store,
            };
            let weights = &WEIGHTS[usize::from(part.form.both)];
            let params = self.weights(at, wave, keep);
            // SAFETY: by the caller's promise.
            unsafe { launch_tiles(kernels, stream, weights, sweep, self.multiplied(), &params) }?;
        }
        Ok(())
    }

    /// Enqueues everything.
    ///
    /// # Safety
    /// Every buffer of the arguments is valid on the stream's device for its extent until the enqueued work has run.
    pub(super) unsafe fn launch(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        let plan = self.plan;
        let parts = 0..plan.parts.len();
        let mut kept = false;
        // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
        // caller's promise.
        unsafe {
            self.launch_operands(kernels, stream)?;
            for at in parts.clone() {
                self.launch_part(kernels, stream, at, &mut kept)?;
            }
            let gradient = self.gradient();
            gradient.before_products(kernels, stream)?;
            for (wave, sweep) in self.sweeps.waves.iter().zip(&self.sweeps.weights) {
                self.launch_wave(kernels, stream, (wave, sweep), kept)?;
                gradient.products(kernels, stream, wave)?;
            }
            for at in parts.filter(|_| plan.kind == Kind::Mixture) {
                let params = self.mixture_report(at);
                launch(kernels, stream, "pairwise_mixture_report", (1, 1, 1), 32, 0, &params)?;
            }
            gradient.finish(kernels, stream, &self.report_of_weights())
        }
    }
}

/// One over a scale, 0 where there is none.
fn per(scale: Option<f64>) -> f64 {
    scale.map_or(0.0, |s| 1.0 / s)
}
