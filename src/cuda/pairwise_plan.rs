//! Where everything lies in the workspace of a pairwise step. A step of one objective is that of a mixture with one part.

use super::descriptor::{RawMat, check_extent};
use super::pairwise_conflict::ConflictPlan;
use super::pairwise_goal::{GoalPart, GoalScratch};
use super::pairwise_grad_hopper::PartsShape;
use super::pairwise_params::{
    COL_PLANES, Form, LINES, ObjectiveForm, PairwiseBlock, ROW_PLANES, SET_PLANES, WAVE_SUMS, ZEROED,
};
use super::plan::{GROUP_PARTIES, Splits, TILE, tiles};
use super::prepare::{Operand, Prepare, Wants};
use super::split::{Split, splits};
use super::workspace::{Layout, Region};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::mixture::{MixtureObjective, PairwisePart};
use crate::options::{Normalization, Precision};
use crate::pairwise::PairwiseObjective;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A step of one objective.
    Step,
    /// A step of any number of them, each with a report.
    Mixture,
}

impl Kind {
    pub(crate) const fn op(self, single: bool) -> &'static str {
        match (self, single) {
            (Self::Step, false) => "pairwise_step",
            (Self::Step, true) => "pairwise_step_single",
            (Self::Mixture, false) => "pairwise_mixture",
            (Self::Mixture, true) => "pairwise_mixture_single",
        }
    }
}

/// The default of [`RawPairwiseStep::wave_bytes`](super::raw::RawPairwiseStep::wave_bytes): 1 GiB, 8192 rows of 65,536 16-bit weights, which is enough to fill a
/// device.
pub const PAIRWISE_WAVE_BYTES: usize = 1 << 30;

/// The numbers that a plan follows from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub n: usize,
    pub m: usize,
    pub d: usize,
    pub single: bool,
}

/// Rows whose weights are held at a time, in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wave {
    pub first: usize,
    pub end: usize,
    pub splits: Splits,
    /// Blocks of the earlier waves.
    pub blocks_before: usize,
}

impl Wave {
    pub(super) const fn blocks(&self) -> usize {
        self.splits.rows * self.splits.cols
    }
}

/// Deals the tiles of the rows to waves of at most `per_wave`, and those of a wave of so many rows to blocks as `splits` says.
pub(super) fn waves(shape: Shape, per_wave: usize, splits: impl Fn(usize) -> Splits) -> Vec<Wave> {
    let tiles = tiles(shape.n);
    if tiles == 0 || shape.m == 0 {
        return Vec::new();
    }
    let count = tiles.div_ceil(per_wave);
    deal((0..count).map(|at| [tiles * at / count, tiles * (at + 1) / count]), splits)
}

fn deal(waves: impl Iterator<Item = [usize; 2]>, splits: impl Fn(usize) -> Splits) -> Vec<Wave> {
    let mut blocks_before = 0;
    let wave = |[first, end]: [usize; 2]| {
        let wave = Wave { first, end, splits: splits((end - first) * TILE), blocks_before };
        blocks_before += wave.blocks();
        wave
    };
    waves.map(wave).collect()
}

/// The same waves, dealt to blocks in another way.
pub(super) fn dealt_again(waves: &[Wave], splits: impl Fn(usize) -> Splits) -> Vec<Wave> {
    deal(waves.iter().map(|wave| [wave.first, wave.end]), splits)
}

/// Blocks of all waves.
pub(super) fn blocks_of(waves: &[Wave]) -> usize {
    waves.last().map_or(0, |wave| wave.blocks_before + wave.blocks())
}

/// Memory and precision that are granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    /// For the weights of a wave.
    pub wave_bytes: usize,
    /// For all similarities.
    pub keep_bytes: usize,
    /// Of f32.
    pub precision: Precision,
}

/// Similarities that one sweep stores for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// None.
    Nothing,
    /// Those of a wave, for the parts of a mixture.
    Wave(Region),
    /// All.
    All(Region),
}

