//! A device with the kernels, and plain allocations on it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result};
use serde_json::json;
use simgrad::cuda::{self, Kernels};

pub struct Session {
    pub context: Arc<CudaContext>,
    pub kernels: Kernels,
}

/// What is said of a failed driver call.
pub fn describe(error: DriverError) -> String {
    format!("{:?}", error.0)
}

impl Session {
    /// Opens the primary context of a device, which PyTorch uses too, and loads the kernels.
    pub fn open(ordinal: usize) -> Result<Self, String> {
        let context = cuda::open_context(ordinal).map_err(|e| e.to_string())?;
        let kernels = Kernels::load(&context).map_err(|e| e.to_string())?;
        Ok(Self { context, kernels })
    }

    /// The device and what the kernels were compiled for, as JSON. `emulated` is true where the driver library is an emulator:
    /// its figures are not those of a device.
    pub fn facts(&self) -> String {
        let device = self.kernels.device();
        let (major, minor) = device.compute_capability;
        json!({
            "device": device.name,
            "compute_capability": format!("{major}.{minor}"),
            "multiprocessors": device.multiprocessors,
            "shared_bytes": device.shared_bytes,
            "built_for": env!("SIMGRAD_BUILT_ARCHS"),
            "emulated": emulated(),
        })
        .to_string()
    }

    fn bind(&self) -> Result<(), String> {
        self.context.bind_to_thread().map_err(describe)
    }

    /// `bytes` of device memory, uninitialised, at an address of their own: not from a pool, so that tools which check bounds
    /// see them.
    pub fn alloc(&self, bytes: usize) -> Result<u64, String> {
        self.bind()?;
        // SAFETY: the context is current; the address is given back by `free` or with the process.
        unsafe { result::malloc_sync(bytes.max(1)) }.map_err(describe)
    }

    /// # Safety
    /// `address` came from [`Self::alloc`] and is not used any more.
    pub unsafe fn free(&self, address: u64) -> Result<(), String> {
        self.bind()?;
        // SAFETY: by the caller's promise.
        unsafe { result::free_sync(address) }.map_err(describe)
    }

    /// # Safety
    /// `address` is that of as many bytes of device memory as `data` has.
    pub unsafe fn upload(&self, address: u64, data: &[u8]) -> Result<(), String> {
        self.bind()?;
        // SAFETY: by the caller's promise.
        unsafe { result::memcpy_htod_sync(address, data) }.map_err(describe)?;
        // The copy may have come no further than the driver's own buffer, and no other stream waits for it.
        self.synchronize()
    }

    /// # Safety
    /// `address` is that of as many bytes of device memory as `data` has.
    pub unsafe fn download(&self, data: &mut [u8], address: u64) -> Result<(), String> {
        self.bind()?;
        // SAFETY: by the caller's promise.
        unsafe { result::memcpy_dtoh_sync(data, address) }.map_err(describe)
    }

    pub fn synchronize(&self) -> Result<(), String> {
        self.context.synchronize().map_err(describe)
    }
}

/// Whether the driver library of this process is an emulator, by its file: `libcuda.so.1` may be a link to it.
fn emulated() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().any(|line| line.contains("libcuda_emu"))
}
