//! What the tests of the CUDA layers share: a device, guarded buffers, child processes.
#![cfg(feature = "cuda")]
#![allow(dead_code)]

pub mod counters;
pub mod pairwise;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUgraphNodeType, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DeviceRepr};
use simgrad::cuda::{
    self, DeviceElement, DeviceMat, DeviceMatMut, DeviceStepOptions, Kernels, goal_step, goal_step_workspace_bytes,
};
use simgrad::{Error, GradientOf, Normalization, Objective, StepReport};

/// Elements before and after every guarded buffer; whole workspace alignments for every element size.
pub const GUARD: usize = 256;
/// Fills what nothing has written: NaN in every floating-point type.
pub const POISON: u8 = 0xff;

/// Says something past the capture of the test harness.
pub fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

pub fn gpu_required() -> bool {
    std::env::var_os("SIMGRAD_REQUIRE_GPU").is_some_and(|v| v != "0" && !v.is_empty())
}

/// The first device and its kernels, loaded once. `None`, after saying why, where CUDA cannot be used; with
/// `SIMGRAD_REQUIRE_GPU=1` that is a failure.
pub fn device() -> Option<(&'static Arc<CudaContext>, &'static Kernels)> {
    static DEVICE: OnceLock<Result<(Arc<CudaContext>, Kernels), Error>> = OnceLock::new();
    let opened = DEVICE.get_or_init(|| {
        let context = cuda::open_context(0)?;
        // SAFETY: every test uses one stream at a time, and waits for it before it looks at what it wrote. Without the
        // events, work on views can be captured.
        unsafe { context.disable_event_tracking() };
        let kernels = Kernels::load(&context)?;
        Ok((context, kernels))
    });
    match opened {
        Ok((context, kernels)) => Some((context, kernels)),
        Err(reason) => {
            assert!(!gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            static SAID: Once = Once::new();
            SAID.call_once(|| say(&format!("note: the tests of this binary are skipped: {reason}")));
            None
        }
    }
}

/// Whether 16-bit products are made by warpgroups.
pub fn by_groups(kernels: &Kernels) -> bool {
    let device = kernels.plan_device();
    device.compute_capability == (9, 0) && device.group_code
}

/// Calls of a step that neither wait nor copy nor allocate. Tensor maps are computed on the host.
const HOT_CALLS: [&str; 3] = ["cuLaunchKernel", "cuCtxGetCurrent", "cuTensorMapEncodeTiled"];

/// Held by a test while it uses the device, so that it alone changes what the device says of itself.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed has left nothing behind that this lock protects.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forbids this thread whatever a capture can forbid. The global mode forbids it to all threads, and allocations of a test
/// beside it would break the capture.
const STRICT: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// What `enqueue` puts on the stream, captured in a mode that forbids waiting, copying and allocating.
pub fn capture(stream: &Arc<CudaStream>, enqueue: impl FnOnce()) -> CudaGraph {
    stream.begin_capture(STRICT).unwrap();
    enqueue();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    stream.end_capture(flags).unwrap().expect("a graph")
}

/// Number of nodes, after checking that every one launches a kernel.
pub fn kernel_nodes(graph: &CudaGraph) -> usize {
    let mut count = 0;
    // SAFETY: without a place for the nodes only their number is written.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &raw mut count) }.result().unwrap();
    let mut nodes = vec![std::ptr::null_mut(); count];
    // SAFETY: there is room for `count` nodes.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &raw mut count) }.result().unwrap();
    for node in nodes {
        let mut kind = CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        // SAFETY: the node belongs to a live graph.
        unsafe { sys::cuGraphNodeGetType(node, &raw mut kind) }.result().unwrap();
        assert_eq!(kind, CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL, "a node that is no kernel");
    }
    count
}

/// The calls between the two marks, with their numbers, from a log of every driver call.
pub fn calls_between<'a>(log: &'a str, begin: &str, end: &str) -> BTreeMap<&'a str, usize> {
    let hot = log.split(begin).nth(1).and_then(|rest| rest.split(end).next()).expect("both marks");
    let mut calls = BTreeMap::new();
    for line in hot.lines().filter(|l| l.starts_with("[gpuemu] cu")) {
        *calls.entry(line.split(' ').nth(1).unwrap_or_default()).or_default() += 1;
    }
    calls
}

