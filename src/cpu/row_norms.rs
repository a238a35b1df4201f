//! Row norms, L2 normalisation and its Jacobian.

use super::pool::Cpu;
use super::real::{Real, narrow_into, widen, widen_into};
use super::tile::{Kernel, Simd};
use crate::check;
use crate::dtype::{Accum, Element, GradientOf};
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
struct MaxAbs<'a, A>(&'a [A]);

impl<A: Real> Kernel<A> for MaxAbs<'_, A> {
    type Out = A;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> A {
        const LANES: usize = 32;
        let mut largest = [A::ZERO; LANES];
        // 0 * x is 0 for a number and NaN for NaN and infinities.
        let mut poison = [A::ZERO; LANES];
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        for chunk in chunks {
            for l in 0..LANES {
                largest[l] = largest[l].larger(chunk[l].magnitude());
                poison[l] += A::ZERO * chunk[l];
            }
        }
        for (l, &x) in rest.iter().enumerate() {
            largest[l] = largest[l].larger(x.magnitude());
            poison[l] += A::ZERO * x;
        }
        let mut result = A::ZERO;
        for l in 0..LANES {
            result = if poison[l] == A::ZERO && !result.not_a_number() { result.larger(largest[l]) } else { A::NAN };
        }
        result
    }
}

/// `Σ (x * factor)²` in a fixed order.
struct SumSquares<'a, A> {
    x: &'a [A],
    factor: A,
}

impl<A: Real> Kernel<A> for SumSquares<'_, A> {
    type Out = A;

    #[inline(always)]
    fn run<S: Simd<A>>(self) -> A {
        const LANES: usize = 32;
        let mut sums = [A::ZERO; LANES];
        let (chunks, rest) = self.x.as_chunks::<LANES>();
        for chunk in chunks {
            for l in 0..LANES {
                let v = chunk[l] * self.factor;
                sums[l] = S::mul_add_one(v, v, sums[l]);
            }
        }
        for (l, &x) in rest.iter().enumerate() {
            let v = x * self.factor;
            sums[l] = S::mul_add_one(v, v, sums[l]);
        }
        fold(sums)
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

/// Scale factors of one row in the computing type, and its norm.
fn measure<A: Accum>(cpu: &Cpu, row: &[A]) -> (RowScale<A>, A) {
    let largest = cpu.isa().run(MaxAbs(row));
    if largest == A::ZERO {
        return (RowScale { pow2: A::ONE, inv: A::ZERO, kind: RowKind::Zero }, A::ZERO);
    }
    if !largest.finite() {
        // Infinite if infinities are all that is wrong.
        let norm = row.iter().fold(A::ZERO, |sum, &x| sum + x.magnitude());
        return (RowScale { pow2: A::NAN, inv: A::NAN, kind: RowKind::NotFinite }, norm);
    }
    let pow2 = largest.pow2_scale();
    let length = cpu.isa().run(SumSquares { x: row, factor: pow2 }).to_f64().sqrt();
    let scale = RowScale { pow2, inv: A::from_f64(1.0 / length), kind: RowKind::Regular };
    (scale, A::from_f64(length / pow2.to_f64()))
}

/// The scale factors of all rows under `normalization`; none are needed for rows that are taken as they are.
pub(super) fn row_scales<T: Element>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    normalization: Normalization,
) -> Option<Vec<RowScale<T::Acc>>> {
    (normalization == Normalization::L2).then(|| {
        let mut scales = vec![RowScale::IDENTITY; x.rows()];
        measure_rows(cpu, x, &mut scales, |scale, _| scale);
        scales
    })
}

/// One value per row, made from its scale factors and its norm.
pub(super) fn measure_rows<T: Element, R: Send>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    out: &mut [R],
    make: impl Fn(RowScale<T::Acc>, T::Acc) -> R + Sync,
) {
    let work = x.rows() * x.cols();
    cpu.each(work, out.chunks_mut(ROWS_PER_ITEM).enumerate(), |(item, out)| {
        let mut buffer = Vec::new();
        for (r, out) in out.iter_mut().enumerate() {
            let (scale, norm) = measure(cpu, widen(x.row(item * ROWS_PER_ITEM + r), &mut buffer));
            *out = make(scale, norm);
        }
    });
}

/// The rows of `out` in pieces of `rows` rows, with the number of each piece's first row.
pub(super) fn bands<G>(out: MatMut<'_, G>, rows: usize) -> impl Iterator<Item = (usize, MatMut<'_, G>)> {
    let (total, cols, stride) = (out.rows(), out.cols(), out.row_stride());
    let whole = if total == 1 { cols } else { stride };
    out.into_data().chunks_mut((whole * rows).max(1)).take(total.div_ceil(rows)).enumerate().filter_map(
        move |(band, data)| {
            let first = band * rows;
            MatMut::with_stride(data, rows.min(total - first), cols, stride).ok().map(|m| (first, m))
        },
    )
}

/// `out[k] = ((x[k] * pow2) * inv)`
struct Unit<'a, A> {
    x: &'a [A],
    scale: RowScale<A>,
    out: &'a mut [A],
}

impl<A: Real> Kernel<A> for Unit<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = (x * self.scale.pow2) * self.scale.inv;
        }
    }
}

/// Turns `g`, the gradient with respect to a unit row, into the one with respect to the raw row `x`, in place:
/// `(g − u (u · g)) / |x|` with `u` the unit row.
pub(super) struct Jacobian<'a, A> {
    pub(super) x: &'a [A],
    pub(super) scale: RowScale<A>,
    pub(super) g: &'a mut [A],
}

