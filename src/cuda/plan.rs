//! How the tile kernels divide their work, as one pure function of shape, type and device. Numbers that results depend on
//! come from the shape, the type and the scheme, never from the number of multiprocessors, so that no result depends on the
//! size of a device. `explain.rs` has the reason beside each number.

use super::image::HAS_HOPPER;
use super::probe::DeviceFacts;
use crate::dtype::DType;

/// Rows, and columns, of a tile of [`Scheme::WarpMma`]; `kTile` in `kernels/common/tile.cuh`.
pub(crate) const TILE: usize = 128;
/// Threads of a block of it; `kTileThreads` there.
pub(crate) const TILE_BLOCK: u32 = 256;
/// Dynamic shared memory of a block of it in bytes; `kPipelineBytes` there.
pub(crate) const TILE_SHARED_BYTES: u32 = 98_304;
/// Stages of it; `kStages` there.
const TILE_STAGES: u32 = 3;

/// The most parts that the tiles of one direction are dealt to. 16 x 16 blocks keep every device of up to 256
/// multiprocessors busy, and 16 partial results per row are quick to merge.
pub(crate) const MAX_SPLITS: usize = 16;

/// Bytes of a row of an operand in one stage, of every scheme.
const ROW_BYTES: u32 = 128;
/// Rows of a tile of the schemes with `wgmma`: two warpgroups of 64.
pub(crate) const GROUP_ROWS: usize = 128;
/// Of these, where they do not meet: `kParties` of the files with `SIMGRAD_GROUPS_APART`.
pub(crate) const GROUP_PARTIES: usize = 2;
/// Columns of a tile of [`Scheme::GroupMma`].
pub(crate) const GROUP_COLS: usize = 256;
/// Rows and columns of a tile of [`Scheme::WarpSlices`]; `kTile` and `kTileCols` in `kernels/common/tile_layout.cuh`.
const SLICE_TILE: (usize, usize) = (64, 32);
/// Threads of a block of it, which has the shared memory of [`Scheme::WarpMma`], not all of it for stages.
const SLICE_BLOCK: u32 = 128;
/// Three stages of each of four warps, of half a step.
const SLICE_STAGES: u32 = 6;
/// Columns of a tile of [`Scheme::GroupMmaSmall`].
pub(crate) const SMALL_COLS: usize = 64;
/// Blocks of a cluster, along the rows: each brings half of the columns' operand for both.
pub(crate) const GROUP_CLUSTER: usize = 2;
/// Two warpgroups that multiply and one that loads.
pub(crate) const GROUP_BLOCK: u32 = 384;
const GROUP_STAGES: u32 = 4;
const SMALL_STAGES: u32 = 6;
/// Columns of a tile of [`Scheme::GroupMma`] where the epilogue needs the registers, and stages of such tiles, in the same
/// memory: `SIMGRAD_GROUP_STEP` of 1 in `kernels/common/group_tile.cuh`.
const HEAVY_COLS: usize = 128;
const HEAVY_STAGES: u32 = 6;
const _: () = assert!(group_shared(HEAVY_COLS, HEAVY_STAGES) == GROUP_SHARED_BYTES);
/// Barriers, and what it takes to align the stages to 1024 bytes.
const GROUP_EXTRA: u32 = 1024;
/// For the epilogue: partial maxima or sums of a tile's rows and columns, and barriers; or a small tile.
const fn group_scratch(cols: usize) -> u32 {
    if cols == SMALL_COLS { (GROUP_ROWS * SMALL_COLS * 4) as u32 } else { 28 * 1024 }
}
/// Dynamic shared memory of a block of [`Scheme::GroupMma`].
pub(crate) const GROUP_SHARED_BYTES: u32 = group_shared(GROUP_COLS, GROUP_STAGES);
/// Dynamic shared memory of a block of [`Scheme::GroupMmaSmall`].
pub(crate) const SMALL_SHARED_BYTES: u32 = group_shared(SMALL_COLS, SMALL_STAGES);
/// The most parts of rows for clusters: twice as many blocks, so [`MAX_SPLITS`] partial results per column.
const MAX_ROW_UNIT_PARTS: usize = MAX_SPLITS / GROUP_CLUSTER;

