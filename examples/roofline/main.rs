//! The least that an operation has to do, how it is going to be done, and what a counter or a clock says of it.
//!
//! `cargo run --release --example roofline -- mine 16384 16384 512 bf16`, or `-- --all` for the table of docs/kernels.md.

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod counters;
mod cpu;
mod device;
mod numbers;
// It knows more operations than are planned here.
#[path = "../../benches/gpu_report/operation.rs"]
#[allow(dead_code)]
mod operation;
mod table;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cases::{Case, Op};
use clap::{Parser, ValueEnum};
use common::{Failure, Outcome, say};
use device::Device;
use simgrad::cuda::{Ceilings, PlanDevice};
use simgrad::{DType, Precision};

/// Prints, for an operation and a shape, the floor (operations, bytes, launches, time at stated ceilings), the plan with its
/// reasons, and what was counted or measured beside it. Floors and plans are derived: no device is needed, and no number of
/// theirs is a measurement.
#[derive(Parser, Debug)]
struct Args {
    /// cosine_matrix, cosine_split, mine, semi_hard, lse, infonce, infonce_split, siglip, weighted_grad, goal or ranks
    #[arg(required_unless_present = "all", value_parser = parse_op)]
    op: Option<Op>,
    /// Rows of x
    #[arg(required_unless_present = "all")]
    n: Option<usize>,
    /// Rows of y; as many as of x for goal
    #[arg(required_unless_present = "all")]
    m: Option<usize>,
    /// Features
    #[arg(required_unless_present = "all")]
    d: Option<usize>,
    /// f32, f16 or bf16
    #[arg(required_unless_present = "all", value_parser = parse_dtype)]
    dtype: Option<DType>,
    /// Matrices, of cosine_matrix and cosine_split
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// The sixteen configurations as a table
    #[arg(long, conflicts_with_all = ["op", "batch", "counters", "measure"])]
    all: bool,
    /// The device to plan for; `present` asks the driver
    #[arg(long, value_enum, default_value = "h200")]
    device: Which,
    /// Counters of a run of this operation and shape on the emulator (GPUEMU_COUNTERS=FILE), to show beside the plan
    #[arg(long, value_name = "FILE")]
    counters: Option<PathBuf>,
    /// Runs it: by the clock of the CPU, with ceilings measured first, or of the device. An emulated device has no clock that
    /// says anything: there it runs once, for GPUEMU_COUNTERS to count
    #[arg(long, value_enum)]
    measure: Option<Measure>,
    /// With --all: writes the table into this file, between its markers, instead of printing it
    #[arg(long, value_name = "FILE", requires = "all")]
    write_docs: Option<PathBuf>,
    /// With --all, on the emulator with GPUEMU_COUNTERS set: every operation at a shape that it can do, counted
    #[arg(long, requires = "all")]
    counted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    H200,
    A100,
    Present,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    Cpu,
    Cuda,
}

fn parse_op(text: &str) -> Result<Op, String> {
    let known = || Op::ALL.map(|(name, _)| name).join(", ");
    Op::ALL
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, op)| *op)
        .ok_or_else(|| format!("expected one of {}", known()))
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::Bf16),
        _ => Err("expected f32, f16 or bf16".to_owned()),
    }
}

/// Where the tables stand in a document.
const TABLES: [[&str; 2]; 2] =
    [["<!-- roofline -->", "<!-- /roofline -->"], ["<!-- roofline counted -->", "<!-- /roofline counted -->"]];

/// Replaces what is between two markers.
fn write_between(path: &Path, [begin, end]: [&str; 2], table: &str) -> Outcome<()> {
    let file = std::fs::read_to_string(path).map_err(|e| Failure::file(path, e))?;
    let from = file.find(begin).map(|at| at + begin.len());
    let to = from.and_then(|from| file[from..].find(end).map(|at| from + at));
    let (Some(from), Some(to)) = (from, to) else {
        return Err(Failure::file(path, format!("expected the markers {begin} and {end}")));
    };
    let text = format!("{}\n\n{table}\n{}", &file[..from], &file[to..]);
    std::fs::write(path, text).map_err(|e| Failure::file(path, e))
}

