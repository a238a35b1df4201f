//! The triplet hinge on mined negatives, on views of device memory.

use cudarc::driver::{CudaStream, CudaViewMut};

use super::goal::DeviceStepOptions;
use super::kernels::Kernels;
use super::mined_triplet::{OP, RawMinedTriplet, mined_triplet_step_raw};
use super::scope::Scope;
use super::tensor::{Binder, DeviceElement, DeviceMat, DeviceMatMut};
use crate::dtype::GradientOf;
use crate::error::Result;
use crate::mined_triplet::{MinedTriplet, MinedTripletReport};

/// One step of the triplet hinge on mined negatives (eqs. 15): mines the negatives of the rows of `x` (`n × d`) and `y`
/// (`m × d`), weighs them, and writes the gradients and a report.
///
/// The meaning is that of [`cpu::mined_triplet_step`](crate::cpu::mined_triplet_step). `dx` has the shape of `x`, `dy` that of
/// `y`; `report` has one element, `workspace`
/// [`mined_triplet_workspace_bytes`](super::mined_triplet_workspace_bytes) bytes, whose contents do not matter before and mean
/// nothing after. Enqueues at most 9 kernels where the pairs, times `1 + 2 k`, are at most 2048, and at most 12 beyond, one more
/// from four times that many on, from 2¹⁸ rows on and from 2²⁷; the similarities are never stored; allocates nothing, does not synchronise, reads nothing back;
/// can be captured. Bitwise the same from run to run. If a launch is refused, `dx` and `dy` are unchanged.
///
/// # Errors
/// Those of the CPU, [`Error::TooShort`](crate::Error::TooShort), [`Error::DeviceMismatch`](crate::Error::DeviceMismatch)
/// before anything is enqueued, and [`Error::LaunchRefused`](crate::Error::LaunchRefused),
/// [`Error::ContextPoisoned`](crate::Error::ContextPoisoned) or [`Error::Driver`](crate::Error::Driver) from the driver.
#[allow(clippy::too_many_arguments)]
pub fn mined_triplet_step<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &CudaStream,
    x: &DeviceMat<'_, T>,
    y: &DeviceMat<'_, T>,
    objective: &MinedTriplet,
    options: &DeviceStepOptions<'_>,
    dx: &mut DeviceMatMut<'_, G>,
    dy: &mut DeviceMatMut<'_, G>,
    report: &mut CudaViewMut<'_, MinedTripletReport>,
    workspace: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let bind = Binder { op: OP, kernels, stream };
    kernels.check_stream(OP, stream)?;
    let scope = Scope::enter(OP, stream.context())?;
    let (x, _x) = bind.mat("x", x)?;
    let (y, _y) = bind.mat("y", y)?;
    let groups = options.groups.as_ref().map(|g| bind.groups(g)).transpose()?;
    let (upstream, _upstream) = bind.upstream(&options.upstream)?;
    let (dx, _dx) = bind.mat_mut("dx", dx)?;
    let (dy, _dy) = bind.mat_mut("dy", dy)?;
    let (report, _report) = bind.buf_mut("report", report)?;
    let (workspace, _workspace) = bind.buf_mut("workspace", workspace)?;
    scope.check()?;
    let args = RawMinedTriplet {
        x,
        y,
        objective,
        normalization: options.normalization,
        groups: groups.as_ref().map(|(raw, _)| *raw),
        upstream,
        write: options.write,
        dx,
        dy,
        report,
        workspace,
    };
    // SAFETY: the views are borrowed, and their guards make other streams wait for the kernels.
    unsafe { mined_triplet_step_raw(kernels, stream, &args) }
}
