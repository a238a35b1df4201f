//! The Python side of `scripts/gpu-report` and its library: all that needs no PyTorch, and on a device the library itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The library from the sources as they are. `None` without the feature that it needs.
fn library() -> Option<PathBuf> {
    if !cfg!(feature = "cuda") {
        return None;
    }
    let test = std::env::current_exe().expect("the path of this test");
    // target/PROFILE/deps/gpu_report-HASH
    let folder = test.ancestors().nth(2).expect("a profile's folder");
    let profile = folder.file_name().and_then(|name| name.to_str()).expect("a profile's name");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["build", "--quiet", "--locked", "--offline", "--example", "simgrad_report", "--profile"]);
    cargo.arg(if profile == "debug" { "dev" } else { profile });
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "the library does not build: {}", String::from_utf8_lossy(&output.stderr));
    let name = format!("{}simgrad_report{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let path = folder.join("examples").join(name);
    assert!(path.exists(), "{} is not built", path.display());
    Some(path)
}

/// Runs one file of tests; `None`, after saying so, where there is no Python.
fn python(file: &str, library: Option<&Path>) -> Option<Output> {
    let mut command = Command::new("python3");
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts"));
    command
        .args(["-B", "-m", "unittest", "-v", &format!("gpu_report.tests.{file}")])
        .env_remove("SIMGRAD_REPORT_LIBRARY");
    if let Some(path) = library {
        command.env("SIMGRAD_REPORT_LIBRARY", path);
    }
    match command.output() {
        Ok(output) => Some(output),
        Err(reason) => {
            say(&format!("note: the Python tests of gpu-report are skipped: python3 does not start: {reason}"));
            None
        }
    }
}

#[track_caller]
fn passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("Ran 0 tests"), "{text}");
    for line in text.lines().filter(|line| line.contains("skipped")) {
        say(&format!("note: {line}"));
    }
}

#[test]
fn what_needs_no_library() {
    if let Some(output) = python("test_pure", None) {
        passed(&output);
    }
}

#[test]
fn the_library_for_ctypes() {
    let Some(library) = library() else {
        say("note: the library for ctypes is not tested: it needs the feature `cuda`");
        return;
    };
    if let Some(output) = python("test_library", Some(&library)) {
        passed(&output);
    }
}
