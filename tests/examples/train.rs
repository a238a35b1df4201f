//! `train_retrieval` on small sets that the tests make, and on the shared ones where they are there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::f16;
use serde_json::Value;

use crate::arrays::{Stored, numbers, save};
use crate::program::{folder, names, refuse, succeed_with_threads};

fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// Trains on the CPU and returns the JSON.
fn train(folder: &Path, arguments: &[&str]) -> Value {
    train_with_threads(folder, arguments, "2")
}

fn train_with_threads(folder: &Path, arguments: &[&str], threads: &str) -> Value {
    train_on("cpu", folder, arguments, threads)
}

fn train_on(backend: &str, folder: &Path, arguments: &[&str], threads: &str) -> Value {
    let (json, plot) = (text(&folder.join("run.json")), text(&folder.join("run.svg")));
    let fixed = ["--backend", backend, "--json", &json, "--plot", &plot];
    let printed = succeed_with_threads("train_retrieval", &[arguments, &fixed[..]].concat(), threads);
    assert!(printed.contains("untrained") && printed.contains("hinge-con (VSE++)"), "{printed}");
    assert!(fs::read_to_string(&plot).expect("a plot").contains("</svg>"), "not a whole SVG");
    serde_json::from_str(&fs::read_to_string(&json).expect("a JSON file")).expect("JSON")
}

/// The value without what a clock put there.
fn timeless(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.remove("seconds");
            map.values_mut().for_each(|v| *v = timeless(v.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| *v = timeless(v.take())),
        _ => {}
    }
    value
}

fn r1(run: &Value, subset: &str, direction: &str) -> f64 {
    run["test"][subset][direction]["r1"].as_f64().expect("a recall")
}

/// Pairs with a common cause: two linear images of the same random vector, `items` rows, 8 columns wide.
fn related(items: usize, per_item: usize) -> (Vec<f32>, Vec<f32>) {
    let cause = numbers(5, items * 8);
    let noise = numbers(6, items * per_item * 8);
    let image = |row: &[f32], seed: u64| -> Vec<f32> {
        let map = numbers(seed, 64);
        (0..8).map(|c| (0..8).map(|k| row[k] * map[k * 8 + c]).sum()).collect()
    };
    let x = cause.chunks(8).flat_map(|row| image(row, 7)).collect();
    let repeated = cause.chunks(8).flat_map(|row| std::iter::repeat_n(row, per_item));
    let noisy = repeated.zip(noise.chunks(8)).flat_map(|(row, noise)| {
        let row: Vec<f32> = row.iter().zip(noise).map(|(v, e)| v + 0.1 * e).collect();
        image(&row, 8)
    });
    (x, noisy.collect())
}

/// Writes a data set of 400 items; `convert` stores the second modality.
fn write_data<T: Stored>(folder: &Path, per_item: usize, convert: fn(f32) -> T, extra: &str) {
    let (x, y) = related(400, per_item);
    save(&folder.join("x.npy"), &[400, 8], &x);
    let y: Vec<T> = y.into_iter().map(convert).collect();
    save(&folder.join("y.npy"), &[400 * per_item, 8], &y);
    let toml = format!(
        "name = \"made\"\n[x]\nfile = \"x.npy\"\n[y]\nfile = \"y.npy\"\n{extra}\n[pairs]\ny_per_x = {per_item}\n\
         [splits]\ntrain = [0, 300]\nval = [300, 350]\ntest = [350, 400]\n"
    );
    fs::write(folder.join("dataset.toml"), toml).expect("a description");
}

const SMALL: [&str; 8] = ["--epochs", "20", "--batch", "50", "--dim", "8", "--lr", "0.02"];

