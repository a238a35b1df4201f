//! Operations on the device that is there: counted where the device is emulated, timed where it is real.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::sys::{self, CUuuid};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::{bf16, f16};
use simgrad::cuda::raw::{
    self, RawCosineMatrix, RawGoalStep, RawGroups, RawHardest, RawMine, RawPairwiseStep, RawRanks, RawSelected,
    RawTopK, RawUpstream, RawWeightedGrad,
};
use simgrad::cuda::{Kernels, PAIRWISE_WAVE_BYTES, Plan, PlanDevice, RawBatch, RawBuf, RawMat, open_context};
use simgrad::{DType, GradReport, Normalization, PairwiseObjective, PairwiseReport, StepReport, TiePolicy, WriteMode};

use crate::cases::{Case, Op, SCALE, goal_objective, semi_hard, siglip};
use crate::common::{Failure, Outcome};
use crate::numbers::embeddings;

/// What the driver says of its devices when it is the emulator.
const EMULATED: &[u8] = b"GPUEMU";

/// The first device.
pub struct Device {
    kernels: Kernels,
    stream: Arc<CudaStream>,
    /// Whether it is emulated, so that its clock says nothing.
    pub emulated: bool,
}

/// Seconds of one call: the median, and what a tenth of the calls stay below and above.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub low: f64,
    pub median: f64,
    pub high: f64,
    pub calls: usize,
}

impl Clock {
    /// Of at least one sample.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |share: usize| samples[(samples.len() - 1) * share / 10];
        Self { low: at(1), median: at(5), high: at(9), calls: samples.len() }
    }
}

fn driver(error: cudarc::driver::DriverError) -> Failure {
    Failure::new(format!("the CUDA driver: {error:?}"))
}

/// Buffers that live as long as what is enqueued on them.
struct Memory<'a> {
    stream: &'a Arc<CudaStream>,
    held: Vec<CudaSlice<u8>>,
}

impl Memory<'_> {
    fn holds(&mut self, bytes: CudaSlice<u8>) -> u64 {
        let address = bytes.device_ptr(self.stream).0;
        self.held.push(bytes);
        address
    }

    fn zeros(&mut self, bytes: usize) -> Outcome<u64> {
        let slice = self.stream.alloc_zeros::<u8>(bytes.max(1)).map_err(driver)?;
        Ok(self.holds(slice))
    }

    fn of<T: bytemuck::Pod>(&mut self, data: &[T]) -> Outcome<u64> {
        let slice = self.stream.clone_htod(bytemuck::cast_slice::<T, u8>(data)).map_err(driver)?;
        Ok(self.holds(slice))
    }

    fn buffer(&mut self, elements: usize, size: usize) -> Outcome<RawBuf> {
        Ok(RawBuf { ptr: self.zeros(elements * size)?, len: elements })
    }

    fn matrix(&mut self, rows: usize, cols: usize, dtype: DType) -> Outcome<RawMat> {
        Ok(RawMat::new(self.zeros(rows * cols * dtype.size())?, rows, cols, dtype))
    }

    /// Directions on the unit sphere.
    fn inputs(&mut self, rows: usize, cols: usize, dtype: DType, seed: u64) -> Outcome<RawMat> {
        let ptr = match dtype {
            DType::F16 => self.of(&embeddings::<f16>(rows, cols, seed))?,
            DType::Bf16 => self.of(&embeddings::<bf16>(rows, cols, seed))?,
            _ => self.of(&embeddings::<f32>(rows, cols, seed))?,
        };
        Ok(RawMat::new(ptr, rows, cols, dtype))
    }
}

type Call<'a> = Box<dyn FnMut() -> simgrad::Result<()> + 'a>;

impl Device {
    /// Opens it and loads the kernels.
    pub fn open() -> Outcome<Self> {
        let context = open_context(0)?;
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: the device belongs to a live context, and the place is one for an identifier.
        unsafe { sys::cuDeviceGetUuid_v2(&raw mut uuid, context.cu_device()) }.result().map_err(driver)?;
        let emulated = uuid.bytes.iter().zip(EMULATED).all(|(&a, &b)| a as u8 == b);
        let kernels = Kernels::load(&context)?;
        let stream = context.new_stream().map_err(driver)?;
        Ok(Self { kernels, stream, emulated })
    }

