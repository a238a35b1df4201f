//! What the integration tests share: the backends to run on, inputs, poisoned outputs, comparisons.
#![allow(dead_code, unused_macros, unused_imports)]

pub mod check;
pub mod data;
pub mod goal;
pub mod mixture;
pub mod pairwise;

use std::io::Write;
use std::sync::{Once, OnceLock};

use simgrad::{Backend, Error};

/// Whether a test without a GPU is a failure.
pub fn gpu_required() -> bool {
    std::env::var_os("SIMGRAD_REQUIRE_GPU").is_some_and(|v| v != "0" && !v.is_empty())
}

/// Whether the whole lattice is asked for.
pub fn full() -> bool {
    std::env::var_os("SIMGRAD_TEST_FULL").is_some_and(|v| v != "0" && !v.is_empty())
}

/// `SIMGRAD_TEST_SCHEME=group` or `small`: the scheme that the tests sweep tiles in, where a kernel has it and the device
/// runs it; their small shapes would never see some of the kernels otherwise.
#[cfg(feature = "cuda")]
fn forced_scheme() -> Option<simgrad::cuda::Scheme> {
    match std::env::var("SIMGRAD_TEST_SCHEME").ok()?.as_str() {
        "group" => Some(simgrad::cuda::Scheme::GroupMma),
        "small" => Some(simgrad::cuda::Scheme::GroupMmaSmall),
        other => panic!("SIMGRAD_TEST_SCHEME={other} is neither group nor small"),
    }
}

/// The CUDA backend of this process, or why there is none.
pub fn cuda() -> Result<&'static Backend, &'static Error> {
    static CUDA: OnceLock<Result<Backend, Error>> = OnceLock::new();
    CUDA.get_or_init(|| {
        let backend = Backend::cuda(0)?;
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &backend {
            cuda.kernels().force_scheme(forced_scheme());
        }
        Ok(backend)
    })
    .as_ref()
}

/// CUDA with the compiler that expressions need. `None`, after saying why, without; with `SIMGRAD_REQUIRE_GPU=1` that is a
/// failure.
#[cfg(feature = "cuda")]
pub fn cuda_with_nvrtc() -> Option<&'static simgrad::cuda::host::Cuda> {
    let usable = cuda().map_err(Error::clone).and_then(|backend| {
        let Backend::Cuda(cuda) = backend else { return Err(Error::CudaFeatureDisabled) };
        match simgrad::cuda::CompiledExpression::compile(cuda.kernels(), &"positive = s\nnegative = s".parse()?) {
            Err(missing @ Error::NvrtcNotFound { .. }) => Err(missing),
            _ => Ok(cuda),
        }
    });
    match usable {
        Ok(cuda) => Some(cuda),
        Err(reason) => {
            assert!(
                !gpu_required(),
                "SIMGRAD_REQUIRE_GPU is set, but expressions cannot be computed on CUDA: {reason}"
            );
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let text = format!("note: the tests of this binary skip what needs expressions on CUDA: {reason}\n");
                let _ = std::io::stderr().write_all(text.as_bytes());
            });
            None
        }
    }
}

/// Runs a test on the CPU, and on CUDA where there is a device. Without one it says so, past the capture of the test
/// harness; with `SIMGRAD_REQUIRE_GPU=1` it fails.
pub fn on_every_backend(test: impl Fn(&Backend)) {
    static CPU: OnceLock<Backend> = OnceLock::new();
    test(CPU.get_or_init(Backend::cpu));
    match cuda() {
        Ok(backend) => test(backend),
        Err(reason) => {
            assert!(!gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let text = format!("note: the tests of this binary skip their CUDA part: {reason}\n");
                let _ = std::io::stderr().write_all(text.as_bytes());
            });
        }
    }
}

/// Whether the backend is a CUDA device, where f64 does not exist and, under the emulator, time is short.
pub fn is_cuda(backend: &Backend) -> bool {
    backend.name() == "cuda"
}

/// Calls `$f::<T>(args)` for every element type that the backend takes.
macro_rules! for_each_dtype {
    ($backend:expr, $f:ident($($arg:expr),* $(,)?)) => {{
        $f::<f32>($backend, $($arg),*);
        $f::<half::f16>($backend, $($arg),*);
        $f::<half::bf16>($backend, $($arg),*);
        if !$crate::common::is_cuda($backend) {
            $f::<f64>($backend, $($arg),*);
        }
    }};
}

/// Calls `$f::<T, G>(args)` for every element type and gradient type that the backend takes.
macro_rules! for_each_gradient {
    ($backend:expr, $f:ident($($arg:expr),* $(,)?)) => {{
        $f::<f32, f32>($backend, $($arg),*);
        $f::<half::f16, half::f16>($backend, $($arg),*);
        $f::<half::f16, f32>($backend, $($arg),*);
        $f::<half::bf16, half::bf16>($backend, $($arg),*);
        $f::<half::bf16, f32>($backend, $($arg),*);
        if !$crate::common::is_cuda($backend) {
            $f::<f64, f64>($backend, $($arg),*);
        }
    }};
}
pub(crate) use {for_each_dtype, for_each_gradient};
