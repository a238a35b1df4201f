//! Retrieval figures and protocols: by hand, against the f64 reference, and on models that have collapsed.

mod common;

use common::check::close;
use common::data::{Kind, Matrix, ODD, Rng, TIGHT, pair};
use common::{for_each_dtype, on_every_backend};
use simgrad::{
    Backend, CaptionProtocol, DirectionMetrics, Element, Error, EvaluationOptions, EvaluationReport, Gain,
    MetricOptions, Normalization, PositiveRanksOptions, RelevantPairs, RetrievalReport, TiePolicy, reference,
};

const POLICIES: [TiePolicy; 3] = [TiePolicy::LowestIndex, TiePolicy::Optimistic, TiePolicy::Pessimistic];

fn options(normalization: Normalization, ties: TiePolicy) -> EvaluationOptions {
    EvaluationOptions { normalization, ties, metrics: MetricOptions::default() }
}

/// All figures as numbers.
fn numbers(d: &DirectionMetrics) -> Vec<f64> {
    let at = d.at.iter().flat_map(|a| [a.k as f64, a.hits as f64, a.recall, a.ndcg]);
    let counts = [d.queries as f64, d.without_relevant as f64];
    let means = [d.recall_sum, d.median_rank, d.mean_rank, d.mrr, d.map, d.map_at_r, d.r_precision, d.ndcg];
    at.chain(means).chain(counts).collect()
}

#[track_caller]
fn same(name: &str, got: &EvaluationReport, want: &EvaluationReport) {
    for (direction, got, want) in [("x to y", &got.x_to_y, &want.x_to_y), ("y to x", &got.y_to_x, &want.y_to_x)] {
        let want = numbers(want);
        close(&format!("{name} {direction}"), &numbers(got), &want, |at| 1e-12 * (1.0 + want[at].abs()));
    }
    close(name, &[got.rsum], &[want.rsum], |_| 1e-9);
}

fn random_pairs(rng: &mut Rng, n: usize, m: usize, density: usize, graded: bool) -> RelevantPairs {
    let (mut offsets, mut candidates) = (vec![0], Vec::new());
    for _ in 0..n {
        let empty = rng.below(4) == 0;
        candidates.extend((0..m as i32).filter(|_| rng.below(1000) < density && !empty));
        offsets.push(candidates.len());
    }
    let grades = graded.then(|| candidates.iter().map(|_| rng.below(4) as f32).collect());
    RelevantPairs::new(n, m, &offsets, candidates, grades).expect("valid pairs")
}

fn figures_cell<T: Element>(backend: &Backend, at: usize) {
    let (n, m, d) = [(1, 1, 2), (9, 40, 3), (60, 33, 5), (50, 150, 4)][at % 4];
    let (x, y) = pair(Kind::Integers, at as u64, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, TIGHT));
    let mut rng = Rng::new(at as u64);
    for density in [20, 120, 700] {
        let relevant = random_pairs(&mut rng, n, m, density, density != 120);
        for ties in POLICIES {
            for gain in [Gain::Exponential, Gain::Linear] {
                let metrics = MetricOptions { cutoffs: vec![0, 1, 3, 5, 10, 37, 1000], gain };
                let options = EvaluationOptions { normalization: Normalization::None, ties, metrics };
                let got = backend.evaluate(x.view(), y.view(), &relevant, &options).expect("figures");
                let ranking = PositiveRanksOptions { normalization: Normalization::None, ties };
                let ranks = reference::positive_ranks(x.view(), y.view(), &relevant, &ranking);
                let name = format!("{} {} {at} {density} {ties:?} {gain:?}", backend.name(), T::DTYPE);
                same(&name, &got, &reference::metrics(&ranks, &options.metrics));
            }
        }
    }
}

#[test]
fn figures_are_those_of_the_reference() {
    on_every_backend(|backend| {
        for at in 0..4 {
            for_each_dtype!(backend, figures_cell(at));
        }
    });
}

