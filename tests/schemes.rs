//! The same operation in every scheme that sweeps tiles: tiles by warps, by warpgroups, and small ones by warpgroups.
//!
//! The schemes for warpgroups are one engine: they form a similarity in one order of features, so all of their bits agree.
//! Those of the scheme for warps are as close as sums in another order are. In f32 there are two schemes for warps, whose
//! similarities have the same bits.
#![cfg(feature = "cuda")]

mod cuda_support;

use cuda_support::{gpu_required, numbers, say};
use half::{bf16, f16};
use simgrad::cuda::Scheme;
use simgrad::cuda::host::{self, Cuda};
use simgrad::{
    Element, GradientOf, Groups, Hardest, MatMut, MatRef, MineOptions, Mined, NONE, Normalization, Objective,
    StepOptions, StepReport,
};

/// CUDA on any device.
fn any_cuda() -> Option<Cuda> {
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(reason) => {
            assert!(!gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            say(&format!("note: the tests of this binary are skipped: {reason}"));
            None
        }
    }
}

/// CUDA on a device that has all schemes, by itself or as it is emulated.
fn cuda() -> Option<Cuda> {
    let cuda = any_cuda()?;
    let device = cuda.kernels().plan_device();
    if device.compute_capability == (9, 0) && device.group_code {
        return Some(cuda);
    }
    say(&format!(
        "note: skipped, there is one scheme: compute capability {:?}, built for sm_90a: {}",
        device.compute_capability, device.group_code
    ));
    None
}

const GROUPS: [Scheme; 2] = [Scheme::GroupMma, Scheme::GroupMmaSmall];

fn in_scheme<R>(cuda: &Cuda, scheme: Scheme, run: impl FnOnce() -> R) -> R {
    cuda.kernels().force_scheme(Some(scheme));
    let result = run();
    cuda.kernels().force_scheme(None);
    result
}

fn ids(len: usize, kinds: usize, seed: u64) -> Vec<i64> {
    numbers::<f32>(len, seed).iter().map(|v| ((v + 1.0) * kinds as f32) as i64).collect()
}

/// Values within `bound`, indices equal unless their values are as close.
fn assert_close(name: &str, got: &Hardest<f32>, want: &Hardest<f32>, bound: f32) {
    for (i, (&g, &w)) in got.value.iter().zip(&want.value).enumerate() {
        assert!((g - w).abs() <= bound || g == w || (g.is_nan() && w.is_nan()), "{name}: value {i}: {g} and {w}");
        // Ties in the last bits may fall either way; none without a candidate may.
        assert_eq!(got.index[i] == NONE, want.index[i] == NONE, "{name}: index {i}");
    }
    let same = got.index.iter().zip(&want.index).filter(|(g, w)| g == w).count();
    assert!(same * 50 >= got.index.len() * 49, "{name}: {same} indices of {} agree", got.index.len());
}

/// Everything, with values as bits.
fn bits(m: &Mined<f32>) -> Vec<Vec<u32>> {
    let of =
        |v: &[f32]| v.iter().map(|v| if v.is_nan() { u32::MAX } else { (v + 0.0).to_bits() }).collect::<Vec<u32>>();
    let index = |v: &[i32]| v.iter().map(|&v| v as u32).collect::<Vec<u32>>();
    let side = |h: &Hardest<f32>| [of(&h.value), index(&h.index), of(&h.second)];
    [vec![of(&m.positive)], side(&m.rows).to_vec(), side(&m.cols).to_vec()].concat()
}

/// Rows with what is special among them: zeros, NaN, infinities, repetitions.
fn special<T>(n: usize, d: usize, seed: u64) -> Vec<T>
where
    T: simgrad::cuda::DeviceElement + Element,
{
    let mut x = numbers::<T>(n * d, seed);
    let mut fill = |row: usize, v: f64| {
        if row < n {
            x[row * d..(row + 1) * d].fill(T::from_f64(v));
        }
    };
    fill(3, 0.0);
    fill(131, f64::NAN);
    fill(140, f64::INFINITY);
    if n > 200 {
        let (from, to) = (5 * d, 200 * d);
        x.copy_within(from..from + d, to);
    }
    x
}

fn mines<T: simgrad::cuda::DeviceElement + Element<Acc = f32>>((n, m, d): (usize, usize, usize), seed: u64) {
    let Some(cuda) = cuda() else { return };
    let (row_ids, col_ids) = (ids(n, 4, 11), ids(m, 4, 12));
    for (plain, second, grouped) in
        [(true, false, false), (true, true, true), (false, false, true), (false, true, false)]
    {
        let (x, y) = if plain {
            (numbers::<T>(n * d, seed), numbers::<T>(m * d, seed + 1))
        } else {
            (special::<T>(n, d, seed), special::<T>(m, d, seed + 1))
        };
        let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
        let groups = grouped.then_some(Groups { rows: &row_ids, cols: &col_ids });
        for normalization in [Normalization::L2, Normalization::None] {
            let options = MineOptions { normalization, groups, second };
            let mine = |scheme| in_scheme(&cuda, scheme, || host::mine(&cuda, x, y, &options).unwrap());
            let [group, small] = GROUPS.map(mine);
            let name = format!("{} {n}x{m}x{d} plain {plain} second {second} {normalization:?}", T::DTYPE);
            assert_eq!(bits(&group), bits(&small), "{name}");
            let warp = mine(Scheme::WarpMma);
            let bound = if normalization == Normalization::L2 { 2e-6 } else { 2e-6 * d as f32 };
            assert_close(&name, &group.rows, &warp.rows, bound);
            assert_close(&name, &group.cols, &warp.cols, bound);
        }
    }
}

