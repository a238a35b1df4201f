//! The operations on the CPU.
//!
//! All are free functions of a [`Cpu`], which holds the threads and the scratch memory. They share one engine: rows of
//! `X` are packed into bands, rows of `Y` into panels, converted to the computing type on the way (`f32`, and `f64` for
//! `f64`), and a register-blocked product of the two leaves a tile of similarities that the operation consumes at once.
//! The similarity matrix is never stored, except by [`cosine_matrix`], whose result it is.
//!
//! **Determinism.** Work is cut into pieces by the shapes alone, and pieces are merged in ascending order: results are
//! the same bits run to run and for every number of threads.
//!
//! **Raw rows** are scaled by a power of two to a largest element near 1 before they are squared or multiplied, so that
//! norms and similarities neither overflow nor underflow, and products of 16-bit elements stay exact.

mod cosine_matrix;
mod gather;
mod goal;
mod mine;
mod mined_triplet;
mod objective;
mod pack;
mod pairs;
mod pairwise;
mod pool;
mod positive_ranks;
mod product;
mod ranks;
mod real;
mod relative;
mod row_norms;
mod scan;
mod side;
mod sweep;
#[cfg(test)]
mod tests;
mod tile;
mod top_k;
mod weighted_grad;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use cosine_matrix::cosine_matrix;
pub use goal::{goal_step, goal_step_detail};
pub use mine::mine;
pub use mined_triplet::mined_triplet_step;
pub use pairwise::{
    pairwise_mixture, pairwise_mixture_single, pairwise_step, pairwise_step_custom, pairwise_step_single,
};
pub use pool::Cpu;
pub use positive_ranks::positive_ranks;
pub use ranks::{ranks, recall};
pub(crate) use real::Real;
pub use row_norms::{normalize, normalize_backward, row_norms};
#[cfg(feature = "cuda")]
pub(crate) use top_k::rule as top_k_rule;
pub use top_k::{mine_top_k, mine_top_k_with_bank};
pub use weighted_grad::weighted_grad;
