//! Explicit choice between the CPU and CUDA, with one host-memory interface to both.
//!
//! Every method takes matrices in host memory and has the same meaning on every backend. On CUDA a call allocates device
//! memory, copies the inputs there, runs the operation, copies the results back and waits for them: right for tests,
//! tools and evaluation, and the wrong entry for a training loop on a GPU, which calls `simgrad::cuda` on its own
//! buffers and stream.

use crate::cpu::{self, Cpu};
#[cfg(feature = "cuda")]
use crate::cuda::host::{self, Cuda};
use crate::dtype::{Element, GradientOf};
use crate::error::{Error, Result};
use crate::expression::Expression;
use crate::matrix::{BatchMut, BatchRef, MatMut, MatRef};
use crate::memory_bank::BankColumns;
use crate::mined_triplet::{MinedTriplet, MinedTripletReport};
use crate::mixture::{MixtureReport, PairwisePart};
use crate::objective::Objective;
use crate::options::{
    CosineOptions, GradOptions, MineOptions, PositiveRanksOptions, RecallOptions, StepOptions, WriteMode,
};
use crate::outputs::{GradReport, Mined, PositiveRanks, Ranks, RetrievalReport, StepDetail, StepReport, WeightTriples};
use crate::pairwise::{PairwiseObjective, PairwiseOptions, PairwiseReport};
use crate::relevance::RelevantPairs;
use crate::top_k::{TopK, TopKOptions};

/// A place to compute.
///
/// A call on one backend is never served by another one. The results of a backend are the same from run to run; those
/// of different backends agree within rounding.
#[derive(Debug)]
#[non_exhaustive]
pub enum Backend {
    /// The CPU path; takes every element type.
    Cpu(Cpu),
    /// One CUDA device; takes `f32`, `f16` and `bf16`, for `f64` every call returns [`Error::UnsupportedDType`].
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

macro_rules! dispatch {
    ($self:ident, $op:ident($($arg:expr),*)) => {
        match $self {
            Self::Cpu(cpu) => cpu::$op(cpu, $($arg),*),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => host::$op(cuda, $($arg),*),
        }
    };
}

impl Backend {
    /// The CPU, with as many threads as the machine has cores.
    pub fn cpu() -> Self {
        Self::Cpu(Cpu::new())
    }

    /// The CUDA device number `ordinal`; never anything else.
    ///
    /// # Errors
    /// Why there is none: [`Error::CudaFeatureDisabled`], [`Error::KernelsNotBuilt`], [`Error::DriverNotFound`],
    /// [`Error::DeviceNotFound`], [`Error::DriverTooOld`], [`Error::UnsupportedArchitecture`], or another failure of the
    /// driver.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Cuda::new(ordinal).map(Self::Cuda);
        #[cfg(not(feature = "cuda"))]
        Err(Error::CudaFeatureDisabled)
    }

    /// The first CUDA device if it can be used, else the CPU together with the reason.
    pub fn auto() -> (Self, Option<Error>) {
        match Self::cuda(0) {
            Ok(cuda) => (cuda, None),
            Err(reason) => (Self::cpu(), Some(reason)),
        }
    }

