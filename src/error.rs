//! The one error type of the crate.

use std::fmt;

use crate::dtype::DType;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, matchable without parsing text.
///
/// Every variant about an argument names the operation, the argument, what was expected and what was given. An
/// operation that returns an error has enqueued nothing and changed no output.
// The fields are named by one scheme: `op`eration, `arg`ument, `expected`, `got`.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Two extents that must agree do not.
    ShapeMismatch { op: &'static str, arg: &'static str, expected: usize, got: usize },
    /// The feature dimension is 0: a similarity is not defined.
    EmptyDim { op: &'static str, arg: &'static str },
    /// A row or batch stride that would make rows overlap, or elements of a row that are not adjacent.
    UnsupportedLayout { op: &'static str, arg: &'static str, expected: String, got: String },
    /// A buffer ends before the last element that its shape and strides reach.
    TooShort { op: &'static str, arg: &'static str, expected: usize, got: usize },
    /// An extent or a size exceeds what the operation can index.
    TooLarge { op: &'static str, arg: &'static str, limit: u64, got: u64 },
    /// An option outside its range: a hyper-parameter, a thread count, a name.
    InvalidOption { op: &'static str, arg: &'static str, expected: String, got: String },
    /// The operation does not exist for this element type on this backend.
    UnsupportedDType { op: &'static str, arg: &'static str, expected: &'static str, got: DType },
    /// A pointer is null or not aligned to its element.
    BadPointer { op: &'static str, arg: &'static str, expected: String, got: u64 },
    /// An output shares memory with an input or with another output.
    Overlap { op: &'static str, arg: &'static str, other: &'static str },
    /// A buffer or stream belongs to another device or context than the loaded kernels.
    DeviceMismatch { op: &'static str, arg: &'static str, expected: usize, got: usize },

    /// The crate was compiled without its `cuda` feature.
    CudaFeatureDisabled,
    /// The crate was compiled without `nvcc`, so it carries no device code.
    KernelsNotBuilt,
    /// No NVIDIA driver library could be loaded.
    DriverNotFound { looked_for: &'static str },
    /// There is a driver, but no device with this number.
    DeviceNotFound { ordinal: usize, available: usize },
    /// The driver is too old for the embedded device code.
    DriverTooOld { driver: i32, detail: String },
    /// The device's architecture is not among those that were compiled in.
    UnsupportedArchitecture { device: String, compute_capability: (i32, i32), built_for: &'static str },
    /// The device code could not be loaded for another reason.
    ImageRejected { kernel: &'static str, detail: String },
    /// Device memory is exhausted.
    OutOfMemory { op: &'static str, wanted: usize },
    /// No NVRTC library, which compiles expressions for CUDA at run time, could be loaded.
    NvrtcNotFound { looked_for: String },
    /// The driver does not take what NVRTC compiled, because NVRTC is of a newer CUDA toolkit.
    NvrtcTooNew { driver: i32 },
    /// NVRTC did not take the code that was made of an expression.
    ExpressionRejected { expression: String, log: String },
    /// The driver refused a launch; nothing ran.
    LaunchRefused {
        kernel: &'static str,
        grid: (u32, u32, u32),
        block: (u32, u32, u32),
        shared_bytes: u32,
        detail: String,
    },
    /// An earlier kernel faulted, and the context refuses all further work until the process restarts.
    ContextPoisoned { op: &'static str, detail: String },
    /// Any other failed call of the driver or of NVRTC.
    Driver { op: &'static str, call: &'static str, detail: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShapeMismatch { op, arg, expected, got } => write!(f, "{op}: `{arg}` is {got}, expected {expected}"),
            Self::EmptyDim { op, arg } => write!(f, "{op}: `{arg}` has 0 columns, expected at least 1"),
            Self::UnsupportedLayout { op, arg, expected, got } => {
                write!(f, "{op}: `{arg}` has an unsupported layout: {got}, expected {expected}")
            }
            Self::TooShort { op, arg, expected, got } => {
                write!(f, "{op}: `{arg}` holds {got} elements, its shape and strides need {expected}")
            }
            Self::TooLarge { op, arg, limit, got } => write!(f, "{op}: `{arg}` is {got}, the limit is {limit}"),
            Self::InvalidOption { op, arg, expected, got } => write!(f, "{op}: `{arg}` is {got}, expected {expected}"),
            Self::UnsupportedDType { op, arg, expected, got } => {
                write!(f, "{op}: `{arg}` is {got}, this operation takes {expected} here")
            }
            Self::BadPointer { op, arg, expected, got } => {
                write!(f, "{op}: `{arg}` is the address {got:#x}, expected {expected}")
            }
            Self::Overlap { op, arg, other } => write!(f, "{op}: `{arg}` shares memory with `{other}`, expected none"),
            Self::DeviceMismatch { op, arg, expected, got } => write!(
                f,
                "{op}: `{arg}` belongs to device {got} or to another context of it, the kernels were loaded for device {expected}"
            ),
            Self::CudaFeatureDisabled => {
                f.write_str("simgrad was compiled without its `cuda` feature; enable it to use a CUDA device")
            }
            Self::KernelsNotBuilt => f.write_str(
                "simgrad was compiled without nvcc and carries no device code; put nvcc on PATH or set NVCC \
                 (scripts/install-nvcc fetches one), then build again",
            ),
            Self::DriverNotFound { looked_for } => {
                write!(f, "no NVIDIA driver library found (looked for {looked_for} in the loader's search path)")
            }
            Self::DeviceNotFound { ordinal, available } => {
                write!(f, "CUDA device {ordinal} does not exist, the driver offers {available}")
            }
            Self::DriverTooOld { driver, detail } => write!(
                f,
                "the NVIDIA driver (CUDA {}.{}) is too old for the device code in this binary: {detail}; update the \
                 driver, or build with SIMGRAD_CUDA_ARCHS naming this device's architecture so that no PTX is needed",
                driver / 1000,
                driver % 1000 / 10
            ),
            Self::UnsupportedArchitecture { device, compute_capability: (major, minor), built_for } => write!(
                f,
                "{device} has compute capability {major}.{minor}, the device code was built for {built_for}; build with \
                 SIMGRAD_CUDA_ARCHS={major}{minor}"
            ),
            Self::ImageRejected { kernel, detail } => {
                write!(f, "the driver rejected the device code of {kernel}: {detail}")
            }
            Self::OutOfMemory { op, wanted } => write!(f, "{op}: out of device memory, {wanted} bytes were asked for"),
            Self::NvrtcNotFound { looked_for } => write!(
                f,
                "no NVRTC library found (looked for {looked_for}); it compiles expressions for CUDA and comes with the CUDA \
                 toolkit, or with scripts/install-nvcc, or as pip's nvidia-cuda-nvrtc"
            ),
            Self::NvrtcTooNew { driver } => write!(
                f,
                "NVRTC is of a newer CUDA toolkit than the NVIDIA driver (CUDA {major}.{minor}), which does not take its \
                 code; use NVRTC {major} of a toolkit that is not newer than that (SIMGRAD_NVRTC names its folder), or \
                 update the driver",
                major = driver / 1000,
                minor = driver % 1000 / 10
            ),
            Self::ExpressionRejected { expression, log } => {
                write!(f, "NVRTC did not compile the expression\n{expression}\nand said:\n{log}")
            }
            Self::LaunchRefused { kernel, grid, block, shared_bytes, detail } => write!(
                f,
                "launch of {kernel} refused (grid {grid:?}, block {block:?}, {shared_bytes} bytes of shared memory): {detail}"
            ),
            Self::ContextPoisoned { op, detail } => write!(
                f,
                "{op}: the CUDA context is unusable after an earlier fault ({detail}); restart the process, the CPU backend still works"
            ),
            Self::Driver { op, call, detail } => write!(f, "{op}: {call} failed: {detail}"),
        }
    }
}

impl std::error::Error for Error {}