impl<A: Real> Kernel<A> for Jacobian<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        const LANES: usize = 32;
        let RowScale { pow2, inv, .. } = self.scale;
        let mut sums = [A::ZERO; LANES];
        let (xs, x_rest) = self.x.as_chunks::<LANES>();
        let (gs, g_rest) = self.g.as_chunks::<LANES>();
        for (x, g) in xs.iter().zip(gs) {
            for l in 0..LANES {
                sums[l] = S::mul_add_one(x[l] * pow2, g[l], sums[l]);
            }
        }
        for (l, (&x, &g)) in x_rest.iter().zip(g_rest).enumerate() {
            sums[l] = S::mul_add_one(x * pow2, g, sums[l]);
        }
        // rho = u · g, and u = (x * pow2) * inv.
        let along = (fold(sums) * inv) * inv;
        for (g, &x) in self.g.iter_mut().zip(self.x) {
            // Two factors, since their product overflows for rows of subnormal numbers.
            *g = (S::mul_add_one(x * pow2, -along, *g) * inv) * pow2;
        }
    }
}

/// Writes or adds one row of gradient, `values` in the computing type, and counts finite values that became infinite.
/// `buffer` is scratch.
pub(super) fn store_row<G: Element>(
    values: &mut [G::Acc],
    write: WriteMode,
    out: &mut [G],
    buffer: &mut Vec<G::Acc>,
) -> u32 {
    if write == WriteMode::Accumulate {
        let before = widen(out, buffer);
        for (v, &before) in values.iter_mut().zip(before) {
            *v += before;
        }
    }
    narrow_into(values, out);
    if G::DTYPE == G::Acc::DTYPE {
        return 0;
    }
    let lost = |(v, o): (&G::Acc, &G)| u32::from(v.finite() && !o.to_acc().finite());
    values.iter().zip(out.iter()).map(lost).sum()
}

/// Euclidean norm of every row: `norms[i] = √Σ_k x[i, k]²`.
///
/// Rows are scaled by a power of two first, so that no square overflows or underflows: a row of `1e-30` or `1e30` gets
/// the norm that it has. A zero row gets 0, a row with NaN gets NaN, otherwise a row with an infinity gets infinity.
///
/// `x` is `n × d` of any element type, `norms` has `n` elements. Allocates nothing for `f32` and `f64`, one row per
/// piece of work otherwise. The result is the same bits run to run and for every number of threads.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if
/// `norms` has another length; nothing is written then.
pub fn row_norms<T: Element>(cpu: &Cpu, x: MatRef<'_, T>, norms: &mut [T::Acc]) -> Result<()> {
    check::row_norms("row_norms", (x.rows(), x.cols()), norms.len())?;
    measure_rows(cpu, x, norms, |_, norm| norm);
    Ok(())
}

/// Divides every row by its Euclidean norm: `out[i] = x[i] / |x[i]|`.
///
/// A zero row stays zero; a row with NaN or an infinity becomes all NaN. Norms are safe from overflow and underflow as
/// in [`row_norms`]. `x` and `out` are `n × d` of the same element type; elements are computed in `T::Acc` and rounded
/// once. Allocates one row per piece of work. Deterministic as [`row_norms`].
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the
/// shapes differ; nothing is written then.
pub fn normalize<T: Element>(cpu: &Cpu, x: MatRef<'_, T>, out: MatMut<'_, T>) -> Result<()> {
    check::normalize("normalize", (x.rows(), x.cols()), (out.rows(), out.cols()))?;
    cpu.each(x.rows() * x.cols(), bands(out, ROWS_PER_ITEM), |(first, mut out)| {
        let mut buffer = Vec::new();
        let mut unit = vec![T::Acc::ZERO; x.cols()];
        for r in 0..out.rows() {
            let row = widen(x.row(first + r), &mut buffer);
            let (scale, _) = measure(cpu, row);
            cpu.isa().run(Unit { x: row, scale, out: &mut unit });
            narrow_into(&unit, out.row_mut(r));
        }
    });
    Ok(())
}

/// Gradient through [`normalize`]: `dx[i] (+)= (g[i] − u[i] (u[i] · g[i])) / |x[i]|` with `u[i] = x[i] / |x[i]|`.
///
/// `x` are the raw rows, `grad_unit` the gradient `g` with respect to the unit rows, in `T::Acc`; all three are
/// `n × d`. `dx` is written in `T` or in `T::Acc`. A zero row gets the gradient 0 whatever `g` is (nothing is added to
/// it when accumulating); a row with NaN or an infinity gets NaN. Allocates two rows per piece of work. Deterministic
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
        let (mut buffer, mut out_buffer) = (Vec::new(), Vec::new());
        let mut g = vec![T::Acc::ZERO; x.cols()];
        for r in 0..dx.rows() {
            let row = widen(x.row(first + r), &mut buffer);
            let (scale, _) = measure(cpu, row);
            widen_into(grad_unit.row(first + r), &mut g);
            through_norm(cpu, row, scale, &mut g);
            store_row(&mut g, write, dx.row_mut(r), &mut out_buffer);
        }
    });
    Ok(())
}

/// [`Jacobian`] with the rule for zero rows.
pub(super) fn through_norm<A: Accum>(cpu: &Cpu, x: &[A], scale: RowScale<A>, g: &mut [A]) {
    if scale.kind == RowKind::Zero {
        g.fill(A::ZERO);
    } else {
        cpu.isa().run(Jacobian { x, scale, g });
    }
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
