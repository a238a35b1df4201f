//! Sums of weighted rows per target row: the product of a sparse weight matrix and the other modality.

use std::sync::atomic::{AtomicU32, Ordering};

use super::pack::Rows;
use super::pool::Cpu;
use super::real::Real;
use super::row_norms::{RowKind, RowScale, bands, fold};
use super::tile::{Kernel, Simd, lanes, load, load_part, store, store_part};
use crate::dtype::{DType, Element, GradientOf};
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

    /// `(source, weight)` of a target's terms.
    pub(super) fn of(&self, target: usize) -> &[(u32, A)] {
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
    let overflow = AtomicU32::new(0);
    cpu.each(work, items, |(target, source, terms, first, mut band)| {
        let mut g = cpu.scratch::<T::Acc>(band.cols());
        let mut rows = Vec::new();
        let mut lost = 0;
        for r in 0..band.rows() {
            let i = first + r;
            rows.clear();
            rows.extend(terms.of(i).iter().map(|&(j, weight)| {
                let scale = source.scale(j as usize);
                Term { row: source.mat.row(j as usize), pow2: scale.pow2, factor: weight * scale.inv }
            }));
            let through = target.scales.map(|scales| (target.mat.row(i), scales[i]));
            lost += write_gradient(cpu, &rows, through, &mut g, write, band.row_mut(r));
        }
        overflow.fetch_add(lost, Ordering::Relaxed);
    });
    overflow.into_inner()
}

/// A weighted row: `(row * pow2) * factor`.
#[derive(Clone, Copy)]
pub(super) struct Term<'a, U: Element> {
    pub(super) row: &'a [U],
    pub(super) pow2: U::Acc,
    pub(super) factor: U::Acc,
}

/// Writes or adds the sum of `terms` to `out`; if `through` is given, through the Jacobian of its row's normalisation:
/// `(g − u (u · g)) / |x|` with `u` the unit row, and 0 for a zero row. Returns how many finite elements became infinite.
///
/// `g` is scratch of a row's length.
pub(super) fn write_gradient<T: Element, U: Element<Acc = T::Acc>, G: Element<Acc = T::Acc>>(
    cpu: &Cpu,
    terms: &[Term<'_, U>],
    through: Option<(&[T], RowScale<T::Acc>)>,
    g: &mut [T::Acc],
    write: WriteMode,
    out: &mut [G],
) -> u32 {
    let (terms, through) = match through {
        Some((_, RowScale { kind: RowKind::Zero, .. })) => (&[][..], None),
        _ => (terms, through),
    };
    // Not for a row that is not finite: its Jacobian makes NaN of 0.
    if terms.is_empty() && through.is_none_or(|(_, scale)| scale.kind != RowKind::NotFinite) {
        if write == WriteMode::Overwrite {
            out.fill(G::zeroed());
        }
        return 0;
    }
    let along = cpu.isa().run(Combine { terms, target: through.map(|(x, scale)| (x, scale.pow2)), g });
    let through = through.map(|(x, scale)| (x, scale, along));
    cpu.isa().run(Finish { g, through, accumulate: write == WriteMode::Accumulate, out })
}

/// `(x * pow2) · g`
pub(super) fn along<T: Element>(cpu: &Cpu, x: &[T], pow2: T::Acc, g: &[T::Acc]) -> T::Acc {
    cpu.isa().run(Along { x, pow2, g })
}

struct Along<'a, T: Element> {
    x: &'a [T],
    pow2: T::Acc,
    g: &'a [T::Acc],
}

impl<T: Element> Kernel<T::Acc> for Along<'_, T> {
    type Out = T::Acc;

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) -> T::Acc {
        dot::<T, S>(self.x, self.pow2, self.g)
    }
}

