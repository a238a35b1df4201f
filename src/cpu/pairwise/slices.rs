//! The last sweep for a matrix of one wave, as batches for training are: after the weights, each thread takes slices of
//! features, and computes and writes the gradients of both sides in them.
//!
//! What two threads both touch is then `W` alone. Packed rows and gradients, which at 128 × 1024 are eight times as much,
//! stay with the thread that made them: on some machines what another core has just written is slow to read.

use std::sync::atomic::{AtomicU32, Ordering};

use super::gradient::{BLOCKS, Step, turn};
use super::operands::pack_features;
use super::tiles::{Cut, Operand, Tiles};
use crate::cpu::Cpu;
use crate::cpu::gather::{along, write_part};
use crate::cpu::product::{K_BLOCK, Multiply};
use crate::cpu::real::Real;
use crate::cpu::row_norms::RowScale;
use crate::dtype::{Accum, Element, GradientOf};
use crate::matrix::MatMut;
use crate::options::WriteMode;

/// Elements of the columns' gradients up to which they are held in slices.
const MOST_ELEMENTS: usize = 1 << 20;

/// Whether this is the way for that matrix.
pub(super) fn fit(cut: &Cut) -> bool {
    cut.waves() == 1 && cut.m > 0 && cut.m.saturating_mul(cut.depth) <= MOST_ELEMENTS
}

/// Features per slice.
fn width(cut: &Cut) -> usize {
    if cut.tiny() {
        // Whole rows, a side for each of two threads: no cache line of a gradient is shared.
        return cut.depth.next_multiple_of(cut.nr);
    }
    // Two panels read each element of `W` half as often, but there should be some slices for every thread.
    if cut.depth >= 16 * cut.nr { 2 * cut.nr } else { cut.nr }
}

/// The columns of `out` in slices of `width`: of each slice its part of every row.
fn column_slices<G>(out: MatMut<'_, G>, width: usize) -> Vec<Vec<&mut [G]>> {
    let (rows, cols) = (out.rows(), out.cols());
    let stride = if rows > 1 { out.row_stride() } else { usize::MAX };
    let mut slices: Vec<Vec<&mut [G]>> = (0..cols.div_ceil(width)).map(|_| Vec::with_capacity(rows)).collect();
    for row in out.into_data().chunks_mut(stride).take(rows) {
        for (slice, part) in slices.iter_mut().zip(row[..cols].chunks_mut(width)) {
            slice.push(part);
        }
    }
    slices
}

/// One side's part of a slice.
struct Part<'a, A, G> {
    /// Gradients with respect to the unit rows, [`width`] apart.
    sums: &'a mut [A],
    /// Of every row `(x · pow2) · g` over this slice; empty if rows are taken as they are.
    along: Vec<A>,
    out: Vec<&'a mut [G]>,
}

/// A slice of features.
struct Slice<'a, A, G> {
    first: usize,
    x: Part<'a, A, G>,
    /// Nowhere to write it for a single set.
    y: Part<'a, A, G>,
}

