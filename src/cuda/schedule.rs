//! What the blocks of a sweep do, worked out on the host: which tiles, in which order, how evenly, and what of their operands
//! comes from device memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::ops::Range;

use super::plan::{PLANNED_MULTIPROCESSORS, Scheme, SweepKernel, SweepPlan};
use crate::dtype::DType;

/// A tile of one of the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TilePlace {
    /// The matrix of the batch.
    pub matrix: usize,
    /// Row of tiles.
    pub row: usize,
    /// Column of tiles.
    pub col: usize,
}

/// What is worked out tile by tile is left out beyond this number of them.
const MOST_UNITS: u128 = 1 << 23;

/// What the blocks of a cluster, or a block where there are none, make one after the other: units of a tile per block.
struct Team {
    rows: Range<usize>,
    cols: Range<usize>,
    /// The first unit, and from one to the next, of all units of all matrices in order; 0 and 1 for a part of one matrix.
    first: u64,
    step: u64,
    count: u64,
    band: usize,
}

impl Team {
    /// The unit number `k`: bands of rows one after the other, in a band columns, in a column rows.
    fn unit(&self, k: u64) -> TilePlace {
        let (height, width) = (self.rows.len() as u64, self.cols.len() as u64);
        let at = self.first + k * self.step;
        let (matrix, within) = (at / (height * width), at % (height * width));
        let band = self.band as u64;
        let above = within / (band * width) * band;
        let (tall, within) = (band.min(height - above), within - above * width);
        TilePlace {
            matrix: matrix as usize,
            row: self.rows.start + (above + within % tall) as usize,
            col: self.cols.start + (within / tall) as usize,
        }
    }
}

/// What part `part` of `parts` has of `units`; `part_begin` in `kernels/common/tile.cuh`.
fn part(units: usize, parts: usize, part: usize) -> Range<usize> {
    units * part / parts..units * (part + 1) / parts
}

/// The least recently used lines of a cache leave first.
struct Cache {
    room: u64,
    used: u64,
    clock: u64,
    held: HashMap<(bool, usize, usize), (u64, u64)>,
    by_age: BTreeMap<u64, (bool, usize, usize)>,
}

impl Cache {
    /// Bytes that have to be fetched for `key` of `bytes` bytes.
    fn touch(&mut self, key: (bool, usize, usize), bytes: u64) -> u64 {
        self.clock += 1;
        let known = self.held.insert(key, (self.clock, bytes));
        self.by_age.insert(self.clock, key);
        if let Some((age, _)) = known {
            self.by_age.remove(&age);
            return 0;
        }
        self.used += bytes;
        while self.used > self.room {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.used -= self.held.remove(&oldest).map_or(0, |(_, bytes)| bytes);
        }
        bytes
    }
}

impl SweepPlan {
    /// Rows, and columns, of units: what a cluster makes at a time.
    fn units(&self) -> (usize, usize) {
        (self.shape.n.div_ceil(self.tile_rows * self.cluster), self.shape.m.div_ceil(self.tile_cols))
    }

    fn units_of_all(&self) -> u128 {
        let (rows, cols) = self.units();
        rows as u128 * cols as u128 * self.shape.batch as u128
    }

    fn teams(&self) -> usize {
        let blocks = self.grid.0 as usize * self.grid.1 as usize;
        blocks / self.cluster
    }

    fn team(&self, number: usize) -> Team {
        let (rows, cols) = self.units();
        let band = self.band;
        if self.kernel == SweepKernel::CosineMatrix {
            let (first, step) = (number as u64, self.teams().max(1) as u64);
            let all = self.units_of_all() as u64;
            let count = all.saturating_sub(first).div_ceil(step);
            return Team { rows: 0..rows, cols: 0..cols, first, step, count, band };
        }
        let (down, across) = (number / self.splits.cols, number % self.splits.cols);
        let rows = part(rows, self.splits.rows / self.cluster, down);
        let cols = part(cols, self.splits.cols, across);
        let count = rows.len() as u64 * cols.len() as u64;
        Team { rows, cols, first: 0, step: 1, count, band }
    }

