//! Similarity matrices against the f64 reference.

mod common;

use common::check::{bound, close, equal, not_all_zero, rounding, similarities, smallest};
use common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, WIDE, pair, poison};
use common::{for_each_dtype, full, is_cuda, on_every_backend};
use half::{bf16, f16};
use simgrad::{Backend, BatchMut, BatchRef, CosineOptions, Element, Normalization};

const SHAPES: [(usize, usize, usize); 18] = [
    (1, 1, 1),
    (1, 2, 3),
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
    (64, 128, 128),
    (129, 257, 65),
    (257, 130, 127),
    (257, 257, 300),
    (2, 300, 513),
];

fn cell<T: Element, O: Element<Acc = T::Acc>>(backend: &Backend, at: usize, shape: (usize, usize, usize)) {
    let (n, m, d) = shape;
    let (normalization, kind) = match at % 3 {
        0 => (Normalization::None, Kind::Sphere),
        _ => (Normalization::L2, Kind::FLOATS[at % 5]),
    };
    let scale = [1.0, -0.5, 14.25][at % 3];
    let (x, y) = pair(kind, at as u64, n, m, d);
    let x = Matrix::<T>::new(&x, n, d, LAYOUTS[at % 4]);
    let y = Matrix::<T>::new(&y, m, d, LAYOUTS[(at / 3) % 4]);
    let mut out = Matrix::<O>::poisoned(n, m, LAYOUTS[(at / 2) % 4]);
    let options = CosineOptions { normalization, scale, ..CosineOptions::default() };
    backend.cosine_matrix(x.view().into(), y.view().into(), &options, out.view_mut().into()).expect("cosine_matrix");
    let want: Vec<f64> = similarities(&x, &y, normalization).iter().map(|s| s * scale).collect();
    let name = format!("{} S {}->{} {shape:?} {normalization:?} x{scale}", backend.name(), T::DTYPE, O::DTYPE);
    close(&name, &out.written(&name), &want, |i| {
        bound::<T>() * scale.abs().max(1.0) + 1.01 * rounding::<O>() * want[i].abs() + smallest::<O>()
    });
}

#[test]
fn lattice() {
    on_every_backend(|backend| {
        let shapes = if is_cuda(backend) && !full() { &SHAPES[..15] } else { &SHAPES[..] };
        for (at, &shape) in shapes.iter().enumerate() {
            cell::<f32, f32>(backend, at, shape);
            cell::<f16, f16>(backend, at + 1, shape);
            cell::<bf16, f32>(backend, at + 2, shape);
            if full() || !is_cuda(backend) || at % 3 == 0 {
                cell::<f32, bf16>(backend, at + 1, shape);
                cell::<f32, f16>(backend, at + 2, shape);
                cell::<f16, f32>(backend, at, shape);
                cell::<f16, bf16>(backend, at + 2, shape);
                cell::<bf16, bf16>(backend, at, shape);
                cell::<bf16, f16>(backend, at + 1, shape);
            }
            if !is_cuda(backend) {
                cell::<f64, f64>(backend, at, shape);
            }
        }
    });
}

fn integers_cell<T: Element>(backend: &Backend, shape: (usize, usize, usize)) {
    let (n, m, d) = shape;
    let (x, y) = pair(Kind::Integers, 5, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, WIDE));
    let mut out = Matrix::<T>::poisoned(n, m, ODD);
    let options = CosineOptions { normalization: Normalization::None, scale: -2.0, ..CosineOptions::default() };
    backend.cosine_matrix(x.view().into(), y.view().into(), &options, out.view_mut().into()).expect("cosine_matrix");
    let name = format!("{} integers {} {shape:?}", backend.name(), T::DTYPE);
    let exact = |s: &f64| T::from_f64(-2.0 * s).to_f64();
    let want: Vec<f64> = similarities(&x, &y, Normalization::None).iter().map(exact).collect();
    if d > 3 {
        not_all_zero(&name, &want);
    }
    equal(&name, &out.written(&name), &want);
}

#[test]
fn integers_are_exact() {
    on_every_backend(|backend| {
        for &shape in SHAPES.iter().take(if is_cuda(backend) && !full() { 13 } else { 18 }) {
            for_each_dtype!(backend, integers_cell(shape));
        }
    });
}

