//! Products of f32 rows from tensor cores: `Precision::SplitBf16` against the f64 reference, and against full precision where
//! there is nothing to be imprecise about. On the CPU the option changes nothing.

mod common;

use common::check::{close, equal, not_all_zero, rounding, similarities, smallest};
use common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, WIDE, bits_equal, pair, poison};
use common::{is_cuda, on_every_backend};
use half::{bf16, f16};
use simgrad::{Backend, BatchMut, BatchRef, CosineOptions, Element, Normalization, Precision, reference};

/// What the parts leave out, of `|x| |y|`: the product of both lows, 2^-16, and the rounding of each low, 2^-17.
const LEFT_OUT: f64 = 1.0 / 32768.0;
/// What the sum may be off by, of `|x| |y|`: as with 16-bit inputs, see `common::check::bound`.
const SUMMED: f64 = 1e-5;

const fn options(normalization: Normalization, scale: f64, precision: Precision) -> CosineOptions {
    CosineOptions { normalization, scale, precision }
}

/// The test on every backend, on CUDA in every scheme that the device has, with its name.
fn in_every_scheme(test: impl Fn(&Backend, &str)) {
    on_every_backend(|backend| {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = backend {
            use std::sync::{Mutex, PoisonError};

            use simgrad::cuda::Scheme;
            // One scheme at a time, of all tests here.
            static FORCED: Mutex<()> = Mutex::new(());
            let _one = FORCED.lock().unwrap_or_else(PoisonError::into_inner);
            let device = cuda.kernels().plan_device();
            let groups = device.compute_capability == (9, 0) && device.group_code;
            let schemes = [Scheme::WarpMma, Scheme::GroupMma, Scheme::GroupMmaSmall];
            for scheme in &schemes[..if groups { 3 } else { 1 }] {
                cuda.kernels().force_scheme(Some(*scheme));
                test(backend, &format!("cuda {scheme:?}"));
            }
            return;
        }
        test(backend, backend.name());
    });
}

fn run<T: Element, O: Element<Acc = T::Acc>>(
    backend: &Backend,
    x: &Matrix<T>,
    y: &Matrix<T>,
    options: &CosineOptions,
) -> Matrix<O> {
    let mut out = Matrix::<O>::poisoned(x.rows, y.rows, TIGHT);
    backend.cosine_matrix(x.view().into(), y.view().into(), options, out.view_mut().into()).expect("cosine_matrix");
    out
}

fn norms(m: &Matrix<f32>) -> Vec<f64> {
    m.values().chunks(m.cols).map(|row| row.iter().map(|v| v * v).sum::<f64>().sqrt()).collect()
}

/// The contract.
fn cell<O: Element<Acc = f32>>(backend: &Backend, name: &str, at: usize, (n, m, d): (usize, usize, usize)) {
    let normalization = [Normalization::L2, Normalization::None][at % 2];
    let scale = [1.0, -0.5, 14.25][at % 3];
    let kind = Kind::FLOATS[at % 5];
    let (x, y) = pair(kind, at as u64, n, m, d);
    let (x, y) = (Matrix::<f32>::new(&x, n, d, LAYOUTS[at % 4]), Matrix::<f32>::new(&y, m, d, LAYOUTS[(at / 2) % 4]));
    let mut out = Matrix::<O>::poisoned(n, m, LAYOUTS[(at / 3) % 4]);
    let options = options(normalization, scale, Precision::SplitBf16);
    backend.cosine_matrix(x.view().into(), y.view().into(), &options, out.view_mut().into()).expect("cosine_matrix");
    let want: Vec<f64> = similarities(&x, &y, normalization).iter().map(|s| s * scale).collect();
    let (nx, ny) = (norms(&x), norms(&y));
    let name = format!("{name} S ->{} ({n}, {m}, {d}) {kind:?} {normalization:?} x{scale}", O::DTYPE);
    close(&name, &out.written(&name), &want, |i| {
        let size = if normalization == Normalization::L2 { 1.0 } else { nx[i / m] * ny[i % m] };
        (LEFT_OUT + SUMMED) * scale.abs() * size + 1.01 * rounding::<O>() * want[i].abs() + smallest::<O>()
    });
}

#[test]
fn the_error_is_within_its_bound() {
    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (3, 17, 31),
        (33, 65, 7),
        (1, 130, 40),
        (130, 1, 41),
        (127, 129, 33),
        (130, 259, 64),
        (65, 70, 300),
        (129, 257, 200),
    ];
    in_every_scheme(|backend, name| {
        for (at, shape) in SHAPES.into_iter().enumerate() {
            cell::<f32>(backend, name, at, shape);
            cell::<bf16>(backend, name, at + 1, shape);
            cell::<f16>(backend, name, at + 2, shape);
        }
    });
}

