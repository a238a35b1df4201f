//! Gradient of a caller's own sparse weight matrix.

use super::gather::{Gradient, Terms, gather};
use super::pack::Rows;
use super::pool::Cpu;
use super::row_norms::unit_scales;
use crate::check;
use crate::dtype::{Element, GradientOf};
use crate::error::Result;
use crate::matrix::{MatMut, MatRef};
use crate::options::GradOptions;
use crate::outputs::{GradReport, WeightTriples};

/// `dx (+)= u · W ŷ`, `dy (+)= u · Wᵀ x̂` for a sparse weight matrix `W = dL/dS` given as triples, with `u` the upstream
/// factor of `options`.
///
/// Under [`Normalization::L2`](crate::Normalization::L2), `x̂`, `ŷ` are the normalised rows and the gradient goes
/// through the Jacobian of the normalisation, `dx[i] (+)= (g − x̂[i] (x̂[i] · g)) / |x[i]|` with `g = u Σ_j W[i, j] ŷ[j]`;
/// a zero row gets exactly 0. Under [`Normalization::None`](crate::Normalization::None) rows are taken as they are.
///
/// `x` and `dx` are `n × d`, `y` and `dy` are `m × d`; gradients are written in `T` or `T::Acc`, summed in `T::Acc` and
/// rounded once. Duplicate triples add up, in the order given; a triple with an index outside the matrices is left out
/// and counted in the report, as are gradient elements that overflow the output type. Every row is written: with 0, or
/// left as it was when accumulating, where no triple names it. The result is the same bits run to run and for every
/// number of threads. Allocates `O(n + m + triples)`.
///
/// # Errors
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if
/// shapes or the lengths of the triples' slices disagree, [`Error::TooLarge`](crate::Error::TooLarge) above `i32::MAX`
/// rows or triples; nothing is written then.
pub fn weighted_grad<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    w: &WeightTriples<'_, T::Acc>,
    options: &GradOptions,
    dx: MatMut<'_, G>,
    dy: MatMut<'_, G>,
) -> Result<GradReport> {
    let (n, m) = (x.rows(), y.rows());
    check::weighted_grad(
        "weighted_grad",
        (n, x.cols()),
        (m, y.cols()),
        [w.rows.len(), w.cols.len(), w.values.len()],
        (dx.rows(), dx.cols()),
        (dy.rows(), dy.cols()),
    )?;
    let _awake = cpu.session((n + m + w.rows.len()).saturating_mul(x.cols()));
    let triples = w.rows.iter().zip(w.cols).zip(w.values).filter_map(|((&i, &j), &value)| {
        let (i, j) = (usize::try_from(i).ok()?, usize::try_from(j).ok()?);
        let value = T::Acc::from_f64(value.to_f64() * options.upstream);
        (i < n && j < m).then_some((i, j, value))
    });
    let by_row = Terms::new(n, triples.clone());
    let by_col = Terms::new(m, triples.clone().map(|(i, j, value)| (j, i, value)));
    let [x_scales, y_scales] = unit_scales(cpu, x, y, options.normalization);
    let x = Rows { mat: x, scales: x_scales.as_deref() };
    let y = Rows { mat: y, scales: y_scales.as_deref() };
    let dx = Gradient { target: x, source: y, terms: &by_row, out: dx };
    let dy = Gradient { target: y, source: x, terms: &by_col, out: dy };
    let bad_index = (w.rows.len() - triples.count()) as u32;
    Ok(GradReport { bad_index, overflow: gather(cpu, options.write, [dx, dy]) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Normalization, WriteMode};

    #[test]
    fn duplicates_add_up_and_bad_indices_are_counted() {
        let cpu = Cpu::with_threads(1).unwrap();
        let (x, y) = ([1f32, 2.0, 3.0, 4.0], [5f32, 6.0, 7.0, 8.0, 9.0, 10.0]);
        let (x, y) = (MatRef::new(&x, 2, 2).unwrap(), MatRef::new(&y, 3, 2).unwrap());
        let (rows, cols) = ([1, 0, 1, -1, 2, 0], [2, 0, 2, 0, 0, 3]);
        let w = WeightTriples { rows: &rows, cols: &cols, values: &[1.0, 2.0, 3.0, 9.0, 9.0, 9.0] };
        let (mut dx, mut dy) = ([1f32; 4], [1f32; 6]);
        let options = GradOptions { normalization: Normalization::None, upstream: 2.0, write: WriteMode::Accumulate };
        let report = weighted_grad(
            &cpu,
            x,
            y,
            &w,
            &options,
            MatMut::new(&mut dx, 2, 2).unwrap(),
            MatMut::new(&mut dy, 3, 2).unwrap(),
        );
        assert_eq!(report, Ok(GradReport { bad_index: 3, overflow: 0 }));
        assert_eq!(dx, [21.0, 25.0, 73.0, 81.0]);
        assert_eq!(dy, [5.0, 9.0, 1.0, 1.0, 25.0, 33.0]);
    }

    #[test]
    fn overflow_of_the_output_type_is_counted() {
        use half::f16;
        let cpu = Cpu::with_threads(1).unwrap();
        let one = [f16::ONE; 3];
        let (x, y) = (MatRef::new(&one, 1, 3).unwrap(), MatRef::new(&one, 1, 3).unwrap());
        let w = WeightTriples { rows: &[0], cols: &[0], values: &[1e5] };
        let (mut dx, mut dy) = ([f16::ONE; 3], [f16::ONE; 3]);
        let options = GradOptions { normalization: Normalization::None, ..GradOptions::default() };
        let (dx, dy) = (MatMut::new(&mut dx, 1, 3).unwrap(), MatMut::new(&mut dy, 1, 3).unwrap());
        assert_eq!(weighted_grad(&cpu, x, y, &w, &options, dx, dy).unwrap().overflow, 6);
    }
}