/// As [`write_gradient`] for some elements of a row, given their sum and, for the Jacobian, `(x * pow2) · g` over the whole
/// row.
pub(super) fn write_part<T: Element, G: Element<Acc = T::Acc>>(
    cpu: &Cpu,
    through: Option<Through<'_, T, T::Acc>>,
    g: &mut [T::Acc],
    write: WriteMode,
    out: &mut [G],
) -> u32 {
    if let Some((_, RowScale { kind: RowKind::Zero, .. }, _)) = through {
        if write == WriteMode::Overwrite {
            out.fill(G::zeroed());
        }
        return 0;
    }
    cpu.isa().run(Finish { g, through, accumulate: write == WriteMode::Accumulate, out })
}

/// `g = Σ (row * pow2) * factor`, in the order of the terms; returns `(target * pow2) · g`, 0 without a target.
struct Combine<'a, T: Element, U: Element<Acc = T::Acc>> {
    terms: &'a [Term<'a, U>],
    target: Option<(&'a [T], T::Acc)>,
    g: &'a mut [T::Acc],
}

/// Vectors of a gradient row that are summed together.
const UNROLL: usize = 8;

impl<T: Element, U: Element<Acc = T::Acc>> Kernel<T::Acc> for Combine<'_, T, U> {
    type Out = T::Acc;

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) -> T::Acc {
        /// Terms per pass over the row, so that a hub's many rows are read in long stretches.
        const GROUP: usize = 16;
        let Self { terms, target, g } = self;
        if terms.is_empty() {
            g.fill(T::Acc::ZERO);
        }
        for (pass, terms) in terms.chunks(GROUP).enumerate() {
            combine::<U, S>(terms, pass == 0, g);
        }
        target.map_or(T::Acc::ZERO, |(x, pow2)| dot::<T, S>(x, pow2, g))
    }
}

/// `g (+)= Σ (row * pow2) * factor`
#[inline(always)]
fn combine<U: Element, S: Simd<U::Acc>>(terms: &[Term<'_, U>], first: bool, g: &mut [U::Acc]) {
    let step = UNROLL * S::LANES;
    let whole = g.len() / step * step;
    for at in (0..whole).step_by(step) {
        let mut sums = [S::splat(U::Acc::ZERO); UNROLL];
        if !first {
            for (u, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(&g[at + u * S::LANES..]);
            }
        }
        for term in terms {
            let (pow2, factor) = (S::splat(term.pow2), S::splat(term.factor));
            let row = &term.row[at..at + step];
            for (u, sum) in sums.iter_mut().enumerate() {
                let x = S::mul(load::<U, S>(&row[u * S::LANES..]), pow2);
                *sum = S::mul_add(x, factor, *sum);
            }
        }
        let g = &mut g[at..at + step];
        for (u, sum) in sums.into_iter().enumerate() {
            S::store(sum, &mut g[u * S::LANES..]);
        }
    }
    for at in (whole..g.len()).step_by(S::LANES) {
        let end = g.len().min(at + S::LANES);
        let g = &mut g[at..end];
        let mut sum = if first { S::splat(U::Acc::ZERO) } else { load_part::<U::Acc, S>(g) };
        for term in terms {
            let x = S::mul(load_part::<U, S>(&term.row[at..end]), S::splat(term.pow2));
            sum = S::mul_add(x, S::splat(term.factor), sum);
        }
        store_part::<U::Acc, S>(sum, g);
    }
}

/// `(x * pow2) · g`
#[inline(always)]
fn dot<T: Element, S: Simd<T::Acc>>(x: &[T], pow2: T::Acc, g: &[T::Acc]) -> T::Acc {
    const SUMS: usize = 4;
    let pow2 = S::splat(pow2);
    let mut sums = [S::splat(T::Acc::ZERO); SUMS];
    let (xs, gs) = (x.chunks_exact(SUMS * S::LANES), g.chunks_exact(SUMS * S::LANES));
    let rest = xs.remainder().chunks(S::LANES).zip(gs.remainder().chunks(S::LANES));
    for (x, g) in xs.zip(gs) {
        for (u, sum) in sums.iter_mut().enumerate() {
            let x = S::mul(load::<T, S>(&x[u * S::LANES..]), pow2);
            *sum = S::mul_add(x, S::load(&g[u * S::LANES..]), *sum);
        }
    }
    for (x, g) in rest {
        sums[0] = S::mul_add(S::mul(load_part::<T, S>(x), pow2), load_part::<T::Acc, S>(g), sums[0]);
    }
    fold(lanes::<T::Acc, S>(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]))))
}

