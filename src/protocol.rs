//! The protocols that retrieval results are reported by.

use crate::backend::Backend;
use crate::check;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::matrix::MatRef;
use crate::metrics::{EvaluationReport, MetricOptions};
use crate::options::{Normalization, PositiveRanksOptions, TiePolicy};
use crate::relevance::RelevantPairs;

/// Options of an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvaluationOptions {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Default: [`TiePolicy::LowestIndex`].
    pub ties: TiePolicy,
    /// Default: recall at 1, 5 and 10, exponential gain.
    pub metrics: MetricOptions,
}

/// A test set of items with the same number of captions each, in order: the rows `captions · i` to
/// `captions · (i + 1) − 1` of `Y` belong to item `i`. It is cut into contiguous folds; each is ranked by itself, and every
/// figure is the mean over the folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptionProtocol {
    /// Items of a fold.
    pub items: usize,
    /// Captions of an item.
    pub captions: usize,
    /// Number of folds.
    pub folds: usize,
}

impl CaptionProtocol {
    /// COCO 1K: the 5,000 test images in five folds of 1,000 images and 5,000 captions.
    pub const COCO_1K: Self = Self { items: 1000, captions: 5, folds: 5 };
    /// COCO 5K: the 5,000 test images and 25,000 captions at once.
    pub const COCO_5K: Self = Self { items: 5000, captions: 5, folds: 1 };
    /// Flickr30K: 1,000 test images and 5,000 captions.
    pub const FLICKR30K_1K: Self = Self { items: 1000, captions: 5, folds: 1 };
}

/// What a protocol reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProtocolReport {
    /// The mean of every figure over the folds; hits and numbers of queries are added.
    pub mean: EvaluationReport,
    /// The folds by themselves.
    pub folds: Vec<EvaluationReport>,
}

impl Backend {
    /// Every retrieval figure of both directions: the ranks of [`positive_ranks`](Self::positive_ranks), and on the host
    /// what is made of them.
    ///
    /// # Errors
    /// As [`positive_ranks`](Self::positive_ranks).
    pub fn evaluate<T: Element>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        relevant: &RelevantPairs,
        options: &EvaluationOptions,
    ) -> Result<EvaluationReport> {
        let EvaluationOptions { normalization, ties, ref metrics } = *options;
        let ranks = self.positive_ranks(x, y, relevant, &PositiveRanksOptions { normalization, ties })?;
        Ok(EvaluationReport::from_ranks(&ranks, metrics))
    }

    /// Every retrieval figure by a protocol of items (`x`) with several captions each (`y`).
    ///
    /// `x` has one row per item, or one row per caption, as feature files have that repeat an image for each of its
    /// captions; then only the first row of each item is used.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a protocol of no items, captions or folds, [`Error::ShapeMismatch`] if `x` or `y` has
    /// another number of rows, and those of [`positive_ranks`](Self::positive_ranks).
    pub fn evaluate_captions<T: Element>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        protocol: &CaptionProtocol,
        options: &EvaluationOptions,
    ) -> Result<ProtocolReport> {
        let CaptionProtocol { items, captions, folds } = *protocol;
        let (x, y) = checked(x, y, protocol)?;
        let relevant = RelevantPairs::captions(items, captions)?;
        let fold = |f: usize| {
            let (x, y) = (part(x, f * items, items)?, part(y, f * items * captions, items * captions)?);
            self.evaluate(x, y, &relevant, options)
        };
        let folds = (0..folds).map(fold).collect::<Result<Vec<_>>>()?;
        Ok(ProtocolReport { mean: EvaluationReport::mean(&folds), folds })
    }
}

/// One row of `x` per item and one of `y` per caption, as the protocol has them.
fn checked<'a, T: Element>(
    x: MatRef<'a, T>,
    y: MatRef<'a, T>,
    protocol: &CaptionProtocol,
) -> Result<(MatRef<'a, T>, MatRef<'a, T>)> {
    const OP: &str = "evaluate_captions";
    let CaptionProtocol { items, captions, folds } = *protocol;
    for (arg, number) in [("protocol.items", items), ("protocol.captions", captions), ("protocol.folds", folds)] {
        if number == 0 {
            return Err(Error::InvalidOption { op: OP, arg, expected: "at least 1".to_owned(), got: "0".to_owned() });
        }
    }
    check::has_features(OP, "x", x.cols())?;
    let all_items = items.saturating_mul(folds);
    let all_captions = all_items.saturating_mul(captions);
    let repeated = x.rows() == all_captions && captions > 1;
    if !repeated {
        check::equal(OP, "x.rows", all_items, x.rows())?;
    }
    check::equal(OP, "y.rows", all_captions, y.rows())?;
    let x = if repeated { MatRef::with_stride(x.data(), all_items, x.cols(), captions * x.row_stride())? } else { x };
    Ok((x, y))
}

/// The rows `first .. first + rows`.
fn part<T: Element>(mat: MatRef<'_, T>, first: usize, rows: usize) -> Result<MatRef<'_, T>> {
    let data = mat.data().get(first * mat.row_stride()..).unwrap_or_default();
    MatRef::with_stride(data, rows, mat.cols(), mat.row_stride())
}
