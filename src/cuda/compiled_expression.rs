//! Objectives as text, compiled for the device.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, DriverError};
use cudarc::nvrtc::Ptx;

use super::driver::{describe, is_sticky};
use super::kernels::Kernels;
use super::nvrtc::{self, Failure};
use super::probe::driver_version;
use super::scope::Scope;
use crate::custom::PairObjective;
use crate::error::{Error, Result};
use crate::expression::Expression;

const OP: &str = Expression::COMPILE;

const SOURCE: &str = include_str!("../../kernels/pairwise_custom.cu");

/// What the source includes, beside the formulas. NVRTC has no headers of its own.
const HEADERS: [(&str, &str); 6] = [
    ("stdint.h", STDINT),
    ("common/order.cuh", include_str!("../../kernels/common/order.cuh")),
    ("common/pair_view.cuh", include_str!("../../kernels/common/pair_view.cuh")),
    ("common/reduce.cuh", include_str!("../../kernels/common/reduce.cuh")),
    ("params/pairwise.h", include_str!("../../kernels/params/pairwise.h")),
    ("params/pairwise_custom.h", include_str!("../../kernels/params/pairwise_custom.h")),
];

const STDINT: &str = "#pragma once
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef long long int64_t;
typedef decltype(sizeof(0)) size_t;
";

/// A kernel of `kernels/pairwise_custom.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CustomKernel {
    Rows,
    Cols,
    Anchors,
    NearRows,
    NearCols,
    NearFinish,
    WeightsF32,
    WeightsBf16,
}

/// The names, in the order of [`CustomKernel`].
const NAMES: [&str; 8] = [
    "pairwise_custom_rows",
    "pairwise_custom_cols",
    "pairwise_custom_anchors",
    "pairwise_custom_near_rows",
    "pairwise_custom_near_cols",
    "pairwise_custom_near_finish",
    "pairwise_custom_weights_f32",
    "pairwise_custom_weights_bf16",
];

/// The kernels of one set of formulas, in the order of [`CustomKernel`].
struct Functions {
    kernels: [CudaFunction; NAMES.len()],
    // Last, so that the module is unloaded while the context lives.
    context: Arc<CudaContext>,
}

/// Everything that was compiled in one context, by the formulas' code.
#[derive(Default)]
pub(super) struct Compiled(HashMap<String, Arc<Functions>>);

/// An [`Expression`] compiled for the device of some [`Kernels`]. Cheap to clone.
#[derive(Clone)]
pub struct CompiledExpression {
    functions: Arc<Functions>,
    one_positive: bool,
    near_pairs: bool,
    source: Arc<str>,
}

impl std::fmt::Debug for CompiledExpression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { one_positive, source, .. } = self;
        f.debug_struct("CompiledExpression")
            .field("source", source)
            .field("one_positive", one_positive)
            .finish_non_exhaustive()
    }
}

impl CompiledExpression {
    /// Compiles with NVRTC, in some tenths of a second, and loads what comes out. Formulas that were compiled with the same
    /// `kernels` before are taken from there, where they stay as long as the kernels do.
    ///
    /// Needs `libnvrtc.so` (13 or 12, with its companion `libnvrtc-builtins`) in the loader's search path or in the folder that
    /// the environment variable `SIMGRAD_NVRTC` names. Allocates device memory for the code, may synchronise; call it before a
    /// stream capture begins. Arithmetic on CUDA is f32: numbers that it cannot hold are refused.
    ///
    /// # Errors
    /// [`Error::NvrtcNotFound`]; [`Error::InvalidOption`] that shows the expression, for what CUDA does not have;
    /// [`Error::ExpressionRejected`] with what the compiler said; [`Error::NvrtcTooNew`] for an NVRTC of a newer toolkit
    /// than the driver, [`Error::ImageRejected`], [`Error::OutOfMemory`], [`Error::ContextPoisoned`] or [`Error::Driver`].
    pub fn compile(kernels: &Kernels, expression: &Expression) -> Result<Self> {
        let code = expression.device_code()?;
        let mut compiled = kernels.compiled();
        let functions = match compiled.0.get(&code) {
            Some(functions) => functions.clone(),
            None => {
                let ptx = to_ptx(&code, expression.source(), kernels.device().compute_capability)?;
                let functions = load(kernels, ptx)?;
                compiled.0.insert(code, functions.clone());
                functions
            }
        };
        Ok(Self {
            functions,
            one_positive: expression.one_positive(),
            near_pairs: expression.has_near_pairs(),
            source: expression.source().into(),
        })
    }

