//! The triplet hinge on mined negatives: the kernels of `mine_top_k`, weights, and the sums of `weighted_grad`.

use cudarc::driver::CudaStream;

use super::descriptor::{Named, RawBuf, RawMat, check_disjoint, check_extent};
use super::gather::{Gather, RawUpstream, check_gradient_type};
use super::goal_plan::RawGroups;
use super::inverse_index::{InvertParams, SidePlan};
use super::kernels::Kernels;
use super::launch::{launch, params};
use super::mine::{check_groups, check_optional};
use super::prepare::Wants;
use super::row_norms::same_dtype;
use super::scope::Scope;
use super::top_k::{self, RawSelected, RawTopK};
use super::workspace::{Layout, Region};
use crate::check;
use crate::dtype::DType;
use crate::error::Result;
use crate::mined_triplet::{MinedTriplet, MinedTripletReport};
use crate::options::{Normalization, WriteMode};
use crate::top_k::TopKOptions;

pub(super) const OP: &str = "mined_triplet_step";

/// Threads of a block; `kMinedTripletThreads` in `kernels/params/mined_triplet.h`.
pub(crate) const THREADS: u32 = 256;
/// Anchor indices of a block of `mined_triplet_weigh`: a warp each.
const ANCHORS: usize = THREADS as usize / 32;

params! {
    /// Twin of the struct in `kernels/params/mined_triplet.h`.
    #[derive(Default)]
    MinedTripletPart: 64 {
        loss: f64,
        negative: f64,
        positive: f64,
        triplets: u64,
        active: u64,
        empty_rows: u32,
        empty_cols: u32,
        zero_x: u32,
        zero_y: u32,
        nan_x: u32,
        nan_y: u32,
    }
}

params! {
    /// Twin of the struct in `kernels/params/mined_triplet.h`.
    MinedTripletParams: 128 {
        row_index: u64,
        row_value: u64,
        col_index: u64,
        col_value: u64,
        pos: u64,
        inv_x: u64,
        inv_y: u64,
        rows: u64,
        cols: u64,
        values: u64,
        parts: u64,
        report: u64,
        margin: f64,
        factor: f64,
        n: u32,
        m: u32,
        k: u32,
        blocks: u32,
    }
}

/// Arguments of [`raw::mined_triplet_step`](super::raw::mined_triplet_step).
#[derive(Clone, Copy, Debug)]
pub struct RawMinedTriplet<'a> {
    /// `(n, d)`.
    pub x: RawMat,
    /// `(m, d)`, of the type of `x`.
    pub y: RawMat,
    /// What is mined and weighed.
    pub objective: &'a MinedTriplet,
    /// Whether the rows are normalised.
    pub normalization: Normalization,
    /// Group ids, if any.
    pub groups: Option<RawGroups>,
    /// Factor on the gradient.
    pub upstream: RawUpstream,
    /// Whether the gradient is added to what is there.
    pub write: WriteMode,
    /// `(n, d)`, of the type of `x` or f32.
    pub dx: RawMat,
    /// `(m, d)`, of the type of `dx`.
    pub dy: RawMat,
    /// One [`MinedTripletReport`].
    pub report: RawBuf,
    /// Bytes, at least [`mined_triplet_workspace_bytes`], aligned to [`WORKSPACE_ALIGN`](super::WORKSPACE_ALIGN).
    pub workspace: RawBuf,
}

/// What one direction selects, in the workspace.
struct SelectedPlan {
    index: Region,
    value: Region,
    survivors: Region,
    anchors: usize,
    k: usize,
}

impl SelectedPlan {
    fn new(layout: &mut Layout, anchors: usize, k: usize) -> Result<Self> {
        Ok(Self {
            index: layout.take::<i32>(&[anchors, k])?,
            value: layout.take::<f32>(&[anchors, k])?,
            survivors: layout.take::<u32>(&[anchors])?,
            anchors,
            k,
        })
    }

    fn raw(&self, base: u64) -> RawSelected {
        let places = self.anchors * self.k;
        RawSelected {
            index: RawBuf::new(self.index.at(base), places),
            value: RawBuf::new(self.value.at(base), places),
            survivors: RawBuf::new(self.survivors.at(base), self.anchors),
        }
    }
}

/// Where everything lies in the workspace.
struct Plan {
    mining: top_k::Plan,
    positive: Region,
    rows: SelectedPlan,
    cols: SelectedPlan,
    /// Row, column and value of every place for a weight.
    triples: [Region; 3],
    places: usize,
    sides: [SidePlan; 2],
    parts: Region,
    blocks: usize,
    /// Two counters that nobody reads.
    unread: Region,
    bytes: usize,
}

