//! The products of a wave by warpgroups, for 16-bit rows on 9.0: the launches of `kernels/pairwise_grad_hopper.cu`.

use cudarc::driver::CudaStream;

use super::kernels::Kernels;
use super::launch::{launch, launch_mapped};
use super::pairwise_gradient::GradientStep;
use super::pairwise_params::{PairwiseGradGroupParams, PairwiseSplitParams, PairwiseSplitSide, SPLIT_THREADS};
use super::pairwise_plan::{Shape, Wave};
use super::plan::{GROUP_BLOCK, GROUP_CLUSTER, PLANNED_MULTIPROCESSORS, PlanDevice, Scheme, TILE, tiles};
use super::prepare::by_dtype;
use super::split::split_depth;
use super::tensor_map::{GradMaps, WideRows};
use super::workspace::{Layout, Region};
use crate::dtype::DType;
use crate::error::Result;

/// f32 in parts, f16, bf16.
const GRAD: [&str; 3] = ["pairwise_grad_hopper_f32", "pairwise_grad_hopper_f16", "pairwise_grad_hopper_bf16"];
pub(super) const SPLIT: &str = "pairwise_split_f16";
/// Dynamic shared memory of a block; `kGradSharedBytes` there.
pub(super) const GRAD_SHARED_BYTES: u32 = 198_656;
/// Elements of k of a stage, and columns of a panel.
const STEP_K: usize = 64;
/// Columns of a tile: as many as a warpgroup's accumulators allow, or half of that.
const TILE_COLS: [usize; 2] = [128, 256];

/// Rows of f16 as `pairwise_split_f16` leaves them: `padded` rows of leading parts, then as many of rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartsShape {
    pub padded: usize,
    pub ld: usize,
}

impl PartsShape {
    /// A step of k never reaches from the one into the other, and rows always have whole panels.
    pub(super) const fn new(rows: usize, d: usize) -> Self {
        Self { padded: rows.next_multiple_of(STEP_K), ld: d.next_multiple_of(STEP_K) }
    }

    /// Room for them, of rows that are f16.
    pub(super) fn region(layout: &mut Layout, dtype: DType, rows: usize, d: usize) -> Result<Region> {
        let Self { padded, ld } = Self::new(if dtype == DType::F16 { rows } else { 0 }, d);
        layout.take::<u16>(&[2, padded, ld])
    }
}

/// Whether these kernels make the products on such a device. All waves have the answer, and so the same order of sums.
pub(super) fn by_groups(device: &PlanDevice, dtype: DType, shape: Shape) -> bool {
    // Rows are counted in 31 bits, of f16 those of both parts.
    let parts = if dtype == DType::F16 { 2 } else { 1 };
    let counted = parts * shape.n.max(shape.m).next_multiple_of(STEP_K) <= i32::MAX as usize;
    device.forced != Some(Scheme::WarpMma) && device.runs(Scheme::GroupMma, dtype) && counted
}

/// How a wave's products are cut into tiles of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiles {
    cols: usize,
    across: usize,
    /// Of the sums for rows, and of those for columns.
    counts: [usize; 2],
    /// Of [`STEP_K`], in each tile of either.
    steps: [usize; 2],
}

impl Tiles {
    fn new(shape: Shape, wave: &Wave) -> Self {
        let above = Self::above(shape, wave);
        let blocks = GROUP_CLUSTER * (above[0] + above[1]) * shape.d.div_ceil(TILE_COLS[1]);
        // Narrow tiles have twice as many blocks, but load half as much again for every product: for what would leave half of
        // the device idle, and where the others would be half empty. No result depends on it.
        let narrow = shape.d <= TILE_COLS[0] || 2 * blocks <= PLANNED_MULTIPROCESSORS;
        Self::of_cols(shape, wave, TILE_COLS[usize::from(!narrow)])
    }

