//! The ranks of all relevant pairs, on matrices in host memory; see [`host`](super::host).

use super::descriptor::RawBuf;
use super::host::Cuda;
use super::host_memory::Session;
use super::positive_ranks::{RawPositiveRanks, RawRelevant, positive_ranks_raw, positive_ranks_workspace_bytes};
use crate::check;
use crate::dtype::Element;
use crate::error::Result;
use crate::matrix::MatRef;
use crate::options::PositiveRanksOptions;
use crate::outputs::{PositiveRanks, QueryRanks};
use crate::relevance::RelevantPairs;

/// As [`crate::cpu::positive_ranks`].
///
/// # Errors
/// Those of the CPU, [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) for `f64`, and those of the driver.
pub fn positive_ranks<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    relevant: &RelevantPairs,
    options: &PositiveRanksOptions,
) -> Result<PositiveRanks> {
    const OP: &str = "positive_ranks";
    let (n, m, d, pairs) = (x.rows(), y.rows(), x.cols(), relevant.pairs());
    check::positive_ranks(OP, (n, d), (m, y.cols()), (relevant.rows(), relevant.cols()))?;
    let session = Session::begin(OP, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = positive_ranks_workspace_bytes(n, m, d, T::DTYPE, pairs, options.normalization)?;
    let (_x, x) = session.upload_mat(x)?;
    let (_y, y) = session.upload_mat(y)?;
    let (turned, numbers) = relevant.transposed();
    let row_offsets = session.upload(relevant.offsets())?;
    let row_candidates = session.upload(relevant.candidates())?;
    let col_offsets = session.upload(turned.offsets())?;
    let col_candidates = session.upload(turned.candidates())?;
    let col_pairs = session.upload(&numbers)?;
    let grades = session.upload(relevant.grades())?;
    let (rows, cols) = (session.alloc_of::<i32>(pairs)?, session.alloc_of::<i32>(pairs)?);
    let workspace = session.alloc(bytes)?;
    let args = RawPositiveRanks {
        x,
        y,
        relevant: RawRelevant {
            row_offsets: row_offsets.raw(n + 1),
            row_candidates: row_candidates.raw(pairs),
            col_offsets: col_offsets.raw(m + 1),
            col_candidates: col_candidates.raw(pairs),
            col_pairs: col_pairs.raw(pairs),
            grades: if relevant.grades().is_empty() { RawBuf::NULL } else { grades.raw(pairs) },
        },
        normalization: options.normalization,
        ties: options.ties,
        rows: rows.raw(pairs),
        cols: cols.raw(pairs),
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { positive_ranks_raw(cuda.kernels(), cuda.stream(), &args) }?;
    let result = |of: &RelevantPairs, ranks, pool| QueryRanks {
        offsets: of.offsets().to_vec(),
        candidates: of.candidates().to_vec(),
        grades: of.grades().to_vec(),
        ranks,
        pool,
    };
    let row_ranks = session.download_vec(&rows, pairs)?;
    let col_ranks = session.download_vec(&cols, pairs)?;
    Ok(PositiveRanks { rows: result(relevant, row_ranks, m), cols: result(&turned, col_ranks, n) })
}
