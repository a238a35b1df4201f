//! Row norms, L2 normalisation and its Jacobian.

use cudarc::driver::{CudaStream, CudaViewMut};

use super::descriptor::{RawBuf, RawMat, check_disjoint};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::prepare::{BLOCK, by_dtype, row_blocks, rows_aligned};
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat, DeviceMatMut};
use crate::check;
use crate::dtype::{DType, GradientOf};
use crate::error::{Error, Result};
use crate::options::WriteMode;

params! {
    /// Twin of the struct in `kernels/params/row_norms.h`.
    RowNormsParams: 56 {
        x: u64,
        norms: u64,
        unit: u64,
        ldx: i64,
        ld_unit: i64,
        rows: u32,
        d: u32,
        aligned: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/row_norms.h`.
    NormalizeBackwardParams: 64 {
        x: u64,
        grad: u64,
        dx: u64,
        ldx: i64,
        ld_grad: i64,
        ld_dx: i64,
        rows: u32,
        d: u32,
        aligned: u32,
        accumulate: u32,
    }
}

/// The operations on plain pointers.
pub(crate) mod raw {
    use super::{
        BLOCK, CudaStream, DType, Kernels, NormalizeBackwardParams, RawBuf, RawMat, Result, RowNormsParams, WriteMode,
        by_dtype, check, check_disjoint, gradient_kernel, launch, row_blocks, rows_aligned, same_dtype,
    };

    const KERNELS: [&str; 3] = ["row_norms_f32", "row_norms_f16", "row_norms_bf16"];

    fn aligned(m: &RawMat) -> bool {
        rows_aligned(&(*m).into())
    }

    /// Euclidean norm of every row of `x` into `norms` (f32); see [`row_norms`](super::row_norms).
    ///
    /// # Errors
    /// As [`row_norms`](super::row_norms), and [`Error::BadPointer`](crate::Error::BadPointer),
    /// [`Error::Overlap`](crate::Error::Overlap).
    ///
    /// # Safety
    /// `x` and `norms` are valid on the stream's device for their extents until the enqueued work has run.
    pub unsafe fn row_norms(kernels: &Kernels, stream: &CudaStream, x: &RawMat, norms: &RawBuf) -> Result<()> {
        const OP: &str = "row_norms";
        check::row_norms(OP, (x.rows, x.cols), norms.len)?;
        let source = x.check(OP, "x")?;
        let out = norms.check::<f32>(OP, "norms", x.rows)?;
        check_disjoint(OP, &[("norms", out)], &[("x", source)])?;
        kernels.check_stream(OP, stream)?;
        if x.rows == 0 {
            return Ok(());
        }
        let params = RowNormsParams {
            x: x.ptr,
            norms: norms.ptr,
            unit: 0,
            ldx: x.row_stride as i64,
            ld_unit: 0,
            rows: x.rows as u32,
            d: x.cols as u32,
            aligned: u32::from(aligned(x)),
            pad_: 0,
        };
        // SAFETY: the extents were checked, the pointers are valid by the caller's promise.
        unsafe { launch(kernels, stream, by_dtype(x.dtype, KERNELS), (row_blocks(x.rows), 1, 1), BLOCK, 0, &params) }
    }

    /// `x_i / ‖x_i‖` into `out`, of the type of `x`; see [`normalize`](super::normalize).
    ///
    /// # Errors
    /// As [`row_norms`].
    ///
    /// # Safety
    /// As [`row_norms`].
    pub unsafe fn normalize(kernels: &Kernels, stream: &CudaStream, x: &RawMat, out: &RawMat) -> Result<()> {
        const OP: &str = "normalize";
        check::normalize(OP, (x.rows, x.cols), (out.rows, out.cols))?;
        same_dtype(OP, "out", x.dtype, out.dtype)?;
        let source = x.check(OP, "x")?;
        check_disjoint(OP, &[("out", out.check(OP, "out")?)], &[("x", source)])?;
        kernels.check_stream(OP, stream)?;
        if x.rows == 0 {
            return Ok(());
        }
        let params = RowNormsParams {
            x: x.ptr,
            norms: 0,
            unit: out.ptr,
            ldx: x.row_stride as i64,
            ld_unit: out.row_stride as i64,
            rows: x.rows as u32,
            d: x.cols as u32,
            aligned: u32::from(aligned(x)) | u32::from(aligned(out)) << 1,
            pad_: 0,
        };
        // SAFETY: as above.
        unsafe { launch(kernels, stream, by_dtype(x.dtype, KERNELS), (row_blocks(x.rows), 1, 1), BLOCK, 0, &params) }
    }

    /// The Jacobian of the normalisation; see [`normalize_backward`](super::normalize_backward). `grad_unit` is f32, `dx`
    /// of the type of `x` or f32.
    ///
    /// # Errors
    /// As [`row_norms`].
    ///
    /// # Safety
    /// As [`row_norms`].
    pub unsafe fn normalize_backward(
        kernels: &Kernels,
        stream: &CudaStream,
        x: &RawMat,
        grad_unit: &RawMat,
        write: WriteMode,
        dx: &RawMat,
    ) -> Result<()> {
        const OP: &str = "normalize_backward";
        check::normalize_backward(OP, (x.rows, x.cols), (grad_unit.rows, grad_unit.cols), (dx.rows, dx.cols))?;
        same_dtype(OP, "grad_unit", DType::F32, grad_unit.dtype)?;
        let name = gradient_kernel(OP, "dx", x.dtype, dx.dtype, &BACKWARD)?;
        let inputs = [("x", x.check(OP, "x")?), ("grad_unit", grad_unit.check(OP, "grad_unit")?)];
        check_disjoint(OP, &[("dx", dx.check(OP, "dx")?)], &inputs)?;
        kernels.check_stream(OP, stream)?;
        if x.rows == 0 {
            return Ok(());
        }
        let params = NormalizeBackwardParams {
            x: x.ptr,
            grad: grad_unit.ptr,
            dx: dx.ptr,
            ldx: x.row_stride as i64,
            ld_grad: grad_unit.row_stride as i64,
            ld_dx: dx.row_stride as i64,
            rows: x.rows as u32,
            d: x.cols as u32,
            aligned: u32::from(aligned(x)),
            accumulate: u32::from(write == WriteMode::Accumulate),
        };
        // SAFETY: as above.
        unsafe { launch(kernels, stream, name, (row_blocks(x.rows), 1, 1), BLOCK, 0, &params) }
    }

    const BACKWARD: super::GradientKernels = super::GradientKernels {
        f32: "normalize_backward_f32_f32",
        f16: ["normalize_backward_f16_f16", "normalize_backward_f16_f32"],
        bf16: ["normalize_backward_bf16_bf16", "normalize_backward_bf16_f32"],
    };
}

/// The kernels of one operation by input and gradient type: the gradient as the input, then as f32.
pub(crate) struct GradientKernels {
    pub f32: &'static str,
    pub f16: [&'static str; 2],
    pub bf16: [&'static str; 2],
}

/// The kernel for inputs of type `x` and gradients of type `gradient`.
pub(crate) fn gradient_kernel(
    op: &'static str,
    arg: &'static str,
    x: DType,
    gradient: DType,
    kernels: &GradientKernels,
) -> Result<&'static str> {
    match (x, gradient) {
        (DType::F32, DType::F32) => Ok(kernels.f32),
        (DType::F16, DType::F16) => Ok(kernels.f16[0]),
        (DType::F16, DType::F32) => Ok(kernels.f16[1]),
        (DType::Bf16, DType::Bf16) => Ok(kernels.bf16[0]),
        (DType::Bf16, DType::F32) => Ok(kernels.bf16[1]),
        (DType::F64, _) => Err(Error::UnsupportedDType { op, arg: "x", expected: "f32, f16 or bf16", got: x }),
        _ => Err(Error::UnsupportedDType { op, arg, expected: "the type of `x`, or f32", got: gradient }),
    }
}

/// Refuses an operand of another type than `expected`.
pub(crate) fn same_dtype(op: &'static str, arg: &'static str, expected: DType, got: DType) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let expected = match expected {
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::F32 => "f32",
        DType::F64 => "f64",
    };
    Err(Error::UnsupportedDType { op, arg, expected, got })
}

/// `norms[i] = ‖x_i‖` (eq. 1), without overflow or underflow of the squares.
///
/// `x` is `(n, d)`, `norms` has `n` elements. A row with a NaN or an infinity has the norm NaN. Only enqueues one kernel;
/// deterministic; can be captured.
///
/// # Errors
/// [`Error::EmptyDim`], [`Error::ShapeMismatch`], [`Error::DeviceMismatch`] before anything is enqueued, and
/// [`Error::LaunchRefused`], [`Error::ContextPoisoned`] or [`Error::Driver`] from the driver.
pub fn row_norms<T: DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    norms: &mut CudaViewMut<'_, f32>,
) -> Result<()> {
    let bind = Binder { op: "row_norms", kernels, stream };
    kernels.check_stream(bind.op, stream)?;
    let scope = Scope::enter(bind.op, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (norms, _norms) = bind.buf_mut("norms", norms)?;
    scope.check()?;
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernel.
    unsafe { raw::row_norms(kernels, stream, &x, &norms) }
}

/// `out_i = x_i / ‖x_i‖` (eq. 2), both `(n, d)`. A zero row stays zero; a row with a NaN or an infinity becomes NaN.
///
/// Only enqueues one kernel; deterministic; can be captured.
///
/// # Errors
/// As [`row_norms`].
pub fn normalize<T: DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    out: &mut DeviceMatMut<'_, T>,
) -> Result<()> {
    let bind = Binder { op: "normalize", kernels, stream };
    kernels.check_stream(bind.op, stream)?;
    let scope = Scope::enter(bind.op, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (out, _out) = bind.mat_mut("out", out)?;
    scope.check()?;
    // SAFETY: as in `row_norms`.
    unsafe { raw::normalize(kernels, stream, &x, &out) }
}

/// `dx_i (+)= (g_i − x̂_i (x̂_i · g_i)) / ‖x_i‖` with `g` = `grad_unit`, the gradient with respect to the normalised rows
/// `x̂`; all `(n, d)`. Exactly 0 for a zero row.
///
/// Only enqueues one kernel; deterministic; can be captured.
///
/// # Errors
/// As [`row_norms`].
pub fn normalize_backward<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    grad_unit: &DeviceMat<'_, f32>,
    write: WriteMode,
    dx: &mut DeviceMatMut<'_, G>,
) -> Result<()> {
    let bind = Binder { op: "normalize_backward", kernels, stream };
    kernels.check_stream(bind.op, stream)?;
    let scope = Scope::enter(bind.op, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (grad_unit, _grad) = bind.mat("grad_unit", grad_unit)?;
    let (dx, _dx) = bind.mat_mut("dx", dx)?;
    scope.check()?;
    // SAFETY: as in `row_norms`.
    unsafe { raw::normalize_backward(kernels, stream, &x, &grad_unit, write, &dx) }
}
