//! The triplet hinge on mined negatives: what is asked for, and what comes back.

use bytemuck::{Pod, Zeroable};

use crate::objective::Reduction;
use crate::options::{Groups, Normalization};
use crate::top_k::{Fallback, Margin, Pick, TopKOptions};

/// The triplet hinge on the negatives that each anchor selects.
///
/// Every row and every column is an anchor with its pair's similarity `P` and the negatives `j` that `mine_top_k` selects for
/// it, and
///
/// ```text
/// L = c Σ_anchors Σ_selected j [margin + S_j − P]₊
/// ```
///
/// with `c` the reduction's factor. A selected negative with a positive violation has the weight `c`, its anchor's pair the
/// weight `−c`. Which negatives are selected is constant in the gradient. An anchor without a pair has no triplet.
///
/// [`Self::hardest`] is VSE++ (Faghri et al., BMVC 2018) and the gradient of `hinge-con`; [`Self::semi_hard`] is FaceNet's rule
/// (Schroff et al., CVPR 2015).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MinedTriplet {
    /// Finite; default 0.2.
    pub margin: f64,
    /// As in [`TopKOptions`]; default: none.
    pub window: Option<(f64, f64)>,
    /// As in [`TopKOptions`]; default: none.
    pub below_positive: Option<Margin>,
    /// As in [`TopKOptions`].
    pub fallback: Fallback,
    /// As in [`TopKOptions`]; default 0.
    pub skip: usize,
    /// Negatives per anchor, as in [`TopKOptions`]; default 1.
    pub k: usize,
    /// As in [`TopKOptions`].
    pub pick: Pick,
    /// Default: [`Reduction::Sum`]; a mean is over the `min(n, m)` pairs.
    pub reduction: Reduction,
}

impl Default for MinedTriplet {
    /// [`Self::hardest`].
    fn default() -> Self {
        Self::hardest()
    }
}

impl MinedTriplet {
    /// The hardest negative of each anchor, with the margin 0.2.
    pub const fn hardest() -> Self {
        Self {
            margin: 0.2,
            window: None,
            below_positive: None,
            fallback: Fallback::Skip,
            skip: 0,
            k: 1,
            pick: Pick::Hardest,
            reduction: Reduction::Sum,
        }
    }

    /// The hardest of the negatives with `S < P`, with the margin 0.2; an anchor without one is skipped, as in FaceNet and
    /// pytorch-metric-learning. TensorFlow falls back to [`Fallback::Easiest`].
    ///
    /// FaceNet also asks for `S > P − margin`: the others have no violation, and the hardest has one if any has.
    pub const fn semi_hard() -> Self {
        Self { below_positive: Some(Margin::Absolute(0.0)), ..Self::hardest() }
    }

    /// `k` negatives of each anchor uniformly at random. The sample depends on the seed and on indices alone: give each step
    /// another seed.
    pub const fn random(k: usize, seed: u64) -> Self {
        Self { k, pick: Pick::Random { seed }, ..Self::hardest() }
    }

    /// `k` negatives of each anchor by distance-weighted sampling, see [`Pick::DistanceWeighted`]. Give each step another
    /// seed.
    pub const fn distance_weighted(k: usize, seed: u64) -> Self {
        Self { k, pick: Pick::DistanceWeighted { seed }, ..Self::hardest() }
    }

    /// What is mined.
    pub(crate) const fn rules<'a>(&self, normalization: Normalization, groups: Option<Groups<'a>>) -> TopKOptions<'a> {
        TopKOptions {
            normalization,
            groups,
            window: self.window,
            below_positive: self.below_positive,
            fallback: self.fallback,
            skip: self.skip,
            k: self.k,
            pick: self.pick,
        }
    }

    /// Factor on loss and gradient for a batch of `pairs`.
    pub(crate) fn factor(&self, pairs: usize) -> f64 {
        match self.reduction {
            Reduction::Mean if pairs > 0 => 1.0 / pairs as f64,
            _ => 1.0,
        }
    }
}

/// What one `mined_triplet_step` reports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct MinedTripletReport {
    /// The loss, with the reduction's factor. NaN if a triplet has a NaN.
    pub loss: f64,
    /// Mean similarity of the pairs; 0 without a pair.
    pub mean_positive: f64,
    /// Mean similarity of the triplets' negatives; 0 without a triplet.
    pub mean_negative: f64,
    /// Negatives that anchors with a pair have selected.
    pub triplets: u64,
    /// Those of them with a weight: a positive violation, or NaN.
    pub active: u64,
    /// Pairs in the batch.
    pub pairs: u32,
    /// Rows with a pair that have selected nothing.
    pub empty_rows: u32,
    /// Columns with a pair that have selected nothing.
    pub empty_cols: u32,
    /// Rows of `X` that are all zero.
    pub zero_x: u32,
    /// Rows of `Y` that are all zero.
    pub zero_y: u32,
    /// Rows of `X` with a NaN or an infinity.
    pub nan_x: u32,
    /// Rows of `Y` with a NaN or an infinity.
    pub nan_y: u32,
    /// Gradient elements that became infinite by rounding to the output type.
    pub overflow: u32,
}
