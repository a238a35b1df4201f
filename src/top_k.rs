//! Mining of several negatives per anchor: what is asked for, and what comes back.

use crate::options::{Groups, Normalization};

/// Most negatives per anchor that `mine_top_k` selects, and most that it leaves out.
pub const MAX_K: usize = 1024;

/// How far below the similarity `P` of the anchor's own pair a negative has to be.
///
/// The comparison is strict. An anchor without a pair, or whose `P` is NaN, has no negative that passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Margin {
    /// `S < P − margin`; 0 is the semi-hard rule.
    Absolute(f64),
    /// `S < P − margin · |P|`, which is `S < P (1 − margin)` for a positive `P`. For a negative `P` too the bound is below
    /// `P`, where `P (1 − margin)` would be above it.
    Relative(f64),
}

/// What an anchor selects that has candidates, none of which survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fallback {
    /// Nothing: the anchor is skipped, as in FaceNet and pytorch-metric-learning.
    #[default]
    Skip,
    /// The candidate of the smallest similarity, the lowest index on ties: TensorFlow's semi-hard rule. The number of
    /// survivors stays 0.
    Easiest,
}

/// Which of the survivors are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pick {
    /// The largest similarities, in descending order; the lower index first on ties.
    #[default]
    Hardest,
    /// Uniformly at random without replacement, in the order drawn.
    Random {
        /// Equal seeds draw equal samples, on every backend.
        seed: u64,
    },
    /// At random without replacement, with the probability of each draw proportional to the weight
    /// `(2 − 2S)^(−(d−2)/2) ((1+S)/2)^(−(d−3)/2)`, the reciprocal of the density of the distance of two random unit vectors
    /// with `d` elements; in the order drawn (Wu et al. 2017, "Sampling Matters in Deep Embedding Learning"). Distances
    /// `√(2 − 2S)` below 0.5 are taken as 0.5; from 1.4 on, which is `S <= 0.02`, the weight is 0 and the candidate does not
    /// survive. Made for unit rows.
    DistanceWeighted {
        /// As for `Random`; the weights' rounding is the backend's.
        seed: u64,
    },
}

/// Options of `mine_top_k`, in the order in which they apply.
#[derive(Clone, Copy, Debug)]
pub struct TopKOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// With groups, candidates of the anchor's own group are not negatives. Default: none.
    pub groups: Option<Groups<'a>>,
    /// Only candidates with `low <= S <= high` survive; default: no such window.
    pub window: Option<(f64, f64)>,
    /// Only candidates this far below the anchor's positive survive; default: all.
    pub below_positive: Option<Margin>,
    /// Default: [`Fallback::Skip`].
    pub fallback: Fallback,
    /// Survivors that are left out, hardest first: a window of ranks that starts at `skip`. 0 to [`MAX_K`], default 0.
    pub skip: usize,
    /// Negatives to select per anchor, 1 to [`MAX_K`]; default 1.
    pub k: usize,
    /// Default: [`Pick::Hardest`].
    pub pick: Pick,
}

impl Default for TopKOptions<'_> {
    fn default() -> Self {
        Self {
            normalization: Normalization::L2,
            groups: None,
            window: None,
            below_positive: None,
            fallback: Fallback::Skip,
            skip: 0,
            k: 1,
            pick: Pick::Hardest,
        }
    }
}

impl TopKOptions<'_> {
    /// The `k` hardest negatives.
    pub fn hardest(k: usize) -> Self {
        Self { k, ..Self::default() }
    }

    /// The `k` hardest of the negatives below the positive.
    pub fn semi_hard(k: usize, fallback: Fallback) -> Self {
        Self { k, fallback, below_positive: Some(Margin::Absolute(0.0)), ..Self::default() }
    }

    /// Whether a NaN survives: only where no comparison is asked for.
    pub(crate) fn admits_nan(&self) -> bool {
        let weighted = matches!(self.pick, Pick::DistanceWeighted { .. });
        self.window.is_none() && self.below_positive.is_none() && !weighted
    }
}

/// What the anchors of one direction have selected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selected<A> {
    /// Places per anchor.
    pub k: usize,
    /// `anchors × k` indices of candidates; [`NONE`](crate::NONE) behind the last one selected.
    pub index: Vec<i32>,
    /// `anchors × k` similarities; −∞ behind the last one selected.
    pub value: Vec<A>,
    /// Survivors of each anchor, before any is left out by rank.
    pub survivors: Vec<u32>,
}

impl<A> Selected<A> {
    /// Indices and similarities that `anchor` has selected, without the empty places.
    ///
    /// # Panics
    /// If there is no such anchor.
    pub fn of(&self, anchor: usize) -> (&[i32], &[A]) {
        let places = anchor * self.k..(anchor + 1) * self.k;
        let index = &self.index[places.clone()];
        let count = index.partition_point(|&i| i != crate::NONE);
        (&index[..count], &self.value[places][..count])
    }
}

/// Result of `mine_top_k`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopK<A> {
    /// `S[i, i]` for every `i < min(n, m)`.
    pub positive: Vec<A>,
    /// Anchors are the rows of `X`, candidates the rows of `Y`, and behind them the entries of a bank.
    pub rows: Selected<A>,
    /// Anchors are the rows of `Y`, candidates the rows of `X`.
    pub cols: Selected<A>,
}
