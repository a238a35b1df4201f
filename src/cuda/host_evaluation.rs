//! The ranks of all relevant pairs, on matrices in host memory; see [`host`](super::host).

use super::host::Cuda;
use crate::check;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::matrix::MatRef;
use crate::options::PositiveRanksOptions;
use crate::outputs::PositiveRanks;
use crate::relevance::RelevantPairs;

/// As [`crate::cpu::positive_ranks`]; no kernel for it yet, so every call is refused.
///
/// # Errors
/// Those of the CPU, and [`Error::UnsupportedDType`].
pub fn positive_ranks<T: Element>(
    _cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    relevant: &RelevantPairs,
    _options: &PositiveRanksOptions,
) -> Result<PositiveRanks> {
    const OP: &str = "positive_ranks";
    let (n, m) = (x.rows(), y.rows());
    check::positive_ranks(OP, (n, x.cols()), (m, y.cols()), (relevant.rows(), relevant.cols()))?;
    Err(Error::UnsupportedDType { op: OP, arg: "x", expected: "the CPU backend", got: T::DTYPE })
}
