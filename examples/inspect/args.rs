//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use simgrad::{Objective, Reduction};

use crate::common::objective::Parameters;
use crate::common::{Failure, Outcome};

/// The whole anatomy of one GOAL step: what was mined, every weight, the sparse W, the gradients.
///
/// Writes every array as .npy and a report.json to the folder given with --out; see README.md beside the source.
#[derive(Parser, Debug)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    /// Embeddings of the first modality, pairs × columns
    #[arg(long, value_name = "X.npy")]
    pub x: PathBuf,
    /// Embeddings of the second modality, the same shape
    #[arg(long, value_name = "Y.npy")]
    pub y: PathBuf,
    /// TRIPLET-PAIR: con, hinge, nca, cir; con, lin, sig, lin_ms, sig_ms
    #[arg(long)]
    pub objective: String,
    /// Folder for the results; made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub parameters: Parameters,
    /// Factor on the gradient and on W, not on the report
    #[arg(long, default_value_t = 1.0, help_heading = "Step")]
    pub upstream: f64,
    /// Sum over the anchors, or their sum divided by the number of pairs
    #[arg(long, value_enum, default_value = "sum", help_heading = "Step")]
    pub reduction: ReductionChoice,
    /// yes: raw inputs, gradient through the normalisation; no: inputs and gradient as they are
    #[arg(long, value_enum, default_value = "yes", help_heading = "Step")]
    pub normalize: YesNo,
    /// One integer per pair; pairs of one group are not negatives of each other
    #[arg(long, value_name = "G.npy", help_heading = "Step")]
    pub group_ids: Option<PathBuf>,
    /// Type that the inputs are rounded to
    #[arg(long, value_enum, default_value = "f32", help_heading = "Step")]
    pub dtype: DTypeChoice,
    /// Where the step is computed
    #[arg(long, value_enum, default_value = "auto", help_heading = "Step")]
    pub backend: BackendName,
    /// Draw the gradient field over the (positive, negative) plane, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// `sum` or `mean`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReductionChoice {
    /// As the paper's code.
    Sum,
    /// Divided by the number of pairs.
    Mean,
}

/// `yes` or `no`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum YesNo {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// Element type of the inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeChoice {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Double precision; not on CUDA.
    F64,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The CPU path.
    Cpu,
    /// The first CUDA device; an error if that cannot be used.
    Cuda,
    /// The f64 reference, plain loops.
    Reference,
    /// CUDA where it can be used for this element type, else the CPU.
    Auto,
}

impl Args {
    /// The objective with all its parameters.
    pub fn objective(&self) -> Outcome<Objective> {
        let reduction = match self.reduction {
            ReductionChoice::Sum => Reduction::Sum,
            ReductionChoice::Mean => Reduction::Mean,
        };
        Ok(self.parameters.objective(&self.objective)?.with_reduction(reduction))
    }

    /// Checks what needs no file.
    pub fn check(&self) -> Outcome<()> {
        if self.dtype == DTypeChoice::F64 && self.backend == BackendName::Cuda {
            return Err(Failure::option("dtype", "f64 does not exist on cuda, expected f32, f16 or bf16"));
        }
        if self.out.exists() && !self.out.is_dir() {
            return Err(Failure::option("out", format!("{} is a file, expected a folder", self.out.display())));
        }
        match self.plot.as_ref().filter(|p| p.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg"))) {
            None => Ok(()),
            Some(path) => Err(Failure::option("plot", format!("is {}, expected a name in .svg", path.display()))),
        }
    }
}
