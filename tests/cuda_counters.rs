//! What the kernels of mining and of a GOAL step do to memory and to the tensor cores, counted by a driver that counts.
//!
//! The counts do not depend on the machine. `cargo test --test cuda_counters -- --nocapture` prints the table that
//! docs/kernels.md shows.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::ops::RangeInclusive;

use cuda_support::counters::{self, Launch, launches_on};
use cuda_support::pairwise::{PLENTY, Step, StepOf, plain};
use cuda_support::{device, gpu_required, is_child, numbers, say};
use half::bf16;
use simgrad::cuda::host::{self, Cuda};
use simgrad::{
    CosineOptions, Error, MatMut, MatRef, MineOptions, Objective, PairwiseObjective, PairwiseOptions, PairwisePart,
    RecallOptions, StepOptions,
};

const N: usize = 1024;
const D: usize = 512;
/// Most row or column splits of the sweep; the tiles of this shape are fewer.
const SPLITS: u64 = N as u64 / 128;
/// Operations of a product.
const PRODUCT: f64 = 2.0 * (N * N * D) as f64;

/// Runs an operation on `n` and `n` rows in host memory, with room for their gradients.
fn on_host(n: usize, d: usize, operation: impl FnOnce(&Cuda, [MatRef<'_, bf16>; 2], [MatMut<'_, f32>; 2])) {
    let cuda = Cuda::new(0).unwrap();
    let (x, y) = (numbers::<bf16>(n * d, 1), numbers::<bf16>(n * d, 2));
    let (mut dx, mut dy) = (vec![0.0f32; n * d], vec![0.0f32; n * d]);
    let inputs = [&x, &y].map(|rows| MatRef::new(rows, n, d).unwrap());
    operation(&cuda, inputs, [&mut dx, &mut dy].map(|rows| MatMut::new(rows, n, d).unwrap()));
}

#[test]
fn child_mines() {
    if is_child("child_mines") {
        on_host(N, D, |cuda, [x, y], _| {
            let mined = host::mine(cuda, x, y, &MineOptions::default()).unwrap();
            assert!(mined.rows.index.iter().chain(&mined.cols.index).all(|&i| i >= 0));
        });
    }
}

fn child_steps(objective: &str, n: usize) {
    on_host(n, D, |cuda, [x, y], [dx, dy]| {
        let objective: Objective = objective.parse().unwrap();
        host::goal_step(cuda, x, y, &objective, &StepOptions::default(), dx, dy).unwrap();
    });
}

#[test]
fn child_steps_hinge_con() {
    if is_child("child_steps_hinge_con") {
        child_steps("hinge-con", N);
    }
}

#[test]
fn child_steps_nca_sig_ms() {
    if is_child("child_steps_nca_sig_ms") {
        child_steps("nca-sig_ms", N);
    }
}

#[test]
fn child_steps_hinge_con_of_a_large_batch() {
    if is_child("child_steps_hinge_con_of_a_large_batch") {
        child_steps("hinge-con", N + 128);
    }
}

#[test]
fn child_steps_nca_sig_ms_of_a_large_batch() {
    if is_child("child_steps_nca_sig_ms_of_a_large_batch") {
        child_steps("nca-sig_ms", N + 128);
    }
}

#[test]
fn child_steps_infonce() {
    if is_child("child_steps_infonce") {
        on_host(N, D, |cuda, [x, y], [dx, dy]| {
            let objective = PairwiseObjective::ALL[0];
            host::pairwise_step(cuda, x, y, &objective, &PairwiseOptions::default(), dx, dy).unwrap();
        });
    }
}