/// Multiprocessors that the dealing is laid out for, a constant: the device's own number would make results depend on it.
pub const PLANNED_MULTIPROCESSORS: usize = 132;

const fn group_shared(cols: usize, stages: u32) -> u32 {
    stages * (GROUP_ROWS + cols) as u32 * ROW_BYTES + group_scratch(cols) + GROUP_EXTRA
}

/// Band of `cosine_matrix`; `kBand` in `kernels/cosine_matrix.cu`.
const MATRIX_BAND: usize = 8;

/// Tiles along an extent.
pub(crate) const fn tiles(extent: usize) -> usize {
    extent.div_ceil(TILE)
}

/// Parts for `tiles` tiles: as many as allowed, but none with fewer tiles than an even deal gives.
const fn parts(tiles: usize) -> usize {
    match tiles {
        0 => 1,
        tiles => tiles.div_ceil(tiles.div_ceil(MAX_SPLITS)),
    }
}

/// Parts that the rows and the columns of tiles of a sweep are dealt to; a block takes one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Parts of the rows: partial results per column.
    pub rows: usize,
    /// Parts of the columns: partial results per row.
    pub cols: usize,
}

impl Splits {
    /// For an `n × m` matrix of similarities in tiles of 128 × 128.
    pub(crate) const fn new(n: usize, m: usize) -> Self {
        Self { rows: parts(tiles(n)), cols: parts(tiles(m)) }
    }

    /// For it in tiles of 128 × 64.
    const fn small(n: usize, m: usize) -> Self {
        Self { rows: parts(n.div_ceil(GROUP_ROWS)), cols: parts(m.div_ceil(SMALL_COLS)) }
    }

    /// For it in tiles of 64 × 32.
    const fn slices(n: usize, m: usize) -> Self {
        Self { rows: parts(n.div_ceil(SLICE_TILE.0)), cols: parts(m.div_ceil(SLICE_TILE.1)) }
    }

    /// For it in units of 256 rows and the columns of a step: the fewest parts of all deals that finish first on
    /// [`PLANNED_MULTIPROCESSORS`], a unit taking the same time everywhere; of those the one with most parts of rows, since
    /// each reads all columns.
    fn group(n: usize, m: usize, step_cols: usize) -> Self {
        let (rows, cols) = (n.div_ceil(GROUP_ROWS * GROUP_CLUSTER).max(1), m.div_ceil(step_cols).max(1));
        let at_once = PLANNED_MULTIPROCESSORS / GROUP_CLUSTER;
        let mut best = (usize::MAX, usize::MAX, Self { rows: GROUP_CLUSTER, cols: 1 });
        for r in (1..=rows.min(MAX_ROW_UNIT_PARTS)).rev() {
            for c in 1..=cols.min(MAX_SPLITS) {
                // Rounds of clusters, each as long as its largest share. Below 2^48.
                let time = (r * c).div_ceil(at_once) * rows.div_ceil(r) * cols.div_ceil(c);
                if (time, r * c) < (best.0, best.1) {
                    best = (time, r * c, Self { rows: GROUP_CLUSTER * r, cols: c });
                }
            }
        }
        best.2
    }

    /// At least as many of both as any scheme has: what a workspace must have room for that any device may use.
    pub fn room(n: usize, m: usize) -> Self {
        let warps = [Self::new(n, m), Self::slices(n, m)];
        [Self::small(n, m), Self::group(n, m, GROUP_COLS), Self::group(n, m, HEAVY_COLS)]
            .iter()
            .chain(&warps)
            .fold(Self { rows: 1, cols: 1 }, |a, b| Self { rows: a.rows.max(b.rows), cols: a.cols.max(b.cols) })
    }
}

/// Blocks for `tiles` independent tiles: one after the other on blocks that stay, `per_sm` of them on a multiprocessor.
/// Results do not depend on this number.
pub(crate) fn resident_blocks(tiles: u128, multiprocessors: u32, per_sm: u32) -> u32 {
    let resident = u128::from(multiprocessors.max(1)) * u128::from(per_sm);
    // At most `resident`, far below 2^32.
    tiles.min(resident) as u32
}

