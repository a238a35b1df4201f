//! Mining of f32 rows by similarities of rows rounded to 16 bits: tensor cores tell who comes into question, and those are
//! looked at again in f32. See `kernels/mine_screen.cu`.

use cudarc::driver::CudaStream;

use super::kernels::Kernels;
use super::launch::{launch, params};
use super::plan::{PlanDevice, SweepKernel, SweepPlan, SweepShape};
use super::prepare::{BLOCK, Operand, row_blocks};
use super::sweep::{MergeTo, Mining, Screened, key_words};
use super::tile_kernel::{TileKernel, launch_tiles, tile_plan, tile_plan_on};
use super::workspace::{Layout, Region};
use crate::dtype::DType;
use crate::error::Result;
use crate::options::Normalization;

params! {
    /// Twin of the struct in `kernels/params/mine_screen.h`.
    ScreenRowsParams: 96 {
        x: u64,
        y: u64,
        x_screen: u64,
        y_screen: u64,
        norm: u64,
        error: u64,
        state: u64,
        ldx: i64,
        ldy: i64,
        ld: i64,
        n: u32,
        m: u32,
        d: u32,
        pad_: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/mine_screen.h`.
    ScreenBoundsParams: 96 {
        row_parts: u64,
        col_parts: u64,
        norm: u64,
        error: u64,
        row_bound: u64,
        col_bound: u64,
        row_keys: u64,
        col_keys: u64,
        state: u64,
        n: u32,
        m: u32,
        d: u32,
        row_splits: u32,
        col_splits: u32,
        stats: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/mine_screen.h`.
    ScreenParams: 104 {
        x: u64,
        y: u64,
        row_bound: u64,
        col_bound: u64,
        row_groups: u64,
        col_groups: u64,
        list: u64,
        state: u64,
        ldx: i64,
        ldy: i64,
        n: u32,
        m: u32,
        d: u32,
        row_splits: u32,
        col_splits: u32,
        capacity: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/mine_screen.h`.
    ScreenRescoreParams: 88 {
        x: u64,
        y: u64,
        list: u64,
        state: u64,
        row_keys: u64,
        col_keys: u64,
        pos: u64,
        ldx: i64,
        ldy: i64,
        n: u32,
        m: u32,
        d: u32,
        pad_: u32,
    }
}

/// Words of `ScreenState` there.
const STATE_WORDS: usize = 8;
/// `kScreenPadding` there.
const PADDING: usize = 256;
/// Places in the list per row and column. Rows that are spread out need 1 to 3 up to 4096 features, without being normalised
/// up to 1024.
const PLACES_PER_LINE: usize = 16;
/// The most rows and columns together: the list is counted in 32 bits.
const MOST_LINES: usize = 1 << 27;
/// The most features: the bound's constants are for sums of no more.
const MOST_FEATURES: usize = 1 << 20;

/// The most that are screened: the share of the bound that is for the sums grows with `d`, while the spread of similarities
/// shrinks as `1 / √d`. With these, 32768 rows that are spread out need 6 and 9 places each, with twice as many more than
/// there are.
const fn most_features(normalization: Normalization) -> usize {
    match normalization {
        Normalization::L2 => 8192,
        Normalization::None => 4096,
    }
}
/// Operations of the products from which on two products on tensor cores and five more launches take less time than one
/// product by multiply-adds: at 67 and 790 TFLOP/s that is from 0.5e9 operations on; and four times that, since only some of
/// a small matrix's blocks are busy.
const LEAST_OPERATIONS: f64 = 2.147_483_648e9;

pub(super) const SCREEN: TileKernel = TileKernel {
    warp: ["", "mine_screen_f16", "mine_screen_bf16"],
    group: ["mine_screen_hopper_f16", "mine_screen_hopper_bf16"],
    step: 2,
    small: ["", ""],
    slices: None,
};

/// How mining of f32 rows through a screen went: the second word that [`mine`](super::mine()) reports, behind the number of
/// pairs that were looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScreenOutcome {
    /// There was no screen: few rows, more than 2²⁷, too many features, rows of 16 bits, second-best values, or a device whose
    /// tensor cores gain nothing.
    NotUsed = 0,
    /// What came into question was looked at again in f32, and nothing else.
    Used = 1,
    /// A row is not finite or its norm is beyond 2⁶⁰, so that everything was done in f32.
    Unfit = 2,
    /// More pairs came into question than there is room for, 16 for each row and column on average, so that everything was done
    /// in f32. Rows whose similarities are all alike make for many: a row that is repeated dozens of times and everybody's
    /// hardest, or, where rows are not normalised, one whose norm is hundreds of times that of the others.
    Overflow = 3,
}

impl ScreenOutcome {
    /// Of the reported word; `None` for one that is never reported.
    pub const fn from_word(word: u32) -> Option<Self> {
        match word {
            0 => Some(Self::NotUsed),
            1 => Some(Self::Used),
            2 => Some(Self::Unfit),
            3 => Some(Self::Overflow),
            _ => None,
        }
    }
}

/// Whether the kernels can screen such rows at all.
pub(super) fn possible(dtype: DType, [n, m]: [usize; 2], d: usize) -> bool {
    dtype == DType::F32
        && n > 0
        && m > 0
        && (1..=MOST_FEATURES).contains(&d)
        && n.saturating_add(m) <= MOST_LINES
        && key_words(n, m) > 0
}

/// Whether they are screened on this device, and why: a function of shape, type, normalisation and device alone. The results
/// are the same.
pub(super) fn screens(
    device: &PlanDevice,
    dtype: DType,
    extents: [usize; 2],
    d: usize,
    normalization: Normalization,
) -> (bool, &'static str) {
    if dtype != DType::F32 {
        return (false, "16-bit rows go to tensor cores as they are");
    }
    if !possible(dtype, extents, d) {
        return (false, "more rows or features than the list and the bounds are made for, or none");
    }
    if let Some(screens) = device.screens {
        return (screens, "forced, not chosen");
    }
    if !matches!(device.compute_capability, (8 | 9, 0) | (10, _)) {
        return (false, "the tensor cores of this device are less than four times as fast as its multiply-adds");
    }
    if d > most_features(normalization) {
        return (false, "sums of so many products are off by more than similarities differ: too many would be left");
    }
    if 2.0 * extents[0] as f64 * extents[1] as f64 * (d as f64) < LEAST_OPERATIONS {
        return (false, "below 2^31 operations the launches of a screen take longer than multiply-adds");
    }
    (true, "two products on tensor cores and few similarities in f32 take less time than one product of multiply-adds")
}

/// The type that rows are rounded to. f16 keeps three bits more, and so needs fewer second looks; its range is enough for
/// normalised rows.
pub(super) const fn screen_dtype(normalization: Normalization) -> DType {
    match normalization {
        Normalization::L2 => DType::F16,
        Normalization::None => DType::Bf16,
    }
}

/// Words that have to be cleared before: keys of the rounded rows, keys of the result, the state.
pub(super) const fn screen_words(n: usize, m: usize) -> usize {
    2 * key_words(n, m) + STATE_WORDS
}

/// Blocks of `screen_bounds`.
pub(super) fn bounds_blocks(n: usize, m: usize) -> u32 {
    // Below 2^20.
    ((n.next_multiple_of(PADDING) + m.next_multiple_of(PADDING)) / 256) as u32
}

/// The plan of `mine_screen_*` alone.
pub(super) fn screen_plan_on(device: PlanDevice, shape: SweepShape) -> SweepPlan {
    tile_plan_on(device, SweepKernel::MineScreen, shape)
}

/// A screen in front of `mining`, and where everything of it lies in the workspace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    dtype: DType,
    n: usize,
    m: usize,
    d: usize,
    /// Elements from one rounded row to the next.
    ld: usize,
    rounded: [Region; 2],
    norm: Region,
    error: Region,
    bounds: [Region; 2],
    list: Region,
}

/// Where the mining is, of which this is the screen.
pub(super) struct Behind<'a> {
    pub mining: &'a Mining,
    /// f32, with no factors of their own.
    pub operands: [Operand; 2],
    pub groups: [u64; 2],
    pub pos: u64,
    pub to: [MergeTo; 2],
    /// Two words, or 0.
    pub report: u64,
}

impl Screen {
    /// `possible` has said yes.
    pub(super) fn plan(
        layout: &mut Layout,
        [n, m]: [usize; 2],
        d: usize,
        normalization: Normalization,
    ) -> Result<Self> {
        let ld = d.next_multiple_of(8);
        let mut line = |len: usize| layout.take::<f32>(&[len]);
        let (norm, error) = (line(n + m)?, line(n + m)?);
        let bounds = [line(n.next_multiple_of(PADDING))?, line(m.next_multiple_of(PADDING))?];
        let rounded = [layout.take::<u16>(&[n, ld])?, layout.take::<u16>(&[m, ld])?];
        let list = layout.take::<u64>(&[PLACES_PER_LINE, n + m])?;
        Ok(Self { dtype: screen_dtype(normalization), n, m, d, ld, rounded, norm, error, bounds, list })
    }

    fn capacity(&self) -> u32 {
        // At most 2^31.
        (PLACES_PER_LINE * (self.n + self.m)) as u32
    }

    fn operands(&self, base: u64) -> [Operand; 2] {
        self.rounded.map(|region| Operand {
            ptr: region.at(base),
            row_stride: self.ld,
            batch_stride: 0,
            inv: 0,
            inv_batch_stride: 0,
        })
    }

    /// Enqueues the screen, the mining that does nothing unless that fails, and the merge of whichever it was. `words` is the
    /// address of [`screen_words`] cleared words.
    ///
    /// # Safety
    /// The operands, groups, `pos` and outputs are valid on the stream's device for the plan's extents, and `base` is a
    /// workspace of the layout's size.
    pub(super) unsafe fn launch(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        base: u64,
        words: u64,
        behind: &Behind<'_>,
    ) -> Result<()> {
        let Behind { mining, operands: [x, y], groups, pos, to, report } = *behind;
        debug_assert!(x.inv == 0 && y.inv == 0, "f32 rows are normalised where they lie");
        let (n, m, d) = (self.n as u32, self.m as u32, self.d as u32);
        let keys = ((self.n + self.m) * size_of::<u64>()) as u64;
        let (found, state) = (words + keys, words + 2 * keys);
        let final_keys = [found, found + (self.n * size_of::<u64>()) as u64];
        let rounded = self.operands(base);
        let [row_bound, col_bound] = self.bounds.map(|region| region.at(base));
        let list = self.list.at(base);

        let rows = ScreenRowsParams {
            x: x.ptr,
            y: y.ptr,
            x_screen: rounded[0].ptr,
            y_screen: rounded[1].ptr,
            norm: self.norm.at(base),
            error: self.error.at(base),
            state,
            ldx: x.row_stride as i64,
            ldy: y.row_stride as i64,
            ld: self.ld as i64,
            n,
            m,
            d,
            pad_: 0,
        };
        let name = ["screen_rows_f16", "screen_rows_bf16"][usize::from(self.dtype != DType::F16)];
        // SAFETY: the regions are disjoint parts of the workspace, everything else is valid by the caller's promise.
        unsafe { launch(kernels, stream, name, (row_blocks(self.n + self.m), 1, 1), BLOCK, 0, &rows)? };

        // SAFETY: as above; the keys are cleared.
        let (splits, stats, parts) =
            unsafe { mining.launch_maxima(kernels, stream, base, words, (self.dtype, rounded), groups)? };
        let bounds = ScreenBoundsParams {
            row_parts: parts[0],
            col_parts: parts[1],
            norm: rows.norm,
            error: rows.error,
            row_bound,
            col_bound,
            row_keys: final_keys[0],
            col_keys: final_keys[1],
            state,
            n,
            m,
            d,
            row_splits: splits.rows as u32,
            col_splits: splits.cols as u32,
            stats: stats as u32,
        };
        let blocks = (bounds_blocks(self.n, self.m), 1, 1);
        // SAFETY: as above.
        unsafe { launch(kernels, stream, "screen_bounds", blocks, BLOCK, 0, &bounds)? };

        let shape = SweepShape { batch: 1, n: self.n, m: self.m, d: self.d, dtype: self.dtype };
        let plan = tile_plan(kernels, SweepKernel::MineScreen, shape);
        let screen = ScreenParams {
            x: rounded[0].ptr,
            y: rounded[1].ptr,
            row_bound,
            col_bound,
            row_groups: groups[0],
            col_groups: groups[1],
            list,
            state,
            ldx: self.ld as i64,
            ldy: self.ld as i64,
            n,
            m,
            d,
            row_splits: plan.splits.rows as u32,
            col_splits: plan.splits.cols as u32,
            capacity: self.capacity(),
        };
        let rescore = ScreenRescoreParams {
            x: x.ptr,
            y: y.ptr,
            list,
            state,
            row_keys: final_keys[0],
            col_keys: final_keys[1],
            pos,
            ldx: rows.ldx,
            ldy: rows.ldy,
            n,
            m,
            d,
            pad_: 0,
        };
        let screened = Screened { state, keys: final_keys, report };
        let blocks = (row_blocks(self.n + self.m), 1, 1);
        // SAFETY: as above.
        unsafe {
            launch_tiles(kernels, stream, &SCREEN, &plan, rounded, &screen)?;
            launch(kernels, stream, "screen_rescore", blocks, BLOCK, 0, &rescore)?;
            mining.launch(kernels, stream, base, 0, [x, y], groups, pos, to, screened)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_used_where_it_pays_and_can_be_had() {
        let on = |device: PlanDevice, extents, d| screens(&device, DType::F32, extents, d, Normalization::L2).0;
        assert!(on(PlanDevice::H200, [2048, 2048], 512));
        assert!(on(PlanDevice::A100, [2048, 2048], 512));
        assert!(!on(PlanDevice::H200, [1024, 1024], 512));
        assert!(!on(PlanDevice { compute_capability: (8, 6), ..PlanDevice::A100 }, [4096, 4096], 512));
        assert!(!on(PlanDevice { screens: Some(false), ..PlanDevice::H200 }, [4096, 4096], 512));
        let forced = PlanDevice { screens: Some(true), ..PlanDevice::H200 };
        assert!(on(forced, [1, 1], 1) && !on(forced, [0, 5], 3) && !on(forced, [5, 5], MOST_FEATURES + 1));
        assert!(!on(forced, [MOST_LINES, 1], 4));
        assert!(!screens(&forced, DType::Bf16, [64, 64], 8, Normalization::L2).0);
        assert!(on(PlanDevice::H200, [1024, 1024], 8192) && !on(PlanDevice::H200, [1024, 1024], 8193));
        assert!(!screens(&PlanDevice::H200, DType::F32, [2048, 2048], 4097, Normalization::None).0);
    }

    #[test]
    fn the_list_and_the_words_are_counted_in_32_bits() {
        assert!(PLACES_PER_LINE * MOST_LINES <= u32::MAX as usize);
        assert!(u32::try_from(screen_words(MOST_LINES / 2, MOST_LINES / 2)).is_ok());
    }
}
