//! Whether CUDA can be used in this process, found out without a panic.
//!
//! cudarc loads the driver library at its first call and panics when there is none, or when a function is missing from
//! it. Nothing in this crate calls cudarc before `require_driver` has said yes.

use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, result};
use libloading::Library;

use super::driver::{alloc_failed, describe, failed};
use crate::error::{Error, Result};

/// The loader's names for the driver library, in the order in which cudarc meets them.
#[cfg(windows)]
const LIBRARIES: &[&str] = &["nvcuda.dll"];
#[cfg(not(windows))]
const LIBRARIES: &[&str] = &["libcuda.so", "libcuda.so.1"];

#[cfg(windows)]
const LOOKED_FOR: &str = "nvcuda.dll";
#[cfg(not(windows))]
const LOOKED_FOR: &str = "libcuda.so, libcuda.so.1";

/// Functions that this crate calls without asking whether they exist. All are older than CUDA 11.4.
const REQUIRED: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventDestroy_v2",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
];

enum Driver {
    Absent,
    /// The name of a function that the library lacks.
    Incomplete(&'static str),
    Present,
}

fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        for name in LIBRARIES {
            // SAFETY: loading runs the library's initialisers; those of the driver have no precondition.
            let Ok(library) = (unsafe { Library::new(*name) }) else { continue };
            // SAFETY: the symbols are only looked up, not called.
            let missing = REQUIRED.iter().find(|f| unsafe { library.get::<*const ()>(f.as_bytes()) }.is_err());
            // Unloading a driver library while another part of the process uses it is asking for trouble.
            std::mem::forget(library);
            return missing.map_or(Driver::Present, |f| Driver::Incomplete(f));
        }
        Driver::Absent
    })
}

/// Whether a usable CUDA driver library can be loaded in this process. Never panics; asks only once.
pub fn driver_present() -> bool {
    matches!(driver(), Driver::Present)
}

/// Whether this crate carries device code, which it does when `nvcc` was there at its compilation.
pub const fn kernels_built() -> bool {
    cfg!(has_kernels)
}

/// Refuses where any further call would be in vain, or would panic in cudarc.
///
/// # Errors
/// [`Error::KernelsNotBuilt`], [`Error::DriverNotFound`], [`Error::DriverTooOld`].
pub(crate) fn require_driver() -> Result<()> {
    if !kernels_built() {
        return Err(Error::KernelsNotBuilt);
    }
    match driver() {
        Driver::Absent => Err(Error::DriverNotFound { looked_for: LOOKED_FOR }),
        Driver::Incomplete(f) => Err(Error::DriverTooOld { driver: 0, detail: format!("it has no function {f}") }),
        Driver::Present => Ok(()),
    }
}

/// The CUDA version that the driver supports, as `1000 × major + 10 × minor`; 0 if it does not say.
pub(crate) fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the pointer is to a live integer; the call needs no initialisation.
    match unsafe { sys::cuDriverGetVersion(&raw mut version) } {
        CUresult::CUDA_SUCCESS => version,
        _ => 0,
    }
}

fn init_error(op: &'static str, ordinal: usize, error: DriverError) -> Error {
    // By number: not every version of the bindings has a name for each.
    const STUB_LIBRARY: u32 = 34;
    const NO_DEVICE: u32 = 100;
    const CALL_REQUIRES_NEWER_DRIVER: u32 = 36;
    const INSUFFICIENT_LOADER_VERSION: u32 = 227;
    const SYSTEM_DRIVER_MISMATCH: u32 = 803;
    match error.0 as u32 {
        NO_DEVICE => Error::DeviceNotFound { ordinal, available: 0 },
        CALL_REQUIRES_NEWER_DRIVER | INSUFFICIENT_LOADER_VERSION | SYSTEM_DRIVER_MISMATCH => {
            Error::DriverTooOld { driver: driver_version(), detail: describe(error.0) }
        }
        // What a library that stands in for the driver at link time answers.
        STUB_LIBRARY => Error::DriverNotFound { looked_for: LOOKED_FOR },
        _ => failed(op, "cuInit", error),
    }
}

/// Number of CUDA devices.
///
/// # Errors
/// [`Error::KernelsNotBuilt`], [`Error::DriverNotFound`], [`Error::DriverTooOld`], or [`Error::DeviceNotFound`] if the
/// driver has no device at all.
pub fn device_count() -> Result<usize> {
    count("device_count", 0)
}

fn count(op: &'static str, ordinal: usize) -> Result<usize> {
    require_driver()?;
    let count = CudaContext::device_count().map_err(|e| init_error(op, ordinal, e))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Opens the primary context of device `ordinal`, which other libraries in the process share.
///
/// # Errors
/// As [`device_count`], and [`Error::DeviceNotFound`] if there is no device with this number.
pub fn open_context(ordinal: usize) -> Result<Arc<CudaContext>> {
    const OP: &str = "open_context";
    let available = count(OP, ordinal)?;
    if ordinal >= available {
        return Err(Error::DeviceNotFound { ordinal, available });
    }
    CudaContext::new(ordinal).map_err(|e| alloc_failed(OP, "cuDevicePrimaryCtxRetain", 0, e))
}

/// Facts about a device that decide what can run on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The product's name.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block can have, after opting in.
    pub shared_bytes: u32,
}

impl DeviceFacts {
    /// Asks the driver.
    ///
    /// # Errors
    /// [`Error::Driver`] or [`Error::ContextPoisoned`].
    pub fn of(context: &CudaContext) -> Result<Self> {
        const OP: &str = "DeviceFacts::of";
        let attribute = |which| {
            // SAFETY: the device belongs to a live context.
            unsafe { result::device::get_attribute(context.cu_device(), which) }
                .map_err(|e| failed(OP, "cuDeviceGetAttribute", e))
        };
        let unsigned = |which| attribute(which).map(|v| u32::try_from(v).unwrap_or(0));
        Ok(Self {
            name: result::device::get_name(context.cu_device()).map_err(|e| failed(OP, "cuDeviceGetName", e))?,
            compute_capability: (
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: unsigned(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: unsigned(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }
}
