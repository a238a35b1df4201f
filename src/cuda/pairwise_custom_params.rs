//! Parameter blocks of the kernels of a step with formulas.

use super::launch::params;

/// Planes of what is known of an anchor; `kCustomPlanes` in `kernels/params/pairwise_custom.h`.
pub(crate) const PLANES: usize = 9;
/// Planes of a column's partial state; `kCustomParts` there.
pub(crate) const PARTS: usize = 8;
/// Threads of a block; `kCustomThreads` there.
pub(crate) const THREADS: usize = 256;
/// Columns of a block of `pairwise_custom_cols`; `kCustomCols` there.
pub(crate) const COLS: usize = 32;
/// Words of counters, the least pair the last of them; `kCustomCounters` there.
pub(crate) const COUNTERS: usize = 11;

params! {
    /// Twin of the struct in `kernels/params/pairwise_custom.h`.
    CustomPairs: 72 {
        s: u64,
        row_groups: u64,
        col_groups: u64,
        ignore_rows: u64,
        ignore_cols: u64,
        lds: i64,
        n: u32,
        m: u32,
        first_row: u32,
        end_row: u32,
        single_positive: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise_custom.h`.
    CustomStatsParams: 96 {
        pairs: CustomPairs,
        rows: u64,
        col_parts: u64,
        splits: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise_custom.h`.
    CustomNearParams: 112 {
        pairs: CustomPairs,
        rows: u64,
        cols: u64,
        col_parts: u64,
        least_pair: u64,
        splits: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise_custom.h`.
    CustomAnchorsParams: 112 {
        rows: u64,
        col_parts: u64,
        cols: u64,
        inv_x: u64,
        inv_y: u64,
        ignore_rows: u64,
        ignore_cols: u64,
        skip_x: u64,
        skip_y: u64,
        counters: u64,
        ticket: u64,
        report: u64,
        n: u32,
        m: u32,
        splits: u32,
        normalised: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise_custom.h`.
    CustomWeightsParams: 144 {
        pairs: CustomPairs,
        rows: u64,
        cols: u64,
        inv_x: u64,
        inv_y: u64,
        row_weights: u64,
        w: u64,
        diagonal: u64,
        sums: u64,
        row_splits: u32,
        col_splits: u32,
    }
}