    fn of_cols(shape: Shape, wave: &Wave, cols: usize) -> Self {
        let rows = (wave.end * TILE).min(shape.n) - wave.first * TILE;
        let across = shape.d.div_ceil(cols);
        Self {
            cols,
            across,
            counts: Self::above(shape, wave).map(|tiles| tiles * across),
            steps: [shape.m, rows].map(|k| k.div_ceil(STEP_K)),
        }
    }

    /// Tiles of the sums for rows above each other, and of those for columns.
    fn above(shape: Shape, wave: &Wave) -> [usize; 2] {
        [wave.end - wave.first, tiles(shape.m)].map(|tiles| tiles.div_ceil(GROUP_CLUSTER))
    }

    /// As many as run at a time, or as there are tiles.
    fn clusters(&self, multiprocessors: u32) -> u32 {
        let at_once = (multiprocessors as usize / GROUP_CLUSTER).max(1);
        (self.counts[0] + self.counts[1]).min(at_once) as u32
    }
}

/// What the products of a wave will be, where these kernels make them.
pub(super) struct GroupProducts {
    pub kernel: &'static str,
    pub grid: (u32, u32, u32),
    tiles: Tiles,
    parts: usize,
    d: usize,
}

impl GroupProducts {
    /// `split`: of f32 in parts, on a device that multiplies so.
    pub(super) fn new(device: &PlanDevice, dtype: DType, split: bool, shape: Shape, wave: &Wave) -> Option<Self> {
        if !split && !by_groups(device, dtype, shape) {
            return None;
        }
        let tiles = Tiles::new(shape, wave);
        let grid = (GROUP_CLUSTER as u32 * tiles.clusters(device.multiprocessors), 1, 1);
        let parts = if split { 3 } else { 1 + usize::from(dtype == DType::F16) };
        Some(Self { kernel: by_dtype(dtype, GRAD), grid, tiles, parts, d: shape.d })
    }

    /// Tiles of clusters: of rows and of columns above each other, and beside each other.
    pub(super) fn tiles(&self) -> [usize; 3] {
        let Tiles { across, counts, .. } = self.tiles;
        [counts[0] / across, counts[1] / across, across]
    }

    /// Two for each multiply-add, with those of the padding of tiles.
    pub(super) fn operations(&self) -> f64 {
        let Tiles { cols, across, counts, steps } = self.tiles;
        let [narrow, wide] = TILE_COLS;
        // Of wide tiles the last one is made narrow if that is enough.
        let width = (0..across).map(|at| if cols == wide && self.d - at * cols > narrow { wide } else { narrow });
        let width = width.sum::<usize>() as f64;
        let steps = (counts[0] / across * steps[0] + counts[1] / across * steps[1]) as f64;
        2.0 * self.parts as f64 * (GROUP_CLUSTER * TILE * STEP_K) as f64 * width * steps
    }
}

impl GradientStep {
    fn group_params(&self, wave: &Wave, tiles: &Tiles, [x, y]: [WideRows; 2]) -> PairwiseGradGroupParams {
        let x_is_long = tiles.steps[0] >= tiles.steps[1];
        let (long, short) = if x_is_long { (0, 1) } else { (1, 0) };
        let rest = |rows: WideRows| if self.dtype == DType::F16 { (rows.rows / 2) as u32 } else { 0 };
        PairwiseGradGroupParams {
            skip_x: self.skip[0],
            skip_y: self.skip[1],
            gx: self.sums[0],
            gy: self.sums[1],
            ldg: self.ld_sums as i64,
            n: self.shape.n as u32,
            m: self.shape.m as u32,
            d: self.shape.d as u32,
            first_tile: wave.first as u32,
            end_tile: wave.end as u32,
            accumulate: u32::from(wave.first > 0),
            tile_cols: tiles.cols as u32,
            panels: u32::from(x.has_panels()),
            rest_x: rest(x),
            rest_y: rest(y),
            across: tiles.across as u32,
            x_is_long: u32::from(x_is_long),
            long_tiles: tiles.counts[long] as u32,
            short_tiles: tiles.counts[short] as u32,
            long_steps: tiles.steps[long] as u32,
            short_steps: tiles.steps[short] as u32,
            meanwhile: (tiles.steps[long] / tiles.steps[short]) as u32,
            part: self.split.map_or(0, |_| split_depth(self.shape.d) / 3) as u32,
            rest_w: self.split.map_or(0, |split| split.rest) as u32,
            pad_: 0,
        }
    }

