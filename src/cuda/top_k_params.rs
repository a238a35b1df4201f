//! Parameters of the kernels that select several negatives per anchor.

use super::launch::params;
use super::plan::{MAX_SPLITS, tiles};
use crate::top_k::{Margin, Pick};

/// The most entries of a line that `mine_top_k_merge` sorts; `kTopKMerged` in `kernels/params/top_k.h`.
pub(crate) const MERGED: usize = 4096;
/// Bytes of an entry of a list.
pub(crate) const ENTRY_BYTES: usize = 16;
/// Words of a line's state in one slot; `kTopKPlanes` there.
pub(crate) const PLANES: usize = 5;
/// The most dynamic shared memory of `mine_top_k_merge`.
pub(crate) const MERGE_SHARED_BYTES: u32 = (MERGED * ENTRY_BYTES) as u32;

params! {
    /// Twin of the struct in `kernels/params/top_k.h`.
    TopKSide: 40 {
        lists: u64,
        state: u64,
        start: u64,
        len: u32,
        slots: u32,
        skip: u32,
        keep: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/top_k.h`.
    TopKParams: 256 {
        x: u64,
        y: u64,
        inv_x: u64,
        inv_y: u64,
        row_ids: u64,
        col_ids: u64,
        stamps: u64,
        pos: u64,
        rows: TopKSide,
        cols: TopKSide,
        oldest: u64,
        ldx: i64,
        ldy: i64,
        far: f64,
        near: f64,
        margin: f64,
        low: f32,
        high: f32,
        n: u32,
        m: u32,
        d: u32,
        row_splits: u32,
        col_splits: u32,
        row_slot: u32,
        offset: u32,
        pairs: u32,
        own_pairs: u32,
        pick: u32,
        margin_kind: u32,
        admits_nan: u32,
        easiest: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/top_k.h`.
    TopKMergeParams: 160 {
        rows: TopKSide,
        cols: TopKSide,
        row_index: u64,
        row_value: u64,
        row_survivors: u64,
        col_index: u64,
        col_value: u64,
        col_survivors: u64,
        far: f64,
        near: f64,
        k: u32,
        drop: u32,
        pick: u32,
        easiest: u32,
    }
}

/// Codes of what decides the order of survivors; `kPick*` in `kernels/params/top_k.h`.
pub(crate) const fn pick_code(pick: Pick) -> u32 {
    match pick {
        Pick::Hardest => 0,
        Pick::Random { .. } => 1,
        Pick::DistanceWeighted { .. } => 2,
    }
}

/// Codes of the margin; `kMargin*` there.
pub(crate) const fn margin_code(margin: Option<Margin>) -> (u32, f64) {
    match margin {
        None => (0, 0.0),
        Some(Margin::Absolute(margin)) => (1, margin),
        Some(Margin::Relative(margin)) => (2, margin),
    }
}

/// Parts that the tiles of `extent` candidates are dealt to, if each leaves a list of `places` entries, so that `lists` such
/// sets of parts can be merged at once.
pub(crate) fn parts(extent: usize, places: usize, lists: usize) -> usize {
    let most = (MERGED / (places.max(1) * lists)).clamp(1, MAX_SPLITS);
    match tiles(extent) {
        0 => 1,
        tiles => tiles.div_ceil(tiles.div_ceil(most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top_k::MAX_K;

    #[test]
    fn the_lists_of_all_parts_can_be_merged() {
        for extent in [0, 1, 129, 5000, 1 << 20, i32::MAX as usize] {
            for (skip, k) in [(0, 1), (0, MAX_K), (MAX_K, MAX_K), (3, 200), (1000, 1), (100, 156)] {
                for lists in [1, 2] {
                    let parts = parts(extent, skip + k, lists);
                    assert!((1..=MAX_SPLITS).contains(&parts) && parts * lists * (skip + k) <= MERGED);
                }
            }
        }
        assert_eq!((parts(5000, 11, 1), parts(5000, 1024, 1)), (14, 4));
    }
}