impl Plan {
    fn new([x, y]: [&RawMat; 2], objective: &MinedTriplet, rules: &TopKOptions<'_>, any_layout: bool) -> Result<Self> {
        let (n, m, k) = (x.rows, y.rows, objective.k);
        let pairs = n.min(m);
        let mut layout = Layout::new(OP);
        let norms = rules.normalization == Normalization::L2;
        let wants = Wants { row_facts: true, norms, any_layout, ..Wants::default() };
        let mining = top_k::Plan::new(&mut layout, [x, y], None, rules, &wants)?;
        let places = check::mined_triplet_places(OP, pairs, k)?;
        let blocks = n.max(m).div_ceil(ANCHORS).max(1);
        Ok(Self {
            mining,
            positive: layout.take::<f32>(&[pairs])?,
            rows: SelectedPlan::new(&mut layout, n, k)?,
            cols: SelectedPlan::new(&mut layout, m, k)?,
            triples: [layout.take::<i32>(&[places])?, layout.take::<i32>(&[places])?, layout.take::<f32>(&[places])?],
            places,
            sides: [SidePlan::new(&mut layout, [n, x.cols], places)?, SidePlan::new(&mut layout, [m, x.cols], places)?],
            parts: layout.take::<MinedTripletPart>(&[blocks])?,
            blocks,
            unread: layout.take::<u32>(&[2])?,
            bytes: layout.total(),
        })
    }
}

/// Bytes of workspace that [`mined_triplet_step`](super::mined_triplet_step) needs for `x` (`n × d`) and `y` (`m × d`) of type
/// `dtype`, whatever the alignment of the operands. Host arithmetic only. Of `objective` `k`, `skip` and the pick matter: what
/// [`mine_top_k`](super::mine_top_k_workspace_bytes) takes, 8 bytes per anchor and negative, and 36 per place for a weight, of
/// which each pair has `1 + 2 k`; for more than 2048 places 4 to 8 more for the most of them, and from
/// 8192 on a row of f32 per side for every 2048 of them.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge), [`Error::InvalidOption`](crate::Error::InvalidOption) for `k` and `skip`.
pub fn mined_triplet_workspace_bytes(
    n: usize,
    m: usize,
    d: usize,
    dtype: DType,
    objective: &MinedTriplet,
    normalization: Normalization,
) -> Result<usize> {
    for (arg, extent) in [("x.rows", n), ("y.rows", m), ("x.cols", d)] {
        check_extent(OP, arg, extent)?;
    }
    let rules = objective.rules(normalization, None);
    check::top_k_counts(OP, &rules)?;
    let (x, y) = (RawMat::new(0, n, d, dtype), RawMat::new(0, m, d, dtype));
    Ok(Plan::new([&x, &y], objective, &rules, true)?.bytes)
}

/// Checks everything that the host can see.
fn check_arguments(a: &RawMinedTriplet<'_>) -> Result<Plan> {
    let (x, y) = ((a.x.rows, a.x.cols), (a.y.rows, a.y.cols));
    let gradients = [(a.dx.rows, a.dx.cols), (a.dy.rows, a.dy.cols)];
    let rules = a.objective.rules(a.normalization, None);
    check::mined_triplet(OP, x, y, a.objective, &rules, gradients)?;
    check_extent(OP, "x.rows + y.rows", x.0.saturating_add(y.0))?;
    same_dtype(OP, "y", a.x.dtype, a.y.dtype)?;
    check_gradient_type(OP, "dx", a.x.dtype, a.dx.dtype)?;
    same_dtype(OP, "dy", a.dx.dtype, a.dy.dtype)?;
    let mut inputs: Vec<Named> = vec![("x", a.x.check(OP, "x")?), ("y", a.y.check(OP, "y")?)];
    if let Some(groups) = a.groups {
        check::equal(OP, "groups.rows", x.0, groups.rows.len)?;
        check::equal(OP, "groups.cols", y.0, groups.cols.len)?;
    }
    inputs.extend(check_groups(OP, a.groups, x.0, y.0)?);
    let upstream = match a.upstream {
        RawUpstream::Host(_) => RawBuf::NULL,
        RawUpstream::Device(buf) => buf,
    };
    inputs.push(check_optional::<f32>(OP, "upstream", upstream, 1)?);
    let plan = Plan::new([&a.x, &a.y], a.objective, &rules, false)?;
    let outputs = [
        ("dx", a.dx.check(OP, "dx")?),
        ("dy", a.dy.check(OP, "dy")?),
        ("report", a.report.check::<MinedTripletReport>(OP, "report", 1)?),
        ("workspace", a.workspace.check_workspace(OP, plan.bytes)?),
    ];
    check_disjoint(OP, &outputs, &inputs)?;
    Ok(plan)
}

