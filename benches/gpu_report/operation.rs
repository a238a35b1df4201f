//! One operation on plain device addresses: how much memory it needs, and how it is enqueued.

use cudarc::driver::CudaStream;
use simgrad::cuda::raw::{self, RawGroups, RawHardest, RawSelected, RawUpstream};
use simgrad::cuda::{self, Kernels, RawBatch, RawBuf, RawMat};
use simgrad::{
    CosineOptions, DType, GradReport, MinedTriplet, MinedTripletReport, Normalization, Objective, PairwiseObjective,
    PairwiseReport, Precision, Result, StepReport, TiePolicy, TopKOptions, WriteMode,
};

/// Outputs of an operation at most.
pub const OUTPUTS: usize = 7;

/// A step over all pairs.
#[derive(Clone, Copy, Debug)]
pub struct Pairwise {
    pub objective: PairwiseObjective,
    pub wave_bytes: usize,
    pub keep_bytes: usize,
    pub precision: Precision,
}

/// The operations, with their outputs in order and their inputs other than `x` and `y`.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// `x̂`, of the type of `x`.
    Normalize,
    /// `S`, of `out_dtype`.
    CosineMatrix(Precision),
    /// Positives, which need not be wanted; of the rows values and indices; of the columns the same.
    Mine,
    /// Positives; of the rows indices, values and survivors; of the columns the same.
    MineTopK(TopKOptions<'static>),
    /// `dX`, `dY` of `out_dtype`, report. Inputs: rows, columns (i32) and values (f32) of so many weights.
    WeightedGrad(usize),
    /// `dX`, `dY` of `out_dtype`, report.
    GoalStep(Objective),
    /// `dX`, `dY` of `out_dtype`, report.
    MinedTriplet(MinedTriplet),
    /// `dX`, `dY` of `out_dtype`, report.
    PairwiseStep(Pairwise),
    /// As `PairwiseStep`, of which it is the part before the weights: the gradients stay as they are, and of the report
    /// the loss counts.
    PairwiseStatistics(Pairwise),
    /// Ranks of the rows, of the columns. Inputs, where there are groups: ids (i64) of the rows and of the columns.
    Ranks { groups: bool },
}

/// An operation on matrices of these extents and types, without gaps. Gradients are overwritten, their factor is 1.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub operation: Operation,
    /// Matrices, of `CosineMatrix`; 1 otherwise.
    pub batch: usize,
    pub n: usize,
    pub m: usize,
    pub d: usize,
    pub dtype: DType,
    pub out_dtype: DType,
    pub normalization: Normalization,
}

/// Addresses of device memory; 0 where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub x: u64,
    pub y: u64,
    pub inputs: [u64; 3],
    pub outputs: [u64; OUTPUTS],
    pub workspace: u64,
    pub workspace_bytes: usize,
}