/// How a block makes its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// Eight warps, `mma.sync` (f32: multiply-adds) and `cp.async`: every type, every device from 8.0 on.
    WarpMma,
    /// Two warpgroups with `wgmma`, one that loads with TMA, clusters of two blocks: 16-bit types on 9.0.
    GroupMma,
    /// The same instructions on small tiles without clusters, for batches that would leave the device idle.
    GroupMmaSmall,
    /// Four warps that share the features of a small tile: f32, every device from 8.0 on, for batches that would leave the
    /// device idle. A similarity has the bits of [`Scheme::WarpMma`].
    WarpSlices,
}

impl Scheme {
    /// Whether it multiplies by warpgroups.
    pub(crate) const fn is_group(self) -> bool {
        matches!(self, Self::GroupMma | Self::GroupMmaSmall)
    }
}

/// A kernel that sweeps the tiles of `S`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SweepKernel {
    /// `cosine_matrix`: stores `S`.
    CosineMatrix,
    /// `mine` and `mine_stats`.
    Mine,
    /// `mine_screen`.
    MineScreen,
    /// `mine_top_k`.
    TopK,
    /// `ranks`.
    Ranks,
    /// `positive_ranks_count`.
    PositiveRanks,
    /// `pairwise_stats`.
    PairwiseStats,
    /// `pairwise_weights`.
    PairwiseWeights,
}

impl SweepKernel {
    /// Its name up to the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CosineMatrix => "cosine_matrix",
            Self::Mine => "mine",
            Self::MineScreen => "mine_screen",
            Self::TopK => "mine_top_k",
            Self::Ranks => "ranks",
            Self::PositiveRanks => "positive_ranks",
            Self::PairwiseStats => "pairwise_stats",
            Self::PairwiseWeights => "pairwise_weights",
        }
    }

    /// The schemes that it is written in. [`Scheme::WarpMma`] is always one.
    pub const fn schemes(self) -> &'static [Scheme] {
        match self {
            Self::Mine => &[Scheme::WarpMma, Scheme::GroupMma, Scheme::GroupMmaSmall, Scheme::WarpSlices],
            Self::CosineMatrix | Self::Ranks | Self::PositiveRanks => {
                &[Scheme::WarpMma, Scheme::GroupMma, Scheme::GroupMmaSmall]
            }
            Self::TopK => &[Scheme::WarpMma, Scheme::GroupMmaSmall],
            // Not for small batches; and one layout of tiles for the other two, which pass tiles to each other.
            Self::MineScreen | Self::PairwiseStats | Self::PairwiseWeights => &[Scheme::WarpMma, Scheme::GroupMma],
        }
    }

    /// Whether its epilogue leaves registers for tiles of 256 columns.
    const fn is_light(self) -> bool {
        matches!(self, Self::Mine | Self::MineScreen | Self::CosineMatrix | Self::Ranks)
    }

    fn has(self, scheme: Scheme) -> bool {
        self.schemes().contains(&scheme)
    }
}

/// What a plan needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanDevice {
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Number of multiprocessors. No result depends on it.
    pub multiprocessors: u32,
    /// Whether the build has machine code for `sm_90a`.
    pub group_code: bool,
    /// Bytes of its L2 cache. Modelled traffic depends on it, no plan does.
    pub l2_bytes: u64,
    /// Takes the place of the choice, where the kernel has this scheme and the device runs it. For tests.
    #[doc(hidden)]
    pub forced: Option<Scheme>,
    /// Takes the place of the choice whether f32 rows are mined through a screen, where that is possible. For tests.
    #[doc(hidden)]
    pub screens: Option<bool>,
}

impl PlanDevice {
    /// An H200, with everything built.
    pub const H200: Self = Self {
        compute_capability: (9, 0),
        multiprocessors: 132,
        group_code: true,
        l2_bytes: 60_000_000,
        forced: None,
        screens: None,
    };
    /// An A100.
    pub const A100: Self =
        Self { compute_capability: (8, 0), multiprocessors: 108, l2_bytes: 40_000_000, ..Self::H200 };

    /// The device with these facts, and what this build has for it.
    pub fn of(facts: &DeviceFacts) -> Self {
        let like = if facts.compute_capability >= (9, 0) { Self::H200 } else { Self::A100 };
        Self {
            compute_capability: facts.compute_capability,
            multiprocessors: facts.multiprocessors,
            group_code: HAS_HOPPER,
            ..like
        }
    }

