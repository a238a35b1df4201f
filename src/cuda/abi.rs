//! Comparison of the parameter blocks' layout between the two compilers. For tests.

use cudarc::driver::{CudaStream, CudaViewMut, DevicePtrMut};

use super::cosine_matrix::CosineMatrixParams;
use super::gather::{self, GatherParams, GatherSide};
use super::goal;
use super::goal_detail;
use super::goal_params::{GoalParams, GoalSide, ObjectiveParams, ReportPart};
use super::goal_plan;
use super::goal_small::{self, GoalSmallParams};
use super::inverse_index::{self, InvertParams, InvertSide};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::memory_bank::BankPushParams;
use super::mine::MineParams;
use super::mine_screen::{ScreenBoundsParams, ScreenParams, ScreenRescoreParams, ScreenRowsParams};
use super::mined_triplet::{self, MinedTripletParams, MinedTripletPart};
use super::pairwise_conflict::{self, PairwiseConflictParams};
use super::pairwise_custom_params::{
    self, CustomAnchorsParams, CustomNearParams, CustomPairs, CustomStatsParams, CustomWeightsParams,
};
use super::pairwise_params::{
    self, PairwiseBlock, PairwiseExtremesParams, PairwiseFinalizeParams, PairwiseFinishParams, PairwiseFinishSide,
    PairwiseGradGroupParams, PairwiseGradParams, PairwiseMixtureReportParams, PairwiseSplitParams, PairwiseSplitSide,
    PairwiseStatsParams, PairwiseTiles, PairwiseWeightsParams,
};
use super::plan;
use super::positive_ranks::PositiveRanksParams;
use super::prepare::{self, PrepareParams, PrepareSide};
use super::ranks::RanksParams;
use super::row_norms::{NormalizeBackwardParams, RowNormsParams};
use super::sweep::{MineMergeParams, Select, Stats};
use super::top_k_params::{self, TopKMergeParams, TopKParams, TopKSide};
use crate::error::Result;
use crate::mined_triplet::MinedTripletReport;
use crate::objective::Objective;
use crate::outputs::StepReport;
use crate::pairwise::PairwiseReport;

params! {
    /// Twin of `kernels/params/abi.h`.
    AbiParams: 16 {
        out: u64,
        capacity: u32,
        pad_: u32,
    }
}

/// Every block's layout as this compiler sees it, then the constants, in the order of `kernels/abi.cu`.
pub fn host_layout() -> Vec<u32> {
    [
        AbiParams::LAYOUT,
        PrepareSide::LAYOUT,
        PrepareParams::LAYOUT,
        RowNormsParams::LAYOUT,
        NormalizeBackwardParams::LAYOUT,
        InvertSide::LAYOUT,
        InvertParams::LAYOUT,
        GatherSide::LAYOUT,
        GatherParams::LAYOUT,
        ObjectiveParams::LAYOUT,
        &step_report(),
        GoalSide::LAYOUT,
        GoalParams::LAYOUT,
        GoalSmallParams::LAYOUT,
        MineParams::LAYOUT,
        MineMergeParams::LAYOUT,
        ScreenRowsParams::LAYOUT,
        ScreenBoundsParams::LAYOUT,
        ScreenParams::LAYOUT,
        ScreenRescoreParams::LAYOUT,
        CosineMatrixParams::LAYOUT,
        RanksParams::LAYOUT,
        TopKSide::LAYOUT,
        TopKParams::LAYOUT,
        TopKMergeParams::LAYOUT,
        BankPushParams::LAYOUT,
        &mined_triplet_report(),
        MinedTripletPart::LAYOUT,
        MinedTripletParams::LAYOUT,
        PositiveRanksParams::LAYOUT,
        PairwiseTiles::LAYOUT,
        PairwiseStatsParams::LAYOUT,
        PairwiseExtremesParams::LAYOUT,
        &pairwise_report(),
        PairwiseBlock::LAYOUT,
        PairwiseFinalizeParams::LAYOUT,
        PairwiseWeightsParams::LAYOUT,
        PairwiseGradParams::LAYOUT,
        PairwiseGradGroupParams::LAYOUT,
        PairwiseSplitSide::LAYOUT,
        PairwiseSplitParams::LAYOUT,
        PairwiseFinishSide::LAYOUT,
        PairwiseFinishParams::LAYOUT,
        PairwiseMixtureReportParams::LAYOUT,
        PairwiseConflictParams::LAYOUT,
        CustomPairs::LAYOUT,
        CustomStatsParams::LAYOUT,
        CustomNearParams::LAYOUT,
        CustomAnchorsParams::LAYOUT,
        CustomWeightsParams::LAYOUT,
        &constants(),
    ]
    .concat()
}

