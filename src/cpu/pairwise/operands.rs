//! Operands of the gradient's two products.

use std::ops::Range;

use super::tiles::Operand;
use crate::cpu::Cpu;
use crate::cpu::product::K_BLOCK;
use crate::cpu::real::Real;
use crate::cpu::row_norms::RowScale;
use crate::cpu::tile::{Kernel, Simd, load, load_part, store, store_part};
use crate::dtype::{Accum, Element};

/// A tile `(rows, ld)` transposed into a band `(row blocks, out_rows, K_BLOCK)`.
pub(super) struct Turn<'a, A> {
    pub(super) tile: &'a [A],
    pub(super) ld: usize,
    /// A multiple of 8.
    pub(super) rows: usize,
    pub(super) out: &'a mut [A],
    pub(super) out_rows: usize,
}

impl<A: Accum> Kernel<A> for Turn<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<A>>(self) {
        let Self { tile, ld, rows, out, out_rows } = self;
        for (block, out) in out.chunks_exact_mut(out_rows * K_BLOCK).enumerate() {
            let first = block * K_BLOCK;
            for r in (first..rows.min(first + K_BLOCK)).step_by(8) {
                for c in (0..ld.min(out_rows / 8 * 8)).step_by(8) {
                    S::transpose_8x8(&tile[r * ld + c..], ld, &mut out[c * K_BLOCK + (r - first)..], K_BLOCK);
                }
                for c in out_rows / 8 * 8..out_rows {
                    for k in 0..8 {
                        out[c * K_BLOCK + (r - first) + k] = if c < ld { tile[(r + k) * ld + c] } else { A::ZERO };
                    }
                }
            }
        }
    }
}

/// Packs the features `features` of the unit rows `rows` into panels `(rows, NR)`, with zeros for rows that are left out
/// and behind the features.
pub(super) fn pack_features<T: Element>(
    cpu: &Cpu,
    of: &Operand<'_, T>,
    rows: &Range<usize>,
    features: Range<usize>,
    out: &mut [T::Acc],
) {
    let (_, nr) = cpu.isa().register_rows::<T::Acc>();
    for (panel, out) in out.chunks_exact_mut(rows.len() * nr).enumerate() {
        pack_panel(cpu, of, rows, features.start + panel * nr, features.end, out);
    }
}

/// As [`pack_features`] for all features, on all threads.
pub(super) fn pack_all_features<T: Element>(cpu: &Cpu, of: &Operand<'_, T>, rows: &Range<usize>, out: &mut [T::Acc]) {
    let (_, nr) = cpu.isa().register_rows::<T::Acc>();
    let depth = of.rows.mat.cols();
    let panels = out.chunks_exact_mut(rows.len() * nr).enumerate();
    cpu.each(rows.len() * depth, panels, |(panel, out)| pack_panel(cpu, of, rows, panel * nr, depth, out));
}

/// The panel of the features `first..end`, as many of them as it has columns.
fn pack_panel<T: Element>(
    cpu: &Cpu,
    of: &Operand<'_, T>,
    rows: &Range<usize>,
    first: usize,
    end: usize,
    out: &mut [T::Acc],
) {
    let (_, nr) = cpu.isa().register_rows::<T::Acc>();
    if first >= end {
        return out.fill(T::Acc::ZERO);
    }
    let features = first..end.min(first + nr);
    cpu.isa().run(UnitPanel { of, rows: rows.clone(), features, out });
}

/// One panel: `out[r] = (x_r * pow2) * inv`, and zeros behind it.
struct UnitPanel<'a, T: Element> {
    of: &'a Operand<'a, T>,
    rows: Range<usize>,
    features: Range<usize>,
    out: &'a mut [T::Acc],
}

impl<T: Element> Kernel<T::Acc> for UnitPanel<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<T::Acc>>(self) {
        let Self { of, rows, features, out } = self;
        let width = features.len();
        for (j, out) in rows.zip(out.chunks_exact_mut(S::NR)) {
            if of.left_out[j] {
                out.fill(T::Acc::ZERO);
                continue;
            }
            let scale = match of.rows.scales {
                Some(scales) => scales[j],
                None => RowScale::IDENTITY,
            };
            let (pow2, inv) = (S::splat(scale.pow2), S::splat(scale.inv));
            let x = &of.rows.mat.row(j)[features.start..features.end];
            if width == S::NR {
                for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                    store::<T::Acc, S>(S::mul(S::mul(load::<T, S>(x), pow2), inv), out);
                }
                continue;
            }
            let (out, rest) = out.split_at_mut(width);
            for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                store_part::<T::Acc, S>(S::mul(S::mul(load_part::<T, S>(x), pow2), inv), out);
            }
            rest.fill(T::Acc::ZERO);
        }
    }
}
