//! Mining of several negatives per anchor against the f64 reference.

mod common;

use common::check::{bound, close, similarities};
use common::data::{Kind, LAYOUTS, Matrix, ODD, Rng, TIGHT, group_ids, pair, to_f64};
use common::{for_each_dtype, full, is_cuda, on_every_backend};
use simgrad::cpu::{self, Cpu};
use simgrad::{
    Backend, Element, Error, Fallback, Groups, MAX_K, Margin, NONE, Normalization, Pick, Selected, TopK, TopKOptions,
    reference,
};

/// `(n, m, d)` around the edges of tiles, few rows against many and the other way.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 2, 3),
    (3, 17, 31),
    (17, 3, 33),
    (31, 33, 8),
    (1, 130, 40),
    (130, 1, 40),
    (127, 129, 33),
    (64, 128, 16),
    (130, 257, 3),
    (257, 33, 20),
    (2, 300, 12),
];

/// Multiples of 1/16 whose similarities are exact in every type, with many ties.
fn sixteenths<T: Element>(seed: u64, (n, m, d): (usize, usize, usize), layouts: usize) -> (Matrix<T>, Matrix<T>) {
    let (mut x, y) = pair(Kind::Integers, seed, n, m, d);
    x.iter_mut().for_each(|v| *v /= 16.0);
    (Matrix::new(&x, n, d, LAYOUTS[layouts % 4]), Matrix::new(&y, m, d, LAYOUTS[layouts / 4 % 4]))
}

#[track_caller]
fn same<A: Element>(name: &str, got: &Selected<A>, want: &Selected<f64>) {
    assert_eq!(got.k, want.k, "{name}: k");
    assert_eq!(got.survivors, want.survivors, "{name}: survivors");
    assert_eq!(got.index, want.index, "{name}: index");
    close(&format!("{name} value"), &to_f64(&got.value), &want.value, |_| 0.0);
}

#[track_caller]
fn same_both<A: Element>(name: &str, got: &TopK<A>, want: &TopK<f64>) {
    close(&format!("{name} positive"), &to_f64(&got.positive), &want.positive, |_| 0.0);
    same(&format!("{name} rows"), &got.rows, &want.rows);
    same(&format!("{name} cols"), &got.cols, &want.cols);
}

/// Options of every kind, drawn.
fn draw(rng: &mut Rng, m: usize) -> TopKOptions<'static> {
    let window = [None, Some((-0.25, 0.5)), Some((0.0, f64::INFINITY)), Some((0.0625, 0.0625))][rng.below(4)];
    let margins = [Margin::Absolute(0.0), Margin::Absolute(0.125), Margin::Absolute(-0.25), Margin::Relative(0.5)];
    let below_positive = [None, Some(margins[rng.below(4)])][rng.below(2)];
    let seed = rng.bits();
    let pick = [Pick::Hardest, Pick::Random { seed }, Pick::DistanceWeighted { seed }, Pick::Hardest][rng.below(4)];
    TopKOptions {
        normalization: Normalization::None,
        groups: None,
        window: window.filter(|_| rng.below(2) == 0),
        below_positive,
        fallback: [Fallback::Skip, Fallback::Easiest][rng.below(2)],
        skip: [0, 0, 1, 5, m][rng.below(5)].min(MAX_K),
        k: [1, 2, 7, 32, m + 3][rng.below(5)].min(MAX_K),
        pick,
    }
}

fn exact_case<T: Element>(backend: &Backend, seed: u64, shape: (usize, usize, usize)) {
    let mut rng = Rng::new(seed);
    let (x, y) = sixteenths::<T>(seed, shape, rng.below(16));
    let ids = (group_ids(seed, shape.0, 6), group_ids(!seed, shape.1, 6));
    let groups = (rng.below(3) == 0).then_some(Groups { rows: &ids.0, cols: &ids.1 });
    let options = TopKOptions { groups, ..draw(&mut rng, shape.1) };
    let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
    let name = format!("{} {} {seed} {shape:?} {options:?}", backend.name(), T::DTYPE);
    same_both(&name, &got, &reference::mine_top_k(x.view(), y.view(), &options));
}

