//! What an emulator has counted, beside what was planned. Counts are no times.

use std::path::Path;

use serde::Deserialize;
use simgrad::cuda::{Arithmetic, Plan, PlannedLaunch};

use crate::common::{Failure, Outcome};

/// The counters of one launch, as `GPUEMU_COUNTERS` has them.
#[derive(Debug, Deserialize)]
pub struct Counted {
    kernel: String,
    grid: Vec<u32>,
    block: Vec<u32>,
    counters: Counters,
}

#[derive(Debug, Deserialize)]
struct Counters {
    global_unique_bytes_read: f64,
    global_unique_bytes_written: f64,
    tensor_flop_f16: f64,
    tensor_flop_bf16: f64,
    flop_f32: f64,
}

/// One quantity of a launch: what was counted, and what was planned.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub counted: f64,
    pub planned: f64,
}

impl Pair {
    /// `1.00`, or `-` where nothing was planned.
    pub fn ratio(&self) -> String {
        if self.planned == 0.0 { "-".to_owned() } else { format!("{:.3}", self.counted / self.planned) }
    }
}

/// One launch, counted and planned.
pub struct Row {
    pub kernel: &'static str,
    pub operations: Pair,
    pub read: Pair,
    pub written: Pair,
}

/// Reads a file of counters, one line for every launch.
pub fn read(path: &Path) -> Outcome<Vec<Counted>> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, e))?;
    let line = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Failure::file(path, format!("line {}: {e}", at + 1)))
    };
    text.lines().enumerate().map(line).collect()
}

fn beside(planned: &PlannedLaunch, counted: &Counted) -> Outcome<Row> {
    let (x, y, z) = planned.grid;
    let same = counted.kernel == planned.kernel
        && counted.grid == [x, y, z]
        && counted.block.iter().product::<u32>() == planned.block;
    if !same {
        return Err(Failure::new(format!(
            "planned was {} on {x} x {y} x {z} blocks of {}, launched {} on {:?} of {:?}: the counters are of another \
             operation, shape or device",
            planned.kernel, planned.block, counted.kernel, counted.grid, counted.block
        )));
    }
    let of = |counted, planned| Pair { counted, planned };
    let c = &counted.counters;
    let operations = match planned.arithmetic {
        Arithmetic::Tensor => c.tensor_flop_f16 + c.tensor_flop_bf16,
        // Of all f32 operations those of the product cannot be told apart.
        Arithmetic::MultiplyAdd => c.flop_f32,
    };
    Ok(Row {
        kernel: planned.kernel,
        operations: of(operations, planned.operations),
        read: of(c.global_unique_bytes_read, planned.read),
        written: of(c.global_unique_bytes_written, planned.written),
    })
}

/// Puts the launches of the last call in the file beside the plan's.
pub fn compare(plan: &Plan, counted: &[Counted]) -> Outcome<Vec<Row>> {
    let Some(first) = counted.len().checked_sub(plan.launches.len()) else {
        return Err(Failure::new(format!(
            "{} has {} launches, and {} were counted",
            plan.op,
            plan.launches.len(),
            counted.len()
        )));
    };
    plan.launches.iter().zip(&counted[first..]).map(|(planned, counted)| beside(planned, counted)).collect()
}
