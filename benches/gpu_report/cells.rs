//! One operation on one small case, for tools that watch a process and for repeats: no PyTorch, no harness.
//!
//! ```text
//! gpu_cells --list                          the 60 cells that compute-sanitizer watches
//! gpu_cells [--repeat N] CELL...            runs cells, such as mine/bf16/130x259x200
//! ```
//!
//! Prints a line `cell NAME` before a cell's first call and a JSON object behind its last one: how often it ran, the hash of all
//! its outputs, and how many different hashes there were. Between repeats outputs and workspace are filled with ones, so that
//! nothing can be right because it was right before.

mod call;
mod operation;
mod session;

use std::io::Write;
use std::process::ExitCode;

use bytemuck::{Pod, Zeroable, cast_slice};
use half::{bf16, f16};
use serde_json::json;
use simgrad::Element;

use call::{Call, Op};
use operation::OUTPUTS;
use session::{Session, describe};

/// What a cell's name says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    name: String,
    op: Op,
    /// Of the pairwise step: SigLIP.
    siglip: bool,
    dtype: u32,
    n: usize,
    m: usize,
    d: usize,
}

const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];

/// Names of operations, in which the pairwise step has two.
const NAMES: [(&str, Op); 10] = [
    ("normalize", Op::Normalize),
    ("cosine_matrix", Op::CosineMatrix),
    ("mine", Op::Mine),
    ("mine_top_k", Op::MineTopK),
    ("weighted_grad", Op::WeightedGrad),
    ("goal_step", Op::GoalStep),
    ("mined_triplet_step", Op::MinedTriplet),
    ("infonce", Op::PairwiseStep),
    ("siglip", Op::PairwiseStep),
    ("ranks", Op::Ranks),
];

/// Ragged in every extent: tiles, vectors and steps of `d` end in the middle.
const SHAPES: [[usize; 3]; 2] = [[130, 259, 200], [67, 33, 9]];

fn list() -> Vec<String> {
    let mut cells = Vec::new();
    for (name, op) in NAMES {
        for dtype in DTYPES {
            for [n, m, d] in SHAPES {
                let m = if op == Op::GoalStep { n } else { m };
                cells.push(format!("{name}/{dtype}/{n}x{m}x{d}"));
            }
        }
    }
    cells
}

impl Cell {
    fn parse(name: &str) -> Result<Self, String> {
        let wrong = || format!("`{name}` is not a cell such as mine/bf16/130x259x200");
        let mut words = name.split('/');
        let (Some(op), Some(dtype), Some(shape), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(wrong());
        };
        let (known, op) = *NAMES.iter().find(|(known, _)| *known == op).ok_or_else(wrong)?;
        let dtype = DTYPES.iter().position(|known| *known == dtype).ok_or_else(wrong)? as u32;
        let extents: Option<Vec<usize>> =
            shape.split('x').map(|e| e.parse().ok().filter(|e| (1..=1 << 20).contains(e))).collect();
        let [n, m, d] = extents.ok_or_else(wrong)?[..] else { return Err(wrong()) };
        Ok(Self { name: name.to_owned(), op, siglip: known == "siglip", dtype, n, m, d })
    }

    fn call(&self) -> Call {
        Call {
            op: self.op as u32,
            dtype: self.dtype,
            normalize: 1,
            objective: match self.op {
                // The one with relative similarities: its kernels do the most.
                Op::GoalStep => 2,
                _ => u32::from(self.siglip),
            },
            batch: 1,
            n: self.n as u64,
            m: self.m as u64,
            d: self.d as u64,
            k: if self.op == Op::WeightedGrad { 3 * self.n as u64 } else { 3 },
            scale: 10.0,
            bias: if self.siglip { -10.0 } else { 0.0 },
            // One tile row of weights at a time, so that even a small shape takes several waves.
            wave_bytes: 1,
            ..Call::zeroed()
        }
    }
}

/// Approximately Gaussian numbers that depend on `seed` alone.
fn gaussian(len: usize, seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len).map(move |_| (uniform() + uniform() + uniform() - 1.5) * 2.0)
}

fn elements(dtype: u32, len: usize, seed: u64) -> Vec<u8> {
    fn of<T: Element + Pod>(len: usize, seed: u64) -> Vec<u8> {
        let data: Vec<T> = gaussian(len, seed).map(T::from_f64).collect();
        cast_slice(&data).to_vec()
    }
    match dtype {
        0 => of::<f32>(len, seed),
        1 => of::<f16>(len, seed),
        _ => of::<bf16>(len, seed),
    }
}

/// FNV-1a over words of 8 bytes.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (h ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Device memory that is given back.
struct Memory<'a> {
    session: &'a Session,
    address: u64,
    bytes: usize,
}

impl<'a> Memory<'a> {
    fn new(session: &'a Session, bytes: usize) -> Result<Self, String> {
        Ok(Self { session, address: session.alloc(bytes)?, bytes })
    }