/// What one objective has in the workspace.
pub(super) struct PartPlan {
    pub form: ObjectiveForm,
    /// Factor of its weights.
    pub share: f64,
    /// The first of its words among those that `prepare` clears.
    pub words: usize,
    pub row_coefficients: Region,
    pub col_coefficients: Region,
    pub scale: Region,
    pub sums: Region,
    /// What a GOAL objective has besides.
    pub goal: Option<GoalPart>,
}

impl PartPlan {
    fn new(layout: &mut Layout, at: usize, part: &PairwisePart, shape: Shape, sum_blocks: usize) -> Result<Self> {
        let form = form_of(part);
        let goal = match part.objective {
            MixtureObjective::Pairwise(_) => None,
            MixtureObjective::Goal(objective) => Some(GoalPart::new(layout, objective)?),
        };
        let reduction = goal.as_ref().map_or(1.0, |goal| goal.objective.reduction_factor(shape.n));
        Ok(Self {
            form,
            share: part.weight * reduction,
            words: at * ZEROED,
            row_coefficients: layout.take::<f32>(&[ROW_PLANES, shape.n])?,
            col_coefficients: layout.take::<f32>(&[usize::from(form.both), COL_PLANES, shape.m])?,
            scale: layout.take::<f32>(&[2])?,
            sums: layout.take::<f64>(&[sum_blocks, WAVE_SUMS])?,
            goal,
        })
    }

    /// Whether its weights follow from similarities and not from what a GOAL objective's kernels have found.
    pub(super) fn dense(&self) -> bool {
        self.form.form != Form::Goal
    }
}

fn form_of(part: &PairwisePart) -> ObjectiveForm {
    part.objective.pairwise().map_or(ObjectiveForm::GOAL, ObjectiveForm::new)
}

/// Where everything lies in the workspace.
pub(super) struct Plan {
    pub shape: Shape,
    pub kind: Kind,
    pub parts: Vec<PartPlan>,
    pub goal: Option<GoalScratch>,
    pub prepare: Prepare,
    pub row_parts: Region,
    pub other_parts: Region,
    pub pos: Region,
    pub extremes: [Region; 2],
    pub skip: [Region; 2],
    /// Parts of f16 rows, for the devices whose products need them.
    pub bf16_parts: [Region; 2],
    /// f32 in parts, for the devices that multiply those.
    pub split: Option<Split>,
    pub blocks: Region,
    pub diagonal: Region,
    pub gradients: [Region; 2],
    pub weights: Region,
    /// The sum of the parts' weights in a wave, where there are several.
    pub mixed: Region,
    pub kept: Kept,
    /// With room for the blocks of any device.
    pub waves: Vec<Wave>,
    /// Rows of weights that there is room for.
    pub wave_rows: usize,
    /// Elements from one row of the weights, and of the gradients' sums, to the next.
    pub ld_weights: usize,
    pub ld_gradients: usize,
    pub bytes: usize,
}