    /// The operands as the products read them.
    fn wide_rows(&self) -> [WideRows; 2] {
        let (d, lens) = (self.shape.d, [self.shape.n, self.shape.m]);
        [0, 1].map(|side| match (self.dtype, &self.split) {
            (_, Some(split)) => {
                let operand = &split.operands[side];
                WideRows { ptr: operand.ptr, rows: lens[side], d: split_depth(d), ld: operand.row_stride }
            }
            (DType::F16, _) => {
                let PartsShape { padded, ld } = PartsShape::new(lens[side], d);
                WideRows { ptr: self.parts[side], rows: 2 * padded, d: ld, ld }
            }
            _ => {
                let operand = &self.operands[side];
                WideRows { ptr: operand.ptr, rows: lens[side], d, ld: operand.row_stride }
            }
        })
    }

    /// Enqueues what all waves' products by these kernels need: the parts of f16 rows.
    ///
    /// # Safety
    /// As for [`Self::products`].
    pub(super) unsafe fn split_by_groups(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        if self.dtype != DType::F16 {
            return Ok(());
        }
        let (n, m, d) = (self.shape.n, if self.shape.single { 0 } else { self.shape.m }, self.shape.d);
        let side = |side: usize, rows: usize| PairwiseSplitSide {
            src: self.operands[side].ptr,
            parts: self.parts[side],
            ld: self.operands[side].row_stride as i64,
            rows: rows as u32,
            padded: PartsShape::new(rows, d).padded as u32,
        };
        let ld_parts = PartsShape::new(n, d).ld as u32;
        let params = PairwiseSplitParams { x: side(0, n), y: side(1, m), d: d as u32, ld_parts };
        let grid = (params.x.padded + params.y.padded, 1, 1);
        // SAFETY: by the caller's promise.
        unsafe { launch(kernels, stream, SPLIT, grid, SPLIT_THREADS as u32, 0, &params) }
    }

    /// Enqueues the products of a wave.
    ///
    /// # Safety
    /// As for [`Self::products`]; on a device for which [`by_groups`] holds, behind [`Self::split_by_groups`].
    pub(super) unsafe fn products_by_groups(&self, kernels: &Kernels, stream: &CudaStream, wave: &Wave) -> Result<()> {
        let tiles = Tiles::new(self.shape, wave);
        // SAFETY: by the caller's promise.
        unsafe { self.launch_groups(kernels, stream, wave, &tiles, tiles.clusters(kernels.device().multiprocessors)) }
    }

    /// # Safety
    /// As for [`Self::products_by_groups`].
    unsafe fn launch_groups(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        wave: &Wave,
        tiles: &Tiles,
        clusters: u32,
    ) -> Result<()> {
        let name = by_dtype(self.dtype, GRAD);
        let operands = self.wide_rows();
        let rows = (wave.end - wave.first) * TILE;
        let w = WideRows { ptr: self.weights, rows, d: self.ld_weights, ld: self.ld_weights };
        let rest = self.split.map_or(0, |split| split.rest);
        let maps = GradMaps::new(name, w, rest, operands, (tiles.cols / (GROUP_CLUSTER * STEP_K)) as u32)?;
        let params = self.group_params(wave, tiles, operands);
        let grid = (GROUP_CLUSTER as u32 * clusters, 1, 1);
        // SAFETY: by the caller's promise.
        unsafe { launch_mapped(kernels, stream, name, (grid, GROUP_BLOCK, GRAD_SHARED_BYTES), &maps, &params) }
    }
}

#[cfg(test)]
mod tests;
