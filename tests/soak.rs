//! Many steps: the same bits at the end, and no growing memory.

mod common;
#[cfg(feature = "cuda")]
mod cuda_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::data::{Kind, Matrix, TIGHT};
use common::goal::{Case, Shape};
use std::sync::{Mutex, MutexGuard, PoisonError};

use simgrad::{Backend, Objective};

/// The system's allocator, with a count of the bytes that are allocated. Resident memory alone does not show a small leak:
/// it comes out of pages that were freed before and stay resident.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is; the count does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those of this function.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// Bytes more that may be live at the end: the test harness and sleeping threads allocate now and then. A leak of one
/// byte per step of the CPU soak is above it.
const SLACK: usize = 8 << 10;

/// Resident memory in bytes, `None` where /proc does not tell.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// One soak at a time: they share the process whose memory is looked at.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `steps` steps over a few shapes and objectives, and looks at memory after `warm_up` of them, when caches, pools
/// and the allocator have what they need, and at the end. Returns by how much it grew.
fn soak<M>(backend: &Backend, steps: usize, warm_up: usize, memory: impl Fn() -> M) -> (M, M) {
    let names = ["nca-con", "con-sig_ms", "hinge-lin", "cir-lin_ms"];
    let shapes = [(40, 24), (17, 33), (64, 16)];
    let cases: Vec<Case<f32>> = (0..12)
        .map(|k| {
            let (n, d) = shapes[k % 3];
            let objective: Objective = names[k % 4].parse().expect("a name");
            Case::raw(&Shape { kind: Kind::Hubs, groups: 20 * (k % 2), ..Shape::new(n, d) }, objective, k as u64)
        })
        .collect();
    let step = |case: &Case<f32>| {
        let (n, d) = (case.x.rows, case.x.cols);
        let (mut dx, mut dy) = (Matrix::<f32>::poisoned(n, d, TIGHT), Matrix::<f32>::poisoned(n, d, TIGHT));
        let report = backend
            .goal_step(case.x.view(), case.y.view(), &case.objective, &case.options(), dx.view_mut(), dy.view_mut())
            .expect("goal_step");
        (report, dx.elements(), dy.elements())
    };
    let first: Vec<_> = cases.iter().map(step).collect();
    let run = |range: std::ops::Range<usize>| {
        for k in range {
            let got = step(&cases[k % cases.len()]);
            assert!(got == first[k % cases.len()], "{}: step {k} gives other bits", backend.name());
        }
    };
    run(0..warm_up);
    let before = memory();
    run(warm_up..steps);
    (before, memory())
}

#[test]
fn ten_thousand_steps_on_the_cpu() {
    let _alone = alone();
    let (before, after) = soak(&Backend::cpu(), 10_000, 1_000, || (live(), resident()));
    assert!(after.0 <= before.0 + SLACK, "{} bytes allocated before the last 9,000 steps, {} after", before.0, after.0);
    if let (Some(before), Some(after)) = (before.1, after.1) {
        let grown = after.saturating_sub(before);
        assert!(grown < 1 << 20, "{grown} bytes more after 10,000 steps");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn two_hundred_steps_on_cuda() {
    let _alone = alone();
    let Ok(backend) = common::cuda() else {
        assert!(!common::gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used");
        return;
    };
    let Backend::Cuda(cuda) = backend else { panic!("not CUDA") };
    let free = || {
        // Memory is freed in the order of the stream.
        cuda.stream().synchronize().expect("the stream");
        cuda.stream().context().mem_get_info().expect("the driver's figures").0
    };
    let (before, after) = soak(backend, 200, 100, free);
    assert_eq!(before, after, "free bytes on the device before and after 100 steps");
}

/// On buffers that stay. Resident memory is not looked at: a driver may keep freed memory for a while, as the emulator
/// does to notice its use.
#[cfg(feature = "cuda")]
#[test]
fn two_hundred_steps_on_device_buffers() {
    use cuda_support::Step;

    let _alone = alone();
    let Some((context, kernels)) = cuda_support::device() else { return };
    let stream = context.new_stream().expect("a stream");
    let objective: Objective = "nca-sig_ms".parse().expect("a name");
    let mut step = Step::<f32, f32>::new(&stream, 33, 40, &objective, 1);
    let mut run = |steps: usize| {
        for _ in 0..steps {
            step.enqueue(kernels, &stream, &objective, &simgrad::cuda::DeviceStepOptions::default())
                .expect("goal_step");
            stream.synchronize().expect("the stream");
        }
        (live(), context.mem_get_info().expect("the driver's figures").0)
    };
    let (live_before, free_before) = run(20);
    let (live_after, free_after) = run(200);
    assert_eq!(free_before, free_after, "free bytes on the device before and after 200 steps");
    assert!(live_after <= live_before + SLACK, "{live_before} bytes allocated before 200 steps, {live_after} after");
}
