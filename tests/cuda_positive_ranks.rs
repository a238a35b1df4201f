//! The ranks of all relevant pairs on device memory: only kernels are enqueued, nothing outside the results is written,
//! and pairs that make no sense stay without consequence for memory.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{Guarded, device, numbers, turn};
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUgraphNodeType, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream, DevicePtr, DevicePtrMut};
use half::bf16;
use simgrad::cuda::raw::{self, RawPositiveRanks, RawRelevant};
use simgrad::cuda::*;
use simgrad::{
    DType, Error, Groups, MatRef, Normalization, PositiveRanksOptions, QueryRanks, RelevantPairs, TiePolicy, cpu,
};

/// Inputs and outputs in guarded buffers.
struct Case<T> {
    n: usize,
    m: usize,
    d: usize,
    x: Guarded<T>,
    y: Guarded<T>,
    row_offsets: Guarded<u32>,
    row_candidates: Guarded<i32>,
    col_offsets: Guarded<u32>,
    col_candidates: Guarded<i32>,
    col_pairs: Guarded<u32>,
    rows: Guarded<i32>,
    cols: Guarded<i32>,
    work: Guarded<u8>,
}

impl<T: DeviceElement> Case<T> {
    fn new(stream: &Arc<CudaStream>, (n, m, d): (usize, usize, usize), relevant: &RelevantPairs) -> Self {
        let (turned, numbers_of) = relevant.transposed();
        let pairs = relevant.pairs();
        let bytes = positive_ranks_workspace_bytes(n, m, d, T::DTYPE, pairs, Normalization::L2).unwrap();
        Self {
            n,
            m,
            d,
            x: Guarded::of(stream, &numbers::<T>(n * d, 1)),
            y: Guarded::of(stream, &numbers::<T>(m * d, 2)),
            row_offsets: Guarded::of(stream, relevant.offsets()),
            row_candidates: Guarded::of(stream, relevant.candidates()),
            col_offsets: Guarded::of(stream, turned.offsets()),
            col_candidates: Guarded::of(stream, turned.candidates()),
            col_pairs: Guarded::of(stream, &numbers_of),
            rows: Guarded::poisoned(stream, pairs),
            cols: Guarded::poisoned(stream, pairs),
            work: Guarded::poisoned(stream, bytes),
        }
    }

    fn enqueue(&mut self, kernels: &Kernels, stream: &CudaStream, ties: TiePolicy) {
        let relevant = DeviceRelevant {
            row_offsets: self.row_offsets.view(),
            row_candidates: self.row_candidates.view(),
            col_offsets: self.col_offsets.view(),
            col_candidates: self.col_candidates.view(),
            col_pairs: self.col_pairs.view(),
            grades: None,
        };
        let x = DeviceMat::new(self.x.view(), self.n, self.d).unwrap();
        let y = DeviceMat::new(self.y.view(), self.m, self.d).unwrap();
        let options = PositiveRanksOptions { ties, ..PositiveRanksOptions::default() };
        let (rows, cols) = (&mut self.rows.view_mut(), &mut self.cols.view_mut());
        positive_ranks(kernels, stream, &x, &y, &relevant, &options, rows, cols, &mut self.work.view_mut()).unwrap();
    }

    /// The ranks, after checking that nothing was written beside them and the workspace.
    fn read(&self, stream: &Arc<CudaStream>) -> (Vec<i32>, Vec<i32>) {
        self.work.read(stream, "workspace");
        (self.rows.read(stream, "rows"), self.cols.read(stream, "cols"))
    }

    fn poison(&mut self, stream: &Arc<CudaStream>) {
        self.rows.poison(stream);
        self.cols.poison(stream);
        self.work.poison(stream);
    }
}

/// Number of nodes, after checking that every one launches a kernel.
fn kernel_nodes(graph: &CudaGraph) -> usize {
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

fn grouped(n: usize, m: usize) -> RelevantPairs {
    let ids = |len: usize| (0..len as i64).map(|i| i * i % 7).collect::<Vec<_>>();
    RelevantPairs::from_groups(Groups { rows: &ids(n), cols: &ids(m) }).unwrap()
}

#[test]
fn a_captured_call_is_kernels_alone_and_replays() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let shape = (140, 260, 24);
    let relevant = grouped(shape.0, shape.1);
    let mut case = Case::<bf16>::new(&stream, shape, &relevant);
    case.enqueue(kernels, &stream, TiePolicy::Pessimistic);
    let eager = case.read(&stream);
    case.poison(&stream);
    stream.synchronize().unwrap();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    case.enqueue(kernels, &stream, TiePolicy::Pessimistic);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("a graph");
    assert_eq!(kernel_nodes(&graph), 5);
    for _ in 0..2 {
        graph.launch().unwrap();
        assert_eq!(case.read(&stream), eager);
    }
    let pool = shape.1 as i32;
    assert!(eager.0.iter().all(|&rank| (0..pool).contains(&rank)));
    context.check_err().unwrap();
}

/// On device memory, in buffers full of NaN, the ranks are those of the CPU wherever those are far enough apart: here
/// everywhere, the inputs being small integers.
#[test]
fn the_ranks_are_those_of_the_cpu() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (n, m, d) = (131, 300, 8);
    let relevant = grouped(n, m);
    let integers = |len, seed| numbers::<f32>(len, seed).iter().map(|v| (2.4 * v).round()).collect::<Vec<f32>>();
    let (x, y) = (integers(n * d, 5), integers(m * d, 6));
    let options = PositiveRanksOptions { normalization: Normalization::None, ties: TiePolicy::LowestIndex };
    let (xm, ym) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
    let want = cpu::positive_ranks(&cpu::Cpu::new(), xm, ym, &relevant, &options).unwrap();
    let mut case = Case::<f32>::new(&stream, (n, m, d), &relevant);
    case.x.set(&stream, &x);
    case.y.set(&stream, &y);
    let args = raw_arguments(&mut case, &stream, Normalization::None);
    // SAFETY: the buffers of the case live until the stream has been waited for.
    unsafe { raw::positive_ranks(kernels, &stream, &args) }.unwrap();
    let ranks = |q: QueryRanks| q.ranks;
    assert_eq!(case.read(&stream), (ranks(want.rows), ranks(want.cols)));
    context.check_err().unwrap();
}