/// Numbers in −1 … 1 that depend on `seed` alone.
pub fn numbers<T: DeviceElement>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::from_f64((state >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
    };
    (0..len).map(|_| next()).collect()
}

/// A device buffer between guards. Poisoned until something is written to it.
pub struct Guarded<T> {
    pub slice: CudaSlice<T>,
    len: usize,
}

impl<T: DeviceRepr + bytemuck::Pod> Guarded<T> {
    pub fn poisoned(stream: &Arc<CudaStream>, len: usize) -> Self {
        let bytes = vec![POISON; (len + 2 * GUARD) * size_of::<T>()];
        let data: &[T] = bytemuck::try_cast_slice(&bytes).expect("an aligned allocation");
        Self { slice: stream.clone_htod(data).unwrap(), len }
    }

    pub fn of(stream: &Arc<CudaStream>, data: &[T]) -> Self {
        let mut buffer = Self::poisoned(stream, data.len());
        buffer.set(stream, data);
        buffer
    }

    pub fn set(&mut self, stream: &Arc<CudaStream>, data: &[T]) {
        assert_eq!(data.len(), self.len);
        stream.memcpy_htod(data, &mut self.view_mut()).unwrap();
    }

    pub fn poison(&mut self, stream: &Arc<CudaStream>) {
        *self = Self::poisoned(stream, self.len);
    }

    pub fn view(&self) -> cudarc::driver::CudaView<'_, T> {
        self.slice.slice(GUARD..GUARD + self.len)
    }

    pub fn view_mut(&mut self) -> cudarc::driver::CudaViewMut<'_, T> {
        self.slice.slice_mut(GUARD..GUARD + self.len)
    }

    /// The contents, after checking that the guards are as they were.
    pub fn read(&self, stream: &Arc<CudaStream>, name: &str) -> Vec<T> {
        let all = stream.clone_dtoh(&self.slice).unwrap();
        stream.synchronize().unwrap();
        let untouched = |part: &[T]| bytemuck::cast_slice::<T, u8>(part).iter().all(|&b| b == POISON);
        assert!(untouched(&all[..GUARD]), "something was written before {name}");
        assert!(untouched(&all[GUARD + self.len..]), "something was written after {name}");
        all[GUARD..GUARD + self.len].to_vec()
    }
}

/// Everything that a GOAL step on device memory needs.
pub struct Step<T, G> {
    pub n: usize,
    pub d: usize,
    pub x: Guarded<T>,
    pub y: Guarded<T>,
    pub dx: Guarded<G>,
    pub dy: Guarded<G>,
    pub report: CudaSlice<StepReport>,
    pub workspace: Guarded<u8>,
}

/// What a step left behind, bit for bit.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub dx: Vec<u8>,
    pub dy: Vec<u8>,
    pub report: Vec<u8>,
}

impl<T: DeviceElement, G: GradientOf<T> + DeviceElement> Step<T, G> {
    pub fn new(stream: &Arc<CudaStream>, n: usize, d: usize, objective: &Objective, seed: u64) -> Self {
        let bytes = goal_step_workspace_bytes(n, d, T::DTYPE, objective, Normalization::L2, false).unwrap();
        Self {
            n,
            d,
            x: Guarded::of(stream, &numbers(n * d, seed)),
            y: Guarded::of(stream, &numbers(n * d, seed + 1)),
            dx: Guarded::poisoned(stream, n * d),
            dy: Guarded::poisoned(stream, n * d),
            report: stream.clone_htod(&[StepReport { loss: f64::NAN, overflow: 77, ..StepReport::default() }]).unwrap(),
            workspace: Guarded::poisoned(stream, bytes),
        }
    }