/// The bound allows for the worst; rounding errors cancel. Also without one of the products of a low part the error is above this.
#[test]
fn errors_mostly_cancel() {
    in_every_scheme(|backend, name| {
        for d in [64, 512] {
            let (n, m) = (60, 70);
            let (x, y) = (pair(Kind::Sphere, 1, n, n, d).0, pair(Kind::Sphere, 2, m, m, d).0);
            let (x, y) = (Matrix::<f32>::new(&x, n, d, TIGHT), Matrix::<f32>::new(&y, m, d, TIGHT));
            let want = similarities(&x, &y, Normalization::L2);
            let got = run::<f32, f32>(backend, &x, &y, &options(Normalization::L2, 1.0, Precision::SplitBf16));
            let squares = got.values().iter().zip(&want).map(|(g, w)| (g - w) * (g - w)).sum::<f64>();
            let error = (squares / want.len() as f64).sqrt();
            let least = if is_cuda(backend) { 3e-6 } else { 0.0 };
            let most = 6e-6 / (d as f64).sqrt() + 1e-7;
            assert!(error <= most, "{name}: {error:e} for {d} features, at most {most:e}");
            // Otherwise this was not the path that is tested.
            assert!(error >= least / (d as f64).sqrt(), "{name}: {error:e} for {d} features is full precision");
        }
    });
}

/// Small products that would each be lost beside the large one: they are added first.
#[test]
fn small_products_are_not_lost_beside_large_ones() {
    let d = 1024;
    // Its products of high parts are 2^14 and pairs that cancel; those of a low part are 2^-14 each, half a unit in the last
    // place of 2^14 for 16 of them.
    let x = |k: usize| match k {
        0 => 128.0,
        k if k % 2 == 1 => 1.0 + 1.0 / 512.0,
        _ => -1.0 + 1.0 / 512.0,
    };
    let y = |k: usize| if k == 0 { 128.0 } else { 1.0 / 32.0 };
    let rows = |of: &dyn Fn(usize) -> f64| Matrix::<f32>::new(&(0..d - 1).map(of).collect::<Vec<_>>(), 1, d - 1, TIGHT);
    let (x, y) = (rows(&x), rows(&y));
    in_every_scheme(|backend, name| {
        // Sums of f32 in ascending order of the features may lose them.
        for (x, y) in [(&x, &y), (&y, &x)].into_iter().filter(|_| is_cuda(backend)) {
            let want = similarities(x, y, Normalization::None);
            assert!(want[0] > 16384.06);
            let got = run::<f32, f32>(backend, x, y, &options(Normalization::None, 1.0, Precision::SplitBf16));
            close(name, &got.values(), &want, |_| 1.0 / 256.0);
        }
    });
}

/// Whatever the norms: the error is relative to them.
#[test]
fn rows_of_any_norm() {
    let (n, d) = (24, 37);
    let (x, _) = pair(Kind::Sphere, 3, n, 1, d);
    // From subnormal rows, whose elements have few bits but are what they are, to such as bf16 would round to infinity.
    let exponents = [-147, -140, -130, -126, -101, -81, -80, -66, -64, -30, 0, 1, 40, 64, 100, 126, 127];
    let matrix = |offset: usize| {
        let mut rows = Vec::new();
        for (at, e) in exponents.iter().enumerate() {
            let row = &x[(at + offset) % n * d..][..d];
            let largest = row.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
            // The largest element just below 2^(e + 1): 0x1.fffffep0 of it rounds up to the next power of two in bf16.
            rows.extend(row.iter().map(|v| v / largest * (2.0 - 2f64.powi(-23)) * 2f64.powi(*e)));
        }
        Matrix::<f32>::new(&rows, exponents.len(), d, ODD)
    };
    let (x, y) = (matrix(0), matrix(7));
    let (nx, ny) = (norms(&x), norms(&y));
    let m = exponents.len();
    let want = similarities(&x, &y, Normalization::None);
    let units = similarities(&x, &y, Normalization::L2);
    in_every_scheme(|backend, name| {
        let got = run::<f32, f32>(backend, &x, &y, &options(Normalization::None, 1.0, Precision::SplitBf16)).values();
        let mut compared = 0;
        for i in 0..m * m {
            let size = nx[i / m] * ny[i % m];
            // Above, terms may exceed what f32 holds, under full precision too.
            if size > 2f64.powi(126) {
                continue;
            }
            let bound = (LEFT_OUT + SUMMED) * size + d as f64 * 2f64.powi(-149);
            let off = (got[i] - want[i]).abs();
            assert!(
                off <= bound,
                "{name}: 2^{} and 2^{}: {off:e}, allowed {bound:e}",
                exponents[i / m],
                exponents[i % m]
            );
            compared += 1;
        }
        assert!(compared > m * m / 2);
        let got = run::<f32, f32>(backend, &x, &y, &options(Normalization::L2, 1.0, Precision::SplitBf16)).values();
        close(&format!("{name} normalised"), &got, &units, |_| LEFT_OUT + SUMMED);
    });
}

