//! Argument checks that the CPU and the CUDA backend share, on plain numbers.
//!
//! Every function takes the operation's name and extents, and returns the first violation in the order of the
//! operation's arguments, before anything is computed or written.

use crate::error::{Error, Result};
use crate::mined_triplet::MinedTriplet;
use crate::mixture::{MixtureObjective, PairwisePart};
use crate::pairwise::{PairwiseObjective, PairwiseOptions};
use crate::top_k::{MAX_K, Margin, TopKOptions};

/// Rows and columns of a matrix argument.
pub(crate) type Extent = (usize, usize);

/// Most rows a matrix may have where the result holds indices of rows: they are `i32`.
pub(crate) const MAX_ROWS: usize = i32::MAX as usize;

/// `got == expected`, or [`Error::ShapeMismatch`].
pub(crate) fn equal(op: &'static str, arg: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::ShapeMismatch { op, arg, expected, got }) }
}

/// `got <= limit`, or [`Error::TooLarge`].
pub(crate) fn at_most(op: &'static str, arg: &'static str, limit: usize, got: usize) -> Result<()> {
    if got <= limit { Ok(()) } else { Err(Error::TooLarge { op, arg, limit: limit as u64, got: got as u64 }) }
}

/// At least one feature, or [`Error::EmptyDim`].
pub(crate) fn has_features(op: &'static str, arg: &'static str, cols: usize) -> Result<()> {
    if cols > 0 { Ok(()) } else { Err(Error::EmptyDim { op, arg }) }
}

/// A finite option, or [`Error::InvalidOption`].
pub(crate) fn finite(op: &'static str, arg: &'static str, value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::InvalidOption { op, arg, expected: "a finite number".to_owned(), got: value.to_string() })
}

/// Two matrices of rows with the same number of features.
fn features(op: &'static str, x_cols: usize, y_cols: usize) -> Result<()> {
    has_features(op, "x", x_cols)?;
    equal(op, "y.cols", x_cols, y_cols)
}

/// Two matrices of rows, as many as an `i32` can index, with the same number of features.
fn indexed_pair(op: &'static str, x: Extent, y: Extent) -> Result<()> {
    has_features(op, "x", x.1)?;
    at_most(op, "x.rows", MAX_ROWS, x.0)?;
    equal(op, "y.cols", x.1, y.1)?;
    at_most(op, "y.rows", MAX_ROWS, y.0)
}

/// `groups`: numbers of row and column ids, where there are any.
fn groups(op: &'static str, rows: usize, cols: usize, groups: Option<(usize, usize)>) -> Result<()> {
    let Some((row_ids, col_ids)) = groups else { return Ok(()) };
    equal(op, "groups.rows", rows, row_ids)?;
    equal(op, "groups.cols", cols, col_ids)
}

/// `dx` and `dy` with the shapes of `x` and `y`.
fn gradients(op: &'static str, x: Extent, y: Extent, dx: Extent, dy: Extent) -> Result<()> {
    equal(op, "dx.rows", x.0, dx.0)?;
    equal(op, "dx.cols", x.1, dx.1)?;
    equal(op, "dy.rows", y.0, dy.0)?;
    equal(op, "dy.cols", y.1, dy.1)
}

/// `row_norms`: one norm per row.
pub(crate) fn row_norms(op: &'static str, x: Extent, norms: usize) -> Result<()> {
    has_features(op, "x", x.1)?;
    equal(op, "norms", x.0, norms)
}

/// `normalize`: `out` with the shape of `x`.
pub(crate) fn normalize(op: &'static str, x: Extent, out: Extent) -> Result<()> {
    has_features(op, "x", x.1)?;
    equal(op, "out.rows", x.0, out.0)?;
    equal(op, "out.cols", x.1, out.1)
}

/// `normalize_backward`: `grad_unit` and `dx` with the shape of `x`.
pub(crate) fn normalize_backward(op: &'static str, x: Extent, grad_unit: Extent, dx: Extent) -> Result<()> {
    has_features(op, "x", x.1)?;
    equal(op, "grad_unit.rows", x.0, grad_unit.0)?;
    equal(op, "grad_unit.cols", x.1, grad_unit.1)?;
    equal(op, "dx.rows", x.0, dx.0)?;
    equal(op, "dx.cols", x.1, dx.1)
}