/// As [`super::gradient::gradient`], given that the matrix [`fit`]s; returns how many elements overflowed.
pub(super) fn gradient<T: Element, G: GradientOf<T>>(
    step: &mut Step<'_, T::Acc>,
    tiles: &mut Tiles<'_, T>,
    write: WriteMode,
    dx: MatMut<'_, G>,
    dy: Option<MatMut<'_, G>>,
) -> u32 {
    let (cpu, cut) = (tiles.cpu, tiles.cut);
    let (mr, _) = cpu.isa().register_rows::<T::Acc>();
    let (padded, chunk) = (cut.padded(0), cut.chunk.next_multiple_of(mr));
    let turned_len = cut.n.div_ceil(K_BLOCK) * chunk * K_BLOCK;
    let mut turned = cpu.scratch::<T::Acc>(turned_len * cut.chunks());
    step.weigh(
        tiles,
        0,
        turned.chunks_exact_mut(turned_len).collect(),
        || (),
        |(), tile, turned| {
            turn(cpu, &tile, turned);
        },
    );

    let (width, single) = (width(&cut), dy.is_none());
    let count = cut.depth.div_ceil(width);
    let mut x_sums = cpu.scratch::<T::Acc>(count * padded * width);
    let mut y_sums = cpu.scratch::<T::Acc>(count * cut.chunks() * chunk * width);
    let mut y_out =
        dy.map_or_else(|| (0..count).map(|_| Vec::new()).collect(), |dy| column_slices(dy, width)).into_iter();
    let sums = x_sums.chunks_exact_mut(padded * width).zip(y_sums.chunks_exact_mut(cut.chunks() * chunk * width));
    let mut slices: Vec<Slice<'_, T::Acc, G>> = Vec::with_capacity(count);
    for (s, (out, (x, y))) in column_slices(dx, width).into_iter().zip(sums).enumerate() {
        let x = Part { sums: x, along: Vec::new(), out };
        let y = Part { sums: y, along: Vec::new(), out: y_out.next().unwrap_or_default() };
        slices.push(Slice { first: s * width, x, y });
    }

    let (x, y) = (tiles.x, tiles.y);
    let copied = (!cut.is_band()).then(|| super::gradient::band(tiles, 0));
    let band = copied.as_deref().unwrap_or_else(|| tiles.wave(0));
    let overflow = AtomicU32::new(0);
    let work = cut.n.saturating_mul(cut.m).saturating_mul(cut.depth);
    let panels = || cpu.scratch::<T::Acc>((BLOCKS * K_BLOCK).max(cut.n) * width);
    let x_of = |panels: &mut [T::Acc], first: usize, part: &mut Part<'_, T::Acc, G>| {
        of_rows(cpu, &cut, &y, band, panels, first, width, part.sums);
    };
    let y_of = |panels: &mut [T::Acc], first: usize, part: &mut Part<'_, T::Acc, G>| {
        of_cols(cpu, &cut, &x, (&turned, turned_len), panels, first, width, part.sums);
    };
    if single {
        cpu.each_with(2 * work, slices.iter_mut(), panels, |panels, slice| {
            x_of(panels, slice.first, &mut slice.x);
            y_of(panels, slice.first, &mut slice.y);
            // A single set has as many columns as rows.
            for i in 0..cut.n {
                let from = place(&cut, chunk, i) * width;
                let sums = slice.x.sums[i * width..].iter_mut().zip(&slice.y.sums[from..from + width]);
                sums.for_each(|(sum, v)| *sum += *v);
            }
            let lost = slice.x.settle(cpu, &x, slice.first, width, write, |i| i);
            overflow.fetch_add(lost, Ordering::Relaxed);
        });
    } else {
        // The sides one after the other: two threads take one each.
        let (xs, ys): (Vec<_>, Vec<_>) =
            slices.iter_mut().map(|s| ((s.first, false, &mut s.x), (s.first, true, &mut s.y))).unzip();
        cpu.each_with(2 * work, xs.into_iter().chain(ys), panels, |panels, (first, of_y, part)| {
            let lost = if of_y {
                y_of(panels, first, part);
                part.settle(cpu, &y, first, width, write, |j| place(&cut, chunk, j))
            } else {
                x_of(panels, first, part);
                part.settle(cpu, &x, first, width, write, |i| i)
            };
            overflow.fetch_add(lost, Ordering::Relaxed);
        });
    }
    if x.rows.scales.is_none() {
        return overflow.into_inner();
    }
    let (mut x_along, mut y_along) = (vec![T::Acc::ZERO; cut.n], vec![T::Acc::ZERO; cut.m]);
    for slice in &slices {
        for (all, part) in [(&mut x_along, &slice.x.along), (&mut y_along, &slice.y.along)] {
            all.iter_mut().zip(part).for_each(|(all, part)| *all += *part);
        }
    }
    cpu.each((cut.n + cut.m) * cut.depth, slices.iter_mut(), |slice| {
        let mut lost = slice.x.finish(cpu, &x, &x_along, slice.first, width, write, |i| i);
        if !single {
            lost += slice.y.finish(cpu, &y, &y_along, slice.first, width, write, |j| place(&cut, chunk, j));
        }
        overflow.fetch_add(lost, Ordering::Relaxed);
    });
    overflow.into_inner()
}