/// Zeros, NaN and infinities, next to elements that bf16 rounds to zero or to infinity.
#[test]
fn what_is_not_finite_is_as_under_full_precision() {
    const INF: f64 = f64::INFINITY;
    let (tiny, small, most) = (2f64.powi(-149), 2f64.powi(-135), f64::from(f32::MAX));
    let rows: Vec<[f64; 4]> = vec![
        [0.0; 4],
        [1.0, 2.0, 3.0, 4.0],
        [-1.0, 1.0, 0.0, 0.0],
        [f64::NAN, 1.0, 1.0, 1.0],
        [INF, 1.0, 1.0, 1.0],
        [-INF, 0.0, 0.0, 0.0],
        [INF, INF, 0.0, 1.0],
        [INF, -INF, 1.0, 1.0],
        [INF, f64::NAN, 0.0, 0.0],
        [0.0, INF, 0.0, 0.0],
        [INF, -most, most, 1.0],
        [tiny, tiny, -tiny, tiny],
        [-small, 1.0, 0.0, 0.0],
        [1.0 / 3.0, -1.0 / 3.0, 1.0 / 3.0, 0.1],
        [INF, tiny, 1.0 / 3.0, -small],
        [most, 0.0, 0.0, 0.0],
        [-1.0 / 3.0, small, tiny, 0.0],
        [0.0, -0.0, tiny, INF],
        [0.25, 0.5, 0.0, 0.0],
        // The row is halved, and its second element with it.
        [0.75 * most, tiny, 0.0, 0.0],
    ];
    let n = rows.len();
    // Where the finite terms leave the range of f32, so may their sum, in one order or the other.
    let beyond = |i: usize, j: usize| {
        let terms = rows[i].iter().zip(&rows[j]).map(|(a, b)| (a * b).abs()).filter(|term| term.is_finite());
        terms.sum::<f64>() > most
    };
    assert!((0..n).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|&(i, j)| beyond(i, j)).count() < n * n / 10);
    in_every_scheme(|backend, name| {
        for (normalization, at, d) in
            [(Normalization::None, 0, 4), (Normalization::None, 20, 41), (Normalization::L2, 3, 9)]
        {
            let mut x = Matrix::<f32>::new(&vec![0.0; n * d], n, d, WIDE);
            for (i, row) in rows.iter().enumerate() {
                x.set_row(i, |k| row.get(k.wrapping_sub(at)).copied().unwrap_or(0.0));
            }
            let run = |precision| {
                let mut s = run::<f32, f32>(backend, &x, &x, &options(normalization, -0.5, precision)).values();
                for i in (0..n * n).filter(|i| normalization == Normalization::None && beyond(i / n, i % n)) {
                    s[i] = 0.0;
                }
                s
            };
            let (full, split) = (run(Precision::Full), run(Precision::SplitBf16));
            assert!(full.iter().any(|v| v.is_infinite()) == (normalization == Normalization::None));
            assert!(full.iter().any(|v| v.is_nan()));
            let norms = norms(&x);
            close(&format!("{name} {normalization:?} {d}"), &split, &full, |i| {
                let size = if normalization == Normalization::L2 { 1.0 } else { norms[i / n] * norms[i % n] };
                (LEFT_OUT + SUMMED) * size + 2f64.powi(-140)
            });
        }
    });
}

