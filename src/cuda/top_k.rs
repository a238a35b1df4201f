//! Several negatives of every row and every column, in one sweep over tiles of similarities that are never stored.

use cudarc::driver::CudaStream;

use super::descriptor::{RawBuf, RawMat, check_disjoint, check_extent};
use super::goal_plan::RawGroups;
use super::kernels::Kernels;
use super::launch::launch;
use super::mine::{check_groups, check_optional};
use super::plan::{MAX_SPLITS, Splits, SweepKernel, SweepShape};
use super::prepare::{Operand, Prepare, Wants};
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::sweep::{MergeTo, Mining, Screened, Select, Stats, key_words};
use super::tile_kernel::{TileKernel, launch_tiles, tile_plan};
use super::top_k_params::{
    ENTRY_BYTES, MERGED, PLANES, TopKMergeParams, TopKParams, TopKSide, margin_code, parts, pick_code,
};
use super::workspace::{Layout, Region};
use crate::check;
use crate::cpu::top_k_rule::{distance_factors, start, window};
use crate::dtype::DType;
use crate::error::Result;
use crate::top_k::{Fallback, Pick, TopKOptions};

pub(super) const OP: &str = "mine_top_k";

pub(super) const MINE_TOP_K: TileKernel = TileKernel {
    warp: ["mine_top_k_f32", "mine_top_k_f16", "mine_top_k_bf16"],
    // Not in clusters, to which the rows would be dealt in pairs of parts: there may have to be one part only.
    group: [""; 2],
    step: 1,
    small: ["mine_top_k_hopper_f16", "mine_top_k_hopper_bf16"],
    slices: None,
};

/// Threads of a block of `mine_top_k_merge`.
pub(super) const MERGE_BLOCK: u32 = 128;

/// Outputs of one direction of [`raw::mine_top_k`](super::raw::mine_top_k).
#[derive(Clone, Copy, Debug)]
pub struct RawSelected {
    /// `anchors × k` i32.
    pub index: RawBuf,
    /// `anchors × k` f32.
    pub value: RawBuf,
    /// One u32 per anchor.
    pub survivors: RawBuf,
}

/// A memory bank's entries as further candidates of the rows.
#[derive(Clone, Copy, Debug)]
pub struct RawBank {
    /// `(entries, d)`, of the type of `x`.
    pub entries: RawMat,
    /// One i64 per row of `x`.
    pub ids: RawBuf,
    /// One i64 per entry: an entry of the anchor's id is no candidate.
    pub entry_ids: RawBuf,
    /// One u64 per entry, by which that rule holds for those of `oldest` or more; [`RawBuf::NULL`]: it holds for all.
    pub stamps: RawBuf,
    /// See `stamps`.
    pub oldest: u64,
}

/// Arguments of [`raw::mine_top_k`](super::raw::mine_top_k).
#[derive(Clone, Copy, Debug)]
pub struct RawTopK<'a> {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`.
    pub y: RawMat,
    /// The rules; their `groups` are in host memory and not read.
    pub options: &'a TopKOptions<'a>,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// Further candidates of the rows, if any.
    pub bank: Option<RawBank>,
    /// `min(n, m)` f32.
    pub positive: RawBuf,
    /// Anchors are the rows of `x`.
    pub rows: RawSelected,
    /// Anchors are the rows of `y`.
    pub cols: RawSelected,
    /// Bytes, at least [`mine_top_k_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// Lists of one direction in the workspace.
#[derive(Clone, Copy)]
struct Lists {
    lists: Region,
    state: Region,
    len: usize,
    slots: usize,
    skip: usize,
    keep: usize,
    start: u64,
}

/// Places per anchor for what is left out before a sample is drawn, and for the best of the rest.
pub(super) fn places(options: &TopKOptions<'_>, candidates: usize) -> (usize, usize) {
    let (skip, k) = (options.skip.min(candidates), options.k.min(candidates).max(1));
    if options.pick == Pick::Hardest { (0, skip + k) } else { (skip, k) }
}

impl Lists {
    fn new(
        layout: &mut Layout,
        options: &TopKOptions<'_>,
        direction: u64,
        anchors: usize,
        candidates: usize,
        slots: usize,
        reserved: Option<(usize, usize)>,
    ) -> Result<Self> {
        let (skip, keep) = places(options, candidates);
        let (entries, states) = reserved.unwrap_or((slots * (skip + keep), slots));
        Ok(Self {
            lists: layout.take::<u8>(&[anchors, entries, ENTRY_BYTES])?,
            state: layout.take::<u32>(&[PLANES, states, anchors])?,
            len: anchors,
            slots,
            skip,
            keep,
            start: start(options.pick, direction),
        })
    }

