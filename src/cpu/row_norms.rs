//! Row norms, L2 normalisation and its Jacobian.

use super::gather::{Term, write_gradient};
use super::pool::Cpu;
use super::real::Real;
use super::tile::{Kernel, Simd, lanes, load, load_part, store, store_part};
use crate::check;
use crate::dtype::{Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::options::{Normalization, WriteMode};

/// Rows per piece of work of the element-wise operations.
pub(super) const ROWS_PER_ITEM: usize = 16;

/// What kind of row it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    Regular,
    /// All elements are zero.
    Zero,
    /// Some element is NaN or infinite.
    NotFinite,
}

/// The factors that make a row a unit row: `unit = (x * pow2) * inv`, the first product exact.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowScale<A> {
    pub(super) pow2: A,
    /// `1 / |x * pow2|`, 0 for a zero row.
    pub(super) inv: A,
    pub(super) kind: RowKind,
}

impl<A: Real> RowScale<A> {
    /// The factors of a row that is taken as it is.
    pub(super) const IDENTITY: Self = Self { pow2: A::ONE, inv: A::ONE, kind: RowKind::Regular };
}

/// The largest magnitude of a row, NaN if an element is not finite.
fn largest<T: Element>(row: &[T]) -> T::Acc {
    row.iter().map(|x| x.to_acc().magnitude()).fold(T::Acc::ZERO, |largest, x| {
        if x.finite() && !largest.not_a_number() { largest.larger(x) } else { T::Acc::NAN }
    })
}

/// `Σ (x * factor)²` in a fixed order.
struct SumSquares<'a, T: Element> {
    x: &'a [T],
    factor: T::Acc,
}

impl<T: Element> Kernel<T::Acc> for SumSquares<'_, T> {
    type Out = T::Acc;

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) -> T::Acc {
        const UNROLL: usize = 4;
        let factor = S::splat(self.factor);
        let mut sums = [S::splat(T::Acc::ZERO); UNROLL];
        let chunks = self.x.chunks_exact(UNROLL * S::LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (u, sum) in sums.iter_mut().enumerate() {
                let v = S::mul(load::<T, S>(&chunk[u * S::LANES..]), factor);
                *sum = S::mul_add(v, v, *sum);
            }
        }
        for (sum, part) in sums.iter_mut().zip(rest.chunks(S::LANES)) {
            let v = S::mul(load_part::<T, S>(part), factor);
            *sum = S::mul_add(v, v, *sum);
        }
        fold(lanes::<T::Acc, S>(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]))))
    }
}

/// Sum of the lanes by halving.
#[inline(always)]
pub(super) fn fold<A: Real, const LANES: usize>(mut lanes: [A; LANES]) -> A {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Scale factors of one row, and its norm.
fn measure<T: Element>(cpu: &Cpu, row: &[T]) -> (RowScale<T::Acc>, T::Acc) {
    let regular = |pow2: T::Acc, squares: T::Acc| {
        let length = squares.to_f64().sqrt();
        let scale = RowScale { pow2, inv: T::Acc::from_f64(1.0 / length), kind: RowKind::Regular };
        (scale, T::Acc::from_f64(length / pow2.to_f64()))
    };
    let squares = cpu.isa().run(SumSquares { x: row, factor: T::Acc::ONE });
    if T::Acc::SAFE_SQUARES.contains(&squares) {
        return regular(T::Acc::ONE, squares);
    }
    let largest = largest(row);
    if largest == T::Acc::ZERO {
        return (RowScale { pow2: T::Acc::ONE, inv: T::Acc::ZERO, kind: RowKind::Zero }, T::Acc::ZERO);
    }
    if !largest.finite() {
        // Infinite if infinities are all that is wrong.
        let norm = row.iter().fold(T::Acc::ZERO, |sum, x| sum + x.to_acc().magnitude());
        return (RowScale { pow2: T::Acc::NAN, inv: T::Acc::NAN, kind: RowKind::NotFinite }, norm);
    }
    let pow2 = largest.pow2_scale();
    regular(pow2, cpu.isa().run(SumSquares { x: row, factor: pow2 }))
}

/// The scale factors of the rows of both matrices under `normalization`; none are needed for rows that are taken as they
/// are.
pub(super) fn unit_scales<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    normalization: Normalization,
) -> [Option<Vec<RowScale<T::Acc>>>; 2] {
    match normalization {
        Normalization::None => [None, None],
        Normalization::L2 => row_scales(cpu, x, y).map(Some),
    }
}

