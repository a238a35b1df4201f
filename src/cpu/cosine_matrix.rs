//! Batched cosine-similarity matrices.

use std::ops::Range;

use super::pack::Rows;
use super::pool::Cpu;
use super::row_norms::unit_scales;
use super::sweep::{Bands, Piece, Plan, Tile, sweep_piece};
use super::tile::{Kernel, Simd, load_part, store, store_part};
use crate::check;
use crate::dtype::Element;
use crate::error::Result;
use crate::matrix::{BatchMut, BatchRef, MatMut, MatRef};
use crate::options::CosineOptions;

/// `out[b, i, j] = scale · x̂[b, i] · ŷ[b, j]`, the similarities of all rows of `x` to all rows of `y` in each batch.
///
/// Under [`Normalization::L2`](crate::Normalization::L2), `x̂` and `ŷ` are the rows divided by their norms, fused into
/// the product; a zero row has similarity 0, a row with NaN or an infinity has NaN. Under
/// [`Normalization::None`](crate::Normalization::None) it is the plain product of the rows.
///
/// `x` is `b × n × d`, `y` is `b × m × d`, `out` is `b × n × m`, with any row and batch strides; a single matrix converts
/// into a batch of one. Similarities are summed in `T::Acc` (`f64` for `f64`, otherwise `f32`) and rounded once to `O`:
/// `f32`, `f16` or `bf16`, or `f64` for `f64`. Allocates row factors and, from the handle's scratch memory, packed
/// operands as [`mine`](super::mine). The result is the same bits run to run and for every number of threads.
///
/// # Errors
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if batches, feature dimensions or the shape of `out` disagree,
/// [`Error::EmptyDim`](crate::Error::EmptyDim) if `d` is 0, [`Error::InvalidOption`](crate::Error::InvalidOption) if the
/// scale is not finite; nothing is written then.
pub fn cosine_matrix<T: Element, O: Element<Acc = T::Acc>>(
    cpu: &Cpu,
    x: BatchRef<'_, T>,
    y: BatchRef<'_, T>,
    options: &CosineOptions,
    out: BatchMut<'_, O>,
) -> Result<()> {
    check::cosine_matrix(
        "cosine_matrix",
        [x.batch(), y.batch(), out.batch()],
        (x.rows(), x.cols()),
        (y.rows(), y.cols()),
        (out.rows(), out.cols()),
        options.scale,
    )?;
    let (n, m, d, batch) = (x.rows(), y.rows(), x.cols(), x.batch());
    if n == 0 || m == 0 {
        return Ok(());
    }
    /// Multiply-adds above which one matrix keeps all threads busy by itself.
    const LARGE: usize = 1 << 24;
    let one = n.saturating_mul(m).saturating_mul(d);
    // The stride of a batch of one may be anything, that of an empty one too.
    let (stride, ld) = (if batch > 1 { out.batch_stride() } else { usize::MAX }, out.row_stride());
    let _awake = cpu.session(one.saturating_mul(batch));
    let items = out.into_data().chunks_mut(stride).take(batch).enumerate();
    if one >= LARGE || batch == 1 {
        for (b, data) in items {
            similarities(cpu, x.matrix(b), y.matrix(b), options, MatMut::with_stride(data, n, m, ld)?);
        }
        return Ok(());
    }
    let alone = cpu.alone();
    cpu.each(one.saturating_mul(batch), items, |(b, data)| {
        // The slice was checked when the batch was made.
        if let Ok(out) = MatMut::with_stride(data, n, m, ld) {
            similarities(&alone, x.matrix(b), y.matrix(b), options, out);
        }
    });
    Ok(())
}

/// A piece of the output: its place, and its rows.
type OutPiece<'a, O> = (Piece, Vec<&'a mut [O]>);

fn similarities<T: Element, O: Element<Acc = T::Acc>>(
    cpu: &Cpu,
    x: MatRef<'_, T>,
    y: MatRef<'_, T>,
    options: &CosineOptions,
    mut out: MatMut<'_, O>,
) {
    let [x_scales, y_scales] = unit_scales(cpu, x, y, options.normalization);
    let x = Rows { mat: x, scales: x_scales.as_deref() };
    let y = Rows { mat: y, scales: y_scales.as_deref() };
    let plan = Plan::of_output::<T::Acc>(cpu, x.mat.rows(), y.mat.rows(), x.mat.cols());
    let plan = plan.with_pairs(cpu, x, y);
    let scale = T::Acc::from_f64(options.scale);
    for cols in plan.slices(y.mat.rows(), x.mat.cols()) {
        let shared = plan.shared_panels(cpu, y, &cols);
        let pieces = out_pieces(out.reborrow(), plan.pieces(x.mat.rows(), &cols));
        let work = x.mat.rows().saturating_mul(cols.len()).saturating_mul(x.mat.cols());
        let bands = || Bands::new(cpu, plan, x.mat.cols());
        cpu.each_with(work, pieces.into_iter(), bands, |bands, (piece, mut rows)| {
            let write = |tile: Tile<'_, T::Acc>| write(cpu, &piece, tile, scale, &mut rows);
            sweep_piece(cpu, plan, x, y, shared.as_ref(), bands, &piece, |_, _| true, write);
        });
    }
}