/// `cosine_matrix`: batch sizes, extents and the scale.
pub(crate) fn cosine_matrix(
    op: &'static str,
    batch: [usize; 3],
    x: Extent,
    y: Extent,
    out: Extent,
    scale: f64,
) -> Result<()> {
    let [x_batch, y_batch, out_batch] = batch;
    equal(op, "y.batch", x_batch, y_batch)?;
    features(op, x.1, y.1)?;
    finite(op, "options.scale", scale)?;
    equal(op, "out.batch", x_batch, out_batch)?;
    equal(op, "out.rows", x.0, out.0)?;
    equal(op, "out.cols", y.0, out.1)
}

/// `mine`, `ranks` and `recall`: any two numbers of rows.
pub(crate) fn mine(op: &'static str, x: Extent, y: Extent, ids: Option<(usize, usize)>) -> Result<()> {
    indexed_pair(op, x, y)?;
    groups(op, x.0, y.0, ids)
}

/// An integer option in a range, or [`Error::InvalidOption`].
fn within(op: &'static str, arg: &'static str, range: std::ops::RangeInclusive<usize>, got: usize) -> Result<()> {
    if range.contains(&got) {
        return Ok(());
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(Error::InvalidOption { op, arg, expected, got: got.to_string() })
}

/// `mine_top_k`: any two numbers of rows, and the options.
pub(crate) fn mine_top_k(op: &'static str, x: Extent, y: Extent, options: &TopKOptions<'_>) -> Result<()> {
    mine(op, x, y, options.groups.map(|g| (g.rows.len(), g.cols.len())))?;
    if let Some((low, high)) =
        options.window.filter(|(low, high)| low.partial_cmp(high).is_none_or(std::cmp::Ordering::is_gt))
    {
        let expected = "two numbers in ascending order".to_owned();
        return Err(Error::InvalidOption { op, arg: "options.window", expected, got: format!("({low}, {high})") });
    }
    if let Some(Margin::Absolute(margin) | Margin::Relative(margin)) = options.below_positive {
        finite(op, "options.below_positive", margin)?;
    }
    top_k_counts(op, options)
}

/// The numbers of selected negatives, of which sizes depend.
pub(crate) fn top_k_counts(op: &'static str, options: &TopKOptions<'_>) -> Result<()> {
    within(op, "options.skip", 0..=MAX_K, options.skip)?;
    within(op, "options.k", 1..=MAX_K, options.k)
}

/// Places for the weights of `mined_triplet_step`: of each pair, and of the `k` negatives of its row and of its column.
pub(crate) fn mined_triplet_places(op: &'static str, pairs: usize, k: usize) -> Result<usize> {
    let places = pairs.saturating_mul(k.saturating_mul(2).saturating_add(1));
    at_most(op, "places for weights", MAX_ROWS, places)?;
    Ok(places)
}

/// `mined_triplet_step`: any two numbers of rows, the objective and the rules made of it, and the gradients' shapes.
pub(crate) fn mined_triplet(
    op: &'static str,
    x: Extent,
    y: Extent,
    objective: &MinedTriplet,
    rules: &TopKOptions<'_>,
    [dx, dy]: [Extent; 2],
) -> Result<()> {
    mine_top_k(op, x, y, rules)?;
    finite(op, "objective.margin", objective.margin)?;
    gradients(op, x, y, dx, dy)?;
    mined_triplet_places(op, x.0.min(y.0), objective.k).map(|_| ())
}

/// A bank's entries as further candidates of the `n` rows: extent of the entries, and the number of the rows' ids.
pub(crate) fn bank_columns(op: &'static str, x: Extent, m: usize, entries: Extent, ids: usize) -> Result<()> {
    equal(op, "bank.cols", x.1, entries.1)?;
    equal(op, "bank.ids", x.0, ids)?;
    at_most(op, "y.rows and bank entries", MAX_ROWS, m.saturating_add(entries.0))
}

/// `positive_ranks`: relevant pairs for as many rows and columns as there are.
pub(crate) fn positive_ranks(op: &'static str, x: Extent, y: Extent, relevant: Extent) -> Result<()> {
    indexed_pair(op, x, y)?;
    equal(op, "relevant.rows", x.0, relevant.0)?;
    equal(op, "relevant.cols", y.0, relevant.1)
}

/// `weighted_grad`: lengths of the triples' `rows`, `cols` and `values`, and the gradients' shapes.
pub(crate) fn weighted_grad(
    op: &'static str,
    x: Extent,
    y: Extent,
    triples: [usize; 3],
    dx: Extent,
    dy: Extent,
) -> Result<()> {
    indexed_pair(op, x, y)?;
    let [rows, cols, values] = triples;
    at_most(op, "w.rows", MAX_ROWS, rows)?;
    equal(op, "w.cols", rows, cols)?;
    equal(op, "w.values", rows, values)?;
    gradients(op, x, y, dx, dy)
}

/// `goal_step`: as many rows in `y` as in `x`.
pub(crate) fn goal_step(
    op: &'static str,
    x: Extent,
    y: Extent,
    ids: Option<(usize, usize)>,
    dx: Extent,
    dy: Extent,
) -> Result<()> {
    indexed_pair(op, x, y)?;
    equal(op, "y.rows", x.0, y.0)?;
    groups(op, x.0, y.0, ids)?;
    gradients(op, x, y, dx, dy)
}

/// One entry per row or column, where an option is given.
fn per_row(op: &'static str, arg: &'static str, expected: usize, got: Option<usize>) -> Result<()> {
    got.map_or(Ok(()), |got| equal(op, arg, expected, got))
}

/// Lengths of the arrays among a pairwise step's options, where they are given.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PairwiseLengths {
    pub groups: Option<(usize, usize)>,
    pub ignore_rows: Option<usize>,
    pub ignore_cols: Option<usize>,
    pub row_weights: Option<usize>,
    pub col_weights: Option<usize>,
    pub log_q: Option<usize>,
}

