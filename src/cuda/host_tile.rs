//! The operations on tiles of similarities, on matrices in host memory.

use super::RawBuf;
use super::cosine_matrix::{RawCosineMatrix, cosine_matrix_raw, cosine_matrix_workspace_bytes};
use super::descriptor::RawBatch;
use super::goal::RawGroups;
use super::host::{Cuda, upload_groups, widen};
use super::host_memory::{Buffer, Session, write_rows};
use super::mine::{RawHardest, RawMine, mine_raw, mine_workspace_bytes};
use super::ranks::{RawRanks, ranks_raw, ranks_workspace_bytes};
use crate::check;
use crate::dtype::{Accum, Element};
use crate::error::Result;
use crate::matrix::{BatchMut, BatchRef, MatRef};
use crate::options::{CosineOptions, MineOptions, RecallOptions};
use crate::outputs::{Hardest, Mined, Ranks, RetrievalReport};

/// As [`crate::cpu::cosine_matrix`].
///
/// # Errors
/// As [`row_norms`](super::host::row_norms).
pub fn cosine_matrix<T: Element, O: Element<Acc = T::Acc>>(
    cuda: &Cuda,
    x: BatchRef<'_, T>,
    y: BatchRef<'_, T>,
    options: &CosineOptions,
    mut out: BatchMut<'_, O>,
) -> Result<()> {
    const OP: &str = "cosine_matrix";
    let (batch, n, m, d) = (x.batch(), x.rows(), y.rows(), x.cols());
    let batches = [batch, y.batch(), out.batch()];
    check::cosine_matrix(OP, batches, (n, d), (m, y.cols()), (out.rows(), out.cols()), options.scale)?;
    let session = Session::begin(OP, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let bytes = cosine_matrix_workspace_bytes(batch, n, m, d, T::DTYPE, options.normalization)?;
    let (_x, x) = session.upload_batch(x)?;
    let (_y, y) = session.upload_batch(y)?;
    let len = batch.saturating_mul(n).saturating_mul(m);
    let result = session.alloc_of::<O>(len)?;
    let workspace = session.alloc(bytes)?;
    let raw_out = RawBatch {
        ptr: result.raw(len).ptr,
        batch,
        rows: n,
        cols: m,
        row_stride: m,
        batch_stride: n * m,
        dtype: O::DTYPE,
    };
    let args = RawCosineMatrix { x, y, options, out: raw_out, workspace: workspace.workspace() };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { cosine_matrix_raw(cuda.kernels(), cuda.stream(), &args) }?;
    let dense = session.download_vec::<O>(&result, len)?;
    for b in 0..batch {
        write_rows(&dense[b * n * m..][..n * m], &mut out.matrix_mut(b));
    }
    Ok(())
}

/// Device memory for the results of one direction.
struct HardestBuffers {
    value: Buffer,
    index: Buffer,
    second: Option<Buffer>,
    anchors: usize,
}

impl HardestBuffers {
    fn new(session: &Session<'_>, anchors: usize, second: bool) -> Result<Self> {
        Ok(Self {
            value: session.alloc_of::<f32>(anchors)?,
            index: session.alloc_of::<i32>(anchors)?,
            second: if second { Some(session.alloc_of::<f32>(anchors)?) } else { None },
            anchors,
        })
    }

    fn raw(&self) -> RawHardest {
        RawHardest {
            value: self.value.raw(self.anchors),
            index: self.index.raw(self.anchors),
            second: self.second.as_ref().map_or(RawBuf::NULL, |b| b.raw(self.anchors)),
        }
    }

    fn download<A: Accum>(&self, session: &Session<'_>) -> Result<Hardest<A>> {
        let second = self.second.as_ref().map(|b| session.download_vec::<f32>(b, self.anchors)).transpose()?;
        Ok(Hardest {
            value: widen(session.download_vec(&self.value, self.anchors)?),
            index: session.download_vec(&self.index, self.anchors)?,
            second: widen(second.unwrap_or_default()),
        })
    }
}

fn raw_groups(groups: Option<&[Buffer; 2]>, n: usize, m: usize) -> Option<RawGroups> {
    groups.map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(m) })
}

/// As [`crate::cpu::mine`].
///
/// # Errors
/// As [`row_norms`](super::host::row_norms).
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
        groups: raw_groups(groups.as_ref(), n, m),
        positive: positive.raw(pairs),
        rows: rows.raw(),
        cols: cols.raw(),
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { mine_raw(cuda.kernels(), cuda.stream(), &args) }?;
    Ok(Mined {
        positive: widen(session.download_vec(&positive, pairs)?),
        rows: rows.download(&session)?,
        cols: cols.download(&session)?,
    })
}

/// As [`crate::cpu::ranks`].
///
/// # Errors
/// As [`row_norms`](super::host::row_norms).
pub fn ranks<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &RecallOptions<'_>,
) -> Result<Ranks> {
    const OP: &str = "ranks";
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    let ids = options.groups.map(|g| (g.rows.len(), g.cols.len()));
    check::mine(OP, (n, d), (m, y.cols()), ids)?;
    let session = Session::begin(OP, cuda)?;
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
        groups: raw_groups(groups.as_ref(), n, m),
        ties: options.ties,
        rows: rows.raw(n),
        cols: cols.raw(m),
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { ranks_raw(cuda.kernels(), cuda.stream(), &args) }?;
    Ok(Ranks { rows: session.download_vec(&rows, n)?, cols: session.download_vec(&cols, m)? })
}

/// As [`crate::cpu::recall`].
///
/// # Errors
/// As [`row_norms`](super::host::row_norms).
pub fn recall<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &RecallOptions<'_>,
) -> Result<RetrievalReport> {
    ranks(cuda, x, y, options).map(|ranks| RetrievalReport::from_ranks(&ranks))
}
