//! The ranks of all relevant pairs against the f64 reference.

mod common;

use common::check::{bound, similarities};
use common::data::{Kind, LAYOUTS, Matrix, ODD, Rng, TIGHT, WIDE, group_ids, pair};
use common::{for_each_dtype, full, is_cuda, on_every_backend};
use proptest::prelude::*;
use simgrad::cpu::Cpu;
use simgrad::{
    Backend, BatchMut, BatchRef, CosineOptions, Element, Error, Groups, NONE, Normalization, PositiveRanks,
    PositiveRanksOptions, QueryRanks, RecallOptions, RelevantPairs, TiePolicy, reference,
};

const POLICIES: [TiePolicy; 3] = [TiePolicy::LowestIndex, TiePolicy::Optimistic, TiePolicy::Pessimistic];

const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 3),
    (2, 1, 8),
    (3, 17, 31),
    (33, 65, 1),
    (31, 33, 64),
    (65, 31, 65),
    (1, 130, 40),
    (130, 1, 40),
    (129, 127, 8),
    (130, 257, 3),
    (128, 128, 32),
    (257, 33, 127),
    (129, 257, 65),
    (257, 257, 300),
];

/// Pairs with a probability of `density` in a thousand, many of the rows without any, with or without grades of 0 to 3.
fn random_pairs(seed: u64, n: usize, m: usize, density: usize, graded: bool) -> RelevantPairs {
    let mut rng = Rng::new(seed);
    let (mut offsets, mut candidates) = (vec![0], Vec::new());
    for _ in 0..n {
        let empty = rng.below(4) == 0;
        candidates.extend((0..m as i32).filter(|_| rng.below(1000) < density && !empty));
        offsets.push(candidates.len());
    }
    let grades = graded.then(|| candidates.iter().map(|_| rng.below(4) as f32).collect());
    RelevantPairs::new(n, m, &offsets, candidates, grades).expect("valid pairs")
}

/// Different kinds of relevance, from one pair per row to more than are compared one by one.
fn relevance(at: usize, n: usize, m: usize) -> RelevantPairs {
    let ids = (group_ids(1, n, 5), group_ids(2, m, 5));
    match at % 5 {
        0 => RelevantPairs::paired(n, m).expect("valid pairs"),
        1 => RelevantPairs::from_groups(Groups { rows: &ids.0, cols: &ids.1 }).expect("valid pairs"),
        2 => random_pairs(at as u64, n, m, 30, false),
        3 => random_pairs(at as u64, n, m, 100, true),
        _ => random_pairs(at as u64, n, m, 600, true),
    }
}

fn integers_cell<T: Element>(backend: &Backend, at: usize, shape: (usize, usize, usize)) {
    let (n, m, d) = shape;
    let (x, y) = pair(Kind::Integers, 3, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, WIDE));
    let relevant = relevance(at, n, m);
    // On a device shapes, types and ways to give pairs take turns with one policy each.
    let all = full() || !is_cuda(backend);
    for ties in if all { &POLICIES[..] } else { &POLICIES[(at + T::DTYPE.size()) % 3..][..1] } {
        let options = PositiveRanksOptions { normalization: Normalization::None, ties: *ties };
        let got = backend.positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
        let want = reference::positive_ranks(x.view(), y.view(), &relevant, &options);
        assert_eq!(got, want, "{} {} {shape:?} {ties:?} {at}", backend.name(), T::DTYPE);
    }
}

#[test]
fn integers_and_their_ties_are_exact() {
    on_every_backend(|backend| {
        for (at, &shape) in SHAPES.iter().enumerate().filter(|(at, _)| full() || !is_cuda(backend) || *at < 12) {
            for round in 0..if is_cuda(backend) { 1 } else { 5 } {
                for_each_dtype!(backend, integers_cell(at + round, shape));
            }
        }
    });
}

