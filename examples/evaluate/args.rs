//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use simgrad::{CaptionProtocol, EvaluationOptions, Gain, MetricOptions, Normalization, TiePolicy};

use crate::common::backend::BackendChoice;
use crate::common::{Failure, Outcome};

/// Retrieval figures of two files of embeddings: recalls, ranks, mAP@R, R-precision, MRR, nDCG, both ways.
///
/// See README.md beside the source for the protocols and the meaning of every column.
#[derive(Parser, Debug)]
pub struct Args {
    /// Embeddings of the items ("images"), rows × columns
    #[arg(value_name = "IMAGES.npy")]
    pub x: PathBuf,
    /// Embeddings of their captions ("texts"), rows × the same columns
    #[arg(value_name = "TEXTS.npy")]
    pub y: PathBuf,
    /// Which rows belong together, and in how many folds they are ranked
    #[arg(long, value_enum, default_value = "pairs")]
    pub protocol: ProtocolName,
    /// Captions of each item, one after the other; default 5, for pairs 1
    #[arg(long, value_name = "N")]
    pub captions: Option<usize>,
    /// One integer per row of IMAGES: rows of the same integer belong together; only with pairs
    #[arg(long, value_name = "IDS.npy", requires = "groups_y", help_heading = "Relevance")]
    pub groups_x: Option<PathBuf>,
    /// One integer per row of TEXTS
    #[arg(long, value_name = "IDS.npy", requires = "groups_x", help_heading = "Relevance")]
    pub groups_y: Option<PathBuf>,
    /// Pairs that belong together, pairs × 2 or 3: row of IMAGES, row of TEXTS, grade; only with pairs
    #[arg(long, value_name = "PAIRS.npy", conflicts_with = "groups_x", help_heading = "Relevance")]
    pub relevant: Option<PathBuf>,
    /// How equal similarities are ranked
    #[arg(long, value_enum, default_value = "lowest", help_heading = "Figures")]
    pub ties: Ties,
    /// The values of K in R@K and nDCG@K
    #[arg(long, value_delimiter = ',', default_value = "1,5,10", help_heading = "Figures")]
    pub cutoffs: Vec<usize>,
    /// What a grade is worth in nDCG
    #[arg(long, value_enum, default_value = "exponential", help_heading = "Figures")]
    pub gain: GainName,
    /// yes: cosine similarities; no: inner products of the rows as they are
    #[arg(long, value_enum, default_value = "yes", help_heading = "Figures")]
    pub normalize: YesNo,
    /// Where the ranks are counted
    #[arg(long, value_enum, default_value = "auto", help_heading = "Figures")]
    pub backend: BackendChoice,
}

/// Which rows belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// 5,000 items in five folds of 1,000, the mean of the folds.
    #[value(name = "coco-1k")]
    Coco1k,
    /// 5,000 items at once.
    #[value(name = "coco-5k")]
    Coco5k,
    /// 1,000 items.
    Flickr30k,
    /// All items at once, however many.
    Pairs,
}

/// How equal similarities are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ties {
    /// By index.
    Lowest,
    /// Right answers first: an upper bound.
    Optimistic,
    /// Right answers last: a lower bound.
    Pessimistic,
}

/// What a grade is worth in nDCG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GainName {
    /// 2^grade − 1.
    Exponential,
    /// The grade.
    Linear,
}

/// `yes` or `no`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum YesNo {
    /// Yes.
    Yes,
    /// No.
    No,
}

impl Args {
    /// Checks what needs no file.
    pub fn check(&self) -> Outcome<()> {
        if self.captions == Some(0) {
            return Err(Failure::option("captions", "is 0, expected at least 1"));
        }
        if self.cutoffs.contains(&0) {
            return Err(Failure::option("cutoffs", "has a 0, expected numbers of at least 1"));
        }
        if self.explicit() && self.protocol != ProtocolName::Pairs {
            let message = "has its captions in order; --groups-x, --groups-y and --relevant go with pairs";
            return Err(Failure::option("protocol", message));
        }
        if self.explicit() && self.captions.is_some() {
            return Err(Failure::option("captions", "cannot be combined with --groups-x, --groups-y or --relevant"));
        }
        Ok(())
    }

    /// Whether a file says what belongs together.
    fn explicit(&self) -> bool {
        self.groups_x.is_some() || self.relevant.is_some()
    }

    /// The protocol for files of `rows` items or captions.
    pub fn protocol(&self, x_rows: usize, y_rows: usize) -> CaptionProtocol {
        let named = match self.protocol {
            ProtocolName::Coco1k => CaptionProtocol::COCO_1K,
            ProtocolName::Coco5k => CaptionProtocol::COCO_5K,
            ProtocolName::Flickr30k => CaptionProtocol::FLICKR30K_1K,
            ProtocolName::Pairs => {
                let captions = self.captions.unwrap_or(1);
                // The items may be repeated for each of their captions.
                let items = if x_rows == y_rows { x_rows / captions } else { x_rows };
                CaptionProtocol { items, captions, folds: 1 }
            }
        };
        CaptionProtocol { captions: self.captions.unwrap_or(named.captions), ..named }
    }

    /// The options of the evaluation.
    pub fn options(&self) -> EvaluationOptions {
        EvaluationOptions {
            normalization: if self.normalize == YesNo::Yes { Normalization::L2 } else { Normalization::None },
            ties: match self.ties {
                Ties::Lowest => TiePolicy::LowestIndex,
                Ties::Optimistic => TiePolicy::Optimistic,
                Ties::Pessimistic => TiePolicy::Pessimistic,
            },
            metrics: MetricOptions {
                cutoffs: self.cutoffs.clone(),
                gain: if self.gain == GainName::Linear { Gain::Linear } else { Gain::Exponential },
            },
        }
    }
}