    /// The tiles that the block `(x, y)` makes, in its order. A tile beyond the last row, which a block of a cluster may have,
    /// is one of them. None for a block outside the grid.
    pub fn block_tiles(&self, x: u32, y: u32) -> impl Iterator<Item = TilePlace> {
        let cluster = self.cluster;
        // Clusters lie along the rows: of the grid's second extent, or of the blocks that stay.
        let (number, rank) = if self.kernel == SweepKernel::CosineMatrix {
            (x as usize / cluster, x as usize % cluster)
        } else {
            (y as usize / cluster * self.grid.0 as usize + x as usize, y as usize % cluster)
        };
        let inside = x < self.grid.0 && y < self.grid.1;
        let team = self.team(if inside { number } else { 0 });
        (0..if inside { team.count } else { 0 }).map(move |k| {
            let unit = team.unit(k);
            TilePlace { row: unit.row * cluster + rank, ..unit }
        })
    }

    /// Blocks that a multiprocessor holds at a time.
    pub fn blocks_per_multiprocessor(&self) -> u32 {
        let sixteen_bits = matches!(self.shape.dtype, DType::F16 | DType::Bf16);
        // `kTileBlocksOf` in kernels/common/tile.cuh, `kTileBlocks` in slice_tile.cuh.
        let twice = self.scheme == Scheme::WarpMma && sixteen_bits || self.scheme == Scheme::WarpSlices;
        if twice && self.device.compute_capability >= (9, 0) { 2 } else { 1 }
    }

    fn slots(&self, multiprocessors: u32) -> usize {
        (multiprocessors * self.blocks_per_multiprocessor()) as usize / self.cluster
    }

    /// How much of `multiprocessors` the sweep keeps busy if every tile takes the same time and blocks start in their order:
    /// 1 is all of them to the end. 0 for an empty sweep.
    pub fn tail_efficiency(&self, multiprocessors: u32) -> f64 {
        let slots = self.slots(multiprocessors).max(1);
        let mut free: BinaryHeap<Reverse<u64>> = (0..slots).map(|_| Reverse(0)).collect();
        let (mut end, mut all) = (0, 0);
        for number in 0..self.teams() {
            let count = self.team(number).count;
            let Reverse(begin) = free.pop().unwrap_or(Reverse(0));
            free.push(Reverse(begin + count));
            end = end.max(begin + count);
            all += count;
        }
        if end == 0 { 0.0 } else { all as f64 / (slots as u64 * end) as f64 }
    }

    /// The band with which the rows that are in hand at one time take 36 MB, so that an L2 of 60 MB holds them beside the columns
    /// that pass by; 1 if all columns fit. No result depends on the band.
    pub fn band_for_l2(&self) -> usize {
        const HELD: usize = 36_000_000;
        let row = self.shape.d * self.shape.dtype.size();
        if self.shape.m.saturating_mul(row) <= HELD {
            return 1;
        }
        let slots = self.slots(PLANNED_MULTIPROCESSORS as u32).max(1);
        let parts = (self.splits.rows / self.cluster).min(slots.div_ceil(self.splits.cols));
        (HELD / (parts * self.tile_rows * self.cluster * row).max(1)).max(1)
    }

    /// Bytes of the operands that come from device memory through a cache of `l2_bytes`, if blocks start in their order and keep
    /// step with each other. `None` for sweeps of more than 2²³ units, which take too long to follow.
    pub fn operand_traffic(&self, l2_bytes: u64) -> Option<u64> {
        if self.units_of_all() > MOST_UNITS {
            return None;
        }
        let shape = &self.shape;
        let row = (shape.d * shape.dtype.size()) as u64;
        let bytes = |extent: usize, unit: usize, at: usize| (extent - at * unit).min(unit) as u64 * row;
        let mut cache = Cache { room: l2_bytes, used: 0, clock: 0, held: HashMap::new(), by_age: BTreeMap::new() };
        let mut waiting = (0..self.teams()).map(|number| self.team(number)).filter(|team| team.count > 0);
        let mut running: Vec<(Team, u64)> =
            waiting.by_ref().take(self.slots(self.device.multiprocessors).max(1)).map(|team| (team, 0)).collect();
        let mut fetched = 0;
        while !running.is_empty() {
            for (team, k) in &mut running {
                let TilePlace { matrix, row, col } = team.unit(*k);
                let x = bytes(shape.n, self.tile_rows * self.cluster, row);
                let y = bytes(shape.m, self.tile_cols, col);
                fetched += cache.touch((false, matrix, row), x) + cache.touch((true, matrix, col), y);
                *k += 1;
                if *k == team.count
                    && let Some(next) = waiting.next()
                {
                    (*team, *k) = (next, 0);
                }
            }
            running.retain(|(team, k)| *k < team.count);
        }
        Some(fetched)
    }
}