/// The scale factors of the rows of both matrices.
pub(super) fn row_scales<T: Element>(cpu: &Cpu, x: MatRef<'_, T>, y: MatRef<'_, T>) -> [Vec<RowScale<T::Acc>>; 2] {
    let mut scales = [x, y].map(|mat| vec![RowScale::IDENTITY; mat.rows()]);
    let [x_scales, y_scales] = &mut scales;
    let work = (x.rows() + y.rows()) * x.cols();
    cpu.each(work, items(x, x_scales).chain(items(y, y_scales)), |(mat, first, out)| {
        measure_rows(cpu, mat, first, out, |scale, _| scale);
    });
    scales
}

/// Pieces of work: a matrix, a first row, and the results of the rows from there on.
fn items<'a, T: Element, R>(
    mat: MatRef<'a, T>,
    out: &'a mut [R],
) -> impl DoubleEndedIterator<Item = (MatRef<'a, T>, usize, &'a mut [R])> {
    out.chunks_mut(ROWS_PER_ITEM).enumerate().map(move |(item, out)| (mat, item * ROWS_PER_ITEM, out))
}

/// One value per row from row `first` on, made from its scale factors and its norm.
fn measure_rows<T: Element, R>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    first: usize,
    out: &mut [R],
    make: impl Fn(RowScale<T::Acc>, T::Acc) -> R,
) {
    for (r, out) in out.iter_mut().enumerate() {
        let (scale, norm) = measure(cpu, x.row(first + r));
        *out = make(scale, norm);
    }
}

/// The rows of `out` in pieces of `rows` rows, with the number of each piece's first row.
pub(super) fn bands<G>(out: MatMut<'_, G>, rows: usize) -> impl DoubleEndedIterator<Item = (usize, MatMut<'_, G>)> {
    let (total, cols, stride) = (out.rows(), out.cols(), out.row_stride());
    let whole = if total == 1 { cols } else { stride };
    out.into_data().chunks_mut((whole * rows).max(1)).take(total.div_ceil(rows)).enumerate().filter_map(
        move |(band, data)| {
            let first = band * rows;
            MatMut::with_stride(data, rows.min(total - first), cols, stride).ok().map(|m| (first, m))
        },
    )
}

/// `out[k] = (x[k] * pow2) * inv`, rounded once to the output type.
struct Unit<'a, T: Element> {
    x: &'a [T],
    scale: RowScale<T::Acc>,
    out: &'a mut [T],
}

impl<T: Element> Kernel<T::Acc> for Unit<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) {
        let (pow2, inv) = (S::splat(self.scale.pow2), S::splat(self.scale.inv));
        for (x, out) in self.x.chunks(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
            if x.len() == S::LANES {
                store::<T, S>(S::mul(S::mul(load::<T, S>(x), pow2), inv), out);
            } else {
                store_part::<T, S>(S::mul(S::mul(load_part::<T, S>(x), pow2), inv), out);
            }
        }
    }
}

/// Euclidean norm of every row: `norms[i] = √Σ_k x[i, k]²`.
///
/// Rows are scaled by a power of two first, so that no square overflows or underflows: a row of `1e-30` or `1e30` gets
/// the norm that it has. A zero row gets 0, a row with NaN gets NaN, otherwise a row with an infinity gets infinity.
///
/// `x` is `n × d` of any element type, `norms` has `n` elements. Allocates nothing. The result is the same bits run to run and for every number of threads.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if
/// `norms` has another length; nothing is written then.
pub fn row_norms<T: Element>(cpu: &Cpu, x: MatRef<'_, T>, norms: &mut [T::Acc]) -> Result<()> {
    check::row_norms("row_norms", (x.rows(), x.cols()), norms.len())?;
    cpu.each(x.rows() * x.cols(), items(x, norms), |(x, first, out)| measure_rows(cpu, x, first, out, |_, norm| norm));
    Ok(())
}

/// Divides every row by its Euclidean norm: `out[i] = x[i] / |x[i]|`.
///
/// A zero row stays zero; a row with NaN or an infinity becomes all NaN. Norms are safe from overflow and underflow as
/// in [`row_norms`]. `x` and `out` are `n × d` of the same element type; elements are computed in `T::Acc` and rounded
/// once. Allocates nothing. Deterministic as [`row_norms`].
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// shapes differ; nothing is written then.
pub fn normalize<T: Element>(cpu: &Cpu, x: MatRef<'_, T>, out: MatMut<'_, T>) -> Result<()> {
    check::normalize("normalize", (x.rows(), x.cols()), (out.rows(), out.cols()))?;
    cpu.each(x.rows() * x.cols(), bands(out, ROWS_PER_ITEM), |(first, mut out)| {
        for r in 0..out.rows() {
            let row = x.row(first + r);
            let (scale, _) = measure(cpu, row);
            cpu.isa().run(Unit { x: row, scale, out: out.row_mut(r) });
        }
    });
    Ok(())
}