#[test]
fn every_rule_agrees_with_the_reference() {
    on_every_backend(|backend| {
        let rounds = if is_cuda(backend) { 1 } else { 8 } * if full() { 4 } else { 1 };
        for (at, &shape) in SHAPES.iter().enumerate() {
            for round in 0..rounds {
                for_each_dtype!(backend, exact_case((100 * at + round) as u64, shape));
            }
        }
    });
}

#[test]
fn random_shapes_agree_with_the_reference() {
    on_every_backend(|backend| {
        let cases = if is_cuda(backend) { 6 } else { 300 } * if full() { 8 } else { 1 };
        let mut rng = Rng::new(7);
        for seed in 0..cases {
            let shape = (1 + rng.below(120), 1 + rng.below(120), 1 + rng.below(40));
            exact_case::<f32>(backend, 10_000 + seed, shape);
        }
    });
}

/// Unit rows: values within rounding, sorted, of the candidates that the indices name.
fn sphere_case<T: Element>(backend: &Backend, shape: (usize, usize, usize), k: usize) {
    let (n, m, d) = shape;
    let (x, y) = pair(Kind::Sphere, 5, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, TIGHT));
    let options = TopKOptions::hardest(k);
    let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
    let want = reference::mine_top_k(x.view(), y.view(), &options);
    let s = similarities(&x, &y, Normalization::L2);
    let check = |name: &str, got: &Selected<T::Acc>, want: &Selected<f64>, at: &dyn Fn(usize, usize) -> f64| {
        assert_eq!(got.survivors, want.survivors);
        let value = to_f64(&got.value);
        close(name, &value, &want.value, |_| bound::<T>());
        for (a, (index, value)) in got.index.chunks(k).zip(value.chunks(k)).enumerate() {
            assert!(value.windows(2).all(|w| w[0] >= w[1]), "{name}: anchor {a} is not sorted");
            for (&i, &v) in index.iter().zip(value).filter(|(i, _)| **i != NONE) {
                assert!(i as usize != a && (at(a, i as usize) - v).abs() <= bound::<T>(), "{name}: anchor {a}");
            }
            let mut chosen: Vec<_> = index.iter().filter(|i| **i != NONE).collect();
            chosen.sort();
            chosen.dedup();
            assert_eq!(chosen.len(), got.of(a).0.len(), "{name}: anchor {a} chose one twice");
        }
    };
    check("rows", &got.rows, &want.rows, &|i, j| s[i * m + j]);
    check("cols", &got.cols, &want.cols, &|j, i| s[i * m + j]);
}

#[test]
fn unit_rows_agree_within_rounding() {
    on_every_backend(|backend| {
        for_each_dtype!(backend, sphere_case((130, 200, 64), 10));
        for_each_dtype!(backend, sphere_case((40, 30, 300), 64));
    });
}

#[test]
fn the_largest_k() {
    on_every_backend(|backend| {
        let shape = if is_cuda(backend) { (3, 1100, 8) } else { (40, 1500, 24) };
        sphere_case::<f32>(backend, shape, MAX_K);
        let (x, y) = sixteenths::<f32>(3, shape, 0);
        for (skip, pick) in [(0, Pick::Hardest), (60, Pick::Hardest), (100, Pick::Random { seed: 1 })] {
            let options = TopKOptions { normalization: Normalization::None, skip, pick, ..TopKOptions::hardest(MAX_K) };
            let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
            same_both(&format!("{skip} {pick:?}"), &got, &reference::mine_top_k(x.view(), y.view(), &options));
        }
    });
}

/// Similarities of row 0: 0.5 (its pair), 0.9, 0.4, 0.4, −0.2.
fn by_hand(backend: &Backend, options: &TopKOptions<'_>) -> (Vec<i32>, Vec<f64>, u32) {
    let x = Matrix::<f32>::new(&[1.0], 1, 1, TIGHT);
    let y = Matrix::<f32>::new(&[0.5, 0.9, 0.4, 0.4, -0.2], 5, 1, TIGHT);
    let options = TopKOptions { normalization: Normalization::None, ..*options };
    let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
    let (index, value) = got.rows.of(0);
    (index.to_vec(), to_f64(value).iter().map(|v| (v * 100.0).round() / 100.0).collect(), got.rows.survivors[0])
}

