//! Objectives of your own, over all pairs.
//!
//! A [`PairObjective`] gives the weight of a pair from its similarity and from what is known of the pair's row and column;
//! an [`Expression`](crate::expression::Expression) is one that is written as text. `cpu::pairwise_step_custom` takes a step
//! with either, `cuda::pairwise_step_custom` with an expression.

/// What is known of one anchor, a row or a column, when its pairs are weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnchorView {
    /// Similarity of its own pair, NaN if it has none.
    pub pair: f64,
    /// The largest similarity of a negative, −∞ without one.
    pub hardest: f64,
    /// `ln Σ e^logit` over its negatives, −∞ without one.
    pub lse_negatives: f64,
    /// `ln Σ e^logit` over its positives, −∞ without one.
    pub lse_positives: f64,
    /// Positives.
    pub positives: u32,
    /// Negatives.
    pub negatives: u32,
    /// Mean of [`PairObjective::near_negative`], 0 where it is not asked for.
    pub near_negatives: f64,
    /// Mean of [`PairObjective::near_positive`], 0 where it is not asked for.
    pub near_positives: f64,
}

/// One pair that is to be weighed.
#[derive(Clone, Copy, Debug)]
pub struct PairView<'a> {
    /// Its similarity.
    pub s: f64,
    /// Whether it is a positive pair; otherwise it is a negative one.
    pub positive: bool,
    /// Its row as an anchor.
    pub row: &'a AnchorView,
    /// Its column as an anchor.
    pub col: &'a AnchorView,
    /// Whether it is the row's hardest negative; of several as hard, the one with the lowest index.
    pub hardest_of_row: bool,
    /// Whether it is the column's hardest negative.
    pub hardest_of_col: bool,
    /// Rows of the batch.
    pub rows: usize,
    /// Columns of the batch.
    pub cols: usize,
}

/// An objective defined by the weights `W = dL/dS` of its pairs, whether or not it has a loss.
///
/// ```
/// use simgrad::{PairObjective, PairView};
///
/// /// VSE++: the hinge on the hardest negative, in both directions.
/// struct Hardest;
///
/// impl PairObjective for Hardest {
///     fn weight(&self, pair: &PairView<'_>) -> f64 {
///         let row = f64::from(u8::from(0.2 + pair.row.hardest > pair.row.pair));
///         let col = f64::from(u8::from(0.2 + pair.col.hardest > pair.col.pair));
///         match pair.positive {
///             true => -(row + col),
///             false => row * f64::from(pair.hardest_of_row) + col * f64::from(pair.hardest_of_col),
///         }
///     }
/// }
/// ```
pub trait PairObjective: Sync {
    /// Whether an anchor's own pair is its only positive and other pairs of the same group are ignored; otherwise all pairs of
    /// the group are positive.
    fn one_positive(&self) -> bool {
        true
    }

    /// The logit of a pair, for the sums of exponentials in [`AnchorView`].
    fn logit(&self, s: f64) -> f64 {
        s
    }

    /// How far the two sets of near pairs reach; `None`, the default, for an objective without a use for them.
    ///
    /// With a slack `e`, and the least similarity `P_min` of an own pair of the batch, they are of an anchor `i` with the
    /// hardest negative `N_i = S[i, n_i]`
    ///
    /// ```text
    /// near negatives   { S[i, k] : k a negative of i, k ≠ n_i, S[i, k] >= P_min − e }
    /// near positives   { P_j : j a negative of i that has an own pair, P_j <= N_i + e }
    /// ```
    ///
    /// the sets behind GOAL's relative similarities (Xuan & Chen, WACV 2023), in which the positives are those of others. Own
    /// pairs are those of [`AnchorView::pair`]. What the anchor learns are means over the sets in which values of exactly 0
    /// are left out of the divisor; 0 over nothing. Takes one more sweep over the pairs.
    fn slack(&self) -> Option<f64> {
        None
    }

    /// What is averaged over the near negatives, from the similarity of one. The anchor's own means are not known yet.
    fn near_negative(&self, _s: f64, _anchor: &AnchorView) -> f64 {
        0.0
    }

    /// What is averaged over the near positives, from the similarity `P_j` of one. The anchor's own means are not known yet.
    fn near_positive(&self, _s: f64, _anchor: &AnchorView) -> f64 {
        0.0
    }

    /// The weight of a pair.
    fn weight(&self, pair: &PairView<'_>) -> f64;
}
