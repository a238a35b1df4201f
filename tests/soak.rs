//! Many steps: the same bits at the end, and no growing memory.

mod common;

use common::data::{Kind, Matrix, TIGHT};
use common::goal::{Case, Shape};
use simgrad::{Backend, Objective};

/// Resident memory in bytes, `None` where /proc does not tell.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Runs `steps` steps over a few shapes and objectives; the first ones warm up caches, pools and the allocator.
fn soak(backend: &Backend, steps: usize, warm_up: usize) {
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
    let mut before = None;
    for k in 0..steps {
        if k == warm_up {
            before = resident();
        }
        let got = step(&cases[k % cases.len()]);
        assert!(got == first[k % cases.len()], "{}: step {k} gives other bits", backend.name());
    }
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 1 << 20, "{}: {grown} bytes more after {steps} steps", backend.name());
    }
}

#[test]
fn ten_thousand_steps_on_the_cpu() {
    soak(&Backend::cpu(), 10_000, 1_000);
}

#[test]
fn two_hundred_steps_on_cuda() {
    if let Ok(backend) = common::cuda() {
        soak(backend, 200, 60);
    } else {
        assert!(!common::gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used");
    }
}