    /// What it is, for plans.
    pub fn facts(&self) -> PlanDevice {
        PlanDevice::of(self.kernels.device())
    }

    /// The product's name.
    pub fn name(&self) -> &str {
        &self.kernels.device().name
    }

    /// Enqueues the case once and waits for it.
    pub fn run(&self, case: &Case, plan: &Plan) -> Outcome<()> {
        let mut memory = Memory { stream: &self.stream, held: Vec::new() };
        let mut call = self.call(case, plan, &mut memory)?;
        call()?;
        self.stream.synchronize().map_err(driver)
    }

    /// Times the case by the device's clock, after a warm-up of 200 ms, in at most 2 s.
    pub fn time(&self, case: &Case, plan: &Plan) -> Outcome<Clock> {
        let mut memory = Memory { stream: &self.stream, held: Vec::new() };
        let mut call = self.call(case, plan, &mut memory)?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(200) {
            call()?;
            self.stream.synchronize().map_err(driver)?;
        }
        let (begin, mut samples) = (Instant::now(), Vec::new());
        while samples.len() < 5 || (samples.len() < 100 && begin.elapsed() < Duration::from_secs(2)) {
            let start = self.stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(driver)?;
            call()?;
            let end = self.stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(driver)?;
            samples.push(f64::from(start.elapsed_ms(&end).map_err(driver)?) * 1e-3);
        }
        Ok(Clock::of(samples))
    }