impl Task {
    /// With the normalisation of the task.
    fn top_k(&self, options: TopKOptions<'static>) -> TopKOptions<'static> {
        TopKOptions { normalization: self.normalization, ..options }
    }

    pub fn workspace_bytes(&self) -> Result<usize> {
        let Self { operation, batch, n, m, d, dtype, normalization, .. } = *self;
        match operation {
            Operation::Normalize => Ok(0),
            Operation::CosineMatrix(precision) => {
                let options = CosineOptions { normalization, precision, ..CosineOptions::default() };
                cuda::cosine_matrix_workspace_bytes(batch, n, m, d, dtype, &options)
            }
            Operation::Mine => cuda::mine_workspace_bytes(n, m, d, dtype, normalization, false),
            Operation::MineTopK(options) => {
                cuda::mine_top_k_workspace_bytes(n, m, None, d, dtype, &self.top_k(options))
            }
            Operation::WeightedGrad(triples) => {
                cuda::weighted_grad_workspace_bytes(n, m, d, dtype, triples, normalization)
            }
            Operation::GoalStep(objective) => {
                cuda::goal_step_workspace_bytes(n, d, dtype, &objective, normalization, false)
            }
            Operation::MinedTriplet(objective) => {
                cuda::mined_triplet_workspace_bytes(n, m, d, dtype, &objective, normalization)
            }
            Operation::PairwiseStep(of) | Operation::PairwiseStatistics(of) => {
                let Pairwise { objective, wave_bytes, keep_bytes, precision } = of;
                cuda::pairwise_workspace_bytes(
                    n,
                    m,
                    d,
                    dtype,
                    &objective,
                    normalization,
                    wave_bytes,
                    keep_bytes,
                    precision,
                )
            }
            Operation::Ranks { groups } => cuda::ranks_workspace_bytes(n, m, d, dtype, normalization, groups),
        }
    }

    /// Elements and bytes of an element of every output; both are 0 behind the last one.
    pub fn output_lens(&self) -> [(usize, usize); OUTPUTS] {
        let Self { operation, batch, n, m, d, dtype, out_dtype, .. } = *self;
        let pairs = n.min(m);
        let step = |report| [(n * d, out_dtype.size()), (m * d, out_dtype.size()), (1, report)];
        let lens: &[(usize, usize)] = match operation {
            Operation::Normalize => &[(n * d, dtype.size())],
            Operation::CosineMatrix(_) => &[(batch * n * m, out_dtype.size())],
            Operation::Mine => &[(pairs, 4), (n, 4), (n, 4), (m, 4), (m, 4)],
            Operation::MineTopK(TopKOptions { k, .. }) => {
                &[(pairs, 4), (n * k, 4), (n * k, 4), (n, 4), (m * k, 4), (m * k, 4), (m, 4)]
            }
            Operation::WeightedGrad(_) => &step(size_of::<GradReport>()),
            Operation::GoalStep(_) => &step(size_of::<StepReport>()),
            Operation::MinedTriplet(_) => &step(size_of::<MinedTripletReport>()),
            Operation::PairwiseStep(_) | Operation::PairwiseStatistics(_) => &step(size_of::<PairwiseReport>()),
            Operation::Ranks { .. } => &[(n, 4), (m, 4)],
        };
        std::array::from_fn(|at| lens.get(at).copied().unwrap_or((0, 0)))
    }

    /// Enqueues the operation.
    ///
    /// # Safety
    /// Every address is 0 or that of as many bytes as the task says, valid on the stream's device until the enqueued work has
    /// run.
    pub unsafe fn enqueue(&self, kernels: &Kernels, stream: &CudaStream, at: &Addresses) -> Result<()> {
        let Self { operation, batch, n, m, d, dtype, out_dtype, normalization } = *self;
        let (x, y) = (RawMat::new(at.x, n, d, dtype), RawMat::new(at.y, m, d, dtype));
        let (write, upstream) = (WriteMode::Overwrite, RawUpstream::Host(1.0));
        let workspace = RawBuf::new(at.workspace, at.workspace_bytes);
        let lens = self.output_lens();
        let out = |k: usize| match at.outputs[k] {
            0 => RawBuf::NULL,
            address => RawBuf::new(address, lens[k].0),
        };
        let [dx, dy] = [(0, n), (1, m)].map(|(k, rows)| RawMat::new(at.outputs[k], rows, d, out_dtype));
        // SAFETY: by the caller's promise, in every arm.
        unsafe {
            match operation {
                Operation::Normalize => raw::normalize(kernels, stream, &x, &RawMat { ptr: at.outputs[0], ..x }),
                Operation::CosineMatrix(precision) => {
                    let of = |m: RawMat| RawBatch { batch, batch_stride: m.rows * m.cols, ..m.into() };
                    let out = of(RawMat::new(at.outputs[0], n, m, out_dtype));
                    let options = CosineOptions { normalization, precision, ..CosineOptions::default() };
                    let a = raw::RawCosineMatrix { x: of(x), y: of(y), options: &options, out, workspace };
                    raw::cosine_matrix(kernels, stream, &a)
                }
                Operation::Mine => {
                    let of = |k| RawHardest { value: out(k), index: out(k + 1), second: RawBuf::NULL };
                    let (groups, screen) = (None, RawBuf::NULL);
                    let (positive, rows, cols) = (out(0), of(1), of(3));
                    let a = raw::RawMine { x, y, normalization, groups, positive, rows, cols, screen, workspace };
                    raw::mine(kernels, stream, &a)
                }
                Operation::MineTopK(options) => {
                    let of = |k| RawSelected { index: out(k), value: out(k + 1), survivors: out(k + 2) };
                    let (positive, rows, cols) = (out(0), of(1), of(4));
                    let (groups, bank, options) = (None, None, &self.top_k(options));
                    let a = raw::RawTopK { x, y, options, groups, bank, positive, rows, cols, workspace };
                    raw::mine_top_k(kernels, stream, &a)
                }
                Operation::WeightedGrad(triples) => {
                    let [rows, cols, values] = at.inputs.map(|ptr| RawBuf::new(ptr, triples));
                    let report = out(2);
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
                Operation::GoalStep(objective) => {
                    let (groups, report, detail) = (None, out(2), RawBuf::NULL);
                    let a = raw::RawGoalStep {
                        x,
                        y,
                        objective: &objective,
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
                Operation::MinedTriplet(objective) => {
                    let (groups, report) = (None, out(2));
                    let a = raw::RawMinedTriplet {
                        x,
                        y,
                        objective: &objective,
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
                Operation::PairwiseStep(of) | Operation::PairwiseStatistics(of) => {
                    let Pairwise { objective, wave_bytes, keep_bytes, precision } = of;
                    let a = raw::RawPairwiseStep {
                        x,
                        y: Some(y),
                        objective: &objective,
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
                        report: out(2),
                        wave_bytes,
                        keep_bytes,
                        precision,
                        workspace,
                    };
                    match operation {
                        Operation::PairwiseStep(_) => raw::pairwise_step(kernels, stream, &a),
                        _ => raw::pairwise_statistics(kernels, stream, &a),
                    }
                }
                Operation::Ranks { groups } => {
                    let ids = |k: usize, len| RawBuf::new(at.inputs[k], len);
                    let groups = groups.then(|| RawGroups { rows: ids(0, n), cols: ids(1, m) });
                    let (ties, rows, cols) = (TiePolicy::LowestIndex, out(0), out(1));
                    let a = raw::RawRanks { x, y, normalization, groups, ties, rows, cols, workspace };
                    raw::ranks(kernels, stream, &a)
                }
            }
        }
    }
}
