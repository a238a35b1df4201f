//! Code search on the sources of this project's own dependencies, the data of a plain clone.
//!
//! An item of modality x is the first documentation paragraph of a function, its partner in modality y the function's
//! source. Both are reduced to split identifiers and hashed with the same function, so the two share a feature space.

mod functions;
mod lexer;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

use super::text::{self, WIDTH};
use super::{Dataset, Splits};
use crate::common::{Failure, Outcome};
use crate::rng::Rng;
use functions::{Function, documented};

/// Dependencies are resolved for this platform whatever the machine is, so that the data are the same everywhere.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Pairs held back for validation, and as many again for the test.
const HELD_BACK: usize = 1000;
/// Seed of the permutation behind the splits; not an option, so that every run is tested on the same pairs.
const SPLIT_SEED: u64 = 20_220_531;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

/// Finds the pairs and makes their features.
pub fn load() -> Outcome<Dataset> {
    let packages = dependencies()?;
    let mut functions = Vec::new();
    let mut files = 0;
    for package in &packages {
        for path in rust_files(package)? {
            let bytes = fs::read(&path).map_err(|e| Failure::file(&path, format!("cannot be read: {e}")))?;
            // A source that is not UTF-8 is a test fixture of somebody's lexer.
            let Ok(source) = String::from_utf8(bytes) else { continue };
            functions.extend(documented(&source));
            files += 1;
        }
    }
    let found = functions.len();
    let pairs = distinct(functions);
    if pairs.len() < 3 * HELD_BACK {
        let expected = format!("at least {}", 3 * HELD_BACK);
        let from = packages.len();
        return Err(Failure::new(format!(
            "code search: {} distinct documented functions in {from} dependencies, expected {expected}",
            pairs.len()
        )));
    }
    let about = format!(
        "{} distinct functions of {found} documented ones in {files} files of {} dependencies",
        pairs.len(),
        packages.len()
    );
    Ok(features(pairs, about))
}

/// The packages of the resolved graph other than this one, by name and version.
fn dependencies() -> Outcome<Vec<Package>> {
    let metadata = cargo_metadata(&["--offline"]).or_else(|_| cargo_metadata(&[]))?;
    let resolved: HashSet<String> = metadata.resolve.nodes.into_iter().map(|node| node.id).collect();
    let mut packages: Vec<Package> = metadata.packages;
    // A package without a source is this one.
    packages.retain(|p| p.source.is_some() && resolved.contains(&p.id));
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(packages)
}

fn cargo_metadata(extra: &[&str]) -> Outcome<Metadata> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", PLATFORM]);
    command.arg("--manifest-path").arg(&manifest).args(extra);
    let fail = |detail: String| {
        Failure::new(format!("code search: `cargo metadata --locked` on {} failed: {detail}", manifest.display()))
    };
    let Output { status, stdout, stderr } = command.output().map_err(|e| fail(e.to_string()))?;
    if !status.success() {
        return Err(fail(String::from_utf8_lossy(&stderr).trim().to_owned()));
    }
    serde_json::from_slice(&stdout).map_err(|e| fail(e.to_string()))
}

/// Every `.rs` file under the package's `src`, in an order that does not depend on the file system.
fn rust_files(package: &Package) -> Outcome<Vec<PathBuf>> {
    let root = package.manifest_path.with_file_name("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        if folder == root && !root.is_dir() {
            break; // a package with its sources elsewhere has nothing to offer here
        }
        let fail = |e| Failure::file(&folder, format!("cannot be read: {e}"));
        for entry in fs::read_dir(&folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The first function of each documentation and name. Two versions of one crate may both be in the graph, with bodies
/// that differ in a word: as partners across training and test they would be a gift.
fn distinct(functions: Vec<Function>) -> Vec<Function> {
    let mut seen = HashSet::new();
    functions.into_iter().filter(|f| seen.insert((f.doc.clone(), f.name.clone()))).collect()
}

fn features(mut pairs: Vec<Function>, about: String) -> Dataset {
    Rng::new(SPLIT_SEED).shuffle(&mut pairs);
    let train = pairs.len() - 2 * HELD_BACK;
    let side = |get: fn(&Function) -> &str| {
        let bags: Vec<Vec<u32>> = pairs.iter().map(|pair| text::buckets(get(pair), WIDTH)).collect();
        text::tf_idf(&bags, train, WIDTH)
    };
    let (x, y) = (side(|f| &f.doc), side(|f| &f.source));
    Dataset {
        name: "code search".to_owned(),
        about,
        x,
        y,
        y_per_x: 1,
        labels: None,
        splits: Splits {
            train: 0..train,
            val: train..train + HELD_BACK,
            test: train + HELD_BACK..train + 2 * HELD_BACK,
        },
        shared_space: true,
    }
}