/// A step with memory for all similarities.
fn child_steps_kept(of: &(impl StepOf + ?Sized)) {
    let (_, kernels) = device().expect("a device");
    let stream = kernels.context().new_stream().unwrap();
    let mut step = Step::<bf16, f32>::new(&stream, of, [N, N, D], (PLENTY.0, 4 * N * N), 1);
    step.enqueue(kernels, &stream, of, plain()).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn child_steps_infonce_kept() {
    if is_child("child_steps_infonce_kept") {
        child_steps_kept(&PairwiseObjective::ALL[0]);
    }
}

#[test]
fn child_steps_a_mixture_kept() {
    if is_child("child_steps_a_mixture_kept") {
        child_steps_kept(&[0, 1].map(|k| PairwisePart::new(0.5, PairwiseObjective::ALL[k]))[..]);
    }
}

/// InfoNCE as formulas.
const FORMULAS: &str = "
    logit    = 14.3 * s
    negative = 14.3 / (2 * n) * (sigmoid(row.lse - row.lse_positives) * exp(logit - row.lse) + sigmoid(col.lse - col.lse_positives) * exp(logit - col.lse))
    positive = -14.3 / (2 * n) * (sigmoid(row.lse - logit) + sigmoid(col.lse - logit))
";

#[test]
fn child_steps_formulas() {
    if is_child("child_steps_formulas") {
        on_host(N, D, |cuda, [x, y], [dx, dy]| {
            let options = PairwiseOptions::default();
            match host::pairwise_step_custom(cuda, x, y, &FORMULAS.parse().unwrap(), &options, dx, dy) {
                Err(missing @ Error::NvrtcNotFound { .. }) => say(&missing.to_string()),
                other => assert!(other.is_ok(), "{other:?}"),
            }
        });
    }
}

/// More than small tiles are chosen for: as many products as of `N` and `D`.
const LARGE: (usize, usize) = (2048, 128);

fn child_ranks_and_matrix((n, d): (usize, usize)) {
    on_host(n, d, |cuda, [x, y], _| {
        host::ranks(cuda, x, y, &RecallOptions::default()).unwrap();
        let mut out = vec![0.0f32; n * n];
        let out = MatMut::new(&mut out, n, n).unwrap();
        host::cosine_matrix(cuda, x.into(), y.into(), &CosineOptions::default(), out.into()).unwrap();
    });
}

#[test]
fn child_ranks_and_matrix_small() {
    if is_child("child_ranks_and_matrix_small") {
        child_ranks_and_matrix((N, D));
    }
}

#[test]
fn child_ranks_and_matrix_large() {
    if is_child("child_ranks_and_matrix_large") {
        child_ranks_and_matrix(LARGE);
    }
}

/// Counters of a test's launches on a device without warpgroup products.
fn launches(test: &str) -> Vec<Launch> {
    launches_on(test, "8.0")
}

/// Whether there are counters here; says so if not.
fn counted() -> bool {
    counters::counted("child_steps_hinge_con")
}

fn print(title: &str, launches: &[Launch]) {
    counters::print(title, (N, D), "8.0", launches);
}

/// The tensor cores do so many operations in all of these launches.
#[track_caller]
fn products_are<'a>(launches: impl IntoIterator<Item = &'a Launch>, allowed: RangeInclusive<f64>) {
    let flop = launches.into_iter().map(|l| l.count("tensor_flop_bf16")).sum::<u64>() as f64;
    assert!(allowed.contains(&flop), "{flop} tensor operations, a product has {PRODUCT}");
}

#[test]
fn mining_writes_no_matrix_and_multiplies_once() {
    if !counted() {
        return;
    }
    let launches = launches("child_mines");
    print("mine", &launches);
    let sweep = launches.iter().find(|l| l.kernel() == "mine_bf16").expect("a sweep");
    // Value and index of every row and column, once per split, and the pairs' similarities.
    let results = 2 * N as u64 * SPLITS * 8 + N as u64 * 4;
    let written = sweep.count("global_unique_bytes_written");
    assert!(written <= results, "{written} bytes written, the results are {results}");
    assert!(written < (N * N) as u64, "{written} bytes written");
    assert!(sweep.ratio("global_load_efficiency") >= 0.9);
    assert!(sweep.ratio("shared_load_conflict_ratio") <= 1.1);
    assert!(sweep.ratio("shared_store_conflict_ratio") <= 1.1);
    assert_eq!(sweep.local(), 0);
    products_are([sweep], PRODUCT..=1.05 * PRODUCT);
}

/// Runs a step; no launch has accesses of local memory, and conflicts in shared memory are at most one access in 20.
#[track_caller]
fn step_launches(test: &str, title: &str) -> Vec<Launch> {
    let launches = launches(test);
    print(title, &launches);
    for launch in &launches {
        assert_eq!(launch.local(), 0, "local memory in {}", launch.kernel());
        for name in ["shared_load_conflict_ratio", "shared_store_conflict_ratio"] {
            assert!(launch.ratio(name) <= 1.05, "{title}, {}: {name} {}", launch.kernel(), launch.ratio(name));
        }
    }
    launches
}

