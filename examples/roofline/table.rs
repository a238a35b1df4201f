//! The table of the sixteen configurations in docs/kernels.md; everything in it is derived.

use simgrad::Error;
use simgrad::cuda::{Ceilings, Plan, PlanDevice};

use crate::cases::{CONFIGURATIONS, Configuration};

/// Three digits and a unit.
fn scaled(value: f64, units: &[&str]) -> String {
    let (mut value, mut at) = (value, 0);
    while value >= 999.5 && at + 1 < units.len() {
        value /= 1000.0;
        at += 1;
    }
    let digits = match value {
        v if v >= 99.95 || v == 0.0 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {}", units[at])
}

/// A time.
pub fn seconds(value: f64) -> String {
    scaled(value * 1e9, &["ns", "µs", "ms", "s"])
}

/// A number of bytes.
pub fn bytes(value: f64) -> String {
    scaled(value, &["B", "kB", "MB", "GB", "TB"])
}

/// A number of operations.
pub fn operations(value: f64) -> String {
    scaled(value, &["flop", "kflop", "Mflop", "Gflop", "Tflop"])
}

/// The head of the table of all configurations.
const HEAD: &str = "\
| # | operation | floor: operations | bytes | launches | at least | bound by | plan: launches | sweep | modelled bytes | at its ceilings | / floor |
| --: | --- | --: | --: | --: | --: | --- | --: | --- | --: | --: | --: |
";

/// A row of the table of all configurations; all derived.
fn row(configuration: &Configuration, plan: &Plan, ceilings: &Ceilings) -> String {
    let (least, bound) = plan.floor.seconds(ceilings);
    let time = plan.seconds_at(ceilings);
    let sweep = plan.launches.iter().find_map(|launch| launch.sweep).map_or("none".to_owned(), |sweep| {
        let efficiency = 100.0 * sweep.tail_efficiency(plan.device.multiprocessors);
        let (x, y, _) = sweep.grid;
        let grid = match (x, y) {
            (1, 1) => "1 block".to_owned(),
            (_, 1) => format!("{x} blocks"),
            _ => format!("{x} × {y} blocks"),
        };
        format!("{:?}, {grid}, {efficiency:.0} % busy", sweep.scheme)
    });
    let note = if configuration.note.is_empty() { String::new() } else { format!("; {}", configuration.note) };
    format!(
        "| {} | {}: `{}`{note} | {} | {} | {} | {} | {bound} | {} | {sweep} | {} | {} | {:.2} |\n",
        configuration.number,
        configuration.title,
        configuration.case.text(),
        operations(plan.floor.operations),
        bytes(plan.floor.bytes),
        plan.floor.launches,
        seconds(least),
        plan.launches.len(),
        plan.totals().modelled_bytes.map_or("-".to_owned(), bytes),
        seconds(time),
        time / least
    )
}

/// The table for a device, with the ceilings that it is made with.
pub fn table(device: PlanDevice) -> Result<String, Error> {
    let ceilings = &Ceilings::H200;
    let mut table = HEAD.to_owned();
    for configuration in &CONFIGURATIONS {
        table += &row(configuration, &configuration.case.plan(device)?, ceilings);
    }
    table += &format!("\nCeilings: {}.\n", ceilings.source);
    Ok(table)
}