/// On a device a block sweeps several tiles from 17 tiles in a direction on; of these it skips some, or reads them all.
#[test]
fn several_tiles_per_block() {
    on_every_backend(|backend| {
        // Lines with 1500 pairs, in one direction: each is compared with each of them.
        for (shape, pairs) in [((4, 2500, 5), &[2, 3][..]), ((2500, 4, 5), &[2, 3, 4])] {
            for &at in pairs {
                integers_cell::<f32>(backend, at, shape);
            }
            integers_cell::<half::bf16>(backend, 0, shape);
        }
    });
}

/// The similarities that the backend itself computes, as f64.
fn own_similarities<T: Element>(backend: &Backend, x: &Matrix<T>, y: &Matrix<T>) -> Vec<f64> {
    let tight = |m: &Matrix<T>| m.elements();
    let (xs, ys) = (tight(x), tight(y));
    let mut out = vec![<T::Acc as Element>::from_f64(0.0); x.rows * y.rows];
    let xb = BatchRef::new(&xs, 1, x.rows, x.cols).expect("a batch");
    let yb = BatchRef::new(&ys, 1, y.rows, y.cols).expect("a batch");
    let ob = BatchMut::new(&mut out, 1, x.rows, y.rows).expect("a batch");
    backend.cosine_matrix(xb, yb, &CosineOptions::default(), ob).expect("similarities");
    out.iter().map(|s| s.to_f64()).collect()
}

/// Ranks of real numbers: in the backend's own similarities exactly, and in those of the reference as far as their bound
/// decides.
fn floats_cell<T: Element>(backend: &Backend, at: usize, shape: (usize, usize, usize)) {
    let (n, m, d) = shape;
    let kind = Kind::FLOATS[at % 5];
    let (x, y) = pair(kind, at as u64, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, LAYOUTS[at % 4]), Matrix::<T>::new(&y, m, d, LAYOUTS[at / 2 % 4]));
    let relevant = relevance(at / 2, n, m);
    let options = PositiveRanksOptions { ties: POLICIES[at % 3], ..PositiveRanksOptions::default() };
    let name = format!("{} {} {shape:?} {kind:?} {at}", backend.name(), T::DTYPE);
    let got = backend.positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
    let own = reference::positive_ranks_of(&own_similarities(backend, &x, &y), &relevant, options.ties);
    assert_eq!(got, own, "{name}: its own similarities");
    let s = similarities(&x, &y, Normalization::L2);
    check_range(&name, &got.rows, |i, j| s[i * m + j], bound::<T>());
    check_range(&name, &got.cols, |j, i| s[i * m + j], bound::<T>());
}

fn check_range(name: &str, got: &QueryRanks, score: impl Fn(usize, usize) -> f64, bound: f64) {
    for q in 0..got.offsets.len() - 1 {
        for p in got.offsets[q] as usize..got.offsets[q + 1] as usize {
            let own = score(q, got.candidates[p] as usize);
            let above = |least: f64| (0..got.pool).filter(|&j| score(q, j) > least).count() as i32;
            let (low, high) = (above(own + 2.0 * bound), above(own - 2.0 * bound));
            assert!((low..high).contains(&got.ranks[p]), "{name} query {q}: {} of {low} to {high}", got.ranks[p]);
        }
    }
}

#[test]
fn lattice() {
    on_every_backend(|backend| {
        let shapes = if is_cuda(backend) && !full() { &SHAPES[..13] } else { &SHAPES[..] };
        for round in 0..if full() { 5 } else { 1 + usize::from(!is_cuda(backend)) } {
            for (at, &shape) in shapes.iter().enumerate() {
                for_each_dtype!(backend, floats_cell(at + 3 * round, shape));
            }
        }
    });
}

