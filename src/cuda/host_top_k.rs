//! Mining of several negatives per anchor, on matrices in host memory; see [`host`](super::host).

use super::host::Cuda;
use crate::check;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::matrix::MatRef;
use crate::memory_bank::BankColumns;
use crate::top_k::{TopK, TopKOptions};

fn cpu_only<R>(op: &'static str) -> Result<R> {
    Err(Error::InvalidOption { op, arg: "backend", expected: "cpu".to_owned(), got: "cuda".to_owned() })
}

/// As [`crate::cpu::mine_top_k`]; refused on this backend.
///
/// # Errors
/// Those of the CPU, and [`Error::InvalidOption`].
pub fn mine_top_k<T: Element>(
    _cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &TopKOptions<'_>,
) -> Result<TopK<T::Acc>> {
    check::mine_top_k("mine_top_k", (x.rows(), x.cols()), (y.rows(), y.cols()), options)?;
    cpu_only("mine_top_k")
}

/// As [`crate::cpu::mine_top_k_with_bank`]; refused on this backend.
///
/// # Errors
/// Those of the CPU, and [`Error::InvalidOption`].
pub fn mine_top_k_with_bank<T: Element>(
    _cuda: &Cuda,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    bank: &BankColumns<'_, T>,
    options: &TopKOptions<'_>,
) -> Result<TopK<T::Acc>> {
    const OP: &str = "mine_top_k_with_bank";
    let entries = bank.bank.embeddings();
    check::mine_top_k(OP, (x.rows(), x.cols()), (y.rows(), y.cols()), options)?;
    check::bank_columns(OP, (x.rows(), x.cols()), y.rows(), (entries.rows(), entries.cols()), bank.ids.len())?;
    cpu_only(OP)
}
