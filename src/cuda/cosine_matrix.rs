//! Matrices of similarities, stored.

use cudarc::driver::{CudaStream, CudaViewMut};

use super::descriptor::{RawBatch, RawBuf, check_disjoint, check_extent};
use super::kernels::Kernels;
use super::launch::params;
use super::plan::{SweepKernel, SweepShape};
use super::prepare::{Operand, Prepare, Wants};
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::split::{Split, split_depth, splits};
use super::tensor::{Binder, DeviceBatch, DeviceBatchMut, DeviceElement};
use super::tile_kernel::{TileKernel, launch_tiles, tile_plan};
use super::workspace::Layout;
use crate::check;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::options::CosineOptions;

const OP: &str = "cosine_matrix";

/// Blocks on a multiprocessor: 2 where its shared memory has room for their stages, which no architecture exceeds.
pub(super) const PER_SM: u32 = 2;

/// Bytes that a thread stores at a time where the output is aligned to them.
const VECTOR: usize = 8;

pub(super) const COSINE_MATRIX: TileKernel = TileKernel {
    warp: ["cosine_matrix_f32", "cosine_matrix_f16", "cosine_matrix_bf16"],
    group: ["cosine_matrix_hopper_f16", "cosine_matrix_hopper_bf16"],
    step: 2,
    small: ["cosine_matrix_small_hopper_f16", "cosine_matrix_small_hopper_bf16"],
    slices: None,
};

params! {
    /// Twin of the struct in `kernels/params/cosine_matrix.h`.
    CosineMatrixParams: 136 {
        x: u64,
        y: u64,
        inv_x: u64,
        inv_y: u64,
        out: u64,
        ldx: i64,
        ldy: i64,
        ldo: i64,
        x_matrix: i64,
        y_matrix: i64,
        out_matrix: i64,
        inv_x_matrix: i64,
        inv_y_matrix: i64,
        batch: u32,
        n: u32,
        m: u32,
        d: u32,
        scale: f32,
        out_type: u32,
        vectors: u32,
        pad_: u32,
    }
}

/// Arguments of [`raw::cosine_matrix`](super::raw::cosine_matrix).
#[derive(Clone, Copy, Debug)]
pub struct RawCosineMatrix<'a> {
    /// `(batch, n, d)`.
    pub x: RawBatch,
    /// `(batch, m, d)`, of the type of `x`.
    pub y: RawBatch,
    /// Normalisation, scale and precision.
    pub options: &'a CosineOptions,
    /// `(batch, n, m)`, f32, f16 or bf16.
    pub out: RawBatch,
    /// Bytes, at least [`cosine_matrix_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// What the tile kernels multiply.
enum Operands {
    /// Rows as they are, or copies.
    Prepared(Prepare),
    /// Rows of f32 in parts of bf16.
    Split(Split),
}

impl Operands {
    fn at(&self, base: u64) -> [Operand; 2] {
        match self {
            Self::Prepared(prepare) => [prepare.x(base), prepare.y(base)],
            Self::Split(split) => [split.x(base), split.y(base)],
        }
    }

    /// # Safety
    /// As [`Prepare::launch`] and [`Split::launch`].
    unsafe fn launch(&self, kernels: &Kernels, stream: &CudaStream, base: u64) -> Result<()> {
        // SAFETY: by the caller's promise.
        unsafe {
            match self {
                Self::Prepared(prepare) => prepare.launch(kernels, stream, base),
                Self::Split(split) => split.launch(kernels, stream, base),
            }
        }
    }
}

/// Features and type of the operands that are multiplied for rows of `d` elements of type `dtype`.
pub(super) fn multiplied(options: &CosineOptions, d: usize, dtype: DType) -> (usize, DType) {
    if splits(options.precision, dtype) { (split_depth(d), DType::Bf16) } else { (d, dtype) }
}

/// Where everything lies in the workspace.
struct Plan {
    operands: Operands,
    bytes: usize,
}