    const fn runs_group_code(&self) -> bool {
        self.group_code && self.compute_capability.0 == 9 && self.compute_capability.1 == 0
    }

    pub(crate) fn runs(&self, scheme: Scheme, dtype: DType) -> bool {
        match scheme {
            Scheme::WarpMma => true,
            Scheme::WarpSlices => dtype == DType::F32,
            Scheme::GroupMma | Scheme::GroupMmaSmall => {
                self.runs_group_code() && matches!(dtype, DType::F16 | DType::Bf16)
            }
        }
    }
}

/// Extents of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepShape {
    /// Matrices; more than one in `cosine_matrix` only.
    pub batch: usize,
    /// Rows.
    pub n: usize,
    /// Columns.
    pub m: usize,
    /// Features.
    pub d: usize,
    /// Type of the operands.
    pub dtype: DType,
}

/// How one kernel sweeps the tiles of one matrix of similarities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepPlan {
    /// The kernel.
    pub kernel: SweepKernel,
    /// What it sweeps.
    pub shape: SweepShape,
    /// What it is planned for.
    pub device: PlanDevice,
    /// How a block makes its tiles.
    pub scheme: Scheme,
    /// Rows of a tile.
    pub tile_rows: usize,
    /// Columns of a tile.
    pub tile_cols: usize,
    /// Blocks of a cluster, along the rows.
    pub cluster: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Steps of 128 bytes of `k` that are in flight or in use.
    pub stages: u32,
    /// Parts of the rows and columns; 1 and 1 where nothing is merged.
    pub splits: Splits,
    /// Rows of tiles, or of those of a cluster, that are made at one column before the next. In every line tiles come in
    /// ascending order whatever it is.
    pub band: usize,
    /// Blocks.
    pub grid: (u32, u32, u32),
}

/// Whether blocks of the large tiles, of so many columns, would leave more than half of the device idle.
pub(crate) fn leaves_half_idle(n: usize, m: usize, cols: usize) -> bool {
    n.div_ceil(TILE).saturating_mul(m.div_ceil(cols)).saturating_mul(2) < PLANNED_MULTIPROCESSORS
}
const _: () = assert!(TILE == GROUP_ROWS);

fn choose(kernel: SweepKernel, shape: &SweepShape, device: &PlanDevice) -> Scheme {
    let can = |scheme| kernel.has(scheme) && device.runs(scheme, shape.dtype);
    if let Some(scheme) = device.forced.filter(|&scheme| can(scheme)) {
        return scheme;
    }
    let half_idle = |cols| leaves_half_idle(shape.n.saturating_mul(shape.batch), shape.m, cols);
    if can(Scheme::WarpSlices) && half_idle(TILE) {
        return Scheme::WarpSlices;
    }
    let small = half_idle(GROUP_COLS) || !can(Scheme::GroupMma);
    if can(Scheme::GroupMmaSmall) && small {
        Scheme::GroupMmaSmall
    } else if can(Scheme::GroupMma) {
        Scheme::GroupMma
    } else {
        Scheme::WarpMma
    }
}

impl SweepPlan {
    /// The plan of `kernel` for `shape` on `device`. Neither allocates nor asks anything of a device.
    pub fn new(kernel: SweepKernel, shape: SweepShape, device: PlanDevice) -> Self {
        Self::of_scheme(choose(kernel, &shape, &device), kernel, shape, device)
    }

    /// Parts of the rows that leave a state of every column, where sums of rows and columns are found together
    /// (`pairwise_stats`): in [`Scheme::GroupMma`] each of two warpgroups for its rows of a tile.
    pub(super) fn column_states(&self) -> usize {
        self.splits.rows * if self.scheme == Scheme::GroupMma { GROUP_PARTIES } else { 1 }
    }

    /// With other splits than those of the shape alone.
    pub(super) fn with_splits(self, splits: Splits) -> Self {
        Self { splits, grid: (splits.cols as u32, splits.rows as u32, 1), ..self }
    }

