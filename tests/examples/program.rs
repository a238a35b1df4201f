//! Running a built example.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

/// A folder for one test, emptied first, inside the build folder.
pub fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    match std::fs::remove_dir_all(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{}: {e}", path.display()),
        _ => {}
    }
    std::fs::create_dir_all(&path).expect("a folder for the test");
    path
}

/// The built example of this name, from the sources as they are.
fn executable(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let test = std::env::current_exe().expect("the path of this test");
    // target/PROFILE/deps/examples-HASH
    let profile = test.ancestors().nth(2).expect("a profile's folder");
    BUILT.call_once(|| build(profile));
    let path = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// `cargo test` has built the examples, and then this takes no time; `cargo test --test examples` has not, and what lies
/// there may be stale.
fn build(profile: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--locked", "--offline"]);
    for name in ["evaluate", "inspect", "pairwise", "train_retrieval"] {
        cargo.args(["--example", name]);
    }
    if cfg!(feature = "cuda") {
        cargo.args(["--example", "roofline"]);
    }
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    if !cfg!(feature = "cuda") {
        cargo.arg("--no-default-features");
    }
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "the examples do not build: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a run left behind.
pub struct Ran {
    /// Exit status.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs an example with these arguments.
pub fn run(example: &str, arguments: &[&str]) -> Ran {
    finish(Command::new(executable(example)).args(arguments))
}

/// Runs an example that must succeed with this many threads for everything that rayon shares out.
#[track_caller]
pub fn succeed_with_threads(example: &str, arguments: &[&str], threads: &str) -> String {
    let ran = finish(Command::new(executable(example)).args(arguments).env("RAYON_NUM_THREADS", threads));
    assert_eq!(ran.status, Some(0), "{example} {arguments:?}: {}", ran.stderr);
    ran.stdout
}

fn finish(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().expect("the example starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8 output");
    Ran { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs an example that must succeed, and returns what it printed.
#[track_caller]
pub fn succeed(example: &str, arguments: &[&str]) -> String {
    let ran = run(example, arguments);
    assert_eq!(ran.status, Some(0), "{example} {arguments:?}: {}", ran.stderr);
    ran.stdout
}

/// Runs an example that must end with status 2 and a message that holds each of these texts.
#[track_caller]
pub fn refuse(example: &str, arguments: &[&str], texts: &[&str]) {
    let ran = run(example, arguments);
    assert_eq!(ran.status, Some(2), "{example} {arguments:?}: {}{}", ran.stdout, ran.stderr);
    for text in texts {
        assert!(ran.stderr.contains(text), "{example} {arguments:?} says `{}`, not `{text}`", ran.stderr.trim());
    }
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
