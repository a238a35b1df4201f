//! The operations, by name, and the sixteen configurations that they are compared in.

use simgrad::cuda::{PAIRWISE_WAVE_BYTES, Plan, PlanDevice};
use simgrad::{CosineOptions, DType, Error, Fallback, Objective, PairwiseObjective, Precision, TopKOptions};

/// What is planned, and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// All similarities, in f32.
    CosineMatrix,
    /// The same, of f32 rows in parts of bf16.
    CosineSplit,
    /// The hardest negative of every row and column.
    Mine,
    /// Eight semi-hard negatives of every row and column.
    SemiHard,
    /// Log-sum-exp of every row and column: what InfoNCE does before its weights.
    Lse,
    /// Loss and gradients of CLIP.
    InfoNce,
    /// The same, of f32 rows in parts of bf16.
    InfoNceSplit,
    /// Loss and gradients of SigLIP.
    SigLip,
    /// A gradient from three triples per row.
    WeightedGrad,
    /// A step of the GOAL family, nca-sig.
    Goal,
    /// Ranks of the best positives, with groups.
    Ranks,
}

impl Op {
    /// Every operation and its name.
    pub const ALL: [(&'static str, Self); 11] = [
        ("cosine_matrix", Self::CosineMatrix),
        ("cosine_split", Self::CosineSplit),
        ("mine", Self::Mine),
        ("semi_hard", Self::SemiHard),
        ("lse", Self::Lse),
        ("infonce", Self::InfoNce),
        ("infonce_split", Self::InfoNceSplit),
        ("siglip", Self::SigLip),
        ("weighted_grad", Self::WeightedGrad),
        ("goal", Self::Goal),
        ("ranks", Self::Ranks),
    ];

    /// Products of `n m d` in the least implementation.
    pub fn products(self) -> f64 {
        match self {
            Self::CosineMatrix | Self::CosineSplit => 1.0,
            Self::Mine | Self::SemiHard | Self::Lse | Self::Goal | Self::Ranks => 1.0,
            Self::InfoNce | Self::InfoNceSplit | Self::SigLip => 3.0,
            Self::WeightedGrad => 0.0,
        }
    }

    /// How it multiplies f32.
    pub fn precision(self) -> Precision {
        match self {
            Self::CosineSplit | Self::InfoNceSplit => Precision::SplitBf16,
            _ => Precision::Full,
        }
    }

    /// Options of similarities, if they are what it computes.
    pub fn similarities(self) -> Option<CosineOptions> {
        let precision = self.precision();
        let is_it = matches!(self, Self::CosineMatrix | Self::CosineSplit);
        is_it.then(|| CosineOptions { precision, ..CosineOptions::default() })
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, op)| *op == self).map_or("", |(name, _)| name)
    }
}

/// One operation on one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    pub op: Op,
    pub batch: usize,
    pub n: usize,
    pub m: usize,
    pub d: usize,
    pub dtype: DType,
}

/// Scale of InfoNCE, that of a trained CLIP.
pub const SCALE: f64 = 100.0;

/// The objective of GOAL steps.
pub fn goal_objective() -> Result<Objective, Error> {
    "nca-sig".parse()
}

/// SigLIP with its default parameters.
pub fn siglip() -> Result<PairwiseObjective, Error> {
    "siglip".parse()
}

/// Eight semi-hard negatives.
pub fn semi_hard() -> TopKOptions<'static> {
    TopKOptions::semi_hard(8, Fallback::Skip)
}

impl Case {
    pub const fn new(op: Op, n: usize, m: usize, d: usize, dtype: DType) -> Self {
        Self { op, batch: 1, n, m, d, dtype }
    }

    /// How it will be computed, with gradients and similarities in f32.
    pub fn plan(&self, device: PlanDevice) -> Result<Plan, Error> {
        let Self { batch, n, m, d, dtype, .. } = *self;
        let (wide, precision) = (DType::F32, self.op.precision());
        match self.op {
            Op::CosineMatrix | Op::CosineSplit => Plan::cosine_matrix(batch, n, m, d, dtype, wide, precision, device),
            Op::Mine => Plan::mine(n, m, d, dtype, device),
            Op::SemiHard => Plan::mine_top_k(n, m, d, dtype, &semi_hard(), device),
            Op::Lse => Plan::pairwise_statistics(n, m, d, dtype, &PairwiseObjective::InfoNce { scale: SCALE }, device),
            Op::InfoNce | Op::InfoNceSplit | Op::SigLip => {
                let info_nce = PairwiseObjective::InfoNce { scale: SCALE };
                let objective = if self.op == Op::SigLip { siglip()? } else { info_nce };
                let wave_bytes = PAIRWISE_WAVE_BYTES;
                Plan::pairwise_step(n, m, d, dtype, wide, &objective, wave_bytes, 0, precision, device)
            }
            Op::WeightedGrad => Plan::weighted_grad(n, m, d, dtype, wide, 3 * n, device),
            Op::Goal => Plan::goal_step(n, d, dtype, wide, &goal_objective()?, device),
            Op::Ranks => Plan::ranks(n, m, d, dtype, true, device),
        }
    }

