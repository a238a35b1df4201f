//! Random embeddings, the same in every run.

use simgrad::Element;

/// `rows × cols` numbers around 0 that depend on `seed` alone.
pub fn embeddings<T: Element>(rows: usize, cols: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    };
    // Sums of four are near enough to a normal distribution, so that directions are spread evenly.
    (0..rows * cols).map(|_| T::from_f64(next() + next() + next() + next())).collect()
}
