//! What an operation will do on a device, worked out without one: its launches, what each computes, reads and writes, the
//! memory that it needs, and the least that any implementation would have to do.

use std::fmt::Write;

use super::explain::Reason;
use super::plan::{PlanDevice, Scheme, SweepPlan};
use crate::dtype::DType;

/// Which units an amount of arithmetic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Tensor cores, 16-bit operands.
    Tensor,
    /// Multiply-adds of f32 on the ordinary units.
    MultiplyAdd,
}

/// Rates that times are derived from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// 16-bit operations per second of the tensor cores.
    pub tensor: f64,
    /// The share of it that `mma.sync` reaches.
    pub warp_share: f64,
    /// f32 operations per second of the ordinary units, two for each multiply-add.
    pub multiply_add: f64,
    /// Bytes per second of device memory, read and written together.
    pub bandwidth: f64,
    /// Seconds that a kernel of a graph takes if it does nothing.
    pub launch: f64,
    /// Where they come from.
    pub source: &'static str,
}

impl Ceilings {
    /// Of an H200. Stated, not measured here.
    pub const H200: Self = Self {
        tensor: 790e12,
        warp_share: 0.63,
        multiply_add: 67e12,
        bandwidth: 4.3e12,
        launch: 1.1e-6,
        source: "H200, stated: 790 TFLOP/s bf16 at 8192³ with random data (mma.sync 63 % of it), 67 TFLOP/s f32, copies at \
                 4.3 TB/s, 1.1 µs for a kernel of a graph",
    };

    fn rate(&self, arithmetic: Arithmetic, scheme: Scheme) -> f64 {
        match (arithmetic, scheme) {
            (Arithmetic::MultiplyAdd, _) => self.multiply_add,
            (Arithmetic::Tensor, Scheme::WarpMma) => self.tensor * self.warp_share,
            (Arithmetic::Tensor, _) => self.tensor,
        }
    }
}

/// The least that an operation has to do, whatever the implementation. Derived from its formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Operations of the tensor cores, two for each multiply-add.
    pub operations: f64,
    /// Why so many.
    pub why: &'static str,
    /// Bytes of the inputs and of the outputs, once each.
    pub bytes: f64,
    /// Launches: one more than there are waits of everything for everything.
    pub launches: u32,
}

impl Floor {
    /// Seconds, and what they are for: the longest of arithmetic, memory and launches.
    pub fn seconds(&self, ceilings: &Ceilings) -> (f64, &'static str) {
        let times = [
            (self.operations / ceilings.tensor, "arithmetic"),
            (self.bytes / ceilings.bandwidth, "memory"),
            (f64::from(self.launches) * ceilings.launch, "launches"),
        ];
        times.into_iter().fold((0.0, "nothing"), |longest, time| if time.0 > longest.0 { time } else { longest })
    }
}

/// One kernel of a [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedLaunch {
    /// Its name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: (u32, u32, u32),
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// How its blocks multiply.
    pub scheme: Scheme,
    /// How it sweeps, if it is one of the tile kernels whose tiles are dealt.
    pub sweep: Option<SweepPlan>,
    /// Operations of the products, two for each multiply-add, with those of the padding of tiles.
    pub operations: f64,
    /// The units that they are for.
    pub arithmetic: Arithmetic,
    /// Bytes of device memory that are read at least once.
    pub read: f64,
    /// Bytes of device memory that are written at least once.
    pub written: f64,
    /// Bytes that are read again because L2 does not hold them till then; of a sweep see [`Self::read_again`].
    pub(super) again: f64,
}

impl PlannedLaunch {
    /// Bytes that come from device memory a second time or more, since L2 does not hold them till then: modelled. `None`
    /// where that takes too long to follow.
    pub fn read_again(&self) -> Option<f64> {
        let Some(sweep) = &self.sweep else { return Some(self.again) };
        let shape = &sweep.shape;
        let once = shape.batch as f64 * (shape.n + shape.m) as f64 * (shape.d * shape.dtype.size()) as f64;
        sweep.operand_traffic(sweep.device.l2_bytes).map(|all| (all as f64 - once).max(0.0))
    }
}

