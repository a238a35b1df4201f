//! Says whether the tests of this run cover CUDA, and how many of them lack that part.

mod common;

use std::io::Write;

/// Tests in `tests/*.rs` that run on every backend, or on CUDA only.
fn gpu_tests() -> usize {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let files = std::fs::read_dir(dir).expect("the tests are here").filter_map(Result::ok).map(|f| f.path());
    let sources = files.filter(|p| p.extension().is_some_and(|e| e == "rs") && !p.ends_with("gpu_presence.rs"));
    let uses = |test: &&str| test.contains("on_every_backend(") || test.contains("common::cuda()");
    let count = |text: String| text.split("#[test]").skip(1).filter(uses).count();
    sources.map(|p| count(std::fs::read_to_string(p).expect("a readable source"))).sum()
}

#[test]
fn cuda_is_tested_or_said_to_be_missing() {
    let tests = gpu_tests();
    assert!(tests > 50, "only {tests} tests with a CUDA part found");
    let say = |text: String| {
        let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
    };
    match common::cuda() {
        Ok(backend) => say(format!("note: {tests} tests run on {backend:?}")),
        Err(reason) => {
            assert!(!common::gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            say(format!("note: {tests} GPU tests were skipped (they ran on the CPU only): {reason}"));
        }
    }
}
