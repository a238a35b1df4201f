//! Matrices in device memory with checked extents, over cudarc's views.

use cudarc::driver::{
    CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop, ValidAsZeroBits,
};

use super::descriptor::{RawBatch, RawBuf, RawMat};
use super::gather::RawUpstream;
use super::goal::DeviceGroups;
use super::goal_plan::RawGroups;
use super::kernels::Kernels;
use super::weighted_grad::Upstream;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::matrix::{batch_span, check_row_stride, span};
use crate::mined_triplet::MinedTripletReport;
use crate::outputs::{GradReport, StepReport};
use crate::pairwise::PairwiseReport;

/// An element type that the kernels exist for: `f32`, `f16`, `bf16`.
pub trait DeviceElement: Element<Acc = f32> + DeviceRepr + ValidAsZeroBits {}
impl DeviceElement for f32 {}
impl DeviceElement for half::f16 {}
impl DeviceElement for half::bf16 {}

// SAFETY: repr(C), plain numbers.
unsafe impl DeviceRepr for StepReport {}
// SAFETY: all fields are numbers, for which zero bits are a value.
unsafe impl ValidAsZeroBits for StepReport {}
// SAFETY: as for `StepReport`.
unsafe impl DeviceRepr for GradReport {}
// SAFETY: as for `StepReport`.
unsafe impl ValidAsZeroBits for GradReport {}
// SAFETY: as for `StepReport`.
unsafe impl DeviceRepr for PairwiseReport {}
// SAFETY: as for `StepReport`.
unsafe impl ValidAsZeroBits for PairwiseReport {}
// SAFETY: as for `StepReport`.
unsafe impl DeviceRepr for MinedTripletReport {}
// SAFETY: as for `StepReport`.
unsafe impl ValidAsZeroBits for MinedTripletReport {}

/// A borrowed row-major matrix in device memory.
#[derive(Debug)]
pub struct DeviceMat<'a, T> {
    view: CudaView<'a, T>,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

/// A mutably borrowed row-major matrix in device memory.
#[derive(Debug)]
pub struct DeviceMatMut<'a, T> {
    view: CudaViewMut<'a, T>,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

/// A borrowed batch of row-major matrices in device memory. The matrices may overlap.
#[derive(Debug)]
pub struct DeviceBatch<'a, T> {
    view: CudaView<'a, T>,
    batch: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    batch_stride: usize,
}

/// A mutably borrowed batch of row-major matrices in device memory. The matrices do not overlap.
#[derive(Debug)]
pub struct DeviceBatchMut<'a, T> {
    view: CudaViewMut<'a, T>,
    batch: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    batch_stride: usize,
}

fn check_len(op: &'static str, expected: Option<usize>, got: usize) -> Result<()> {
    let expected = expected.unwrap_or(usize::MAX);
    if got < expected { Err(Error::TooShort { op, arg: "view", expected, got }) } else { Ok(()) }
}

macro_rules! matrix {
    ($name:ident, $view:ident, $op:literal) => {
        impl<'a, T: DeviceElement> $name<'a, T> {
            /// A matrix whose rows follow each other without a gap.
            ///
            /// # Errors
            /// [`Error::TooShort`] if the view has fewer than `rows * cols` elements.
            pub fn new(view: $view<'a, T>, rows: usize, cols: usize) -> Result<Self> {
                Self::with_stride(view, rows, cols, cols)
            }

            /// A matrix with `row_stride` elements from one row to the next.
            ///
            /// # Errors
            /// [`Error::UnsupportedLayout`] if `row_stride < cols`, [`Error::TooShort`] if the view ends before the
            /// last element.
            pub fn with_stride(view: $view<'a, T>, rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
                check_row_stride($op, "row_stride", rows, cols, row_stride)?;
                check_len($op, span(rows, cols, row_stride), view.len())?;
                Ok(Self { view, rows, cols, row_stride })
            }

            /// Number of rows.
            pub const fn rows(&self) -> usize {
                self.rows
            }
            /// Number of columns.
            pub const fn cols(&self) -> usize {
                self.cols
            }
            /// Elements from one row to the next.
            pub const fn row_stride(&self) -> usize {
                self.row_stride
            }

            pub(crate) fn raw_at(&self, ptr: u64) -> RawMat {
                let Self { rows, cols, row_stride, .. } = *self;
                RawMat { ptr, rows, cols, row_stride, dtype: T::DTYPE }
            }
        }
    };
}
matrix!(DeviceMat, CudaView, "DeviceMat::with_stride");
matrix!(DeviceMatMut, CudaViewMut, "DeviceMatMut::with_stride");