/// The first of a query's ranks is what `ranks` gives, where nothing is NaN.
#[test]
fn the_first_rank_is_that_of_the_best_positive() {
    on_every_backend(|backend| {
        for kind in [Kind::Integers, Kind::Hubs] {
            let (n, m, d) = (70, 140, 6);
            let (x, y) = pair(kind, 8, n, m, d);
            let (x, y) = (Matrix::<f32>::new(&x, n, d, TIGHT), Matrix::<f32>::new(&y, m, d, TIGHT));
            let ids = (group_ids(3, n, 20), group_ids(4, m, 20));
            let groups = Groups { rows: &ids.0, cols: &ids.1 };
            let relevant = RelevantPairs::from_groups(groups).expect("pairs");
            for ties in POLICIES {
                let options = RecallOptions { groups: Some(groups), ties, ..RecallOptions::default() };
                let best = backend.ranks(x.view(), y.view(), &options).expect("ranks");
                let options = PositiveRanksOptions { ties, ..PositiveRanksOptions::default() };
                let all = backend.positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
                assert_eq!((all.rows.first(), all.cols.first()), (best.rows, best.cols), "{} {ties:?}", backend.name());
            }
        }
    });
}

fn nan_cell<T: Element>(backend: &Backend, normalization: Normalization) {
    let (n, m, d) = (40, 150, 8);
    let (x, y) = pair(Kind::Integers, 5, n, m, d);
    let (mut x, mut y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, TIGHT));
    x.set_row(7, |_| f64::NAN);
    x.set_row(8, |_| 0.0);
    y.set_row(3, |k| if k == 2 { f64::NAN } else { 1.0 });
    y.set_row(130, |_| f64::NAN);
    y.set_row(20, |_| 0.0);
    if normalization == Normalization::L2 {
        // Equal rows give equal bits, so that ties are exact here too.
        for i in 0..n {
            x.set_row(i, |k| if i == 7 { f64::NAN } else { f64::from(u8::from(k == i % 3)) });
        }
        for j in (0..m).filter(|j| ![3, 20, 130].contains(j)) {
            y.set_row(j, |k| f64::from(u8::from(k == j % 4)));
        }
    }
    for (at, ties) in POLICIES.into_iter().enumerate() {
        let options = PositiveRanksOptions { normalization, ties };
        for relevant in [random_pairs(9, n, m, 60, at == 1), random_pairs(10, n, m, 500, at == 2)] {
            let got = backend.positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
            let want = reference::positive_ranks(x.view(), y.view(), &relevant, &options);
            assert_eq!(got, want, "{} {} {ties:?} {normalization:?}", backend.name(), T::DTYPE);
        }
    }
}

#[test]
fn nan_and_zero_rows() {
    on_every_backend(|backend| {
        for normalization in [Normalization::None, Normalization::L2] {
            for_each_dtype!(backend, nan_cell(normalization));
        }
    });
}

#[test]
fn no_rows_no_columns_or_no_pairs() {
    on_every_backend(|backend| {
        let full = Matrix::<f32>::new(&[1.0; 12], 3, 4, TIGHT);
        let none = Matrix::<f32>::new(&[], 0, 4, TIGHT);
        for (x, y) in [(&full, &none), (&none, &full), (&none, &none), (&full, &full)] {
            let relevant =
                RelevantPairs::new(x.rows, y.rows, &vec![0; x.rows + 1], Vec::new(), None).expect("no pairs");
            let got = backend.positive_ranks(x.view(), y.view(), &relevant, &PositiveRanksOptions::default());
            let empty =
                |queries: usize, pool| QueryRanks { offsets: vec![0; queries + 1], pool, ..QueryRanks::default() };
            let want = PositiveRanks { rows: empty(x.rows, y.rows), cols: empty(y.rows, x.rows) };
            assert_eq!(got.expect("ranks"), want, "{}", backend.name());
            assert_eq!(want.rows.first(), vec![NONE; x.rows]);
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[1.0; 12], 3, 4, TIGHT);
        let wide = Matrix::<f32>::new(&[1.0; 15], 3, 5, TIGHT);
        let options = PositiveRanksOptions::default();
        let refused = |y: &Matrix<f32>, rows, cols| {
            let relevant = RelevantPairs::paired(rows, cols).expect("pairs");
            backend.positive_ranks(x.view(), y.view(), &relevant, &options).expect_err("refused").to_string()
        };
        assert_eq!(refused(&wide, 3, 3), "positive_ranks: `y.cols` is 5, expected 4");
        assert_eq!(refused(&x, 2, 3), "positive_ranks: `relevant.rows` is 2, expected 3");
        assert_eq!(refused(&x, 3, 4), "positive_ranks: `relevant.cols` is 4, expected 3");
        let nothing = Matrix::<f32>::new(&[], 3, 0, TIGHT);
        let relevant = RelevantPairs::paired(3, 3).expect("pairs");
        let refused = backend.positive_ranks(nothing.view(), nothing.view(), &relevant, &options);
        assert_eq!(refused, Err(Error::EmptyDim { op: "positive_ranks", arg: "x" }));
        let wide = Matrix::<f64>::new(&[1.0; 12], 3, 4, TIGHT);
        let double = backend.positive_ranks(wide.view(), wide.view(), &relevant, &options);
        match double {
            Ok(_) => assert!(!is_cuda(backend)),
            Err(error) => assert!(is_cuda(backend) && matches!(error, Error::UnsupportedDType { .. }), "{error}"),
        }
    });
}

