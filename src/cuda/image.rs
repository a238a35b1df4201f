//! The device code in this binary: one image per `kernels/<name>.cu`, and what is in it. `pairwise_custom.cu` has none: it is
//! in the binary as text, and compiled at run time.

use super::pairwise_grad_hopper::GRAD_SHARED_BYTES;
use super::plan::{GROUP_SHARED_BYTES, SMALL_SHARED_BYTES, TILE_SHARED_BYTES};
use super::top_k_params::MERGE_SHARED_BYTES;

/// A kernel of an image.
pub(crate) struct KernelSpec {
    /// Its `extern "C"` name.
    pub name: &'static str,
    /// The most dynamic shared memory that it is launched with, in bytes. Above 48 KiB the driver wants to know.
    pub shared_bytes: u32,
}

/// The device code of one source file.
pub(crate) struct Image {
    /// `<name>` of `kernels/<name>.cu`.
    pub name: &'static str,
    /// A fat binary: machine code for some architectures, PTX for the others.
    pub bytes: &'static [u8],
    /// Whether it is for sm_90a alone.
    pub hopper: bool,
    pub kernels: &'static [KernelSpec],
}

#[cfg(has_kernels)]
macro_rules! image_bytes {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))
    };
}
#[cfg(not(has_kernels))]
macro_rules! image_bytes {
    ($name:literal) => {
        &[]
    };
}

/// `image!("file", ["kernel", "kernel with dynamic shared memory" => bytes])`
macro_rules! image {
    ($name:literal, [$($kernel:literal $(=> $shared:expr)?),* $(,)?]) => {
        Image {
            name: $name,
            bytes: image_bytes!($name),
            hopper: false,
            kernels: &[$(KernelSpec { name: $kernel, shared_bytes: 0 $(+ $shared)? }),*],
        }
    };
}

#[cfg(has_hopper_kernels)]
macro_rules! hopper_image {
    ($name:literal, [$($kernel:literal => $shared:expr),* $(,)?]) => {
        Image { hopper: true, ..image!($name, [$($kernel => $shared),*]) }
    };
}
#[cfg(not(has_hopper_kernels))]
macro_rules! hopper_image {
    ($name:literal, [$($kernel:literal => $shared:expr),* $(,)?]) => {
        Image {
            name: $name,
            bytes: &[],
            hopper: true,
            kernels: &[$(KernelSpec { name: $kernel, shared_bytes: $shared }),*],
        }
    };
}

/// Whether the images for sm_90a alone are in this binary.
pub(crate) const HAS_HOPPER: bool = cfg!(has_hopper_kernels);

/// The architectures that `build.rs` compiled for.
pub(crate) const BUILT_FOR: &str = env!("SIMGRAD_BUILT_ARCHS");

