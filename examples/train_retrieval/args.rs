//! The command line.

use std::path::PathBuf;

use clap::Parser;
use simgrad::Objective;

use crate::common::backend::BackendChoice;
use crate::common::objective::Parameters;
use crate::common::{Failure, Outcome};
use crate::objective::Trained;

/// Trains a two-tower retrieval head; the gradient of every objective is simgrad's.
///
/// Without --data and --precomp the data are code search on this project's own dependencies: documentation paragraphs
/// and function sources of the crates that Cargo.lock pins.
#[derive(Parser, Debug)]
pub struct Args {
    /// Folder with a dataset.toml and the .npy files that it names
    #[arg(long, value_name = "DIR", conflicts_with = "precomp")]
    pub data: Option<PathBuf>,
    /// Folder with {train,dev,test}_ims.npy and _caps.txt files
    #[arg(long, value_name = "DIR")]
    pub precomp: Option<PathBuf>,
    /// TRIPLET-PAIR (con, hinge, nca, cir; con, lin, sig, lin_ms, sig_ms); triplet-hardest, triplet-semi-hard; over all pairs
    /// infonce, siglip, supcon, ms, ms-mined, circle, circle-full, triplet-all, contrastive, lifted, ranked-list; a sum such as
    /// `infonce + 0.5*hinge-con`; or many: goal, pairwise, all
    #[arg(long, default_value = "nca-sig")]
    pub objective: String,
    /// Train the weights that this file writes as formulas, in place of --objective (see README.md beside the program's source)
    #[arg(long, value_name = "FILE", conflicts_with = "objective")]
    pub expression: Option<PathBuf>,
    #[command(flatten)]
    pub parameters: Parameters,
    /// Where the objective is computed
    #[arg(long, value_enum, default_value = "auto", help_heading = "Run")]
    pub backend: BackendChoice,
    /// Seed of the weights and of the order of the batches
    #[arg(long, default_value_t = 0, help_heading = "Run")]
    pub seed: u64,
    /// Passes over the training pairs
    #[arg(long, default_value_t = 8, help_heading = "Run")]
    pub epochs: usize,
    /// Pairs per step; the last incomplete batch of an epoch is dropped
    #[arg(long, default_value_t = 128, help_heading = "Run")]
    pub batch: usize,
    /// Learning rate of Adam at the start; it decays to 0 along a cosine
    #[arg(long, default_value_t = 2e-3, help_heading = "Run")]
    pub lr: f64,
    /// Width of the joint space
    #[arg(long, default_value_t = 256, help_heading = "Run")]
    pub dim: usize,
    /// Width of a hidden ReLU layer per modality, 0 for none
    #[arg(long, default_value_t = 0, help_heading = "Run")]
    pub hidden: usize,
    /// Whether items of the anchor's group are kept from being its negatives
    #[arg(long, value_enum, default_value = "auto", help_heading = "Run")]
    pub groups: Masking,
    /// Write every metric to this file (schema in examples/train_retrieval/README.md)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Learning curves as SVG [default: train_retrieval.svg beside the program]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub plot: Option<PathBuf>,
}

/// Use of group ids in training; evaluation always uses them where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Masking {
    /// Where the data have class labels.
    Auto,
    /// Where the data have class labels or several captions per item.
    Yes,
    /// Never.
    No,
}

impl Args {
    /// Checks what clap cannot.
    pub fn check(&self) -> Outcome<()> {
        let at_least = |name, value: usize, least| {
            if value >= least {
                return Ok(());
            }
            Err(Failure::option(name, format!("is {value}, expected at least {least}")))
        };
        at_least("epochs", self.epochs, 1)?;
        at_least("batch", self.batch, 2)?;
        at_least("dim", self.dim, 1)?;
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(Failure::option("lr", format!("is {}, expected a finite number above 0", self.lr)));
        }
        match self.plot.as_ref().filter(|p| p.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg"))) {
            None => Ok(()),
            Some(path) => Err(Failure::option("plot", format!("is {}, expected a name in .svg", path.display()))),
        }
    }

    /// What to train: a whole family, or the baseline and then the chosen objective.
    pub fn objectives(&self) -> Outcome<Vec<Trained>> {
        let goal = || -> Outcome<Vec<Trained>> {
            let apply = |objective| self.parameters.apply(objective).map(Trained::Goal);
            Objective::all().into_iter().map(apply).collect()
        };
        let baseline = Trained::named(BASELINE, &self.parameters)?;
        if let Some(path) = &self.expression {
            return Ok(vec![baseline, Trained::written(path)?]);
        }
        match self.objective.as_str() {
            "goal" => goal(),
            "pairwise" => Ok([vec![baseline], Trained::pairwise()].concat()),
            "all" => Ok([goal()?, Trained::pairwise()].concat()),
            name => {
                let chosen = Trained::named(name, &self.parameters)?;
                Ok(if chosen == baseline { vec![baseline] } else { vec![baseline, chosen] })
            }
        }
    }
}

/// The hardest-triplet loss of VSE++, which every run reports for comparison.
pub const BASELINE: &str = "hinge-con";
