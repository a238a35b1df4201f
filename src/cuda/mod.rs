//! The CUDA backend, in three layers.
//!
//! * [`raw`]: `unsafe` functions on plain pointers and strides, for frameworks with tensors of their own.
//! * this module's functions: the same operations on checked views of cudarc's slices.
//! * [`host`]: the same operations on host memory, for tests, examples and everything that is not a hot loop.
//!
//! The first two only enqueue: they run on the caller's stream, write to the caller's outputs and workspace, allocate
//! nothing, never synchronise, and can be captured into a graph.
//!
//! To capture through views, switch cudarc's event tracking off (`CudaContext::disable_event_tracking`) before the slices
//! are made, or use streams that cudarc does not own: otherwise the use of a slice waits for events that were recorded
//! outside the capture, which the driver refuses. [`raw`] has no events.

pub mod host;
pub mod probe;

#[doc(hidden)]
pub mod abi;

mod compiled_expression;
mod cosine_matrix;
mod descriptor;
mod driver;
mod explain;
mod gather;
mod goal;
mod goal_detail;
mod goal_params;
mod goal_plan;
mod goal_small;
mod host_evaluation;
mod host_memory;
mod host_mined_triplet;
mod host_mining;
mod host_pairwise;
mod host_top_k;
mod image;
mod inverse_index;
mod kernels;
mod launch;
mod memory_bank;
mod mine;
mod mine_screen;
mod mined_triplet;
mod mined_triplet_device;
mod nvrtc;
mod op_launches;
mod op_mining;
mod op_pairwise;
mod op_plan;
mod pairwise;
mod pairwise_arguments;
mod pairwise_conflict;
mod pairwise_custom;
mod pairwise_custom_params;
mod pairwise_custom_plan;
mod pairwise_custom_step;
mod pairwise_goal;
mod pairwise_grad_hopper;
mod pairwise_gradient;
mod pairwise_mixture;
mod pairwise_params;
mod pairwise_plan;
mod pairwise_statistics;
mod pairwise_step;
mod pairwise_sweep;
mod plan;
mod positive_ranks;
mod prepare;
mod ranks;
mod row_norms;
mod schedule;
mod scope;
mod split;
mod sweep;
mod tensor;
mod tensor_map;
mod tile_kernel;
mod top_k;
mod top_k_device;
mod top_k_params;
mod weighted_grad;
mod workspace;

pub use compiled_expression::CompiledExpression;
pub use cosine_matrix::{cosine_matrix, cosine_matrix_workspace_bytes};
pub use descriptor::{RawBatch, RawBuf, RawMat};
pub use explain::Reason;
pub use goal::{DeviceGroups, DeviceStepOptions, goal_step, goal_step_detail};
pub use goal_detail::{goal_detail_from_words, goal_detail_len};
pub use goal_plan::goal_step_workspace_bytes;
pub use goal_small::goal_step_launches;
pub use kernels::Kernels;
pub use memory_bank::{DeviceBankColumns, DeviceMemoryBank};
pub use mine::{DeviceHardest, DeviceMineOptions, DeviceMined, mine, mine_workspace_bytes};
pub use mine_screen::ScreenOutcome;
pub use mined_triplet::mined_triplet_workspace_bytes;
pub use mined_triplet_device::mined_triplet_step;
pub use op_plan::{Arithmetic, Ceilings, Floor, Plan, PlannedLaunch, Totals};
pub use pairwise::{DevicePairwiseOptions, pairwise_step, pairwise_step_single};
pub use pairwise_conflict::pairwise_conflict_len;
pub use pairwise_custom::pairwise_step_custom;
pub use pairwise_custom_plan::pairwise_custom_workspace_bytes;
pub use pairwise_mixture::{
    pairwise_mixture, pairwise_mixture_single, pairwise_mixture_single_workspace_bytes,
    pairwise_mixture_workspace_bytes,
};
pub use pairwise_plan::{PAIRWISE_WAVE_BYTES, pairwise_single_workspace_bytes, pairwise_workspace_bytes};
pub use plan::{PLANNED_MULTIPROCESSORS, PlanDevice, Scheme, Splits, SweepKernel, SweepPlan, SweepShape};
pub use positive_ranks::{DeviceRelevant, positive_ranks, positive_ranks_workspace_bytes};
pub use probe::{DeviceFacts, driver_present, open_context};
pub use ranks::{DeviceRanksOptions, ranks, ranks_workspace_bytes};
pub use row_norms::{normalize, normalize_backward, row_norms};
pub use schedule::TilePlace;
pub use tensor::{DeviceBatch, DeviceBatchMut, DeviceElement, DeviceMat, DeviceMatMut};
pub use top_k::mine_top_k_workspace_bytes;
pub use top_k_device::{DeviceSelected, DeviceTopK, DeviceTopKOptions, mine_top_k};
pub use weighted_grad::{DeviceGradOptions, DeviceTriples, Upstream, weighted_grad, weighted_grad_workspace_bytes};
pub use workspace::WORKSPACE_ALIGN;

/// The operations on plain pointers and strides.
///
/// Every function checks what the host can see (shapes, types, strides, alignment, overlap, the size of the workspace)
/// before it enqueues anything, runs on the given stream and returns at once. What the caller promises is that the
/// pointers are valid on the stream's device until the work has run, and that other streams that touch the same memory are
/// ordered by events or synchronisation.
pub mod raw {
    pub use super::cosine_matrix::{RawCosineMatrix, cosine_matrix_raw as cosine_matrix};
    pub use super::gather::RawUpstream;
    #[doc(hidden)]
    pub use super::goal::goal_step_in_four_raw as goal_step_in_four;
    pub use super::goal::goal_step_raw as goal_step;
    pub use super::goal_plan::{RawGoalStep, RawGroups};
    pub use super::mine::{RawHardest, RawMine, mine_raw as mine};
    pub use super::mined_triplet::{RawMinedTriplet, mined_triplet_step_raw as mined_triplet_step};
    pub use super::pairwise::pairwise_step_raw as pairwise_step;
    pub use super::pairwise_arguments::RawPairwiseStep;
    pub use super::pairwise_custom::pairwise_step_custom_raw as pairwise_step_custom;
    pub use super::pairwise_custom_plan::RawPairwiseCustom;
    pub use super::pairwise_mixture::{RawPairwiseMixture, pairwise_mixture_raw as pairwise_mixture};
    #[doc(hidden)]
    pub use super::pairwise_statistics::pairwise_statistics_raw as pairwise_statistics;
    pub use super::positive_ranks::{RawPositiveRanks, RawRelevant, positive_ranks_raw as positive_ranks};
    pub use super::ranks::{RawRanks, ranks_raw as ranks};
    pub use super::row_norms::raw::{normalize, normalize_backward, row_norms};
    pub use super::top_k::{RawBank, RawSelected, RawTopK, mine_top_k_raw as mine_top_k};
    pub use super::weighted_grad::{RawWeightedGrad, weighted_grad_raw as weighted_grad};
}
