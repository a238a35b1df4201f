//! Gradient of given sparse weights.

use cudarc::driver::{CudaStream, CudaView, CudaViewMut};

use super::descriptor::{Named, RawBuf, RawMat, check_disjoint, check_extent};
use super::gather::{Gather, RawUpstream, check_gradient_type};
use super::inverse_index::{InvertParams, SidePlan};
use super::kernels::Kernels;
use super::prepare::{Prepare, Wants};
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat, DeviceMatMut};
use super::workspace::Layout;
use crate::check;
use crate::dtype::{DType, GradientOf};
use crate::error::Result;
use crate::options::{Normalization, WriteMode};
use crate::outputs::GradReport;

const OP: &str = "weighted_grad";

/// Arguments of [`raw::weighted_grad`](super::raw::weighted_grad).
#[derive(Clone, Copy, Debug)]
pub struct RawWeightedGrad {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`.
    pub y: RawMat,
    /// Row of `x` of each triple, i32.
    pub rows: RawBuf,
    /// Row of `y` of each triple, i32.
    pub cols: RawBuf,
    /// Weight of each triple, f32.
    pub values: RawBuf,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Factor on the gradient.
    pub upstream: RawUpstream,
    /// Whether the gradient is added to what is there.
    pub write: WriteMode,
    /// `(n, d)`, of the type of `x` or f32.
    pub dx: RawMat,
    /// `(m, d)`, of the type of `dx`.
    pub dy: RawMat,
    /// One [`GradReport`].
    pub report: RawBuf,
    /// Bytes, at least [`weighted_grad_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// Where everything lies in the workspace.
struct Plan {
    prepare: Prepare,
    sides: [SidePlan; 2],
    bytes: usize,
}

impl Plan {
    fn new(x: &RawMat, y: &RawMat, triples: usize, normalization: Normalization, any_layout: bool) -> Result<Self> {
        let mut layout = Layout::new(OP);
        let wants = Wants { norms: normalization == Normalization::L2, any_layout, ..Wants::default() };
        let prepare = Prepare::plan(&mut layout, OP, [&(*x).into(), &(*y).into()], normalization, &wants)?;
        let side = |layout: &mut Layout, of: &RawMat| SidePlan::new(layout, [of.rows, of.cols], triples);
        let sides = [side(&mut layout, x)?, side(&mut layout, y)?];
        Ok(Self { prepare, sides, bytes: layout.total() })
    }
}

/// Bytes of workspace that [`weighted_grad`] needs for `x` (`n × d`) and `y` (`m × d`) of type `dtype` and `triples`
/// triples, whatever the alignment of the operands. Host arithmetic only.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge).
pub fn weighted_grad_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    triples: usize,
    normalization: Normalization,
) -> Result<usize> {
    for (arg, extent) in [("x.rows", n), ("y.rows", m), ("x.cols", d), ("w.rows", triples)] {
        check_extent(OP, arg, extent)?;
    }
    let (x, y) = (RawMat::new(0, n, d, dtype), RawMat::new(0, m, d, dtype));
    Ok(Plan::new(&x, &y, triples, normalization, true)?.bytes)
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawWeightedGrad) -> Result<Plan> {
    let (x, y) = ((a.x.rows, a.x.cols), (a.y.rows, a.y.cols));
    let (dx, dy) = ((a.dx.rows, a.dx.cols), (a.dy.rows, a.dy.cols));
    check::weighted_grad(OP, x, y, [a.rows.len, a.cols.len, a.values.len], dx, dy)?;
    check_extent(OP, "x.rows + y.rows", a.x.rows.saturating_add(a.y.rows))?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    check_gradient_type(OP, "dx", a.x.dtype, a.dx.dtype)?;
    same_dtype(OP, "dy", a.dx.dtype, a.dy.dtype)?;
    let mut inputs: [Named; 6] = [
        ("x", a.x.check(OP, "x")?),
        ("y", a.y.check(OP, "y")?),
        ("w.rows", a.rows.check::<i32>(OP, "w.rows", a.rows.len)?),
        ("w.cols", a.cols.check::<i32>(OP, "w.cols", a.cols.len)?),
        ("w.values", a.values.check::<f32>(OP, "w.values", a.values.len)?),
        ("upstream", RawBuf::NULL.check::<f32>(OP, "upstream", 0)?),
    ];
    if let RawUpstream::Device(buf) = a.upstream {
        inputs[5].1 = buf.check::<f32>(OP, "upstream", 1)?;
    }
    let dx = a.dx.check(OP, "dx")?;
    let dy = a.dy.check(OP, "dy")?;
    let report = a.report.check::<GradReport>(OP, "report", 1)?;
    let plan = Plan::new(&a.x, &a.y, a.rows.len, a.normalization, false)?;
    let workspace = a.workspace.check_workspace(OP, plan.bytes)?;
    check_disjoint(OP, &[("dx", dx), ("dy", dy), ("report", report), ("workspace", workspace)], &inputs)?;
    Ok(plan)
}

