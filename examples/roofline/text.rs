//! What the program prints.

use std::fmt::Write;

use simgrad::cuda::{Ceilings, Floor, Plan};

use crate::counters::Row;
use crate::cpu::CpuCeilings;
use crate::device::Clock;
use crate::table::{bytes, operations, seconds};

/// The floor of a plan with the times that it is made of.
pub fn floor(plan: &Plan, ceilings: &Ceilings) -> String {
    let Floor { operations: work, why, bytes: traffic, launches } = plan.floor;
    let (time, bound) = plan.floor.seconds(ceilings);
    let lines = [
        ("operations", operations(work), seconds(work / ceilings.tensor), why),
        ("bytes", bytes(traffic), seconds(traffic / ceilings.bandwidth), "inputs and results, once each"),
        (
            "launches",
            launches.to_string(),
            seconds(f64::from(launches) * ceilings.launch),
            "one more than everything waits for everything",
        ),
    ];
    let mut text = format!("floor, derived ({})\n", ceilings.source);
    for (what, amount, time, why) in lines {
        let _ = writeln!(text, "  {what:<11} {amount:<11} {time:<9} {why}");
    }
    let _ = writeln!(text, "  at least    {}, bound by {bound}", seconds(time));
    text
}

/// The plan, what it comes to, and the ratio to the floor; all derived.
pub fn plan(plan: &Plan, ceilings: &Ceilings) -> String {
    let mut text = String::from("plan\n");
    for line in plan.explain().lines() {
        let _ = writeln!(text, "  {line}");
    }
    let totals = plan.totals();
    let l2 = bytes(plan.device.l2_bytes as f64);
    let modelled = totals.modelled_bytes.map_or("too many tiles to follow".to_owned(), bytes);
    let _ = writeln!(
        text,
        "  {} touched at least once by each launch; {modelled} through {l2} of L2, modelled",
        bytes(totals.bytes)
    );
    let (least, _) = plan.floor.seconds(ceilings);
    let time = plan.seconds_at(ceilings);
    let _ = writeln!(
        text,
        "  every launch at the ceilings of its instructions on the multiprocessors that it keeps busy, of memory and of a \
         launch: {}, {:.2} x the floor, derived",
        seconds(time),
        time / least
    );
    text
}

/// Counters beside the plan.
pub fn counted(rows: &[Row], title: &str) -> String {
    let mut text = format!("{title}\n  {:<28} {:>22} {:>22} {:>22}\n", "", "operations", "bytes read", "bytes written");
    for row in rows {
        let cell = |pair: &crate::counters::Pair| format!("{} / {}", pair.counted, pair.ratio());
        let (o, r, w) = (cell(&row.operations), cell(&row.read), cell(&row.written));
        let _ = writeln!(text, "  {:<28} {o:>22} {r:>22} {w:>22}", row.kernel);
    }
    let _ = writeln!(text, "  counted / ratio to the plan; operations of tensor cores, or of all f32 arithmetic");
    text
}

/// The clock of a device beside the floor.
pub fn measured(name: &str, clock: &Clock, plan: &Plan, ceilings: &Ceilings) -> String {
    let (least, _) = plan.floor.seconds(ceilings);
    format!(
        "measured on {name} by its clock, {} calls\n  median {}, a tenth below {} and above {}; {:.2} x the floor\n",
        clock.calls,
        seconds(clock.median),
        seconds(clock.low),
        seconds(clock.high),
        clock.median / least
    )
}

/// The clock of the CPU beside what its own ceilings allow.
pub fn measured_cpu(clock: &Clock, products: f64, plan: &Plan, ceilings: &CpuCeilings) -> String {
    let work = products * 2.0 * plan.batch as f64 * plan.n as f64 * plan.m as f64 * plan.d as f64;
    let (arithmetic, memory) = (work / ceilings.multiply_add, plan.floor.bytes / ceilings.bandwidth);
    let (least, bound) = if arithmetic > memory { (arithmetic, "arithmetic") } else { (memory, "memory") };
    format!(
        "measured on this CPU, {} threads, {} calls; ceilings measured just before: {}/s of f32 multiply-adds with {}, \
         copies at {}/s\n  at least {}, bound by {bound}: {} and {}\n  median {}, a tenth below {} and above {}; {:.2} x \
         that\n",
        ceilings.threads,
        clock.calls,
        operations(ceilings.multiply_add),
        ceilings.instructions,
        bytes(ceilings.bandwidth),
        seconds(least),
        operations(work),
        bytes(plan.floor.bytes),
        seconds(clock.median),
        seconds(clock.low),
        seconds(clock.high),
        clock.median / least
    )
}

/// The head of the table of counters.
pub const COUNTED_HEAD: &str = "\
| operation | kernel | operations | / plan | bytes read | / plan | bytes written | / plan |
| --- | --- | --: | --: | --: | --: | --: | --: |
";

/// The rows of one operation in the table of counters.
pub fn counted_rows(case: &str, rows: &[Row]) -> String {
    rows.iter().fold(String::new(), |mut text, row| {
        let [o, r, w] = [row.operations, row.read, row.written];
        let _ = writeln!(
            text,
            "| `{case}` | `{}` | {} | {} | {} | {} | {} | {} |",
            row.kernel,
            o.counted,
            o.ratio(),
            r.counted,
            r.ratio(),
            w.counted,
            w.ratio()
        );
        text
    })
}