    pub fn enqueue(
        &mut self,
        kernels: &Kernels,
        stream: &CudaStream,
        objective: &Objective,
        options: &DeviceStepOptions<'_>,
    ) -> simgrad::Result<()> {
        let (n, d) = (self.n, self.d);
        let x = DeviceMat::new(self.x.view(), n, d)?;
        let y = DeviceMat::new(self.y.view(), n, d)?;
        let mut dx = DeviceMatMut::new(self.dx.view_mut(), n, d)?;
        let mut dy = DeviceMatMut::new(self.dy.view_mut(), n, d)?;
        let report = &mut self.report.as_view_mut();
        let workspace = &mut self.workspace.view_mut();
        goal_step(kernels, stream, &x, &y, objective, options, &mut dx, &mut dy, report, workspace)
    }

    pub fn outcome(&self, stream: &Arc<CudaStream>) -> Outcome {
        self.workspace.read(stream, "workspace");
        let bytes = |v: Vec<G>| bytemuck::cast_slice(&v).to_vec();
        Outcome {
            dx: bytes(self.dx.read(stream, "dx")),
            dy: bytes(self.dy.read(stream, "dy")),
            report: bytemuck::bytes_of(&stream.clone_dtoh(&self.report).unwrap()[0]).to_vec(),
        }
    }
}

/// Set in child processes.
const CHILD: &str = "SIMGRAD_TEST_CHILD";

/// Whether this process was started by [`child`] for the test `name`. Such tests do nothing otherwise.
pub fn is_child(name: &str) -> bool {
    std::env::var_os(CHILD).is_some_and(|v| v == name)
}

/// What a child process did.
pub struct Child {
    pub ok: bool,
    /// Everything that it printed.
    pub text: String,
}

impl Child {
    pub fn expect(self, what: &str) -> Self {
        assert!(self.ok && self.text.contains(what), "expected `{what}` from the child, which printed:\n{}", self.text);
        self
    }
}

/// Runs one test of this binary in a process of its own, with these variables set (or removed, where there is no value).
pub fn child(test: &str, vars: &[(&str, Option<&str>)]) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("a test binary"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, test);
    for (name, value) in vars {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().expect("a child process");
    let text = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    Child { ok: output.status.success(), text }
}

const HOT_CHILD: &str = "child_runs_a_hot_step";
const HOT_BEGINS: &str = "the hot step begins";
/// Said behind a hot step, and only if it was successful.
pub const HOT_ENDS: &str = "the hot step ends";

/// Enqueues a step between two marks in the log of driver calls.
pub fn hot(step: impl FnOnce()) {
    say(HOT_BEGINS);
    step();
    say(HOT_ENDS);
}

/// Runs `child_runs_a_hot_step` of this binary: between its marks are so many launches and nothing that waits, copies or
/// allocates.
#[track_caller]
pub fn check_hot_step(launches: usize) {
    if !emulated(HOT_CHILD) {
        return say("note: no log of driver calls here; the captured graph says the same");
    }
    let run = child(HOT_CHILD, &[("GPUEMU_LOG", Some("2"))]).expect(HOT_ENDS);
    let calls = calls_between(&run.text, HOT_BEGINS, HOT_ENDS);
    assert_eq!(calls.get("cuLaunchKernel"), Some(&launches), "{calls:?}");
    assert!(calls.keys().all(|call| HOT_CALLS.contains(call)), "{calls:?}");
}

/// Runs `child_steps_through_refused_launches` of this binary once for each of a step's launches, which the driver refuses.
#[track_caller]
pub fn check_refused_launches(kernels: &[&str]) {
    for (k, kernel) in (1..).zip(kernels) {
        let rule = format!("launch:{k}");
        let vars = [("GPUEMU_FAIL", Some(rule.as_str()))];
        child("child_steps_through_refused_launches", &vars).expect(&format!("refused: {kernel}"));
    }
}

/// Whether the driver is one that takes `GPUEMU_*` variables, given a test that opens a device in a child process.
pub fn emulated(probe: &str) -> bool {
    child(probe, &[("GPUEMU_LOG", Some("2"))]).text.contains("[gpuemu] cuInit")
}