#[test]
fn a_step_of_a_small_batch_is_three_launches() {
    if !counted() {
        return;
    }
    // Value and index of the state of every row and column, of which there is one per split; with relative similarities
    // three words more.
    for (test, title, planes) in
        [("child_steps_hinge_con", "goal_step, hinge-con", 2), ("child_steps_nca_sig_ms", "goal_step, nca-sig_ms", 6)]
    {
        let launches = step_launches(test, title);
        let names: Vec<&str> = launches.iter().map(Launch::kernel).collect();
        let mine = if planes == 2 { "mine_bf16" } else { "mine_stats_bf16" };
        assert_eq!(names, ["prepare_bf16", mine, "goal_small_bf16_f32"]);
        let (lines, d) = (2 * N as u64, D as u64);
        let (operands, states, gradients) = (lines * d * 2, lines * SPLITS * planes * 4, lines * d * 4);
        let end = &launches[2];
        for (name, expected) in
            [("global_unique_bytes_read", operands + states), ("global_unique_bytes_written", gradients)]
        {
            let ratio = end.count(name) as f64 / expected as f64;
            assert!((0.95..=1.05).contains(&ratio), "{title}: {name} {}, expected {expected}", end.count(name));
        }
        // Two blocks for each of the multiprocessors of an H200.
        assert_eq!(end.blocks_of_x(), Some(264));
    }
}

#[test]
fn a_step_of_a_large_batch_is_four_launches() {
    if !counted() {
        return;
    }
    for (test, title) in [
        ("child_steps_hinge_con_of_a_large_batch", "goal_step, hinge-con, n = m = 1152"),
        ("child_steps_nca_sig_ms_of_a_large_batch", "goal_step, nca-sig_ms, n = m = 1152"),
    ] {
        let launches = step_launches(test, title);
        let names: Vec<&str> = launches.iter().map(Launch::kernel).collect();
        assert_eq!(names.len(), 4);
        assert_eq!(names[2..], ["goal_finalize", "weighted_grad_bf16_f32"]);
    }
}

/// Bytes that every launch has to read and to write at least once, docs/kernels.md.
type Traffic = Vec<(String, u64, u64)>;

/// What a step over all pairs has on a device.
struct Engine {
    capability: &'static str,
    /// In the names of its kernels.
    suffix: &'static str,
    /// Parts of the rows and of the columns.
    splits: [u64; 2],
    /// In each of which a block leaves so many states of a column.
    parties: u64,
}

/// Tiles of 128 x 128, as many parts as rows and columns of them.
const WARPS: Engine = Engine { capability: "8.0", suffix: "", splits: [SPLITS, SPLITS], parties: 1 };
/// Units of 256 x 128, a cluster of two blocks for each.
const GROUPS: Engine = Engine { capability: "9.0", suffix: "_hopper", splits: [SPLITS, SPLITS], parties: 2 };

/// Of an InfoNCE step.
fn pairwise_traffic(engine: &Engine, kept: bool) -> Traffic {
    let Engine { suffix, splits: [row_splits, col_splits], parties, .. } = *engine;
    let (n, d) = (N as u64, D as u64);
    let lines = 2 * n;
    // Both operands, the factors of their rows, the sums of both products, W, and all similarities.
    let (operands, inv, sums, w, all) = (lines * d * 2, lines * 4, lines * d * 4, n * n * 2, n * n * 4);
    // Maximum, sum and number of negatives.
    let states = 3 * (row_splits * parties + col_splits) * n * 4;
    // 5 words per row and 3 per column, of which W needs 3 and 3; a word per pair.
    let (coefficients, read, pairs) = (n * 8 * 4, n * 6 * 4, n * 4);
    let (stored, similarities) = if kept { (all, all) } else { (0, operands) };
    vec![
        ("prepare_bf16".into(), operands, operands + 2 * inv),
        (format!("pairwise_stats_both{suffix}_bf16"), operands + inv, states + pairs + stored),
        ("pairwise_finalize".into(), states + inv + pairs, coefficients),
        (
            format!("pairwise_weights_both{suffix}_bf16"),
            similarities + inv + read,
            w + pairs + 32 * row_splits * col_splits,
        ),
        (format!("pairwise_grad{suffix}_bf16"), operands + w, sums),
        ("pairwise_finish_bf16_f32".into(), operands + sums + 2 * inv + pairs, sums),
    ]
}

