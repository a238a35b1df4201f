//! Parameter blocks of the kernels of a pairwise step, and what an objective is to them.

use super::launch::params;
use crate::pairwise::PairwiseObjective;

/// Planes of a set's partial state; `kSetPlanes` in `kernels/params/pairwise.h`.
pub(crate) const SET_PLANES: usize = 6;
/// Planes of a row's and of a column's coefficients; `kRowPlanes` and `kColPlanes` there.
pub(crate) const ROW_PLANES: usize = 5;
pub(crate) const COL_PLANES: usize = 3;
/// Anchors, and threads, of a block of `pairwise_finalize`; `kPairLines` there.
pub(crate) const LINES: usize = 256;
/// The most threads of a block of `pairwise_finish_*`; `kPairFinish` there.
pub(crate) const FINISH_THREADS: usize = 256;
/// Of a block of `pairwise_split_f16`; `kSplitThreads`.
pub(crate) const SPLIT_THREADS: usize = 64;
/// Words that `prepare` clears, before the columns' flags; `kPairZeroed` there.
pub(crate) const ZEROED: usize = 8;
/// Sums of a block of `pairwise_weights_*`; `kWaveSums` there.
pub(crate) const WAVE_SUMS: usize = 4;
/// Constants of an objective; `kPairConstants` there.
const CONSTANTS: usize = 6;

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseTiles: 176 {
        x: u64,
        y: u64,
        inv_x: u64,
        inv_y: u64,
        row_groups: u64,
        col_groups: u64,
        ignore_rows: u64,
        ignore_cols: u64,
        log_q: u64,
        pos: u64,
        lowest: u64,
        highest: u64,
        kept: u64,
        ldx: i64,
        ldy: i64,
        n: u32,
        m: u32,
        d: u32,
        form: u32,
        single: u32,
        single_positive: u32,
        c: [f32; CONSTANTS],
        keep: u32,
        first_kept: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseStatsParams: 232 {
        tiles: PairwiseTiles,
        row_parts: u64,
        other_parts: u64,
        pos: u64,
        col_flags: u64,
        counts: u64,
        row_splits: u32,
        col_splits: u32,
        extremes: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseExtremesParams: 40 {
        neg_parts: u64,
        pos_parts: u64,
        lowest: u64,
        highest: u64,
        n: u32,
        splits: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseBlock: 72 {
        loss: [f64; 2],
        positive: f64,
        active: [u64; 2],
        mean: u32,
        anchors_rows: u32,
        anchors_cols: u32,
        zero_x: u32,
        zero_y: u32,
        nan_x: u32,
        nan_y: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseFinalizeParams: 240 {
        row_parts: u64,
        other_parts: u64,
        pos: u64,
        col_flags: u64,
        counts: u64,
        inv_x: u64,
        inv_y: u64,
        ignore_rows: u64,
        ignore_cols: u64,
        row_weights: u64,
        col_weights: u64,
        log_q: u64,
        row_coefficients: u64,
        col_coefficients: u64,
        skip_x: u64,
        skip_y: u64,
        blocks: u64,
        ticket: u64,
        scale: u64,
        report: u64,
        k: [f64; CONSTANTS],
        n: u32,
        m: u32,
        row_splits: u32,
        col_splits: u32,
        form: u32,
        both: u32,
        single: u32,
        normalised: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseWeightsParams: 296 {
        tiles: PairwiseTiles,
        row_coefficients: u64,
        col_coefficients: u64,
        scale: u64,
        w: u64,
        low: u64,
        mixed: u64,
        diagonal: u64,
        sums: u64,
        row_flags: u64,
        col_flags: u64,
        counts: u64,
        ldw: i64,
        first_tile: u32,
        end_tile: u32,
        row_splits: u32,
        col_splits: u32,
        share: f32,
        mix: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseGradParams: 112 {
        w: u64,
        x: u64,
        y: u64,
        skip_x: u64,
        skip_y: u64,
        gx: u64,
        gy: u64,
        ldw: i64,
        ldx: i64,
        ldy: i64,
        ldg: i64,
        n: u32,
        m: u32,
        d: u32,
        first_tile: u32,
        end_tile: u32,
        accumulate: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseGradGroupParams: 120 {
        skip_x: u64,
        skip_y: u64,
        gx: u64,
        gy: u64,
        ldg: i64,
        n: u32,
        m: u32,
        d: u32,
        first_tile: u32,
        end_tile: u32,
        accumulate: u32,
        tile_cols: u32,
        panels: u32,
        rest_x: u32,
        rest_y: u32,
        across: u32,
        x_is_long: u32,
        long_tiles: u32,
        short_tiles: u32,
        long_steps: u32,
        short_steps: u32,
        meanwhile: u32,
        part: u32,
        rest_w: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseSplitSide: 32 {
        src: u64,
        parts: u64,
        ld: i64,
        rows: u32,
        padded: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseSplitParams: 72 {
        x: PairwiseSplitSide,
        y: PairwiseSplitSide,
        d: u32,
        ld_parts: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseFinishSide: 96 {
        own: u64,
        other: u64,
        g: [u64; 2],
        own_inv: u64,
        own_exponent: u64,
        other_inv: u64,
        out: u64,
        own_ld: i64,
        other_ld: i64,
        out_ld: i64,
        rows: u32,
        out_aligned: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseFinishParams: 312 {
        x: PairwiseFinishSide,
        y: PairwiseFinishSide,
        diagonal: u64,
        upstream: u64,
        sums: u64,
        row_flags: u64,
        col_flags: u64,
        counts: u64,
        report: u64,
        ldg: i64,
        per_scale: f64,
        per_bias: f64,
        factor: f32,
        d: u32,
        pairs: u32,
        accumulate: u32,
        sums_count: u32,
        n: u32,
        m: u32,
        of_weights: u32,
        more_reports: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/pairwise.h`.
    PairwiseMixtureReportParams: 96 {
        upstream: u64,
        sums: u64,
        row_flags: u64,
        col_flags: u64,
        counts: u64,
        goal: u64,
        report: u64,
        per_scale: f64,
        per_bias: f64,
        share: f64,
        factor: f32,
        sums_count: u32,
        n: u32,
        m: u32,
    }
}

/// What a sweep does with the similarities of a tile; `kKeep*` in `kernels/params/pairwise.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Computes them.
    Nothing = 0,
    /// Computes and stores them.
    Store = 1,
    /// Loads what an earlier sweep has stored.
    Load = 2,
    /// Needs none.
    Skip = 3,
}

/// Every kind, in the order of the constants that `abi_layout` reports.
pub(crate) const KEEPS: [Keep; 4] = [Keep::Nothing, Keep::Store, Keep::Load, Keep::Skip];

/// `kMixAdd` there: the weights of earlier parts of a mixture are added.
pub(crate) const MIX_ADD: u32 = 1;
/// `kMixKeep` there: they are kept for a later part.
pub(crate) const MIX_KEEP: u32 = 2;

/// What the weights of an objective are made of; `kForm*` in `kernels/params/pairwise.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Softmax = 0,
    SigLip = 1,
    Multi = 2,
    Circle = 3,
    Triplet = 4,
    Contrastive = 5,
    Lifted = 6,
    Ranked = 7,
    Goal = 8,
}

/// Every form, in the order of the constants that `abi_layout` reports.
pub(crate) const FORMS: [Form; 9] = [
    Form::Softmax,
    Form::SigLip,
    Form::Multi,
    Form::Circle,
    Form::Triplet,
    Form::Contrastive,
    Form::Lifted,
    Form::Ranked,
    Form::Goal,
];

/// An objective as the kernels see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ObjectiveForm {
    pub form: Form,
    /// Whether columns are anchors too, and own pairs the only positives.
    pub both: bool,
    /// Whether the extremes of every row are needed before its statistics.
    pub mined: bool,
    /// Constants of the tile kernels, logarithms to base 2.
    pub c: [f32; CONSTANTS],
    /// Constants of `pairwise_finalize`.
    pub k: [f64; CONSTANTS],
    /// What the report's `d_scale` and `d_bias` are divided by; `None`: there is none.
    pub per_scale: Option<f64>,
    pub per_bias: Option<f64>,
}

const fn constants<const N: usize>(values: [f64; N]) -> [f64; CONSTANTS] {
    let mut all = [0.0; CONSTANTS];
    let mut at = 0;
    while at < N {
        all[at] = values[at];
        at += 1;
    }
    all
}

impl ObjectiveForm {
    /// Whether the weights follow from anything but the pair and its row's factor.
    pub(crate) fn has_statistics(&self) -> bool {
        self.form != Form::SigLip
    }

    /// Of a GOAL objective, whose kernels find a weight per anchor for one negative and one for its own pair.
    pub(crate) const GOAL: Self = Self {
        form: Form::Goal,
        both: true,
        mined: false,
        c: [0.0; CONSTANTS],
        k: [0.0; CONSTANTS],
        per_scale: None,
        per_bias: None,
    };

    pub(crate) fn new(objective: &PairwiseObjective) -> Self {
        const LOG2_E: f64 = std::f64::consts::LOG2_E;
        let softmax = |scale: f64| (Form::Softmax, constants([scale * LOG2_E, scale]), constants([scale]));
        let (form, c, k) = match *objective {
            PairwiseObjective::InfoNce { scale } => softmax(scale),
            PairwiseObjective::SupCon { tau } => softmax(1.0 / tau),
            PairwiseObjective::SigLip { scale, bias } => {
                (Form::SigLip, constants([scale, bias]), constants([scale, bias]))
            }
            PairwiseObjective::MultiSimilarity { alpha, beta, lambda, epsilon } => (
                Form::Multi,
                constants([beta * LOG2_E, -alpha * LOG2_E, lambda, epsilon.unwrap_or(0.0)]),
                constants([alpha, beta]),
            ),
            PairwiseObjective::Circle { gamma, margin, detached } => (
                Form::Circle,
                constants([gamma * LOG2_E, margin, gamma, f64::from(u8::from(detached))]),
                constants([gamma]),
            ),
            PairwiseObjective::TripletAll { margin } => (Form::Triplet, constants([margin]), constants([margin])),
            PairwiseObjective::Contrastive { pos_margin, neg_margin } => {
                (Form::Contrastive, constants([pos_margin, neg_margin]), constants([pos_margin, neg_margin]))
            }
            PairwiseObjective::Lifted { pos_margin, neg_margin } => {
                (Form::Lifted, constants([pos_margin, neg_margin]), constants([pos_margin, neg_margin]))
            }
            PairwiseObjective::RankedList { alpha, margin, temperature, balance } => (
                Form::Ranked,
                constants([alpha, alpha - margin, temperature * LOG2_E, balance]),
                constants([alpha, alpha - margin, temperature, balance]),
            ),
        };
        Self {
            form,
            both: objective.both_sides(),
            mined: matches!(objective, PairwiseObjective::MultiSimilarity { epsilon: Some(_), .. }),
            c: c.map(|v| v as f32),
            k,
            per_scale: objective.scale(),
            per_bias: objective.scale().filter(|_| form == Form::SigLip),
        }
    }
}
