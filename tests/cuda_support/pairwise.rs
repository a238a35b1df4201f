//! A step over all pairs on device memory, of an objective, a mixture or formulas, and what their contract tests do with it.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaViewMut};
use half::bf16;
use simgrad::cuda::*;
use simgrad::{
    DType, Error, GradientOf, MatMut, MatRef, Normalization, PairwiseObjective, PairwiseOptions, PairwisePart,
    PairwiseReport, Precision, Result, WriteMode,
};

use super::{Guarded, by_groups, capture, child, hot, kernel_nodes, numbers, say, turn};

pub const L2: Normalization = Normalization::L2;

/// Memory that a step is granted: for weights, for similarities.
pub type Grant = (usize, usize);
pub const PLENTY: Grant = (PAIRWISE_WAVE_BYTES, 0);

/// What a step is of.
pub trait StepOf {
    /// How many reports it fills.
    fn reports(&self) -> usize {
        1
    }

    /// With `conflict` for a step that compares the gradients of parts.
    fn workspace_bytes(&self, shape: [usize; 3], dtype: DType, grant: Grant, conflict: bool) -> Result<usize>;

    fn enqueue<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        a: Arguments<'_, T, G>,
    ) -> Result<()>;
}

/// The buffers and the options of a step.
pub struct Arguments<'a, T, G> {
    x: DeviceMat<'a, T>,
    y: DeviceMat<'a, T>,
    options: DevicePairwiseOptions<'a>,
    dx: DeviceMatMut<'a, G>,
    dy: DeviceMatMut<'a, G>,
    reports: CudaViewMut<'a, PairwiseReport>,
    conflict: Option<CudaViewMut<'a, f64>>,
    workspace: CudaViewMut<'a, u8>,
}

impl StepOf for PairwiseObjective {
    fn workspace_bytes(
        &self,
        [n, m, d]: [usize; 3],
        dtype: DType,
        (wave, keep): Grant,
        conflict: bool,
    ) -> Result<usize> {
        assert!(!conflict, "an objective has no parts");
        pairwise_workspace_bytes(n, m, d, dtype, self, L2, wave, keep, Precision::Full)
    }

    fn enqueue<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        a: Arguments<'_, T, G>,
    ) -> Result<()> {
        let Arguments { x, y, options, mut dx, mut dy, mut reports, mut workspace, .. } = a;
        pairwise_step(kernels, stream, &x, &y, self, &options, &mut dx, &mut dy, &mut reports, &mut workspace)
    }
}

/// A step in products of parts of bf16, where a device has kernels for that.
pub struct InParts(pub PairwiseObjective);

impl StepOf for InParts {
    fn workspace_bytes(
        &self,
        [n, m, d]: [usize; 3],
        dtype: DType,
        (wave, keep): Grant,
        conflict: bool,
    ) -> Result<usize> {
        assert!(!conflict, "an objective has no parts");
        pairwise_workspace_bytes(n, m, d, dtype, &self.0, L2, wave, keep, Precision::SplitBf16)
    }

    fn enqueue<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        a: Arguments<'_, T, G>,
    ) -> Result<()> {
        let options = DevicePairwiseOptions { precision: Precision::SplitBf16, ..a.options };
        self.0.enqueue(kernels, stream, Arguments { options, ..a })
    }
}

impl StepOf for [PairwisePart] {
    fn reports(&self) -> usize {
        self.len()
    }

    fn workspace_bytes(
        &self,
        [n, m, d]: [usize; 3],
        dtype: DType,
        (wave, keep): Grant,
        conflict: bool,
    ) -> Result<usize> {
        pairwise_mixture_workspace_bytes(n, m, d, dtype, self, L2, wave, keep, Precision::Full, conflict)
    }

    fn enqueue<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        a: Arguments<'_, T, G>,
    ) -> Result<()> {
        let Arguments { x, y, options, mut dx, mut dy, mut reports, mut conflict, mut workspace } = a;
        let (reports, conflict, work) = (&mut reports, conflict.as_mut(), &mut workspace);
        pairwise_mixture(kernels, stream, &x, &y, self, &options, &mut dx, &mut dy, reports, conflict, work)
    }
}