impl Plan {
    pub(super) fn new(
        kind: Kind,
        x: &RawMat,
        y: Option<&RawMat>,
        parts: &[PairwisePart],
        normalization: Normalization,
        grant: Grant,
        any_layout: bool,
    ) -> Result<Self> {
        let op = kind.op(y.is_none());
        let (n, d) = (x.rows, x.cols);
        let shape = Shape { n, m: y.map_or(n, |y| y.rows), d, single: y.is_none() };
        let (m, pairs) = (shape.m, n.min(shape.m));
        let forms: Vec<ObjectiveForm> = parts.iter().map(form_of).collect();
        let any = |of: fn(&ObjectiveForm) -> bool| forms.iter().any(of);
        let goals = || parts.iter().filter_map(|part| part.objective.goal());
        let wants = Wants {
            row_facts: true,
            norms: normalization == Normalization::L2,
            pmin: goals().any(|goal| goal.pair().eps().is_some()),
            // Words of every part; flags of columns with a positive, and where no statistics tell it of rows.
            zeroed: forms.len() * ZEROED
                + if any(|f| !f.both) { m } else { 0 }
                + if any(|f| !f.has_statistics()) { n } else { 0 },
            any_layout,
        };
        let mut layout = Layout::new(op);
        let no_rows = RawMat { rows: 0, ..*x };
        let sides = [&(*x).into(), &(*y.unwrap_or(&no_rows)).into()];
        let prepare = Prepare::plan(&mut layout, op, sides, normalization, &wants)?;
        let room = Splits::room(n, m);
        let of_mined = usize::from(any(|f| f.mined));
        let row_parts = layout.take::<u32>(&[SET_PLANES, room.cols, n])?;
        // States of columns, or of rows' positives, of one part after the other.
        let [of_cols, of_rows] = [any(|f| f.both), any(|f| !f.both)].map(usize::from);
        let other = (of_cols * room.rows * GROUP_PARTIES * m).max(of_rows * room.cols * n);
        let other_parts = layout.take::<u32>(&[SET_PLANES, other])?;
        let pos = layout.take::<f32>(&[of_cols, pairs])?;
        let extremes = [layout.take::<f32>(&[of_mined, n])?, layout.take::<f32>(&[of_mined, n])?];
        let skip = [layout.take::<u8>(&[n])?, layout.take::<u8>(&[m])?];
        let blocks = layout.take::<PairwiseBlock>(&[finalize_blocks(n, m)])?;
        let goal = GoalScratch::new(&mut layout, n, room, goals())?;

        let ld_weights = m.next_multiple_of(TILE);
        let size = if x.dtype == DType::F32 { 4 } else { 2 };
        // Sweeps that need similarities: extremes once, statistics, weights.
        let dense = forms.iter().filter(|f| f.form != Form::Goal);
        let sweeps = of_mined + dense.clone().map(|f| 1 + usize::from(f.has_statistics())).sum::<usize>();
        let all_bytes = tiles(n).saturating_mul(TILE * size_of::<f32>()).saturating_mul(ld_weights);
        let keeps_all = sweeps > 1 && all_bytes <= grant.keep_bytes;
        let keeps_wave = !keeps_all && dense.count() > 1;
        let mixes = forms.len() > 1;
        let element = size + [mixes, keeps_wave].map(|b| usize::from(b) * size_of::<f32>()).iter().sum::<usize>();
        let tile_bytes = ld_weights.saturating_mul(TILE * element).max(1);
        let waves = waves(shape, (grant.wave_bytes / tile_bytes).max(1), |rows| Splits::room(rows, m));
        let sum_blocks = blocks_of(&waves);
        let wave_rows = waves.iter().map(|w| w.end - w.first).max().unwrap_or(0) * TILE;
        let ld_gradients = d.next_multiple_of(8);
        let part = |(at, part)| PartPlan::new(&mut layout, at, part, shape, sum_blocks);
        Ok(Self {
            shape,
            kind,
            parts: parts.iter().enumerate().map(part).collect::<Result<_>>()?,
            goal,
            prepare,
            row_parts,
            other_parts,
            pos,
            extremes,
            skip,
            bf16_parts: [
                PartsShape::region(&mut layout, x.dtype, n, d)?,
                PartsShape::region(&mut layout, x.dtype, if shape.single { 0 } else { m }, d)?,
            ],
            split: if splits(grant.precision, x.dtype) {
                // A set with itself is on both sides of a product.
                let [x, y] = [n, m].map(|rows| RawMat { rows, ..*x }.into());
                Some(Split::plan_as_is(&mut layout, op, [&x, &y])?)
            } else {
                None
            },
            blocks,
            diagonal: layout.take::<f32>(&[pairs])?,
            gradients: [layout.take::<f32>(&[n, ld_gradients])?, layout.take::<f32>(&[m, ld_gradients])?],
            weights: layout.take::<u8>(&[wave_rows, ld_weights, size])?,
            mixed: layout.take::<f32>(&[usize::from(mixes), wave_rows, ld_weights])?,
            kept: if keeps_all {
                Kept::All(layout.take::<f32>(&[tiles(n) * TILE, ld_weights])?)
            } else if keeps_wave {
                Kept::Wave(layout.take::<f32>(&[wave_rows, ld_weights])?)
            } else {
                Kept::Nothing
            },
            waves,
            wave_rows,
            ld_weights,
            ld_gradients,
            bytes: layout.total(),
        })
    }