#[test]
fn cases_by_hand() {
    on_every_backend(|backend| {
        let of = |options: TopKOptions<'_>| by_hand(backend, &options);
        let hardest = TopKOptions::hardest;
        assert_eq!(of(hardest(3)), (vec![1, 2, 3], vec![0.9, 0.4, 0.4], 4));
        assert_eq!(of(hardest(9)), (vec![1, 2, 3, 4], vec![0.9, 0.4, 0.4, -0.2], 4));
        assert_eq!(of(TopKOptions { skip: 2, ..hardest(1) }), (vec![3], vec![0.4], 4));
        assert_eq!(of(TopKOptions { skip: 4, ..hardest(1) }), (vec![], vec![], 4));
        assert_eq!(of(TopKOptions::semi_hard(1, Fallback::Skip)), (vec![2], vec![0.4], 3));
        let window = |low, high| TopKOptions { window: Some((low, high)), ..hardest(4) };
        assert_eq!(of(window(-0.5, 0.45)), (vec![2, 3, 4], vec![0.4, 0.4, -0.2], 3));
        assert_eq!(of(window(0.95, 1.0)), (vec![], vec![], 0));
        let easiest = TopKOptions { fallback: Fallback::Easiest, ..window(0.95, 1.0) };
        assert_eq!(of(easiest), (vec![4], vec![-0.2], 0));
        // A rank window that leaves all survivors out is no reason to fall back.
        assert_eq!(of(TopKOptions { skip: 9, fallback: Fallback::Easiest, ..hardest(1) }), (vec![], vec![], 4));
        let below = |margin| TopKOptions { below_positive: Some(margin), ..hardest(4) };
        assert_eq!(of(below(Margin::Absolute(0.2))), (vec![4], vec![-0.2], 1));
        assert_eq!(of(below(Margin::Absolute(-0.5))).2, 4);
        assert_eq!(of(below(Margin::Relative(0.1))).2, 3);
        assert_eq!(of(below(Margin::Relative(0.5))).2, 1);
        let weighted = TopKOptions { pick: Pick::DistanceWeighted { seed: 3 }, ..hardest(4) };
        let (mut index, _, survivors) = of(weighted);
        index.sort_unstable();
        assert_eq!((index, survivors), (vec![1, 2, 3], 3));
    });
}

#[test]
fn a_negative_positive_keeps_the_relative_margin_below_it() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[1.0], 1, 1, TIGHT);
        let y = Matrix::<f32>::new(&[-0.5, -0.5, -0.5625, -0.75], 4, 1, TIGHT);
        let below_positive = Some(Margin::Relative(0.25));
        let options = TopKOptions { normalization: Normalization::None, below_positive, ..TopKOptions::hardest(3) };
        let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
        assert_eq!(got.rows.of(0).0, [3]);
    });
}

fn nan_case<T: Element>(backend: &Backend, seed: u64) {
    let shape = (70, 90, 9);
    let (mut x, mut y) = sixteenths::<T>(seed, shape, 0);
    let mut rng = Rng::new(seed);
    x.set_row(rng.below(70), |_| f64::NAN);
    y.set_row(rng.below(90), |k| if k == 2 { f64::NAN } else { 0.5 });
    *x.at(3, 0) = T::from_f64(f64::INFINITY);
    let options = draw(&mut rng, shape.1);
    let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
    let name = format!("{} NaN {} {options:?}", backend.name(), T::DTYPE);
    same_both(&name, &got, &reference::mine_top_k(x.view(), y.view(), &options));
}

#[test]
fn nan_is_the_largest_and_passes_no_comparison() {
    on_every_backend(|backend| {
        for seed in 0..if is_cuda(backend) { 3 } else { 40 } {
            for_each_dtype!(backend, nan_case(seed));
        }
        // All candidates NaN: the easiest is the first of them.
        let (mut x, y) = sixteenths::<f32>(1, (2, 4, 3), 0);
        x.set_row(0, |_| f64::NAN);
        let options =
            TopKOptions { normalization: Normalization::None, ..TopKOptions::semi_hard(2, Fallback::Easiest) };
        let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
        assert!(got.rows.of(0).0 == [1] && got.rows.of(0).1[0].is_nan() && got.rows.survivors[0] == 0);
    });
}