impl StepOf for CompiledExpression {
    fn workspace_bytes(&self, [n, m, d]: [usize; 3], dtype: DType, (wave, _): Grant, conflict: bool) -> Result<usize> {
        assert!(!conflict, "formulas have no parts");
        pairwise_custom_workspace_bytes(n, m, d, dtype, L2, wave)
    }

    fn enqueue<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        a: Arguments<'_, T, G>,
    ) -> Result<()> {
        let Arguments { x, y, options, mut dx, mut dy, mut reports, mut workspace, .. } = a;
        pairwise_step_custom(kernels, stream, &x, &y, self, &options, &mut dx, &mut dy, &mut reports, &mut workspace)
    }
}

/// Everything that a step on device memory needs.
pub struct Step<T, G> {
    shape: [usize; 3],
    grant: Grant,
    pub x: Guarded<T>,
    pub y: Guarded<T>,
    pub dx: Guarded<G>,
    pub dy: Guarded<G>,
    pub reports: Guarded<PairwiseReport>,
    /// Left alone unless it is asked for.
    conflict: Option<Guarded<f64>>,
    pub workspace: Guarded<u8>,
}

/// What a step left behind.
#[derive(Debug, PartialEq)]
pub struct Outcome<G> {
    pub dx: Vec<G>,
    pub dy: Vec<G>,
    pub reports: Vec<PairwiseReport>,
    pub conflict: Option<Vec<f64>>,
}

impl<G> Outcome<G> {
    /// Of a step that has one.
    pub fn report(&self) -> PairwiseReport {
        let [report] = self.reports[..] else { panic!("{:?}", self.reports) };
        report
    }
}

impl<T: DeviceElement, G: GradientOf<T> + DeviceElement> Step<T, G> {
    pub fn new(
        stream: &Arc<CudaStream>,
        of: &(impl StepOf + ?Sized),
        shape @ [n, m, d]: [usize; 3],
        grant: Grant,
        seed: u64,
    ) -> Self {
        let bytes = of.workspace_bytes(shape, T::DTYPE, grant, false).unwrap();
        Self {
            shape,
            grant,
            x: Guarded::of(stream, &numbers(n * d, seed)),
            y: Guarded::of(stream, &numbers(m * d, seed + 1)),
            dx: Guarded::poisoned(stream, n * d),
            dy: Guarded::poisoned(stream, m * d),
            reports: Guarded::poisoned(stream, of.reports()),
            conflict: None,
            workspace: Guarded::poisoned(stream, bytes),
        }
    }

    /// The same step, which also compares the parts' gradients.
    pub fn with_conflict(mut self, stream: &Arc<CudaStream>, parts: &[PairwisePart]) -> Self {
        let bytes = parts.workspace_bytes(self.shape, T::DTYPE, self.grant, true).unwrap();
        self.workspace = Guarded::poisoned(stream, bytes);
        self.conflict = Some(Guarded::poisoned(stream, pairwise_conflict_len(parts.len())));
        self
    }

    pub fn enqueue(
        &mut self,
        kernels: &Kernels,
        stream: &CudaStream,
        of: &(impl StepOf + ?Sized),
        options: DevicePairwiseOptions<'_>,
    ) -> Result<()> {
        let ([n, m, d], (wave_bytes, keep_bytes)) = (self.shape, self.grant);
        let arguments = Arguments {
            x: DeviceMat::new(self.x.view(), n, d)?,
            y: DeviceMat::new(self.y.view(), m, d)?,
            options: DevicePairwiseOptions { wave_bytes, keep_bytes, ..options },
            dx: DeviceMatMut::new(self.dx.view_mut(), n, d)?,
            dy: DeviceMatMut::new(self.dy.view_mut(), m, d)?,
            reports: self.reports.view_mut(),
            conflict: self.conflict.as_mut().map(Guarded::view_mut),
            workspace: self.workspace.view_mut(),
        };
        of.enqueue(kernels, stream, arguments)
    }