/// Two items with two captions each, worked out on paper. S = [[9, 5, 7, 1], [8, 6, 4, 3]]: captions 0 and 1 belong to
/// item 0, captions 2 and 3 to item 1.
#[test]
fn two_items_by_hand() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[1.0, 0.0, 0.0, 1.0], 2, 2, TIGHT);
        let y = Matrix::<f32>::new(&[9.0, 8.0, 5.0, 6.0, 7.0, 4.0, 1.0, 3.0], 4, 2, TIGHT);
        let relevant = RelevantPairs::captions(2, 2).expect("pairs");
        let options = options(Normalization::None, TiePolicy::LowestIndex);
        let got = backend.evaluate(x.view(), y.view(), &relevant, &options).expect("figures");
        // Item 0 ranks captions 0, 2, 1, 3: right at places 1 and 3. Item 1 ranks 0, 1, 2, 3: right at places 3 and 4.
        let rows = &got.x_to_y;
        let d = |place: f64| 1.0 / (place + 1.0).log2();
        let ideal = d(1.0) + d(2.0);
        assert_eq!((rows.at[0].hits, rows.at[0].recall, rows.at[1].recall), (1, 50.0, 100.0));
        close(
            "x to y",
            &[rows.median_rank, rows.mean_rank, rows.mrr, rows.map, rows.map_at_r, rows.r_precision, rows.ndcg],
            &[
                2.0,
                2.0,
                (1.0 + 1.0 / 3.0) / 2.0,
                ((1.0 + 2.0 / 3.0) / 2.0 + (1.0 / 3.0 + 2.0 / 4.0) / 2.0) / 2.0,
                (1.0 / 2.0 + 0.0) / 2.0,
                (1.0 / 2.0 + 0.0) / 2.0,
                ((d(1.0) + d(3.0)) / ideal + (d(3.0) + d(4.0)) / ideal) / 2.0,
            ],
            |_| 1e-14,
        );
        // Captions 0 (9 > 8) and 3 (3 > 1) find their item first, captions 1 (6 > 5) and 2 (7 > 4): 1 second, 2 second.
        let cols = &got.y_to_x;
        assert_eq!((cols.at[0].hits, cols.at[0].recall, cols.at[1].recall), (2, 50.0, 100.0));
        assert_eq!((cols.mrr, cols.map, cols.r_precision), (0.75, 0.75, 0.5));
        assert_eq!(got.rsum, 500.0);
    });
}

/// A collapsed model gives every candidate the same score. Under the optimistic policy it looks perfect, under the
/// pessimistic one it finds nothing, and by index it finds what lies first.
#[test]
fn constant_embeddings_under_every_policy() {
    on_every_backend(|backend| {
        let (items, captions) = (40, 5);
        let relevant = RelevantPairs::captions(items, captions).expect("pairs");
        let x = Matrix::<f32>::new(&vec![0.5; items * 4], items, 4, TIGHT);
        let y = Matrix::<f32>::new(&vec![2.0; items * captions * 4], items * captions, 4, TIGHT);
        let of = |ties| {
            let options = options(Normalization::L2, ties);
            backend.evaluate(x.view(), y.view(), &relevant, &options).expect("figures")
        };
        let best = of(TiePolicy::Optimistic);
        for d in [&best.x_to_y, &best.y_to_x] {
            assert_eq!((d.at[0].recall, d.mrr, d.map, d.map_at_r, d.r_precision), (100.0, 1.0, 1.0, 1.0, 1.0));
            assert_eq!((d.median_rank, d.mean_rank), (1.0, 1.0));
            close("ndcg", &[d.ndcg], &[1.0], |_| 1e-14);
        }
        assert_eq!(best.rsum, 600.0);
        let worst = of(TiePolicy::Pessimistic);
        assert_eq!(worst.rsum, 0.0);
        assert_eq!((worst.x_to_y.mean_rank, worst.y_to_x.mean_rank), (196.0, 40.0));
        assert_eq!((worst.x_to_y.map_at_r, worst.x_to_y.r_precision), (0.0, 0.0));
        let index = of(TiePolicy::LowestIndex);
        // Item i finds its first caption at place 5 i + 1, caption j its item at place j / 5 + 1: what random order gives,
        // K in every number of candidates.
        let recalls = |d: &DirectionMetrics| [d.at[0].recall, d.at[1].recall, d.at[2].recall];
        assert_eq!(recalls(&index.x_to_y), [2.5, 2.5, 5.0]);
        assert_eq!(recalls(&index.y_to_x), [2.5, 12.5, 25.0]);
        assert_eq!((index.x_to_y.mean_rank, index.y_to_x.mean_rank), (98.5, 20.5));
    });
}