#[test]
fn the_same_seed_gives_the_same_result_and_training_helps() {
    let folder = folder("train-seed");
    write_data(&folder, 1, |v| v, "");
    let data = text(&folder);
    let run = |seed: &str, threads: &str| {
        let fixed = ["--data", &data, "--objective", "cir-lin", "--seed", seed];
        timeless(train_with_threads(&folder, &[&fixed[..], &SMALL].concat(), threads))
    };
    let first = run("3", "2");
    assert_eq!(first, run("3", "2"), "the same seed");
    assert_eq!(first, run("3", "1"), "the same seed on one thread");
    assert_ne!(first["runs"], run("4", "2")["runs"], "another seed");
    let runs = first["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2);
    assert_eq!((runs[0]["objective"].as_str(), runs[1]["objective"].as_str()), (Some("hinge-con"), Some("cir-lin")));
    for run in runs {
        for direction in ["x_to_y", "y_to_x"] {
            let before = first["untrained"]["50"][direction]["r1"].as_f64().expect("a recall");
            let after = r1(run, "50", direction);
            assert!(after > 40.0 && after > before + 30.0, "{direction}: {before} before, {after} after training");
        }
        assert_eq!(run["epochs"].as_array().map(Vec::len), Some(20));
    }
    assert!(first["raw_overlap"]["50"].is_null(), "the modalities share no space");
    assert_eq!(names(&folder), ["dataset.toml", "run.json", "run.svg", "x.npy", "y.npy"], "no leftovers");
}

#[test]
fn a_hidden_layer_and_all_objectives_fit_one_table() {
    let folder = folder("train-all");
    write_data(&folder, 1, |v| v, "");
    let data = text(&folder);
    let json = train(
        &folder,
        &["--data", &data, "--objective", "all", "--hidden", "12", "--epochs", "2", "--batch", "50", "--dim", "8"],
    );
    let runs = json["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 31);
    for run in runs {
        assert!(run["diverged_at"].is_null(), "{}", run["objective"]);
        assert!(r1(run, "50", "x_to_y") >= 0.0);
    }
}

#[test]
fn a_learnable_scale_is_learned() {
    let folder = folder("train-scale");
    write_data(&folder, 1, |v| v, "");
    let data = text(&folder);
    for (objective, start, has_bias) in [("infonce", 1.0 / 0.07, false), ("siglip", 10.0, true)] {
        let json = train(&folder, &[&["--data", &data, "--objective", objective][..], &SMALL].concat());
        let run = &json["runs"][1];
        let scale = |epoch: usize| run["epochs"][epoch]["scale"].as_f64().expect("a scale");
        assert!(scale(0) != start && (1.0..=100.0).contains(&scale(19)), "{objective}: {} to {}", scale(0), scale(19));
        assert_eq!(run["epochs"][0]["bias"].is_number(), has_bias, "{objective}");
        assert!(run["epochs"][0]["active"].is_null() && json["runs"][0]["epochs"][0]["active"].is_number());
        assert!(r1(run, "50", "x_to_y") > 60.0 && r1(run, "50", "y_to_x") > 60.0, "{objective}: {}", run["test"]);
    }
}

#[test]
fn mined_triplets_are_trained() {
    let folder = folder("train-mined");
    write_data(&folder, 1, |v| v, "");
    let data = text(&folder);
    for objective in ["triplet-hardest", "triplet-semi-hard"] {
        let json = train(&folder, &[&["--data", &data, "--objective", objective][..], &SMALL].concat());
        let [baseline, mined] = [&json["runs"][0], &json["runs"][1]];
        assert_eq!((mined["objective"].as_str(), &mined["parameters"]["margin"]), (Some(objective), &0.2.into()));
        assert!(mined["epochs"][0]["active"].is_number());
        let [of_baseline, of_mined] = [baseline, mined].map(|run| r1(run, "50", "x_to_y"));
        assert!(of_mined > 40.0, "{objective}: {of_mined}");
        // The baseline is the first of the two.
        let near = (of_mined - of_baseline).abs() <= 6.0;
        assert!(near || objective == "triplet-semi-hard", "{objective}: {of_mined} against {of_baseline}");
    }
    let refused = ["--data", &data, "--objective", "triplet-hardest", "--margin", "inf"];
    refuse("train_retrieval", &refused, &["margin", "finite"]);
}

#[test]
fn three_lines_of_ones_own_are_trained() {
    let folder = folder("train-expression");
    write_data(&folder, 1, |v| v, "");
    let file = folder.join("weights.txt");
    let lines = "negative = hardest_of_row * step(0.2 + row.hardest - row.pair) + hardest_of_col * step(0.2 + col.hardest - col.pair)\n\
                 positive = -step(0.2 + row.hardest - row.pair) - step(0.2 + col.hardest - col.pair)\n";
    fs::write(&file, lines).expect("a file");
    let (data, path) = (text(&folder), text(&file));
    let json = train(&folder, &[&["--data", &data, "--expression", &path][..], &SMALL].concat());
    // It is the baseline itself.
    let [baseline, own] = [0, 1].map(|run| r1(&json["runs"][run], "50", "x_to_y"));
    assert_eq!(json["runs"][1]["objective"], "expression");
    assert!(own > 40.0 && (own - baseline).abs() <= 6.0, "{own} against {baseline}");
    fs::write(&file, "negative = s *\n").expect("a file");
    refuse("train_retrieval", &["--data", &data, "--expression", &path], &["weights.txt", "negative = s *", "^"]);
}

#[test]
fn sums_of_objectives_are_trained_with_their_scale() {
    let folder = folder("train-mixture");
    write_data(&folder, 1, |v| v, "");
    let data = text(&folder);
    let json = train(&folder, &[&["--data", &data, "--objective", "infonce + 0.5 * hinge-con"][..], &SMALL].concat());
    let [baseline, mixed] = [0, 1].map(|run| &json["runs"][run]);
    assert_eq!(mixed["objective"], "1*infonce + 0.5*hinge-con");
    let epochs = mixed["epochs"].as_array().expect("epochs");
    let of = |epoch: usize, name: &str| epochs[epoch][name].as_f64().expect("a number");
    let last = epochs.len() - 1;
    assert!(of(last, "loss") < 0.7 * of(0, "loss"), "{epochs:?}");
    assert!((of(last, "scale") - 1.0 / 0.07).abs() > 0.01, "the scale is learned: {epochs:?}");
    let [baseline, mixed] = [baseline, mixed].map(|run| r1(run, "50", "x_to_y"));
    assert!(mixed > 40.0 && (mixed - baseline).abs() <= 12.0, "{mixed} against {baseline}");
    for wrong in ["infonce + nothing", "x*infonce", "inf*infonce", "infonce +"] {
        refuse("train_retrieval", &["--data", &data, "--objective", wrong], &["objective", "has a part"]);
    }
}

/// InfoNCE in three lines, on the CPU and on CUDA.
#[cfg(feature = "cuda")]
#[test]
fn three_lines_of_ones_own_are_trained_on_cuda_as_on_the_cpu() {
    if crate::common::cuda_with_nvrtc().is_none() {
        return;
    }
    let folder = folder("train-expression-cuda");
    write_data(&folder, 1, |v| v, "");
    let file = folder.join("weights.txt");
    let lines = "logit    = 14.3 * s\n\
                 negative = 14.3 / (2 * n) * (sigmoid(row.lse - row.lse_positives) * exp(logit - row.lse) + sigmoid(col.lse - col.lse_positives) * exp(logit - col.lse))\n\
                 positive = -14.3 / (2 * n) * (sigmoid(row.lse - logit) + sigmoid(col.lse - logit))\n";
    fs::write(&file, lines).expect("a file");
    let (data, path) = (text(&folder), text(&file));
    let arguments =
        ["--data", &data, "--expression", &path, "--epochs", "6", "--batch", "50", "--dim", "8", "--lr", "0.02"];
    let [cpu, cuda] = ["cpu", "cuda"].map(|backend| train_on(backend, &folder, &arguments, "2")["runs"][1].take());
    assert_eq!((&cpu["objective"], &cuda["objective"]), (&"expression".into(), &"expression".into()));
    for epoch in 0..6 {
        let [a, b] = [&cpu, &cuda].map(|run| run["epochs"][epoch]["loss"].as_f64().expect("a loss"));
        assert!((a - b).abs() < 1e-3 * a.abs().max(0.1), "epoch {epoch}: {a} {b}");
    }
    let [a, b] = [&cpu, &cuda].map(|run| r1(run, "50", "x_to_y"));
    assert!(a > 10.0 && (a - b).abs() <= 4.0, "{a} {b}");
}

#[test]
fn quantised_features_and_captions_are_read() {
    let folder = folder("train-captions");
    save(&folder.join("scale.npy"), &[8], &[1.0_f32 / 32.0; 8]);
    write_data(&folder, 5, |v| (v * 32.0) as i8, "scale = \"scale.npy\"\nrows = 2000");
    let data = text(&folder);
    for groups in ["yes", "no"] {
        let arguments = ["--data", &data, "--objective", "hinge-con", "--groups", groups];
        let json = train(&folder, &[&arguments[..], &SMALL].concat());
        assert_eq!(json["options"]["masked"], groups == "yes");
        let run = &json["runs"][0];
        assert_eq!(run["steps"], 20 * 30);
        assert!(r1(run, "50", "x_to_y") > 40.0 && r1(run, "50", "y_to_x") > 40.0, "{run}");
        assert_eq!(run["test"]["50"]["y_to_x"]["queries"], 250);
    }
}

#[test]
fn labels_mask_and_a_missing_validation_split_is_lent() {
    let folder = folder("train-labels");
    write_data(&folder, 1, f16::from_f32, "");
    save(&folder.join("labels.npy"), &[400], &(0..400).map(|i| (i % 20) as u8).collect::<Vec<u8>>());
    let path = folder.join("dataset.toml");
    let toml = fs::read_to_string(&path).expect("a description").replace("val = [300, 350]\n", "");
    fs::write(&path, toml + "[labels]\nfile = \"labels.npy\"\n").expect("a description");
    let json = train(&folder, &[&["--data", &text(&folder), "--objective", "con-sig"][..], &SMALL].concat());
    assert_eq!(json["options"]["masked"], true);
    assert_eq!((json["data"]["val"][0].as_u64(), json["data"]["val"][1].as_u64()), (Some(270), Some(300)));
}

/// Writes the six files of a precomputed set; `regions` 0 gives files with two axes.
fn write_precomp(folder: &Path, regions: usize, repeat: usize) {
    const WORDS: [&str; 12] =
        ["dog", "cat", "child", "ball", "street", "red", "blue", "runs", "sleeps", "eats", "water", "green"];
    for (split, items, seed) in [("train", 60, 0), ("dev", 12, 100), ("test", 12, 200)] {
        let (mut images, mut captions) = (Vec::new(), String::new());
        for item in 0..items {
            // Three of twelve words, and features that are on in the columns of those words.
            let number = item * 7 + seed;
            let chosen = [number % 4, 4 + number / 4 % 4, 8 + number / 16 % 4];
            for caption in 0..5 {
                let words = chosen.map(|w| WORDS[w]);
                captions += &format!("A {} {} the {} .\n", words[caption % 3], words[(caption + 1) % 3], words[2]);
            }
            for r in 0..repeat * regions.max(1) {
                let row = (0..16).map(|c| if chosen.contains(&c) { 1.0 } else { 0.0 } + ((c + r) % 3) as f32 * 0.1);
                images.extend(row);
            }
        }
        let rows = items * repeat;
        let shape = if regions == 0 { vec![rows, 16] } else { vec![rows, regions, 16] };
        save(&folder.join(format!("{split}_ims.npy")), &shape, &images);
        fs::write(folder.join(format!("{split}_caps.txt")), captions).expect("captions");
    }
}

#[test]
fn precomputed_sets_are_read_pooled_and_learnt() {
    for (name, regions, repeat) in [("plain", 0, 1), ("regions", 4, 1), ("repeated", 0, 5)] {
        let folder = folder(&format!("precomp-{name}"));
        write_precomp(&folder, regions, repeat);
        let json = train(
            &folder,
            &["--precomp", &text(&folder), "--objective", "nca-con", "--epochs", "8", "--batch", "25", "--dim", "16"],
        );
        assert_eq!((json["data"]["x"][0].as_u64(), json["data"]["x"][1].as_u64()), (Some(84), Some(16)), "{name}");
        assert_eq!(json["data"]["y"][0], 420, "{name}");
        assert_eq!(json["runs"][0]["steps"], 8 * 12, "{name}");
        assert!(r1(&json["runs"][1], "12", "x_to_y") > 30.0, "{name}: {}", json["runs"][1]["test"]);
        assert_eq!(json["runs"][1]["test"]["12"]["y_to_x"]["queries"], 60, "{name}");
    }
}

#[test]
fn bad_options_are_named() {
    let refused = |arguments: &[&str], texts: &[&str]| refuse("train_retrieval", arguments, texts);
    refused(&["--objective", "everything"], &["--objective", "`everything`"]);
    refused(&["--epochs", "0"], &["--epochs", "is 0", "at least 1"]);
    refused(&["--batch", "1"], &["--batch", "is 1", "at least 2"]);
    refused(&["--lr", "-1"], &["--lr"]);
    refused(&["--lr", "nan"], &["--lr", "finite"]);
    refused(&["--plot", "curve.png"], &["--plot", "curve.png", ".svg"]);
    refused(&["--json", "/nowhere/run.json"], &["/nowhere/run.json", "cannot be written"]);
    refused(&["--data", "/nowhere"], &["/nowhere/dataset.toml", "cannot be read"]);
    refused(&["--data", "a", "--precomp", "b"], &["--data", "--precomp"]);
    refused(&["--colour", "red"], &["--colour"]);
}

/// Replaces a piece of a good description and expects the refusal to say these things.
fn refuse_description(folder: &Path, from: &str, to: &str, texts: &[&str]) {
    let path = folder.join("dataset.toml");
    let good = fs::read_to_string(&path).expect("a description");
    assert!(good.contains(from), "{good}");
    fs::write(&path, good.replace(from, to)).expect("a description");
    let plot = text(&folder.join("run.svg"));
    refuse("train_retrieval", &["--data", &text(folder), "--plot", &plot], texts);
    fs::write(&path, good).expect("a description");
}

#[test]
fn bad_data_sets_are_named_and_earlier_results_stay() {
    let folder = folder("train-bad");
    write_data(&folder, 1, |v| v, "");
    let plot = folder.join("run.svg");
    fs::write(&plot, "earlier").expect("an earlier plot");
    let refused = |from: &str, to: &str, texts: &[&str]| refuse_description(&folder, from, to, texts);
    refused("train = [0, 300]", "train = [0, 300", &["dataset.toml", "line"]);
    refused("y_per_x = 1", "y_per_z = 1", &["dataset.toml", "y_per_z"]);
    refused("y_per_x = 1", "y_per_x = 0", &["pairs.y_per_x", "at least 1"]);
    refused("y_per_x = 1", "y_per_x = 2", &["y.file", "400 rows", "400 x rows times 2"]);
    refused("[300, 350]", "[299, 350]", &["splits.val", "[299, 350]", "train"]);
    refused("[350, 400]", "[350, 401]", &["splits.test", "[350, 401]", "[0, 400]"]);
    refused("[0, 300]", "[0, 20]", &["--batch", "128", "20 pairs"]);
    refused("file = \"y.npy\"", "file = \"z.npy\"", &["z.npy", "cannot be read"]);
    refused("file = \"y.npy\"", "file = \"y.npy\"\nscale = \"x.npy\"", &["x.npy", "1 axis"]);
    refused("file = \"y.npy\"", "file = \"y.npy\"\nrows = 401", &["y.npy", "400 rows", "401"]);
    let mut y = numbers(9, 3200);
    y[8 * 17 + 3] = f32::NAN;
    save(&folder.join("y.npy"), &[400, 8], &y);
    refused("name", "name", &["y.npy", "row 17, column 3", "NaN"]);
    assert_eq!(fs::read_to_string(&plot).expect("the plot"), "earlier");
}

#[test]
fn bad_precomputed_sets_are_named() {
    let folder = folder("precomp-bad");
    write_precomp(&folder, 0, 1);
    let refused = |texts: &[&str]| refuse("train_retrieval", &["--precomp", &text(&folder)], texts);
    let captions = folder.join("dev_caps.txt");
    let good = fs::read(&captions).expect("captions");
    fs::write(&captions, &good[..good.len() - 20]).expect("captions");
    let cut = good[..good.len() - 20].iter().filter(|&&b| b == b'\n').count() + 1;
    if cut % 5 != 0 {
        refused(&["dev_caps.txt", "multiple of 5"]);
    }
    fs::write(&captions, [&good[..], b"one more\n"].concat()).expect("captions");
    refused(&["dev_caps.txt", "61 lines", "multiple of 5"]);
    fs::write(&captions, [&good[..], b"\xff\n"].concat()).expect("captions");
    refused(&["dev_caps.txt", "line 61", "UTF-8"]);
    fs::write(&captions, good.repeat(2)).expect("captions");
    refused(&["dev_ims.npy", "12 images", "24"]);
    fs::write(&captions, good).expect("captions");
    save(&folder.join("test_ims.npy"), &[12, 15], &numbers(1, 180));
    refused(&["test_ims.npy", "15 columns", "16"]);
    fs::remove_file(folder.join("test_ims.npy")).expect("a removed file");
    refused(&["test_ims.npy", "cannot be read"]);
}

#[test]
fn code_search_on_the_dependencies_beats_their_raw_overlap() {
    let folder = folder("code-search");
    let json = train(&folder, &["--objective", "hinge-con", "--epochs", "3", "--dim", "128", "--lr", "0.004"]);
    let splits = ["train", "val", "test"].map(|split| {
        let bounds = [&json["data"][split][0], &json["data"][split][1]].map(|b| b.as_u64().expect("a row"));
        bounds[1] - bounds[0]
    });
    assert!(splits[0] > 4000 && splits[1..] == [1000, 1000], "{splits:?}");
    for direction in ["x_to_y", "y_to_x"] {
        let raw = json["raw_overlap"]["1K"][direction]["r1"].as_f64().expect("a recall");
        let trained = r1(&json["runs"][0], "1K", direction);
        assert!(raw > 25.0 && trained > raw + 12.0, "{direction}: {raw} by raw overlap, {trained} trained");
    }
}

/// One epoch on a shared data set, where it is.
fn shared(name: &str, least: [f64; 2]) {
    let data: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if !data.join("dataset.toml").exists() {
        let _ = writeln!(std::io::stderr(), "note: skipped, {} is not there", data.display());
        return;
    }
    let folder = folder(name);
    let data = text(&data);
    let json = train(&folder, &["--data", &data, "--objective", "hinge-con", "--epochs", "1", "--dim", "64"]);
    let run = &json["runs"][0];
    let got = ["x_to_y", "y_to_x"].map(|direction| r1(run, "1K", direction));
    assert!(got[0] >= least[0] && got[1] >= least[1], "{name}: R@1 {got:?} after one epoch");
}

#[test]
fn one_epoch_on_fashion_products() {
    shared("fashion-products", [8.0, 8.0]);
}

#[test]
fn one_epoch_on_multi30k() {
    shared("multi30k-5x5", [25.0, 17.0]);
}