    /// The rows and the columns as the tile kernels read them.
    pub(super) fn operands(&self, base: u64) -> [Operand; 2] {
        let x = self.prepare.x(base);
        [x, if self.shape.single { x } else { self.prepare.y(base) }]
    }

    /// One address per side of what `prepare` found out about rows.
    pub(super) fn both_sides(&self, [x, y]: [u64; 2]) -> [u64; 2] {
        [x, if self.shape.single { x } else { y }]
    }
}

/// Blocks of `pairwise_finalize`.
pub(super) const fn finalize_blocks(n: usize, m: usize) -> usize {
    let blocks = (n + m).div_ceil(LINES);
    if blocks == 0 { 1 } else { blocks }
}

/// Bytes of workspace for a step of `kind` on `n` rows and `m` columns; no `m`: of a single set. With `conflict` the parts'
/// gradients are to be compared.
#[allow(clippy::too_many_arguments)]
pub(super) fn workspace_bytes(
    kind: Kind,
    n: usize,
    m: Option<usize>,
    d: usize,
    dtype: DType,
    parts: &[PairwisePart],
    normalization: Normalization,
    grant: Grant,
    conflict: bool,
) -> Result<usize> {
    let op = kind.op(m.is_none());
    check_extent(op, "x.rows", n)?;
    if let Some(m) = m {
        check_extent(op, "y.rows", m)?;
    }
    check_extent(op, "x.cols", d)?;
    let (x, y) = (RawMat::new(0, n, d, dtype), m.map(|m| RawMat::new(0, m, d, dtype)));
    let bytes = Plan::new(kind, &x, y.as_ref(), parts, normalization, grant, true)?.bytes;
    let more = match conflict {
        false => 0,
        true => ConflictPlan::new(&x, y.as_ref(), parts, normalization, grant, true)?.bytes,
    };
    // Both are at most `isize::MAX`.
    check_bytes(op, bytes + more)
}

/// Bytes of workspace that [`pairwise_step`](super::pairwise_step) needs for `x` (`n × d`) and `y` (`m × d`) of type
/// `dtype`, whatever the alignment of the operands, with at most `wave_bytes` for weights (rounded up to 128 rows). If all
/// similarities fit into `keep_bytes` (4 bytes each, rows and columns rounded up to multiples of 128) and there is more than
/// one sweep, there is room for them too. Host arithmetic only. Beside both `O((n + m) d)`, and 6 bytes per element of f32
/// inputs with [`Precision::SplitBf16`] on every device, used there or not; a set with itself counts twice. Features are rounded
/// up to multiples of 8.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
#[allow(clippy::too_many_arguments)]
pub fn pairwise_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    objective: &PairwiseObjective,
    normalization: Normalization,
    wave_bytes: usize,
    keep_bytes: usize,
    precision: Precision,
) -> Result<usize> {
    let part = PairwisePart::new(1.0, *objective);
    let grant = Grant { wave_bytes, keep_bytes, precision };
    workspace_bytes(Kind::Step, n, Some(m), d, dtype, &[part], normalization, grant, false)
}

/// As [`pairwise_workspace_bytes`], for [`pairwise_step_single`](super::pairwise_step_single).
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
#[allow(clippy::too_many_arguments)]
pub fn pairwise_single_workspace_bytes(
    n: usize,
    d: usize,
    dtype: DType,
    objective: &PairwiseObjective,
    normalization: Normalization,
    wave_bytes: usize,
    keep_bytes: usize,
    precision: Precision,
) -> Result<usize> {
    let part = PairwisePart::new(1.0, *objective);
    let grant = Grant { wave_bytes, keep_bytes, precision };
    workspace_bytes(Kind::Step, n, None, d, dtype, &[part], normalization, grant, false)
}