/// Of a mixture of InfoNCE and SigLIP whose similarities are kept: the sum of their weights is f32.
fn mixture_traffic(engine: &Engine) -> Traffic {
    let (n, all) = (N as u64, 4 * (N * N) as u64);
    let sums = 32 * engine.splits[0] * engine.splits[1];
    let mut of = pairwise_traffic(engine, true);
    of[3].2 = all + n * 4 + sums;
    // The factors of rows; 5 words per row, and the own pairs' weights, a word each.
    let weights = (2 * all + 2 * n * 4 + 6 * n * 4, all / 2 + 3 * n * 4 + sums);
    of.insert(4, (format!("pairwise_weights{}_bf16", engine.suffix), weights.0, weights.1));
    // Facts about rows and a flag per column; 5 words per row.
    of.insert(3, ("pairwise_finalize".into(), 3 * n * 4, 5 * n * 4));
    let report = ("pairwise_mixture_report".to_owned(), 0, 0);
    of.splice(of.len() - 1..of.len() - 1, [report.clone(), report]);
    of
}

/// Every launch reads and writes what it has to, within 10 %, without waste.
#[track_caller]
fn check_traffic(launches: &[Launch], traffic: &[(String, u64, u64)]) {
    assert_eq!(launches.len(), traffic.len());
    for (launch, (kernel, read, written)) in launches.iter().zip(traffic) {
        assert_eq!(launch.kernel(), kernel);
        assert_eq!(launch.local(), 0, "local memory in {kernel}");
        // A warp's work on a few kilobytes.
        if kernel == "pairwise_mixture_report" {
            continue;
        }
        for (name, expected) in [("global_unique_bytes_read", *read), ("global_unique_bytes_written", *written)] {
            let ratio = launch.count(name) as f64 / expected as f64;
            assert!((0.9..=1.1).contains(&ratio), "{kernel}: {name} {}, expected {expected}", launch.count(name));
        }
        // Weights of loaded similarities have nothing in shared memory but the sums of eight warps, which are added once.
        let sweeps = kernel.starts_with("pairwise_stats") || kernel.starts_with("pairwise_weights");
        let loads = kernel.starts_with("pairwise_weights") && launch.count("tensor_flop_bf16") == 0;
        if sweeps {
            let (counter, bytes) = copied(kernel, (N, D));
            assert_eq!(launch.count(counter), if loads { 0 } else { bytes }, "{kernel}: {counter}");
        }
        assert!(loads || launch.ratio("shared_load_conflict_ratio") <= 1.1, "{kernel}");
        assert!(launch.ratio("shared_store_conflict_ratio") <= 1.1, "{kernel}");
        // Without statistics, scalars are much of the little that finalising reads.
        let efficiency = if kernel == "pairwise_finalize" { 0.85 } else { 0.9 };
        assert!(launch.ratio("global_load_efficiency") >= efficiency, "{kernel}");
    }
}

/// Counts of a step on either engine, against what it has to do: `products` of `2nmd`.
#[track_caller]
fn counts_are(test: &str, title: &str, traffic: impl Fn(&Engine) -> Traffic, products: f64) {
    if !counted() {
        return;
    }
    let groups = device().is_some_and(|(_, kernels)| kernels.plan_device().group_code);
    for engine in [&WARPS, &GROUPS] {
        let launches = launches_on(test, engine.capability);
        counters::print(title, (N, D), engine.capability, &launches);
        // A build without code for warpgroups has the same kernels for both devices.
        check_traffic(&launches, &traffic(if groups { engine } else { &WARPS }));
        products_are(&launches, products * PRODUCT..=(products + 0.2) * PRODUCT);
    }
}

#[test]
fn an_infonce_step_is_four_products_and_writes_no_matrix_but_its_weights() {
    counts_are("child_steps_infonce", "pairwise_step, infonce", |e| pairwise_traffic(e, false), 4.0);
}

#[test]
fn an_infonce_step_whose_similarities_are_kept_is_three_products() {
    counts_are("child_steps_infonce_kept", "pairwise_step, infonce, kept", |e| pairwise_traffic(e, true), 3.0);
}

#[test]
fn a_mixture_whose_similarities_are_kept_is_three_products_too() {
    counts_are("child_steps_a_mixture_kept", "pairwise_mixture, infonce and siglip, kept", mixture_traffic, 3.0);
}

