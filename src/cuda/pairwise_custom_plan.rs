//! The arguments of a step with formulas, what is checked of them, and where everything lies in the workspace.

use super::compiled_expression::CompiledExpression;
use super::descriptor::{Named, RawBuf, RawMat, check_disjoint, check_extent};
use super::gather::{RawUpstream, check_gradient_type};
use super::goal_plan::RawGroups;
use super::mine::check_optional;
use super::pairwise_custom_params::{COUNTERS, PARTS, PLANES};
use super::pairwise_grad_hopper::PartsShape;
use super::pairwise_params::WAVE_SUMS;
use super::pairwise_plan::{Shape, Wave, blocks_of, waves};
use super::plan::{MAX_SPLITS, Splits, TILE, tiles};
use super::prepare::{Prepare, Wants};
use super::row_norms::same_dtype;
use super::workspace::{Layout, Region};
use crate::check::{self, PairwiseLengths};
use crate::dtype::DType;
use crate::error::Result;
use crate::options::{Normalization, WriteMode};
use crate::pairwise::PairwiseReport;

pub(crate) const OP: &str = "pairwise_step_custom";

/// Words that `prepare` clears: the counters, a ticket, and one to spare.
const ZEROED: usize = COUNTERS + 2;

/// Arguments of [`raw::pairwise_step_custom`](super::raw::pairwise_step_custom). Buffers that are left out are
/// [`RawBuf::NULL`].
#[derive(Clone, Copy, Debug)]
pub struct RawPairwiseCustom<'a> {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`.
    pub y: RawMat,
    /// What the weights are.
    pub expression: &'a CompiledExpression,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// `n` bytes, not 0: the row is ignored. Or left out.
    pub ignore_rows: RawBuf,
    /// `m` bytes, not 0: the column is ignored. Or left out.
    pub ignore_cols: RawBuf,
    /// `n` f32: factors of the rows' weights. Or left out.
    pub row_weights: RawBuf,
    /// Factor on the gradient and on the report's loss.
    pub upstream: RawUpstream,
    /// Whether the gradient is added to what is there.
    pub write: WriteMode,
    /// `(n, d)`, of the type of `x` or f32.
    pub dx: RawMat,
    /// `(m, d)`, of the type of `dx`.
    pub dy: RawMat,
    /// One [`PairwiseReport`].
    pub report: RawBuf,
    /// The most bytes of the workspace that hold similarities and weights at a time, rounded up to 128 rows of them: fewer
    /// take longer.
    pub wave_bytes: usize,
    /// Bytes, at least [`pairwise_custom_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// Where everything lies in the workspace.
pub(super) struct Plan {
    pub shape: Shape,
    pub prepare: Prepare,
    /// Similarities of a wave; weights too, if those are f32.
    pub similarities: Region,
    pub weights: Option<Region>,
    pub rows: Region,
    pub cols: Region,
    pub col_parts: Region,
    pub skip: [Region; 2],
    /// Parts of f16 rows, for the devices whose products need them.
    pub bf16_parts: [Region; 2],
    pub sums: Region,
    pub diagonal: Region,
    pub gradients: [Region; 2],
    pub waves: Vec<Wave>,
    /// Parts of a wave's rows that a column's statistics are summed over at a time.
    pub splits: usize,
    /// Elements from one row of the similarities, and of the gradients' sums, to the next.
    pub ld: usize,
    pub ld_gradients: usize,
    pub bytes: usize,
}

impl Plan {
    fn new(x: &RawMat, y: &RawMat, normalization: Normalization, wave_bytes: usize, any_layout: bool) -> Result<Self> {
        let (n, m, d) = (x.rows, y.rows, x.cols);
        let shape = Shape { n, m, d, single: false };
        let wants = Wants {
            row_facts: true,
            norms: normalization == Normalization::L2,
            zeroed: ZEROED,
            any_layout,
            ..Wants::default()
        };
        let mut layout = Layout::new(OP);
        let prepare = Prepare::plan(&mut layout, OP, [&(*x).into(), &(*y).into()], normalization, &wants)?;
        let wide = x.dtype == DType::F32;
        let ld = m.next_multiple_of(TILE);
        let tile_bytes = ld.saturating_mul(TILE * if wide { 4 } else { 6 }).max(1);
        let waves = waves(shape, (wave_bytes / tile_bytes).max(1), |rows| Splits::new(rows, m));
        let wave_tiles = waves.iter().map(|w| w.end - w.first).max().unwrap_or(0);
        let splits = wave_tiles.clamp(1, MAX_SPLITS);
        let sum_blocks = blocks_of(&waves);
        let ld_gradients = d.next_multiple_of(8);
        Ok(Self {
            shape,
            prepare,
            similarities: layout.take::<f32>(&[wave_tiles * TILE, ld])?,
            weights: if wide { None } else { Some(layout.take::<u16>(&[wave_tiles * TILE, ld])?) },
            rows: layout.take::<u32>(&[PLANES, n])?,
            cols: layout.take::<u32>(&[PLANES, m])?,
            col_parts: layout.take::<u32>(&[PARTS, splits, m])?,
            skip: [layout.take::<u8>(&[n])?, layout.take::<u8>(&[m])?],
            bf16_parts: [
                PartsShape::region(&mut layout, x.dtype, n, d)?,
                PartsShape::region(&mut layout, x.dtype, m, d)?,
            ],
            sums: layout.take::<f64>(&[sum_blocks, WAVE_SUMS])?,
            diagonal: layout.take::<f32>(&[n.min(m)])?,
            gradients: [layout.take::<f32>(&[n, ld_gradients])?, layout.take::<f32>(&[m, ld_gradients])?],
            waves,
            splits,
            ld,
            ld_gradients,
            bytes: layout.total(),
        })
    }