impl From<&PairwiseOptions<'_>> for PairwiseLengths {
    fn from(options: &PairwiseOptions<'_>) -> Self {
        Self {
            groups: options.groups.map(|g| (g.rows.len(), g.cols.len())),
            ignore_rows: options.ignore_rows.map(<[bool]>::len),
            ignore_cols: options.ignore_cols.map(<[bool]>::len),
            row_weights: options.row_weights.map(<[f32]>::len),
            col_weights: options.col_weights.map(<[f32]>::len),
            log_q: options.log_q.map(<[f32]>::len),
        }
    }
}

/// As many groups, masks and weights as rows and columns.
fn pairwise_options(op: &'static str, x: Extent, y: Extent, options: &PairwiseLengths) -> Result<()> {
    groups(op, x.0, y.0, options.groups)?;
    per_row(op, "options.ignore_rows", x.0, options.ignore_rows)?;
    per_row(op, "options.ignore_cols", y.0, options.ignore_cols)?;
    per_row(op, "options.row_weights", x.0, options.row_weights)?;
    per_row(op, "options.col_weights", y.0, options.col_weights)?;
    per_row(op, "options.log_q", y.0, options.log_q)
}

/// `pairwise_step_custom`: any two numbers of rows; extents of `x`, `y`, `dx`, `dy`.
pub(crate) fn pairwise_custom(op: &'static str, extents: [Extent; 4], options: &PairwiseLengths) -> Result<()> {
    let [x, y, dx, dy] = extents;
    indexed_pair(op, x, y)?;
    pairwise_options(op, x, y, options)?;
    for (arg, given) in [("options.col_weights", options.col_weights), ("options.log_q", options.log_q)] {
        if given.is_some() {
            let expected = "none, since an objective of your own has no use for it".to_owned();
            return Err(Error::InvalidOption { op, arg, expected, got: "some".to_owned() });
        }
    }
    gradients(op, x, y, dx, dy)
}