/// A call's arguments and its place in memory.
struct Step<'a> {
    a: &'a RawMinedTriplet<'a>,
    plan: &'a Plan,
    /// Address of the workspace.
    base: u64,
}

impl Step<'_> {
    fn mining<'r>(&self, rules: &'r TopKOptions<'r>) -> RawTopK<'r> {
        let (a, plan) = (self.a, self.plan);
        RawTopK {
            x: a.x,
            y: a.y,
            options: rules,
            groups: a.groups,
            bank: None,
            positive: RawBuf::new(plan.positive.at(self.base), a.x.rows.min(a.y.rows)),
            rows: plan.rows.raw(self.base),
            cols: plan.cols.raw(self.base),
            workspace: a.workspace,
        }
    }

    fn triples(&self) -> [u64; 3] {
        self.plan.triples.map(|region| region.at(self.base))
    }

    fn factor(&self) -> f64 {
        self.a.objective.factor(self.a.x.rows.min(self.a.y.rows))
    }

    fn weigh(&self) -> MinedTripletParams {
        let (a, plan, base) = (self.a, self.plan, self.base);
        let [rows, cols, values] = self.triples();
        let [inv_x, inv_y] = plan.mining.prepare.row_inv(base);
        MinedTripletParams {
            row_index: plan.rows.index.at(base),
            row_value: plan.rows.value.at(base),
            col_index: plan.cols.index.at(base),
            col_value: plan.cols.value.at(base),
            pos: plan.positive.at(base),
            inv_x,
            inv_y,
            rows,
            cols,
            values,
            parts: plan.parts.at(base),
            report: a.report.ptr,
            margin: a.objective.margin,
            factor: self.factor(),
            n: a.x.rows as u32,
            m: a.y.rows as u32,
            k: a.objective.k as u32,
            blocks: plan.blocks as u32,
        }
    }

    fn invert(&self) -> InvertParams {
        let [rows, cols, _] = self.triples();
        let [x, y] = &self.plan.sides;
        let addresses = [rows, cols, self.plan.unread.at(self.base)];
        InvertParams::new([x, y], self.base, [self.a.x.rows, self.a.y.rows], addresses, self.plan.places)
    }

    fn gather(&self) -> Gather {
        let (a, prepare, base) = (self.a, &self.plan.mining.prepare, self.base);
        let [rows, cols, values] = self.triples();
        let [x, y] = &self.plan.sides;
        let (inv, exponent) = match a.normalization {
            Normalization::L2 => (prepare.row_inv(base), prepare.row_exponent(base)),
            Normalization::None => ([0; 2], [0; 2]),
        };
        let (upstream, factor) = a.upstream.parts();
        Gather {
            op: OP,
            operands: [prepare.x(base), prepare.y(base)],
            norms: [0, 1].map(|i| [inv[i], exponent[i]]),
            terms: [x.terms(base, cols, values), y.terms(base, rows, values)],
            out: [a.dx, a.dy],
            dtype: a.x.dtype,
            upstream,
            factor: (f64::from(factor) * self.factor()) as f32,
            write: a.write,
            pairs: 0,
            entries: self.plan.places,
            overflow: a.report.ptr + std::mem::offset_of!(MinedTripletReport, overflow) as u64,
        }
    }
}

/// As [`mined_triplet_step`](super::mined_triplet_step), on plain pointers.
///
/// # Errors
/// As [`mined_triplet_step`](super::mined_triplet_step), and [`Error::BadPointer`](crate::Error::BadPointer),
/// [`Error::Overlap`](crate::Error::Overlap), [`Error::UnsupportedDType`](crate::Error::UnsupportedDType).
///
/// # Safety
/// Every buffer is valid on the stream's device for its extent until the enqueued work has run.
pub unsafe fn mined_triplet_step_raw(kernels: &Kernels, stream: &CudaStream, a: &RawMinedTriplet<'_>) -> Result<()> {
    let plan = check_arguments(a)?;
    kernels.check_stream(OP, stream)?;
    let step = Step { a, plan: &plan, base: a.workspace.ptr };
    let rules = a.objective.rules(a.normalization, None);
    let (weigh, grid) = (step.weigh(), (plan.blocks as u32, 1, 1));
    let _scope = Scope::enter(OP, stream.context())?;
    // SAFETY: the extents were checked, the regions of the workspace are disjoint, the pointers are valid by the
    // caller's promise.
    unsafe {
        top_k::enqueue(kernels, stream, &step.mining(&rules), &plan.mining)?;
        launch(kernels, stream, "mined_triplet_weigh", grid, THREADS, 0, &weigh)?;
        launch(kernels, stream, "mined_triplet_finish", (1, 1, 1), THREADS, 0, &weigh)?;
        step.invert().launch(kernels, stream)?;
        step.gather().launch(kernels, stream)
    }
}