    fn params(&self, base: u64) -> TopKSide {
        TopKSide {
            lists: self.lists.at(base),
            state: self.state.at(base),
            start: self.start,
            len: self.len as u32,
            slots: self.slots as u32,
            skip: self.skip as u32,
            keep: self.keep as u32,
        }
    }

    /// Entries that the merge sorts per line.
    fn merged(&self) -> usize {
        (self.slots * (self.skip + self.keep)).next_power_of_two()
    }
}

/// Where everything lies in the workspace.
pub(super) struct Plan {
    pub(super) prepare: Prepare,
    bank: Option<Prepare>,
    pairs: Mining,
    /// Where the merge of the pairs' sweep writes what nobody reads: values and indices, of rows and columns.
    unread: [Region; 2],
    rows: Lists,
    cols: Lists,
    /// Parts of the rows, of the columns and of the bank.
    splits: [usize; 3],
    bytes: usize,
}

impl Plan {
    /// For a call by itself.
    fn alone([x, y]: [&RawMat; 2], bank: Option<&RawMat>, options: &TopKOptions<'_>, any_layout: bool) -> Result<Self> {
        Self::new(&mut Layout::new(OP), [x, y], bank, options, &Wants { any_layout, ..Wants::default() })
    }

    /// Takes what it needs from `layout`; the matrices are prepared with everything that is in `wants`.
    pub(super) fn new(
        layout: &mut Layout,
        [x, y]: [&RawMat; 2],
        bank: Option<&RawMat>,
        options: &TopKOptions<'_>,
        wants: &Wants,
    ) -> Result<Self> {
        let (n, m, entries) = (x.rows, y.rows, bank.map_or(0, |bank| bank.rows));
        let keyed = Wants { zeroed: key_words(n, m), ..*wants };
        let prepare = Prepare::plan(layout, OP, [&(*x).into(), &(*y).into()], options.normalization, &keyed)?;
        let bank = bank.map(|bank| {
            let nothing = RawMat { rows: 0, ..*bank };
            Prepare::plan(layout, OP, [&(*bank).into(), &nothing.into()], options.normalization, wants)
        });
        let bank = bank.transpose()?;
        let pairs = Mining::plan(layout, [x, y], Select::Pair, Stats::None)?;
        let unread = [layout.take::<u32>(&[2, n])?, layout.take::<u32>(&[2, m])?];
        let lists = 1 + usize::from(bank.is_some());
        let total = |(skip, keep)| skip + keep;
        let row_parts = parts(n, total(places(options, n)), 1);
        let row_places = total(places(options, m.saturating_add(entries)));
        let col_parts = parts(m, row_places, lists);
        // With a bank room for any number of entries: a workspace that serves a full one serves it while it fills.
        let most = (MERGED.min(2 * MAX_SPLITS * (options.skip + options.k)), 2 * MAX_SPLITS);
        let reserved = bank.is_some().then_some(most);
        let bank_parts = if bank.is_some() { parts(entries, row_places, lists) } else { 0 };
        Ok(Self {
            prepare,
            bank,
            pairs,
            unread,
            rows: Lists::new(layout, options, 0, n, m.saturating_add(entries), col_parts + bank_parts, reserved)?,
            cols: Lists::new(layout, options, 1, m, n, row_parts, None)?,
            splits: [row_parts, col_parts, bank_parts],
            bytes: layout.total(),
        })
    }
}

