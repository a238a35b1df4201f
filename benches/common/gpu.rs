//! The device of the benches, and times by its own clock.

use std::sync::Arc;
use std::time::Duration;

use criterion::Bencher;
use criterion::measurement::WallTime;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use simgrad::cuda::{self, Kernels};

pub struct Gpu {
    pub kernels: Kernels,
    pub stream: Arc<CudaStream>,
}

impl Gpu {
    /// The first device; says what it is, or why there are no CUDA figures.
    pub fn open() -> Option<Self> {
        let opened = cuda::open_context(0).and_then(|context| Ok((Kernels::load(&context)?, context)));
        match opened {
            Ok((kernels, context)) => {
                let device = kernels.device();
                let (major, minor) = device.compute_capability;
                println!("cuda: {}, compute capability {major}.{minor}, {} SMs", device.name, device.multiprocessors);
                let stream = context.new_stream().expect("a stream");
                Some(Self { kernels, stream })
            }
            Err(why) => {
                println!("cuda: no figures, {why}");
                None
            }
        }
    }

    pub fn upload<T: DeviceRepr>(&self, data: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(data).expect("device memory")
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> CudaSlice<T> {
        self.stream.alloc_zeros(len).expect("device memory")
    }

    /// Device time from the first launch to the end of the last one. The host enqueues ahead, so its own cost shows only
    /// where a kernel is shorter than a launch.
    pub fn time(&self, b: &mut Bencher<'_, WallTime>, mut launch: impl FnMut()) {
        b.iter_custom(|calls| {
            let start = self.stream.record_event(Some(CU_EVENT_DEFAULT)).expect("an event");
            for _ in 0..calls {
                launch();
            }
            let end = self.stream.record_event(Some(CU_EVENT_DEFAULT)).expect("an event");
            let ms = start.elapsed_ms(&end).expect("both events are recorded");
            Duration::from_secs_f64(f64::from(ms) * 1e-3)
        });
    }
}
