//! The gradient of a caller's own weights against the f64 reference.

mod common;

use common::check::{close, equal, not_all_zero, rounding, smallest};
use common::data::{Kind, LAYOUTS, Matrix, ODD, Rng, TIGHT, WIDE, bits_equal, pair};
use common::{for_each_gradient, full, is_cuda, on_every_backend};
use simgrad::{
    Backend, Element, GradOptions, GradReport, GradientOf, Normalization, WeightTriples, WriteMode, reference,
};

const SHAPES: [(usize, usize, usize, usize); 12] = [
    (1, 1, 1, 1),
    (2, 3, 8, 4),
    (17, 3, 31, 40),
    (3, 33, 33, 200),
    (33, 31, 65, 0),
    (65, 127, 64, 300),
    (31, 17, 127, 1000),
    (130, 129, 8, 257),
    (129, 257, 33, 700),
    (64, 64, 128, 192),
    (257, 130, 257, 3000),
    (300, 300, 300, 900),
];

struct Triples {
    rows: Vec<i32>,
    cols: Vec<i32>,
    values: Vec<f64>,
}

/// Random triples with duplicates; every third one goes to row 0 and every fourth one to column 0, the hubs.
fn triples(seed: u64, n: usize, m: usize, count: usize, integers: bool) -> Triples {
    let mut rng = Rng::new(seed);
    let pick = |rng: &mut Rng, k: usize, every: usize, limit: usize| {
        if k.is_multiple_of(every) { 0 } else { rng.below(limit) as i32 }
    };
    let mut out = Triples { rows: Vec::new(), cols: Vec::new(), values: Vec::new() };
    for k in 0..count {
        out.rows.push(pick(&mut rng, k, 3, n));
        out.cols.push(pick(&mut rng, k, 4, m));
        out.values.push(if integers { rng.below(7) as f64 - 3.0 } else { f64::from(rng.normal() as f32) });
    }
    out
}

fn cell<T: Element, G: GradientOf<T>>(backend: &Backend, at: usize, shape: (usize, usize, usize, usize)) {
    let (n, m, d, count) = shape;
    let (normalization, kind) = [
        (Normalization::L2, Kind::Sphere),
        (Normalization::None, Kind::Sphere),
        (Normalization::L2, Kind::HeavyTailed),
    ][at % 3];
    let write = if at.is_multiple_of(2) { WriteMode::Overwrite } else { WriteMode::Accumulate };
    let options = GradOptions { normalization, upstream: [1.0, -2.5][at / 2 % 2], write };
    let (x, y) = pair(kind, at as u64, n, m, d);
    let x = Matrix::<T>::new(&x, n, d, LAYOUTS[at % 4]);
    let y = Matrix::<T>::new(&y, m, d, LAYOUTS[(at + 1) % 4]);
    let w = triples(at as u64, n, m, count, false);
    let values: Vec<T::Acc> = w.values.iter().map(|v| T::Acc::from_f64(*v)).collect();
    let old = (pair(Kind::Sphere, 8, n, 1, d).0, pair(Kind::Sphere, 9, 1, m, d).1);
    let output = |old: &[f64], rows| match write {
        WriteMode::Overwrite => Matrix::<G>::poisoned(rows, d, ODD),
        WriteMode::Accumulate => Matrix::<G>::new(old, rows, d, ODD),
    };
    let (mut dx, mut dy) = (output(&old.0, n), output(&old.1, m));
    let before = (dx.values(), dy.values());
    let report = backend
        .weighted_grad(
            x.view(),
            y.view(),
            &WeightTriples { rows: &w.rows, cols: &w.cols, values: &values },
            &options,
            dx.view_mut(),
            dy.view_mut(),
        )
        .expect("weighted_grad");
    assert_eq!(report, GradReport::default());

    let weights = WeightTriples { rows: &w.rows, cols: &w.cols, values: &w.values };
    let (want_x, want_y, _) = reference::weighted_grad(x.view(), y.view(), &weights, &options);
    let name = format!("{} W {}->{} {shape:?} {options:?}", backend.name(), T::DTYPE, G::DTYPE);
    let (rx, ry) = (reference::row_norms(x.view()), reference::row_norms(y.view()));
    let l2 = normalization == Normalization::L2;
    // Each target: Σ |w| ‖other row‖, times the roundings on the way.
    let mut scale = (vec![0.0; n], vec![0.0; m]);
    for k in 0..count {
        let (i, j) = (w.rows[k] as usize, w.cols[k] as usize);
        let weight = (w.values[k] * options.upstream).abs();
        scale.0[i] += weight * if l2 { 1.0 } else { ry[j] };
        scale.1[j] += weight * if l2 { 1.0 } else { rx[i] };
    }
    let unit = (32.0 + count as f64 / 8.0) * rounding::<T::Acc>();
    for (side, got, want, before, scale, r) in
        [("dX", &dx, want_x, before.0, scale.0, rx), ("dY", &dy, want_y, before.1, scale.1, ry)]
    {
        let add = |at: usize| if write == WriteMode::Accumulate { before[at] } else { 0.0 };
        let want: Vec<f64> = want.iter().enumerate().map(|(at, w)| w + add(at)).collect();
        close(&format!("{name} {side}"), &got.written(&name), &want, |at| {
            let through = if l2 { 3.0 / r[at / d] } else { 1.0 };
            unit * scale[at / d] * through + 1.01 * rounding::<G>() * want[at].abs() + smallest::<G>()
        });
    }
}