/// What an operation will do on a device, with contiguous, aligned inputs that it normalises, and no groups unless it says so.
///
/// Made without a device, by a function per operation: [`Plan::mine`] and so on. The numbers of the tile kernels are those
/// that the operation itself launches with.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The operation.
    pub op: &'static str,
    /// Matrices of a batch.
    pub batch: usize,
    /// Rows of `x`.
    pub n: usize,
    /// Rows of `y`.
    pub m: usize,
    /// Features.
    pub d: usize,
    /// Type of the inputs.
    pub dtype: DType,
    /// What it is for.
    pub device: PlanDevice,
    /// The kernels in their order.
    pub launches: Vec<PlannedLaunch>,
    /// What was chosen for the operation as a whole, and why.
    pub choices: Vec<Reason>,
    /// Bytes of workspace, whatever the alignment of the inputs.
    pub workspace_bytes: usize,
    /// The least that there is to do.
    pub floor: Floor,
}

/// What a plan adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Operations of the tensor cores.
    pub tensor: f64,
    /// f32 operations of products on the ordinary units.
    pub multiply_add: f64,
    /// Bytes that the launches read or write at least once each.
    pub bytes: f64,
    /// And with what is read again, modelled. `None` where that takes too long to follow.
    pub modelled_bytes: Option<f64>,
}

impl Plan {
    /// What every launch reads again.
    fn read_again(&self) -> Vec<Option<f64>> {
        // Waves are alike: one is followed for all.
        let mut known: Option<(SweepPlan, Option<f64>)> = None;
        let mut one = |launch: &PlannedLaunch| {
            let again = match (known, launch.sweep) {
                (Some((sweep, again)), Some(this)) if sweep == this => again,
                _ => launch.read_again(),
            };
            known = launch.sweep.map(|sweep| (sweep, again)).or(known);
            again
        };
        self.launches.iter().map(&mut one).collect()
    }

    /// Sums over the launches.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { modelled_bytes: Some(0.0), ..Totals::default() };
        for (launch, again) in self.launches.iter().zip(self.read_again()) {
            match launch.arithmetic {
                Arithmetic::Tensor => totals.tensor += launch.operations,
                Arithmetic::MultiplyAdd => totals.multiply_add += launch.operations,
            }
            let once = launch.read + launch.written;
            totals.bytes += once;
            totals.modelled_bytes = totals.modelled_bytes.zip(again).map(|(sum, again)| sum + once + again);
        }
        totals
    }

    /// Seconds that the launches would take one after the other, each as fast as the ceilings allow: that of its instructions
    /// on the multiprocessors that it keeps busy, that of memory for what it reads and writes, again too, and that of an
    /// empty kernel. Derived: no measurement and no prediction.
    pub fn seconds_at(&self, ceilings: &Ceilings) -> f64 {
        let one = |(launch, again): (&PlannedLaunch, Option<f64>)| {
            let busy = launch.sweep.map_or(1.0, |sweep| sweep.tail_efficiency(self.device.multiprocessors));
            let rate = ceilings.rate(launch.arithmetic, launch.scheme) * if busy > 0.0 { busy } else { 1.0 };
            let memory = (launch.read + launch.written + again.unwrap_or(0.0)) / ceilings.bandwidth;
            (launch.operations / rate).max(memory).max(ceilings.launch)
        };
        self.launches.iter().zip(self.read_again()).map(one).sum()
    }

    /// The plan as text: its launches with what they do, and the reasons for the numbers of the tile kernels.
    pub fn explain(&self) -> String {
        let Self { op, batch, n, m, d, dtype, .. } = self;
        let times = if *batch > 1 { format!("{batch} x ") } else { String::new() };
        let mut text = format!("{op} of {times}({n}, {d}) x ({m}, {d}) in {dtype}\n");
        // Writing to a string does not fail.
        let _ = writeln!(text, "for {}", self.device.describe());
        let _ = writeln!(text, "{} launches, {} of workspace", self.launches.len(), bytes(self.workspace_bytes as f64));
        for Reason { what, value, why } in &self.choices {
            let _ = writeln!(text, "{what}: {value}, {why}");
        }
        let (mut rest, mut explained) = (&self.launches[..], None);
        while !rest.is_empty() {
            // Waves repeat the same few launches.
            let period = (1..=rest.len() / 2).find(|&p| alike(&rest[..p], &rest[p..2 * p])).unwrap_or(1);
            let repeats = rest.chunks_exact(period).take_while(|chunk| alike(chunk, &rest[..period])).count();
            let period = if repeats > 1 { period } else { 1 };
            for launch in &rest[..period] {
                let times = if repeats > 1 { format!("{repeats} x ") } else { String::new() };
                launch.write(&mut text, &times, &mut explained);
            }
            rest = &rest[period * repeats.max(1)..];
        }
        text
    }
}