/// Every image. A kernel that is not listed here cannot be launched.
pub(crate) const IMAGES: &[Image] = &[
    image!("abi", ["abi_layout"]),
    image!(
        "cosine_matrix",
        [
            "cosine_matrix_f32" => TILE_SHARED_BYTES,
            "cosine_matrix_f16" => TILE_SHARED_BYTES,
            "cosine_matrix_bf16" => TILE_SHARED_BYTES,
        ]
    ),
    hopper_image!(
        "cosine_matrix_hopper",
        ["cosine_matrix_hopper_f16" => GROUP_SHARED_BYTES, "cosine_matrix_hopper_bf16" => GROUP_SHARED_BYTES]
    ),
    hopper_image!(
        "cosine_matrix_small_hopper",
        ["cosine_matrix_small_hopper_f16" => SMALL_SHARED_BYTES, "cosine_matrix_small_hopper_bf16" => SMALL_SHARED_BYTES]
    ),
    image!("goal", ["goal_finalize"]),
    image!(
        "goal_small",
        [
            "goal_small_f32_f32",
            "goal_small_f16_f16",
            "goal_small_f16_f32",
            "goal_small_bf16_bf16",
            "goal_small_bf16_f32",
        ]
    ),
    image!("memory_bank", ["bank_push_16", "bank_push_32"]),
    image!(
        "mine",
        [
            "mine_f32" => TILE_SHARED_BYTES,
            "mine_f16" => TILE_SHARED_BYTES,
            "mine_bf16" => TILE_SHARED_BYTES,
            "mine_stats_f32" => TILE_SHARED_BYTES,
            "mine_stats_f16" => TILE_SHARED_BYTES,
            "mine_stats_bf16" => TILE_SHARED_BYTES,
            "mine_merge",
        ]
    ),
    image!("mine_small", ["mine_small_f32" => TILE_SHARED_BYTES, "mine_stats_small_f32" => TILE_SHARED_BYTES]),
    hopper_image!("mine_hopper", ["mine_hopper_f16" => GROUP_SHARED_BYTES, "mine_hopper_bf16" => GROUP_SHARED_BYTES]),
    image!(
        "mine_screen",
        [
            "screen_rows_f16",
            "screen_rows_bf16",
            "screen_bounds",
            "mine_screen_f16" => TILE_SHARED_BYTES,
            "mine_screen_bf16" => TILE_SHARED_BYTES,
            "screen_rescore",
        ]
    ),
    hopper_image!(
        "mine_screen_hopper",
        ["mine_screen_hopper_f16" => GROUP_SHARED_BYTES, "mine_screen_hopper_bf16" => GROUP_SHARED_BYTES]
    ),
    hopper_image!(
        "mine_small_hopper",
        [
            "mine_small_hopper_f16" => SMALL_SHARED_BYTES,
            "mine_small_hopper_bf16" => SMALL_SHARED_BYTES,
            "mine_stats_small_hopper_f16" => SMALL_SHARED_BYTES,
            "mine_stats_small_hopper_bf16" => SMALL_SHARED_BYTES,
        ]
    ),
    hopper_image!(
        "mine_stats_hopper",
        ["mine_stats_hopper_f16" => GROUP_SHARED_BYTES, "mine_stats_hopper_bf16" => GROUP_SHARED_BYTES]
    ),
    hopper_image!(
        "pairwise_grad_hopper",
        [
            "pairwise_grad_hopper_f32" => GRAD_SHARED_BYTES,
            "pairwise_grad_hopper_f16" => GRAD_SHARED_BYTES,
            "pairwise_grad_hopper_bf16" => GRAD_SHARED_BYTES,
            "pairwise_split_f16" => 0,
        ]
    ),
    image!("mined_triplet", ["mined_triplet_weigh", "mined_triplet_finish"]),
    image!("pairwise", ["pairwise_extremes", "pairwise_finalize"]),
    image!("pairwise_conflict", ["pairwise_conflict_dots", "pairwise_conflict_finish"]),
    image!(
        "pairwise_finish",
        [
            "pairwise_finish_f32_f32",
            "pairwise_finish_f16_f16",
            "pairwise_finish_f16_f32",
            "pairwise_finish_bf16_bf16",
            "pairwise_finish_bf16_f32",
        ]
    ),
    image!(
        "pairwise_grad",
        [
            "pairwise_grad_f32" => TILE_SHARED_BYTES,
            "pairwise_grad_f16" => TILE_SHARED_BYTES,
            "pairwise_grad_bf16" => TILE_SHARED_BYTES,
        ]
    ),
    image!("pairwise_mixture", ["pairwise_mixture_report"]),
    image!(
        "pairwise_stats",
        [
            "pairwise_stats_f32" => TILE_SHARED_BYTES,
            "pairwise_stats_f16" => TILE_SHARED_BYTES,
            "pairwise_stats_bf16" => TILE_SHARED_BYTES,
            "pairwise_stats_both_f32" => TILE_SHARED_BYTES,
            "pairwise_stats_both_f16" => TILE_SHARED_BYTES,
            "pairwise_stats_both_bf16" => TILE_SHARED_BYTES,
        ]
    ),
    hopper_image!(
        "pairwise_stats_hopper",
        [
            "pairwise_stats_hopper_f16" => GROUP_SHARED_BYTES,
            "pairwise_stats_hopper_bf16" => GROUP_SHARED_BYTES,
            "pairwise_stats_both_hopper_f16" => GROUP_SHARED_BYTES,
            "pairwise_stats_both_hopper_bf16" => GROUP_SHARED_BYTES,
        ]
    ),
    image!(
        "pairwise_weights",
        [
            "pairwise_weights_f32" => TILE_SHARED_BYTES,
            "pairwise_weights_f16" => TILE_SHARED_BYTES,
            "pairwise_weights_bf16" => TILE_SHARED_BYTES,
            "pairwise_weights_both_f32" => TILE_SHARED_BYTES,
            "pairwise_weights_both_f16" => TILE_SHARED_BYTES,
            "pairwise_weights_both_bf16" => TILE_SHARED_BYTES,
        ]
    ),
    hopper_image!(
        "pairwise_weights_hopper",
        [
            "pairwise_weights_hopper_f16" => GROUP_SHARED_BYTES,
            "pairwise_weights_hopper_bf16" => GROUP_SHARED_BYTES,
            "pairwise_weights_both_hopper_f16" => GROUP_SHARED_BYTES,
            "pairwise_weights_both_hopper_bf16" => GROUP_SHARED_BYTES,
        ]
    ),
    image!(
        "positive_ranks",
        [
            "positive_ranks_begin",
            "positive_ranks_score_f32" => TILE_SHARED_BYTES,
            "positive_ranks_score_f16" => TILE_SHARED_BYTES,
            "positive_ranks_score_bf16" => TILE_SHARED_BYTES,
            "positive_ranks_count_f32" => TILE_SHARED_BYTES,
            "positive_ranks_count_f16" => TILE_SHARED_BYTES,
            "positive_ranks_count_bf16" => TILE_SHARED_BYTES,
            "positive_ranks_finish",
        ]
    ),
    hopper_image!(
        "positive_ranks_hopper",
        [
            "positive_ranks_count_hopper_f16" => GROUP_SHARED_BYTES,
            "positive_ranks_count_hopper_bf16" => GROUP_SHARED_BYTES,
        ]
    ),
    hopper_image!(
        "positive_ranks_small_hopper",
        [
            "positive_ranks_score_hopper_f16" => SMALL_SHARED_BYTES,
            "positive_ranks_score_hopper_bf16" => SMALL_SHARED_BYTES,
            "positive_ranks_count_small_hopper_f16" => SMALL_SHARED_BYTES,
            "positive_ranks_count_small_hopper_bf16" => SMALL_SHARED_BYTES,
        ]
    ),
    image!(
        "ranks",
        [
            "ranks_f32" => TILE_SHARED_BYTES,
            "ranks_f16" => TILE_SHARED_BYTES,
            "ranks_bf16" => TILE_SHARED_BYTES,
        ]
    ),
    hopper_image!("ranks_hopper", ["ranks_hopper_f16" => GROUP_SHARED_BYTES, "ranks_hopper_bf16" => GROUP_SHARED_BYTES]),
    hopper_image!(
        "ranks_small_hopper",
        ["ranks_small_hopper_f16" => SMALL_SHARED_BYTES, "ranks_small_hopper_bf16" => SMALL_SHARED_BYTES]
    ),
    image!(
        "row_norms",
        [
            "row_norms_f32",
            "row_norms_f16",
            "row_norms_bf16",
            "prepare_f32",
            "prepare_f16",
            "prepare_bf16",
            "normalize_backward_f32_f32",
            "normalize_backward_f16_f16",
            "normalize_backward_f16_f32",
            "normalize_backward_bf16_bf16",
            "normalize_backward_bf16_f32",
        ]
    ),
    image!("split", ["split_f32"]),
    image!(
        "top_k",
        [
            "mine_top_k_f32" => TILE_SHARED_BYTES,
            "mine_top_k_f16" => TILE_SHARED_BYTES,
            "mine_top_k_bf16" => TILE_SHARED_BYTES,
            "mine_top_k_merge" => MERGE_SHARED_BYTES,
        ]
    ),
    hopper_image!(
        "top_k_hopper",
        ["mine_top_k_hopper_f16" => SMALL_SHARED_BYTES, "mine_top_k_hopper_bf16" => SMALL_SHARED_BYTES]
    ),
    image!(
        "weighted_grad",
        [
            "weighted_grad_invert",
            "weighted_grad_count",
            "weighted_grad_place",
            "weighted_grad_offsets",
            "weighted_grad_hubs_f32",
            "weighted_grad_hubs_f16",
            "weighted_grad_hubs_bf16",
            "weighted_grad_f32_f32",
            "weighted_grad_f16_f16",
            "weighted_grad_f16_f32",
            "weighted_grad_bf16_bf16",
            "weighted_grad_bf16_f32",
        ]
    ),
];
