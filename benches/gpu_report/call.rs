//! One operation on plain device addresses, described by a struct that Python's ctypes can fill.

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;
use simgrad::cuda::raw::{self, RawGroups, RawHardest, RawSelected, RawUpstream};
use simgrad::cuda::{self, Kernels, RawBatch, RawBuf, RawMat};
use simgrad::{
    CosineOptions, DType, Error, Fallback, GradReport, MinedTriplet, MinedTripletReport, Normalization, Objective,
    PairwiseObjective, PairwiseReport, Precision, Result, StepReport, TiePolicy, TopKOptions, WriteMode,
};

/// Outputs of an operation at most.
pub const OUTPUTS: usize = 7;

/// The operations, by the number that stands for each in [`Call::op`], and their outputs in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// `x̂`, of the type of `x`.
    Normalize = 0,
    /// `S`, of `out_type`.
    CosineMatrix = 1,
    /// Positives; of the rows values and indices; of the columns the same.
    Mine = 2,
    /// Positives; of the rows indices, values and survivors; of the columns the same.
    MineTopK = 3,
    /// `dX`, `dY` of `out_type`, report. Inputs: `k` rows, columns (i32) and values (f32) of the weights.
    WeightedGrad = 4,
    /// `dX`, `dY` of `out_type`, report.
    GoalStep = 5,
    /// `dX`, `dY` of `out_type`, report.
    MinedTriplet = 6,
    /// `dX`, `dY` of `out_type`, report.
    PairwiseStep = 7,
    /// As `PairwiseStep`, of which it is the part before the weights: the gradients stay as they are, and of the report
    /// the loss counts.
    PairwiseStatistics = 8,
    /// Ranks of the rows, of the columns. Inputs: group ids (i64) of the rows and of the columns, or none.
    Ranks = 9,
}

impl Op {
    pub const ALL: [Self; 10] = [
        Self::Normalize,
        Self::CosineMatrix,
        Self::Mine,
        Self::MineTopK,
        Self::WeightedGrad,
        Self::GoalStep,
        Self::MinedTriplet,
        Self::PairwiseStep,
        Self::PairwiseStatistics,
        Self::Ranks,
    ];
}

/// GOAL objectives by [`Call::objective`].
pub const GOAL_OBJECTIVES: [&str; 3] = ["hinge-con", "nca-sig", "cir-sig_ms"];

/// The twin of `Call` in `scripts/gpu_report/simgrad.py`. Addresses are of device memory; 0 where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Call {
    pub op: u32,
    /// 0 f32, 1 f16, 2 bf16.
    pub dtype: u32,
    pub out_dtype: u32,
    /// Rows are normalised unless 0.
    pub normalize: u32,
    /// Of `GoalStep` an index into [`GOAL_OBJECTIVES`]; of the pairwise ones 0 InfoNCE, 1 SigLIP; of `CosineMatrix` 0 full
    /// precision, 1 f32 in parts of bf16.
    pub objective: u32,
    /// Of `MineTopK`: only negatives below the positive, unless 0.
    pub semi_hard: u32,
    /// Matrices, of `CosineMatrix`; 1 otherwise.
    pub batch: u64,
    pub n: u64,
    pub m: u64,
    pub d: u64,
    /// Negatives per anchor of `MineTopK`, or triples of `WeightedGrad`.
    pub k: u64,
    /// Scale and bias of the logits.
    pub scale: f64,
    pub bias: f64,
    pub wave_bytes: u64,
    pub keep_bytes: u64,
    /// `(batch, n, d)` and `(batch, m, d)`, without gaps.
    pub x: u64,
    pub y: u64,
    pub inputs: [u64; 3],
    pub outputs: [u64; OUTPUTS],
    pub workspace: u64,
    pub workspace_bytes: u64,
}

/// Bytes of workspace and of every output.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub workspace: u64,
    pub outputs: [u64; OUTPUTS],
}