/// Where the columns' gradients have that of column `j`: every chunk is padded to `chunk` of them.
fn place(cut: &Cut, chunk: usize, j: usize) -> usize {
    j / cut.chunk * chunk + j % cut.chunk
}

/// `W Ŷ` in a slice.
#[allow(clippy::too_many_arguments)]
fn of_rows<T: Element>(
    cpu: &Cpu,
    cut: &Cut,
    y: &Operand<'_, T>,
    band: &[T::Acc],
    panels: &mut [T::Acc],
    first: usize,
    width: usize,
    out: &mut [T::Acc],
) {
    let padded = cut.padded(0);
    for start in (0..cut.m).step_by(BLOCKS * K_BLOCK) {
        let cols = start..(start + BLOCKS * K_BLOCK).min(cut.m);
        let panels = &mut panels[..cols.len() * width];
        pack_features(cpu, y, &cols, first..(first + width).min(cut.depth), panels);
        let band = &band[start * padded..][..cols.len().div_ceil(K_BLOCK) * K_BLOCK * padded];
        let (depth, ld, out) = (cols.len(), width, &mut *out);
        cpu.isa().run(Multiply { band, panels, depth, out, ld, scale: None, add: start > 0 });
    }
}

/// `Wᵀ X̂` in a slice, chunk by chunk of columns.
#[allow(clippy::too_many_arguments)]
fn of_cols<T: Element>(
    cpu: &Cpu,
    cut: &Cut,
    x: &Operand<'_, T>,
    (turned, turned_len): (&[T::Acc], usize),
    panels: &mut [T::Acc],
    first: usize,
    width: usize,
    out: &mut [T::Acc],
) {
    let panels = &mut panels[..cut.n * width];
    pack_features(cpu, x, &(0..cut.n), first..(first + width).min(cut.depth), panels);
    let out_len = out.len() / cut.chunks();
    for (band, out) in turned.chunks_exact(turned_len).zip(out.chunks_exact_mut(out_len)) {
        // The last chunk may have fewer columns: what its band holds behind them is multiplied and never read.
        cpu.isa().run(Multiply { band, panels, depth: cut.n, out, ld: width, scale: None, add: false });
    }
}

impl<A: Accum, G: Element<Acc = A>> Part<'_, A, G> {
    /// Writes the gradient if rows are taken as they are; otherwise computes what the Jacobian needs to know of all slices.
    fn settle<T: Element<Acc = A>>(
        &mut self,
        cpu: &Cpu,
        of: &Operand<'_, T>,
        first: usize,
        width: usize,
        write: WriteMode,
        place: impl Fn(usize) -> usize,
    ) -> u32 {
        let Some(scales) = of.rows.scales else {
            return self.finish(cpu, of, &[], first, width, write, place);
        };
        let part = |(i, scale): (usize, &RowScale<A>)| {
            let x = of.rows.mat.row(i);
            let x = &x[first..x.len().min(first + width)];
            along(cpu, x, scale.pow2, &self.sums[place(i) * width..][..x.len()])
        };
        self.along = scales.iter().enumerate().map(part).collect();
        0
    }

    /// Writes the gradient, through the Jacobian unless rows are taken as they are.
    #[allow(clippy::too_many_arguments)]
    fn finish<T: Element<Acc = A>>(
        &mut self,
        cpu: &Cpu,
        of: &Operand<'_, T>,
        along: &[A],
        first: usize,
        width: usize,
        write: WriteMode,
        place: impl Fn(usize) -> usize,
    ) -> u32 {
        let mut lost = 0;
        for (i, out) in self.out.iter_mut().enumerate() {
            let through =
                of.rows.scales.map(|scales| (&of.rows.mat.row(i)[first..first + out.len()], scales[i], along[i]));
            let g = &mut self.sums[place(i) * width..][..out.len()];
            lost += write_part(cpu, through, g, write, out);
        }
        lost
    }
}
