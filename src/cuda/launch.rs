//! The only place from which kernels are launched.

use std::ffi::c_void;

use cudarc::driver::sys::{CUfunction, CUresult};
use cudarc::driver::{CudaStream, DriverError, result};

use super::driver::{describe, failed, is_sticky};
use super::kernels::Kernels;
use super::scope::Scope;
use super::tensor_map::Maps;
use crate::error::{Error, Result};

/// A kernel's only parameter, passed by value. Implemented by [`params!`](super::params) alone.
///
/// # Safety
/// The type is `repr(C)`, without padding, and has a twin of the same layout in `kernels/params`.
pub(crate) unsafe trait Params: Copy {}

/// Enqueues one kernel on `stream`: no allocation, no event, no synchronisation; can be captured.
///
/// Refuses an empty grid's extent of 0 as the driver does; callers with nothing to do do not call.
///
/// # Safety
/// `params` is of the type that kernel `name` takes, and every pointer in it is valid on the stream's device, for the
/// extents that the kernel's header states, from now until the kernel has run.
pub(crate) unsafe fn launch<P: Params>(
    kernels: &Kernels,
    stream: &CudaStream,
    name: &'static str,
    grid: (u32, u32, u32),
    block: u32,
    shared_bytes: u32,
    params: &P,
) -> Result<()> {
    let function = embedded(kernels, name, grid, block, shared_bytes)?;
    let mut arguments = [argument(params)];
    // SAFETY: by the caller's promise.
    unsafe { enqueue(kernels, stream, (name, function), grid, block, shared_bytes, &mut arguments) }
}

/// As [`launch`], for a kernel that takes tensor maps before its parameters.
///
/// # Safety
/// As [`launch`], also of the maps and their operands.
pub(crate) unsafe fn launch_mapped<M: Maps, P: Params>(
    kernels: &Kernels,
    stream: &CudaStream,
    name: &'static str,
    (grid, block, shared_bytes): ((u32, u32, u32), u32, u32),
    maps: &M,
    params: &P,
) -> Result<()> {
    let function = embedded(kernels, name, grid, block, shared_bytes)?;
    let mut arguments = [argument(maps), argument(params)];
    // SAFETY: by the caller's promise.
    unsafe { enqueue(kernels, stream, (name, function), grid, block, shared_bytes, &mut arguments) }
}

fn argument<A>(value: &A) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// The function of an embedded kernel, if it can be launched with this much shared memory.
fn embedded(
    kernels: &Kernels,
    name: &'static str,
    grid: (u32, u32, u32),
    block: u32,
    shared_bytes: u32,
) -> Result<CUfunction> {
    let block = (block, 1, 1);
    let refused = |detail: String| Error::LaunchRefused { kernel: name, grid, block, shared_bytes, detail };
    let Some((function, most_shared)) = kernels.function(name) else {
        let offered = kernels.device().shared_bytes;
        return Err(refused(format!("the device has only {offered} bytes of shared memory per block")));
    };
    if shared_bytes > most_shared {
        return Err(refused(format!("the kernel was loaded for {most_shared} bytes of shared memory")));
    }
    Ok(function)
}

/// As [`launch`], for a function that is not one of the embedded ones.
///
/// # Safety
/// As [`launch`], and the function is loaded in the context of `kernels`.
pub(crate) unsafe fn launch_function<P: Params>(
    kernels: &Kernels,
    stream: &CudaStream,
    (name, function): (&'static str, CUfunction),
    grid: (u32, u32, u32),
    block: u32,
    shared_bytes: u32,
    params: &P,
) -> Result<()> {
    // SAFETY: by the caller's promise.
    unsafe { enqueue(kernels, stream, (name, function), grid, block, shared_bytes, &mut [argument(params)]) }
}

/// # Safety
/// As [`launch_function`], of all arguments.
unsafe fn enqueue(
    kernels: &Kernels,
    stream: &CudaStream,
    (name, function): (&'static str, CUfunction),
    grid: (u32, u32, u32),
    block: u32,
    shared_bytes: u32,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    let block = (block, 1, 1);
    let refused = |detail: String| Error::LaunchRefused { kernel: name, grid, block, shared_bytes, detail };
    let scope = Scope::enter(name, stream.context())?;
    // SAFETY: the function is loaded in this context, which is current; the driver copies the arguments, whose types
    // are the kernel's by the caller's promise, before it returns.
    let launched = unsafe { result::launch_kernel(function, grid, block, shared_bytes, stream.cu_stream(), arguments) };
    drop(scope);
    launched.map_err(|e| {
        kernels.note(e);
        launch_error(name, e, refused)
    })
}

fn launch_error(name: &'static str, error: DriverError, refused: impl FnOnce(String) -> Error) -> Error {
    let code = error.0;
    let capture = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED as u32..=CUresult::CUDA_ERROR_TIMEOUT as u32;
    if is_sticky(code) || capture.contains(&(code as u32)) {
        return failed(name, "cuLaunchKernel", error);
    }
    refused(describe(code))
}

/// Defines a kernel's parameter block with a layout that both languages agree on.
///
/// `params! { Name: SIZE { field: type, ... } }` makes a `repr(C)` struct whose size is checked at compile time, and
/// whose offsets the `abi_layout` kernel reports for comparison.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident: $size:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Zeroable)]
        pub(crate) struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $size && $size == 0 $(+ size_of::<$type>())*);
        // SAFETY: repr(C), and the size equals the sum of the fields' sizes, so that there is no padding.
        unsafe impl $crate::cuda::launch::Params for $name {}
        impl $name {
            /// Size, then the offset of every field, as the `abi_layout` kernel reports them.
            pub(crate) const LAYOUT: &'static [u32] =
                &[$size, $(std::mem::offset_of!($name, $field) as u32),*];
        }
    };
}
pub(crate) use params;