fn invalid(arg: &'static str, expected: &str, got: u32) -> Error {
    Error::InvalidOption { op: "gpu_report", arg, expected: expected.to_owned(), got: got.to_string() }
}

fn dtype(arg: &'static str, number: u32) -> Result<DType> {
    match number {
        0 => Ok(DType::F32),
        1 => Ok(DType::F16),
        2 => Ok(DType::Bf16),
        _ => Err(invalid(arg, "0, 1 or 2", number)),
    }
}

/// A call whose numbers have become types.
struct Typed<'a> {
    c: &'a Call,
    op: Op,
    dtype: DType,
    out_dtype: DType,
    normalization: Normalization,
    n: usize,
    m: usize,
    d: usize,
}

impl<'a> Typed<'a> {
    fn new(c: &'a Call) -> Result<Self> {
        let op = Op::ALL.into_iter().find(|op| *op as u32 == c.op).ok_or_else(|| invalid("op", "0 to 9", c.op))?;
        Ok(Self {
            c,
            op,
            dtype: dtype("dtype", c.dtype)?,
            out_dtype: dtype("out_dtype", c.out_dtype)?,
            normalization: if c.normalize == 0 { Normalization::None } else { Normalization::L2 },
            n: c.n as usize,
            m: c.m as usize,
            d: c.d as usize,
        })
    }

    fn cosine(&self) -> Result<CosineOptions> {
        let precision = match self.c.objective {
            0 => Precision::Full,
            1 => Precision::SplitBf16,
            other => return Err(invalid("objective", "0 or 1", other)),
        };
        Ok(CosineOptions { normalization: self.normalization, precision, ..CosineOptions::default() })
    }

    fn goal(&self) -> Result<Objective> {
        let at = self.c.objective;
        GOAL_OBJECTIVES.get(at as usize).ok_or_else(|| invalid("objective", "0, 1 or 2", at))?.parse()
    }

    fn pairwise(&self) -> Result<PairwiseObjective> {
        match self.c.objective {
            0 => Ok(PairwiseObjective::InfoNce { scale: self.c.scale }),
            1 => Ok(PairwiseObjective::SigLip { scale: self.c.scale, bias: self.c.bias }),
            other => Err(invalid("objective", "0 or 1", other)),
        }
    }

