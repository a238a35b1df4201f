//! What a failed driver call means.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::Error;

/// Whether the driver refuses all further work in the context after this code, until the process restarts.
pub(crate) const fn is_sticky(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
    )
}

/// The code's name and number. Does not ask the driver for its text: that would load the driver library.
pub(crate) fn describe(code: CUresult) -> String {
    format!("{code:?} ({})", code as u32)
}

/// The error of a call that has no meaning of its own.
pub(crate) fn failed(op: &'static str, call: &'static str, error: DriverError) -> Error {
    let detail = describe(error.0);
    if is_sticky(error.0) { Error::ContextPoisoned { op, detail } } else { Error::Driver { op, call, detail } }
}

/// The error of a call that was asked for `wanted` bytes of device memory.
pub(crate) fn alloc_failed(op: &'static str, call: &'static str, wanted: usize, error: DriverError) -> Error {
    if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        Error::OutOfMemory { op, wanted }
    } else {
        failed(op, call, error)
    }
}
