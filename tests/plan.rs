//! Plans on the host: every tile once, the same sums on every device, and what the benchmark shapes cost by the model. And
//! where there is a driver that counts, that operations launch what their plans say.
#![cfg(feature = "cuda")]

#[path = "../examples/roofline/cases.rs"]
#[allow(dead_code)]
mod cases;

use std::collections::HashMap;

use cases::{CONFIGURATIONS, Case, Op};
use simgrad::DType;
use simgrad::cuda::{PLANNED_MULTIPROCESSORS, PlanDevice, Scheme, SweepKernel, SweepPlan, SweepShape, TilePlace};

const SCHEMES: [Scheme; 3] = [Scheme::WarpMma, Scheme::GroupMma, Scheme::GroupMmaSmall];
const SHAPES: [(usize, usize); 14] = [
    (1, 1),
    (2, 300),
    (127, 129),
    (128, 64),
    (129, 257),
    (256, 256),
    (640, 1000),
    (1024, 1024),
    (1025, 1023),
    (3000, 65),
    (50, 9000),
    (4096, 4096),
    (5000, 2500),
    (10_007, 9973),
];

fn shape(n: usize, m: usize) -> SweepShape {
    SweepShape { batch: 1, n, m, d: 512, dtype: DType::Bf16 }
}

fn blocks(plan: &SweepPlan) -> impl Iterator<Item = (u32, u32)> {
    let (across, down, _) = plan.grid;
    (0..down).flat_map(move |y| (0..across).map(move |x| (x, y)))
}

/// Checks that every tile is made once, all its elements with it, and that lines meet their tiles in ascending order.
#[track_caller]
fn covers(plan: &SweepPlan) {
    let SweepShape { batch, n, m, .. } = plan.shape;
    let unit = plan.tile_rows * plan.cluster;
    let (rows, cols) = (n.div_ceil(unit) * plan.cluster, m.div_ceil(plan.tile_cols));
    let mut made = vec![0u8; batch * rows * cols];
    let mut elements = 0;
    for (x, y) in blocks(plan) {
        let mut last: HashMap<(bool, usize, usize), usize> = HashMap::new();
        for TilePlace { matrix, row, col } in plan.block_tiles(x, y) {
            assert!(matrix < batch && row < rows && col < cols, "{plan:?} has no tile {row}, {col}");
            made[(matrix * rows + row) * cols + col] += 1;
            // Rows beyond the last, which a mask leaves out.
            let tall = n.saturating_sub(row * plan.tile_rows).min(plan.tile_rows);
            elements += tall * (m - col * plan.tile_cols).min(plan.tile_cols);
            for (line, at) in [((false, matrix, row), col), ((true, matrix, col), row)] {
                let before = last.insert(line, at);
                assert!(before.is_none_or(|before| before < at), "{plan:?} goes back at {row}, {col}");
            }
        }
    }
    assert!(made.iter().all(|&times| times == 1), "{plan:?} makes a tile {:?} times", made.iter().max());
    assert_eq!(elements, batch * n * m, "{plan:?}");
}

#[test]
fn every_tile_is_made_once_and_lines_meet_theirs_in_order() {
    for (n, m) in SHAPES {
        for scheme in SCHEMES {
            for kernel in [SweepKernel::Mine, SweepKernel::CosineMatrix] {
                covers(&SweepPlan::of_scheme(scheme, kernel, shape(n, m), PlanDevice::H200));
            }
        }
    }
}

#[test]
fn every_tile_of_a_batch_is_made_once_on_any_number_of_multiprocessors() {
    for (batch, n, m) in [(1, 2000, 1100), (5, 300, 200), (70, 10, 129)] {
        for multiprocessors in 1..=200 {
            for scheme in SCHEMES {
                let shape = SweepShape { batch, ..shape(n, m) };
                let device = PlanDevice { multiprocessors, ..PlanDevice::H200 };
                covers(&SweepPlan::of_scheme(scheme, SweepKernel::CosineMatrix, shape, device));
            }
        }
    }
}

