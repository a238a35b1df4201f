//! The inverse index of triples: for every row of both matrices the triples that have it, ascending. One block per side sorts
//! few triples; of many, the blocks of several launches sort a chunk each.

use cudarc::driver::CudaStream;

use super::gather::{Terms, hub_sums, hub_width};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::workspace::{Layout, Region};
use crate::error::Result;

/// Threads of the block that inverts one side; `kInvertThreads` in `kernels/params/weighted_grad.h`.
pub(crate) const INVERT_THREADS: u32 = 512;
/// Values of a digit, and threads of a block of the sort by many; `kIndexDigits` there.
pub(crate) const DIGITS: usize = 512;
/// Entries that a block holds at a time; `kIndexTile` there. The most that one block sorts alone: what it takes for more
/// than a tile is longer than three launches more.
pub(crate) const TILE: usize = 2048;
/// The most blocks of a side; `kIndexBlocks` there.
pub(crate) const BLOCKS: usize = 64;

params! {
    /// Twin of the struct in `kernels/params/weighted_grad.h`.
    InvertSide: 48 {
        target: u64,
        list: u64,
        spare: u64,
        offsets: u64,
        counts: u64,
        targets: u32,
        passes: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/weighted_grad.h`.
    InvertParams: 152 {
        x: InvertSide,
        y: InvertSide,
        x_target: u64,
        y_target: u64,
        rows: u64,
        cols: u64,
        report: u64,
        count: u32,
        chunk: u32,
        pass: u32,
        pad_: u32,
    }
}

/// How `count` entries are dealt to the blocks of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    /// Consecutive entries of a block.
    pub chunk: usize,
    pub blocks: usize,
}

impl Chunks {
    /// None where one block sorts all of a side.
    pub(super) fn of(count: usize) -> Option<Self> {
        let chunk = count.div_ceil(TILE).div_ceil(BLOCKS) * TILE;
        (count > TILE).then(|| Self { chunk, blocks: count.div_ceil(chunk) })
    }
}

/// Digits of the keys `0..=targets`.
pub(super) fn passes(targets: usize) -> usize {
    let bits = usize::BITS - targets.leading_zeros();
    bits.div_ceil(DIGITS.ilog2()).max(1) as usize
}

/// One launch: kernel, grid, threads and the pass of the sort.
pub(super) struct IndexLaunch {
    pub kernel: &'static str,
    pub grid: (u32, u32, u32),
    pub threads: u32,
    pub pass: u32,
}

impl IndexLaunch {
    /// Bytes that the launch reads and writes, those of other blocks' results included.
    pub(super) fn traffic(&self, targets: [usize; 2], count: usize) -> [f64; 2] {
        let (entries, offsets) = (count as f64, 4.0 * (targets[0] + targets[1] + 2) as f64);
        let row = (DIGITS * size_of::<u32>()) as f64 * f64::from(self.grid.0);
        let passes = targets.map(|n| passes(n) as u32);
        match self.kernel {
            // Of both sides target, list, a spare list and offsets, which it reads as well; rows and columns of the triples.
            "weighted_grad_invert" => [32.0 * entries, 24.0 * entries + offsets],
            "weighted_grad_count" => [8.0 * entries, 8.0 * entries + row * f64::from(passes[0] + passes[1])],
            // Targets, counts and, but for the first pass, a list; a list, and counts for the next pass.
            "weighted_grad_place" => {
                let sides = |more: u32| passes.iter().filter(|&&of| self.pass + more < of).count() as f64;
                let list = if self.pass == 0 { 0.0 } else { 4.0 * entries };
                let (sorted, counted) = (sides(0), sides(1));
                [sorted * (4.0 * entries + list + row) + counted * row, sorted * 4.0 * entries + counted * row]
            }
            _ => [16.0 * entries, offsets],
        }
    }
}

/// The launches that invert `count` triples of rows of two matrices with so many rows.
pub(super) fn index_launches(targets: [usize; 2], count: usize) -> Vec<IndexLaunch> {
    let Some(Chunks { blocks, .. }) = Chunks::of(count) else {
        return vec![IndexLaunch { kernel: "weighted_grad_invert", grid: (2, 1, 1), threads: INVERT_THREADS, pass: 0 }];
    };
    let of = |kernel, blocks: usize, pass: usize| IndexLaunch {
        kernel,
        grid: (blocks as u32, 2, 1),
        threads: DIGITS as u32,
        pass: pass as u32,
    };
    let mut launches = vec![of("weighted_grad_count", blocks, 0)];
    let passes = passes(targets[0].max(targets[1]));
    launches.extend((0..passes).map(|pass| of("weighted_grad_place", blocks, pass)));
    // A thread for each place, and for the end of the last one.
    launches.push(of("weighted_grad_offsets", (count + 1).div_ceil(DIGITS), 0));
    launches
}

impl InvertParams {
    /// For `count` triples with the addresses `rows` and `cols`, and a report of two words at `report`.
    pub(super) fn new(
        [x, y]: [&SidePlan; 2],
        base: u64,
        [n, m]: [usize; 2],
        [rows, cols, report]: [u64; 3],
        count: usize,
    ) -> Self {
        Self {
            x: x.params(base, n),
            y: y.params(base, m),
            x_target: x.target.at(base),
            y_target: y.target.at(base),
            rows,
            cols,
            report,
            count: count as u32,
            chunk: Chunks::of(count).map_or(0, |chunks| chunks.chunk as u32),
            pass: 0,
            pad_: 0,
        }
    }

    /// Enqueues the kernels.
    ///
    /// # Safety
    /// All addresses are valid on the stream's device for the extents that `kernels/params/weighted_grad.h` states.
    pub(super) unsafe fn launch(&self, kernels: &Kernels, stream: &CudaStream) -> Result<()> {
        let targets = [self.x.targets as usize, self.y.targets as usize];
        for IndexLaunch { kernel, grid, threads, pass } in index_launches(targets, self.count as usize) {
            // SAFETY: by the caller's promise; the grid is that of `chunk`.
            unsafe { launch(kernels, stream, kernel, grid, threads, 0, &Self { pass, ..*self })? };
        }
        Ok(())
    }
}

/// One side of the inverse index in the workspace.
pub(super) struct SidePlan {
    target: Region,
    list: Region,
    spare: Region,
    offsets: Region,
    counts: Region,
    /// Sums of the rows with many entries, of this many.
    hubs: (Region, usize),
}

impl SidePlan {
    /// For `count` triples of the rows of a matrix with `targets` of them and `d` columns.
    pub(super) fn new(layout: &mut Layout, [targets, d]: [usize; 2], count: usize) -> Result<Self> {
        let blocks = Chunks::of(count).map_or(0, |chunks| chunks.blocks);
        Ok(Self {
            target: layout.take::<i32>(&[count])?,
            list: layout.take::<u32>(&[count])?,
            spare: layout.take::<u32>(&[count])?,
            offsets: layout.take::<u32>(&[targets + 1])?,
            counts: layout.take::<u32>(&[passes(targets), blocks, DIGITS])?,
            hubs: (layout.take::<f32>(&[hub_sums(count), hub_width(d)])?, hub_sums(count)),
        })
    }

    fn params(&self, base: u64, targets: usize) -> InvertSide {
        InvertSide {
            target: self.target.at(base),
            list: self.list.at(base),
            spare: self.spare.at(base),
            offsets: self.offsets.at(base),
            counts: self.counts.at(base),
            targets: targets as u32,
            passes: passes(targets) as u32,
        }
    }

    /// The terms of this side's rows: rows of the other side and weights at these addresses.
    pub(super) fn terms(&self, base: u64, source: u64, weight: u64) -> Terms {
        let hubs = if self.hubs.1 == 0 { 0 } else { self.hubs.0.at(base) };
        Terms { offsets: self.offsets.at(base), list: self.list.at(base), source, weight, hubs, ..Terms::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_tiles_and_cover_every_entry_once() {
        for count in [0, 1, TILE] {
            assert_eq!(Chunks::of(count), None);
        }
        for count in [TILE + 1, 3 * TILE, BLOCKS * TILE, BLOCKS * TILE + 1, 1_000_003, i32::MAX as usize] {
            let Chunks { chunk, blocks } = Chunks::of(count).unwrap();
            assert!(chunk.is_multiple_of(TILE) && (2..=BLOCKS).contains(&blocks), "{count}");
            assert!((blocks - 1) * chunk < count && count <= blocks * chunk, "{count}");
            // Where a block begins and ends, and what it loads beyond, is a u32.
            assert!(u32::try_from(blocks * chunk + TILE).is_ok(), "{count}");
        }
    }

    #[test]
    fn passes_cover_the_key_of_triples_that_are_left_out() {
        let of = [0, 1, 511, 512, 65_536, (1 << 18) - 1, 1 << 18, i32::MAX as usize].map(passes);
        assert_eq!(of, [1, 1, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn one_launch_for_few_triples_and_a_pass_per_digit_for_many() {
        let names = |targets, count| index_launches(targets, count).iter().map(|l| l.kernel).collect::<Vec<_>>();
        assert_eq!(names([1 << 20, 3], TILE), ["weighted_grad_invert"]);
        let [count, place, offsets] = ["weighted_grad_count", "weighted_grad_place", "weighted_grad_offsets"];
        assert_eq!(names([3, 511], TILE + 1), [count, place, offsets]);
        assert_eq!(names([3, 512], TILE + 1), [count, place, place, offsets]);
    }
}
