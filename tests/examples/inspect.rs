//! `inspect`: the worked examples on every backend, file formats, groups, refusals.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::f16;
use serde_json::Value;
use simgrad::{Backend, Objective, PairWeight, TripletWeight, reference};

use crate::arrays::{file, load, numbers, save};
use crate::common::on_every_backend;
use crate::program::{folder, names, refuse, run, succeed};

/// Expected numbers: `key = number, number ; number …` a line.
struct Example {
    name: &'static str,
    table: HashMap<&'static str, Vec<&'static str>>,
    n: usize,
    d: usize,
}

impl Example {
    fn both() -> [Self; 2] {
        let new = |name, text: &'static str, n, d| {
            let line = |l: &'static str| {
                let (key, values) = l.split_once(" = ").expect("key = values");
                (key, values.split([',', ';']).map(str::trim).collect())
            };
            Self { name, table: text.lines().map(line).collect(), n, d }
        };
        [
            new("hand3x2", include_str!("../data/hand3x2.txt"), 3, 2),
            new("hand4x3", include_str!("../data/hand4x3.txt"), 4, 3),
        ]
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        let number = |text: &&str| {
            let parse = |t: &str| t.trim().parse::<f64>().expect("a number");
            text.split_once('/').map_or_else(|| parse(text), |(a, b)| parse(a) / parse(b))
        };
        self.table[key].iter().map(number).collect()
    }

    fn objectives(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.table.keys().filter_map(|k| k.strip_prefix("dX ")).collect();
        names.sort_unstable();
        names
    }

    /// Writes the inputs and returns their paths.
    fn write(&self, folder: &Path) -> [String; 2] {
        ["x", "y"].map(|side| {
            let path = folder.join(format!("{side}.npy"));
            let values: Vec<f32> = self.numbers(side).into_iter().map(|v| v as f32).collect();
            save(&path, &[self.n, self.d], &values);
            text(&path)
        })
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// What the examples' tables say a run must have written.
fn expected(example: &Example, name: &str) -> Vec<(String, Vec<f64>)> {
    let objective: Objective = name.parse().expect("a name");
    let (triplet, pair) = (objective.triplet().name(), objective.pair().name());
    let mut out = vec![
        ("pos".to_owned(), example.numbers("P")),
        ("grad_x".to_owned(), example.numbers(&format!("dX {name}"))),
        ("grad_y".to_owned(), example.numbers(&format!("dY {name}"))),
    ];
    for d in ["it", "ti"] {
        let mut add = |file: &str, key: String| out.push((format!("{file}_{d}"), example.numbers(&key)));
        add("neg_max", format!("N_{d}"));
        add("neg_idx", format!("index_{d}"));
        if objective.triplet() != TripletWeight::Con {
            add("t", format!("T_{d} {triplet}"));
        }
        if objective.pair() != PairWeight::Con {
            add("w_pos", format!("w_pos_{d} {pair}"));
            add("w_neg", format!("w_neg_{d} {pair}"));
        }
        if objective.pair().eps().is_some() {
            for key in ["rs_pos", "rs_neg", "rs_pos_count", "rs_neg_count"] {
                add(key, format!("{key}_{d} {pair}"));
            }
        }
    }
    out
}

#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64], relative: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= relative * w.abs().max(1.0), "{what}: {g} is not {w}");
    }
}

/// Runs every objective of both examples, and compares files and, where asked, every printed digit.
fn worked_examples(backend: &str, dtype: &str, tolerance: f64, digits: bool) {
    for example in Example::both() {
        let folder = folder(&format!("worked-{backend}-{dtype}-{}", example.name));
        let [x, y] = example.write(&folder);
        let out = folder.join("out");
        for name in example.objectives() {
            let what = format!("{} {name} on {backend} {dtype}", example.name);
            let o = text(&out);
            let mut arguments = vec!["--x", &x, "--y", &y, "--objective", name, "--out", &o, "--tau", "10"];
            arguments.extend(["--normalize", "no", "--backend", backend, "--dtype", dtype]);
            let printed = succeed("inspect", &arguments);
            for (file, want) in expected(&example, name) {
                let (_, got) = load(&out.join(format!("{file}.npy")));
                close(&format!("{what}: {file}"), &got, &want, tolerance);
            }
            check_report(&example, name, &out, backend, tolerance);
            check_w(&example, &out, tolerance);
            if digits {
                check_digits(&example, name, &printed);
            }
        }
    }
}