/// At most what a workspace can have.
pub(super) fn check_bytes(op: &'static str, bytes: usize) -> Result<usize> {
    let limit = isize::MAX as u64;
    if bytes as u64 <= limit {
        Ok(bytes)
    } else {
        Err(Error::TooLarge { op, arg: "workspace", limit, got: bytes as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{PlanDevice, SweepKernel, SweepPlan, SweepShape};
    use super::*;

    #[test]
    fn waves_cover_every_row_once_and_stay_within_their_share() {
        for (n, per_wave) in [(1, 1), (128, 1), (129, 1), (5000, 7), (65_536, 64)] {
            let of_any = |rows| Splits::room(rows, 300);
            let waves = waves(Shape { n, m: 300, d: 8, single: false }, per_wave, of_any);
            assert_eq!((waves[0].first, waves.last().unwrap().end), (0, tiles(n)));
            assert!(waves.windows(2).all(|w| w[0].end == w[1].first));
            assert!(waves.iter().all(|w| w.end > w.first && w.end - w.first <= per_wave));
            // Whatever the scheme, there is room for the sums of its blocks.
            let kernel = SweepKernel::PairwiseWeights;
            for device in [PlanDevice::A100, PlanDevice::H200] {
                let again = dealt_again(&waves, |n| {
                    let shape = SweepShape { batch: 1, n, m: 300, d: 8, dtype: DType::Bf16 };
                    SweepPlan::new(kernel, shape, device).splits
                });
                assert!(again.iter().zip(&waves).all(|(a, b)| (a.first, a.end) == (b.first, b.end)));
                assert!(blocks_of(&again) <= blocks_of(&waves));
            }
        }
        assert!(waves(Shape { n: 0, m: 3, d: 8, single: false }, 1, |_| Splits { rows: 1, cols: 1 }).is_empty());
    }

    #[test]
    fn a_large_step_needs_less_than_3_gb() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for objective in PairwiseObjective::ALL {
                let bytes = |n| {
                    let (l2, split) = (Normalization::L2, Precision::SplitBf16);
                    pairwise_workspace_bytes(n, n, 512, dtype, &objective, l2, PAIRWISE_WAVE_BYTES, 0, split).unwrap()
                };
                assert!(bytes(65_536) < 3_000_000_000, "{dtype} {objective}: {}", bytes(65_536));
                assert!(bytes(1 << 18) < 5 * bytes(65_536), "{dtype} {objective}");
            }
        }
    }

    #[test]
    fn a_large_mixture_needs_less_than_3_gb_too() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let parts = PairwiseObjective::ALL.map(|objective| PairwisePart::new(0.5, objective));
            let grant = Grant { wave_bytes: PAIRWISE_WAVE_BYTES, keep_bytes: 0, precision: Precision::SplitBf16 };
            let (n, l2) = (65_536, Normalization::L2);
            let bytes = workspace_bytes(Kind::Mixture, n, Some(n), 512, dtype, &parts, l2, grant, false).unwrap();
            assert!(bytes < 3_000_000_000, "{dtype}: {bytes}");
        }
    }

    #[test]
    fn sizes_beyond_the_address_space_are_refused() {
        let bytes = |n, d| {
            let objective = PairwiseObjective::ALL[0];
            let (l2, full) = (Normalization::L2, Precision::Full);
            pairwise_workspace_bytes(n, n, d, DType::F32, &objective, l2, PAIRWISE_WAVE_BYTES, 0, full)
        };
        assert!(matches!(bytes(usize::MAX, 8), Err(crate::Error::TooLarge { arg: "x.rows", .. })));
        assert!(matches!(bytes(1 << 30, 1 << 30), Err(crate::Error::TooLarge { .. })));
    }
}
