//! How the tile kernels divide their work. Numbers that results depend on come from shapes alone, so that no result
//! depends on the device.

/// Rows, and columns, of a tile; `kTile` in `kernels/common/tile.cuh`.
pub(crate) const TILE: usize = 128;
/// Threads of a block; `kTileThreads` there.
pub(crate) const TILE_BLOCK: u32 = 256;
/// Dynamic shared memory of a block in bytes; `kPipelineBytes` there.
pub(crate) const TILE_SHARED_BYTES: u32 = 98_304;

/// The most parts that the tiles of one direction are dealt to. 16 x 16 blocks keep every device of up to 256
/// multiprocessors busy, and 16 partial results per row are quick to merge.
pub(crate) const MAX_SPLITS: usize = 16;

/// Tiles along an extent.
pub(crate) const fn tiles(extent: usize) -> usize {
    extent.div_ceil(TILE)
}

/// Parts for `extent` rows or columns: as many as allowed, but none with fewer tiles than an even deal gives.
const fn parts(extent: usize) -> usize {
    match tiles(extent) {
        0 => 1,
        tiles => tiles.div_ceil(tiles.div_ceil(MAX_SPLITS)),
    }
}

/// Parts that the rows and the columns of tiles of a sweep are dealt to; a block takes one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Splits {
    /// Parts of the rows: partial results per column.
    pub rows: usize,
    /// Parts of the columns: partial results per row.
    pub cols: usize,
}

impl Splits {
    /// For an `n × m` matrix of similarities.
    pub(crate) const fn new(n: usize, m: usize) -> Self {
        Self { rows: parts(n), cols: parts(m) }
    }
}

/// Blocks for `tiles` independent tiles: one after the other on blocks that stay, `per_sm` of them on a multiprocessor.
/// Results do not depend on this number.
pub(crate) fn resident_blocks(tiles: u128, multiprocessors: u32, per_sm: u32) -> u32 {
    let resident = u128::from(multiprocessors.max(1)) * u128::from(per_sm);
    // At most `resident`, far below 2^32.
    tiles.min(resident) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_tile_and_no_part_has_two_more_than_another() {
        for tiles in 1..2000 {
            let parts = parts(tiles * TILE);
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
    }

    #[test]
    fn resident_blocks_are_limited_by_both() {
        assert_eq!(resident_blocks(5, 132, 2), 5);
        assert_eq!(resident_blocks(1 << 70, 132, 2), 264);
        assert_eq!(resident_blocks(9, 0, 1), 1);
    }
}