/// A GOAL part: pairs of two sets, and none of the options that it does not keep to.
fn goal_part(op: &'static str, n: usize, m: usize, single: bool, options: &PairwiseLengths) -> Result<()> {
    let refuse = |arg, expected: &str, got: &str| {
        Err(Error::InvalidOption { op, arg, expected: expected.to_owned(), got: got.to_owned() })
    };
    if single {
        return refuse("parts.objective", "objectives over all pairs, since the set is single", "a GOAL objective");
    }
    equal(op, "y.rows", n, m)?;
    let given = [
        ("options.ignore_rows", options.ignore_rows),
        ("options.ignore_cols", options.ignore_cols),
        ("options.row_weights", options.row_weights),
        ("options.col_weights", options.col_weights),
    ];
    match given.into_iter().find(|(_, length)| length.is_some()) {
        Some((arg, _)) => refuse(arg, "none, since a GOAL objective has no use for it", "some"),
        None => Ok(()),
    }
}

/// `pairwise_step` and the like: any two numbers of rows, or a `single` set; the parts' parameters, and options that one of
/// them has a use for.
#[allow(clippy::too_many_arguments)]
pub(crate) fn pairwise_step(
    op: &'static str,
    x: Extent,
    y: Extent,
    single: bool,
    parts: &[PairwisePart],
    options: &PairwiseLengths,
    dx: Extent,
    dy: Extent,
) -> Result<()> {
    indexed_pair(op, x, y)?;
    if parts.is_empty() {
        return Err(Error::InvalidOption { op, arg: "parts", expected: "at least one".into(), got: "none".into() });
    }
    for part in parts {
        finite(op, "parts.weight", part.weight)?;
        match &part.objective {
            MixtureObjective::Pairwise(objective) => objective.check(op)?,
            // Valid by construction.
            MixtureObjective::Goal(_) => goal_part(op, x.0, y.0, single, options)?,
        }
    }
    pairwise_options(op, x, y, options)?;
    let unused = |arg, present: bool| {
        if !present {
            return Ok(());
        }
        let names: Vec<_> = parts.iter().map(|part| part.objective.to_string()).collect();
        let expected = format!("none, since {} has no use for it", names.join(", "));
        Err(Error::InvalidOption { op, arg, expected, got: "some".to_owned() })
    };
    let none = |takes: fn(&PairwiseObjective) -> bool| !parts.iter().any(|p| p.objective.pairwise().is_some_and(takes));
    unused("options.col_weights", options.col_weights.is_some() && none(PairwiseObjective::both_sides))?;
    unused("options.log_q", options.log_q.is_some() && none(PairwiseObjective::takes_log_q))?;
    gradients(op, x, y, dx, dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_violation_in_argument_order_is_reported() {
        let err = goal_step("goal_step", (3, 4), (2, 5), Some((1, 1)), (3, 4), (2, 5)).unwrap_err();
        assert_eq!(err, Error::ShapeMismatch { op: "goal_step", arg: "y.cols", expected: 4, got: 5 });
        let err = goal_step("goal_step", (3, 4), (2, 4), Some((1, 1)), (3, 4), (2, 5)).unwrap_err();
        assert_eq!(err, Error::ShapeMismatch { op: "goal_step", arg: "y.rows", expected: 3, got: 2 });
        let err = goal_step("goal_step", (3, 4), (3, 4), Some((3, 1)), (1, 4), (2, 5)).unwrap_err();
        assert_eq!(err, Error::ShapeMismatch { op: "goal_step", arg: "groups.cols", expected: 3, got: 1 });
    }

    #[test]
    fn empty_dimension_wins_over_everything_else() {
        let err = mine("mine", (0, 0), (0, 7), None).unwrap_err();
        assert_eq!(err, Error::EmptyDim { op: "mine", arg: "x" });
    }

    #[test]
    fn rows_beyond_i32_are_refused() {
        let rows = MAX_ROWS + 1;
        let err = mine("mine", (1, 8), (rows, 8), None).unwrap_err();
        assert_eq!(err, Error::TooLarge { op: "mine", arg: "y.rows", limit: MAX_ROWS as u64, got: rows as u64 });
    }

    #[test]
    fn scale_must_be_finite() {
        let err = cosine_matrix("cosine_matrix", [1; 3], (1, 1), (1, 1), (1, 1), f64::NAN).unwrap_err();
        assert!(matches!(err, Error::InvalidOption { arg: "options.scale", .. }));
    }
}
