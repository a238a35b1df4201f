//! Hard-negative mining against the f64 reference.

mod common;

use common::check::{bound, close, equal, hardest, mine_reference, similarities};
use common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, WIDE, group_ids, pair, to_f64};
use common::{for_each_dtype, full, is_cuda, on_every_backend};
use simgrad::{Backend, Element, Groups, MineOptions, Mined, NONE, Normalization};

/// `(n, m, d)` with remainders in every tile dimension, few rows against many and the other way.
const SHAPES: [(usize, usize, usize); 20] = [
    (1, 2, 3),
    (2, 1, 8),
    (3, 17, 31),
    (17, 3, 33),
    (31, 33, 64),
    (33, 65, 1),
    (65, 31, 65),
    (1, 130, 40),
    (130, 1, 40),
    (127, 129, 33),
    (129, 127, 8),
    (128, 128, 32),
    (130, 257, 3),
    (257, 33, 127),
    (64, 128, 128),
    (129, 257, 65),
    (257, 130, 64),
    (257, 257, 257),
    (300, 129, 300),
    (2, 300, 300),
];

fn compare<T: Element>(
    name: &str,
    got: &Mined<T::Acc>,
    x: &Matrix<T>,
    y: &Matrix<T>,
    options: &MineOptions<'_>,
    bound: f64,
) {
    let want = mine_reference(x, y, options);
    let s = similarities(x, y, options.normalization);
    let m = y.rows;
    close(&format!("{name} positives"), &to_f64(&got.positive), &want.positive, |_| bound);
    let (rows, cols) = (to_f64(&got.rows.value), to_f64(&got.cols.value));
    hardest(&format!("{name} rows"), (&rows, &got.rows.index), &want.rows, |i, j| s[i * m + j], bound);
    hardest(&format!("{name} cols"), (&cols, &got.cols.index), &want.cols, |j, i| s[i * m + j], bound);
    if options.second {
        close(&format!("{name} rows second"), &to_f64(&got.rows.second), &want.rows.second, |_| bound);
        close(&format!("{name} cols second"), &to_f64(&got.cols.second), &want.cols.second, |_| bound);
    } else {
        assert!(got.rows.second.is_empty() && got.cols.second.is_empty(), "{name}: second values unasked for");
    }
    // What may never be a negative.
    for (i, &j) in got.rows.index.iter().enumerate().filter(|(_, j)| **j != NONE) {
        assert_ne!(i, j as usize, "{name}: a pair as its own negative");
        assert!(options.groups.is_none_or(|g| g.rows[i] != g.cols[j as usize]), "{name}: same group");
    }
}

fn cell<T: Element>(backend: &Backend, index: usize, shape: (usize, usize, usize)) {
    let (n, m, d) = shape;
    let kind = Kind::FLOATS[index % 5];
    let (x, y) = pair(kind, index as u64, n, m, d);
    let x = Matrix::<T>::new(&x, n, d, LAYOUTS[index % 4]);
    let y = Matrix::<T>::new(&y, m, d, LAYOUTS[(index / 4) % 4]);
    let ids = (group_ids(1, n, 9), group_ids(2, m, 9));
    let groups = (index % 3 == 1).then_some(Groups { rows: &ids.0, cols: &ids.1 });
    let options = MineOptions { normalization: Normalization::L2, groups, second: index.is_multiple_of(2) };
    let name = format!("{} mine {} {shape:?} {kind:?} groups={}", backend.name(), T::DTYPE, groups.is_some());
    let got = backend.mine(x.view(), y.view(), &options).expect("mine");
    compare(&name, &got, &x, &y, &options, bound::<T>());
}

#[test]
fn lattice() {
    on_every_backend(|backend| {
        let rounds = if full() { 6 } else { 1 + usize::from(!is_cuda(backend)) };
        let shapes = if is_cuda(backend) && !full() { &SHAPES[..17] } else { &SHAPES[..] };
        for (at, &shape) in shapes.iter().enumerate() {
            for round in 0..rounds {
                for_each_dtype!(backend, cell(at + 7 * round, shape));
            }
        }
    });
}