macro_rules! batch {
    ($name:ident, $view:ident, $op:literal, $disjoint:literal) => {
        impl<'a, T: DeviceElement> $name<'a, T> {
            /// A batch without gaps between rows or matrices.
            ///
            /// # Errors
            /// [`Error::TooShort`] if the view has fewer than `batch * rows * cols` elements.
            pub fn new(view: $view<'a, T>, batch: usize, rows: usize, cols: usize) -> Result<Self> {
                Self::with_strides(view, batch, rows, cols, cols, rows.saturating_mul(cols))
            }

            /// A batch with explicit strides, in elements.
            ///
            /// # Errors
            /// [`Error::UnsupportedLayout`] if rows, or matrices that are written, overlap; [`Error::TooShort`] if the
            /// view ends before the last element.
            pub fn with_strides(
                view: $view<'a, T>,
                batch: usize,
                rows: usize,
                cols: usize,
                row_stride: usize,
                batch_stride: usize,
            ) -> Result<Self> {
                check_row_stride($op, "row_stride", rows, cols, row_stride)?;
                let one = span(rows, cols, row_stride).unwrap_or(usize::MAX);
                if $disjoint && batch > 1 && batch_stride < one {
                    return Err(Error::UnsupportedLayout {
                        op: $op,
                        arg: "batch_stride",
                        expected: format!("a batch stride of at least {one} elements"),
                        got: format!("batch stride {batch_stride}"),
                    });
                }
                check_len($op, batch_span(batch, rows, cols, row_stride, batch_stride), view.len())?;
                Ok(Self { view, batch, rows, cols, row_stride, batch_stride })
            }

            /// Number of matrices.
            pub const fn batch(&self) -> usize {
                self.batch
            }
            /// Rows of each matrix.
            pub const fn rows(&self) -> usize {
                self.rows
            }
            /// Columns of each matrix.
            pub const fn cols(&self) -> usize {
                self.cols
            }

            pub(crate) fn raw_at(&self, ptr: u64) -> RawBatch {
                let Self { batch, rows, cols, row_stride, batch_stride, .. } = *self;
                RawBatch { ptr, batch, rows, cols, row_stride, batch_stride, dtype: T::DTYPE }
            }
        }
    };
}
batch!(DeviceBatch, CudaView, "DeviceBatch::with_strides", false);
batch!(DeviceBatchMut, CudaViewMut, "DeviceBatchMut::with_strides", true);

/// Hands out the addresses of an operation's operands on one stream, after checking that each belongs to the kernels'
/// context. The returned guards make other streams wait; they are kept until everything is enqueued.
#[derive(Clone, Copy)]
pub(crate) struct Binder<'s> {
    pub op: &'static str,
    pub kernels: &'s Kernels,
    pub stream: &'s CudaStream,
}

impl<'s> Binder<'s> {
    fn check<T>(&self, arg: &'static str, slice: &impl DeviceSlice<T>) -> Result<()> {
        self.kernels.check_context(self.op, arg, slice.stream().context())
    }

    pub(crate) fn mat<T: DeviceElement>(
        &self,
        arg: &'static str,
        m: &'s DeviceMat<'_, T>,
    ) -> Result<(RawMat, SyncOnDrop<'s>)> {
        self.check(arg, &m.view)?;
        let (ptr, guard) = m.view.device_ptr(self.stream);
        Ok((m.raw_at(ptr), guard))
    }

    pub(crate) fn mat_mut<T: DeviceElement>(
        &self,
        arg: &'static str,
        m: &'s mut DeviceMatMut<'_, T>,
    ) -> Result<(RawMat, SyncOnDrop<'s>)> {
        self.check(arg, &m.view)?;
        let raw = m.raw_at(0);
        let (ptr, guard) = m.view.device_ptr_mut(self.stream);
        Ok((RawMat { ptr, ..raw }, guard))
    }

    pub(crate) fn batch<T: DeviceElement>(
        &self,
        arg: &'static str,
        m: &'s DeviceBatch<'_, T>,
    ) -> Result<(RawBatch, SyncOnDrop<'s>)> {
        self.check(arg, &m.view)?;
        let (ptr, guard) = m.view.device_ptr(self.stream);
        Ok((m.raw_at(ptr), guard))
    }

    pub(crate) fn batch_mut<T: DeviceElement>(
        &self,
        arg: &'static str,
        m: &'s mut DeviceBatchMut<'_, T>,
    ) -> Result<(RawBatch, SyncOnDrop<'s>)> {
        self.check(arg, &m.view)?;
        let raw = m.raw_at(0);
        let (ptr, guard) = m.view.device_ptr_mut(self.stream);
        Ok((RawBatch { ptr, ..raw }, guard))
    }

    pub(crate) fn buf<T>(&self, arg: &'static str, view: &'s CudaView<'_, T>) -> Result<(RawBuf, SyncOnDrop<'s>)> {
        self.check(arg, view)?;
        let (ptr, guard) = view.device_ptr(self.stream);
        Ok((RawBuf::new(ptr, view.len()), guard))
    }

    pub(crate) fn buf_mut<T>(
        &self,
        arg: &'static str,
        view: &'s mut CudaViewMut<'_, T>,
    ) -> Result<(RawBuf, SyncOnDrop<'s>)> {
        self.check(arg, view)?;
        let len = view.len();
        let (ptr, guard) = view.device_ptr_mut(self.stream);
        Ok((RawBuf::new(ptr, len), guard))
    }

    pub(crate) fn upstream(&self, upstream: &'s Upstream<'_>) -> Result<(RawUpstream, Option<SyncOnDrop<'s>>)> {
        match upstream {
            Upstream::Host(value) => Ok((RawUpstream::Host(*value), None)),
            Upstream::Device(view) => {
                let (buf, guard) = self.buf("upstream", view)?;
                Ok((RawUpstream::Device(buf), Some(guard)))
            }
        }
    }

    pub(crate) fn groups(&self, groups: &'s DeviceGroups<'_>) -> Result<(RawGroups, [SyncOnDrop<'s>; 2])> {
        let (rows, row_guard) = self.buf("groups.rows", &groups.rows)?;
        let (cols, col_guard) = self.buf("groups.cols", &groups.cols)?;
        Ok((RawGroups { rows, cols }, [row_guard, col_guard]))
    }
}