fn threads_cell<T: Element>(one: &Backend, others: &[Backend]) {
    let (n, m, d) = (300, 700, 96);
    let (x, y) = pair(Kind::Clustered, 2, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, TIGHT), Matrix::<T>::new(&y, m, d, TIGHT));
    for at in 0..5 {
        let (relevant, options) = (relevance(at, n, m), PositiveRanksOptions::default());
        let of = |cpu: &Backend| cpu.positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
        let want = of(one);
        others.iter().for_each(|cpu| assert_eq!(of(cpu), want, "{cpu:?} {}", T::DTYPE));
    }
}

#[test]
fn threads_do_not_matter() {
    let of = |threads| Backend::Cpu(Cpu::with_threads(threads).expect("threads"));
    for_each_dtype!(&of(1), threads_cell(&[of(2), of(3), of(5)]));
}

/// Large enough that the CPU shares packed columns between its pieces and sweeps them in several slices.
#[test]
fn a_matrix_of_several_slices() {
    let backend = Backend::cpu();
    let (n, m, d) = (90, 2100, 2050);
    let (x, y) = pair(Kind::Hubs, 4, n, m, d);
    let (x, y) = (Matrix::<f32>::new(&x, n, d, WIDE), Matrix::<f32>::new(&y, m, d, TIGHT));
    let own = own_similarities(&backend, &x, &y);
    for (at, ties) in POLICIES.into_iter().enumerate() {
        let relevant = relevance(at + 1, n, m);
        let options = PositiveRanksOptions { ties, ..PositiveRanksOptions::default() };
        let got = backend.positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
        assert_eq!(got, reference::positive_ranks_of(&own, &relevant, ties), "{ties:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Few different scores, so that ties are everywhere; any density of pairs.
    #[test]
    fn any_small_integers(
        n in 1usize..24, m in 1usize..80, seed in 0u64..1 << 32, density in 0usize..1000, graded: bool, policy in 0usize..3,
    ) {
        let mut rng = Rng::new(seed);
        let mut fill = |rows: usize| (0..2 * rows).map(|_| rng.below(3) as f64 - 1.0).collect::<Vec<_>>();
        let (x, y) = (fill(n), fill(m));
        let (x, y) = (Matrix::<f32>::new(&x, n, 2, TIGHT), Matrix::<f32>::new(&y, m, 2, ODD));
        let relevant = random_pairs(seed, n, m, density, graded);
        let options = PositiveRanksOptions { normalization: Normalization::None, ties: POLICIES[policy] };
        let want = reference::positive_ranks(x.view(), y.view(), &relevant, &options);
        let got = Backend::cpu().positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
        prop_assert_eq!(&got, &want);
    }
}
