//! Loading the device code, once per context.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError};
use cudarc::nvrtc::Ptx;

use super::compiled_expression::Compiled;
use super::driver::{alloc_failed, describe, is_sticky};
use super::image::{BUILT_FOR, HAS_HOPPER, IMAGES, Image, KernelSpec};
use super::plan::{PlanDevice, Scheme};
use super::probe::{DeviceFacts, driver_version, require_driver};
use super::scope::Scope;
use crate::error::{Error, Result};

/// Shared memory that every kernel may use without asking.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// The lowest compute capability that the kernels are written for: `mma.sync` on bf16 and `cp.async` need it.
const LOWEST_CAPABILITY: (i32, i32) = (8, 0);

/// The compute capability of sm_90a.
const HOPPER: (i32, i32) = (9, 0);

struct Function {
    name: &'static str,
    /// `None` if the device has less shared memory than the kernel needs.
    function: Option<CudaFunction>,
    shared_bytes: u32,
}

struct Inner {
    /// Sorted by name.
    functions: Vec<Function>,
    device: DeviceFacts,
    /// The first code after which the context refuses all work; 0 while there was none.
    fault: AtomicU32,
    /// What was compiled at run time.
    compiled: Mutex<Compiled>,
    /// See [`Kernels::force_scheme`].
    forced: Mutex<(Option<Scheme>, Option<bool>)>,
    // Last, so that the modules are unloaded while the context lives.
    context: Arc<CudaContext>,
}

/// All kernels of this crate, loaded into one context. Cheap to clone; can be used from any thread.
///
/// Loading takes milliseconds (seconds, if the driver has to compile PTX): do it once and keep it. Every operation
/// takes it together with a stream of the same context.
#[derive(Clone)]
pub struct Kernels {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels")
            .field("ordinal", &self.inner.context.ordinal())
            .field("device", &self.inner.device)
            .finish_non_exhaustive()
    }
}

impl Kernels {
    /// Loads every kernel and sets its attributes.
    ///
    /// Allocates device memory for the code, may synchronise; call it before a stream capture begins.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::DriverTooOld`], [`Error::UnsupportedArchitecture`],
    /// [`Error::ImageRejected`], [`Error::OutOfMemory`], or another failure of the driver.
    pub fn load(context: &Arc<CudaContext>) -> Result<Self> {
        const OP: &str = "Kernels::load";
        require_driver()?;
        let _scope = Scope::enter(OP, context)?;
        let device = DeviceFacts::of(context)?;
        if device.compute_capability < LOWEST_CAPABILITY {
            return Err(unsupported(device));
        }
        let mut functions = Vec::new();
        let hopper = HAS_HOPPER && device.compute_capability == HOPPER;
        for image in IMAGES.iter().filter(|image| hopper || !image.hopper) {
            let module = load_image(context, image, &device)?;
            for spec in image.kernels {
                let function = load_function(&module, spec, &device)?;
                functions.push(Function { name: spec.name, function, shared_bytes: spec.shared_bytes });
            }
        }
        functions.sort_unstable_by_key(|f| f.name);
        let fault = AtomicU32::new(0);
        let compiled = Mutex::new(Compiled::default());
        Ok(Self {
            inner: Arc::new(Inner {
                functions,
                device,
                fault,
                compiled,
                forced: Mutex::default(),
                context: context.clone(),
            }),
        })
    }