    /// `mine 16384 16384 512 bf16`
    pub fn text(&self) -> String {
        let Self { op, batch, n, m, d, dtype } = self;
        let batch = if *batch > 1 { format!("{batch} x ") } else { String::new() };
        format!("{} {batch}{n} {m} {d} {dtype}", op.name())
    }
}

/// A configuration of the comparison: its number, what it is of, and what is run today where that is something else.
pub struct Configuration {
    pub number: u32,
    pub title: &'static str,
    pub case: Case,
    pub note: &'static str,
}

const fn configuration(number: u32, title: &'static str, case: Case, note: &'static str) -> Configuration {
    Configuration { number, title, case, note }
}

const fn square(op: Op, n: usize, d: usize, dtype: DType) -> Case {
    Case::new(op, n, n, d, dtype)
}

/// The sixteen configurations; number 14 is several shapes in two types.
pub const CONFIGURATIONS: [Configuration; 22] = {
    use DType::{Bf16, F16, F32};
    use Op::{CosineMatrix, CosineSplit, Goal, InfoNce, Lse, Mine, Ranks, SemiHard, SigLip, WeightedGrad};
    let batched = Case { batch: 64, ..Case::new(CosineMatrix, 512, 512, 512, F16) };
    [
        configuration(1, "similarities in f32", square(CosineMatrix, 16384, 512, Bf16), ""),
        configuration(
            2,
            "similarities of f32",
            square(CosineMatrix, 8192, 1024, F32),
            "in full precision, the default: multiply-adds of f32",
        ),
        configuration(
            2,
            "similarities of f32",
            square(CosineSplit, 8192, 1024, F32),
            "with `Precision::SplitBf16`: rows in parts of bf16",
        ),
        configuration(3, "batched similarities", batched, ""),
        configuration(4, "hardest negatives", square(Mine, 16384, 512, Bf16), ""),
        configuration(5, "hardest negatives", square(Mine, 65536, 1024, Bf16), ""),
        configuration(
            6,
            "hardest negatives of f32, exact",
            square(Mine, 32768, 512, F32),
            "through a screen: two products in f16, and few similarities in f32",
        ),
        configuration(7, "eight semi-hard negatives", square(SemiHard, 16384, 512, Bf16), ""),
        configuration(
            8,
            "log-sum-exp of rows and columns",
            square(Lse, 32768, 512, Bf16),
            "the first launches of a step",
        ),
        configuration(9, "CLIP, loss and gradients", square(InfoNce, 4096, 512, Bf16), ""),
        configuration(10, "CLIP, loss and gradients", square(InfoNce, 32768, 768, Bf16), ""),
        configuration(11, "CLIP in bounded memory", square(InfoNce, 131_072, 512, Bf16), ""),
        configuration(12, "SigLIP, loss and gradients", square(SigLip, 32768, 768, Bf16), ""),
        configuration(13, "sparse gradient", square(WeightedGrad, 65536, 1024, Bf16), "three triples per row"),
        configuration(14, "GOAL step", square(Goal, 128, 1024, Bf16), ""),
        configuration(14, "GOAL step", square(Goal, 512, 1024, Bf16), ""),
        configuration(14, "GOAL step", square(Goal, 1024, 1024, Bf16), ""),
        configuration(14, "GOAL step", square(Goal, 128, 1024, F32), ""),
        configuration(14, "GOAL step", square(Goal, 512, 1024, F32), ""),
        configuration(14, "GOAL step", square(Goal, 1024, 1024, F32), ""),
        configuration(
            15,
            "ranks both ways",
            Case::new(Ranks, 5000, 25000, 1024, F16),
            "positives are groups, whose best a sweep of its own finds first",
        ),
        configuration(16, "hardest negatives, ragged", Case::new(Mine, 10007, 9973, 640, Bf16), ""),
    ]
};