    fn of(session: &'a Session, data: &[u8]) -> Result<Self, String> {
        let memory = Self::new(session, data.len())?;
        memory.fill(data)?;
        Ok(memory)
    }

    fn fill(&self, data: &[u8]) -> Result<(), String> {
        assert_eq!(data.len(), self.bytes, "the length of the allocation");
        // SAFETY: the allocation has as many bytes.
        unsafe { self.session.upload(self.address, data) }
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        let mut data = vec![0; self.bytes];
        // SAFETY: as above.
        unsafe { self.session.download(&mut data, self.address) }?;
        Ok(data)
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: it came from `alloc`, and every use of it has been waited for.
        let _ = unsafe { self.session.free(self.address) };
    }
}

/// Runs a cell `repeats` times; the hashes of its outputs.
fn run(session: &Session, cell: &Cell, repeats: usize) -> Result<Vec<u64>, String> {
    let mut call = cell.call();
    let x = Memory::of(session, &elements(cell.dtype, cell.n * cell.d, 1))?;
    let y = Memory::of(session, &elements(cell.dtype, cell.m * cell.d, 2))?;
    (call.x, call.y) = (x.address, y.address);
    let mut inputs = Vec::new();
    if cell.op == Op::WeightedGrad {
        // Every third target is the same one, as a hub would be.
        let count = call.k as usize;
        let target = |i: usize, of: usize| if i.is_multiple_of(3) { 0 } else { (i * 7 % of) as i32 };
        let rows: Vec<i32> = (0..count).map(|i| target(i, cell.n)).collect();
        let cols: Vec<i32> = (0..count).map(|i| target(i + 1, cell.m)).collect();
        let values: Vec<f32> = gaussian(count, 3).map(|v| v as f32).collect();
        for data in [cast_slice(&rows), cast_slice(&cols), cast_slice::<f32, u8>(&values)] {
            inputs.push(Memory::of(session, data)?);
        }
    }
    for (place, memory) in call.inputs.iter_mut().zip(&inputs) {
        *place = memory.address;
    }
    let sizes = call::sizes(&call).map_err(|e| e.to_string())?;
    let mut outputs = Vec::new();
    for at in (0..OUTPUTS).filter(|&at| sizes.outputs[at] > 0) {
        let memory = Memory::new(session, sizes.outputs[at] as usize)?;
        call.outputs[at] = memory.address;
        outputs.push(memory);
    }
    let workspace = Memory::new(session, sizes.workspace as usize)?;
    (call.workspace, call.workspace_bytes) = (workspace.address, sizes.workspace);
    let stream = session.context.new_stream().map_err(describe)?;
    let mut hashes = Vec::new();
    for repeat in 0..repeats {
        if repeat > 0 {
            for memory in outputs.iter().chain([&workspace]) {
                memory.fill(&vec![0xff; memory.bytes])?;
            }
        }
        // SAFETY: the addresses are those of live allocations of the sizes that were asked for.
        unsafe { call::enqueue(&session.kernels, &stream, &call) }.map_err(|e| e.to_string())?;
        session.synchronize()?;
        let mut found = 0;
        for memory in &outputs {
            found = hash(found, &memory.read()?);
        }
        hashes.push(found);
    }
    Ok(hashes)
}

fn say(text: &str) {
    // Flushed, so that a tool's own lines stand between the cells' in their order.
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Whether everything went well.
fn work(cells: &[Cell], repeats: usize) -> Result<bool, String> {
    let session = Session::open(0)?;
    say(&session.facts());
    let mut good = true;
    for cell in cells {
        say(&format!("cell {}", cell.name));
        let line = match run(&session, cell, repeats) {
            Ok(hashes) => {
                let mut distinct = hashes.clone();
                distinct.sort_unstable();
                distinct.dedup();
                good &= distinct.len() == 1;
                let first = format!("{:016x}", hashes[0]);
                json!({"cell": cell.name, "repeats": repeats, "distinct": distinct.len(), "hash": first})
            }
            Err(error) => {
                good = false;
                json!({"cell": cell.name, "error": error})
            }
        };
        say(&line.to_string());
    }
    Ok(good)
}

fn arguments() -> Result<(Vec<Cell>, usize), String> {
    let (mut cells, mut repeats) = (Vec::new(), 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--repeat" {
            let count = arguments.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
            repeats = count.ok_or("--repeat needs a number above 0")?;
        } else {
            cells.push(Cell::parse(&argument)?);
        }
    }
    if cells.is_empty() {
        return Err("usage: gpu_cells --list | [--repeat N] CELL...".to_owned());
    }
    Ok((cells, repeats))
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|a| a == "--list") {
        for name in list() {
            say(&name);
        }
        return ExitCode::SUCCESS;
    }
    match arguments().and_then(|(cells, repeats)| work(&cells, repeats)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpu_cells: {error}");
            ExitCode::from(2)
        }
    }
}