#[test]
fn no_rows_or_no_columns() {
    on_every_backend(|backend| {
        let some = Matrix::<f32>::new(&[1.0; 12], 3, 4, TIGHT);
        let none = Matrix::<f32>::new(&[], 0, 4, TIGHT);
        let options = TopKOptions { fallback: Fallback::Easiest, skip: 1, ..TopKOptions::hardest(2) };
        for (x, y) in [(&some, &none), (&none, &some), (&none, &none)] {
            let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
            assert_eq!(got.rows.index, vec![NONE; 2 * x.rows]);
            assert_eq!(got.cols.value, vec![f32::NEG_INFINITY; 2 * y.rows]);
            assert_eq!(got.cols.survivors, vec![0; y.rows]);
        }
    });
}

#[test]
fn threads_do_not_change_the_selection() {
    let (x, y) = sixteenths::<f32>(11, (500, 700, 600), 0);
    let groups = (group_ids(1, 500, 40), group_ids(2, 700, 40));
    for pick in [Pick::Hardest, Pick::Random { seed: 5 }, Pick::DistanceWeighted { seed: 5 }] {
        let options = TopKOptions {
            groups: Some(Groups { rows: &groups.0, cols: &groups.1 }),
            skip: 3,
            pick,
            ..TopKOptions::semi_hard(20, Fallback::Easiest)
        };
        let run = |threads| {
            let cpu = Cpu::with_threads(threads).expect("threads");
            cpu::mine_top_k(&cpu, x.view(), y.view(), &options).expect("mine_top_k")
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(7));
    }
}

/// Bands of rows and blocks of columns are taken from both ends: candidates do not come in ascending order.
#[test]
fn the_lowest_of_equal_candidates_win_in_whatever_order_they_come() {
    for shape @ (n, m, d) in [(900, 700, 300), (900, 1000, 100)] {
        let (x, y) = (Matrix::<f32>::new(&vec![1.0; n * d], n, d, TIGHT), Matrix::new(&vec![1.0; m * d], m, d, TIGHT));
        let options = TopKOptions { normalization: Normalization::None, ..TopKOptions::hardest(20) };
        let lowest = |a: usize| (0..21).filter(|&j| j != a as i32).take(20).collect::<Vec<_>>();
        for threads in [2, 4] {
            let cpu = Cpu::with_threads(threads).expect("threads");
            let got = cpu::mine_top_k(&cpu, x.view(), y.view(), &options).expect("mine_top_k");
            for (side, anchors) in [(&got.rows, n), (&got.cols, m)] {
                for a in 0..anchors {
                    assert_eq!(side.of(a).0, lowest(a), "{shape:?}, {threads} threads, anchor {a}");
                }
            }
        }
    }
}

#[test]
fn an_infinite_similarity_is_a_candidate_like_any_other() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[f64::INFINITY, 1.0], 2, 1, TIGHT);
        let y = Matrix::<f32>::new(&[-1.0, 1.0, -2.0], 3, 1, TIGHT);
        for fallback in [Fallback::Skip, Fallback::Easiest] {
            let options = TopKOptions { normalization: Normalization::None, fallback, ..TopKOptions::hardest(2) };
            let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
            assert_eq!(got.rows.index, [1, 2, 0, 2]);
            assert_eq!(got.rows.value, [f32::INFINITY, f32::NEG_INFINITY, -1.0, -2.0]);
            assert_eq!(got.cols.index, [1, NONE, 0, NONE, 1, 0]);
            assert_eq!(got.cols.value[4..], [-2.0, f32::NEG_INFINITY]);
            assert_eq!(got.cols.survivors, [1, 1, 2]);
        }
    });
}

#[test]
fn f64_is_refused_on_cuda() {
    on_every_backend(|backend| {
        let x = Matrix::<f64>::new(&[1.0; 6], 2, 3, TIGHT);
        let got = backend.mine_top_k(x.view(), x.view(), &TopKOptions::default());
        if is_cuda(backend) {
            assert!(matches!(got, Err(Error::UnsupportedDType { op: "mine_top_k", .. })), "{got:?}");
        } else {
            assert!(got.is_ok());
        }
    });
}