    pub fn outcome(&self, stream: &Arc<CudaStream>) -> Outcome<G> {
        self.workspace.read(stream, "workspace");
        Outcome {
            dx: self.dx.read(stream, "dx"),
            dy: self.dy.read(stream, "dy"),
            reports: self.reports.read(stream, "reports"),
            conflict: self.conflict.as_ref().map(|conflict| conflict.read(stream, "conflict")),
        }
    }

    /// Checks that the step does the same on a workspace as it has left it, and on one with another bit pattern.
    #[track_caller]
    pub fn does_not_depend_on_its_workspace(
        mut self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        of: &(impl StepOf + ?Sized),
        name: &str,
    ) {
        self.enqueue(kernels, stream, of, plain()).unwrap();
        let first = self.outcome(stream);
        for fill in [None, Some(0x55)] {
            if let Some(byte) = fill {
                let len = self.workspace.view().len();
                self.workspace.set(stream, &vec![byte; len]);
            }
            self.dx.poison(stream);
            self.dy.poison(stream);
            self.reports.poison(stream);
            self.conflict.iter_mut().for_each(|conflict| conflict.poison(stream));
            self.enqueue(kernels, stream, of, plain()).unwrap();
            assert_eq!(self.outcome(stream), first, "{name}, workspace {fill:?}");
        }
    }
}

pub fn plain() -> DevicePairwiseOptions<'static> {
    DevicePairwiseOptions::default()
}

/// Of one step, on inputs that only its shape decides.
pub fn outcome_of<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    of: &(impl StepOf + ?Sized),
    shape: [usize; 3],
    grant: Grant,
    options: DevicePairwiseOptions<'_>,
) -> Outcome<G> {
    let mut step = Step::<T, G>::new(stream, of, shape, grant, 5);
    step.enqueue(kernels, stream, of, options).unwrap();
    step.outcome(stream)
}

/// Relative to the largest element of what is wanted.
pub fn largest_difference(got: &[f32], want: &[f64]) -> f64 {
    let largest = want.iter().fold(0.0f64, |a, w| a.max(w.abs()));
    got.iter().zip(want).fold(0.0f64, |a, (g, w)| a.max((f64::from(*g) - w).abs())) / largest
}

/// Captures a step, which is to be `launches` kernels and nothing else, and replays it with other inputs.
#[track_caller]
pub fn replay_equals_eager<T: DeviceElement, G: GradientOf<T> + DeviceElement>(
    kernels: &Kernels,
    of: &(impl StepOf + ?Sized),
    name: &str,
    shape @ [n, m, d]: [usize; 3],
    grant: Grant,
    launches: usize,
) {
    let _turn = turn();
    let stream = kernels.context().new_stream().unwrap();
    let mut captured = Step::<T, G>::new(&stream, of, shape, grant, 1);
    let graph = capture(&stream, || captured.enqueue(kernels, &stream, of, plain()).unwrap());
    // f16 rows are split for products by warpgroups.
    let split = usize::from(T::DTYPE == DType::F16 && by_groups(kernels));
    assert_eq!(kernel_nodes(&graph), launches + split, "{name}: launches of a step");
    for seed in [1, 40] {
        captured.x.set(&stream, &numbers(n * d, seed));
        captured.y.set(&stream, &numbers(m * d, seed + 1));
        graph.launch().unwrap();
        let mut eager = Step::<T, G>::new(&stream, of, shape, grant, seed);
        eager.enqueue(kernels, &stream, of, plain()).unwrap();
        assert_eq!(captured.outcome(&stream), eager.outcome(&stream), "{name}, inputs {seed}");
    }
    kernels.context().check_err().unwrap();
}

/// The body of `child_runs_a_hot_step`: a step, and then, hot, the same and what else is to cost nothing.
pub fn runs_a_hot_step(kernels: &Kernels, of: &(impl StepOf + ?Sized), also: impl FnOnce()) {
    let stream = kernels.context().new_stream().unwrap();
    let mut step = Step::<bf16, f32>::new(&stream, of, [40, 40, 16], PLENTY, 5);
    step.enqueue(kernels, &stream, of, plain()).unwrap();
    stream.synchronize().unwrap();
    hot(|| {
        step.enqueue(kernels, &stream, of, plain()).unwrap();
        also();
    });
    step.outcome(&stream);
}

