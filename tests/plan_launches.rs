//! Operations launch what their plans say: kernels, blocks and threads as planned, and as many bytes and operations, where
//! there is a driver that counts.
#![cfg(feature = "cuda")]

#[path = "../examples/roofline/cases.rs"]
#[allow(dead_code)]
mod cases;
#[path = "../examples/common/mod.rs"]
mod common;
#[path = "../examples/roofline/counters.rs"]
#[allow(dead_code)]
mod counters;
mod cuda_support;
#[path = "../examples/roofline/device.rs"]
#[allow(dead_code)]
mod device;
#[path = "../examples/roofline/numbers.rs"]
mod numbers;
#[path = "../benches/gpu_report/operation.rs"]
#[allow(dead_code)]
mod operation;

use std::path::PathBuf;

use cases::{Case, Op};
use counters::Pair;
use cuda_support::{child, gpu_required, is_child, say};
use device::Device;
use simgrad::cuda::Arithmetic;
use simgrad::{DType, Precision};

/// Whole tiles of every engine, ragged ones, rows that have to be copied for their alignment, and more than a small step.
/// With each, whether f32 rows are mined through a screen.
fn all_cases() -> Vec<(Case, Option<bool>)> {
    let mut all = Vec::new();
    for (_, op) in Op::ALL.into_iter().filter(|(_, op)| op.precision() == Precision::Full) {
        for (n, m, d) in [(512, 512, 64), (300, 200, 40), (130, 260, 33)] {
            let m = if op == Op::Goal { n } else { m };
            all.extend([DType::Bf16, DType::F16, DType::F32].map(|dtype| Case::new(op, n, m, d, dtype)));
        }
    }
    all.push(Case { batch: 3, ..Case::new(Op::CosineMatrix, 200, 130, 40, DType::F16) });
    // Of f32 in three parts, and of what has none; enough for the large tiles.
    let split = |n, m, d, dtype| Case::new(Op::CosineSplit, n, m, d, dtype);
    all.extend(
        [(512, 512, 64), (300, 200, 40), (130, 260, 33), (1100, 2100, 24)].map(|(n, m, d)| split(n, m, d, DType::F32)),
    );
    all.push(Case { batch: 3, ..split(200, 130, 41, DType::F32) });
    all.push(split(130, 260, 33, DType::Bf16));
    let step = |n, m, d| Case::new(Op::InfoNceSplit, n, m, d, DType::F32);
    all.extend([(512, 512, 64), (300, 200, 40), (130, 260, 33)].map(|(n, m, d)| step(n, m, d)));
    all.extend([DType::Bf16, DType::F32].map(|dtype| Case::new(Op::Goal, 1030, 1030, 16, dtype)));
    // Enough for the large tiles, where there are any.
    all.push(Case::new(Op::Mine, 1300, 1600, 32, DType::Bf16));
    let screened = [(512, 512, 64), (300, 200, 40), (130, 260, 33), (1300, 1600, 32)]
        .map(|(n, m, d)| (Case::new(Op::Mine, n, m, d, DType::F32), Some(true)));
    all.into_iter().map(|case| (case, None)).chain(screened).collect()
}

#[test]
fn child_runs_all_cases() {
    if !is_child("child_runs_all_cases") {
        return;
    }
    let device = Device::open().unwrap_or_else(|e| panic!("{e}"));
    for (case, screen) in all_cases() {
        device.force_screen(screen);
        let plan = case.plan(device.facts()).expect("a plan");
        device.run(&case, &plan).unwrap_or_else(|e| panic!("{}: {e}", case.text()));
    }
}

/// Whether a count is within a tenth of the plan, or within what tickets, reports and the like come to.
fn near(pair: Pair, slack: f64) -> bool {
    (pair.counted - pair.planned).abs() <= 0.1 * pair.planned + slack
}

#[test]
fn operations_launch_what_their_plans_say() {
    let device = match Device::open() {
        Ok(device) => device,
        Err(why) => {
            assert!(!gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {why}");
            return say(&format!("note: plans are not compared with launches: {why}"));
        }
    };
    if !device.emulated {
        return say("note: this driver does not count, plans are not compared with launches");
    }
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plan_launches.counters");
    let _ = std::fs::remove_file(&file);
    let vars = [("GPUEMU_COUNTERS", file.to_str()), ("GPUEMU_THREADS", Some("1")), ("GPUEMU_CHECK", Some("mem"))];
    child("child_runs_all_cases", &vars).expect("test result: ok");
    let counted = counters::read(&file).unwrap_or_else(|e| panic!("{e}"));
    let (mut at, mut schemes, mut wrong) = (0, Vec::new(), Vec::new());
    for (case, screen) in all_cases() {
        device.force_screen(screen);
        let plan = case.plan(device.facts()).expect("a plan");
        let end = (at + plan.launches.len()).min(counted.len());
        let rows = counters::compare(&plan, &counted[at..end]).unwrap_or_else(|e| panic!("{}: {e}", case.text()));
        at = end;
        schemes.extend(plan.launches.iter().filter_map(|l| l.sweep).map(|sweep| sweep.scheme));
        for (row, launch) in rows.iter().zip(&plan.launches) {
            // Every product is planned exactly; in f32 other arithmetic comes on top.
            let tensor = launch.arithmetic == Arithmetic::Tensor;
            let exact = !tensor || row.operations.counted == row.operations.planned;
            // What a block or a line leaves: a few words.
            let slack = 4096.0 + 16.0 * (case.n + case.m) as f64;
            let f32_too = tensor || row.operations.counted >= row.operations.planned;
            // How full the lists get depends on the data: they are planned full.
            let lists = case.op == Op::SemiHard && row.kernel.starts_with("mine_top_k");
            let near = |pair: Pair| if lists { pair.counted <= pair.planned + slack } else { near(pair, slack) };
            if !(exact && f32_too && near(row.read) && near(row.written)) {
                wrong.push(format!(
                    "{}: {} {:?} {:?} {:?}",
                    case.text(),
                    row.kernel,
                    row.operations,
                    row.read,
                    row.written
                ));
            }
        }
    }
    assert_eq!(at, counted.len(), "more was launched than planned");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    say(&format!("note: {at} launches compared with their plans, {} sweeps, schemes {:?}", schemes.len(), {
        schemes.sort_by_key(|scheme| format!("{scheme:?}"));
        schemes.dedup();
        schemes
    }));
}
