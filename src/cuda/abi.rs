//! Comparison of the parameter blocks' layout between the two compilers. For tests.

use cudarc::driver::{CudaStream, CudaViewMut, DevicePtrMut};

use super::kernels::Kernels;
use super::launch::{launch, params};
use crate::error::Result;

params! {
    /// Twin of `kernels/params/abi.h`.
    AbiParams: 16 {
        out: u64,
        capacity: u32,
        pad_: u32,
    }
}

/// Every block's layout as this compiler sees it, in the order of `kernels/abi.cu`.
pub fn host_layout() -> Vec<u32> {
    [AbiParams::LAYOUT].concat()
}

/// Enqueues the kernel that writes the device compiler's view of [`host_layout`] to `out`.
///
/// # Errors
/// If the launch is refused.
pub fn device_layout(kernels: &Kernels, stream: &CudaStream, out: &mut CudaViewMut<'_, u32>) -> Result<()> {
    let capacity = u32::try_from(out.len()).unwrap_or(u32::MAX);
    let (ptr, _guard) = out.device_ptr_mut(stream);
    let params = AbiParams { out: ptr, capacity, pad_: 0 };
    // SAFETY: the kernel writes at most `capacity` words to `out`, which is borrowed mutably.
    unsafe { launch(kernels, stream, "abi_layout", (1, 1, 1), 1, 0, &params) }
}