    fn top_k(&self) -> TopKOptions<'static> {
        let k = self.c.k as usize;
        let options =
            if self.c.semi_hard == 0 { TopKOptions::hardest(k) } else { TopKOptions::semi_hard(k, Fallback::Skip) };
        TopKOptions { normalization: self.normalization, ..options }
    }

    fn workspace_bytes(&self) -> Result<usize> {
        let Self { c, n, m, d, dtype, normalization, .. } = *self;
        match self.op {
            Op::Normalize => Ok(0),
            Op::CosineMatrix => cuda::cosine_matrix_workspace_bytes(c.batch as usize, n, m, d, dtype, &self.cosine()?),
            Op::Mine => cuda::mine_workspace_bytes(n, m, d, dtype, normalization, false),
            Op::MineTopK => cuda::mine_top_k_workspace_bytes(n, m, None, d, dtype, &self.top_k()),
            Op::WeightedGrad => cuda::weighted_grad_workspace_bytes(n, m, d, dtype, c.k as usize, normalization),
            Op::GoalStep => cuda::goal_step_workspace_bytes(n, d, dtype, &self.goal()?, normalization, false),
            Op::MinedTriplet => {
                cuda::mined_triplet_workspace_bytes(n, m, d, dtype, &MinedTriplet::hardest(), normalization)
            }
            Op::PairwiseStep | Op::PairwiseStatistics => {
                let (wave, keep) = (c.wave_bytes as usize, c.keep_bytes as usize);
                cuda::pairwise_workspace_bytes(
                    n,
                    m,
                    d,
                    dtype,
                    &self.pairwise()?,
                    normalization,
                    wave,
                    keep,
                    Precision::Full,
                )
            }
            Op::Ranks => cuda::ranks_workspace_bytes(n, m, d, dtype, normalization, c.inputs[0] != 0),
        }
    }

    /// Elements and bytes of an element of every output.
    fn output_lens(&self) -> [(usize, usize); OUTPUTS] {
        let Self { c, n, m, d, .. } = *self;
        let (pairs, k) = (n.min(m), c.k as usize);
        let lens: &[(usize, usize)] = match self.op {
            Op::Normalize => &[(n * d, self.dtype.size())],
            Op::CosineMatrix => &[(c.batch as usize * n * m, self.out_dtype.size())],
            Op::Mine => &[(pairs, 4), (n, 4), (n, 4), (m, 4), (m, 4)],
            Op::MineTopK => &[(pairs, 4), (n * k, 4), (n * k, 4), (n, 4), (m * k, 4), (m * k, 4), (m, 4)],
            Op::Ranks => &[(n, 4), (m, 4)],
            Op::WeightedGrad | Op::GoalStep | Op::MinedTriplet | Op::PairwiseStep | Op::PairwiseStatistics => {
                let report = match self.op {
                    Op::WeightedGrad => size_of::<GradReport>(),
                    Op::GoalStep => size_of::<StepReport>(),
                    Op::MinedTriplet => size_of::<MinedTripletReport>(),
                    _ => size_of::<PairwiseReport>(),
                };
                &[(n * d, self.out_dtype.size()), (m * d, self.out_dtype.size()), (1, report)]
            }
        };
        std::array::from_fn(|i| lens.get(i).copied().unwrap_or((0, 0)))
    }

    fn x(&self) -> RawMat {
        RawMat::new(self.c.x, self.n, self.d, self.dtype)
    }

    fn y(&self) -> RawMat {
        RawMat::new(self.c.y, self.m, self.d, self.dtype)
    }

    fn out(&self, at: usize) -> RawBuf {
        RawBuf::new(self.c.outputs[at], self.output_lens()[at].0)
    }

    fn gradients(&self) -> [RawMat; 2] {
        [(0, self.n), (1, self.m)].map(|(at, rows)| RawMat::new(self.c.outputs[at], rows, self.d, self.out_dtype))
    }

    fn workspace(&self) -> RawBuf {
        RawBuf::new(self.c.workspace, self.c.workspace_bytes as usize)
    }
}

/// How large the call's workspace and outputs are. Host arithmetic only; the addresses are not looked at, except that of the
/// groups, whether there are any.
pub fn sizes(c: &Call) -> Result<Sizes> {
    let typed = Typed::new(c)?;
    let outputs = typed.output_lens().map(|(len, size)| (len * size) as u64);
    Ok(Sizes { workspace: typed.workspace_bytes()? as u64, outputs })
}

