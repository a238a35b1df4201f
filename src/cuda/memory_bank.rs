//! A ring of embeddings in device memory.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, SyncOnDrop};

use super::descriptor::{RawBuf, RawMat};
use super::driver::{alloc_failed, failed};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat};
use super::top_k::RawBank;
use crate::check;
use crate::error::Result;
use crate::memory_bank::{BankState, extents, oldest};

const NEW: &str = "DeviceMemoryBank::new";
const PUSH: &str = "DeviceMemoryBank::push";

/// Threads of a block of `bank_push_*`, and rows that it copies.
const PUSH_BLOCK: u32 = 256;
const PUSH_ROWS: usize = 8;

params! {
    /// Twin of the struct in `kernels/params/memory_bank.h`.
    BankPushParams: 80 {
        src: u64,
        ids: u64,
        embeddings: u64,
        out_ids: u64,
        out_stamps: u64,
        ld: i64,
        stamp: u64,
        first: u32,
        rows: u32,
        capacity: u32,
        cursor: u32,
        d: u32,
        pad_: u32,
    }
}

/// As [`MemoryBank`](crate::MemoryBank), in device memory. Entries, ids and stamps are on the device; the cursor and the numbers
/// of entries and pushes, which do not depend on data, on the host: a captured push writes the same slots at every replay.
#[derive(Debug)]
pub struct DeviceMemoryBank<T> {
    embeddings: CudaSlice<T>,
    ids: CudaSlice<i64>,
    stamps: CudaSlice<u64>,
    capacity: usize,
    cols: usize,
    cursor: usize,
    len: usize,
    pushes: u64,
}

/// A bank as further candidates of the rows of `X`; see [`BankColumns`](crate::BankColumns).
#[derive(Debug)]
pub struct DeviceBankColumns<'a, T> {
    /// The entries.
    pub bank: &'a DeviceMemoryBank<T>,
    /// One id per row of `X`.
    pub ids: CudaView<'a, i64>,
    /// As on the host.
    pub self_within: Option<u64>,
}

impl<T: DeviceElement> DeviceMemoryBank<T> {
    /// An empty bank, with memory for all of its `capacity` slots of `cols` elements on the stream's device.
    ///
    /// # Errors
    /// As [`MemoryBank::new`](crate::MemoryBank::new), [`Error::OutOfMemory`](crate::Error::OutOfMemory), and others of the
    /// driver.
    pub fn new(stream: &Arc<CudaStream>, capacity: usize, cols: usize) -> Result<Self> {
        extents(NEW, capacity, cols)?;
        let _scope = Scope::enter(NEW, stream.context())?;
        let failed = |bytes| move |e: DriverError| alloc_failed(NEW, "cuMemAllocAsync", bytes, e);
        let elements = capacity * cols;
        Ok(Self {
            embeddings: stream.alloc_zeros(elements).map_err(failed(elements * size_of::<T>()))?,
            ids: stream.alloc_zeros(capacity).map_err(failed(8 * capacity))?,
            stamps: stream.alloc_zeros(capacity).map_err(failed(8 * capacity))?,
            capacity,
            cols,
            cursor: 0,
            len: 0,
            pushes: 0,
        })
    }

    /// Slots.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Slots that hold an entry; they are the first ones.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was pushed.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot that is written next.
    pub const fn cursor(&self) -> usize {
        self.cursor
    }

    /// Pushes so far.
    pub const fn pushes(&self) -> u64 {
        self.pushes
    }

    /// As [`MemoryBank::push`](crate::MemoryBank::push), of rows and ids on the device. Enqueues one kernel; allocates nothing,
    /// does not synchronise; can be captured.
    ///
    /// # Errors
    /// Those of the host, [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX` rows, and those of the driver; the bank is
    /// unchanged then.
    pub fn push(
        &mut self,
        kernels: &Kernels,
        stream: &CudaStream,
        x: &DeviceMat<'_, T>,
        ids: &CudaView<'_, i64>,
    ) -> Result<()> {
        let rows = x.rows();
        check::equal(PUSH, "x.cols", self.cols, x.cols())?;
        check::at_most(PUSH, "x.rows", check::MAX_ROWS, rows)?;
        let bind = Binder { op: PUSH, kernels, stream };
        kernels.check_stream(PUSH, stream)?;
        let scope = Scope::enter(PUSH, stream.context())?;
        let (x, _x) = bind.mat("x", x)?;
        let (ids, _ids) = bind.buf("ids", ids)?;
        check::equal(PUSH, "ids", rows, ids.len)?;
        let (mut embeddings, mut own_ids) = (self.embeddings.as_view_mut(), self.ids.as_view_mut());
        let mut stamps = self.stamps.as_view_mut();
        let (embeddings, _embeddings) = bind.buf_mut("bank", &mut embeddings)?;
        let (own_ids, _own_ids) = bind.buf_mut("bank", &mut own_ids)?;
        let (stamps, _stamps) = bind.buf_mut("bank", &mut stamps)?;
        scope.check()?;
        let first = rows.saturating_sub(self.capacity);
        let params = BankPushParams {
            src: x.ptr,
            ids: ids.ptr,
            embeddings: embeddings.ptr,
            out_ids: own_ids.ptr,
            out_stamps: stamps.ptr,
            ld: x.row_stride as i64,
            stamp: self.pushes + 1,
            first: first as u32,
            rows: rows as u32,
            capacity: self.capacity as u32,
            cursor: self.cursor as u32,
            d: self.cols as u32,
            pad_: 0,
        };
        let name = if size_of::<T>() == 2 { "bank_push_16" } else { "bank_push_32" };
        if rows > 0 {
            let grid = ((rows - first).div_ceil(PUSH_ROWS) as u32, 1, 1);
            // SAFETY: the views are borrowed, the extents are those of the kernel's header, and the guards make other
            // streams wait for it.
            unsafe { launch(kernels, stream, name, grid, PUSH_BLOCK, 0, &params) }?;
        }
        self.cursor = (self.cursor + rows) % self.capacity;
        self.len = self.len.saturating_add(rows).min(self.capacity);
        self.pushes += 1;
        Ok(())
    }