/// Bytes of workspace that `mine_top_k` needs for `x` (`n × d`) and `y` (`m × d`) of type `dtype`, and a bank of `entries`
/// entries if there is one, whatever the alignment of the operands. Host arithmetic only. Of `options` the normalisation,
/// `k`, `skip` and the pick matter. `O(n + m)` lists of `k + skip` entries of 16 bytes, one per part of the candidates: at most
/// 16 parts, and no more than fit 4096 entries together. The size for a full bank serves it with fewer entries too.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge), [`Error::InvalidOption`](crate::Error::InvalidOption) for `k` and `skip`.
pub fn mine_top_k_workspace_bytes(
    n: usize,
    m: usize,
    entries: Option<usize>,
    d: usize,
    dtype: DType,
    options: &TopKOptions<'_>,
) -> Result<usize> {
    check_extent(OP, "x.rows", n)?;
    check_extent(OP, "y.rows", m)?;
    check_extent(OP, "bank.rows", entries.unwrap_or(0))?;
    check_extent(OP, "x.cols", d)?;
    check::top_k_counts(OP, options)?;
    let mat = |rows| RawMat::new(0, rows, d, dtype);
    Ok(Plan::alone([&mat(n), &mat(m)], entries.map(mat).as_ref(), options, true)?.bytes)
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawTopK<'_>) -> Result<Plan> {
    let (n, m, k) = (a.x.rows, a.y.rows, a.options.k);
    let options = TopKOptions { groups: None, ..*a.options };
    check::mine_top_k(OP, (n, a.x.cols), (m, a.y.cols), &options)?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    let [x, y] = [("x", a.x.check(OP, "x")?), ("y", a.y.check(OP, "y")?)];
    let mut inputs = vec![x, y];
    if let Some(groups) = a.groups {
        check::equal(OP, "groups.rows", n, groups.rows.len)?;
        check::equal(OP, "groups.cols", m, groups.cols.len)?;
    }
    inputs.extend(check_groups(OP, a.groups, n, m)?);
    if let Some(bank) = &a.bank {
        let entries = (bank.entries.rows, bank.entries.cols);
        check::bank_columns(OP, (n, a.x.cols), m, entries, bank.ids.len)?;
        same_dtype(OP, "bank", a.x.dtype, bank.entries.dtype)?;
        inputs.push(("bank", bank.entries.check(OP, "bank")?));
        inputs.push(("bank.ids", bank.ids.check::<i64>(OP, "bank.ids", n)?));
        inputs.push(("bank.entry_ids", bank.entry_ids.check::<i64>(OP, "bank.entry_ids", entries.0)?));
        inputs.push(check_optional::<u64>(OP, "bank.stamps", bank.stamps, entries.0)?);
    }
    let mut outputs = vec![("positive", a.positive.check::<f32>(OP, "positive", n.min(m))?)];
    let names = [["rows.index", "rows.value", "rows.survivors"], ["cols.index", "cols.value", "cols.survivors"]];
    for ((side, anchors), names) in [(&a.rows, n), (&a.cols, m)].into_iter().zip(names) {
        outputs.push((names[0], side.index.check::<i32>(OP, names[0], anchors.saturating_mul(k))?));
        outputs.push((names[1], side.value.check::<f32>(OP, names[1], anchors.saturating_mul(k))?));
        outputs.push((names[2], side.survivors.check::<u32>(OP, names[2], anchors)?));
    }
    let plan = Plan::alone([&a.x, &a.y], a.bank.as_ref().map(|bank| &bank.entries), a.options, false)?;
    outputs.push(("workspace", a.workspace.check_workspace(OP, plan.bytes)?));
    check_disjoint(OP, &outputs, &inputs)?;
    Ok(plan)
}

/// The sweep over the batch.
fn sweep_params(a: &RawTopK<'_>, plan: &Plan, [x, y]: [Operand; 2]) -> TopKParams {
    let (base, options) = (a.workspace.ptr, a.options);
    let [row_ids, col_ids] = a.groups.map_or([0; 2], |g| [g.rows.ptr, g.cols.ptr]);
    let (far, near) = distance_factors(a.x.cols);
    let (low, high) = window::<f32>(options);
    let (margin_kind, margin) = margin_code(options.below_positive);
    TopKParams {
        x: x.ptr,
        y: y.ptr,
        inv_x: x.inv,
        inv_y: y.inv,
        row_ids,
        col_ids,
        stamps: 0,
        pos: a.positive.ptr,
        rows: plan.rows.params(base),
        cols: plan.cols.params(base),
        oldest: 0,
        ldx: x.row_stride as i64,
        ldy: y.row_stride as i64,
        far,
        near,
        margin,
        low,
        high,
        n: a.x.rows as u32,
        m: a.y.rows as u32,
        d: a.x.cols as u32,
        row_splits: plan.splits[0] as u32,
        col_splits: plan.splits[1] as u32,
        row_slot: 0,
        offset: 0,
        pairs: a.x.rows.min(a.y.rows) as u32,
        own_pairs: 1,
        pick: pick_code(options.pick),
        margin_kind,
        admits_nan: u32::from(options.admits_nan()),
        easiest: u32::from(options.fallback == Fallback::Easiest),
        pad_: 0,
    }
}

/// The sweep of the rows over a bank, into slots behind those of the batch.
fn bank_params(batch: &TopKParams, bank: &RawBank, entries: Operand, plan: &Plan) -> TopKParams {
    TopKParams {
        y: entries.ptr,
        inv_y: entries.inv,
        row_ids: bank.ids.ptr,
        col_ids: bank.entry_ids.ptr,
        stamps: bank.stamps.ptr,
        cols: TopKSide { len: 0, ..batch.cols },
        oldest: bank.oldest,
        ldy: entries.row_stride as i64,
        m: bank.entries.rows as u32,
        col_splits: plan.splits[2] as u32,
        row_slot: plan.splits[1] as u32,
        offset: batch.m,
        own_pairs: 0,
        ..*batch
    }
}

