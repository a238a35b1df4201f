//! The sweep over tiles that finds the hardest candidates.

use cudarc::driver::CudaStream;

use super::kernels::Kernels;
use super::launch::{launch, params};
use super::prepare::by_dtype;
use crate::dtype::DType;
use crate::error::Result;

/// Threads of a block.
const THREADS: u32 = 256;
/// Dynamic shared memory of a block; `kPipelineBytes` in `kernels/common/tile.cuh`.
pub(crate) const TILE_SHARED_BYTES: u32 = 98_304;
/// Rows and columns of a tile; `kTile` there.
const TILE: usize = 128;
/// The most parts that rows or columns are split into, so that partial results stay `O(n + m)`.
const MAX_SPLITS: usize = 16;

params! {
    /// Twin of the struct in `kernels/params/mine.h`.
    MineParams: 136 {
        x: u64,
        y: u64,
        inv_x: u64,
        inv_y: u64,
        row_groups: u64,
        col_groups: u64,
        pmin: u64,
        pos: u64,
        row_parts: u64,
        col_parts: u64,
        ldx: i64,
        ldy: i64,
        n: u32,
        m: u32,
        d: u32,
        row_splits: u32,
        col_splits: u32,
        pmin_count: u32,
        select: u32,
        stats: u32,
        eps: f32,
        beta: f32,
    }
}

/// Which pairs are candidates; `kSelect*` in `kernels/params/mine.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Select {
    Negatives = 0,
}

/// What is collected beside value and index; `kStats*` in `kernels/params/mine.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Stats {
    None = 0,
    Second = 1,
    Lin = 2,
    Sig = 3,
}

impl Stats {
    /// Planes of a partial state.
    pub(crate) const fn planes(self) -> usize {
        match self {
            Self::None => 2,
            Self::Second => 3,
            Self::Lin | Self::Sig => 6,
        }
    }
}

/// Into how many parts the rows and the columns of the tiles are split, by the shape alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Splits {
    pub rows: usize,
    pub cols: usize,
}

impl Splits {
    pub(crate) fn new(n: usize, m: usize) -> Self {
        let parts = |extent: usize| extent.div_ceil(TILE).clamp(1, MAX_SPLITS);
        Self { rows: parts(n), cols: parts(m) }
    }
}

/// Enqueues the sweep of a non-empty problem.
///
/// # Safety
/// All addresses are valid on the stream's device for the extents that `kernels/params/mine.h` states.
pub(crate) unsafe fn launch_sweep(
    kernels: &Kernels,
    stream: &CudaStream,
    dtype: DType,
    params: &MineParams,
) -> Result<()> {
    let name = match params.stats {
        0 => by_dtype(dtype, ["mine_f32", "mine_f16", "mine_bf16"]),
        _ => by_dtype(dtype, ["mine_stats_f32", "mine_stats_f16", "mine_stats_bf16"]),
    };
    let grid = (params.col_splits, params.row_splits, 1);
    // SAFETY: by the caller's promise.
    unsafe { launch(kernels, stream, name, grid, THREADS, TILE_SHARED_BYTES, params) }
}