/// The five folds of a protocol are ranked by themselves, and their figures averaged.
#[test]
fn folds_are_ranked_by_themselves() {
    on_every_backend(|backend| {
        let protocol = CaptionProtocol { items: 12, captions: 5, folds: 3 };
        let (n, m, d) = (36, 180, 7);
        let (x, y) = (pair(Kind::Clustered, 1, n, n, d).0, pair(Kind::Clustered, 2, m, m, d).0);
        let (xm, ym) = (Matrix::<f32>::new(&x, n, d, ODD), Matrix::<f32>::new(&y, m, d, ODD));
        let options = options(Normalization::L2, TiePolicy::LowestIndex);
        let got = backend.evaluate_captions(xm.view(), ym.view(), &protocol, &options).expect("figures");
        assert_eq!(got.folds.len(), 3);
        let relevant = RelevantPairs::captions(12, 5).expect("pairs");
        let mut mean = vec![0.0; numbers(&got.mean.x_to_y).len()];
        for (f, fold) in got.folds.iter().enumerate() {
            let xf = Matrix::<f32>::new(&x[f * 12 * d..][..12 * d], 12, d, TIGHT);
            let yf = Matrix::<f32>::new(&y[f * 60 * d..][..60 * d], 60, d, TIGHT);
            let alone = backend.evaluate(xf.view(), yf.view(), &relevant, &options).expect("figures");
            assert_eq!(fold, &alone, "fold {f}");
            mean.iter_mut().zip(numbers(&alone.x_to_y)).for_each(|(m, v)| *m += v / 3.0);
        }
        let m = &got.mean.x_to_y;
        close("mean", &[m.at[0].recall, m.mrr, m.map], &[mean[2], mean[15], mean[16]], |_| 1e-12);
        assert_eq!((m.queries, got.mean.y_to_x.queries), (36, 180));
        assert_eq!(m.at[0].hits, got.folds.iter().map(|f| f.x_to_y.at[0].hits).sum::<usize>());
        close("rsum", &[got.mean.rsum], &[got.folds.iter().map(|f| f.rsum).sum::<f64>() / 3.0], |_| 1e-9);
        // A file that repeats every item for each of its captions.
        let repeated: Vec<f64> = (0..180).flat_map(|r| x[r / 5 * d..][..d].to_vec()).collect();
        let repeated = Matrix::<f32>::new(&repeated, 180, d, ODD);
        assert_eq!(backend.evaluate_captions(repeated.view(), ym.view(), &protocol, &options).expect("figures"), got);
    });
}

/// The field's recalls are those of `recall`, with the captions as groups.
#[test]
fn recalls_agree_with_recall() {
    on_every_backend(|backend| {
        let (n, m, d) = (30, 150, 9);
        let (x, y) = (pair(Kind::Hubs, 1, n, n, d).0, pair(Kind::Hubs, 2, m, m, d).0);
        let (x, y) = (Matrix::<f32>::new(&x, n, d, TIGHT), Matrix::<f32>::new(&y, m, d, TIGHT));
        let relevant = RelevantPairs::captions(n, 5).expect("pairs");
        let ranking = PositiveRanksOptions::default();
        let all = backend.positive_ranks(x.view(), y.view(), &relevant, &ranking).expect("ranks");
        let first = simgrad::Ranks { rows: all.rows.first(), cols: all.cols.first() };
        let ids: (Vec<i64>, Vec<i64>) = ((0..n as i64).collect(), (0..m as i64).map(|j| j / 5).collect());
        let groups = Some(simgrad::Groups { rows: &ids.0, cols: &ids.1 });
        let options = simgrad::RecallOptions { groups, ..simgrad::RecallOptions::default() };
        let want = backend.recall(x.view(), y.view(), &options).expect("recall");
        assert_eq!(RetrievalReport::from_ranks(&first), want);
        let got = EvaluationReport::from_ranks(&all, &MetricOptions::default());
        assert_eq!(got.x_to_y.at[0].recall, want.x_to_y.r1);
        close("rsum", &[got.rsum], &[want.rsum], |_| 1e-9);
        assert_eq!((got.y_to_x.median_rank, got.y_to_x.mean_rank), (want.y_to_x.median_rank, want.y_to_x.mean_rank));
    });
}

#[test]
fn protocols_that_do_not_fit_are_refused() {
    on_every_backend(|backend| {
        let (x, y) = (Matrix::<f32>::new(&[1.0; 12], 6, 2, TIGHT), Matrix::<f32>::new(&[1.0; 36], 18, 2, TIGHT));
        let refused = |x: &Matrix<f32>, y: &Matrix<f32>, items, captions, folds| {
            let protocol = CaptionProtocol { items, captions, folds };
            let refused = backend.evaluate_captions(x.view(), y.view(), &protocol, &EvaluationOptions::default());
            refused.expect_err("refused")
        };
        for (error, name) in [
            (refused(&x, &y, 0, 3, 1), "protocol.items"),
            (refused(&x, &y, 6, 0, 1), "protocol.captions"),
            (refused(&x, &y, 6, 3, 0), "protocol.folds"),
        ] {
            assert!(matches!(error, Error::InvalidOption { arg, .. } if arg == name), "{error}");
        }
        let text = |error: Error| error.to_string();
        assert_eq!(text(refused(&x, &y, 4, 3, 1)), "evaluate_captions: `x.rows` is 6, expected 4");
        assert_eq!(text(refused(&x, &y, 2, 4, 3)), "evaluate_captions: `y.rows` is 18, expected 24");
        assert!(matches!(refused(&x, &y, usize::MAX, 5, 5), Error::ShapeMismatch { arg: "x.rows", .. }));
    });
}