    /// Everything that the bank holds, in the form that a bank in host memory has too. Copies and waits.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn state(&self, stream: &Arc<CudaStream>) -> Result<BankState<T>> {
        const OP: &str = "DeviceMemoryBank::state";
        let _scope = Scope::enter(OP, stream.context())?;
        let copy = |e: DriverError| failed(OP, "cuMemcpyDtoHAsync", e);
        let (mut embeddings, mut ids, mut stamps) = (Vec::new(), Vec::new(), Vec::new());
        // The driver has no copy of 0 bytes.
        if self.len > 0 {
            embeddings = stream.clone_dtoh(&self.embeddings.slice(..self.len * self.cols)).map_err(copy)?;
            ids = stream.clone_dtoh(&self.ids.slice(..self.len)).map_err(copy)?;
            stamps = stream.clone_dtoh(&self.stamps.slice(..self.len)).map_err(copy)?;
        }
        stream.synchronize().map_err(|e| failed(OP, "cuStreamSynchronize", e))?;
        let Self { capacity, cols, cursor, pushes, .. } = *self;
        Ok(BankState { capacity, cols, cursor, pushes, embeddings, ids, stamps })
    }

    /// The bank that `state` was taken from, on the stream's device. Allocates, copies and waits.
    ///
    /// # Errors
    /// As [`MemoryBank::restore`](crate::MemoryBank::restore) and [`Self::new`].
    pub fn restore(stream: &Arc<CudaStream>, state: &BankState<T>) -> Result<Self> {
        const OP: &str = "DeviceMemoryBank::restore";
        state.check()?;
        let mut bank = Self::new(stream, state.capacity, state.cols)?;
        let _scope = Scope::enter(OP, stream.context())?;
        let copy = |e: DriverError| failed(OP, "cuMemcpyHtoDAsync", e);
        let len = state.ids.len();
        if len > 0 {
            let mut embeddings = bank.embeddings.slice_mut(..len * state.cols);
            stream.memcpy_htod(&state.embeddings, &mut embeddings).map_err(copy)?;
            stream.memcpy_htod(&state.ids, &mut bank.ids.slice_mut(..len)).map_err(copy)?;
            stream.memcpy_htod(&state.stamps, &mut bank.stamps.slice_mut(..len)).map_err(copy)?;
        }
        stream.synchronize().map_err(|e| failed(OP, "cuStreamSynchronize", e))?;
        (bank.cursor, bank.len, bank.pushes) = (state.cursor, len, state.pushes);
        Ok(bank)
    }
}

/// A bank's views, which outlive the addresses that are taken of them.
pub(super) struct BankViews<'a, T> {
    embeddings: CudaView<'a, T>,
    entry_ids: CudaView<'a, i64>,
    stamps: CudaView<'a, u64>,
    ids: &'a CudaView<'a, i64>,
    entries: (usize, usize),
    oldest: u64,
}

impl<'a, T: DeviceElement> BankViews<'a, T> {
    pub(super) fn new(columns: &'a DeviceBankColumns<'a, T>) -> Self {
        let bank = columns.bank;
        Self {
            embeddings: bank.embeddings.as_view(),
            entry_ids: bank.ids.as_view(),
            stamps: bank.stamps.as_view(),
            ids: &columns.ids,
            entries: (bank.len, bank.cols),
            oldest: oldest(bank.pushes, columns.self_within),
        }
    }

    pub(super) fn bind<'s>(&'s self, bind: &Binder<'s>) -> Result<(RawBank, [SyncOnDrop<'s>; 4])> {
        let (embeddings, a) = bind.buf("bank", &self.embeddings)?;
        let (ids, b) = bind.buf("bank.ids", self.ids)?;
        let (entry_ids, c) = bind.buf("bank.entry_ids", &self.entry_ids)?;
        let (stamps, d) = bind.buf("bank.stamps", &self.stamps)?;
        let (len, cols) = self.entries;
        let entries = RawMat::new(embeddings.ptr, len, cols, T::DTYPE);
        let first = |buf: RawBuf| RawBuf::new(buf.ptr, len);
        let raw = RawBank { entries, ids, entry_ids: first(entry_ids), stamps: first(stamps), oldest: self.oldest };
        Ok((raw, [a, b, c, d]))
    }
}