/// Integers of up to 8 bits have no low part, those of 16 bits are their parts exactly.
#[test]
fn integers_are_exact() {
    let (n, m, d) = (67, 130, 40);
    let (x, y) = pair(Kind::Integers, 5, n, m, d);
    let wide: Vec<f64> = x.iter().enumerate().map(|(i, v)| v * 257.0 + (i % 7) as f64).collect();
    let y = Matrix::<f32>::new(&y, m, d, TIGHT);
    in_every_scheme(|backend, name| {
        for values in [&x, &wide] {
            let x = Matrix::<f32>::new(values, n, d, ODD);
            let want = reference::cosine_matrix(x.view(), y.view(), Normalization::None);
            not_all_zero(name, &want);
            for (a, b) in [(&x, &y), (&y, &x)] {
                let want = similarities(a, b, Normalization::None);
                let got = run::<f32, f32>(backend, a, b, &options(Normalization::None, 1.0, Precision::SplitBf16));
                equal(name, &got.values(), &want);
            }
        }
    });
}

fn ignored<T: Element>(backend: &Backend, name: &str) {
    let (n, m, d) = (40, 70, 33);
    let (x, y) = pair(Kind::Hubs, 2, n, m, d);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, TIGHT));
    let [full, split] = [Precision::Full, Precision::SplitBf16]
        .map(|precision| run::<T, T>(backend, &x, &y, &options(Normalization::L2, 1.0, precision)).elements());
    assert!(bits_equal(&full, &split), "{name}: {} inputs", T::DTYPE);
}

#[test]
fn other_types_and_the_cpu_have_one_precision() {
    in_every_scheme(|backend, name| {
        ignored::<f16>(backend, name);
        ignored::<bf16>(backend, name);
        if !is_cuda(backend) {
            ignored::<f32>(backend, name);
            ignored::<f64>(backend, name);
        }
    });
}

/// Matrices with gaps, and one for all: the bits of the matrices one by one, and nothing beside them.
#[test]
fn batches() {
    let (batch, n, m, d) = (3, 19, 34, 21);
    let (row, matrix) = (d + 3, n * (d + 3) + 5);
    let (row_o, matrix_o) = (m + 2, n * (m + 2) + 7);
    let mut x = vec![f32::NAN; batch * matrix];
    for b in 0..batch {
        for (i, v) in pair(Kind::HeavyTailed, b as u64, n, m, d).0.iter().enumerate() {
            x[b * matrix + i / d * row + i % d] = *v as f32;
        }
    }
    let y: Vec<f32> = pair(Kind::Sphere, 9, batch * m, 1, d).0.iter().map(|v| *v as f32).collect();
    in_every_scheme(|backend, name| {
        for (normalization, stride) in [(Normalization::L2, m * d), (Normalization::None, 0)] {
            let options = options(normalization, 1.5, Precision::SplitBf16);
            let xb = BatchRef::with_strides(&x, batch, n, d, row, matrix).expect("x");
            let yb = BatchRef::with_strides(&y, batch, m, d, d, stride).expect("y");
            let mut out = vec![poison::<f32>(); batch * matrix_o];
            let ob = BatchMut::with_strides(&mut out, batch, n, m, row_o, matrix_o).expect("out");
            backend.cosine_matrix(xb, yb, &options, ob).expect("batch");
            let mut written = 0;
            for b in 0..batch {
                let mut one = Matrix::<f32>::poisoned(n, m, TIGHT);
                let (x, y) = (xb.matrix(b).into(), yb.matrix(b).into());
                backend.cosine_matrix(x, y, &options, one.view_mut().into()).expect("one matrix");
                for (i, want) in one.written(name).iter().enumerate() {
                    let got = out[b * matrix_o + i / m * row_o + i % m];
                    assert_eq!(f64::from(got), *want, "{name} matrix {b} element {i}");
                    written += 1;
                }
            }
            let mark = poison::<f32>().to_bits();
            assert_eq!(out.iter().filter(|v| v.to_bits() == mark).count(), out.len() - written, "{name}: the gaps");
        }
    });
}

/// An element depends on its rows alone, not on where they lie.
#[test]
fn elements_do_not_depend_on_their_place() {
    let (n, d) = (150, 75);
    let (x, y) = pair(Kind::Sphere, 1, n, n, d);
    in_every_scheme(|backend, name| {
        let run = |from: usize| {
            let x = Matrix::<f32>::new(&x[from * d..], n - from, d, TIGHT);
            let y = Matrix::<f32>::new(&y[from * d..], n - from, d, ODD);
            run::<f32, f32>(backend, &x, &y, &options(Normalization::L2, 1.0, Precision::SplitBf16)).elements()
        };
        let all = run(0);
        for from in [1, 70] {
            let part = run(from);
            for i in 0..n - from {
                let row = &all[(i + from) * n + from..][..n - from];
                assert_eq!(&part[i * (n - from)..][..n - from], row, "{name} from {from} row {i}");
            }
        }
    });
}