#[test]
fn lattice() {
    on_every_backend(|backend| {
        let shapes = if is_cuda(backend) && !full() { &SHAPES[..9] } else { &SHAPES[..] };
        for round in 0..if full() { 6 } else { 2 } {
            for (at, &shape) in shapes.iter().enumerate() {
                for_each_gradient!(backend, cell(at + 5 * round, shape));
            }
        }
    });
}

fn integers_cell<T: Element, G: GradientOf<T>>(backend: &Backend, shape: (usize, usize, usize, usize)) {
    let (n, m, d, count) = shape;
    let (x, y) = pair(Kind::Integers, 3, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, WIDE));
    let w = triples(4, n, m, count, true);
    let values: Vec<T::Acc> = w.values.iter().map(|v| T::Acc::from_f64(*v)).collect();
    let options = GradOptions { normalization: Normalization::None, upstream: 2.0, ..GradOptions::default() };
    let (mut dx, mut dy) = (Matrix::<G>::poisoned(n, d, ODD), Matrix::<G>::poisoned(m, d, TIGHT));
    let triples = WeightTriples { rows: &w.rows, cols: &w.cols, values: &values };
    backend.weighted_grad(x.view(), y.view(), &triples, &options, dx.view_mut(), dy.view_mut()).expect("weighted_grad");
    let weights = WeightTriples { rows: &w.rows, cols: &w.cols, values: &w.values };
    let (want_x, want_y, _) = reference::weighted_grad(x.view(), y.view(), &weights, &options);
    let exact = |v: &[f64]| v.iter().map(|v| G::from_f64(*v).to_f64()).collect::<Vec<_>>();
    let name = format!("{} integers {}->{} {shape:?}", backend.name(), T::DTYPE, G::DTYPE);
    if count > 30 {
        not_all_zero(&name, &want_x);
    }
    equal(&format!("{name} dX"), &dx.written(&name), &exact(&want_x));
    equal(&format!("{name} dY"), &dy.written(&name), &exact(&want_y));
}

#[test]
fn integers_are_exact() {
    on_every_backend(|backend| {
        for &shape in &SHAPES[..if is_cuda(backend) && !full() { 8 } else { 12 }] {
            for_each_gradient!(backend, integers_cell(shape));
        }
    });
}

/// Enough triples that a row has more than blocks of their own are given for; one column, less than whole vectors, more than
/// a block of the other rows has threads for.
const HUBS: [(usize, usize, usize, usize); 3] = [(5, 7, 1, 9000), (3, 40, 75, 8193), (2, 2, 2059, 8192)];

#[test]
fn rows_with_many_triples() {
    on_every_backend(|backend| {
        let shapes = if is_cuda(backend) && !full() { &HUBS[..2] } else { &HUBS[..] };
        for (at, &shape) in shapes.iter().enumerate() {
            for_each_gradient!(backend, cell(at, shape));
            for_each_gradient!(backend, integers_cell(shape));
        }
    });
}

