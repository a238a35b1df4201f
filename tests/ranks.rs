//! Ranks and recall against the f64 reference.

mod common;

use common::check::{bound, similarities};
use common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, WIDE, group_ids, pair};
use common::{for_each_dtype, full, is_cuda, on_every_backend};
use simgrad::{
    Backend, Element, Groups, NONE, Normalization, Ranks, RecallOptions, RetrievalReport, TiePolicy, reference,
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

/// The ranks that similarities off by `bound` at most can give, lowest and highest.
fn range(scores: &[f64], positive: &dyn Fn(usize) -> bool, bound: f64) -> Option<(i32, i32)> {
    let best = (0..scores.len())
        .filter(|&j| positive(j))
        .map(|j| scores[j])
        .fold(None, |m: Option<f64>, s| Some(m.map_or(s, |m| m.max(s))))?;
    let others = |least: f64| (0..scores.len()).filter(|&j| !positive(j) && scores[j] > least).count() as i32;
    Some((others(best + 2.0 * bound), others(best - 2.0 * bound)))
}

fn cell<T: Element>(backend: &Backend, at: usize, shape: (usize, usize, usize)) {
    let (n, m, d) = shape;
    let kind = Kind::FLOATS[at % 5];
    let (x, y) = pair(kind, at as u64, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, LAYOUTS[at % 4]), Matrix::<T>::new(&y, m, d, LAYOUTS[at / 2 % 4]));
    let ids = (group_ids(1, n, 12), group_ids(2, m, 12));
    let groups = (at % 2 == 1).then_some(Groups { rows: &ids.0, cols: &ids.1 });
    let options = RecallOptions { groups, ties: POLICIES[at % 3], ..RecallOptions::default() };
    let got = backend.ranks(x.view(), y.view(), &options).expect("ranks");
    let s = similarities(&x, &y, Normalization::L2);
    let positive = |i: usize, j: usize| groups.map_or(i == j, |g| g.rows[i] == g.cols[j]);
    let check = |name: &str, query: usize, got: i32, want: Option<(i32, i32)>| {
        let name = format!("{} {} {shape:?} {kind:?} {name} {query}", backend.name(), T::DTYPE);
        match want {
            None => assert_eq!(got, NONE, "{name}: no positive"),
            Some((low, high)) => assert!((low..=high).contains(&got), "{name}: rank {got}, want {low} to {high}"),
        }
    };
    assert_eq!((got.rows.len(), got.cols.len()), (n, m));
    for i in 0..n {
        check("row", i, got.rows[i], range(&s[i * m..][..m], &|j| positive(i, j), bound::<T>()));
    }
    for j in 0..m {
        let scores: Vec<f64> = (0..n).map(|i| s[i * m + j]).collect();
        check("column", j, got.cols[j], range(&scores, &|i| positive(i, j), bound::<T>()));
    }
}

#[test]
fn lattice() {
    on_every_backend(|backend| {
        let shapes = if is_cuda(backend) && !full() { &SHAPES[..13] } else { &SHAPES[..] };
        for round in 0..if full() { 5 } else { 1 + usize::from(!is_cuda(backend)) } {
            for (at, &shape) in shapes.iter().enumerate() {
                for_each_dtype!(backend, cell(at + 3 * round, shape));
            }
        }
    });
}

fn integers_cell<T: Element>(backend: &Backend, shape: (usize, usize, usize), kinds: usize) {
    let (n, m, d) = shape;
    let (x, y) = pair(Kind::Integers, 3, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, WIDE));
    let ids = (group_ids(1, n, kinds.max(1)), group_ids(2, m, kinds.max(1)));
    for ties in POLICIES {
        let groups = (kinds > 0).then_some(Groups { rows: &ids.0, cols: &ids.1 });
        let options = RecallOptions { normalization: Normalization::None, groups, ties };
        let got = backend.ranks(x.view(), y.view(), &options).expect("ranks");
        let want = reference::ranks(x.view(), y.view(), &options);
        assert_eq!(got, want, "{} {} {shape:?} {ties:?} kinds={kinds}", backend.name(), T::DTYPE);
        let report = backend.recall(x.view(), y.view(), &options).expect("recall");
        assert_eq!(report, RetrievalReport::from_ranks(&want));
    }
}

#[test]
fn integers_and_their_ties_are_exact() {
    on_every_backend(|backend| {
        for (at, &shape) in SHAPES.iter().enumerate().filter(|(at, _)| full() || !is_cuda(backend) || *at < 11) {
            for_each_dtype!(backend, integers_cell(shape, [0, 6][at % 2]));
            if !is_cuda(backend) {
                for_each_dtype!(backend, integers_cell(shape, [40, 0][at % 2]));
            }
        }
    });
}

/// Five captions per image, as in the retrieval protocol: the rank of an image is that of its best caption.
#[test]
fn several_captions_per_image() {
    on_every_backend(|backend| {
        let (n, m, d) = (26, 130, 16);
        let (x, y) = (pair(Kind::Sphere, 4, n, n, d).0, pair(Kind::Sphere, 5, m, m, d).1);
        let mut y = Matrix::<f32>::new(&y, m, d, TIGHT);
        // The third caption of image 7 is the image itself: nothing can rank above it.
        y.set_row(7 * 5 + 2, |k| x[7 * d + k]);
        let x = Matrix::<f32>::new(&x, n, d, TIGHT);
        let ids: (Vec<i64>, Vec<i64>) = ((0..n as i64).collect(), (0..m as i64).map(|j| j / 5).collect());
        let options = RecallOptions { groups: Some(Groups { rows: &ids.0, cols: &ids.1 }), ..RecallOptions::default() };
        let got = backend.ranks(x.view(), y.view(), &options).expect("ranks");
        assert_eq!(got, reference::ranks(x.view(), y.view(), &options), "{}", backend.name());
        assert_eq!((got.rows[7], got.cols[37]), (0, 0));
        let report = backend.recall(x.view(), y.view(), &options).expect("recall");
        assert_eq!((report.x_to_y.queries, report.y_to_x.queries), (n, m));
    });
}

#[test]
fn recall_counts_ranks() {
    let ranks = Ranks { rows: vec![0, 4, 5, NONE, 9, 10], cols: vec![NONE; 2] };
    let report = RetrievalReport::from_ranks(&ranks);
    let x = report.x_to_y;
    assert_eq!((x.r1, x.r5, x.r10), (20.0, 40.0, 80.0));
    assert_eq!((x.median_rank, x.mean_rank), (6.0, 6.6));
    assert_eq!((x.queries, x.without_positive), (5, 1));
    assert_eq!((report.y_to_x.queries, report.y_to_x.without_positive, report.y_to_x.r1), (0, 2, 0.0));
    assert_eq!(report.rsum, 140.0);
}

#[test]
fn no_rows_or_no_columns() {
    on_every_backend(|backend| {
        let full = Matrix::<f32>::new(&[1.0; 12], 3, 4, TIGHT);
        let none = Matrix::<f32>::new(&[], 0, 4, TIGHT);
        for (x, y) in [(&full, &none), (&none, &full), (&none, &none)] {
            let got = backend.ranks(x.view(), y.view(), &RecallOptions::default()).expect("ranks");
            assert_eq!(got, Ranks { rows: vec![NONE; x.rows], cols: vec![NONE; y.rows] });
        }
    });
}