impl Plan {
    fn new(matrices: [&RawBatch; 2], options: &CosineOptions, any_layout: bool) -> Result<Self> {
        let mut layout = Layout::new(OP);
        let operands = if splits(options.precision, matrices[0].dtype) {
            Operands::Split(Split::plan(&mut layout, OP, matrices, options.normalization)?)
        } else {
            let wants = Wants { any_layout, ..Wants::default() };
            Operands::Prepared(Prepare::plan(&mut layout, OP, matrices, options.normalization, &wants)?)
        };
        Ok(Self { operands, bytes: layout.total() })
    }
}

/// Bytes of workspace that [`cosine_matrix`] needs for `batch` pairs of `x` (`n × d`) and `y` (`m × d`) of type `dtype`,
/// whatever the alignment and the strides of the operands. Of the options normalisation and precision matter. Host arithmetic
/// only.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn cosine_matrix_workspace_bytes(
    batch: usize,
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    options: &CosineOptions,
) -> Result<usize> {
    for (arg, extent) in [("x.batch", batch), ("x.rows", n), ("y.rows", m), ("x.cols", d)] {
        check_extent(OP, arg, extent)?;
    }
    // A batch of one and the same matrix needs no more.
    let matrix =
        |rows: usize| RawBatch { ptr: 0, batch, rows, cols: d, row_stride: d, batch_stride: usize::MAX, dtype };
    Ok(Plan::new([&matrix(n), &matrix(m)], options, true)?.bytes)
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawCosineMatrix<'_>) -> Result<Plan> {
    let RawCosineMatrix { x, y, options, out, workspace } = a;
    let batch = [x.batch, y.batch, out.batch];
    check::cosine_matrix(OP, batch, (x.rows, x.cols), (y.rows, y.cols), (out.rows, out.cols), options.scale)?;
    same_dtype(OP, "y", x.dtype, y.dtype)?;
    let inputs = [("x", x.check(OP, "x")?), ("y", y.check(OP, "y")?)];
    let result = ("out", out.check_output(OP, "out")?);
    if !(options.scale as f32).is_finite() {
        let expected = "a number that f32 can hold".to_owned();
        return Err(Error::InvalidOption { op: OP, arg: "options.scale", expected, got: options.scale.to_string() });
    }
    let plan = Plan::new([x, y], options, false)?;
    let workspace = ("workspace", workspace.check_workspace(OP, plan.bytes)?);
    check_disjoint(OP, &[result, workspace], &inputs)?;
    Ok(plan)
}

/// Whether every group of elements that a thread stores together starts on a multiple of [`VECTOR`] bytes.
fn vectors(out: &RawBatch) -> bool {
    let aligned = |elements: usize| elements.wrapping_mul(out.dtype.size()).is_multiple_of(VECTOR);
    out.ptr.is_multiple_of(VECTOR as u64) && aligned(out.row_stride) && (out.batch <= 1 || aligned(out.batch_stride))
}

fn kernel_params(a: &RawCosineMatrix<'_>, [x, y]: [Operand; 2], d: usize) -> CosineMatrixParams {
    CosineMatrixParams {
        x: x.ptr,
        y: y.ptr,
        inv_x: x.inv,
        inv_y: y.inv,
        out: a.out.ptr,
        ldx: x.row_stride as i64,
        ldy: y.row_stride as i64,
        ldo: a.out.row_stride as i64,
        x_matrix: x.batch_stride as i64,
        y_matrix: y.batch_stride as i64,
        out_matrix: a.out.batch_stride as i64,
        inv_x_matrix: x.inv_batch_stride as i64,
        inv_y_matrix: y.inv_batch_stride as i64,
        batch: a.x.batch as u32,
        n: a.x.rows as u32,
        m: a.y.rows as u32,
        d: d as u32,
        scale: a.options.scale as f32,
        out_type: match a.out.dtype {
            DType::F16 => 1,
            DType::Bf16 => 2,
            // The descriptors refuse f64.
            DType::F32 | DType::F64 => 0,
        },
        vectors: u32::from(vectors(&a.out)),
        pad_: 0,
    }
}