// --- failures of the driver ----------------------------------------------------------------------------------------

/// A step on host memory of 6 and 9 rows, of which one is ignored; the outputs hold 7 before.
pub fn host_step(
    step: impl FnOnce([MatRef<'_, f32>; 2], PairwiseOptions<'_>, [MatMut<'_, f32>; 2]) -> Result<PairwiseReport>,
) -> (Result<PairwiseReport>, Vec<f32>) {
    let (n, m, d) = (6, 9, 8);
    let (x, y) = (numbers::<f32>(n * d, 1), numbers::<f32>(m * d, 2));
    let (mut dx, mut dy) = (vec![7.0f32; n * d], vec![7.0f32; m * d]);
    let ignore = [false, true, false, false, false, false];
    let report = step(
        [MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap()],
        PairwiseOptions { ignore_rows: Some(&ignore), ..PairwiseOptions::default() },
        [MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, m, d).unwrap()],
    );
    dx.extend(dy);
    (report, dx)
}

/// The body of `child_steps_and_retries`: after one failure for want of memory, which wrote nothing, the step succeeds. Its
/// gradients.
pub fn steps_and_retries(op: &str, step: impl Fn() -> (Result<PairwiseReport>, Vec<f32>)) -> Vec<f32> {
    let mut failures = 0;
    let gradients = loop {
        match step() {
            (Ok(_), gradients) => break gradients,
            (Err(Error::OutOfMemory { op: failed, wanted }), untouched)
                if failed == op && failures < 1 && wanted > 0 =>
            {
                assert!(untouched.iter().all(|&v| v == 7.0), "a failed call has written something");
                failures += 1;
            }
            (other, _) => panic!("{other:?}"),
        }
    };
    say(&format!("failures: {failures}"));
    gradients
}

/// Lets each of the allocations of `child_steps_and_retries` fail, and then one more, which does not exist.
#[track_caller]
pub fn check_failing_allocations(allocations: usize) {
    for k in 1..=allocations + 1 {
        let rule = format!("alloc:{k}");
        let vars = [("GPUEMU_FAIL", Some(rule.as_str())), ("GPUEMU_LEAKS", Some("1"))];
        let run = child("child_steps_and_retries", &vars).expect("leaks: none");
        let expected = if k <= allocations { "failures: 1" } else { "failures: 0" };
        assert!(run.text.contains(expected), "{k}: {}", run.text);
    }
}

/// The body of `child_steps_through_refused_launches`: a refused step adds nothing to its gradients, the next one does.
pub fn steps_through_a_refused_launch<T: DeviceElement>(
    kernels: &Kernels,
    of: &(impl StepOf + ?Sized),
    shape @ [n, m, d]: [usize; 3],
) where
    f32: GradientOf<T>,
{
    let stream = kernels.context().new_stream().unwrap();
    let mut step = Step::<T, f32>::new(&stream, of, shape, PLENTY, 3);
    let ones = (vec![1.0f32; n * d], vec![1.0f32; m * d]);
    step.dx.set(&stream, &ones.0);
    step.dy.set(&stream, &ones.1);
    let options = || DevicePairwiseOptions { write: WriteMode::Accumulate, ..plain() };
    match step.enqueue(kernels, &stream, of, options()) {
        Err(Error::LaunchRefused { kernel, .. }) => say(&format!("refused: {kernel}")),
        other => panic!("{other:?}"),
    }
    assert_eq!(step.dx.read(&stream, "dx"), ones.0, "a refused step has added to dx");
    assert_eq!(step.dy.read(&stream, "dy"), ones.1, "a refused step has added to dy");
    step.enqueue(kernels, &stream, of, options()).unwrap();
    assert_ne!(step.dx.read(&stream, "dx"), ones.0);
    kernels.context().check_err().unwrap();
}