/// A batch with gaps between rows and matrices gives what its matrices give one by one.
fn batch_cell<T: Element>(backend: &Backend, normalization: Normalization) {
    let (b, n, m, d) = (3, 19, 34, 21);
    let options = CosineOptions { normalization, scale: 1.5, ..CosineOptions::default() };
    let (row, matrix) = (d + 3, n * (d + 3) + 5);
    let (row_y, matrix_y) = (d + 1, m * (d + 1) + 2);
    let mut x = vec![poison::<T>(); b * matrix];
    let mut y = vec![poison::<T>(); b * matrix_y];
    for k in 0..b {
        let (a, c) = pair(Kind::Sphere, k as u64, n, m, d);
        for (i, v) in a.iter().enumerate() {
            x[k * matrix + i / d * row + i % d] = T::from_f64(*v);
        }
        for (i, v) in c.iter().enumerate() {
            y[k * matrix_y + i / d * row_y + i % d] = T::from_f64(*v);
        }
    }
    let (row_o, matrix_o) = (m + 2, n * (m + 2) + 7);
    let mut out = vec![poison::<T>(); b * matrix_o];
    let xb = BatchRef::with_strides(&x, b, n, d, row, matrix).expect("x");
    let yb = BatchRef::with_strides(&y, b, m, d, row_y, matrix_y).expect("y");
    let ob = BatchMut::with_strides(&mut out, b, n, m, row_o, matrix_o).expect("out");
    backend.cosine_matrix(xb, yb, &options, ob).expect("batch");
    let mark = bytemuck::bytes_of(&poison::<T>()).to_vec();
    let mut written = 0;
    for k in 0..b {
        let mut one = Matrix::<T>::poisoned(n, m, TIGHT);
        backend
            .cosine_matrix(xb.matrix(k).into(), yb.matrix(k).into(), &options, one.view_mut().into())
            .expect("one matrix");
        let one = one.elements();
        for i in 0..n * m {
            let got = out[k * matrix_o + i / m * row_o + i % m];
            assert_eq!(got, one[i], "{} {} matrix {k} element {i}", backend.name(), T::DTYPE);
            written += 1;
        }
    }
    let untouched = out.iter().filter(|v| bytemuck::bytes_of(*v) == &mark[..]).count();
    assert_eq!(untouched, out.len() - written, "{}: the gaps were written to", backend.name());

    // The same matrix for the whole batch: stride 0.
    let same = BatchRef::with_strides(&x, b, n, d, row, 0).expect("x");
    let mut again = vec![poison::<T>(); b * n * m];
    backend.cosine_matrix(same, yb, &options, BatchMut::new(&mut again, b, n, m).expect("out")).expect("stride 0");
    let mut one = Matrix::<T>::poisoned(n, m, TIGHT);
    backend
        .cosine_matrix(xb.matrix(0).into(), yb.matrix(2).into(), &options, one.view_mut().into())
        .expect("one matrix");
    assert_eq!(again[2 * n * m..], one.elements()[..]);
}

#[test]
fn batches() {
    on_every_backend(|backend| {
        for normalization in [Normalization::L2, Normalization::None] {
            for_each_dtype!(backend, batch_cell(normalization));
        }
    });
}

/// An element does not depend on where in a tile it lies.
fn position_cell<T: Element>(backend: &Backend) {
    let (n, d) = (200, 75);
    let (x, y) = pair(Kind::Sphere, 1, n, n, d);
    let run = |from: usize| {
        let x = Matrix::<T>::new(&x[from * d..], n - from, d, TIGHT);
        let y = Matrix::<T>::new(&y[from * d..], n - from, d, ODD);
        let mut out = Matrix::<T::Acc>::poisoned(n - from, n - from, TIGHT);
        let options = CosineOptions::default();
        backend.cosine_matrix(x.view().into(), y.view().into(), &options, out.view_mut().into()).expect("S");
        out.elements()
    };
    let all = run(0);
    for from in [1, 7, 70] {
        let part = run(from);
        for i in 0..n - from {
            let row = &all[(i + from) * n + from..][..n - from];
            assert_eq!(&part[i * (n - from)..][..n - from], row, "{} {} from {from} row {i}", backend.name(), T::DTYPE);
        }
    }
}

#[test]
fn elements_do_not_depend_on_their_tile() {
    on_every_backend(|backend| for_each_dtype!(backend, position_cell()));
}

#[test]
fn empty_shapes() {
    on_every_backend(|backend| {
        for (b, n, m) in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)] {
            let data = [1f32; 64];
            let x = BatchRef::new(&data, b, n, 4).expect("x");
            let y = BatchRef::new(&data, b, m, 4).expect("y");
            let mut out = [7f32; 4];
            let empty = BatchMut::new(&mut out, b, n, m).expect("out");
            backend.cosine_matrix(x, y, &CosineOptions::default(), empty).expect("nothing to do");
            assert_eq!(out, [7.0; 4]);
        }
    });
}

/// Nothing follows one row or one matrix, so their strides may be anything, also smaller than they are.
#[test]
fn strides_of_a_single_row_or_matrix_do_not_matter() {
    on_every_backend(|backend| {
        let data: Vec<f32> = pair(Kind::Sphere, 1, 3, 1, 8).0.iter().map(|v| *v as f32).collect();
        let run = |n: usize, stride: usize, batch_stride: usize| {
            let x = BatchRef::with_strides(&data, 1, n, 8, 8, 0).expect("x");
            let y = BatchRef::with_strides(&data, 1, 3, 8, 8, 1).expect("y");
            let mut out = vec![poison::<f32>(); n * 3];
            let view = BatchMut::with_strides(&mut out, 1, n, 3, stride, batch_stride).expect("out");
            backend.cosine_matrix(x, y, &CosineOptions::default(), view).expect("cosine_matrix");
            out
        };
        let all = run(3, 3, 9);
        assert!(all.iter().all(|v| v.is_finite()));
        for batch_stride in [0, 1, 5, usize::MAX] {
            assert_eq!(run(3, 3, batch_stride), all, "{} batch stride {batch_stride}", backend.name());
            for stride in [0, 1, usize::MAX] {
                assert_eq!(run(1, stride, batch_stride)[..], all[..3], "{} stride {stride}", backend.name());
            }
        }
        let mut nothing = [0f32; 0];
        let none = BatchMut::with_strides(&mut nothing, 0, 3, 3, 3, 0).expect("out");
        let x = BatchRef::with_strides(&data, 0, 3, 8, 8, 0).expect("x");
        backend.cosine_matrix(x, x, &CosineOptions::default(), none).expect("no matrix");
    });
}