/// Weights that rows of one column with the value 1 add up, as f32 adds them in the order of the triples.
fn sums_in_order(targets: usize, of: &[i32], other: &[i32], others: usize, values: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0f32; targets];
    for ((&t, &o), value) in of.iter().zip(other).zip(values) {
        if let (Ok(t), Ok(o)) = (usize::try_from(t), usize::try_from(o))
            && t < targets
            && o < others
        {
            sums[t] += value;
        }
    }
    sums
}

/// Enough triples that many blocks sort them: some out of range, a row with a third of them, and pairs of equal ones far
/// apart. Every sum has the bits of its terms in their order.
#[test]
fn many_triples_are_added_in_their_order() {
    let mut shapes = vec![(3, 2000, 2049), (513, 511, 6000), (1, 1, 5000), (700, 1, 4096)];
    // More than 64 blocks have a tile for; three digits.
    shapes.push((40_000, 7, 131_073));
    if full() {
        shapes.extend([(263_000, 600, 20_000), (1000, 1000, 600_001)]);
    }
    on_every_backend(|backend| {
        for (at, &(n, m, count)) in shapes.iter().enumerate() {
            let mut rng = Rng::new(at as u64);
            let mut w = triples(at as u64, n, m, count, false);
            for k in (0..count).step_by(37) {
                let (side, beyond) = [(&mut w.rows, n), (&mut w.cols, m)].into_iter().nth(k % 2).expect("a side");
                side[k] = [-1, beyond as i32, i32::MIN, i32::MAX][rng.below(4)];
            }
            let left_out = count.div_ceil(37) as u32;
            let values: Vec<f32> = w.values.iter().map(|&v| v as f32).collect();
            let (x, y) =
                (Matrix::<f32>::new(&vec![1.0; n], n, 1, TIGHT), Matrix::<f32>::new(&vec![1.0; m], m, 1, TIGHT));
            let (mut dx, mut dy) = (Matrix::<f32>::poisoned(n, 1, TIGHT), Matrix::<f32>::poisoned(m, 1, TIGHT));
            let given = WeightTriples { rows: &w.rows, cols: &w.cols, values: &values };
            let options = GradOptions { normalization: Normalization::None, ..GradOptions::default() };
            let report = backend
                .weighted_grad(x.view(), y.view(), &given, &options, dx.view_mut(), dy.view_mut())
                .expect("weighted_grad");
            let name = format!("{} {n} {m} {count}", backend.name());
            assert_eq!((report.bad_index, report.overflow), (left_out, 0), "{name}");
            let want = [sums_in_order(n, &w.rows, &w.cols, m, &values), sums_in_order(m, &w.cols, &w.rows, n, &values)];
            assert!(bits_equal(&dx.elements(), &want[0]), "{name} dX");
            assert!(bits_equal(&dy.elements(), &want[1]), "{name} dY");
        }
    });
}

/// Triples that point outside are counted and change nothing.
fn bad_index_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let (n, m, d) = (9, 6, 11);
    let (x, y) = pair(Kind::Sphere, 2, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, TIGHT), Matrix::<T>::new(&y, m, d, TIGHT));
    let run = |rows: &[i32], cols: &[i32], values: &[f64]| {
        let values: Vec<T::Acc> = values.iter().map(|v| T::Acc::from_f64(*v)).collect();
        let (mut dx, mut dy) = (Matrix::<G>::poisoned(n, d, ODD), Matrix::<G>::poisoned(m, d, ODD));
        let report = backend
            .weighted_grad(
                x.view(),
                y.view(),
                &WeightTriples { rows, cols, values: &values },
                &GradOptions::default(),
                dx.view_mut(),
                dy.view_mut(),
            )
            .expect("weighted_grad");
        dx.written("dx");
        dy.written("dy");
        (dx.elements(), dy.elements(), report)
    };
    let clean = run(&[0, 8, 3], &[5, 0, 3], &[1.0, -2.0, 0.5]);
    let bad = run(
        &[0, -1, 9, 8, i32::MIN, 3, 2, i32::MAX],
        &[5, 0, 0, 0, 1, 3, 6, -7],
        &[1.0, 1.0, f64::NAN, -2.0, 1.0, 0.5, 1.0, 1.0],
    );
    assert_eq!((clean.2.bad_index, bad.2.bad_index), (0, 5), "{} {}", backend.name(), T::DTYPE);
    assert!(bits_equal(&clean.0, &bad.0) && bits_equal(&clean.1, &bad.1), "{} {}", backend.name(), T::DTYPE);
}