/// Gradient through [`normalize`]: `dx[i] (+)= (g[i] − u[i] (u[i] · g[i])) / |x[i]|` with `u[i] = x[i] / |x[i]|`.
///
/// `x` are the raw rows, `grad_unit` the gradient `g` with respect to the unit rows, in `T::Acc`; all three are
/// `n × d`. `dx` is written in `T` or in `T::Acc`. A zero row gets the gradient 0 whatever `g` is (nothing is added to
/// it when accumulating); a row with NaN or an infinity gets NaN. Takes one row of scratch memory per thread from
/// the handle. Deterministic
/// as [`row_norms`].
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// shapes differ; nothing is written then.
pub fn normalize_backward<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    grad_unit: MatRef<'_, T::Acc>,
    write: WriteMode,
    dx: MatMut<'_, G>,
) -> Result<()> {
    let extent = (x.rows(), x.cols());
    let unit_extent = (grad_unit.rows(), grad_unit.cols());
    check::normalize_backward("normalize_backward", extent, unit_extent, (dx.rows(), dx.cols()))?;
    cpu.each(x.rows() * x.cols(), bands(dx, ROWS_PER_ITEM), |(first, mut dx)| {
        let mut g = cpu.scratch::<T::Acc>(x.cols());
        for r in 0..dx.rows() {
            let row = x.row(first + r);
            let (scale, _) = measure(cpu, row);
            let unit = Term { row: grad_unit.row(first + r), pow2: T::Acc::ONE, factor: T::Acc::ONE };
            write_gradient(cpu, &[unit], Some((row, scale)), &mut g, write, dx.row_mut(r));
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_survive_extreme_magnitudes() {
        let cpu = Cpu::with_threads(1).unwrap();
        for magnitude in [1e-44_f32, 1e-30, 1.0, 1e30] {
            let x: Vec<f32> = (0..37).map(|k| magnitude * (k as f32 - 18.0)).collect();
            let want = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let mut norms = [0f32];
            row_norms(&cpu, MatRef::new(&x, 1, 37).unwrap(), &mut norms).unwrap();
            assert!((f64::from(norms[0]) - want).abs() <= 2e-7 * want + 1e-45, "{magnitude:e}");
            let mut unit = [0f32; 37];
            normalize(&cpu, MatRef::new(&x, 1, 37).unwrap(), MatMut::new(&mut unit, 1, 37).unwrap()).unwrap();
            for (u, v) in unit.iter().zip(&x) {
                assert!((f64::from(*u) - f64::from(*v) / want).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn norms_of_rows_that_are_not_finite() {
        let cpu = Cpu::with_threads(1).unwrap();
        let x = [0.0, 0.0, f32::INFINITY, 1.0, f32::NAN, 1.0, f32::NEG_INFINITY, f32::NAN];
        let mut norms = [1f32; 4];
        row_norms(&cpu, MatRef::new(&x, 4, 2).unwrap(), &mut norms).unwrap();
        assert_eq!(norms[..2], [0.0, f32::INFINITY]);
        assert!(norms[2].is_nan() && norms[3].is_nan());
    }

    #[test]
    fn gradient_is_orthogonal_to_the_row_and_zero_for_a_zero_row() {
        let cpu = Cpu::with_threads(1).unwrap();
        let x = [3.0, 4.0, 0.0, 0.0];
        let mut dx = [7f64; 4];
        let g = [1.0, 2.0, f64::NAN, 1.0];
        let (x, g) = (MatRef::new(&x, 2, 2).unwrap(), MatRef::new(&g, 2, 2).unwrap());
        normalize_backward(&cpu, x, g, WriteMode::Overwrite, MatMut::new(&mut dx, 2, 2).unwrap()).unwrap();
        // u = (0.6, 0.8), u·g = 2.2, (g - 2.2 u) / 5
        assert!((dx[0] + 0.064).abs() < 1e-15 && (dx[1] - 0.048).abs() < 1e-15, "{dx:?}");
        assert_eq!(dx[2..], [0.0, 0.0]);
        normalize_backward(&cpu, x, g, WriteMode::Accumulate, MatMut::new(&mut dx, 2, 2).unwrap()).unwrap();
        assert!((dx[0] + 0.128).abs() < 1e-15);
    }
}