/// Runs the case once and reads what was counted meanwhile.
fn count(device: &Device, case: &Case) -> Outcome<Vec<counters::Row>> {
    let path = std::env::var_os("GPUEMU_COUNTERS").map(PathBuf::from);
    let path = path.ok_or_else(|| {
        Failure::new("the device is emulated, and its clock says nothing: set GPUEMU_COUNTERS=FILE to have it count")
    })?;
    let plan = case.plan(device.facts())?;
    device.run(case, &plan)?;
    counters::compare(&plan, &counters::read(&path)?)
}

/// The operations that can be counted, at shapes that an emulator does in a moment: whole tiles of every engine.
fn counted_table(device: &Device) -> Outcome<String> {
    if !device.emulated {
        return Err(Failure::option("counted", "the device is real, and does not count"));
    }
    let mut table = text::COUNTED_HEAD.to_owned();
    for (_, op) in Op::ALL {
        // 16-bit rows are not split.
        for dtype in
            [DType::Bf16, DType::F32].into_iter().filter(|d| op.precision() == Precision::Full || *d == DType::F32)
        {
            let case = Case::new(op, 512, 512, 128, dtype);
            table += &text::counted_rows(&case.text(), &count(device, &case)?);
        }
    }
    Ok(table)
}

fn one(args: &Args, case: &Case) -> Outcome<()> {
    if case.op == Op::Goal && case.n != case.m {
        return Err(Failure::new(format!("goal takes as many rows of y as of x, {}, not {}", case.n, case.m)));
    }
    if case.batch != 1 && case.op.similarities().is_none() {
        return Err(Failure::option("batch", "only similarities are of more than one matrix"));
    }
    let opened =
        if args.device == Which::Present || args.measure == Some(Measure::Cuda) { Some(Device::open()?) } else { None };
    let facts = match (&opened, args.device) {
        (Some(device), _) => device.facts(),
        (None, Which::A100) => PlanDevice::A100,
        (None, _) => PlanDevice::H200,
    };
    let (plan, ceilings) = (case.plan(facts)?, &Ceilings::H200);
    say(case.text());
    say("");
    say(text::floor(&plan, ceilings));
    say(text::plan(&plan, ceilings));
    if let Some(path) = &args.counters {
        let rows = counters::compare(&plan, &counters::read(path)?)?;
        say(text::counted(&rows, "counted by an emulator, which has no clock"));
    }
    match (args.measure, &opened) {
        (Some(Measure::Cuda), Some(device)) if device.emulated => {
            say(text::counted(&count(device, case)?, "counted by an emulator, which has no clock"));
        }
        (Some(Measure::Cuda), Some(device)) => {
            say(text::measured(device.name(), &device.time(case, &plan)?, &plan, ceilings));
        }
        (Some(Measure::Cpu), _) => {
            let ceilings = cpu::ceilings();
            say(text::measured_cpu(&cpu::time(case)?, case.op.products(), &plan, &ceilings));
        }
        _ => say("not measured: --measure cuda, --measure cpu or --counters FILE says what there is beside the floor"),
    }
    Ok(())
}

fn run() -> Outcome<()> {
    let args = Args::parse();
    if args.counted {
        let table = counted_table(&Device::open()?)?;
        return match &args.write_docs {
            Some(path) => write_between(path, TABLES[1], &table),
            None => {
                say(table.trim());
                Ok(())
            }
        };
    }
    if args.all {
        let facts = match args.device {
            Which::H200 => PlanDevice::H200,
            Which::A100 => PlanDevice::A100,
            Which::Present => Device::open()?.facts(),
        };
        let table = table::table(facts)?;
        return match &args.write_docs {
            Some(path) => write_between(path, TABLES[0], &table),
            None => {
                say(table.trim());
                Ok(())
            }
        };
    }
    let (Some(op), Some(n), Some(m), Some(d), Some(dtype)) = (args.op, args.n, args.m, args.d, args.dtype) else {
        return Err(Failure::new("expected OP N M D DTYPE, or --all"));
    };
    one(&args, &Case { op, batch: args.batch, n, m, d, dtype })
}

fn main() -> ExitCode {
    common::exit(run())
}
