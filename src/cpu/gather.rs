//! Sums of weighted rows per target row: the product of a sparse weight matrix and the other modality.

use super::pack::Rows;
use super::pool::Cpu;
use super::real::{Real, widen};
use super::row_norms::{bands, store_row, through_norm};
use super::tile::{Kernel, Simd};
use crate::dtype::{Element, GradientOf};
use crate::matrix::MatMut;
use crate::options::WriteMode;

/// Rows of gradient per piece of work.
const ROWS_PER_ITEM: usize = 8;

/// The weights of a sparse matrix by target row, each row's in a fixed order.
#[derive(Debug)]
pub(super) struct Terms<A> {
    /// Where each target's terms start, and the end.
    offsets: Vec<usize>,
    terms: Vec<(u32, A)>,
}

impl<A: Real> Terms<A> {
    /// From triples `(target, source, weight)`; a target's terms keep their order.
    pub(super) fn new(targets: usize, triples: impl Iterator<Item = (usize, usize, A)> + Clone) -> Self {
        let mut offsets = vec![0; targets + 1];
        for (target, ..) in triples.clone() {
            offsets[target + 1] += 1;
        }
        for t in 0..targets {
            offsets[t + 1] += offsets[t];
        }
        let mut next = offsets.clone();
        let mut terms = vec![(0, A::ZERO); offsets[targets]];
        for (target, source, weight) in triples {
            terms[next[target]] = (source as u32, weight);
            next[target] += 1;
        }
        Self { offsets, terms }
    }

    fn of(&self, target: usize) -> &[(u32, A)] {
        &self.terms[self.offsets[target]..self.offsets[target + 1]]
    }
}

/// The gradient of one modality: `out[i] (+)= J_i Σ_j w_ij source[j]`.
pub(super) struct Gradient<'a, T: Element, G> {
    pub(super) target: Rows<'a, T>,
    pub(super) source: Rows<'a, T>,
    pub(super) terms: &'a Terms<T::Acc>,
    pub(super) out: MatMut<'a, G>,
}

/// Computes both gradients; returns how many finite elements became infinite in the output type.
pub(super) fn gather<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    write: WriteMode,
    gradients: [Gradient<'_, T, G>; 2],
) -> u32 {
    let size = |g: &Gradient<'_, T, G>| (g.out.rows() + g.terms.terms.len()).saturating_mul(g.out.cols());
    let work = gradients.iter().map(size).sum();
    let items = gradients.into_iter().flat_map(|g| {
        let Gradient { target, source, terms, out } = g;
        bands(out, ROWS_PER_ITEM).map(move |(first, band)| (target, source, terms, first, band))
    });
    let overflow = std::sync::atomic::AtomicU32::new(0);
    cpu.each(work, items, |(target, source, terms, first, mut band)| {
        let mut g = cpu.scratch::<T::Acc>(band.cols());
        let (mut buffer, mut other) = (Vec::new(), Vec::new());
        let mut lost = 0;
        for r in 0..band.rows() {
            let i = first + r;
            g.fill(T::Acc::ZERO);
            for &(j, weight) in terms.of(i) {
                let scale = source.scale(j as usize);
                let x = widen(source.mat.row(j as usize), &mut buffer);
                cpu.isa().run(AddScaled { x, pow2: scale.pow2, factor: weight * scale.inv, g: &mut g });
            }
            if target.scales.is_some() {
                through_norm(cpu, widen(target.mat.row(i), &mut buffer), target.scale(i), &mut g);
            }
            lost += store_row(&mut g, write, band.row_mut(r), &mut other);
        }
        overflow.fetch_add(lost, std::sync::atomic::Ordering::Relaxed);
    });
    overflow.into_inner()
}

/// `g += (x * pow2) * factor`
struct AddScaled<'a, A> {
    x: &'a [A],
    pow2: A,
    factor: A,
    g: &'a mut [A],
}

impl<A: Real> Kernel<A> for AddScaled<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        for (g, &x) in self.g.iter_mut().zip(self.x) {
            *g = S::mul_add_one(x * self.pow2, self.factor, *g);
        }
    }
}
