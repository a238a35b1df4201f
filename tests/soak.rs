//! Many steps: the same bits at the end, and no growing memory.

mod common;

use common::data::{Kind, Matrix, TIGHT};
use common::goal::{Case, Shape};
use std::sync::{Mutex, MutexGuard, PoisonError};

use simgrad::{Backend, Objective};

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
    let (before, after) = soak(&Backend::cpu(), 10_000, 1_000, resident);
    if let (Some(before), Some(after)) = (before, after) {
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
    let free = || cuda.stream().context().mem_get_info().expect("the driver's figures").0;
    let (before, after) = soak(backend, 200, 100, free);
    assert_eq!(before, after, "free bytes on the device before and after 100 steps");
}
