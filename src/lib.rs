//! Fused similarity, hard-negative mining and gradient kernels for metric learning, on CUDA and on the CPU.
//!
//! # The operations
//!
//! `X` (`n × d`) and `Y` (`m × d`) are the embeddings of two modalities, row-major, with any row stride. With
//! [`Normalization::L2`], the default, rows are divided by their Euclidean norm on the fly, `x̂_i = x_i / ‖x_i‖`, and
//! gradients go through the Jacobian of that division; with [`Normalization::None`] rows are taken as they are.
//!
//! | operation | result | shapes |
//! | --- | --- | --- |
//! | `row_norms` | `‖x_i‖` | `n` |
//! | `normalize`, `normalize_backward` | `x̂_i`, and `(g_i − x̂_i (x̂_i · g_i)) / ‖x_i‖` | `n × d` |
//! | `cosine_matrix` | `scale · S` with `S_ij = x̂_i · ŷ_j`, for a batch | `b × n × m` |
//! | `mine` | `P_i = S_ii`, and for every row and column the hardest negative `N` with its index | `n`, `m` |
//! | `goal_step` | `u W Ŷ` and `u Wᵀ X̂` for a GOAL objective's `W`, and a [`StepReport`] | `n × d`, `m × d`; `n = m` |
//! | `weighted_grad` | the same for weights of the caller's, [`WeightTriples`] | `n × d`, `m × d` |
//! | `pairwise_step`, `pairwise_step_single` | the same for an objective over all pairs, a [`PairwiseObjective`], and a [`PairwiseReport`] | `n × d`, `m × d` |
//! | `pairwise_mixture`, `pairwise_mixture_single` | the same for a weighted sum of objectives, of both families, and a [`MixtureReport`] | `n × d`, `m × d` |
//! | `ranks`, `recall` | the rank of every query's best positive, and Recall@K | `n`, `m` |
//! | `positive_ranks` | the rank of every relevant pair, both ways | [`RelevantPairs`] |
//! | `evaluate` | mAP@R, nDCG and every other retrieval figure made of them | [`EvaluationReport`] |
//!
//! An [`Objective`] is a triplet weight `T(P, N)` times pair weights `w⁺`, `w⁻`. Every anchor with a negative adds
//! `−T w⁺` to `W` at its own pair and `T w⁻` at its hardest negative, in both directions. All formulas, numbered, are in
//! `docs/maths.md`.
//!
//! A [`PairwiseObjective`] weighs every pair: InfoNCE, SigLIP, SupCon, Multi-Similarity, Circle and others. Which pairs are
//! positive, negative or ignored, [`PairwiseOptions`] says. Whether an objective is the gradient of a loss at all,
//! [`integrability`] finds out.
//!
//! # Where they run
//!
//! * [`Backend`]: host memory, CPU or CUDA, chosen explicitly or by [`Backend::auto`].
//! * [`cpu`]: the same on the CPU, with a handle that holds the threads.
//! * `cuda`: device memory and a stream of the caller's; no allocation, no synchronisation, no copy to the host.
//! * [`mod@reference`]: plain f64 loops, slow, the oracle of the tests.
//!
//! Elements are `f32`, `f16`, `bf16`, and on the CPU `f64`; sums are always `f32` or wider.
//!
//! # Errors
//!
//! Every operation checks its arguments before it enqueues or writes anything, and returns an [`Error`] that names the
//! operation, the argument, what was expected and what was given. No input makes an operation panic. What depends on
//! the data cannot be refused: NaN propagates, a zero row has the gradient zero, a row without a candidate contributes
//! nothing, and the reports count all of them.
//!
//! # Determinism
//!
//! A call gives the same bits in every run on the same machine, and on the CPU for every number of threads. Ties go to the
//! lowest index on every backend. Sums are taken in a fixed order, without float atomics. Results of different backends
//! agree within rounding, and exactly where the inputs are small integers; see `docs/numerics.md`.
//!
//! # Features
//!
//! * `cuda` (default): the CUDA backend. It builds on any machine; without `nvcc` the crate carries no device code and
//!   [`Backend::cuda`] says so.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

/// The code in README.md is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod check;
mod custom;
mod dtype;
mod error;
mod matrix;
mod memory_bank;
mod metrics;
mod mined_triplet;
mod mixture;
mod objective;
mod options;
mod outputs;
mod pairwise;
mod protocol;
mod relevance;
mod top_k;

pub mod backend;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod expression;
pub mod integrability;
pub mod reference;

pub use backend::Backend;
pub use custom::{AnchorView, PairObjective, PairView};
pub use dtype::{Accum, DType, Element, GradientOf};
pub use error::{Error, Result};
pub use matrix::{BatchMut, BatchRef, MatMut, MatRef};
pub use memory_bank::{BankColumns, BankState, MemoryBank};
pub use metrics::{AtCutoff, DirectionMetrics, EvaluationReport, Gain, MetricOptions};
pub use mined_triplet::{MinedTriplet, MinedTripletReport};
pub use mixture::{Conflict, MixtureObjective, MixtureReport, PairwisePart};
pub use objective::{LossKind, Objective, PairWeight, Reduction, TripletWeight};
pub use options::{
    CosineOptions, GradOptions, Groups, MineOptions, Normalization, PositiveRanksOptions, Precision, RecallOptions,
    StepOptions, TiePolicy, WriteMode,
};
pub use outputs::{
    AnchorDetail, DirectionRecall, GradReport, Hardest, Mined, NONE, PositiveRanks, QueryRanks, Ranks, RetrievalReport,
    StepDetail, StepReport, WeightTriples,
};
pub use pairwise::{PairwiseObjective, PairwiseOptions, PairwiseReport};
pub use protocol::{CaptionProtocol, EvaluationOptions, ProtocolReport};
pub use relevance::RelevantPairs;
pub use top_k::{Fallback, MAX_K, Margin, Pick, Selected, TopK, TopKOptions};