/// Whether launches differ by no more than which rows they are for.
fn alike(a: &[PlannedLaunch], b: &[PlannedLaunch]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a.kernel, a.grid, a.sweep) == (b.kernel, b.grid, b.sweep))
}

impl PlannedLaunch {
    fn write(&self, text: &mut String, times: &str, explained: &mut Option<SweepPlan>) {
        let (x, y, _) = self.grid;
        let grid = if y > 1 { format!("{x} x {y}") } else { x.to_string() };
        let work = match (self.operations > 0.0, self.arithmetic) {
            (false, _) => String::new(),
            (true, Arithmetic::Tensor) => format!(", {} on tensor cores", operations(self.operations)),
            (true, Arithmetic::MultiplyAdd) => format!(", {} in multiply-adds", operations(self.operations)),
        };
        let (read, written) = (bytes(self.read), bytes(self.written));
        let (kernel, block) = (self.kernel, self.block);
        let _ = writeln!(text, "{times}{kernel}: {grid} blocks of {block}{work}, reads {read}, writes {written}");
        if let Some(sweep) = self.sweep.filter(|sweep| *explained != Some(*sweep)) {
            sweep.write_reasons(text, "  ");
            *explained = Some(sweep);
        }
    }
}

/// Three digits and a unit, of powers of 1000.
fn scaled(value: f64, units: [&str; 6]) -> String {
    let (mut value, mut at) = (value, 0);
    while value >= 999.5 && at + 1 < units.len() {
        value /= 1000.0;
        at += 1;
    }
    let digits = match value {
        _ if at == 0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {}", units[at])
}

/// A number of bytes for people.
fn bytes(value: f64) -> String {
    scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A number of operations for people.
fn operations(value: f64) -> String {
    scaled(value, ["flop", "kflop", "Mflop", "Gflop", "Tflop", "Pflop"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people_have_three_digits() {
        let all = [0.0, 999.0, 1000.0, 12_345.0, 999_600.0, 4.29e9, 1e19].map(bytes);
        assert_eq!(all, ["0 B", "999 B", "1.00 kB", "12.3 kB", "1.00 MB", "4.29 GB", "10000 PB"]);
    }

    #[test]
    fn a_floor_is_the_longest_of_its_times() {
        let floor = Floor { operations: 790e6, why: "", bytes: 4.3e6, launches: 3 };
        assert_eq!(floor.seconds(&Ceilings::H200).1, "launches");
        assert_eq!(Floor { operations: 790e12, ..floor }.seconds(&Ceilings::H200), (1.0, "arithmetic"));
        assert_eq!(Floor { bytes: 8.6e12, ..floor }.seconds(&Ceilings::H200), (2.0, "memory"));
    }
}
