//! Device memory of one call of the host-memory layer: allocated, filled, read back and freed on one stream.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaStream, DriverError, result};

use super::descriptor::{RawBatch, RawBuf, RawMat};
use super::driver::{alloc_failed, failed};
use super::host::Cuda;
use super::scope::Scope;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::matrix::{BatchRef, MatMut, MatRef, batch_span, span};
use crate::options::WriteMode;

/// Device memory that is freed when dropped, in the order of its stream.
pub(crate) struct Buffer {
    ptr: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let context = self.stream.context();
        // A failure here has a cause that an earlier call has reported, or that the next one will report.
        let Ok(_scope) = Scope::enter("Buffer::drop", context) else { return };
        // SAFETY: the memory came from the matching function, and work that uses it precedes this call in the stream.
        let _ = unsafe {
            if context.has_async_alloc() {
                result::free_async(self.ptr, self.stream.cu_stream())
            } else {
                // Waits for the work that uses the memory.
                result::free_sync(self.ptr)
            }
        };
    }
}

impl Buffer {
    /// The buffer as `len` elements of some type.
    pub(crate) const fn raw(&self, len: usize) -> RawBuf {
        RawBuf::new(self.ptr, len)
    }

    /// The buffer as a workspace.
    pub(crate) const fn workspace(&self) -> RawBuf {
        RawBuf::new(self.ptr, self.bytes)
    }
}

/// One call of the host-memory layer.
pub(crate) struct Session<'a> {
    op: &'static str,
    cuda: &'a Cuda,
    _scope: Scope<'a>,
}

impl<'a> Session<'a> {
    pub(crate) fn begin(op: &'static str, cuda: &'a Cuda) -> Result<Self> {
        cuda.kernels().check_stream(op, cuda.stream())?;
        Ok(Self { op, cuda, _scope: Scope::enter(op, cuda.stream().context())? })
    }

    fn failed(&self, call: &'static str, error: DriverError) -> Error {
        self.cuda.kernels().note(error);
        failed(self.op, call, error)
    }

    pub(crate) fn alloc(&self, bytes: usize) -> Result<Buffer> {
        // The driver has no allocation of 0 bytes.
        let wanted = bytes.max(1);
        let stream = self.cuda.stream();
        let ptr = if stream.context().has_async_alloc() {
            // SAFETY: the stream belongs to the current context.
            unsafe { result::malloc_async(stream.cu_stream(), wanted) }
                .map_err(|e| alloc_failed(self.op, "cuMemAllocAsync", wanted, e))?
        } else {
            // SAFETY: a context is current.
            unsafe { result::malloc_sync(wanted) }.map_err(|e| alloc_failed(self.op, "cuMemAlloc", wanted, e))?
        };
        Ok(Buffer { ptr, bytes, stream: stream.clone() })
    }

    pub(crate) fn alloc_of<T>(&self, len: usize) -> Result<Buffer> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|&b| b <= isize::MAX as usize);
        let limit = isize::MAX as u64;
        self.alloc(bytes.ok_or(Error::TooLarge { op: self.op, arg: "buffer", limit, got: u64::MAX })?)
    }

    pub(crate) fn upload<T: Pod>(&self, data: &[T]) -> Result<Buffer> {
        let buffer = self.alloc_of::<T>(data.len())?;
        self.fill(&buffer, data)?;
        Ok(buffer)
    }

    fn fill<T: Pod>(&self, buffer: &Buffer, data: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer has room for the data; a copy from pageable memory has read it when the call returns.
        unsafe { result::memcpy_htod_async(buffer.ptr, bytes, self.cuda.stream().cu_stream()) }
            .map_err(|e| self.failed("cuMemcpyHtoDAsync", e))
    }

    /// Waits for the stream, and reports a fault of the kernels that ran on it.
    pub(crate) fn finish(&self) -> Result<()> {
        // SAFETY: the stream is alive and its context is current.
        unsafe { result::stream::synchronize(self.cuda.stream().cu_stream()) }
            .map_err(|e| self.failed("cuStreamSynchronize", e))
    }

    /// Copies from the start of `buffer`, and waits.
    pub(crate) fn download<T: Pod>(&self, buffer: &Buffer, out: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer has as many bytes; `out` stays borrowed until the stream has been waited for.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, buffer.ptr, self.cuda.stream().cu_stream()) };
        let finished = self.finish();
        copied.map_err(|e| self.failed("cuMemcpyDtoHAsync", e))?;
        finished
    }

    pub(crate) fn download_vec<T: Pod>(&self, buffer: &Buffer, len: usize) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); len];
        self.download(buffer, &mut out)?;
        Ok(out)
    }

    /// The matrix with its stride, gaps included.
    pub(crate) fn upload_mat<T: Element>(&self, m: MatRef<'_, T>) -> Result<(Buffer, RawMat)> {
        self.require_supported("x", T::DTYPE)?;
        let len = span(m.rows(), m.cols(), m.row_stride()).unwrap_or(0);
        let buffer = self.upload(&m.data()[..len])?;
        let raw = RawMat::new(buffer.ptr, m.rows(), m.cols(), T::DTYPE).with_row_stride(m.row_stride());
        Ok((buffer, raw))
    }

    /// The batch with its strides, gaps included.
    pub(crate) fn upload_batch<T: Element>(&self, m: BatchRef<'_, T>) -> Result<(Buffer, RawBatch)> {
        self.require_supported("x", T::DTYPE)?;
        let (batch, rows, cols) = (m.batch(), m.rows(), m.cols());
        let (row_stride, batch_stride) = (m.row_stride(), m.batch_stride());
        let len = batch_span(batch, rows, cols, row_stride, batch_stride).unwrap_or(0);
        let buffer = self.upload(&m.data()[..len])?;
        let raw = RawBatch { ptr: buffer.ptr, batch, rows, cols, row_stride, batch_stride, dtype: T::DTYPE };
        Ok((buffer, raw))
    }

    /// Room for a result of the shape of `out`, without gaps; with its values if they are to be added to.
    pub(crate) fn result_mat<T: Element>(&self, out: MatRef<'_, T>, write: WriteMode) -> Result<(Buffer, RawMat)> {
        self.require_supported("out", T::DTYPE)?;
        let buffer = self.alloc_of::<T>(out.rows().saturating_mul(out.cols()))?;
        if write == WriteMode::Accumulate {
            let dense: Vec<T> = (0..out.rows()).flat_map(|i| out.row(i)).copied().collect();
            self.fill(&buffer, &dense)?;
        }
        let raw = RawMat::new(buffer.ptr, out.rows(), out.cols(), T::DTYPE);
        Ok((buffer, raw))
    }

    /// The result as it came from the device; nothing of the caller's has been written yet.
    pub(crate) fn fetch<T: Element>(&self, buffer: &Buffer, out: &MatMut<'_, T>) -> Result<Vec<T>> {
        self.download_vec(buffer, out.rows() * out.cols())
    }

    pub(crate) fn require_supported(&self, arg: &'static str, dtype: DType) -> Result<()> {
        if dtype != DType::F64 {
            return Ok(());
        }
        Err(Error::UnsupportedDType { op: self.op, arg, expected: "f32, f16 or bf16 (f64 is CPU only)", got: dtype })
    }
}

/// Copies a result without gaps into the caller's rows.
pub(crate) fn write_rows<T: Element>(dense: &[T], out: &mut MatMut<'_, T>) {
    let cols = out.cols();
    for i in 0..out.rows() {
        out.row_mut(i).copy_from_slice(&dense[i * cols..][..cols]);
    }
}