/// As [`cosine_matrix`], on plain pointers.
///
/// # Errors
/// As [`cosine_matrix`], and [`Error::BadPointer`], [`Error::Overlap`], [`Error::UnsupportedDType`].
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn cosine_matrix_raw(kernels: &Kernels, stream: &CudaStream, a: &RawCosineMatrix<'_>) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    let RawBatch { batch, rows: n, cols: d, dtype, .. } = a.x;
    let m = a.y.rows;
    if batch == 0 || n == 0 || m == 0 {
        return Ok(());
    }
    let (d, dtype) = multiplied(a.options, d, dtype);
    let tiles = tile_plan(kernels, SweepKernel::CosineMatrix, SweepShape { batch, n, m, d, dtype });
    let operands = plan.operands.at(a.workspace.ptr);
    let params = kernel_params(a, operands, d);
    let _scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the pointers are valid by the caller's promise.
    unsafe {
        plan.operands.launch(kernels, stream, a.workspace.ptr)?;
        launch_tiles(kernels, stream, &COSINE_MATRIX, &tiles, operands, &params)
    }
}

/// `out[b, i, j] = scale · x̂_bi · ŷ_bj` (eq. 3) for `x` (`batch × n × d`), `y` (`batch × m × d`) and `out`
/// (`batch × n × m`) of any of the three element types, accumulated in f32 and rounded once. f32 inputs are multiplied in f32, or
/// with [`Precision::SplitBf16`](crate::Precision::SplitBf16) on tensor cores, as precisely as it says.
///
/// An input may be one matrix for the whole batch (batch stride 0). `workspace` has [`cosine_matrix_workspace_bytes`]
/// bytes, whose contents do not matter before and mean nothing after. Enqueues at most 2 kernels; allocates nothing, does
/// not synchronise; can be captured. Bitwise the same from run to run, and for every position in the matrix and the batch.
///
/// # Errors
/// [`Error::EmptyDim`], [`Error::ShapeMismatch`], [`Error::InvalidOption`], [`Error::TooShort`], [`Error::TooLarge`],
/// [`Error::DeviceMismatch`] before anything is enqueued, and [`Error::LaunchRefused`], [`Error::ContextPoisoned`] or
/// [`Error::Driver`] from the driver.
pub fn cosine_matrix<T: DeviceElement, O: DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceBatch<'_, T>,
    y: &DeviceBatch<'_, T>,
    options: &CosineOptions,
    out: &mut DeviceBatchMut<'_, O>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.batch("x", x)?;
    let (y, _y) = bind.batch("y", y)?;
    let (out, _out) = bind.batch_mut("out", out)?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { cosine_matrix_raw(kernels, stream, &RawCosineMatrix { x, y, options, out, workspace }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Precision;

    const OUT: RawBatch =
        RawBatch { ptr: 256, batch: 2, rows: 3, cols: 6, row_stride: 6, batch_stride: 18, dtype: DType::F32 };

    #[test]
    fn vectors_need_every_row_aligned() {
        assert!(vectors(&OUT));
        assert!(!vectors(&RawBatch { ptr: 260, ..OUT }));
        assert!(!vectors(&RawBatch { row_stride: 7, batch_stride: 22, ..OUT }));
        assert!(!vectors(&RawBatch { batch_stride: 19, ..OUT }));
        assert!(!vectors(&RawBatch { dtype: DType::F16, ..OUT }));
        assert!(vectors(&RawBatch { dtype: DType::F16, row_stride: 8, batch_stride: 24, ..OUT }));
    }

    #[test]
    fn the_workspace_for_any_layout_covers_batches_with_gaps_and_repeated_matrices() {
        for precision in [Precision::Full, Precision::SplitBf16] {
            let options = CosineOptions { precision, ..CosineOptions::default() };
            let any = cosine_matrix_workspace_bytes(4, 10, 20, 33, DType::F32, &options).unwrap();
            for batch_stride in [0, 33, 330, 1000] {
                let matrix =
                    |rows| RawBatch { ptr: 256, batch: 4, rows, cols: 33, row_stride: 33, batch_stride, ..OUT };
                let plan = Plan::new([&matrix(10), &matrix(20)], &options, false).unwrap();
                assert!(plan.bytes <= any);
            }
        }
    }
}
