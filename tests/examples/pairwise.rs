//! `pairwise`: the report and the gradients of a batch, against the reference, and refusals.

use std::path::{Path, PathBuf};

use serde_json::Value;
use simgrad::{Groups, MatRef, PairwiseObjective, PairwiseOptions, reference};

use crate::arrays::{load, numbers, save};
use crate::program::{folder, refuse, succeed};

const IDS: [[i64; 6]; 2] = [[1, 2, 1, 3, 2, 9], [2, 2, 1, 5, 3, 1]];

fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// Six rows of each side, and their groups.
fn batch(name: &str) -> (PathBuf, [Vec<f32>; 2]) {
    let folder = folder(name);
    let sides = [1, 2].map(|seed| numbers(seed, 24));
    for (side, file, ids) in [(0, "x.npy", "gx.npy"), (1, "y.npy", "gy.npy")] {
        save(&folder.join(file), &[6, 4], &sides[side]);
        save(&folder.join(ids), &[6], &IDS[side]);
    }
    (folder, sides)
}

#[track_caller]
fn near(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-4 * (1.0 + want.abs()), "{what}: {got} for {want}");
}

#[test]
fn every_objective_of_two_sets_and_of_one() {
    let (folder, [x, y]) = batch("pairwise-all");
    let path = |name: &str| text(&folder.join(name));
    let (rows, cols) = (MatRef::new(&x, 6, 4).expect("a matrix"), MatRef::new(&y, 6, 4).expect("a matrix"));
    for objective in PairwiseObjective::ALL {
        for single in [false, true] {
            let mut arguments = vec![path("x.npy")];
            if !single {
                arguments.extend([path("y.npy"), "--groups-y".into(), path("gy.npy"), "--dy".into(), path("dy.npy")]);
            }
            let common =
                ["--groups-x", &path("gx.npy"), "--dx", &path("dx.npy"), "--backend", "cpu"].map(str::to_owned);
            arguments.extend(common);
            arguments.extend(["--objective".to_owned(), objective.name().to_owned()]);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let printed: Value = serde_json::from_str(&succeed("pairwise", &arguments)).expect("JSON");
            let groups = Groups { rows: &IDS[0], cols: if single { &IDS[0] } else { &IDS[1] } };
            let options = PairwiseOptions { groups: Some(groups), ..PairwiseOptions::default() };
            let want = if single {
                reference::pairwise_step_single(rows, &objective, &options)
            } else {
                reference::pairwise_step(rows, cols, &objective, &options)
            };
            let name = format!("{objective}, single: {single}");
            near(printed["loss"].as_f64().expect("a loss"), want.report.loss, &name);
            near(printed["d_scale"].as_f64().expect("a derivative"), want.report.d_scale, &name);
            assert_eq!(printed["positives"].as_u64(), Some(want.report.positives), "{name}");
            let mut files = vec![("dx.npy", want.dx)];
            if !single {
                files.push(("dy.npy", want.dy));
            }
            for (file, want) in files {
                let (shape, got) = load(&folder.join(file));
                assert_eq!(shape, [6, 4], "{name} {file}");
                got.iter().zip(&want).for_each(|(g, w)| near(*g, *w, &format!("{name} {file}")));
            }
        }
    }
}

#[test]
fn bad_options_are_named() {
    let (folder, _) = batch("pairwise-bad");
    let path = |name: &str| text(&folder.join(name));
    let (x, y) = (path("x.npy"), path("y.npy"));
    refuse("pairwise", &[&x, &y, "--objective", "clip"], &["--objective", "infonce"]);
    refuse("pairwise", &[&x, &y, "--objective", "infonce", "--groups-x", &path("gx.npy")], &["--groups-y"]);
    refuse("pairwise", &[&x, &path("gx.npy"), "--objective", "infonce"], &["gx.npy", "2 axes"]);
    refuse("pairwise", &[&path("none.npy"), "--objective", "infonce"], &["none.npy", "cannot be read"]);
    save(&folder.join("wide.npy"), &[6, 5], &numbers(3, 30));
    refuse("pairwise", &[&x, &path("wide.npy"), "--objective", "infonce"], &["y.cols"]);
    refuse("pairwise", &[&x, "--objective", "infonce", "--dy", "dy.npy"], &["--dy"]);
}
