//! Options that the operations share, the same for the CPU and for CUDA.

/// Whether an operation normalises the rows of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Normalization {
    /// Rows are taken as they are; gradients are with respect to them.
    None,
    /// Rows are divided by their Euclidean norm on the fly; gradients go through the Jacobian of that division. A zero
    /// row stays zero and gets a zero gradient.
    #[default]
    L2,
}

/// Whether an output is replaced or added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriteMode {
    /// `out = result`; what was there is not read.
    #[default]
    Overwrite,
    /// `out += result`
    Accumulate,
}

/// How equal scores are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TiePolicy {
    /// The lower index comes first.
    #[default]
    LowestIndex,
    /// The positive comes first. A collapsed model scores perfectly under it: never report it alone.
    Optimistic,
    /// The positive comes last.
    Pessimistic,
}

/// One integer per row and per column; equal integers mean "the same thing". Only equality matters, not size.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// One id per row of `X`.
    pub rows: &'a [i64],
    /// One id per row of `Y`.
    pub cols: &'a [i64],
}

/// How products of f32 inputs are computed on CUDA. Ignored for 16-bit inputs, which tensor cores take as they are, and on the
/// CPU, where precision is always full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// Multiply-adds of f32 on the ordinary units.
    #[default]
    Full,
    /// On tensor cores, every element as two bf16 numbers, `v = hi + lo` but for at most `2⁻¹⁷ |v|`:
    ///
    /// `x · y ≈ Σ_k lo(x_k) hi(y_k) + Σ_k hi(x_k) lo(y_k) + Σ_k hi(x_k) hi(y_k)`
    ///
    /// in one f32 sum in that order. `lo(x) lo(y)` and the roundings of `lo` are at most `2⁻¹⁵ |x| |y|` together, and mostly
    /// cancel: for unit rows of `d` features of random signs their standard deviation is about `5e-6 / √d`. The sum rounds as
    /// that of bf16 inputs with `d` features does. docs/numerics.md has the derivation.
    ///
    /// Rows of any norm have that precision, as long as `|x| |y|` is not near the limits of f32. Zeros, NaN and infinities give
    /// what they give under [`Full`](Self::Full). Only where finite terms or sums of them leave the range of f32 may an infinity
    /// of one be NaN or, close to that limit, a number of the other.
    ///
    /// Costs three products of bf16, and 6 bytes of workspace per element of the inputs instead of at most 4. For steps over all
    /// pairs see [`PairwiseOptions::precision`](crate::PairwiseOptions::precision).
    SplitBf16,
}

/// Options of `cosine_matrix`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineOptions {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Every similarity is multiplied by this; default 1.
    pub scale: f64,
    /// Of f32 inputs on CUDA; default: [`Precision::Full`].
    pub precision: Precision,
}

impl Default for CosineOptions {
    fn default() -> Self {
        Self { normalization: Normalization::L2, scale: 1.0, precision: Precision::Full }
    }
}

/// Options of `mine`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MineOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// With groups, candidates of the anchor's own group are not negatives. Default: none.
    pub groups: Option<Groups<'a>>,
    /// Also report the second-best value. Default: no.
    pub second: bool,
}

/// Options of `goal_step` in host memory.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// As in [`MineOptions`]; same-group pairs are also left out of the sets behind the relative similarities.
    pub groups: Option<Groups<'a>>,
    /// Factor on the gradient, not on the report; default 1.
    pub upstream: f64,
    /// Default: [`WriteMode::Overwrite`].
    pub write: WriteMode,
}

impl Default for StepOptions<'_> {
    fn default() -> Self {
        Self { normalization: Normalization::L2, groups: None, upstream: 1.0, write: WriteMode::Overwrite }
    }
}

/// Options of `weighted_grad` in host memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradOptions {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Factor on the gradient; default 1.
    pub upstream: f64,
    /// Default: [`WriteMode::Overwrite`].
    pub write: WriteMode,
}

impl Default for GradOptions {
    fn default() -> Self {
        Self { normalization: Normalization::L2, upstream: 1.0, write: WriteMode::Overwrite }
    }
}

/// Options of `ranks` and `recall`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecallOptions<'a> {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// With groups, every candidate of the query's group is a positive; without, the candidate of the same index is.
    pub groups: Option<Groups<'a>>,
    /// Default: [`TiePolicy::LowestIndex`].
    pub ties: TiePolicy,
}

/// Options of `positive_ranks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PositiveRanksOptions {
    /// Default: [`Normalization::L2`].
    pub normalization: Normalization,
    /// Default: [`TiePolicy::LowestIndex`].
    pub ties: TiePolicy,
}
