//! The table of floors and plans in docs/kernels.md is what the program prints.
#![cfg(feature = "cuda")]

#[path = "../examples/roofline/cases.rs"]
#[allow(dead_code)]
mod cases;
#[path = "../examples/roofline/table.rs"]
mod table;

use cases::CONFIGURATIONS;
use simgrad::cuda::PlanDevice;

const DOCUMENT: &str = include_str!("../docs/kernels.md");

#[test]
fn the_documented_table_is_what_the_program_prints() {
    let (begin, end) = ("<!-- roofline -->", "<!-- /roofline -->");
    let documented = DOCUMENT.split(begin).nth(1).and_then(|rest| rest.split(end).next()).expect("both markers");
    let printed = table::table(PlanDevice::H200).expect("plans");
    assert!(
        documented.trim() == printed.trim(),
        "docs/kernels.md is not up to date: cargo run --release --example roofline -- --all --write-docs docs/kernels.md\n{printed}"
    );
}

#[test]
fn all_sixteen_configurations_are_there() {
    let mut numbers: Vec<u32> = CONFIGURATIONS.iter().map(|c| c.number).collect();
    numbers.dedup();
    assert_eq!(numbers, (1..=16).collect::<Vec<_>>());
}

#[test]
fn times_and_amounts_have_three_digits() {
    assert_eq!(
        [0.0, 999.4e-9, 1.1e-6, 347.9e-6, 17.77e-3].map(table::seconds),
        ["0 ns", "999 ns", "1.10 µs", "348 µs", "17.8 ms"]
    );
    assert_eq!((table::bytes(0.0), table::bytes(1.107e9)), ("0 B".to_owned(), "1.11 GB".to_owned()));
    assert_eq!(table::operations(8.8e12), "8.80 Tflop");
}
