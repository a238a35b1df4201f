//! Compiles every `kernels/<name>.cu` to `$OUT_DIR/<name>.fatbin` with nvcc.
//!
//! Files `<name>_hopper.cu` use what only sm_90a has. They are compiled for it alone, and only if it is among the targets.
//!
//! Three outcomes:
//! * nvcc works: `cfg(has_kernels)` is set, `cfg(has_hopper_kernels)` too if sm_90a is a target, and `SIMGRAD_BUILT_ARCHS`
//!   says what was built (`sm_80, compute_80, sm_90a`);
//! * no nvcc: one warning, no `has_kernels`, an empty `SIMGRAD_BUILT_ARCHS`; an error with `SIMGRAD_REQUIRE_NVCC=1`;
//! * an nvcc that fails: an error with the command and its output.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[path = "build/archs.rs"]
mod archs;
#[path = "build/compile.rs"]
mod compile;
#[path = "build/discovery.rs"]
mod discovery;

/// Variables that change what is built. PATH is not among them: it differs between shells and editors, and matters
/// only while no nvcc is found.
const TRACKED: [&str; 9] = [
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "NVCC_CCBIN",
    "NVCC_PREPEND_FLAGS",
    "NVCC_APPEND_FLAGS",
    "SIMGRAD_CUDA_ARCHS",
    "SIMGRAD_REQUIRE_NVCC",
    "DOCS_RS",
];

fn main() -> ExitCode {
    match run() {
        Ok(built) => {
            println!("cargo:rustc-env=SIMGRAD_BUILT_ARCHS={built}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("error: simgrad's kernels were not built: {message}");
            ExitCode::FAILURE
        }
    }
}

fn var(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn dir(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set; cargo sets it"))
}

/// Returns what was built.
fn run() -> Result<String, String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    for name in TRACKED {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if var("CARGO_FEATURE_CUDA").is_none() || var("DOCS_RS").is_some() {
        return Ok(String::new());
    }
    println!("cargo:rerun-if-changed=kernels");
    let (package, out) = (dir("CARGO_MANIFEST_DIR")?, dir("OUT_DIR")?);
    let vars = discovery::Vars::from_env();
    match discovery::find_nvcc(&vars)? {
        Some(nvcc) => {
            println!("cargo:rerun-if-changed={}", nvcc.display());
            let targets = build(&nvcc, &package, &out)?;
            println!("cargo:rustc-cfg=has_kernels");
            if !targets.hopper.is_empty() {
                println!("cargo:rustc-cfg=has_hopper_kernels");
            }
            Ok(targets.built)
        }
        None => {
            without_nvcc(&vars, &[package, out])?;
            Ok(String::new())
        }
    }
}

fn build(nvcc: &Path, package: &Path, out: &Path) -> Result<archs::Targets, String> {
    let ask = |option: &str| compile::output(nvcc, &[option.into()], package);
    let version = ask("--version")?;
    let supported = archs::Supported::read(&version, &ask("--list-gpu-code")?, &ask("--list-gpu-arch")?);
    let list = var("SIMGRAD_CUDA_ARCHS").unwrap_or_else(|| archs::DEFAULT.into());
    let targets =
        archs::targets(&list.to_string_lossy(), &supported).map_err(|e| format!("SIMGRAD_CUDA_ARCHS: {e}"))?;
    for warning in &targets.warnings {
        println!("cargo:warning={warning}");
    }
    let mut options: Vec<OsString> = compile::FLAGS.iter().map(OsString::from).collect();
    if let Some(host_compiler) = var("NVCC_CCBIN") {
        options.extend(["-ccbin".into(), host_compiler]);
    }
    let parallel = var("NUM_JOBS").and_then(|n| n.to_str()?.parse().ok()).unwrap_or(2);
    let [gencode, hopper] = [&targets.gencode, &targets.hopper].map(|list| list.iter().map(OsString::from).collect());
    compile::Job { nvcc, version: &version, package, out, options, gencode, hopper, parallel }.run()?;
    Ok(targets)
}

/// Nothing to compile with: say so once, and have cargo ask again when that may have changed.
fn without_nvcc(vars: &discovery::Vars, own: &[PathBuf]) -> Result<(), String> {
    if var("SIMGRAD_REQUIRE_NVCC").is_some_and(|value| value != "0") {
        return Err(
            "SIMGRAD_REQUIRE_NVCC is set and no nvcc was found (looked at NVCC, CUDA_HOME, CUDA_PATH, PATH and \
                    the usual folders)"
                .to_owned(),
        );
    }
    println!("cargo:rerun-if-env-changed=PATH");
    for dir in discovery::watched_dirs(vars, own) {
        println!("cargo:rerun-if-changed={}", dir.display());
    }
    println!(
        "cargo:warning=no nvcc found: simgrad is built for the CPU only (to add CUDA put nvcc on PATH or set NVCC; \
         scripts/install-nvcc fetches one)"
    );
    Ok(())
}