    pub(super) fn sum_blocks(&self) -> usize {
        blocks_of(&self.waves)
    }
}

/// Bytes of workspace that [`pairwise_step_custom`](super::pairwise_step_custom) needs for `x` (`n × d`) and `y` (`m × d`) of
/// type `dtype`, whatever the expression and the alignment of the operands, with at most `wave_bytes` for similarities and
/// weights (rounded up to 128 rows). Host arithmetic only. Beside those `O((n + m) d)`.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
pub fn pairwise_custom_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    normalization: Normalization,
    wave_bytes: usize,
) -> Result<usize> {
    for (arg, extent) in [("x.rows", n), ("y.rows", m), ("x.cols", d)] {
        check_extent(OP, arg, extent)?;
    }
    let (x, y) = (RawMat::new(0, n, d, dtype), RawMat::new(0, m, d, dtype));
    Ok(Plan::new(&x, &y, normalization, wave_bytes, true)?.bytes)
}

fn check_buffers(a: &RawPairwiseCustom<'_>) -> Result<Vec<Named>> {
    let (n, m) = (a.x.rows, a.y.rows);
    let [row_groups, col_groups] = a.groups.map_or([RawBuf::NULL; 2], |g| [g.rows, g.cols]);
    let mut inputs = vec![
        ("x", a.x.check(OP, "x")?),
        ("y", a.y.check(OP, "y")?),
        check_optional::<i64>(OP, "groups.rows", row_groups, n)?,
        check_optional::<i64>(OP, "groups.cols", col_groups, m)?,
        check_optional::<u8>(OP, "options.ignore_rows", a.ignore_rows, n)?,
        check_optional::<u8>(OP, "options.ignore_cols", a.ignore_cols, m)?,
        check_optional::<f32>(OP, "options.row_weights", a.row_weights, n)?,
    ];
    if let RawUpstream::Device(buf) = a.upstream {
        inputs.push(("upstream", buf.check::<f32>(OP, "upstream", 1)?));
    }
    Ok(inputs)
}

/// Checks everything that the host can see.
pub(super) fn check_arguments(a: &RawPairwiseCustom<'_>) -> Result<Plan> {
    let extent = |m: &RawMat| (m.rows, m.cols);
    let length = |buf: RawBuf| (buf != RawBuf::NULL).then_some(buf.len);
    let lengths = PairwiseLengths {
        groups: a.groups.map(|g| (g.rows.len, g.cols.len)),
        ignore_rows: length(a.ignore_rows),
        ignore_cols: length(a.ignore_cols),
        row_weights: length(a.row_weights),
        ..PairwiseLengths::default()
    };
    check::pairwise_custom(OP, [&a.x, &a.y, &a.dx, &a.dy].map(extent), &lengths)?;
    check_extent(OP, "x.rows + y.rows", a.x.rows.saturating_add(a.y.rows))?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    check_gradient_type(OP, "dx", a.x.dtype, a.dx.dtype)?;
    same_dtype(OP, "dy", a.dx.dtype, a.dy.dtype)?;
    let inputs = check_buffers(a)?;
    let plan = Plan::new(&a.x, &a.y, a.normalization, a.wave_bytes, false)?;
    let most = tiles(a.x.rows).saturating_add(tiles(a.y.rows)).saturating_mul(tiles(a.x.cols));
    check_extent(OP, "tiles of the gradients", most)?;
    let outputs = [
        ("dx", a.dx.check(OP, "dx")?),
        ("dy", a.dy.check(OP, "dy")?),
        ("report", a.report.check::<PairwiseReport>(OP, "report", 1)?),
        ("workspace", a.workspace.check_workspace(OP, plan.bytes)?),
    ];
    check_disjoint(OP, &outputs, &inputs)?;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::PAIRWISE_WAVE_BYTES;

    #[test]
    fn a_large_step_needs_less_than_3_gb() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let bytes =
                |n| pairwise_custom_workspace_bytes(n, n, 512, dtype, Normalization::L2, PAIRWISE_WAVE_BYTES).unwrap();
            assert!(bytes(65_536) < 3_000_000_000, "{dtype}: {}", bytes(65_536));
            assert!(bytes(1 << 18) < 5 * bytes(65_536), "{dtype}");
        }
    }

    #[test]
    fn the_workspace_for_any_layout_covers_aligned_operands() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for normalization in [Normalization::None, Normalization::L2] {
                let any = pairwise_custom_workspace_bytes(300, 200, 64, dtype, normalization, 1 << 16).unwrap();
                let (x, y) = (RawMat::new(256, 300, 64, dtype), RawMat::new(256, 200, 64, dtype));
                let plan = Plan::new(&x, &y, normalization, 1 << 16, false).unwrap();
                assert!(plan.bytes <= any);
                assert_eq!(plan.waves.len(), 3);
            }
        }
    }

    #[test]
    fn sizes_beyond_the_address_space_are_refused() {
        let bytes = |n, d| pairwise_custom_workspace_bytes(n, n, d, DType::F32, Normalization::L2, PAIRWISE_WAVE_BYTES);
        assert!(matches!(bytes(usize::MAX, 8), Err(crate::Error::TooLarge { arg: "x.rows", .. })));
        assert!(matches!(bytes(1 << 30, 1 << 30), Err(crate::Error::TooLarge { .. })));
    }
}
