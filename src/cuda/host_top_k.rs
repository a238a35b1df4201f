//! Mining of several negatives per anchor, on matrices in host memory; see [`host`](super::host).

use super::goal_plan::RawGroups;
use super::host::{Cuda, upload_groups, widen};
use super::host_memory::{Buffer, Session};
use super::top_k::{RawBank, RawSelected, RawTopK, mine_top_k_raw, mine_top_k_workspace_bytes};
use crate::check;
use crate::dtype::Element;
use crate::error::Result;
use crate::matrix::MatRef;
use crate::memory_bank::BankColumns;
use crate::top_k::{Selected, TopK, TopKOptions};

/// Device memory for what one direction selects.
struct SelectedBuffers {
    index: Buffer,
    value: Buffer,
    survivors: Buffer,
    anchors: usize,
    k: usize,
}

impl SelectedBuffers {
    fn new(session: &Session<'_>, anchors: usize, k: usize) -> Result<Self> {
        let places = anchors.saturating_mul(k);
        Ok(Self {
            index: session.alloc_of::<i32>(places)?,
            value: session.alloc_of::<f32>(places)?,
            survivors: session.alloc_of::<u32>(anchors)?,
            anchors,
            k,
        })
    }

    fn raw(&self) -> RawSelected {
        let places = self.anchors * self.k;
        RawSelected {
            index: self.index.raw(places),
            value: self.value.raw(places),
            survivors: self.survivors.raw(self.anchors),
        }
    }

    fn fetch<T: Element>(&self, session: &Session<'_>) -> Result<Selected<T::Acc>> {
        let places = self.anchors * self.k;
        Ok(Selected {
            k: self.k,
            index: session.download_vec(&self.index, places)?,
            value: widen(session.download_vec(&self.value, places)?),
            survivors: session.download_vec(&self.survivors, self.anchors)?,
        })
    }
}

/// As [`crate::cpu::mine_top_k`].
///
/// # Errors
/// Those of the CPU, [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) for `f64`, and those of the driver.
pub fn mine_top_k<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &TopKOptions<'_>,
) -> Result<TopK<T::Acc>> {
    const OP: &str = "mine_top_k";
    check::mine_top_k(OP, (x.rows(), x.cols()), (y.rows(), y.cols()), options)?;
    run(OP, cuda, x, y, None, options)
}

/// As [`crate::cpu::mine_top_k_with_bank`]; the bank's entries are copied to the device.
///
/// # Errors
/// As [`mine_top_k`], and those of the CPU for the bank.
pub fn mine_top_k_with_bank<T: Element>(
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    bank: &BankColumns<'_, T>,
    options: &TopKOptions<'_>,
) -> Result<TopK<T::Acc>> {
    const OP: &str = "mine_top_k_with_bank";
    let entries = bank.bank.embeddings();
    check::mine_top_k(OP, (x.rows(), x.cols()), (y.rows(), y.cols()), options)?;
    check::bank_columns(OP, (x.rows(), x.cols()), y.rows(), (entries.rows(), entries.cols()), bank.ids.len())?;
    run(OP, cuda, x, y, Some(bank), options)
}

fn run<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    extra: Option<&BankColumns<'_, T>>,
    options: &TopKOptions<'_>,
) -> Result<TopK<T::Acc>> {
    let (n, m, d) = (x.rows(), y.rows(), x.cols());
    let session = Session::begin(op, cuda)?;
    session.require_supported("x", T::DTYPE)?;
    let entries = extra.map(|extra| extra.bank.len());
    let bytes = mine_top_k_workspace_bytes(n, m, entries, d, T::DTYPE, options)?;
    let (_x, x) = session.upload_mat(x)?;
    let (_y, y) = session.upload_mat(y)?;
    let groups = upload_groups(&session, options.groups)?;
    let bank = extra.map(|extra| {
        let uploaded = session.upload_mat(extra.bank.embeddings())?;
        let ids = [session.upload(extra.ids)?, session.upload(extra.bank.ids())?];
        Ok((uploaded, ids, session.upload(extra.bank.stamps())?, extra.oldest()))
    });
    let bank = bank.transpose()?;
    let pairs = n.min(m);
    let positive = session.alloc_of::<f32>(pairs)?;
    let rows = SelectedBuffers::new(&session, n, options.k)?;
    let cols = SelectedBuffers::new(&session, m, options.k)?;
    let workspace = session.alloc(bytes)?;
    let args = RawTopK {
        x,
        y,
        options,
        groups: groups.as_ref().map(|[rows, cols]| RawGroups { rows: rows.raw(n), cols: cols.raw(m) }),
        bank: bank.as_ref().map(|((_, entries), [ids, entry_ids], stamps, oldest)| RawBank {
            entries: *entries,
            ids: ids.raw(n),
            entry_ids: entry_ids.raw(entries.rows),
            stamps: stamps.raw(entries.rows),
            oldest: *oldest,
        }),
        positive: positive.raw(pairs),
        rows: rows.raw(),
        cols: cols.raw(),
        workspace: workspace.workspace(),
    };
    // SAFETY: the buffers live until the session has waited for the stream.
    unsafe { mine_top_k_raw(cuda.kernels(), cuda.stream(), &args) }?;
    Ok(TopK {
        positive: widen(session.download_vec(&positive, pairs)?),
        rows: rows.fetch::<T>(&session)?,
        cols: cols.fetch::<T>(&session)?,
    })
}