    /// The context that the kernels were loaded into.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.inner.context
    }

    /// Facts about the context's device.
    pub fn device(&self) -> &DeviceFacts {
        &self.inner.device
    }

    /// What plans need to know of the context's device.
    #[doc(hidden)]
    pub fn plan_device(&self) -> PlanDevice {
        let (forced, screens) = *self.inner.forced.lock().unwrap_or_else(PoisonError::into_inner);
        PlanDevice { forced, screens, ..PlanDevice::of(self.device()) }
    }

    /// Sweeps in this scheme from now on, where a kernel has it and the device runs it. For tests.
    #[doc(hidden)]
    pub fn force_scheme(&self, scheme: Option<Scheme>) {
        self.inner.forced.lock().unwrap_or_else(PoisonError::into_inner).0 = scheme;
    }

    /// Mines f32 rows through a screen from now on, or does not, whatever their number. For tests.
    #[doc(hidden)]
    pub fn force_screen(&self, screens: Option<bool>) {
        self.inner.forced.lock().unwrap_or_else(PoisonError::into_inner).1 = screens;
    }

    /// Refuses after a kernel fault in this context, and a stream of another context.
    pub(crate) fn check_stream(&self, op: &'static str, stream: &CudaStream) -> Result<()> {
        self.check_fault(op)?;
        self.check_context(op, "stream", stream.context())
    }

    pub(crate) fn check_context(&self, op: &'static str, arg: &'static str, context: &CudaContext) -> Result<()> {
        if context.cu_ctx() == self.inner.context.cu_ctx() {
            return Ok(());
        }
        Err(Error::DeviceMismatch { op, arg, expected: self.inner.context.ordinal(), got: context.ordinal() })
    }

    fn check_fault(&self, op: &'static str) -> Result<()> {
        match self.inner.fault.load(Ordering::Relaxed) {
            0 => Ok(()),
            code => Err(Error::ContextPoisoned { op, detail: format!("CUDA error {code}") }),
        }
    }

    /// Remembers the first fault of the context, so that later calls name that and not its consequences.
    pub(crate) fn note(&self, error: DriverError) {
        if is_sticky(error.0) {
            let _ = self.inner.fault.compare_exchange(0, error.0 as u32, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What was compiled at run time.
    pub(super) fn compiled(&self) -> MutexGuard<'_, Compiled> {
        // A panic while it was held has left a cache without an entry.
        self.inner.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver's handle, and the most dynamic shared memory that the kernel may be launched with.
    pub(crate) fn function(&self, name: &'static str) -> Option<(CUfunction, u32)> {
        let found = self.inner.functions.binary_search_by_key(&name, |f| f.name).ok()?;
        let Function { function, shared_bytes, .. } = &self.inner.functions[found];
        Some((function.as_ref()?.cu_function(), *shared_bytes))
    }
}

fn unsupported(device: DeviceFacts) -> Error {
    Error::UnsupportedArchitecture {
        device: device.name,
        compute_capability: device.compute_capability,
        built_for: BUILT_FOR,
    }
}

fn load_image(context: &Arc<CudaContext>, image: &Image, device: &DeviceFacts) -> Result<Arc<CudaModule>> {
    context.load_module(Ptx::from_binary(image.bytes.to_vec())).map_err(|e| match e.0 {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => unsupported(device.clone()),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::DriverTooOld {
            driver: driver_version(),
            detail: format!("{} has only PTX of a newer toolkit for this device", image.name),
        },
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { op: "Kernels::load", wanted: image.bytes.len() },
        code if is_sticky(code) => Error::ContextPoisoned { op: "Kernels::load", detail: describe(code) },
        code => Error::ImageRejected { kernel: image.name, detail: describe(code) },
    })
}

fn load_function(module: &Arc<CudaModule>, spec: &KernelSpec, device: &DeviceFacts) -> Result<Option<CudaFunction>> {
    if spec.shared_bytes > device.shared_bytes.max(DEFAULT_SHARED_BYTES) {
        return Ok(None);
    }
    let rejected = |e: DriverError| match e.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => alloc_failed("Kernels::load", "cuModuleGetFunction", 0, e),
        code => Error::ImageRejected { kernel: spec.name, detail: describe(code) },
    };
    let function = module.load_function(spec.name).map_err(rejected)?;
    if spec.shared_bytes > DEFAULT_SHARED_BYTES {
        let bytes = spec.shared_bytes.cast_signed();
        function
            .set_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
            .map_err(rejected)?;
    }
    Ok(Some(function))
}
