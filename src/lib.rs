//! Fused similarity, hard-negative mining and gradient kernels for metric learning.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod check;
mod dtype;
mod error;
mod matrix;
mod objective;
mod options;
mod outputs;

pub mod backend;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

pub use backend::Backend;
pub use dtype::{Accum, DType, Element, GradientOf};
pub use error::{Error, Result};
pub use matrix::{BatchMut, BatchRef, MatMut, MatRef};
pub use objective::{LossKind, Objective, PairWeight, Reduction, TripletWeight};
pub use options::{
    CosineOptions, GradOptions, Groups, MineOptions, Normalization, RecallOptions, StepOptions, TiePolicy, WriteMode,
};
pub use outputs::{
    AnchorDetail, DirectionRecall, GradReport, Hardest, Mined, NONE, Ranks, RetrievalReport, StepDetail, StepReport,
    WeightTriples,
};