#[test]
fn mining_of_one_tile_and_less() {
    mines::<bf16>((5, 7, 3), 1);
    mines::<f16>((128, 64, 64), 2);
    mines::<bf16>((1, 300, 72), 3);
}

#[test]
fn mining_of_several_tiles_and_clusters() {
    mines::<bf16>((300, 270, 72), 4);
    mines::<f16>((129, 650, 130), 5);
    mines::<bf16>((650, 129, 65), 6);
}

/// In f32, tiles whose features the warps of a block share against those of one chain after the other.
fn mines_in_slices((n, m, d): (usize, usize, usize), seed: u64) {
    let Some(cuda) = any_cuda() else { return };
    let (row_ids, col_ids) = (ids(n, 4, 11), ids(m, 4, 12));
    for (plain, second, grouped) in [(true, true, true), (false, false, true), (false, true, false)] {
        let (x, y) = if plain {
            (numbers::<f32>(n * d, seed), numbers::<f32>(m * d, seed + 1))
        } else {
            (special::<f32>(n, d, seed), special::<f32>(m, d, seed + 1))
        };
        let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
        let groups = grouped.then_some(Groups { rows: &row_ids, cols: &col_ids });
        for normalization in [Normalization::L2, Normalization::None] {
            let options = MineOptions { normalization, groups, second };
            let mine = |scheme| bits(&in_scheme(&cuda, scheme, || host::mine(&cuda, x, y, &options).unwrap()));
            let name = format!("f32 {n}x{m}x{d} plain {plain} second {second} {normalization:?}");
            assert_eq!(mine(Scheme::WarpSlices), mine(Scheme::WarpMma), "{name}");
        }
    }
}

#[test]
fn mining_in_slices_has_the_bits_of_whole_chains() {
    // Less than a half step, a whole one, rounds that end within a step and behind one.
    mines_in_slices((5, 7, 3), 31);
    mines_in_slices((64, 33, 16), 32);
    mines_in_slices((1, 300, 32), 33);
    mines_in_slices((300, 70, 161), 34);
    mines_in_slices((129, 65, 300), 35);
}

#[test]
fn mining_in_slices_of_many_tiles_for_a_block() {
    mines_in_slices((1300, 600, 20), 36);
}

#[test]
fn goal_steps_in_slices_have_the_bits_of_whole_chains_but_for_relative_similarities() {
    let Some(cuda) = any_cuda() else { return };
    let (n, d) = (200, 170);
    let (x, y) = (numbers::<f32>(n * d, 41), numbers::<f32>(n * d, 42));
    let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
    for (name, exact) in [("hinge-con", true), ("nca-sig", true), ("cir-lin_ms", false), ("con-sig_ms", false)] {
        let objective: Objective = name.parse().unwrap();
        let [slices, warp] = [Scheme::WarpSlices, Scheme::WarpMma].map(|scheme| {
            let (mut dx, mut dy) = (vec![f32::NAN; n * d], vec![f32::NAN; n * d]);
            let out = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
            let options = StepOptions::default();
            in_scheme(&cuda, scheme, || host::goal_step(&cuda, x, y, &objective, &options, out.0, out.1).unwrap());
            [dx, dy].concat()
        });
        let largest = warp.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
        for (k, (s, w)) in slices.iter().zip(&warp).enumerate() {
            let near = if exact { s.to_bits() == w.to_bits() } else { (s - w).abs() <= 1e-6 * largest };
            assert!(near, "{name}: gradient {k}: {s} and {w}");
        }
    }
}

fn steps<T>(n: usize, d: usize, objective: &str)
where
    T: simgrad::cuda::DeviceElement + Element<Acc = f32>,
    f32: GradientOf<T>,
{
    let Some(cuda) = cuda() else { return };
    let (x, y) = (numbers::<T>(n * d, 21), numbers::<T>(n * d, 22));
    let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, n, d).unwrap());
    let objective: Objective = objective.parse().unwrap();
    let step = |scheme| -> (Vec<f32>, Vec<f32>, StepReport) {
        let (mut dx, mut dy) = (vec![f32::NAN; n * d], vec![f32::NAN; n * d]);
        let out = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, n, d).unwrap());
        let options = StepOptions::default();
        let report =
            in_scheme(&cuda, scheme, || host::goal_step(&cuda, x, y, &objective, &options, out.0, out.1).unwrap());
        (dx, dy, report)
    };
    let [group, small] = GROUPS.map(step);
    let warp = step(Scheme::WarpMma);
    let largest = warp.0.iter().chain(&warp.1).fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    for (name, other) in [("small", &small), ("warp", &warp)] {
        assert_eq!(group.2.pairs, other.2.pairs);
        assert!((group.2.loss - other.2.loss).abs() <= 1e-5 * other.2.loss.abs().max(1e-3), "{objective} {name}: loss");
        let ours = group.0.iter().chain(&group.1);
        for (k, (g, w)) in ours.zip(other.0.iter().chain(&other.1)).enumerate() {
            assert!((g - w).abs() <= 1e-4 * largest, "{objective} {name}: gradient {k}: {g} and {w}");
        }
    }
}

#[test]
fn goal_steps_with_and_without_statistics() {
    for objective in ["hinge-con", "nca-sig", "cir-lin_ms", "con-sig_ms"] {
        steps::<bf16>(200, 40, objective);
        steps::<f16>(300, 33, objective);
    }
}
