//! Plans on the host: every tile once, the same sums on every device, and what the benchmark shapes cost by the model. And
//! where there is a driver that counts, that operations launch what their plans say.
#![cfg(feature = "cuda")]

#[path = "../examples/roofline/cases.rs"]
#[allow(dead_code)]
mod cases;

use std::collections::HashMap;

use cases::{CONFIGURATIONS, Case, Op};
use simgrad::cuda::{
    Ceilings, PAIRWISE_WAVE_BYTES, PLANNED_MULTIPROCESSORS, Plan, PlanDevice, Scheme, SweepKernel, SweepPlan,
    SweepShape, TilePlace, goal_step_launches,
};
use simgrad::{DType, Error, PairwiseObjective, Precision};

const SCHEMES: [Scheme; 4] = [Scheme::WarpMma, Scheme::WarpSlices, Scheme::GroupMma, Scheme::GroupMmaSmall];
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
        for device in [PlanDevice::A100, PlanDevice::H200] {
            let half = n.div_ceil(128) * m.div_ceil(128) * 2 < PLANNED_MULTIPROCESSORS;
            let expected = if half { Scheme::WarpSlices } else { Scheme::WarpMma };
            assert_eq!(scheme(n, m, DType::F32, device), expected, "{n} x {m}");
        }
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
    let slices = SweepPlan::of_scheme(Scheme::WarpSlices, SweepKernel::Mine, shape(512, 512), PlanDevice::H200);
    assert_eq!(slices.grid, (16, 8, 1));
    assert!(blocks(&slices).all(|(x, y)| slices.block_tiles(x, y).count() == 1));
}

/// Bytes of both operands.
fn operands(case: &Case) -> f64 {
    (case.batch * (case.n + case.m) * case.d * case.dtype.size()) as f64
}

fn pairs(case: &Case) -> f64 {
    case.batch as f64 * case.n as f64 * case.m as f64
}

/// The plans of the sixteen configurations, with their numbers.
fn benchmarks() -> impl Iterator<Item = (u32, &'static Case, Plan)> {
    CONFIGURATIONS.iter().map(|c| (c.number, &c.case, c.case.plan(PlanDevice::H200).expect("a plan")))
}

/// Every sweep of a plan in every scheme, as it would be if its kernel had it.
fn in_every_scheme(plan: &Plan) -> impl Iterator<Item = SweepPlan> {
    let mut sweeps: Vec<SweepPlan> = plan.launches.iter().filter_map(|launch| launch.sweep).collect();
    // Waves are alike.
    sweeps.dedup();
    sweeps.into_iter().flat_map(move |sweep| {
        let warps = sweep.shape.dtype == DType::F32;
        let schemes = SCHEMES.iter().filter(move |&&scheme| {
            // The small tiles in f32 are for small batches.
            let slices = warps && sweep.shape.n <= 1024;
            if scheme == Scheme::WarpSlices { slices } else { !warps || scheme == Scheme::WarpMma }
        });
        schemes.map(move |&scheme| SweepPlan::of_scheme(scheme, sweep.kernel, sweep.shape, sweep.device))
    })
}

#[test]
fn benchmark_shapes_touch_their_operands_as_often_as_they_have_passes() {
    for (number, case, plan) in benchmarks() {
        let totals = plan.totals();
        let floor = match case.op {
            // Normalising reads and writes the operands, a sweep reads them again; f16 stays where it is.
            Op::CosineMatrix => {
                let passes = if case.dtype == DType::F16 { 2.0 } else { 3.0 };
                passes * operands(case) + 4.0 * pairs(case)
            }
            // With a screen: read in f32 twice more, written in 16 bits and read so twice instead of once in f32.
            Op::Mine => {
                let passes = if plan.launches.len() > 3 { 5.5 } else { 3.0 };
                passes * operands(case) + 0.05 * pairs(case)
            }
            Op::Ranks => 3.0 * operands(case) + 0.05 * pairs(case),
            _ => continue,
        };
        assert!(totals.bytes <= 1.10 * floor, "{number}: {} bytes, the floor is {floor}", totals.bytes);
    }
}

/// What the sweeps of the benchmark shapes read of device memory through an L2 of 60 MB, in operands, where that is more
/// than once: number, scheme, type, and the times of today's order. Nobody waits for it, as products take longer.
const READ_AGAIN: [(u32, Scheme, DType, f64); 9] = [
    (2, Scheme::WarpMma, DType::F32, 1.72),
    (2, Scheme::WarpMma, DType::Bf16, 4.40),
    (2, Scheme::GroupMma, DType::Bf16, 2.5),
    (5, Scheme::WarpMma, DType::Bf16, 16.5),
    (5, Scheme::GroupMma, DType::Bf16, 16.5),
    (6, Scheme::WarpMma, DType::F16, 16.53),
    (10, Scheme::GroupMmaSmall, DType::Bf16, 1.03),
    (11, Scheme::WarpMma, DType::Bf16, 32.5),
    (11, Scheme::GroupMma, DType::Bf16, 43.7),
];

