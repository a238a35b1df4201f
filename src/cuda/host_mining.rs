//! The operations on similarities, on matrices in host memory; see [`host`](super::host).

use super::cosine_matrix::{RawCosineMatrix, cosine_matrix_raw, cosine_matrix_workspace_bytes};
use super::descriptor::{RawBatch, RawBuf};
use super::goal_plan::RawGroups;
use super::host::{Cuda, upload_groups, widen};
use super::host_memory::{Buffer, Session};
use super::mine::{RawHardest, RawMine, mine_raw, mine_workspace_bytes};
use super::ranks::{RawRanks, ranks_raw, ranks_workspace_bytes};
use crate::check;
use crate::dtype::Element;
use crate::error::Result;
use crate::matrix::{BatchMut, BatchRef, MatRef};
use crate::options::{CosineOptions, MineOptions, RecallOptions};
use crate::outputs::{Hardest, Mined, Ranks, RetrievalReport};

/// As [`crate::cpu::cosine_matrix`].
///
/// # Errors
/// Those of the CPU, [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) for `f64`, and those of the driver.
pub fn cosine_matrix<T: Element, O: Element<Acc = T::Acc>>(
    cuda: &Cuda,
    x: BatchRef<'_, T>,
    y: BatchRef<'_, T>,
    options: &CosineOptions,
    mut out: BatchMut<'_, O>,
) -> Result<()> {
    const OP: &str = "cosine_matrix";
    let batches = [x.batch(), y.batch(), out.batch()];
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    check::cosine_matrix(OP, batches, (n, d), (m, y.cols()), (out.rows(), out.cols()), options.scale)?;
    let session = Session::begin(OP, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = cosine_matrix_workspace_bytes(batches[0], n, m, d, T::DTYPE, options)?;
    let (_x, x) = session.upload_batch(x)?;
    let (_y, y) = session.upload_batch(y)?;
    let len = out.batch().saturating_mul(n).saturating_mul(m);
    let result = session.alloc_of::<O>(len)?;
    let workspace = session.alloc(bytes)?;
    let raw_out = RawBatch {
        ptr: result.raw(len).ptr,
        batch: out.batch(),
        rows: n,
        cols: m,
        row_stride: m,
        batch_stride: n * m,
        dtype: O::DTYPE,
    };
    let args = RawCosineMatrix { x, y, options, out: raw_out, workspace: workspace.workspace() };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { cosine_matrix_raw(cuda.kernels(), cuda.stream(), &args) }?;
    let dense: Vec<O> = session.download_vec(&result, len)?;
    for b in 0..out.batch() {
        let mut matrix = out.matrix_mut(b);
        for i in 0..n {
            matrix.row_mut(i).copy_from_slice(&dense[(b * n + i) * m..][..m]);
        }
    }
    Ok(())
}

/// Device memory for one direction's hardest negatives.
struct HardestBuffers {
    value: Buffer,
    index: Buffer,
    second: Option<Buffer>,
    len: usize,
}

impl HardestBuffers {
    fn new(session: &Session<'_>, len: usize, second: bool) -> Result<Self> {
        Ok(Self {
            value: session.alloc_of::<f32>(len)?,
            index: session.alloc_of::<i32>(len)?,
            second: if second { Some(session.alloc_of::<f32>(len)?) } else { None },
            len,
        })
    }

    fn raw(&self) -> RawHardest {
        let second = self.second.as_ref().map_or(RawBuf::NULL, |b| b.raw(self.len));
        RawHardest { value: self.value.raw(self.len), index: self.index.raw(self.len), second }
    }

    fn fetch<T: Element>(&self, session: &Session<'_>) -> Result<Hardest<T::Acc>> {
        let second = self.second.as_ref().map(|b| session.download_vec(b, self.len)).transpose()?;
        Ok(Hardest {
            value: widen(session.download_vec(&self.value, self.len)?),
            index: session.download_vec(&self.index, self.len)?,
            second: widen(second.unwrap_or_default()),
        })
    }
}

/// As [`crate::cpu::mine`].
///
/// # Errors
/// As [`cosine_matrix`].
pub fn mine<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &MineOptions<'_>,
) -> Result<Mined<T::Acc>> {
    const OP: &str = "mine";
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    let ids = options.groups.map(|g| (g.rows.len(), g.cols.len()));
    check::mine(OP, (n, d), (m, y.cols()), ids)?;
    let session = Session::begin(OP, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = mine_workspace_bytes(n, m, d, T::DTYPE, options.normalization, options.second)?;
    let (_x, x) = session.upload_mat(x)?;
    let (_y, y) = session.upload_mat(y)?;
    let groups = upload_groups(&session, options.groups)?;
    let pairs = n.min(m);
    let positive = session.alloc_of::<f32>(pairs)?;
    let rows = HardestBuffers::new(&session, n, options.second)?;
    let cols = HardestBuffers::new(&session, m, options.second)?;
    let workspace = session.alloc(bytes)?;
    let args = RawMine {
        x,
        y,
        normalization: options.normalization,
        groups: groups.as_ref().map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(m) }),
        positive: positive.raw(pairs),
        rows: rows.raw(),
        cols: cols.raw(),
        screen: RawBuf::NULL,
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { mine_raw(cuda.kernels(), cuda.stream(), &args) }?;
    Ok(Mined {
        positive: widen(session.download_vec(&positive, pairs)?),
        rows: rows.fetch::<T>(&session)?,
        cols: cols.fetch::<T>(&session)?,
    })
}

/// As [`crate::cpu::ranks`].
///
/// # Errors
/// As [`cosine_matrix`].
pub fn ranks<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &RecallOptions<'_>,
) -> Result<Ranks> {
    ranks_of("ranks", cuda, x, y, options)
}

/// As [`crate::cpu::recall`].
///
/// # Errors
/// As [`cosine_matrix`].
pub fn recall<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &RecallOptions<'_>,
) -> Result<RetrievalReport> {
    Ok(RetrievalReport::from_ranks(&ranks_of("recall", cuda, x, y, options)?))
}

fn ranks_of<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &RecallOptions<'_>,
) -> Result<Ranks> {
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    check::mine(op, (n, d), (m, y.cols()), options.groups.map(|g| (g.rows.len(), g.cols.len())))?;
    let session = Session::begin(op, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = ranks_workspace_bytes(n, m, d, T::DTYPE, options.normalization, options.groups.is_some())?;
    let (_x, x) = session.upload_mat(x)?;
    let (_y, y) = session.upload_mat(y)?;
    let groups = upload_groups(&session, options.groups)?;
    let (rows, cols) = (session.alloc_of::<i32>(n)?, session.alloc_of::<i32>(m)?);
    let workspace = session.alloc(bytes)?;
    let args = RawRanks {
        x,
        y,
        normalization: options.normalization,
        groups: groups.as_ref().map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(m) }),
        ties: options.ties,
        rows: rows.raw(n),
        cols: cols.raw(m),
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { ranks_raw(cuda.kernels(), cuda.stream(), &args) }?;
    Ok(Ranks { rows: session.download_vec(&rows, n)?, cols: session.download_vec(&cols, m)? })
}
