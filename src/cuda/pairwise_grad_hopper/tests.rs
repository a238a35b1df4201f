//! Both schemes of the products against f64, and against each other.

use std::sync::Arc;

use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::{bf16, f16};

use super::*;
use crate::cuda::descriptor::RawMat;
use crate::cuda::gather::RawUpstream;
use crate::cuda::pairwise_gradient::SplitProducts;
use crate::cuda::pairwise_plan::waves;
use crate::cuda::plan::Splits;
use crate::cuda::prepare::Operand;
use crate::cuda::{DeviceElement, open_context};
use crate::options::WriteMode;

/// The products do not ask how the sweeps before them were dealt.
const fn one_part(_: usize) -> Splits {
    Splits { rows: 1, cols: 1 }
}

/// Rows behind the results that nothing may write to.
const GUARD: usize = 3;
const POISON: f32 = f32::from_bits(0x7fc0_beef);

/// The first device if it has the scheme; elsewhere the reason is said, and under `SIMGRAD_REQUIRE_GPU=1` no device at all is
/// a failure.
fn device() -> Option<(Arc<CudaStream>, Kernels)> {
    let opened = open_context(0).and_then(|context| Ok((Kernels::load(&context)?, context)));
    let required = std::env::var_os("SIMGRAD_REQUIRE_GPU").is_some_and(|v| v != "0" && !v.is_empty());
    match opened {
        Ok((kernels, context)) if kernels.plan_device().runs(Scheme::GroupMma, DType::Bf16) => {
            Some((context.new_stream().unwrap(), kernels))
        }
        Ok((kernels, _)) => {
            eprintln!("note: skipped: {:?} does not run code for sm_90a, or there is none", kernels.device());
            None
        }
        Err(reason) => {
            assert!(!required, "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            eprintln!("note: skipped: {reason}");
            None
        }
    }
}

/// In −1 … 1.
fn numbers(len: usize, mut state: u64) -> Vec<f32> {
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

struct Case {
    shape: Shape,
    per_wave: usize,
    /// Elements from one row of an operand to the next.
    ld: usize,
    /// Every so many rows one is skipped and holds NaN; 0: none.
    skips: usize,
}

const fn case([n, m, d]: [usize; 3], per_wave: usize, ld: usize, skips: usize) -> Case {
    Case { shape: Shape { n, m, d, single: false }, per_wave, ld, skips }
}

struct Data<T> {
    w: Vec<f32>,
    ld_weights: usize,
    rows: [Vec<T>; 2],
    skip: [Vec<u8>; 2],
}

impl<T: DeviceElement> Data<T> {
    fn new(case: &Case) -> Self {
        let Shape { n, m, d, .. } = case.shape;
        let ld_weights = m.next_multiple_of(TILE);
        let skip = [n, m].map(|rows| (0..rows).map(|i| u8::from(case.skips > 0 && i % case.skips == 1)).collect());
        let skip: [Vec<u8>; 2] = skip;
        let random = numbers(n * m, 3);
        let mut w = vec![0.0; n.next_multiple_of(TILE) * ld_weights];
        for i in (0..n).filter(|&i| skip[0][i] == 0) {
            for j in (0..m).filter(|&j| skip[1][j] == 0) {
                // Of very different sizes, as weights are.
                let weight = random[i * m + j].powi(9);
                let in_parts = T::DTYPE == DType::F32;
                w[i * ld_weights + j] = if in_parts { weight } else { bf16::from_f32(weight).to_f32() };
            }
        }
        let rows = [(n, 5), (m, 7)].map(|(rows, seed)| numbers(rows * case.ld, seed));
        let value = |side: usize, at: usize| match (skip[side][at / case.ld], at % case.ld < d) {
            // What lies behind a row is no part of it.
            (0, true) => f64::from(rows[side][at]),
            _ => f64::NAN,
        };
        let rows = [0, 1].map(|side| (0..rows[side].len()).map(|at| T::from_f64(value(side, at))).collect());
        Self { w, ld_weights, rows, skip }
    }

    /// `gx` and `gy` in f64, each with the sum of magnitudes.
    fn reference(&self, case: &Case) -> [Vec<(f64, f64)>; 2] {
        let Shape { n, m, d, .. } = case.shape;
        let mut g = [vec![(0.0, 0.0); n * d], vec![(0.0, 0.0); m * d]];
        for i in 0..n {
            for j in 0..m {
                let w = f64::from(self.w[i * self.ld_weights + j]);
                if w != 0.0 {
                    for c in 0..d {
                        let mut add = |side: usize, row: usize, v: T| {
                            let sum = &mut g[side][row * d + c];
                            *sum = (sum.0 + w * v.to_f64(), sum.1 + (w * v.to_f64()).abs());
                        };
                        add(0, i, self.rows[1][j * case.ld + c]);
                        add(1, j, self.rows[0][i * case.ld + c]);
                    }
                }
            }
        }
        g
    }
}

/// What bf16 holds of a number, and of what it does not hold.
fn parts_of(v: f32) -> [bf16; 2] {
    let hi = bf16::from_f32(v);
    [hi, if v.is_finite() { bf16::from_f32(v - hi.to_f32()) } else { bf16::ZERO }]
}

/// Rows of f32 as `split_f32` leaves those that it does not scale.
fn in_parts<T: DeviceElement>(case: &Case, rows: &[T], of_x: bool) -> Vec<bf16> {
    let (d, width) = (case.shape.d, split_depth(case.shape.d));
    let depth = width / 3;
    let mut out = vec![bf16::ZERO; rows.len() / case.ld * width];
    for (from, to) in rows.chunks(case.ld).zip(out.chunks_mut(width)) {
        for (k, v) in from[..d].iter().enumerate() {
            let [hi, lo] = parts_of(v.to_f64() as f32);
            let finite = if hi.to_f32().is_finite() { hi } else { bf16::ZERO };
            (to[k], to[depth + k], to[2 * depth + k]) = if of_x { (lo, finite, hi) } else { (finite, lo, hi) };
        }
    }
    out
}

fn address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}

/// Both results with their padding, after `run` has enqueued the products of every wave.
fn outcome<T: DeviceElement>(
    stream: &Arc<CudaStream>,
    case: &Case,
    data: &Data<T>,
    run: impl Fn(&GradientStep, &Wave),
) -> [Vec<f32>; 2] {
    let Shape { n, m, d, .. } = case.shape;
    let ld_sums = d.next_multiple_of(8);
    let w: Vec<bf16> = [0, 1].iter().flat_map(|&part| data.w.iter().map(move |&w| parts_of(w)[part])).collect();
    let w = stream.clone_htod(&w).unwrap();
    let wide = [0, 1].map(|side| stream.clone_htod(&in_parts(case, &data.rows[side], side == 0)).unwrap());
    let split = (T::DTYPE == DType::F32).then(|| SplitProducts {
        operands: [0, 1].map(|side| Operand {
            ptr: address(&wide[side], stream),
            row_stride: split_depth(d),
            batch_stride: 0,
            inv: 0,
            inv_batch_stride: 0,
        }),
        rest: n.next_multiple_of(TILE),
    });
    let rows = [0, 1].map(|side| stream.clone_htod(&data.rows[side]).unwrap());
    let skip = [0, 1].map(|side| stream.clone_htod(&data.skip[side]).unwrap());
    let sums = [n, m].map(|rows| stream.clone_htod(&vec![POISON; (rows + GUARD) * ld_sums]).unwrap());
    let parts = [n, m].map(|rows| {
        let PartsShape { padded, ld } = PartsShape::new(rows, d);
        stream.clone_htod(&vec![bf16::NAN; 2 * padded * ld]).unwrap()
    });
    let at = |side: usize| Operand {
        ptr: address(&rows[side], stream),
        row_stride: case.ld,
        batch_stride: 0,
        inv: 0,
        inv_batch_stride: 0,
    };
    for wave in waves(case.shape, case.per_wave, one_part) {
        let before = (wave.first * TILE * data.ld_weights * size_of::<bf16>()) as u64;
        let step = GradientStep {
            op: "test",
            dtype: T::DTYPE,
            shape: case.shape,
            operands: [at(0), at(1)],
            inv: [0; 2],
            exponent: [0; 2],
            skip: [0, 1].map(|side| if case.skips > 0 { address(&skip[side], stream) } else { 0 }),
            parts: [0, 1].map(|side| address(&parts[side], stream)),
            split,
            weights: address(&w, stream) + before,
            ld_weights: data.ld_weights,
            sums: [0, 1].map(|side| address(&sums[side], stream)),
            ld_sums,
            diagonal: 0,
            write: WriteMode::Overwrite,
            upstream: RawUpstream::Host(1.0),
            dx: RawMat::new(0, 0, d, DType::F32),
            dy: RawMat::new(0, 0, d, DType::F32),
            report: 0,
            more_reports: 0,
        };
        run(&step, &wave);
    }
    stream.synchronize().unwrap();
    sums.map(|sums| stream.clone_dtoh(&sums).unwrap())
}

#[track_caller]
fn check(name: &str, case: &Case, got: &[Vec<f32>; 2], want: &[Vec<(f64, f64)>; 2], off: f64) {
    let Shape { n, m, d, .. } = case.shape;
    let ld = d.next_multiple_of(8);
    for (side, rows) in [n, m].into_iter().enumerate() {
        for (at, &g) in got[side].iter().enumerate() {
            let (row, col) = (at / ld, at % ld);
            if row >= rows {
                assert_eq!(g.to_bits(), POISON.to_bits(), "{name}: behind the rows, {side} [{row}, {col}]");
            } else if col < d {
                let (w, magnitude) = want[side][row * d + col];
                let allowed = off * magnitude + 1e-30;
                assert!((f64::from(g) - w).abs() <= allowed, "{name}: {side} [{row}, {col}]: {g:e}, should be {w:e}");
            }
        }
    }
}

/// Sums are in f32, of tensor cores with a few bits less.
const SUMS: f64 = 1e-5;

fn both_schemes<T: DeviceElement + Zeroable>(stream: &Arc<CudaStream>, kernels: &Kernels, case: &Case) {
    let data = Data::<T>::new(case);
    let want = data.reference(case);
    // SAFETY: the buffers live until the stream has been waited for, and are as large as the step says.
    let warps = outcome(stream, case, &data, |step, wave| unsafe {
        step.products_by_warps(kernels, stream, wave).unwrap();
    });
    let shape = case.shape;
    let name = |scheme: &str| format!("{} {shape:?} {scheme}", T::DTYPE);
    check(&name("warps"), case, &warps, &want, SUMS);
    groups(stream, kernels, case, &data, SUMS);
}

/// In tiles of every width, by many clusters and by few.
fn groups<T: DeviceElement>(stream: &Arc<CudaStream>, kernels: &Kernels, case: &Case, data: &Data<T>, off: f64) {
    let (want, shape) = (data.reference(case), case.shape);
    let name = |scheme: &str| format!("{} {shape:?} {scheme}", T::DTYPE);
    let mut first = None;
    for (cols, clusters) in [(128, 66), (256, 1), (256, 3)] {
        // SAFETY: as above.
        let groups = outcome(stream, case, data, |step, wave| unsafe {
            if wave.first == 0 {
                step.split_by_groups(kernels, stream).unwrap();
            }
            let tiles = Tiles::of_cols(shape, wave, cols);
            step.launch_groups(kernels, stream, wave, &tiles, clusters.min(tiles.clusters(132))).unwrap();
        });
        let name = name(&format!("groups of {cols} columns, {clusters} clusters"));
        check(&name, case, &groups, &want, off);
        let bits = groups.map(|g| g.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{name}: other bits than the first");
    }
}

#[test]
fn both_schemes_make_the_same_products() {
    let Some((stream, kernels)) = device() else { return };
    for case in [
        case([1, 1, 8], 1, 8, 0),
        // Rows of less than a panel, with something behind them; several waves, the last of one row.
        case([257, 70, 24], 1, 32, 0),
        // Whole panels; more steps for columns than for rows; a skipped row in every step.
        case([400, 130, 192], 2, 192, 7),
        // Two wide tiles beside each other, of which one is not full; many skipped rows.
        case([140, 300, 320], 1, 320, 2),
        // Several tiles for every cluster.
        case([300, 700, 264], 2, 272, 50),
    ] {
        both_schemes::<bf16>(&stream, &kernels, &case);
        both_schemes::<f16>(&stream, &kernels, &case);
        // Both factors are off by 2^-16 at most.
        groups(&stream, &kernels, &case, &Data::<f32>::new(&case), SUMS + 0.5f64.powi(15));
    }
}

#[test]
fn every_tile_has_its_steps_and_widths_follow_the_shape() {
    let wave = |first, end| Wave { first, end, ..waves(Shape { n: 1, m: 1, d: 8, single: false }, 1, one_part)[0] };
    let large = Shape { n: 65_536, m: 65_536, d: 512, single: false };
    let tiles = Tiles::new(large, &wave(64, 128));
    assert_eq!(tiles, Tiles { cols: 256, across: 2, counts: [64, 512], steps: [1024, 128] });
    assert_eq!((tiles.clusters(132), tiles.clusters(1)), (66, 1));
    let ragged = Shape { n: 1000, m: 900, d: 520, single: true };
    assert_eq!(Tiles::new(ragged, &wave(4, 8)), Tiles { cols: 128, across: 5, counts: [10, 20], steps: [15, 8] });
    assert_eq!(Tiles::new(Shape { d: 128, ..large }, &wave(0, 64)).cols, 128);
    assert_eq!(PartsShape::new(65, 65), PartsShape { padded: 128, ld: 128 });
}
