//! Products of bf16 two features at a time, on machines that have an instruction for it, with the bits of the ordinary
//! path.
//!
//! The instruction adds two products of bf16 to an f32 sum, one after the other, and rounds after each. Products of bf16
//! are exact in f32, so that is what two fused multiply-adds of widened elements do. It takes the feature in the upper half
//! of each word first; the earlier one of a pair is put there. What differs is that it reads subnormal numbers as 0 and
//! writes 0 instead of them. So the rows are looked at first: with no magnitude but 0 below `2^-40`, products and sums are
//! multiples of `2^-94`, and none of them is subnormal.

use half::bf16;

use super::pack::Rows;
use super::pool::Cpu;
use super::tile::{Kernel, Simd};
use crate::dtype::{DType, Element};

/// Bits without sign of the smallest and the largest magnitude besides 0 that the pairs are used for: `2^-40`, and all
/// below `2^41`.
const RANGE: (u16, u16) = ((127 - 40) << 7, ((127 + 40) << 7) | 0x7f);

/// Whether the products of these rows can be taken in pairs.
pub(super) fn fit<T: Element>(cpu: &Cpu, x: Rows<'_, T>, y: Rows<'_, T>) -> bool {
    if T::DTYPE != DType::Bf16 || !cpu.isa().has_pairs() {
        return false;
    }
    [x, y].iter().all(|of| {
        of.scales.is_none_or(|scales| scales.iter().all(|s| s.pow2 == crate::cpu::Real::ONE))
            && (0..of.mat.rows()).all(|r| cpu.isa().run(WithinRange { row: bytemuck::cast_slice(of.mat.row(r)) }))
    })
}

struct WithinRange<'a> {
    row: &'a [u16],
}

impl Kernel<f32> for WithinRange<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd<f32>>(self) -> bool {
        let outside = |bits: &u16| {
            let magnitude = bits & 0x7fff;
            u16::from((magnitude != 0) & ((magnitude < RANGE.0) | (magnitude > RANGE.1)))
        };
        self.row.iter().fold(0, |any, bits| any | outside(bits)) == 0
    }
}

/// A row as words of two features, the earlier one in the upper half; zeros behind an odd one.
#[inline(always)]
pub(super) fn words<A: Element>(row: &[bf16], out: &mut [A]) {
    let out: &mut [u32] = bytemuck::cast_slice_mut(out);
    let (pairs, rest) = row.as_chunks::<2>();
    for (word, [first, second]) in out.iter_mut().zip(pairs) {
        *word = u32::from(first.to_bits()) << 16 | u32::from(second.to_bits());
    }
    if let ([last], Some(word)) = (rest, out.get_mut(pairs.len())) {
        *word = u32::from(last.to_bits()) << 16;
    }
}