    /// `cpu` or `cuda`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
        }
    }

    /// Euclidean norm of every row of `x` (`n × d`) into `norms` (`n`), without overflow or underflow of the squares.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `norms`, and on CUDA those of the device.
    pub fn row_norms<T: Element>(&self, x: MatRef<'_, T>, norms: &mut [T::Acc]) -> Result<()> {
        dispatch!(self, row_norms(x, norms))
    }

    /// `x_i / ‖x_i‖` into `out` (`n × d`). A zero row stays zero.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `out`, and on CUDA those of the device.
    pub fn normalize<T: Element>(&self, x: MatRef<'_, T>, out: MatMut<'_, T>) -> Result<()> {
        dispatch!(self, normalize(x, out))
    }

    /// `(g_i − x̂_i (x̂_i · g_i)) / ‖x_i‖` into or onto `dx` (`n × d`), with `g` = `grad_unit` (`n × d`), the gradient with
    /// respect to the normalised rows. Exactly 0 for a zero row.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `grad_unit` and `dx`, and on CUDA those of the device.
    pub fn normalize_backward<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        grad_unit: MatRef<'_, T::Acc>,
        write: WriteMode,
        dx: MatMut<'_, G>,
    ) -> Result<()> {
        dispatch!(self, normalize_backward(x, grad_unit, write, dx))
    }

    /// `scale · x_i · y_j` of every matrix of the batch: `[b, n, d] × [b, m, d] → [b, n, m]`.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y` and `out`, [`Error::InvalidOption`] for `scale`,
    /// [`Error::TooLarge`], and on CUDA those of the device.
    pub fn cosine_matrix<T: Element, O: Element<Acc = T::Acc>>(
        &self,
        x: BatchRef<'_, T>,
        y: BatchRef<'_, T>,
        options: &CosineOptions,
        out: BatchMut<'_, O>,
    ) -> Result<()> {
        dispatch!(self, cosine_matrix(x, y, options, out))
    }

    /// The hardest negative of every row of `x` (`n × d`) and of `y` (`m × d`), and the similarities of the pairs.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y` and the groups, [`Error::TooLarge`], and on CUDA those of
    /// the device.
    pub fn mine<T: Element>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        options: &MineOptions<'_>,
    ) -> Result<Mined<T::Acc>> {
        dispatch!(self, mine(x, y, options))
    }

    /// Up to `k` negatives of every row of `x` (`n × d`) and of `y` (`m × d`), by the rules of the options.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y` and the groups, [`Error::TooLarge`],
    /// [`Error::InvalidOption`] for the options, and on CUDA those of the device.
    pub fn mine_top_k<T: Element>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        options: &TopKOptions<'_>,
    ) -> Result<TopK<T::Acc>> {
        dispatch!(self, mine_top_k(x, y, options))
    }

    /// As [`mine_top_k`](Self::mine_top_k), with the entries of a bank as further candidates of the rows.
    ///
    /// # Errors
    /// As [`mine_top_k`](Self::mine_top_k), and [`Error::ShapeMismatch`] for the bank.
    pub fn mine_top_k_with_bank<T: Element>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        bank: &BankColumns<'_, T>,
        options: &TopKOptions<'_>,
    ) -> Result<TopK<T::Acc>> {
        dispatch!(self, mine_top_k_with_bank(x, y, bank, options))
    }

    /// `u W Y` into or onto `dx` (`n × d`) and `u Wᵀ X` into or onto `dy` (`m × d`), for the sparse `W` of the triples.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y`, the triples, `dx` and `dy`, [`Error::TooLarge`], and on
    /// CUDA those of the device.
    pub fn weighted_grad<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        w: &WeightTriples<'_, T::Acc>,
        options: &GradOptions,
        dx: MatMut<'_, G>,
        dy: MatMut<'_, G>,
    ) -> Result<GradReport> {
        dispatch!(self, weighted_grad(x, y, w, options, dx, dy))
    }

    /// One GOAL step for the pairs `(x_i, y_i)`: mining, weights, gradients into or onto `dx` and `dy` (all `n × d`), and
    /// the report.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y`, the groups, `dx` and `dy`, [`Error::TooLarge`], and on CUDA
    /// those of the device.
    pub fn goal_step<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        objective: &Objective,
        options: &StepOptions<'_>,
        dx: MatMut<'_, G>,
        dy: MatMut<'_, G>,
    ) -> Result<StepReport> {
        dispatch!(self, goal_step(x, y, objective, options, dx, dy))
    }

    /// As [`goal_step`](Self::goal_step), together with everything that led to the weights.
    ///
    /// # Errors
    /// As [`goal_step`](Self::goal_step).
    pub fn goal_step_detail<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        objective: &Objective,
        options: &StepOptions<'_>,
        dx: MatMut<'_, G>,
        dy: MatMut<'_, G>,
    ) -> Result<(StepReport, StepDetail<T::Acc>)> {
        dispatch!(self, goal_step_detail(x, y, objective, options, dx, dy))
    }

    /// One step of the triplet hinge on mined negatives of `x` (`n × d`) and `y` (`m × d`): gradients into or onto `dx` and
    /// `dy`, and the report.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y`, the groups, `dx` and `dy`, [`Error::InvalidOption`] for the
    /// objective, [`Error::TooLarge`], and on CUDA those of the device.
    pub fn mined_triplet_step<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        objective: &MinedTriplet,
        options: &StepOptions<'_>,
        dx: MatMut<'_, G>,
        dy: MatMut<'_, G>,
    ) -> Result<MinedTripletReport> {
        dispatch!(self, mined_triplet_step(x, y, objective, options, dx, dy))
    }

    /// One step of an objective over all pairs of `x` (`n × d`) and `y` (`m × d`): gradients into or onto `dx` and `dy`, and
    /// the report.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y`, the options, `dx` and `dy`, [`Error::InvalidOption`] for the
    /// objective and for options that it has no use for, [`Error::TooLarge`], and on CUDA those of the device.
    pub fn pairwise_step<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        objective: &PairwiseObjective,
        options: &PairwiseOptions<'_>,
        dx: MatMut<'_, G>,
        dy: MatMut<'_, G>,
    ) -> Result<PairwiseReport> {
        dispatch!(self, pairwise_step(x, y, objective, options, dx, dy))
    }

    /// As [`pairwise_step`](Self::pairwise_step) for `x` with itself, of which no row is its own candidate.
    ///
    /// # Errors
    /// As [`pairwise_step`](Self::pairwise_step).
    pub fn pairwise_step_single<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        objective: &PairwiseObjective,
        options: &PairwiseOptions<'_>,
        dx: MatMut<'_, G>,
    ) -> Result<PairwiseReport> {
        dispatch!(self, pairwise_step_single(x, objective, options, dx))
    }

    /// One step of a weighted sum of objectives over `x` (`n × d`) and `y` (`m × d`): gradients into or onto `dx` and `dy`,
    /// and a report of every part; with `conflict`, also the norms of and the cosines between the parts' gradients.
    ///
    /// # Errors
    /// As [`pairwise_step`](Self::pairwise_step), and [`Error::InvalidOption`] for no parts, for a weight that is not finite
    /// (on CUDA: in f32) and for options that a GOAL part does not keep to.
    #[allow(clippy::too_many_arguments)]
    pub fn pairwise_mixture<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        parts: &[PairwisePart],
        options: &PairwiseOptions<'_>,
        conflict: bool,
        dx: MatMut<'_, G>,
        dy: MatMut<'_, G>,
    ) -> Result<MixtureReport> {
        dispatch!(self, pairwise_mixture(x, y, parts, options, conflict, dx, dy))
    }

    /// As [`pairwise_mixture`](Self::pairwise_mixture) for `x` with itself, of which no row is its own candidate.
    ///
    /// # Errors
    /// As [`pairwise_mixture`](Self::pairwise_mixture).
    pub fn pairwise_mixture_single<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        parts: &[PairwisePart],
        options: &PairwiseOptions<'_>,
        conflict: bool,
        dx: MatMut<'_, G>,
    ) -> Result<MixtureReport> {
        dispatch!(self, pairwise_mixture_single(x, parts, options, conflict, dx))
    }

    /// One step of an objective that is written as formulas: gradients into or onto `dx` (`n × d`) and `dy` (`m × d`), and the
    /// report, whose loss is `Σ W S`. On CUDA the formulas are compiled when they are met first, and the
    /// last 64 are kept: a number in the text that changes with every step is compiled anew at every step.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y`, the options, `dx` and `dy`, [`Error::InvalidOption`] for options
    /// that formulas have no use for, [`Error::TooLarge`], and on CUDA those of the device and of
    #[cfg_attr(feature = "cuda", doc = "[`CompiledExpression::compile`](crate::cuda::CompiledExpression::compile).")]
    #[cfg_attr(not(feature = "cuda"), doc = "the compilation.")]
    pub fn pairwise_step_custom<T: Element, G: GradientOf<T>>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        expression: &Expression,
        options: &PairwiseOptions<'_>,
        dx: MatMut<'_, G>,
        dy: MatMut<'_, G>,
    ) -> Result<PairwiseReport> {
        dispatch!(self, pairwise_step_custom(x, y, expression, options, dx, dy))
    }

    /// The rank of the best positive of every row of `x` (`n × d`) among the rows of `y` (`m × d`), and the other way.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y` and the groups, [`Error::TooLarge`], and on CUDA those of
    /// the device.
    pub fn ranks<T: Element>(&self, x: MatRef<'_, T>, y: MatRef<'_, T>, options: &RecallOptions<'_>) -> Result<Ranks> {
        dispatch!(self, ranks(x, y, options))
    }

    /// Recall at 1, 5 and 10, median and mean rank of both directions.
    ///
    /// # Errors
    /// As [`ranks`](Self::ranks).
    pub fn recall<T: Element>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        options: &RecallOptions<'_>,
    ) -> Result<RetrievalReport> {
        self.ranks(x, y, options).map(|ranks| RetrievalReport::from_ranks(&ranks))
    }

    /// The rank of every relevant pair among the rows of `y` (`m × d`) for the rows of `x` (`n × d`), and the other way.
    ///
    /// # Errors
    /// [`Error::EmptyDim`], [`Error::ShapeMismatch`] for `y` and `relevant`, [`Error::TooLarge`], and on CUDA those of
    /// the device.
    pub fn positive_ranks<T: Element>(
        &self,
        x: MatRef<'_, T>,
        y: MatRef<'_, T>,
        relevant: &RelevantPairs,
        options: &PositiveRanksOptions,
    ) -> Result<PositiveRanks> {
        dispatch!(self, positive_ranks(x, y, relevant, options))
    }
}