    /// The plan in a given scheme, whether or not there is such a kernel.
    #[doc(hidden)]
    pub fn of_scheme(scheme: Scheme, kernel: SweepKernel, shape: SweepShape, device: PlanDevice) -> Self {
        let SweepShape { batch, n, m, .. } = shape;
        let (tile_rows, tile_cols, cluster, threads, shared_bytes, stages) = match scheme {
            Scheme::WarpMma => (TILE, TILE, 1, TILE_BLOCK, TILE_SHARED_BYTES, TILE_STAGES),
            Scheme::WarpSlices => (SLICE_TILE.0, SLICE_TILE.1, 1, SLICE_BLOCK, TILE_SHARED_BYTES, SLICE_STAGES),
            Scheme::GroupMma if kernel.is_light() => {
                (GROUP_ROWS, GROUP_COLS, GROUP_CLUSTER, GROUP_BLOCK, GROUP_SHARED_BYTES, GROUP_STAGES)
            }
            Scheme::GroupMma => (GROUP_ROWS, HEAVY_COLS, GROUP_CLUSTER, GROUP_BLOCK, GROUP_SHARED_BYTES, HEAVY_STAGES),
            Scheme::GroupMmaSmall => (GROUP_ROWS, SMALL_COLS, 1, GROUP_BLOCK, SMALL_SHARED_BYTES, SMALL_STAGES),
        };
        let band = if kernel == SweepKernel::CosineMatrix { MATRIX_BAND } else { 1 };
        let (splits, grid) = if kernel == SweepKernel::CosineMatrix {
            // Clusters take units of tiles in turn.
            let units = [batch, n.div_ceil(tile_rows * cluster), m.div_ceil(tile_cols)];
            let units = units.iter().map(|&extent| extent as u128).product();
            let per_sm = if scheme == Scheme::WarpMma { super::cosine_matrix::PER_SM } else { 1 };
            let clusters = resident_blocks(units, device.multiprocessors / cluster as u32, per_sm);
            (Splits { rows: 1, cols: 1 }, (clusters * cluster as u32, 1, 1))
        } else {
            let splits = match scheme {
                Scheme::WarpMma => Splits::new(n, m),
                Scheme::WarpSlices => Splits::slices(n, m),
                Scheme::GroupMma => Splits::group(n, m, tile_cols),
                Scheme::GroupMmaSmall => Splits::small(n, m),
            };
            (splits, (splits.cols as u32, splits.rows as u32, 1))
        };
        Self {
            kernel,
            shape,
            device,
            scheme,
            tile_rows,
            tile_cols,
            cluster,
            threads,
            shared_bytes,
            stages,
            splits,
            band,
            grid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_tile_and_no_part_has_two_more_than_another() {
        for tiles in 1..2000 {
            let parts = parts(tiles);
            assert!((1..=MAX_SPLITS.min(tiles)).contains(&parts));
            let sizes = (0..parts).map(|p| tiles * (p + 1) / parts - tiles * p / parts);
            let (low, high) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
            assert!(low >= 1 && high - low <= 1, "{tiles} tiles, {parts} parts");
            assert_eq!(high, tiles.div_ceil(MAX_SPLITS).max(1), "{tiles} tiles");
        }
    }

    #[test]
    fn empty_extents_have_one_part_so_that_the_other_direction_is_written() {
        assert_eq!(Splits::new(0, 129), Splits { rows: 1, cols: 2 });
        assert_eq!(Splits::group(0, 257, 256), Splits { rows: 2, cols: 2 });
        assert_eq!(Splits::small(0, 65), Splits { rows: 1, cols: 2 });
    }

    #[test]
    fn resident_blocks_are_limited_by_both() {
        assert_eq!(resident_blocks(5, 132, 2), 5);
        assert_eq!(resident_blocks(1 << 70, 132, 2), 264);
        assert_eq!(resident_blocks(9, 0, 1), 1);
    }

    #[test]
    fn shared_memory_fits_a_block_of_9_0() {
        let most = [GROUP_SHARED_BYTES, SMALL_SHARED_BYTES].into_iter().max();
        assert_eq!((most, SMALL_SHARED_BYTES), (Some(226_304), 181_248));
        assert!(most <= Some(232_448));
    }
}