/// Draws are as frequent as their probabilities say.
#[test]
fn samples_follow_their_distribution() {
    let similarities = [0.0, 0.2, 0.4, 0.6, 0.01, 0.95, 0.9];
    let x = Matrix::<f64>::new(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1, 8, TIGHT);
    let mut y = Matrix::<f64>::new(&[0.0; 56], 7, 8, TIGHT);
    for (j, s) in similarities.iter().enumerate() {
        *y.at(j, 0) = *s;
        *y.at(j, 1) = (1.0 - s * s).sqrt();
    }
    let backend = Backend::cpu();
    let draws = 40_000;
    let frequencies = |pick: &dyn Fn(u64) -> Pick| {
        let mut count = [0.0; 7];
        for seed in 0..draws {
            let options = TopKOptions { pick: pick(seed), ..TopKOptions::hardest(1) };
            let got = backend.mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
            count[got.rows.index[0] as usize] += 1.0 / draws as f64;
        }
        count
    };
    let uniform = frequencies(&|seed| Pick::Random { seed });
    close("uniform", &uniform[1..], &[1.0 / 6.0; 6], |_| 0.01);
    let weight = |s: &f64| reference::distance_log_weight(*s, 8).map_or(0.0, f64::exp);
    let total: f64 = similarities[1..].iter().map(weight).sum();
    let want: Vec<f64> = similarities[1..].iter().map(|s| weight(s) / total).collect();
    assert_eq!(want[3], 0.0);
    close("weighted", &frequencies(&|seed| Pick::DistanceWeighted { seed })[1..], &want, |_| 0.01);
}

#[test]
fn options_out_of_range_are_named() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[1.0; 6], 2, 3, TIGHT);
        let refused = |options: TopKOptions<'_>| {
            backend.mine_top_k(x.view(), x.view(), &options).expect_err("an error").to_string()
        };
        let ok = TopKOptions::default();
        let named = |options, arg: &str| {
            let text = refused(options);
            assert!(text.starts_with("mine_top_k: ") && text.contains(arg), "{text}");
        };
        named(TopKOptions { k: 0, ..ok }, "`options.k` is 0, expected 1 to 1024");
        named(TopKOptions { k: 1025, ..ok }, "`options.k` is 1025");
        named(TopKOptions { skip: 1025, ..ok }, "`options.skip` is 1025");
        named(TopKOptions { window: Some((0.5, 0.4)), ..ok }, "`options.window` is (0.5, 0.4)");
        named(TopKOptions { window: Some((f64::NAN, 0.4)), ..ok }, "`options.window`");
        let margin = |margin| TopKOptions { below_positive: Some(margin), ..ok };
        named(margin(Margin::Absolute(f64::NAN)), "`options.below_positive`");
        named(margin(Margin::Relative(f64::INFINITY)), "`options.below_positive`");
        let ids = [1, 2, 3];
        let groups = Some(Groups { rows: &ids, cols: &ids[..2] });
        named(TopKOptions { groups, ..ok }, "`groups.rows` is 3, expected 2");
        let short = Matrix::<f32>::new(&[1.0; 4], 2, 2, TIGHT);
        let err = backend.mine_top_k(x.view(), short.view(), &ok).expect_err("an error");
        assert_eq!(err, Error::ShapeMismatch { op: "mine_top_k", arg: "y.cols", expected: 3, got: 2 });
    });
}

/// The comparison must be able to fail.
#[test]
#[should_panic(expected = "survivors")]
fn a_wrong_selection_is_noticed() {
    let (x, y) = sixteenths::<f32>(3, (20, 20, 8), 0);
    let options = TopKOptions { normalization: Normalization::None, ..TopKOptions::semi_hard(2, Fallback::Skip) };
    let got = Backend::cpu().mine_top_k(x.view(), y.view(), &options).expect("mine_top_k");
    let other = TopKOptions { below_positive: Some(Margin::Absolute(0.0625)), ..options };
    same_both("another margin", &got, &reference::mine_top_k(x.view(), y.view(), &other));
}