#[test]
fn no_sum_depends_on_the_number_of_multiprocessors() {
    let largest = (i32::MAX as usize, i32::MAX as usize);
    for (n, m) in SHAPES.into_iter().chain([largest, (1, largest.1), (largest.0, 1), (65_536, 131_072)]) {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            for group_code in [false, true] {
                let shape = SweepShape { dtype, ..shape(n, m) };
                let plan = |multiprocessors| {
                    let device = PlanDevice { multiprocessors, group_code, ..PlanDevice::H200 };
                    SCHEMES
                        .map(|scheme| SweepPlan::of_scheme(scheme, SweepKernel::PairwiseStats, shape, device))
                        .into_iter()
                        .chain([SweepPlan::new(SweepKernel::Mine, shape, device)])
                        .map(|plan| (plan.scheme, plan.splits, plan.grid, plan.tile_rows, plan.tile_cols, plan.band))
                        .collect::<Vec<_>>()
                };
                let planned = plan(132);
                for multiprocessors in 1..=200 {
                    assert_eq!(plan(multiprocessors), planned, "{n} x {m} on {multiprocessors}");
                }
            }
        }
    }
}

#[test]
fn parts_of_the_largest_matrices_follow_each_other_without_a_gap_and_fit_32_bits() {
    let most = i32::MAX as usize;
    for (n, m) in [(most, most), (most, 1), (1, most), (most - 127, 12_345)] {
        for scheme in SCHEMES {
            let plan = SweepPlan::of_scheme(scheme, SweepKernel::Mine, shape(n, m), PlanDevice::H200);
            let unit = plan.tile_rows * plan.cluster;
            for (units, parts) in
                [(n.div_ceil(unit), plan.splits.rows / plan.cluster), (m.div_ceil(plan.tile_cols), plan.splits.cols)]
            {
                assert!(u32::try_from(units * parts).is_ok(), "part_begin() multiplies in 32 bits");
            }
            let first = |x: u32, y: u32| plan.block_tiles(x, y).next().expect("every block has a tile");
            let (across, down, _) = plan.grid;
            assert_eq!((first(0, 0).row, first(0, 0).col), (0, 0));
            assert!((1..across).all(|x| first(x, 0).col > first(x - 1, 0).col));
            let step = plan.cluster as u32;
            assert!((step..down).all(|y| first(0, y).row > first(0, y - step).row));
            // Both kinds of partial results are few.
            assert!((1..=16).contains(&plan.splits.rows) && (1..=16).contains(&plan.splits.cols));
        }
    }
}

#[test]
fn small_batches_take_the_small_tiles_and_nothing_takes_what_its_device_lacks() {
    let scheme = |n, m, dtype, device| {
        let plan = SweepPlan::new(SweepKernel::Mine, SweepShape { dtype, ..shape(n, m) }, device);
        assert!(SweepKernel::Mine.schemes().contains(&plan.scheme));
        plan.scheme
    };
    let old = PlanDevice { group_code: false, ..PlanDevice::H200 };
    let newer = PlanDevice { compute_capability: (10, 0), ..PlanDevice::H200 };
    for (n, m) in SHAPES {
        assert_eq!(scheme(n, m, DType::F32, PlanDevice::H200), Scheme::WarpMma);
        for device in [PlanDevice::A100, old, newer] {
            assert_eq!(scheme(n, m, DType::Bf16, device), Scheme::WarpMma);
        }
        let forced = PlanDevice { forced: Some(Scheme::WarpMma), ..PlanDevice::H200 };
        assert_eq!(scheme(n, m, DType::Bf16, forced), Scheme::WarpMma);
        if SweepKernel::Mine.schemes().contains(&Scheme::GroupMmaSmall) {
            let half = n.div_ceil(128) * m.div_ceil(256) * 2 < PLANNED_MULTIPROCESSORS;
            let expected = if half { Scheme::GroupMmaSmall } else { Scheme::GroupMma };
            assert_eq!(scheme(n, m, DType::Bf16, PlanDevice::H200), expected, "{n} x {m}");
        }
    }
    let small = SweepPlan::of_scheme(Scheme::GroupMmaSmall, SweepKernel::Mine, shape(1024, 1024), PlanDevice::H200);
    assert_eq!(small.grid, (16, 8, 1));
    assert!(blocks(&small).all(|(x, y)| small.block_tiles(x, y).count() == 1));
}