fn integers_cell<T: Element>(backend: &Backend, shape: (usize, usize, usize), with_groups: bool) {
    let (n, m, d) = shape;
    let (x, y) = pair(Kind::Integers, 3, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, WIDE));
    let ids = (group_ids(1, n, 5), group_ids(2, m, 5));
    let groups = with_groups.then_some(Groups { rows: &ids.0, cols: &ids.1 });
    // Values and indices alone take other kernels on some devices.
    for second in [true, false] {
        let options = MineOptions { normalization: Normalization::None, groups, second };
        let name = format!("{} integers {} {shape:?} second {second}", backend.name(), T::DTYPE);
        let got = backend.mine(x.view(), y.view(), &options).expect("mine");
        // With few different values nearly every maximum is tied: this is where the lowest index shows.
        compare(&name, &got, &x, &y, &options, 0.0);
    }
}

#[test]
fn integers_and_their_ties_are_exact() {
    on_every_backend(|backend| {
        for (at, &shape) in SHAPES.iter().enumerate().filter(|(at, _)| full() || !is_cuda(backend) || *at < 14) {
            for_each_dtype!(backend, integers_cell(shape, at % 2 == 1));
        }
    });
}

/// A row gives the same bits alone, in a small batch and in a large one.
fn invariance_cell<T: Element>(backend: &Backend, normalization: Normalization) {
    let (n, d) = (140, 70);
    let (x, y) = pair(Kind::Sphere, 5, n, n, d);
    let mine = |rows: std::ops::Range<usize>, cols: usize| {
        let x = Matrix::<T>::new(&x[rows.start * d..rows.end * d], rows.len(), d, TIGHT);
        let y = Matrix::<T>::new(&y[..cols * d], cols, d, ODD);
        // Ids keep the same candidates whatever the index of the row is.
        let ids: (Vec<i64>, Vec<i64>) = (rows.map(|i| i as i64).collect(), (0..cols as i64).collect());
        let groups = Some(Groups { rows: &ids.0, cols: &ids.1 });
        backend.mine(x.view(), y.view(), &MineOptions { normalization, groups, second: true }).expect("mine")
    };
    let all = mine(0..n, n);
    for i in [0, 1, 77, 139] {
        let one = mine(i..i + 1, n);
        // The pair (0, 0) by index is excluded too: only rows whose negative is not column 0 compare.
        if all.rows.index[i] == 0 {
            continue;
        }
        assert_eq!(one.rows.index[0], all.rows.index[i], "{} {} row {i}", backend.name(), T::DTYPE);
        assert_eq!(to_f64(&one.rows.value)[0], to_f64(&all.rows.value)[i], "{} {} row {i}", backend.name(), T::DTYPE);
    }
    let part = mine(0..20, 20);
    assert_eq!(part.positive[..], all.positive[..20], "{} {} positives", backend.name(), T::DTYPE);
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    on_every_backend(|backend| {
        for normalization in [Normalization::L2, Normalization::None] {
            for_each_dtype!(backend, invariance_cell(normalization));
        }
    });
}

#[test]
fn no_rows_or_no_columns() {
    on_every_backend(|backend| {
        let full = Matrix::<f32>::new(&[1.0; 12], 3, 4, TIGHT);
        let none = Matrix::<f32>::new(&[], 0, 4, TIGHT);
        let options = MineOptions { second: true, ..MineOptions::default() };
        let check = |got: &simgrad::Hardest<f32>, len: usize| {
            assert_eq!(got.index, vec![NONE; len]);
            equal("value", &to_f64(&got.value), &vec![f64::NEG_INFINITY; len]);
            equal("second", &to_f64(&got.second), &vec![f64::NEG_INFINITY; len]);
        };
        for (x, y) in [(&full, &none), (&none, &full), (&none, &none)] {
            let got = backend.mine(x.view(), y.view(), &options).expect("mine");
            check(&got.rows, x.rows);
            check(&got.cols, y.rows);
            assert!(got.positive.is_empty());
        }
        let one = Matrix::<f32>::new(&[1.0, 2.0, 2.0, 0.0], 1, 4, TIGHT);
        let got = backend.mine(one.view(), one.view(), &options).expect("mine");
        check(&got.rows, 1);
        check(&got.cols, 1);
        close("positive", &to_f64(&got.positive), &[1.0], |_| bound::<f32>());
    });
}
