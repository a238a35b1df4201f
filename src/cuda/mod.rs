//! The CUDA backend, in three layers.
//!
//! * `raw`: `unsafe` functions on plain pointers and strides, for frameworks with tensors of their own.
//! * this module's functions: the same operations on checked views of cudarc's slices.
//! * `host`: the same operations on host memory, for tests, examples and everything that is not a hot loop.
//!
//! The first two only enqueue: they run on the caller's stream, write to the caller's outputs and workspace, allocate
//! nothing, never synchronise, and can be captured into a graph.

pub mod probe;

#[doc(hidden)]
pub mod abi;

mod descriptor;
mod driver;
mod image;
mod kernels;
mod launch;
mod scope;
mod tensor;
mod workspace;

pub use descriptor::{RawBatch, RawBuf, RawMat};
pub use kernels::Kernels;
pub use probe::{DeviceFacts, driver_present, open_context};
pub use tensor::{DeviceBatch, DeviceBatchMut, DeviceElement, DeviceMat, DeviceMatMut};
pub use workspace::WORKSPACE_ALIGN;
