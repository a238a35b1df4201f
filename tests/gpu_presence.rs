//! Says whether the tests of this run cover CUDA, and how many of them lack that part.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};

/// The sources of the integration tests, those in directories included.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the tests are here").filter_map(Result::ok).map(|f| f.path());
    let expand = |p: PathBuf| if p.is_dir() { sources(&p) } else { vec![p] };
    entries.flat_map(expand).filter(|p| p.extension().is_some_and(|e| e == "rs")).collect()
}

/// Tests that run on every backend, or on CUDA only, which the files named `cuda_*` hold.
fn gpu_tests() -> usize {
    let marks = ["on_every_backend(", "common::cuda()", "device()", "cuda_with_nvrtc()", "ready()"];
    let of_file = |path: &PathBuf| {
        let cuda_only = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cuda_"));
        let text = std::fs::read_to_string(path).expect("a readable source");
        text.split("#[test]").skip(1).filter(|test| cuda_only || marks.iter().any(|mark| test.contains(mark))).count()
    };
    let all = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    all.iter().filter(|path| !path.ends_with("gpu_presence.rs")).map(of_file).sum()
}

#[test]
fn cuda_is_tested_or_said_to_be_missing() {
    let tests = gpu_tests();
    assert!(tests > 50, "only {tests} tests with a CUDA part found");
    let say = |text: String| {
        let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
    };
    match common::cuda() {
        Ok(backend) => say(format!("note: {tests} tests run on {} too", backend.name())),
        Err(reason) => {
            assert!(!common::gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            say(format!("note: {tests} GPU tests were skipped (they ran on the CPU only): {reason}"));
        }
    }
}