/// Enqueues the call.
///
/// # Safety
/// Every address is 0 or that of as many bytes as the call's shape and [`sizes`] say, valid on the stream's device until the
/// enqueued work has run.
pub unsafe fn enqueue(kernels: &Kernels, stream: &CudaStream, c: &Call) -> Result<()> {
    let t = Typed::new(c)?;
    let (x, y, normalization, workspace) = (t.x(), t.y(), t.normalization, t.workspace());
    let (write, upstream) = (WriteMode::Overwrite, RawUpstream::Host(1.0));
    let [dx, dy] = t.gradients();
    // SAFETY: by the caller's promise, in every arm.
    unsafe {
        match t.op {
            Op::Normalize => raw::normalize(kernels, stream, &x, &RawMat { ptr: c.outputs[0], ..x }),
            Op::CosineMatrix => {
                let batch = c.batch as usize;
                let of = |m: RawMat| RawBatch { batch, batch_stride: m.rows * m.cols, ..m.into() };
                let out = of(RawMat::new(c.outputs[0], t.n, t.m, t.out_dtype));
                let options = t.cosine()?;
                let a = raw::RawCosineMatrix { x: of(x), y: of(y), options: &options, out, workspace };
                raw::cosine_matrix(kernels, stream, &a)
            }
            Op::Mine => {
                let of = |at| RawHardest { value: t.out(at), index: t.out(at + 1), second: RawBuf::NULL };
                let (positive, rows, cols) = (t.out(0), of(1), of(3));
                let a = raw::RawMine { x, y, normalization, groups: None, positive, rows, cols, workspace };
                raw::mine(kernels, stream, &a)
            }
            Op::MineTopK => {
                let options = t.top_k();
                let of = |at| RawSelected { index: t.out(at), value: t.out(at + 1), survivors: t.out(at + 2) };
                let (positive, rows, cols) = (t.out(0), of(1), of(4));
                let (groups, bank, options) = (None, None, &options);
                let a = raw::RawTopK { x, y, options, groups, bank, positive, rows, cols, workspace };
                raw::mine_top_k(kernels, stream, &a)
            }
            Op::WeightedGrad => {
                let [rows, cols, values] = c.inputs.map(|ptr| RawBuf::new(ptr, c.k as usize));
                let report = t.out(2);
                let a = raw::RawWeightedGrad {
                    x,
                    y,
                    rows,
                    cols,
                    values,
                    normalization,
                    upstream,
                    write,
                    dx,
                    dy,
                    report,
                    workspace,
                };
                raw::weighted_grad(kernels, stream, &a)
            }
            Op::GoalStep => {
                let objective = &t.goal()?;
                let (groups, report, detail) = (None, t.out(2), RawBuf::NULL);
                let a = raw::RawGoalStep {
                    x,
                    y,
                    objective,
                    normalization,
                    groups,
                    upstream,
                    write,
                    dx,
                    dy,
                    report,
                    detail,
                    workspace,
                };
                raw::goal_step(kernels, stream, &a)
            }
            Op::MinedTriplet => {
                let objective = &MinedTriplet::hardest();
                let (groups, report) = (None, t.out(2));
                let a = raw::RawMinedTriplet {
                    x,
                    y,
                    objective,
                    normalization,
                    groups,
                    upstream,
                    write,
                    dx,
                    dy,
                    report,
                    workspace,
                };
                raw::mined_triplet_step(kernels, stream, &a)
            }
            Op::PairwiseStep | Op::PairwiseStatistics => {
                let objective = &t.pairwise()?;
                let a = raw::RawPairwiseStep {
                    x,
                    y: Some(y),
                    objective,
                    normalization,
                    groups: None,
                    ignore_rows: RawBuf::NULL,
                    ignore_cols: RawBuf::NULL,
                    row_weights: RawBuf::NULL,
                    col_weights: RawBuf::NULL,
                    log_q: RawBuf::NULL,
                    upstream,
                    write,
                    dx,
                    dy: Some(dy),
                    report: t.out(2),
                    wave_bytes: c.wave_bytes as usize,
                    keep_bytes: c.keep_bytes as usize,
                    precision: Precision::Full,
                    workspace,
                };
                if t.op == Op::PairwiseStep {
                    raw::pairwise_step(kernels, stream, &a)
                } else {
                    raw::pairwise_statistics(kernels, stream, &a)
                }
            }
            Op::Ranks => {
                let ids = |at: usize, len| RawBuf::new(c.inputs[at], len);
                let groups = (c.inputs[0] != 0).then(|| RawGroups { rows: ids(0, t.n), cols: ids(1, t.m) });
                let (ties, rows, cols) = (TiePolicy::LowestIndex, t.out(0), t.out(1));
                let a = raw::RawRanks { x, y, normalization, groups, ties, rows, cols, workspace };
                raw::ranks(kernels, stream, &a)
            }
        }
    }
}
