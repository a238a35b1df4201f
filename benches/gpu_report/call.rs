//! Operations as a struct that Python's ctypes can fill.

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;
use simgrad::cuda::Kernels;
use simgrad::{
    DType, Error, Fallback, MinedTriplet, Normalization, Objective, PairwiseObjective, Precision, Result, TopKOptions,
};

use crate::operation::{Addresses, OUTPUTS, Operation, Pairwise, Task};

/// The numbers that stand for the [`Operation`]s in [`Call::op`]. Inputs of `WeightedGrad` are `k` weights, of `Ranks` group
/// ids or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    Normalize = 0,
    CosineMatrix = 1,
    Mine = 2,
    MineTopK = 3,
    WeightedGrad = 4,
    GoalStep = 5,
    MinedTriplet = 6,
    PairwiseStep = 7,
    PairwiseStatistics = 8,
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

impl Call {
    fn precision(&self) -> Result<Precision> {
        match self.objective {
            0 => Ok(Precision::Full),
            1 => Ok(Precision::SplitBf16),
            other => Err(invalid("objective", "0 or 1", other)),
        }
    }

    fn goal(&self) -> Result<Objective> {
        let at = self.objective;
        GOAL_OBJECTIVES.get(at as usize).ok_or_else(|| invalid("objective", "0, 1 or 2", at))?.parse()
    }

    fn pairwise(&self) -> Result<Pairwise> {
        let objective = match self.objective {
            0 => PairwiseObjective::InfoNce { scale: self.scale },
            1 => PairwiseObjective::SigLip { scale: self.scale, bias: self.bias },
            other => return Err(invalid("objective", "0 or 1", other)),
        };
        Ok(Pairwise {
            objective,
            wave_bytes: self.wave_bytes as usize,
            keep_bytes: self.keep_bytes as usize,
            precision: Precision::Full,
        })
    }

    fn operation(&self) -> Result<Operation> {
        let op = Op::ALL.into_iter().find(|op| *op as u32 == self.op);
        let k = self.k as usize;
        Ok(match op.ok_or_else(|| invalid("op", "0 to 9", self.op))? {
            Op::Normalize => Operation::Normalize,
            Op::CosineMatrix => Operation::CosineMatrix(self.precision()?),
            Op::Mine => Operation::Mine,
            Op::MineTopK if self.semi_hard == 0 => Operation::MineTopK(TopKOptions::hardest(k)),
            Op::MineTopK => Operation::MineTopK(TopKOptions::semi_hard(k, Fallback::Skip)),
            Op::WeightedGrad => Operation::WeightedGrad(k),
            Op::GoalStep => Operation::GoalStep(self.goal()?),
            Op::MinedTriplet => Operation::MinedTriplet(MinedTriplet::hardest()),
            Op::PairwiseStep => Operation::PairwiseStep(self.pairwise()?),
            Op::PairwiseStatistics => Operation::PairwiseStatistics(self.pairwise()?),
            Op::Ranks => Operation::Ranks { groups: self.inputs[0] != 0 },
        })
    }

    /// The numbers as types.
    fn task(&self) -> Result<Task> {
        Ok(Task {
            operation: self.operation()?,
            batch: self.batch as usize,
            n: self.n as usize,
            m: self.m as usize,
            d: self.d as usize,
            dtype: dtype("dtype", self.dtype)?,
            out_dtype: dtype("out_dtype", self.out_dtype)?,
            normalization: if self.normalize == 0 { Normalization::None } else { Normalization::L2 },
        })
    }
}

/// How large the call's workspace and outputs are. Host arithmetic only; the addresses are not looked at, except that of the
/// groups, whether there are any.
pub fn sizes(c: &Call) -> Result<Sizes> {
    let task = c.task()?;
    let outputs = task.output_lens().map(|(len, size)| (len * size) as u64);
    Ok(Sizes { workspace: task.workspace_bytes()? as u64, outputs })
}

/// Enqueues the call.
///
/// # Safety
/// Every address is 0 or that of as many bytes as the call's shape and [`sizes`] say, valid on the stream's device until the
/// enqueued work has run.
pub unsafe fn enqueue(kernels: &Kernels, stream: &CudaStream, c: &Call) -> Result<()> {
    let Call { x, y, inputs, outputs, workspace, .. } = *c;
    let at = Addresses { x, y, inputs, outputs, workspace, workspace_bytes: c.workspace_bytes as usize };
    // SAFETY: by the caller's promise.
    unsafe { c.task()?.enqueue(kernels, stream, &at) }
}