fn merge_params(a: &RawTopK<'_>, plan: &Plan) -> TopKMergeParams {
    let (far, near) = distance_factors(a.x.cols);
    TopKMergeParams {
        rows: plan.rows.params(a.workspace.ptr),
        cols: plan.cols.params(a.workspace.ptr),
        row_index: a.rows.index.ptr,
        row_value: a.rows.value.ptr,
        row_survivors: a.rows.survivors.ptr,
        col_index: a.cols.index.ptr,
        col_value: a.cols.value.ptr,
        col_survivors: a.cols.survivors.ptr,
        far,
        near,
        k: a.options.k as u32,
        drop: if a.options.pick == Pick::Hardest { a.options.skip as u32 } else { 0 },
        pick: pick_code(a.options.pick),
        easiest: u32::from(a.options.fallback == Fallback::Easiest),
    }
}

/// As [`mine_top_k`](super::mine_top_k), on plain pointers.
///
/// # Errors
/// As [`mine_top_k`](super::mine_top_k), and [`Error::BadPointer`](crate::Error::BadPointer),
/// [`Error::Overlap`](crate::Error::Overlap), [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn mine_top_k_raw(kernels: &Kernels, stream: &CudaStream, a: &RawTopK<'_>) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    // SAFETY: the arguments were checked, the pointers are valid by the caller's promise.
    unsafe { enqueue(kernels, stream, a, &plan) }
}

/// Enqueues the kernels of a call. Nothing without a row.
///
/// # Safety
/// `plan` is that of the arguments, at the start of the workspace's layout, and all buffers are valid on the stream's device
/// for the extents that [`check_arguments`] asks for.
pub(super) unsafe fn enqueue(kernels: &Kernels, stream: &CudaStream, a: &RawTopK<'_>, plan: &Plan) -> Result<()> {
    let (n, m, base) = (a.x.rows, a.y.rows, a.workspace.ptr);
    if n == 0 && m == 0 {
        return Ok(());
    }
    let operands = [plan.prepare.x(base), plan.prepare.y(base)];
    let nowhere = [(plan.unread[0], n), (plan.unread[1], m)].map(|(region, len)| {
        let value = region.at(base);
        MergeTo { value, index: value + 4 * len as u64, second: 0, rank: 0 }
    });
    let sweep = sweep_params(a, plan, operands);
    // With the splits that the lists have slots for.
    let tiles = |p: &TopKParams| {
        let shape = SweepShape { batch: 1, n: p.n as usize, m: p.m as usize, d: a.x.cols, dtype: a.x.dtype };
        let splits = Splits { rows: p.row_splits as usize, cols: p.col_splits as usize };
        tile_plan(kernels, SweepKernel::TopK, shape).with_splits(splits)
    };
    let merge = merge_params(a, plan);
    let merged = plan.rows.merged().max(plan.cols.merged());
    let shared = (merged * ENTRY_BYTES) as u32;
    let _scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the regions of the workspace are disjoint, the rest is the caller's promise.
    unsafe {
        plan.prepare.launch(kernels, stream, base)?;
        plan.pairs.launch(
            kernels,
            stream,
            base,
            plan.prepare.zeroed(base),
            operands,
            [0; 2],
            a.positive.ptr,
            nowhere,
            Screened::default(),
        )?;
        launch_tiles(kernels, stream, &MINE_TOP_K, &tiles(&sweep), operands, &sweep)?;
        if let (Some(bank), Some(prepare)) = (&a.bank, &plan.bank) {
            prepare.launch(kernels, stream, base)?;
            let sweep = bank_params(&sweep, bank, prepare.x(base), plan);
            launch_tiles(kernels, stream, &MINE_TOP_K, &tiles(&sweep), [operands[0], prepare.x(base)], &sweep)?;
        }
        launch(kernels, stream, "mine_top_k_merge", ((n + m) as u32, 1, 1), MERGE_BLOCK, shared, &merge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_of_a_full_bank_serves_it_while_it_fills() {
        for (k, skip) in [(1, 0), (10, 3), (300, 0), (1024, 1024)] {
            let options = TopKOptions { skip, ..TopKOptions::hardest(k) };
            let options = [options, TopKOptions { pick: Pick::Random { seed: 1 }, ..options }];
            for options in &options {
                let bytes = |entries| mine_top_k_workspace_bytes(300, 200, Some(entries), 24, DType::F16, options);
                let full = bytes(4000).unwrap();
                assert!((0..4000).step_by(37).all(|entries| bytes(entries).unwrap() <= full), "{options:?}");
                for entries in [0, 1, 820, 2048, 2176, 4000] {
                    let mat = |rows| RawMat::new(256, rows, 24, DType::F16);
                    let plan = Plan::alone([&mat(300), &mat(200)], Some(&mat(entries)), options, false).unwrap();
                    let used = plan.rows.slots * (plan.rows.skip + plan.rows.keep);
                    assert!(plan.bytes <= full && used <= MERGED && plan.rows.slots <= 2 * MAX_SPLITS);
                    assert!(used <= 2 * MAX_SPLITS * (skip + k));
                }
            }
        }
    }
}