    /// The text of the expression.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether an anchor's own pair is its only positive, as in [`PairObjective::one_positive`].
    pub fn one_positive(&self) -> bool {
        self.one_positive
    }

    /// Whether there are means over near pairs, see [`PairObjective::slack`].
    pub(super) fn near_pairs(&self) -> bool {
        self.near_pairs
    }

    /// Whether it is the same code as `other`'s, compiled once.
    pub fn same_code(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.functions, &other.functions)
    }

    /// Refuses kernels of another context.
    pub(super) fn check(&self, op: &'static str, kernels: &Kernels) -> Result<()> {
        kernels.check_context(op, "expression", &self.functions.context)
    }

    pub(super) fn function(&self, kernel: CustomKernel) -> (&'static str, CUfunction) {
        let at = kernel as usize;
        (NAMES[at], self.functions.kernels[at].cu_function())
    }
}

/// PTX of the kernels with these formulas.
fn to_ptx(formulas: &str, expression: &str, capability: (i32, i32)) -> Result<String> {
    let formulas = format!("#pragma once\n{formulas}");
    let headers = [&HEADERS[..], &[("common/pair_formulas.cuh", &formulas)]].concat();
    nvrtc::compile("pairwise_custom.cu", SOURCE, &headers, capability).map_err(|failure| match failure {
        Failure::Source(log) => Error::ExpressionRejected { expression: expression.to_owned(), log },
        Failure::Other(error) => error,
    })
}

fn load(kernels: &Kernels, ptx: String) -> Result<Arc<Functions>> {
    let context = kernels.context();
    let _scope = Scope::enter(OP, context)?;
    let bytes = ptx.len();
    let failed = |kernel: &'static str, error: DriverError| match error.0 {
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::NvrtcTooNew { driver: driver_version() },
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { op: OP, wanted: bytes },
        code if is_sticky(code) => Error::ContextPoisoned { op: OP, detail: describe(code) },
        code => Error::ImageRejected { kernel, detail: describe(code) },
    };
    let module = context.load_module(Ptx::from_src(ptx)).map_err(|e| failed("pairwise_custom", e))?;
    let function = |name| module.load_function(name).map_err(|e| failed(name, e));
    let [rows, cols, anchors, near_rows, near_cols, near_finish, weights_f32, weights_bf16] = NAMES;
    let kernels = [
        function(rows)?,
        function(cols)?,
        function(anchors)?,
        function(near_rows)?,
        function(near_cols)?,
        function(near_finish)?,
        function(weights_f32)?,
        function(weights_bf16)?,
    ];
    Ok(Arc::new(Functions { kernels, context: context.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether NVRTC is there; says so if not, and fails if it has to be.
    fn nvrtc_present<T>(result: &Result<T>) -> bool {
        let Err(missing @ Error::NvrtcNotFound { .. }) = result else { return true };
        let required = std::env::var_os("SIMGRAD_REQUIRE_GPU").is_some_and(|v| v != "0" && !v.is_empty());
        assert!(!required, "SIMGRAD_REQUIRE_GPU is set, but {missing}");
        eprintln!("note: skipped: {missing}");
        false
    }

    #[test]
    fn formulas_compile_for_every_generation_without_local_memory() {
        let text = "logit = 9 * s\nnear_negative = exp(s - hardest)\nnear_positive = sqrt(pair - s)\n\
                    negative = exp(logit - row.lse) * hardest_of_col / (1 + row.near_negatives)\n\
                    positive = -softplus(col.pair) - col.near_positives";
        let code = text.parse::<Expression>().unwrap().device_code().unwrap();
        for capability in [(8, 0), (9, 0), (10, 0), (99, 0)] {
            let ptx = to_ptx(&code, text, capability);
            if !nvrtc_present(&ptx) {
                return;
            }
            let ptx = ptx.unwrap();
            assert!(!ptx.contains(".local "), "local memory");
            assert!(NAMES.iter().all(|name| ptx.contains(name)));
        }
    }

    #[test]
    fn what_the_compiler_says_comes_with_the_expression() {
        let refused = to_ptx("constexpr bool kUsesSums = undeclared_name;", "negative = s # mine", (8, 0));
        if nvrtc_present(&refused) {
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("undeclared_name") && text.contains("negative = s # mine"), "{text}");
        }
    }
}