#[test]
fn triples_out_of_range_are_counted() {
    on_every_backend(|backend| for_each_gradient!(backend, bad_index_cell()));
}

/// Rows without a triple, no rows at all, no columns.
fn empty_cell<T: Element, G: GradientOf<T>>(backend: &Backend, write: WriteMode) {
    let d = 6;
    for (n, m) in [(3, 0), (0, 3), (0, 0), (2, 2)] {
        let ones = |rows: usize| Matrix::<T>::new(&vec![1.0; rows * d], rows, d, TIGHT);
        let output = |rows: usize| match write {
            WriteMode::Overwrite => Matrix::<G>::poisoned(rows, d, ODD),
            WriteMode::Accumulate => Matrix::new(&vec![0.75; rows * d], rows, d, ODD),
        };
        let (x, y, mut dx, mut dy) = (ones(n), ones(m), output(n), output(m));
        let none = WeightTriples { rows: &[], cols: &[], values: &[] };
        let options = GradOptions { write, ..GradOptions::default() };
        backend
            .weighted_grad(x.view(), y.view(), &none, &options, dx.view_mut(), dy.view_mut())
            .expect("weighted_grad");
        let want = if write == WriteMode::Overwrite { 0.0 } else { 0.75 };
        equal("dx", &dx.written("dx"), &vec![want; n * d]);
        equal("dy", &dy.written("dy"), &vec![want; m * d]);
    }
}

#[test]
fn no_triples_give_zero() {
    on_every_backend(|backend| {
        for write in [WriteMode::Overwrite, WriteMode::Accumulate] {
            for_each_gradient!(backend, empty_cell(write));
        }
    });
}

/// The weights of a GOAL step, given as triples, are that step.
fn goal_cell<T: Element, G: GradientOf<T>>(backend: &Backend, normalization: Normalization) {
    use common::goal::{Case, Shape};
    let objective = "nca-sig".parse().expect("a name");
    let case = Case::<T>::raw(&Shape { normalization, layout: ODD, ..Shape::new(40, 33) }, objective, 6);
    let step = case.run::<G>(backend, TIGHT);
    let (mut rows, mut cols, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |i: i32, j: i32, w: f64| {
        rows.push(i);
        cols.push(j);
        values.push(T::Acc::from_f64(w));
    };
    for i in 0..40 {
        for (a, flip) in [(&step.detail.it, false), (&step.detail.ti, true)] {
            let (t, k) = (a.triplet[i].to_f64(), a.neg_index[i]);
            let (row, col) = if flip { (k, i as i32) } else { (i as i32, k) };
            add(i as i32, i as i32, -t * a.w_pos[i].to_f64());
            add(row, col, t * a.w_neg[i].to_f64());
        }
    }
    let (mut dx, mut dy) = (Matrix::<G>::poisoned(40, 33, ODD), Matrix::<G>::poisoned(40, 33, ODD));
    let triples = WeightTriples { rows: &rows, cols: &cols, values: &values };
    let options = GradOptions { normalization, ..GradOptions::default() };
    backend
        .weighted_grad(case.x.view(), case.y.view(), &triples, &options, dx.view_mut(), dy.view_mut())
        .expect("weighted_grad");
    for (name, got, want) in [("dX", dx, step.dx), ("dY", dy, step.dy)] {
        let want = want.written("step");
        let scale = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let name = format!("{} {} {normalization:?} {name}", backend.name(), T::DTYPE);
        // Equal but for the order of the sums and a rounding to the output type that falls the other way.
        close(&name, &got.written(&name), &want, |at| {
            64.0 * rounding::<T::Acc>() * scale + 2.02 * rounding::<G>() * want[at].abs() + smallest::<G>()
        });
    }
}

#[test]
fn the_weights_of_a_step_give_its_gradient() {
    on_every_backend(|backend| {
        for normalization in [Normalization::L2, Normalization::None] {
            for_each_gradient!(backend, goal_cell(normalization));
        }
    });
}
