//! Plain f64 loops: the oracle that the fast paths are tested against.
//!
//! Every function here is written from the formulas alone, stores whatever is convenient (the whole of `S`, for
//! instance) and shares no code with the CPU and CUDA paths. The results are f64, row-major without gaps. Nothing is
//! checked beyond what indexing checks: shapes that do not fit panic. Not meant for training.

mod cosine_matrix;
mod goal;
mod mine;
mod mined_triplet;
mod objective;
mod pairwise;
mod positive_ranks;
mod ranks;
mod row_norms;
mod top_k;
mod weighted_grad;

pub use cosine_matrix::cosine_matrix;
pub use goal::{GoalReference, goal_step, goal_weights};
pub use mine::mine;
pub use mined_triplet::{MinedTripletReference, mined_triplet_step};
pub use objective::{pair_weights, potential, triplet_weight};
pub use pairwise::{PairwiseReference, pairwise_step, pairwise_step_single, pairwise_weights};
pub use positive_ranks::{metrics, positive_ranks, positive_ranks_of};
pub use ranks::{ranks, recall};
pub use row_norms::{normalize, normalize_backward, row_norms};
pub use top_k::{distance_log_weight, mine_top_k, mine_top_k_with_bank, random_bits};
pub use weighted_grad::weighted_grad;