/// A row, its scale, and `(x * pow2) · g`.
type Through<'a, T, A> = (&'a [T], RowScale<A>, A);

/// The Jacobian, given `(x * pow2) · g`, and the write to the output type.
struct Finish<'a, T: Element, G: Element<Acc = T::Acc>> {
    g: &'a mut [T::Acc],
    through: Option<Through<'a, T, T::Acc>>,
    accumulate: bool,
    out: &'a mut [G],
}

impl<T: Element, G: Element<Acc = T::Acc>> Kernel<T::Acc> for Finish<'_, T, G> {
    type Out = u32;

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) -> u32 {
        let Self { g, through, accumulate, out } = self;
        if let Some((x, scale, along)) = through {
            // u (u · g) = x' (x' · g) inv², with x' = x * pow2. Two factors at the end, since their product overflows
            // for rows of subnormal numbers.
            let along = (along * scale.inv) * scale.inv;
            let (pow2, inv, along) = (S::splat(scale.pow2), S::splat(scale.inv), S::splat(-along));
            for at in (0..g.len()).step_by(S::LANES) {
                let end = g.len().min(at + S::LANES);
                if end - at == S::LANES {
                    let turned = S::mul_add(S::mul(load::<T, S>(&x[at..end]), pow2), along, S::load(&g[at..end]));
                    put::<G, S>(S::mul(S::mul(turned, inv), pow2), accumulate, &mut g[at..end], &mut out[at..end]);
                } else {
                    let unit = S::mul(load_part::<T, S>(&x[at..end]), pow2);
                    let turned = S::mul_add(unit, along, load_part::<T::Acc, S>(&g[at..end]));
                    put_part::<G, S>(S::mul(S::mul(turned, inv), pow2), accumulate, &mut g[at..end], &mut out[at..end]);
                }
            }
        } else {
            for (g, out) in g.chunks_mut(S::LANES).zip(out.chunks_mut(S::LANES)) {
                if g.len() == S::LANES {
                    put::<G, S>(S::load(g), accumulate, g, out);
                } else {
                    put_part::<G, S>(load_part::<T::Acc, S>(g), accumulate, g, out);
                }
            }
        }
        lost(g, out)
    }
}

/// Writes or adds a vector of gradient. Values that the output type may round to infinity are also kept in `g`.
#[inline(always)]
fn put<G: Element, S: Simd<G::Acc>>(v: S::V, accumulate: bool, g: &mut [G::Acc], out: &mut [G]) {
    let sum = if accumulate { S::add(v, load::<G, S>(out)) } else { v };
    if G::DTYPE.size() == 2 {
        S::store(sum, g);
    }
    store::<G, S>(sum, out);
}

/// [`put`] for the last elements of a row.
#[inline(always)]
fn put_part<G: Element, S: Simd<G::Acc>>(v: S::V, accumulate: bool, g: &mut [G::Acc], out: &mut [G]) {
    let sum = if accumulate { S::add(v, load_part::<G, S>(out)) } else { v };
    store_part::<G::Acc, S>(sum, g);
    store_part::<G, S>(sum, out);
}

/// How many finite values became infinite in the output type.
#[inline(always)]
fn lost<G: Element>(values: &[G::Acc], out: &[G]) -> u32 {
    let infinity = match G::DTYPE {
        DType::F16 => 0x7c00,
        DType::Bf16 => 0x7f80,
        DType::F32 | DType::F64 => return 0,
    };
    let out: &[u16] = bytemuck::cast_slice(out);
    let lost = |(v, bits): (&G::Acc, &u16)| u32::from(v.finite() & (bits & 0x7fff == infinity));
    values.iter().zip(out).map(lost).sum()
}