/// Cuts the rows of `out` at the edges of `pieces`, which come row by row.
fn out_pieces<O>(out: MatMut<'_, O>, pieces: Vec<Piece>) -> Vec<OutPiece<'_, O>> {
    // Likewise the stride of one row.
    let (stride, cols) = (if out.rows() > 1 { out.row_stride() } else { usize::MAX }, out.cols());
    let mut rows = out.into_data().chunks_mut(stride);
    let mut result: Vec<OutPiece<'_, O>> = Vec::with_capacity(pieces.len());
    let mut pieces = pieces.into_iter().peekable();
    while let Some(first) = pieces.next() {
        let band = first.rows.clone();
        let start = result.len();
        result.push((first, Vec::with_capacity(band.len())));
        while let Some(next) = pieces.next_if(|p| p.rows == band) {
            result.push((next, Vec::with_capacity(band.len())));
        }
        for row in rows.by_ref().take(band.len()) {
            let (mut rest, mut at) = (&mut row[..cols], 0);
            for (piece, out) in &mut result[start..] {
                let (_, tail) = std::mem::take(&mut rest).split_at_mut(piece.cols.start - at);
                let (part, tail) = tail.split_at_mut(piece.cols.len());
                out.push(part);
                (rest, at) = (tail, piece.cols.end);
            }
        }
    }
    result
}

fn write<O: Element>(cpu: &Cpu, piece: &Piece, tile: Tile<'_, O::Acc>, scale: O::Acc, rows: &mut [&mut [O]]) {
    let at = |part: &Range<usize>, whole: &Range<usize>| part.start - whole.start..part.end - whole.start;
    let cols = at(&tile.cols, &piece.cols);
    for (src, r) in tile.data.chunks_exact(tile.ld).zip(at(&tile.rows, &piece.rows)) {
        cpu.isa().run(WriteRow { src: &src[..cols.len()], scale, out: &mut rows[r][cols.clone()] });
    }
}

/// `out = src * scale`, rounded once to the output type.
struct WriteRow<'a, O: Element> {
    src: &'a [O::Acc],
    scale: O::Acc,
    out: &'a mut [O],
}

impl<O: Element> Kernel<O::Acc> for WriteRow<'_, O> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<O::Acc>>(self) {
        let scale = S::splat(self.scale);
        for (src, out) in self.src.chunks(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
            if src.len() == S::LANES {
                store::<O, S>(S::mul(S::load(src), scale), out);
            } else {
                store_part::<O, S>(S::mul(load_part::<O::Acc, S>(src), scale), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_with_strides_match_the_definition() {
        let (batch, n, m, d) = (3, 5, 70, 9);
        let x: Vec<f32> = (0..batch * n * 11).map(|i| ((i * 29 + 7) % 31) as f32 - 15.0).collect();
        let y: Vec<f32> = (0..batch * m * d).map(|i| ((i * 17 + 3) % 23) as f32 - 11.0).collect();
        let x = BatchRef::with_strides(&x, batch, n, d, 11, n * 11).unwrap();
        let y = BatchRef::new(&y, batch, m, d).unwrap();
        let mut out = vec![9f32; batch * (n * 73 + 4)];
        let stride = n * 73 + 4;
        let out_view = BatchMut::with_strides(&mut out, batch, n, m, 73, stride).unwrap();
        let options = CosineOptions { scale: 3.0, ..CosineOptions::default() };
        cosine_matrix(&Cpu::with_threads(2).unwrap(), x, y, &options, out_view).unwrap();
        for b in 0..batch {
            for i in 0..n {
                for j in 0..m {
                    let (u, v) = (x.matrix(b).row(i), y.matrix(b).row(j));
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                    };
                    let want = 3.0 * dot(u, v) / (dot(u, u) * dot(v, v)).sqrt();
                    assert!((f64::from(out[b * stride + i * 73 + j]) - want).abs() < 1e-6);
                }
                assert!(out[b * stride + i * 73 + m..b * stride + i * 73 + 73].iter().all(|&v| v == 9.0));
            }
        }
    }
}
