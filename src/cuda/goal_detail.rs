//! The anatomy of a GOAL step as the device writes it.

use crate::outputs::{AnchorDetail, StepDetail};

/// Planes of a direction's anatomy; `kDetailPlanes` in `kernels/params/goal.h`.
pub(crate) const DETAIL_PLANES: usize = 10;

/// Words (`u32`) that [`goal_step_detail`](super::goal_step_detail) writes for `n` pairs: ten planes of `n` for each
/// direction, and the similarities of the pairs.
pub const fn goal_detail_len(n: usize) -> usize {
    (2 * DETAIL_PLANES + 1).saturating_mul(n)
}

/// The anatomy of a step of `n` pairs from the words that the device wrote.
///
/// Returns an empty anatomy if there are fewer than [`goal_detail_len`] words.
pub fn goal_detail_from_words(n: usize, words: &[u32]) -> StepDetail<f32> {
    if words.len() < goal_detail_len(n) {
        return StepDetail::default();
    }
    let plane = |side: usize, p: usize| &words[(side * DETAIL_PLANES + p) * n..][..n];
    let floats = |side, p| plane(side, p).iter().copied().map(f32::from_bits).collect::<Vec<f32>>();
    // In the order of `kDetail*` in kernels/params/goal.h.
    let anchors = |side| AnchorDetail {
        neg_index: plane(side, 0).iter().map(|w| w.cast_signed()).collect(),
        neg_value: floats(side, 1),
        second_value: floats(side, 2),
        triplet: floats(side, 3),
        w_pos: floats(side, 4),
        w_neg: floats(side, 5),
        rs_pos: floats(side, 6),
        rs_neg: floats(side, 7),
        rs_pos_count: plane(side, 8).to_vec(),
        rs_neg_count: plane(side, 9).to_vec(),
    };
    StepDetail { positive: floats(2, 0), it: anchors(0), ti: anchors(1) }
}