#[test]
fn benchmark_shapes_read_their_operands_once_or_it_is_known_how_often() {
    for (number, case, plan) in benchmarks() {
        for sweep in in_every_scheme(&plan) {
            // Small tiles are for small batches.
            if sweep.scheme == Scheme::GroupMmaSmall && case.n > 1024 {
                continue;
            }
            let SweepShape { batch, n, m, d, dtype } = sweep.shape;
            let once = (batch * (n + m) * d * dtype.size()) as f64;
            let read = sweep.operand_traffic(60_000_000).expect("few enough tiles") as f64;
            let times = read / once;
            let this = (number, sweep.scheme, dtype);
            let known = READ_AGAIN.iter().find(|&&(of, scheme, dtype, _)| (of, scheme, dtype) == this);
            // A wave has few rows, so its sweep reads the columns at most once for each round of blocks.
            let wave = sweep.kernel == SweepKernel::PairwiseWeights;
            let most = if wave { f64::from(u8::from(known.is_some()) + 1) } else { known.map_or(1.0, |k| k.3) };
            assert!((1.0..=1.001 * most).contains(&times), "{number}: {:?} reads {times} times", sweep.scheme);
            if wave || most == 1.0 {
                continue;
            }
            // It comes at the ceiling of memory in less than half the time that the product takes at its own.
            let rate = if dtype == DType::F32 { Ceilings::H200.multiply_add } else { Ceilings::H200.tensor };
            let product = 2.0 * batch as f64 * n as f64 * m as f64 * d as f64;
            assert!(read / Ceilings::H200.bandwidth < 0.5 * product / rate, "{number}: memory is the bound");
            // And bands of rows would do away with most of it.
            if sweep.kernel != SweepKernel::CosineMatrix {
                let banded = SweepPlan { band: sweep.band_for_l2(), ..sweep };
                let read = banded.operand_traffic(60_000_000).expect("few enough tiles") as f64;
                let passes = (n as f64 * (d * dtype.size()) as f64 / 36e6).ceil();
                assert!(read <= (passes + 1.0) * once, "{number}: {read} bytes in bands of {}", banded.band);
                covers_few(&banded);
            }
        }
    }
}

/// As [`covers`], for the same division on a matrix that is quickly followed.
fn covers_few(plan: &SweepPlan) {
    let plan =
        SweepPlan::of_scheme(plan.scheme, plan.kernel, SweepShape { n: 9000, m: 5000, ..plan.shape }, plan.device);
    covers(&SweepPlan { band: 3, ..plan });
}

/// Bytes per pair that the waves of a benchmark read and write, with what L2 does not hold: above 6.5 where a wave of
/// [`PAIRWISE_WAVE_BYTES`](simgrad::cuda::PAIRWISE_WAVE_BYTES) has so few rows that the columns' sums, which every wave reads
/// and writes, and the columns themselves weigh.
const WAVES: [(u32, f64); 4] = [(9, 6.1), (10, 6.7), (11, 7.8), (12, 6.7)];

#[test]
fn waves_of_the_benchmark_shapes_move_few_bytes_per_pair() {
    let mut seen = 0;
    for (number, case, plan) in benchmarks() {
        if !matches!(case.op, Op::InfoNce | Op::SigLip) {
            continue;
        }
        let of_waves = |kernel: &str| kernel.starts_with("pairwise_weights") || kernel.starts_with("pairwise_grad");
        let waves = plan.launches.iter().filter(|launch| of_waves(launch.kernel));
        let bytes: f64 = waves.map(|l| l.read + l.written + l.read_again().expect("few enough tiles")).sum();
        let most = WAVES.iter().find(|(of, _)| *of == number).expect("a bound").1;
        let per_pair = bytes / pairs(case);
        assert!((6.0..=most).contains(&per_pair), "{number}: {per_pair} bytes per pair");
        seen += 1;
    }
    assert_eq!(seen, WAVES.len());
}

/// Benchmark shapes of which a scheme leaves more than 7 % of the device idle, with what it keeps busy. 14 has fewer tiles
/// than there are multiprocessors, 15 no even division.
const IDLE: [(u32, Scheme, f64); 3] =
    [(15, Scheme::WarpMma, 0.76), (15, Scheme::GroupMma, 0.928), (15, Scheme::GroupMmaSmall, 0.789)];