macro_rules! offsets {
    ($type:ty, $($field:ident),*) => {
        [size_of::<$type>() as u32, $(std::mem::offset_of!($type, $field) as u32),*]
    };
}

fn step_report() -> [u32; 17] {
    offsets!(
        StepReport,
        loss,
        log_it,
        log_ti,
        mean_positive,
        mean_negative_it,
        mean_negative_ti,
        pairs,
        empty_it,
        empty_ti,
        active_it,
        active_ti,
        zero_x,
        zero_y,
        nan_x,
        nan_y,
        overflow
    )
}

fn mined_triplet_report() -> [u32; 14] {
    offsets!(
        MinedTripletReport,
        loss,
        mean_positive,
        mean_negative,
        triplets,
        active,
        pairs,
        empty_rows,
        empty_cols,
        zero_x,
        zero_y,
        nan_x,
        nan_y,
        overflow
    )
}

fn pairwise_report() -> [u32; 15] {
    offsets!(
        PairwiseReport,
        loss,
        d_scale,
        d_bias,
        mean_positive,
        positives,
        negatives,
        anchors_rows,
        anchors_cols,
        zero_x,
        zero_y,
        nan_x,
        nan_y,
        overflow,
        reserved
    )
}

fn constants() -> Vec<u32> {
    let mut out = vec![
        prepare::ROWS_PER_BLOCK as u32,
        prepare::BLOCK,
        inverse_index::INVERT_THREADS,
        inverse_index::DIGITS as u32,
        inverse_index::TILE as u32,
        inverse_index::BLOCKS as u32,
        gather::HUB_ENTRIES as u32,
        gather::HUB_COLUMNS as u32,
        gather::HUB_THREADS,
        gather::MAX_THREADS as u32,
        gather::COLUMNS as u32,
        goal_plan::ANCHORS as u32,
        goal::THREADS,
        plan::MAX_SPLITS as u32,
        goal_plan::TICKETS as u32,
        goal_detail::DETAIL_PLANES as u32,
        goal_small::PAIRS as u32,
        goal_small::ROWS as u32,
        goal_small::THREADS as u32,
        size_of::<ReportPart>() as u32,
        plan::TILE as u32,
        plan::TILE_BLOCK,
        plan::TILE_SHARED_BYTES,
    ];
    out.extend([top_k_params::MERGED, top_k_params::ENTRY_BYTES, top_k_params::PLANES].map(|v| v as u32));
    out.extend([Select::Negatives, Select::Group, Select::Pair].map(|s| s as u32));
    out.extend([Stats::Keys, Stats::None, Stats::Second, Stats::Lin, Stats::Sig].map(|s| s as u32));
    let all = Objective::all();
    out.extend((0..4).map(|triplet| ObjectiveParams::new(&all[5 * triplet]).triplet));
    out.extend((0..5).map(|pair| ObjectiveParams::new(&all[pair]).pair));
    let pairwise = [
        pairwise_params::SET_PLANES,
        pairwise_params::ROW_PLANES,
        pairwise_params::COL_PLANES,
        pairwise_params::LINES,
        pairwise_params::FINISH_THREADS,
        pairwise_params::ZEROED,
        pairwise_params::WAVE_SUMS,
        pairwise_params::SPLIT_THREADS,
    ];
    out.extend(pairwise.map(|count| count as u32));
    out.extend(pairwise_params::FORMS.map(|form| form as u32));
    out.extend(pairwise_params::KEEPS.map(|keep| keep as u32));
    out.extend([pairwise_params::MIX_ADD, pairwise_params::MIX_KEEP, pairwise_conflict::THREADS as u32]);
    out.push(mined_triplet::THREADS);
    // Two factors, f32.
    out.push(8);
    let custom = [
        pairwise_custom_params::PLANES,
        pairwise_custom_params::PARTS,
        pairwise_custom_params::THREADS,
        pairwise_custom_params::COLS,
        pairwise_custom_params::COUNTERS,
    ];
    out.extend(custom.map(|count| count as u32));
    out
}

/// Enqueues the kernel that writes the device compiler's view of [`host_layout`] to `out`.
///
/// # Errors
/// If the launch is refused.
pub fn device_layout(kernels: &Kernels, stream: &CudaStream, out: &mut CudaViewMut<'_, u32>) -> Result<()> {
    let capacity = u32::try_from(out.len()).unwrap_or(u32::MAX);
    let (ptr, _guard) = out.device_ptr_mut(stream);
    let params = AbiParams { out: ptr, capacity, pad_: 0 };
    // SAFETY: the kernel writes at most `capacity` words to `out`, which is borrowed mutably.
    unsafe { launch(kernels, stream, "abi_layout", (1, 1, 1), 1, 0, &params) }
}
