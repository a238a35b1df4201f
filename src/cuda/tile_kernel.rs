//! Launches of the kernels that sweep tiles, in the scheme of their plan.

use cudarc::driver::CudaStream;

use super::kernels::Kernels;
use super::launch::{Params, launch, launch_mapped};
use super::plan::{
    GROUP_CLUSTER, GROUP_COLS, GROUP_ROWS, PlanDevice, SMALL_COLS, Scheme, SweepKernel, SweepPlan, SweepShape,
};
use super::prepare::{Operand, by_dtype};
use super::sweep::key_words;
use super::tensor_map::{Mapped, TensorMaps};
use crate::dtype::DType;
use crate::error::Result;

/// One kernel by its names in all schemes that it is written in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileKernel {
    /// [`Scheme::WarpMma`]: f32, f16, bf16.
    pub warp: [&'static str; 3],
    /// [`Scheme::GroupMma`]: f16, bf16.
    pub group: [&'static str; 2],
    /// Tiles beside each other in a step of that kernel: `SIMGRAD_GROUP_STEP`.
    pub step: usize,
    /// [`Scheme::GroupMmaSmall`]: f16, bf16.
    pub small: [&'static str; 2],
    /// [`Scheme::WarpSlices`], f32 alone, where there is such a kernel.
    pub slices: Option<&'static str>,
}

impl TileKernel {
    /// Its name for a type in a scheme.
    pub(crate) const fn name(&self, dtype: DType, scheme: Scheme) -> &'static str {
        let names = match scheme {
            Scheme::WarpMma => return by_dtype(dtype, self.warp),
            Scheme::WarpSlices => {
                return match self.slices {
                    Some(name) => name,
                    None => by_dtype(dtype, self.warp),
                };
            }
            Scheme::GroupMma => self.group,
            Scheme::GroupMmaSmall => self.small,
        };
        names[if matches!(dtype, DType::F16) { 0 } else { 1 }]
    }
}

/// The plan of `kernel` for matrices of this shape: by warps where an extent is 0, which tensor maps cannot have, and where
/// mining is, whose similarities others compare theirs with.
pub(crate) fn tile_plan(kernels: &Kernels, kernel: SweepKernel, shape: SweepShape) -> SweepPlan {
    tile_plan_on(kernels.plan_device(), kernel, shape)
}

/// As [`tile_plan`], for a device that need not be there.
pub(crate) fn tile_plan_on(mut device: PlanDevice, kernel: SweepKernel, shape: SweepShape) -> SweepPlan {
    device.group_code &=
        [shape.batch, shape.n, shape.m, shape.d].iter().all(|&extent| extent > 0) && key_words(shape.n, shape.m) > 0;
    SweepPlan::new(kernel, shape, device)
}

/// Enqueues a kernel over `plan.grid` blocks of its plan.
///
/// # Safety
/// The names are those of kernels that take `params` (behind tensor maps, in the schemes for groups), and every address in
/// it and in the operands is valid on the stream's device for the plan's extents.
pub(crate) unsafe fn launch_tiles<P: Params>(
    kernels: &Kernels,
    stream: &CudaStream,
    kernel: &TileKernel,
    plan: &SweepPlan,
    [x, y]: [Operand; 2],
    params: &P,
) -> Result<()> {
    let shape = plan.shape;
    let (names, cols) = match plan.scheme {
        Scheme::WarpMma | Scheme::WarpSlices => {
            let name = kernel.name(shape.dtype, plan.scheme);
            // SAFETY: by the caller's promise.
            return unsafe { launch(kernels, stream, name, plan.grid, plan.threads, plan.shared_bytes, params) };
        }
        // Every block of a cluster brings its share.
        Scheme::GroupMma => (kernel.group, GROUP_COLS / 2 * kernel.step / GROUP_CLUSTER),
        Scheme::GroupMmaSmall => (kernel.small, SMALL_COLS),
    };
    let name = names[usize::from(shape.dtype != DType::F16)];
    let mapped =
        |operand, rows, box_rows: usize| Mapped { operand, batch: shape.batch, rows, box_rows: box_rows as u32 };
    let maps = [mapped(x, shape.n, GROUP_ROWS), mapped(y, shape.m, cols)];
    let maps = TensorMaps::new(name, shape.dtype, shape.d, maps)?;
    // SAFETY: by the caller's promise.
    unsafe { launch_mapped(kernels, stream, name, (plan.grid, plan.threads, plan.shared_bytes), &maps, params) }
}
