//! Operations on the device that is there: counted where the device is emulated, timed where it is real.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::sys::{self, CUuuid};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::{bf16, f16};
use simgrad::cuda::{Kernels, PAIRWISE_WAVE_BYTES, Plan, PlanDevice, open_context};
use simgrad::{DType, Normalization, PairwiseObjective};

use crate::cases::{Case, Op, SCALE, goal_objective, semi_hard, siglip};
use crate::common::{Failure, Outcome};
use crate::numbers::embeddings;
use crate::operation::{Addresses, OUTPUTS, Operation, Pairwise, Task};

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

    /// Directions on the unit sphere.
    fn inputs(&mut self, rows: usize, cols: usize, dtype: DType, seed: u64) -> Outcome<u64> {
        match dtype {
            DType::F16 => self.of(&embeddings::<f16>(rows, cols, seed)),
            DType::Bf16 => self.of(&embeddings::<bf16>(rows, cols, seed)),
            _ => self.of(&embeddings::<f32>(rows, cols, seed)),
        }
    }
}

/// An operation with all that it works on.
struct Call<'a> {
    device: &'a Device,
    task: Task,
    at: Addresses,
    _memory: Memory<'a>,
}

impl Call<'_> {
    fn enqueue(&self) -> simgrad::Result<()> {
        // SAFETY: the buffers are as large as the task says, and whoever calls this waits for the stream before they go.
        unsafe { self.task.enqueue(&self.device.kernels, &self.device.stream, &self.at) }
    }
}

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
        self.kernels.plan_device()
    }

    /// Mines f32 rows through a screen from now on, or does not. For tests.
    #[allow(dead_code)]
    pub fn force_screen(&self, screens: Option<bool>) {
        self.kernels.force_screen(screens);
    }

    /// The product's name.
    pub fn name(&self) -> &str {
        &self.kernels.device().name
    }

    /// Enqueues the case once and waits for it.
    pub fn run(&self, case: &Case, plan: &Plan) -> Outcome<()> {
        let call = self.call(case, plan)?;
        call.enqueue()?;
        self.stream.synchronize().map_err(driver)
    }

    /// Times the case by the device's clock, after a warm-up of 200 ms, in at most 2 s.
    pub fn time(&self, case: &Case, plan: &Plan) -> Outcome<Clock> {
        let call = self.call(case, plan)?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(200) {
            call.enqueue()?;
            self.stream.synchronize().map_err(driver)?;
        }
        let (begin, mut samples) = (Instant::now(), Vec::new());
        while samples.len() < 5 || (samples.len() < 100 && begin.elapsed() < Duration::from_secs(2)) {
            let start = self.stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(driver)?;
            call.enqueue()?;
            let end = self.stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(driver)?;
            samples.push(f64::from(start.elapsed_ms(&end).map_err(driver)?) * 1e-3);
        }
        Ok(Clock::of(samples))
    }

    /// Allocates everything.
    fn call(&self, case: &Case, plan: &Plan) -> Outcome<Call<'_>> {
        let Case { batch, n, m, d, dtype, .. } = *case;
        let normalization = Normalization::L2;
        let task = Task { operation: operation(case)?, batch, n, m, d, dtype, out_dtype: DType::F32, normalization };
        let mut memory = Memory { stream: &self.stream, held: Vec::new() };
        let mut outputs = [0; OUTPUTS];
        for (at, (len, size)) in task.output_lens().into_iter().enumerate() {
            // The positives of `mine` are not part of its plan.
            if size > 0 && !(at == 0 && case.op == Op::Mine) {
                outputs[at] = memory.zeros(len * size)?;
            }
        }
        let at = Addresses {
            x: memory.inputs(batch * n, d, dtype, 1)?,
            y: memory.inputs(batch * m, d, dtype, 2)?,
            inputs: more_inputs(task.operation, [n, m], &mut memory)?,
            outputs,
            workspace: memory.zeros(plan.workspace_bytes)?,
            workspace_bytes: plan.workspace_bytes,
        };
        Ok(Call { device: self, task, at, _memory: memory })
    }
}

fn operation(case: &Case) -> Outcome<Operation> {
    let precision = case.op.precision();
    let pairwise = |objective, wave_bytes| Pairwise { objective, wave_bytes, keep_bytes: 0, precision };
    let infonce = PairwiseObjective::InfoNce { scale: SCALE };
    Ok(match case.op {
        Op::CosineMatrix | Op::CosineSplit => Operation::CosineMatrix(precision),
        Op::Mine => Operation::Mine,
        Op::SemiHard => Operation::MineTopK(semi_hard()),
        Op::Lse => Operation::PairwiseStatistics(pairwise(infonce, 1)),
        Op::InfoNce | Op::InfoNceSplit => Operation::PairwiseStep(pairwise(infonce, PAIRWISE_WAVE_BYTES)),
        Op::SigLip => Operation::PairwiseStep(pairwise(siglip()?, PAIRWISE_WAVE_BYTES)),
        Op::WeightedGrad => Operation::WeightedGrad(3 * case.n),
        Op::Goal => Operation::GoalStep(goal_objective()?),
        Op::Ranks => Operation::Ranks { groups: true },
    })
}

/// What an operation takes beside `x` and `y`.
fn more_inputs(operation: Operation, [n, m]: [usize; 2], memory: &mut Memory<'_>) -> Outcome<[u64; 3]> {
    Ok(match operation {
        Operation::WeightedGrad(count) => {
            // Own pairs, and two others per row, with none much more popular than the rest.
            let index = |of: &dyn Fn(usize) -> usize, limit: usize| -> Vec<i32> {
                (0..count).map(|at| (of(at) % limit.max(1)) as i32).collect()
            };
            let rows = memory.of(&index(&|at| at % n.max(1), n))?;
            let cols = memory.of(&index(&|at| at % n.max(1) * (1 + at / n.max(1) * 4), m))?;
            [rows, cols, memory.of(&vec![0.5f32; count])?]
        }
        Operation::Ranks { groups: true } => {
            // As many columns to a row as there are columns for each.
            let per_row = m.div_ceil(n.max(1)).max(1);
            let mut ids = |len, of: usize| memory.of(&(0..len).map(|at| (at / of) as i64).collect::<Vec<_>>());
            [ids(n, 1)?, ids(m, per_row)?, 0]
        }
        _ => [0; 3],
    })
}