fn raw_arguments<T: DeviceElement>(
    case: &mut Case<T>,
    stream: &CudaStream,
    normalization: Normalization,
) -> RawPositiveRanks {
    fn buf<T>(view: cudarc::driver::CudaView<'_, T>, stream: &CudaStream) -> RawBuf {
        RawBuf::new(view.device_ptr(stream).0, view.len())
    }
    fn buf_mut<T>(mut view: cudarc::driver::CudaViewMut<'_, T>, stream: &CudaStream) -> RawBuf {
        let len = view.len();
        RawBuf::new(view.device_ptr_mut(stream).0, len)
    }
    RawPositiveRanks {
        x: RawMat::new(buf(case.x.view(), stream).ptr, case.n, case.d, T::DTYPE),
        y: RawMat::new(buf(case.y.view(), stream).ptr, case.m, case.d, T::DTYPE),
        relevant: RawRelevant {
            row_offsets: buf(case.row_offsets.view(), stream),
            row_candidates: buf(case.row_candidates.view(), stream),
            col_offsets: buf(case.col_offsets.view(), stream),
            col_candidates: buf(case.col_candidates.view(), stream),
            col_pairs: buf(case.col_pairs.view(), stream),
            grades: RawBuf::NULL,
        },
        normalization,
        ties: TiePolicy::LowestIndex,
        rows: buf_mut(case.rows.view_mut(), stream),
        cols: buf_mut(case.cols.view_mut(), stream),
        workspace: buf_mut(case.work.view_mut(), stream),
    }
}

/// The pairs are data on the device, which the host cannot check: whatever they hold, the kernels stay in their buffers.
#[test]
fn pairs_that_make_no_sense_do_no_harm() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let shape = (130, 150, 16);
    // Few pairs: a query may come to have all of them, and is then counted against each.
    let relevant = RelevantPairs::paired(shape.0, shape.1).unwrap();
    let pairs = relevant.pairs();
    for seed in 0..3u32 {
        let mut state = seed;
        let mut word = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state & 3 == 0 { u32::MAX - state % 5 } else { state % 200 }
        };
        let mut words = |len: usize| (0..len).map(|_| word()).collect::<Vec<u32>>();
        let mut case = Case::<f32>::new(&stream, shape, &relevant);
        case.row_offsets.set(&stream, &words(shape.0 + 1));
        case.col_offsets.set(&stream, &words(shape.1 + 1));
        case.row_candidates.set(&stream, bytemuck::cast_slice(&words(pairs)));
        case.col_candidates.set(&stream, bytemuck::cast_slice(&words(pairs)));
        case.col_pairs.set(&stream, &words(pairs));
        for ties in [TiePolicy::LowestIndex, TiePolicy::Optimistic, TiePolicy::Pessimistic] {
            case.enqueue(kernels, &stream, ties);
            case.read(&stream);
        }
    }
    context.check_err().unwrap();
}

#[test]
fn what_the_host_can_see_is_refused() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let relevant = grouped(5, 6);
    let mut case = Case::<f32>::new(&stream, (5, 6, 4), &relevant);
    let good = raw_arguments(&mut case, &stream, Normalization::L2);
    let refused = |change: &dyn Fn(&mut RawPositiveRanks)| {
        let mut args = good;
        change(&mut args);
        // SAFETY: a refused call touches no memory.
        unsafe { raw::positive_ranks(kernels, &stream, &args) }.expect_err("refused")
    };
    let shorter = |buf: RawBuf| RawBuf::new(buf.ptr, buf.len - 1);
    let arg = |error: Error| match error {
        Error::ShapeMismatch { arg, .. } | Error::TooShort { arg, .. } | Error::Overlap { arg, .. } => arg,
        Error::BadPointer { arg, .. } | Error::UnsupportedDType { arg, .. } => arg,
        other => panic!("{other}"),
    };
    assert_eq!(arg(refused(&|a| a.relevant.row_offsets = shorter(a.relevant.row_offsets))), "relevant.rows");
    assert_eq!(arg(refused(&|a| a.relevant.col_offsets = shorter(a.relevant.col_offsets))), "relevant.cols");
    assert_eq!(arg(refused(&|a| a.relevant.col_candidates.len += 1)), "relevant.col_candidates");
    assert_eq!(arg(refused(&|a| a.relevant.col_pairs.len -= 1)), "relevant.col_pairs");
    assert_eq!(arg(refused(&|a| a.relevant.grades = RawBuf::new(256, 1))), "relevant.grades");
    assert_eq!(arg(refused(&|a| a.relevant.row_candidates.ptr = 0)), "relevant.row_candidates");
    assert_eq!(arg(refused(&|a| a.rows = shorter(a.rows))), "rows");
    assert_eq!(arg(refused(&|a| a.cols.ptr = a.rows.ptr)), "cols");
    assert_eq!(arg(refused(&|a| a.rows.ptr = a.relevant.row_candidates.ptr)), "rows");
    assert_eq!(arg(refused(&|a| a.workspace.len = 1)), "workspace");
    assert_eq!(arg(refused(&|a| a.x.dtype = DType::F64)), "y");
    assert!(case.rows.read(&stream, "rows").iter().all(|&r| r == -1), "a refused call wrote something");
}