#[test]
fn benchmark_shapes_keep_132_multiprocessors_busy_or_it_is_known_how_many() {
    for (number, case, plan) in benchmarks() {
        for sweep in in_every_scheme(&plan) {
            let busy = sweep.tail_efficiency(132);
            if case.op == Op::Goal {
                // One tile per block: as many blocks as there are tiles.
                let tiles = sweep.shape.n.div_ceil(sweep.tile_rows) * sweep.shape.m.div_ceil(sweep.tile_cols);
                let small = sweep.scheme == Scheme::GroupMmaSmall;
                assert!(!small || (busy - tiles as f64 / 132.0).abs() < 1e-9, "{number}: {busy}");
                continue;
            }
            let least = IDLE.iter().find(|&&(of, scheme, _)| (of, scheme) == (number, sweep.scheme));
            let least = least.map_or(0.93, |known| known.2);
            assert!(busy >= least, "{number}: {:?} keeps {busy} of the device busy", sweep.scheme);
        }
    }
    let small = shape(1024, 1024);
    let small = SweepPlan::of_scheme(Scheme::GroupMmaSmall, SweepKernel::Mine, small, PlanDevice::H200);
    assert!(small.tail_efficiency(132) >= 0.93);
}

#[test]
fn a_goal_step_has_few_launches() {
    for n in [1, 2, 128, 512, 1024, 1025, 5000, 65_536] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for device in [PlanDevice::H200, PlanDevice::A100] {
                let plan = Case::new(Op::Goal, n, n, 1024, dtype).plan(device).expect("a plan");
                let most = if n <= 1024 { 3 } else { 4 };
                assert_eq!(plan.launches.len(), most, "{n} in {dtype}");
                assert_eq!(goal_step_launches(n) as usize, most, "{n}");
            }
        }
    }
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let plan = |n, d, dtype| Case::new(Op::Mine, n, 5, d, dtype).plan(PlanDevice::H200);
    assert!(matches!(plan(5, 0, DType::F32), Err(Error::EmptyDim { op: "mine", arg: "x" })));
    assert!(matches!(plan(5, 3, DType::F64), Err(Error::UnsupportedDType { op: "mine", arg: "x", .. })));
    assert!(matches!(plan(1 << 31, 3, DType::F32), Err(Error::TooLarge { op: "mine", arg: "x", .. })));
    // Nothing to do is no error.
    let empty = Case::new(Op::Mine, 0, 0, 3, DType::F32).plan(PlanDevice::H200).expect("a plan");
    assert!(empty.launches.is_empty() && empty.explain().contains("0 launches"));
    assert_eq!(empty.seconds_at(&Ceilings::H200), 0.0);
}

#[test]
fn a_plan_says_whether_the_precision_that_was_asked_for_is_used() {
    let old_code = PlanDevice { group_code: false, ..PlanDevice::H200 };
    let step = |dtype, precision, device| {
        let objective = PairwiseObjective::InfoNce { scale: 20.0 };
        let memory = PAIRWISE_WAVE_BYTES;
        let plan = Plan::pairwise_step(300, 300, 64, dtype, dtype, &objective, memory, 0, precision, device);
        plan.expect("a plan").explain()
    };
    let split = Precision::SplitBf16;
    assert!(step(DType::F32, split, PlanDevice::H200).contains("precision: split bf16"));
    for device in [PlanDevice::A100, old_code] {
        assert!(step(DType::F32, split, device).contains("precision: full, products of weights"), "{device:?}");
    }
    assert!(step(DType::F16, split, PlanDevice::H200).contains("precision: full, 16-bit rows"));
    assert!(!step(DType::F32, Precision::Full, PlanDevice::H200).contains("precision: "));
    // A matrix has no weights: it is split everywhere.
    let plan = Plan::cosine_matrix(1, 300, 300, 64, DType::F32, DType::F32, split, PlanDevice::A100);
    assert!(plan.expect("a plan").explain().contains("precision: split bf16"));
}

#[test]
fn the_largest_extents_have_plans_that_can_be_explained() {
    let most = i32::MAX as usize;
    for op in [Op::Mine, Op::Ranks, Op::CosineMatrix, Op::SemiHard] {
        let plan = Case::new(op, most / 2, most / 2, 1024, DType::Bf16).plan(PlanDevice::H200).expect("a plan");
        assert!(plan.totals().modelled_bytes.is_none());
        assert!(plan.explain().contains("16 x 16") || op == Op::CosineMatrix);
    }
}