fn check_report(example: &Example, name: &str, out: &Path, backend: &str, tolerance: f64) {
    let report = std::fs::read_to_string(out.join("report.json")).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    match example.table.get(format!("loss {name}").as_str()) {
        Some(_) => {
            let loss = report["loss"].as_f64().expect("a loss");
            close("loss", &[loss], &example.numbers(&format!("loss {name}")), tolerance);
        }
        None => assert!(report["loss"].is_null(), "{name} has no loss"),
    }
    for key in ["log_it", "log_ti"] {
        close(key, &[report[key].as_f64().expect("a number")], &example.numbers(key), tolerance);
    }
    assert_eq!(report["backend"], backend);
    assert_eq!(report["counts"]["pairs"], example.n);
    let device = backend == "cuda";
    assert_eq!(report["launches"].as_u64().expect("a count") > 0, device, "launches");
    assert_eq!(report["workspace_bytes"].as_u64().expect("a count") > 0, device, "workspace");
}

/// `grad_x = W Y` and `grad_y = Wᵀ X` tie the three files of W to the gradients.
fn check_w(example: &Example, out: &Path, tolerance: f64) {
    let [rows, cols, values] = ["w_row", "w_col", "w_val"].map(|name| load(&out.join(format!("{name}.npy"))).1);
    let keys: Vec<(f64, f64)> = rows.iter().copied().zip(cols.iter().copied()).collect();
    assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "W is not sorted: {keys:?}");
    let d = example.d;
    let (x, y) = (example.numbers("x"), example.numbers("y"));
    let (mut dx, mut dy) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for (&(row, col), w) in keys.iter().zip(&values) {
        let (row, col) = (row as usize, col as usize);
        for k in 0..d {
            dx[row * d + k] += w * y[col * d + k];
            dy[col * d + k] += w * x[row * d + k];
        }
    }
    let scale = values.iter().fold(1.0_f64, |max, w| max.max(w.abs()));
    close("W Y", &dx, &load(&out.join("grad_x.npy")).1, scale * tolerance.max(1e-6));
    close("W' X", &dy, &load(&out.join("grad_y.npy")).1, scale * tolerance.max(1e-6));
}

/// Every number of the table stands in the printed text, digit for digit.
fn check_digits(example: &Example, name: &str, printed: &str) {
    let (triplet, pair) = name.split_once('-').expect("triplet-pair");
    let words: std::collections::HashSet<&str> = printed.split([' ', '\n']).collect();
    let shown = |key: &str| match key.split_once(' ') {
        None => !matches!(key, "x" | "y" | "S"),
        Some((quantity, of)) => {
            let wanted = if quantity.starts_with("T_") { triplet } else { pair };
            of == name || of == wanted
        }
    };
    for (key, values) in example.table.iter().filter(|(key, _)| shown(key)) {
        let counts = key.contains("_count_");
        for value in values {
            let word = if counts { format!("[{value}]") } else { (*value).to_owned() };
            assert!(words.contains(word.as_str()), "{name}: {key} {word} is not printed in\n{printed}");
        }
    }
}

#[test]
fn worked_examples_to_every_digit_in_f64() {
    worked_examples("cpu", "f64", 1e-7, true);
    worked_examples("reference", "f64", 1e-7, true);
}

#[test]
fn worked_examples_on_every_backend_in_f32() {
    on_every_backend(|backend: &Backend| worked_examples(backend.name(), "f32", 1e-5, false));
}

/// A small random batch: its folder, and the arguments that every run of it has.
fn random_batch(name: &str) -> (PathBuf, Vec<String>) {
    let folder = folder(name);
    let (x, y) = (numbers(1, 12 * 20), numbers(2, 12 * 20));
    save(&folder.join("x.npy"), &[12, 20], &x);
    save(&folder.join("y.npy"), &[12, 20], &y);
    let path = |name: &str| text(&folder.join(name));
    let arguments = ["--x", &path("x.npy"), "--y", &path("y.npy"), "--out", &path("out")];
    let arguments = arguments.into_iter().map(str::to_owned).collect();
    (folder, arguments)
}

fn with<'a>(arguments: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