    /// Allocates everything and returns what enqueues the operation.
    #[allow(clippy::too_many_lines)]
    fn call<'a>(&'a self, case: &Case, plan: &Plan, memory: &mut Memory<'_>) -> Outcome<Call<'a>> {
        let Case { op, batch, n, m, d, dtype } = *case;
        let (kernels, stream) = (&self.kernels, &*self.stream);
        let (x, y) = (memory.inputs(batch * n, d, dtype, 1)?, memory.inputs(batch * m, d, dtype, 2)?);
        let workspace = memory.buffer(plan.workspace_bytes, 1)?;
        let (normalization, write, upstream) = (Normalization::L2, WriteMode::Overwrite, RawUpstream::Host(1.0));
        // SAFETY, of all calls below: the buffers are as large as the arguments say, and `memory` outlives the wait for the
        // stream.
        Ok(match op {
            Op::CosineMatrix | Op::CosineSplit => {
                let out = memory.matrix(batch * n, m, DType::F32)?;
                let of = |matrix: RawMat, rows: usize| RawBatch {
                    batch,
                    rows,
                    batch_stride: rows * matrix.cols,
                    ..RawBatch::from(matrix)
                };
                let (x, y, out) = (of(x, n), of(y, m), of(out, n));
                let options = op.similarities().unwrap_or_default();
                Box::new(move || {
                    let a = RawCosineMatrix { x, y, options: &options, out, workspace };
                    // SAFETY: as above.
                    unsafe { raw::cosine_matrix(kernels, stream, &a) }
                })
            }
            Op::Mine => {
                let mut hardest = |anchors| -> Outcome<RawHardest> {
                    let (value, index) = (memory.buffer(anchors, 4)?, memory.buffer(anchors, 4)?);
                    Ok(RawHardest { value, index, second: RawBuf::NULL })
                };
                let (rows, cols, positive) = (hardest(n)?, hardest(m)?, RawBuf::NULL);
                let a = RawMine { x, y, normalization, groups: None, positive, rows, cols, workspace };
                // SAFETY: as above.
                Box::new(move || unsafe { raw::mine(kernels, stream, &a) })
            }
            Op::SemiHard => {
                let options = semi_hard();
                let positive = memory.buffer(n.min(m), 4)?;
                let mut selected = |anchors: usize| -> Outcome<RawSelected> {
                    let index = memory.buffer(anchors * options.k, 4)?;
                    let value = memory.buffer(anchors * options.k, 4)?;
                    Ok(RawSelected { index, value, survivors: memory.buffer(anchors, 4)? })
                };
                let (rows, cols) = (selected(n)?, selected(m)?);
                Box::new(move || {
                    let options = &options;
                    let (groups, bank) = (None, None);
                    let a = RawTopK { x, y, options, groups, bank, positive, rows, cols, workspace };
                    // SAFETY: as above.
                    unsafe { raw::mine_top_k(kernels, stream, &a) }
                })
            }
            Op::Lse | Op::InfoNce | Op::InfoNceSplit | Op::SigLip => {
                let objective = if op == Op::SigLip { siglip()? } else { PairwiseObjective::InfoNce { scale: SCALE } };
                let wave_bytes = if op == Op::Lse { 1 } else { PAIRWISE_WAVE_BYTES };
                let (dx, dy) = (memory.matrix(n, d, DType::F32)?, memory.matrix(m, d, DType::F32)?);
                let report = memory.buffer(1, size_of::<PairwiseReport>())?;
                Box::new(move || {
                    let a = RawPairwiseStep {
                        x,
                        y: Some(y),
                        objective: &objective,
                        normalization,
                        groups: None,
                        ignore_rows: RawBuf::NULL,
                        ignore_cols: RawBuf::NULL,
                        row_weights: RawBuf::NULL,
                        col_weights: RawBuf::NULL,
                        log_q: RawBuf::NULL,
                        upstream,
                        write,
                        dx,
                        dy: Some(dy),
                        report,
                        wave_bytes,
                        keep_bytes: 0,
                        precision: op.precision(),
                        workspace,
                    };
                    // SAFETY: as above.
                    unsafe {
                        match op {
                            Op::Lse => raw::pairwise_statistics(kernels, stream, &a),
                            _ => raw::pairwise_step(kernels, stream, &a),
                        }
                    }
                })
            }
            Op::WeightedGrad => {
                let count = 3 * n;
                // Own pairs, and two others per row, with none much more popular than the rest.
                let index = |of: &dyn Fn(usize) -> usize, limit: usize| -> Vec<i32> {
                    (0..count).map(|at| (of(at) % limit.max(1)) as i32).collect()
                };
                let rows = memory.of(&index(&|at| at % n.max(1), n))?;
                let cols = memory.of(&index(&|at| at % n.max(1) * (1 + at / n.max(1) * 4), m))?;
                let values = memory.of(&vec![0.5f32; count])?;
                let [rows, cols, values] = [rows, cols, values].map(|ptr| RawBuf { ptr, len: count });
                let (dx, dy) = (memory.matrix(n, d, DType::F32)?, memory.matrix(m, d, DType::F32)?);
                let report = memory.buffer(1, size_of::<GradReport>())?;
                let a = RawWeightedGrad {
                    x,
                    y,
                    rows,
                    cols,
                    values,
                    normalization,
                    upstream,
                    write,
                    dx,
                    dy,
                    report,
                    workspace,
                };
                // SAFETY: as above.
                Box::new(move || unsafe { raw::weighted_grad(kernels, stream, &a) })
            }
            Op::Goal => {
                let objective = goal_objective()?;
                let (dx, dy) = (memory.matrix(n, d, DType::F32)?, memory.matrix(n, d, DType::F32)?);
                let report = memory.buffer(1, size_of::<StepReport>())?;
                Box::new(move || {
                    let a = RawGoalStep {
                        x,
                        y,
                        objective: &objective,
                        normalization,
                        groups: None,
                        upstream,
                        write,
                        dx,
                        dy,
                        report,
                        detail: RawBuf::NULL,
                        workspace,
                    };
                    // SAFETY: as above.
                    unsafe { raw::goal_step(kernels, stream, &a) }
                })
            }
            Op::Ranks => {
                // As many columns to a row as there are columns for each.
                let per_row = m.div_ceil(n.max(1)).max(1);
                let groups = [(n, 1), (m, per_row)].map(|(len, of)| {
                    let ids: Vec<i64> = (0..len).map(|at| (at / of) as i64).collect();
                    memory.of(&ids).map(|ptr| RawBuf { ptr, len })
                });
                let [group_rows, group_cols] = groups;
                let groups = Some(RawGroups { rows: group_rows?, cols: group_cols? });
                let (rows, cols) = (memory.buffer(n, 4)?, memory.buffer(m, 4)?);
                let ties = TiePolicy::LowestIndex;
                let a = RawRanks { x, y, normalization, groups, ties, rows, cols, workspace };
                // SAFETY: as above.
                Box::new(move || unsafe { raw::ranks(kernels, stream, &a) })
            }
        })
    }
}