/// As [`pairwise_traffic`], of a step with formulas.
fn formulas_traffic() -> Traffic {
    let (n, d) = (N as u64, D as u64);
    let lines = 2 * n;
    let (operands, inv, sums, w) = (lines * d * 2, lines * 4, lines * d * 4, n * n * 2);
    let (s, pairs) = (n * n * 4, n * 4);
    // 7 words of a row or a column, 8 of a part of a column.
    let (anchors, parts) = (n * 7 * 4, n * 8 * SPLITS * 4);
    vec![
        ("prepare_bf16".into(), operands, operands + 2 * inv),
        ("cosine_matrix_bf16".into(), operands + inv, s),
        ("pairwise_custom_rows".into(), s, anchors),
        ("pairwise_custom_cols".into(), s, parts),
        // Two counts per row, and its pair for the column.
        ("pairwise_custom_anchors".into(), parts + 3 * pairs + inv, anchors),
        // Two logarithms per row and column.
        ("pairwise_custom_weights_bf16".into(), s + lines * 8 + inv, w + pairs + 32 * SPLITS * SPLITS),
        ("pairwise_grad_bf16".into(), operands + w, sums),
        ("pairwise_finish_bf16_f32".into(), operands + sums + 2 * inv + pairs, sums),
    ]
}

#[test]
fn a_step_with_formulas_is_three_products_and_stores_similarities_once() {
    if !counted() {
        return;
    }
    let launches = launches("child_steps_formulas");
    if launches.is_empty() {
        assert!(!gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but there is no NVRTC");
        return say("note: without NVRTC the counters of formulas are skipped");
    }
    print("pairwise_step_custom, InfoNCE", &launches);
    check_traffic(&launches, &formulas_traffic());
    products_are(&launches, 3.0 * PRODUCT..=3.15 * PRODUCT);
}

/// Bytes that tensor copies or asynchronous copies bring into shared memory for all products of a launch, by its kernel: a
/// tile's rows and columns once per tile, those of a cluster once per unit of the cluster.
fn copied(kernel: &str, (n, d): (usize, usize)) -> (&'static str, u64) {
    let (counter, rows, cols) = match kernel {
        k if k.contains("_small_hopper") => ("bulk_load_bytes", 128, 64),
        k if k.starts_with("cosine_matrix_hopper") || k.starts_with("ranks_hopper") => ("bulk_load_bytes", 256, 256),
        k if k.contains("_hopper") => ("bulk_load_bytes", 256, 128),
        _ => ("async_copy_bytes", 128, 128),
    };
    (counter, ((n / rows) * (n / cols) * (rows + cols) * d * 2) as u64)
}

/// One sweep of either engine: a product, the operands as often as its tiles need them, the results and nothing else.
#[track_caller]
fn check_sweep(launch: &Launch, (n, d): (usize, usize), written: u64) {
    let kernel = launch.kernel();
    let flop = launch.count("tensor_flop_bf16");
    assert_eq!(flop, (2 * n * n * d) as u64, "{kernel}");
    let (counter, bytes) = copied(kernel, (n, d));
    assert_eq!(launch.count(counter), bytes, "{kernel}: {counter}");
    let operands = (2 * n * d * 2) as u64;
    let read = launch.count("global_unique_bytes_read");
    // And a few words per row and column.
    assert!((operands..=operands + 2 * n as u64 * 24).contains(&read), "{kernel}: {read} bytes read");
    assert!(launch.count("global_unique_bytes_written") <= written, "{kernel}");
    assert_eq!(launch.local(), 0, "local memory in {kernel}");
    assert!(launch.ratio("shared_load_conflict_ratio") <= 1.05, "{kernel}");
    assert!(launch.ratio("shared_store_conflict_ratio") <= 1.05, "{kernel}");
}

#[test]
fn ranks_and_matrices_read_their_operands_once_per_tile_on_either_engine() {
    if !counted() {
        return;
    }
    for (test, shape) in [("child_ranks_and_matrix_small", (N, D)), ("child_ranks_and_matrix_large", LARGE)] {
        for capability in ["8.0", "9.0"] {
            let launches = launches_on(test, capability);
            counters::print("ranks and cosine_matrix", shape, capability, &launches);
            let n = shape.0 as u64;
            let named = |name: &str| {
                let found = launches.iter().find(|l| l.kernel().starts_with(name) && l.count("tensor_flop_bf16") > 0);
                found.unwrap_or_else(|| panic!("no {name}"))
            };
            check_sweep(named("ranks_"), shape, 2 * n * 4);
            check_sweep(named("cosine_matrix_"), shape, n * n * 4);
            let groups = launches.iter().any(|l| l.kernel().contains("_hopper"));
            assert!(capability == "9.0" || !groups, "a kernel of sm_90a on {capability}");
        }
    }
}
