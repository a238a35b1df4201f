//! Mining of several negatives per anchor on views of device memory.

use cudarc::driver::{CudaStream, CudaViewMut, SyncOnDrop};

use super::goal::DeviceGroups;
use super::kernels::Kernels;
use super::memory_bank::{BankViews, DeviceBankColumns};
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat};
use super::top_k::{OP, RawSelected, RawTopK, mine_top_k_raw};
use crate::error::{Error, Result};
use crate::top_k::TopKOptions;

/// Options of [`mine_top_k`].
#[derive(Debug)]
pub struct DeviceTopKOptions<'a, T> {
    /// The rules. Their `groups` are in host memory and have to be left out.
    pub rules: TopKOptions<'a>,
    /// Default: none.
    pub groups: Option<DeviceGroups<'a>>,
    /// Entries of earlier batches as further candidates of the rows; default: none.
    pub bank: Option<DeviceBankColumns<'a, T>>,
}

impl<T> Default for DeviceTopKOptions<'_, T> {
    fn default() -> Self {
        Self { rules: TopKOptions::default(), groups: None, bank: None }
    }
}

/// Outputs of one direction of [`mine_top_k`]; see [`Selected`](crate::Selected).
#[derive(Debug)]
pub struct DeviceSelected<'a> {
    /// `anchors × k` elements.
    pub index: CudaViewMut<'a, i32>,
    /// `anchors × k` elements.
    pub value: CudaViewMut<'a, f32>,
    /// One element per anchor.
    pub survivors: CudaViewMut<'a, u32>,
}

/// Outputs of [`mine_top_k`]; see [`TopK`](crate::TopK).
#[derive(Debug)]
pub struct DeviceTopK<'a> {
    /// `min(n, m)` elements.
    pub positive: CudaViewMut<'a, f32>,
    /// Anchors are the rows of `x`.
    pub rows: DeviceSelected<'a>,
    /// Anchors are the rows of `y`.
    pub cols: DeviceSelected<'a>,
}

/// Up to `k` negatives of every row of `x` (`n × d`) among the rows of `y` (`m × d`) and the other way round, by the rules of
/// the options (eq. 3d to 3i); with a bank also among its entries, which are candidates of the rows from index `m` on.
///
/// The meaning is that of [`cpu::mine_top_k`](crate::cpu::mine_top_k) and
/// [`cpu::mine_top_k_with_bank`](crate::cpu::mine_top_k_with_bank). `workspace` has
/// [`mine_top_k_workspace_bytes`](super::mine_top_k_workspace_bytes) bytes, whose contents do not matter before and mean
/// nothing after. Enqueues at most 5 kernels, with a bank 7; the similarities are never stored; allocates nothing on the
/// device, does not synchronise; can be captured. Bitwise the same from run to run and on every device of one architecture.
///
/// # Errors
/// Those of the CPU, [`Error::TooShort`], [`Error::DeviceMismatch`] before anything is enqueued, and
/// [`Error::LaunchRefused`], [`Error::ContextPoisoned`] or [`Error::Driver`] from the driver.
pub fn mine_top_k<T: DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    options: &DeviceTopKOptions<'_, T>,
    out: &mut DeviceTopK<'_>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    if options.rules.groups.is_some() {
        let (expected, got) = ("none: ids on the device go beside the rules".to_owned(), "some".to_owned());
        return Err(Error::InvalidOption { op: OP, arg: "options.rules.groups", expected, got });
    }
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let groups = options.groups.as_ref().map(|g| bind.groups(g)).transpose()?;
    let views = options.bank.as_ref().map(BankViews::new);
    let bank = views.as_ref().map(|views| views.bind(&bind)).transpose()?;
    let (positive, _positive) = bind.buf_mut("positive", &mut out.positive)?;
    let [(rows, _rows), (cols, _cols)] = [
        selected(&bind, ["rows.index", "rows.value", "rows.survivors"], &mut out.rows)?,
        selected(&bind, ["cols.index", "cols.value", "cols.survivors"], &mut out.cols)?,
    ];
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let args = RawTopK {
        x,
        y,
        options: &options.rules,
        groups: groups.as_ref().map(|(raw, _)| *raw),
        bank: bank.as_ref().map(|(raw, _)| *raw),
        positive,
        rows,
        cols,
        workspace,
    };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { mine_top_k_raw(kernels, stream, &args) }
}

fn selected<'s>(
    bind: &Binder<'s>,
    args: [&'static str; 3],
    out: &'s mut DeviceSelected<'_>,
) -> Result<(RawSelected, [SyncOnDrop<'s>; 3])> {
    let (index, a) = bind.buf_mut(args[0], &mut out.index)?;
    let (value, b) = bind.buf_mut(args[1], &mut out.value)?;
    let (survivors, c) = bind.buf_mut(args[2], &mut out.survivors)?;
    Ok((RawSelected { index, value, survivors }, [a, b, c]))
}
