//! Objectives as text, compiled for the device.

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

/// Beyond so many sets of formulas, those that nobody holds are unloaded.
const KEPT: usize = 64;

const SOURCE: &str = include_str!("../../kernels/pairwise_custom.cu");

/// What the source includes, beside the formulas. NVRTC has no headers of its own.
const HEADERS: [(&str, &str); 7] = [
    ("stdint.h", STDINT),
    ("common/order.cuh", include_str!("../../kernels/common/order.cuh")),
    ("common/pair_view.cuh", include_str!("../../kernels/common/pair_view.cuh")),
    ("common/pairwise_custom.cuh", include_str!("../../kernels/common/pairwise_custom.cuh")),
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
pub(super) struct Functions {
    kernels: [CudaFunction; NAMES.len()],
    // Last, so that the module is unloaded while the context lives.
    context: Arc<CudaContext>,
}

/// What was compiled with one [`Kernels`].
pub(super) type Compiled = Cache<Functions>;

/// The formulas' code and what was made of it.
type Entry<V> = (String, Arc<V>);

/// Entries by their code, in the order in which they were last asked for.
pub(super) struct Cache<V>(Vec<Entry<V>>);

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Cache<V> {
    fn get(&mut self, code: &str) -> Option<Arc<V>> {
        let at = self.0.iter().rposition(|(known, _)| known == code)?;
        self.0[at..].rotate_left(1);
        self.0.last().map(|(_, value)| value.clone())
    }

    /// The entry of this code; `value` only if there is none yet.
    fn insert(&mut self, code: String, value: &Arc<V>) -> Arc<V> {
        self.get(&code).unwrap_or_else(|| {
            self.0.push((code, value.clone()));
            value.clone()
        })
    }

    /// Takes out what is beyond [`KEPT`] entries, the oldest first, but nothing that is held elsewhere.
    fn take_surplus(&mut self) -> Vec<Entry<V>> {
        let mut surplus = self.0.len().saturating_sub(KEPT);
        let mut take = |(_, value): &mut Entry<V>| {
            // Not the count alone: what its last holder did with it comes before what is done to it now.
            let taken = surplus > 0 && Arc::get_mut(value).is_some();
            surplus -= usize::from(taken);
            taken
        };
        self.0.extract_if(.., |entry| take(entry)).collect()
    }

    /// Undoes [`Self::take_surplus`]. An entry of the same code that came in between is the younger one.
    fn put_back(&mut self, surplus: Vec<Entry<V>>) {
        self.0.splice(0..0, surplus);
    }
}

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
    /// `kernels` before are taken from there. A number is part of the formulas: one that changes with every step is compiled
    /// anew at every step. Threads can compile at the same time; of the same formulas the first to finish is kept.
    ///
    /// `kernels` keep 64 sets of formulas. Beyond that, those of which there is no `CompiledExpression` are unloaded, the ones
    /// that were asked for the longest ago first, after the context was synchronised; if it cannot be, they stay for now. A
    /// captured graph does not count: keep the `CompiledExpression` for as long as a graph that was captured with it is launched.
    ///
    /// Needs `libnvrtc.so` (13 or 12, with its companion `libnvrtc-builtins`) in the loader's search path or in the folder that
    /// the environment variable `SIMGRAD_NVRTC` names. Allocates device memory for the code, may synchronise the context; call it
    /// while no stream of the context is being captured. Arithmetic on CUDA is f32: numbers that it cannot hold are refused.
    ///
    /// # Errors
    /// [`Error::NvrtcNotFound`]; [`Error::InvalidOption`] that shows the expression, for what CUDA does not have;
    /// [`Error::ExpressionRejected`] with what the compiler said; [`Error::NvrtcTooNew`] for an NVRTC of a newer toolkit
    /// than the driver, [`Error::ImageRejected`], [`Error::OutOfMemory`], [`Error::ContextPoisoned`] or [`Error::Driver`].
    pub fn compile(kernels: &Kernels, expression: &Expression) -> Result<Self> {
        let code = expression.device_code()?;
        // Not held for the compilation, so that others can go on with what they have.
        let known = kernels.compiled().get(&code);
        let functions = match known {
            Some(functions) => functions,
            None => compile_anew(kernels, code, expression.source())?,
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

fn compile_anew(kernels: &Kernels, code: String, expression: &str) -> Result<Arc<Functions>> {
    let ptx = to_ptx(&code, expression, kernels.device().compute_capability)?;
    // Unloading, too, makes the context current.
    let _scope = Scope::enter(OP, kernels.context())?;
    let loaded = load(kernels, ptx)?;
    let functions = kernels.compiled().insert(code, &loaded);
    let surplus = kernels.compiled().take_surplus();
    if !surplus.is_empty() {
        // Their kernels may be at work still. Nobody can start one any more: they are in no one's hands.
        match kernels.context().synchronize() {
            Ok(()) => drop(surplus),
            Err(error) => {
                kernels.note(error);
                kernels.compiled().put_back(surplus);
            }
        }
    }
    Ok(functions)
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
    fn the_cache_gives_up_the_oldest_that_nobody_holds() {
        let mut cache = Cache::default();
        let code = |i: usize| format!("code {i}");
        let held = cache.insert(code(0), &Arc::new(0));
        for i in 1..KEPT {
            cache.insert(code(i), &Arc::new(i));
        }
        assert!(cache.take_surplus().is_empty());
        // The first of two that were compiled at once stays.
        assert_eq!(*cache.insert(code(2), &Arc::new(1000)), 2);
        // 1 and 2 are as if they were new, so that 3 and 4 are the oldest beside 0, which is held.
        assert_eq!(cache.get(&code(1)).as_deref(), Some(&1));
        cache.insert(code(KEPT), &Arc::new(KEPT));
        cache.insert(code(KEPT + 1), &Arc::new(KEPT + 1));
        let surplus = cache.take_surplus();
        assert_eq!(surplus.iter().map(|(_, value)| **value).collect::<Vec<_>>(), [3, 4]);
        assert_eq!((cache.0.len(), cache.get(&code(3))), (KEPT, None));
        // What came in the meantime is what is found, and the other is the first to go.
        cache.insert(code(3), &Arc::new(3000));
        cache.put_back(surplus);
        assert_eq!(cache.get(&code(3)).as_deref(), Some(&3000));
        assert_eq!(cache.get(&code(4)).as_deref(), Some(&4));
        let surplus = cache.take_surplus();
        assert_eq!(surplus.iter().map(|(_, value)| **value).collect::<Vec<_>>(), [3, 5, 6]);
        assert_eq!(cache.get(&code(0)).map(|value| Arc::ptr_eq(&value, &held)), Some(true));
    }

    #[test]
    fn everything_that_is_held_stays() {
        let mut cache = Cache::default();
        let held: Vec<_> = (0..2 * KEPT).map(|i| cache.insert(i.to_string(), &Arc::new(i))).collect();
        assert!(cache.take_surplus().is_empty());
        drop(held);
        assert_eq!(cache.take_surplus().len(), KEPT);
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