#[test]
fn every_objective_agrees_with_the_reference_through_the_normalisation() {
    let (folder, arguments) = random_batch("normalised");
    let groups: Vec<i64> = (0..12).map(|i| i / 2 - 3).collect();
    save(&folder.join("groups.npy"), &[12], &groups);
    let ids = text(&folder.join("groups.npy"));
    for objective in Objective::all() {
        let name = objective.to_string();
        let results = ["reference", "cpu"].map(|backend| {
            let more = ["--objective", &name, "--backend", backend, "--group-ids", &ids, "--upstream", "-2.5"];
            succeed("inspect", &with(&arguments, &[&more[..], &["--reduction", "mean"]].concat()));
            ["neg_idx_it", "neg_idx_ti", "grad_x", "grad_y", "w_row", "w_val", "second_max_ti"]
                .map(|file| load(&folder.join(format!("out/{file}.npy"))).1)
        });
        for (want, got) in results[0].iter().zip(&results[1]) {
            close(&name, got, want, 1e-5);
        }
        for (anchor, negative) in results[1][0].iter().enumerate() {
            assert_ne!(groups[anchor], groups[*negative as usize], "{name}: a negative of the anchor's own group");
        }
    }
}

#[test]
fn every_input_format_gives_the_same_numbers() {
    let (folder, arguments) = random_batch("formats");
    let small: Vec<i8> = numbers(3, 240).iter().map(|v| (v * 100.0) as i8).collect();
    let wide = |v: &i8| f64::from(*v);
    let y = folder.join("y.npy");
    let gradient = |dtype: &str| {
        let more = ["--objective", "nca-sig", "--dtype", dtype, "--backend", "cpu"];
        succeed("inspect", &with(&arguments, &more));
        load(&folder.join("out/grad_y.npy")).1
    };
    save(&y, &[12, 20], &small);
    let want = gradient("f64");
    save(&y, &[12, 20], &small.iter().map(wide).collect::<Vec<f64>>());
    assert_eq!(gradient("f64"), want, "f64");
    save(&y, &[12, 20], &small.iter().map(|v| wide(v) as f32).collect::<Vec<f32>>());
    assert_eq!(gradient("f64"), want, "f32");
    save(&y, &[12, 20], &small.iter().map(|v| f16::from_f64(wide(v))).collect::<Vec<f16>>());
    assert_eq!(gradient("f64"), want, "f16");
    save(&y, &[12, 20], &small.iter().map(|v| i16::from(*v)).collect::<Vec<i16>>());
    assert_eq!(gradient("f64"), want, "i16");
    for dtype in ["f32", "f16", "bf16"] {
        close(dtype, &gradient(dtype), &want, if dtype == "f32" { 1e-6 } else { 1e-2 });
    }
}

#[test]
fn the_result_files_are_the_documented_ones() {
    let (folder, arguments) = random_batch("files");
    let plot = text(&folder.join("field.svg"));
    let printed = succeed("inspect", &with(&arguments, &["--objective", "cir-sig_ms", "--plot", &plot]));
    assert!(printed.contains("it: anchors are rows of x"), "{printed}");
    let mut want = vec!["pos.npy", "w_row.npy", "w_col.npy", "w_val.npy", "grad_x.npy", "grad_y.npy", "report.json"];
    let stems = ["neg_idx", "neg_max", "second_max", "t", "w_pos", "w_neg", "rs_pos", "rs_neg"];
    let both = |stem: &str| ["it", "ti"].map(|d| format!("{stem}_{d}.npy"));
    let per_direction: Vec<String> = stems.into_iter().chain(["rs_pos_count", "rs_neg_count"]).flat_map(both).collect();
    want.extend(per_direction.iter().map(String::as_str));
    want.sort_unstable();
    assert_eq!(names(&folder.join("out")), want);
    let svg = std::fs::read_to_string(plot).expect("a plot");
    assert!(svg.contains("</svg>") && svg.contains("cir-sig_ms"), "not a whole SVG");
    assert_eq!(load(&folder.join("out/grad_x.npy")).0, [12, 20]);
}

