//! A device for the tests that need one.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use simgrad::cuda;

/// The first device's context. `None`, after saying why, where CUDA cannot be used; with `SIMGRAD_REQUIRE_GPU=1` that is
/// a failure.
pub fn context() -> Option<Arc<CudaContext>> {
    match cuda::open_context(0) {
        Ok(context) => Some(context),
        Err(why) if std::env::var_os("SIMGRAD_REQUIRE_GPU").is_some_and(|v| v != "0") => {
            panic!("SIMGRAD_REQUIRE_GPU is set, and CUDA cannot be used: {why}")
        }
        Err(why) => {
            eprintln!("skipped, needs a CUDA device: {why}");
            None
        }
    }
}