/// As [`weighted_grad`], on plain pointers.
///
/// # Errors
/// As [`weighted_grad`], and [`Error::BadPointer`](crate::Error::BadPointer), [`Error::Overlap`](crate::Error::Overlap),
/// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn weighted_grad_raw(kernels: &Kernels, stream: &CudaStream, a: &RawWeightedGrad) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    let base = a.workspace.ptr;
    let [x, y] = &plan.sides;
    let addresses = [a.rows.ptr, a.cols.ptr, a.report.ptr];
    let index = InvertParams::new([x, y], base, [a.x.rows, a.y.rows], addresses, a.rows.len);
    let (inv, exponent) = match a.normalization {
        Normalization::L2 => (plan.prepare.row_inv(base), plan.prepare.row_exponent(base)),
        Normalization::None => ([0; 2], [0; 2]),
    };
    let (upstream, factor) = a.upstream.parts();
    let gather = Gather {
        op: OP,
        operands: [plan.prepare.x(base), plan.prepare.y(base)],
        norms: [0, 1].map(|i| [inv[i], exponent[i]]),
        terms: [x.terms(base, a.cols.ptr, a.values.ptr), y.terms(base, a.rows.ptr, a.values.ptr)],
        out: [a.dx, a.dy],
        dtype: a.x.dtype,
        upstream,
        factor,
        write: a.write,
        pairs: 0,
        entries: a.rows.len,
        // The second word of the report.
        overflow: a.report.ptr + size_of::<u32>() as u64,
    };
    let scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
    // caller's promise.
    unsafe {
        plan.prepare.launch(kernels, stream, base)?;
        index.launch(kernels, stream)?;
        gather.launch(kernels, stream)?;
    }
    drop(scope);
    Ok(())
}

/// A sparse weight matrix as triples in device memory; duplicates add up.
#[derive(Debug)]
pub struct DeviceTriples<'a> {
    /// Row of `X`.
    pub rows: CudaView<'a, i32>,
    /// Row of `Y`.
    pub cols: CudaView<'a, i32>,
    /// Weight.
    pub values: CudaView<'a, f32>,
}

/// A factor on the gradient.
#[derive(Debug)]
pub enum Upstream<'a> {
    /// Known to the host when the work is enqueued.
    Host(f32),
    /// The first element, read when the work runs.
    Device(CudaView<'a, f32>),
}

impl Default for Upstream<'_> {
    fn default() -> Self {
        Self::Host(1.0)
    }
}

/// Options of [`weighted_grad`].
#[derive(Debug, Default)]
pub struct DeviceGradOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Default: 1.
    pub upstream: Upstream<'a>,
    /// Default: [`WriteMode::Overwrite`].
    pub write: WriteMode,
}

/// `dX (+)= u W Y` and `dY (+)= u Wᵀ X` (eq. 9) for the sparse `W` of the triples, through the Jacobian of the
/// normalisation if the rows are normalised.
///
/// `x` and `dx` are `(n, d)`, `y` and `dy` `(m, d)`; `report` has one element, `workspace`
/// [`weighted_grad_workspace_bytes`] bytes. A triple with an index out of range is left out and counted. The terms of a
/// row are added in the order of the triples. Enqueues at most 3 kernels for up to 2048 triples and at most 6 beyond, one more
/// from 8192 triples on, from 2¹⁸ rows on and from 2²⁷; allocates nothing, does not synchronise; can be captured. If a launch is refused, `dx` and
/// `dy` are unchanged.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch),
/// [`Error::TooShort`](crate::Error::TooShort), [`Error::TooLarge`](crate::Error::TooLarge),
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) before anything is enqueued, and
/// [`Error::LaunchRefused`](crate::Error::LaunchRefused), [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or
/// [`Error::Driver`](crate::Error::Driver) from the driver.
#[allow(clippy::too_many_arguments)]
pub fn weighted_grad<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    w: &DeviceTriples<'_>,
    options: &DeviceGradOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    dy: &mut DeviceMatMut<'_, G>,
    report: &mut CudaViewMut<'_, GradReport>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let (rows, _rows) = bind.buf("w.rows", &w.rows)?;
    let (cols, _cols) = bind.buf("w.cols", &w.cols)?;
    let (values, _values) = bind.buf("w.values", &w.values)?;
    let (upstream, _upstream) = bind.upstream(&options.upstream)?;
    let (dx, _dx) = bind.mat_mut("dx", dx)?;
    let (dy, _dy) = bind.mat_mut("dy", dy)?;
    let (report, _report) = bind.buf_mut("report", report)?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let (normalization, write) = (options.normalization, options.write);
    let args = RawWeightedGrad { x, y, rows, cols, values, normalization, upstream, write, dx, dy, report, workspace };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { weighted_grad_raw(kernels, stream, &args) }
}