#[test]
fn a_lone_pair_has_no_negative() {
    let folder = folder("lone");
    let path = |name: &str| text(&folder.join(name));
    save(&folder.join("x.npy"), &[1, 3], &[1.0_f32, 2.0, 3.0]);
    save(&folder.join("y.npy"), &[1, 3], &[3.0_f32, 2.0, 1.0]);
    let printed = succeed(
        "inspect",
        &["--x", &path("x.npy"), "--y", &path("y.npy"), "--out", &path("out"), "--objective", "con-lin"],
    );
    assert!(printed.contains("none"), "{printed}");
    assert_eq!(load(&folder.join("out/neg_idx_it.npy")).1, [-1.0]);
    assert_eq!(load(&folder.join("out/neg_max_ti.npy")).1, [f64::NEG_INFINITY]);
    assert_eq!(load(&folder.join("out/w_val.npy")).0, [0]);
    assert_eq!(load(&folder.join("out/grad_x.npy")).1, [0.0; 3]);
}

#[test]
fn bad_options_are_named() {
    let (_, arguments) = random_batch("options");
    let refused = |more: &[&str], texts: &[&str]| refuse("inspect", &with(&arguments, more), texts);
    refused(&["--objective", "nca"], &["--objective", "`nca`", "TRIPLET-PAIR"]);
    refused(&["--objective", "nca-con", "--tau", "0"], &["--tau", "is 0", "above 0"]);
    refused(&["--objective", "cir-lin", "--circle-offset", "inf"], &["--circle-offset", "inf", "finite"]);
    refused(&["--objective", "con-sig", "--beta", "x"], &["--beta"]);
    refused(&["--objective", "con-con", "--dtype", "f64", "--backend", "cuda"], &["--dtype", "f64", "cuda"]);
    refused(&["--objective", "con-con", "--plot", "a.png"], &["--plot", "a.png", ".svg"]);
    refused(&["--objective", "con-con", "--backend", "tpu"], &["--backend", "tpu"]);
    refused(&["--objective", "con-con", "--group-ids", "/nowhere/g.npy"], &["/nowhere/g.npy"]);
}

#[test]
fn a_request_for_cuda_is_never_served_by_the_cpu() {
    let (_, arguments) = random_batch("cuda");
    let ran = run("inspect", &with(&arguments, &["--objective", "con-con", "--backend", "cuda"]));
    match crate::common::cuda() {
        Ok(_) => assert!(ran.stdout.contains("backend: cuda"), "{}{}", ran.stdout, ran.stderr),
        Err(reason) => {
            assert_eq!(ran.status, Some(2));
            assert!(ran.stderr.contains(&reason.to_string()), "{}", ran.stderr);
        }
    }
}

#[test]
fn bad_files_are_named_and_nothing_is_written() {
    let (folder, arguments) = random_batch("bad-files");
    let y = folder.join("y.npy");
    let refused = |bytes: Vec<u8>, texts: &[&str]| {
        std::fs::write(&y, bytes).expect("a written file");
        refuse("inspect", &with(&arguments, &["--objective", "con-con"]), &[&["y.npy"], texts].concat());
        assert!(!folder.join("out").exists(), "something was written");
    };
    refused(b"no array".to_vec(), &["not a .npy file"]);
    refused(file("<f4", "False", &[12, 20], &[0; 100]), &["100 bytes", "960"]);
    refused(file("<f4", "False", &[12, 19], &[0; 912]), &["[12, 19]", "[12, 20]"]);
    refused(file("<f4", "False", &[240], &[0; 960]), &["[240]", "2 axes"]);
    refused(file("<f4", "True", &[12, 20], &[0; 960]), &["Fortran"]);
    refused(file(">f4", "False", &[12, 20], &[0; 960]), &[">f4", "little-endian"]);
    refused(file("<c8", "False", &[12, 20], &[0; 1920]), &["<c8"]);
    std::fs::remove_file(&y).expect("a removed file");
    refuse("inspect", &with(&arguments, &["--objective", "con-con"]), &["y.npy", "cannot be read"]);
}

/// The weights that the plot draws are those of the library's reference, which the other tests hold to the formulas.
#[test]
fn the_reference_offers_the_weights_of_the_plot() {
    assert_eq!(reference::triplet_weight(TripletWeight::Con, 0.3, 0.1), 1.0);
    assert_eq!(reference::pair_weights(PairWeight::Lin, 0.25, 0.5, 0.0, 0.0), (0.75, 0.5));
}
