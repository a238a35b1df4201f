//! `evaluate`: figures, protocols, sources of relevance, refusals.

use std::path::{Path, PathBuf};

use crate::arrays::{file, numbers, save};
use crate::common::cuda;
use crate::program::{folder, refuse, run, succeed};

fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// Two items with two captions each: the similarities are [[9, 5, 7, 1], [8, 6, 4, 3]].
fn two_items(name: &str) -> (PathBuf, [String; 2]) {
    let folder = folder(name);
    let (x, y) = (folder.join("x.npy"), folder.join("y.npy"));
    save(&x, &[2, 2], &[1.0f32, 0.0, 0.0, 1.0]);
    save(&y, &[4, 2], &[9i16, 8, 5, 6, 7, 4, 1, 3]);
    (folder, [text(&x), text(&y)])
}

/// The cells of the printed line that starts with `name`, of the table that has `column`.
#[track_caller]
fn cell(printed: &str, name: &str, column: &str) -> String {
    // Columns are two spaces apart at least, words one.
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
    };
    let lines: Vec<&str> = printed.lines().collect();
    let place = |line: &&str| cells(line).iter().position(|c| c == column);
    let header = lines.iter().position(|line| place(line).is_some()).expect("the column");
    let line = lines[header..].iter().find(|line| line.starts_with(name)).expect("the line");
    cells(line)[place(&lines[header]).expect("the column")].clone()
}

#[test]
fn the_table_of_two_items() {
    let (folder, [x, y]) = two_items("evaluate-two");
    let printed = succeed("evaluate", &[&x, &y, "--captions", "2", "--normalize", "no", "--backend", "cpu"]);
    for (direction, column, want) in [
        ("x -> y", "R@1", "50.00"),
        ("x -> y", "R@5", "100.00"),
        ("x -> y", "median rank", "2.0"),
        ("x -> y", "MRR", "66.67"),
        ("x -> y", "mAP@R", "25.00"),
        ("x -> y", "R-precision", "25.00"),
        ("y -> x", "MRR", "75.00"),
        ("y -> x", "queries", "4"),
    ] {
        assert_eq!(cell(&printed, direction, column), want, "{direction} {column}\n{printed}");
    }
    assert!(printed.contains("rsum 500.00"), "{printed}");
    let figures = |printed: &str| printed.split_once("\n\n").expect("a table").1.to_owned();
    // The same relevance from ids, from listed pairs, and with every item repeated.
    let path = |name: &str| text(&folder.join(name));
    save(&folder.join("gx.npy"), &[2], &[7i64, -9]);
    save(&folder.join("gy.npy"), &[4], &[7i8, 7, -9, -9]);
    save(&folder.join("pairs.npy"), &[4, 2], &[1i64, 3, 0, 1, 0, 0, 1, 2]);
    save(&folder.join("x5.npy"), &[4, 2], &[1.0f64, 0.0, 9.0, 9.0, 0.0, 1.0, 9.0, 9.0]);
    let common = [&x[..], &y, "--normalize", "no", "--backend", "cpu"];
    let of = |more: &[&str]| figures(&succeed("evaluate", &[&common[..], more].concat()));
    assert_eq!(of(&["--groups-x", &path("gx.npy"), "--groups-y", &path("gy.npy")]), figures(&printed));
    assert_eq!(of(&["--relevant", &path("pairs.npy")]), figures(&printed));
    let repeated = [&path("x5.npy")[..], &y, "--captions", "2", "--normalize", "no", "--backend", "cpu"];
    assert_eq!(figures(&succeed("evaluate", &repeated)), figures(&printed));
    save(&folder.join("graded.npy"), &[2, 3], &[0.0f64, 0.0, 1.0, 0.0, 2.0, 3.0]);
    let graded = of(&["--relevant", &path("graded.npy"), "--cutoffs", "1,2"]);
    assert_eq!(cell(&graded, "x -> y", "nDCG@1"), "14.29", "1 of 7\n{graded}");
    let graded = of(&["--relevant", &path("graded.npy"), "--cutoffs", "1", "--gain", "linear"]);
    assert_eq!((cell(&graded, "x -> y", "nDCG@1"), cell(&graded, "x -> y", "without")), ("33.33".into(), "1".into()));
}

#[test]
fn the_protocols_of_the_field() {
    let folder = folder("evaluate-protocols");
    let (x, y) = (folder.join("x.npy"), folder.join("y.npy"));
    let (images, texts) = (numbers(1, 5000 * 4), numbers(2, 25_000 * 4));
    save(&x, &[1000, 4], &images[..4000]);
    save(&y, &[5000, 4], &texts[..20_000]);
    let of = |protocol: &str| run("evaluate", &[&text(&x), &text(&y), "--protocol", protocol, "--backend", "cpu"]);
    let flickr = of("flickr30k");
    assert_eq!(cell(&flickr.stdout, "y -> x", "queries"), "5000", "{}{}", flickr.stdout, flickr.stderr);
    assert!(of("coco-5k").stderr.contains("has 1000 rows, the protocol has 5000 items"));
    save(&x, &[5000, 4], &images);
    save(&y, &[25_000, 4], &texts);
    let (folds, whole) = (of("coco-1k"), of("coco-5k"));
    for printed in [&folds.stdout, &whole.stdout] {
        assert_eq!(cell(printed, "y -> x", "queries"), "25000", "{printed}");
    }
    // A fold has a fifth of the candidates.
    let mean = |printed: &str| cell(printed, "y -> x", "mean rank").parse::<f64>().expect("a number");
    let ratio = mean(&whole.stdout) / mean(&folds.stdout);
    assert!((4.8..5.2).contains(&ratio), "{ratio}");
}

#[test]
fn equal_similarities_follow_the_policy() {
    let folder = folder("evaluate-ties");
    let (x, y) = (folder.join("x.npy"), folder.join("y.npy"));
    save(&x, &[8, 3], &[1.0f32; 24]);
    save(&y, &[8, 3], &[2.0f32; 24]);
    let first = |ties: &str| {
        let printed = succeed("evaluate", &[&text(&x), &text(&y), "--ties", ties, "--backend", "cpu"]);
        (cell(&printed, "x -> y", "R@1"), printed.lines().last().expect("a line").to_owned())
    };
    assert_eq!(first("lowest"), ("12.50".into(), "rsum 350.00".into()));
    assert_eq!(first("optimistic"), ("100.00".into(), "rsum 600.00".into()));
    // The 8 candidates of a query are all among the first 10.
    assert_eq!(first("pessimistic"), ("0.00".into(), "rsum 200.00".into()));
}

#[test]
fn bad_options_and_files_are_named() {
    let (folder, [x, y]) = two_items("evaluate-bad");
    let path = |name: &str| text(&folder.join(name));
    let refused = |more: &[&str], texts: &[&str]| refuse("evaluate", &[&[&x[..], &y], more].concat(), texts);
    refused(&[], &["y.npy", "has 4 rows", "2 captions"]);
    refused(&["--captions", "0"], &["--captions", "at least 1"]);
    refused(&["--captions", "3"], &["y.npy", "has 4 rows", "6 captions"]);
    refused(&["--captions", "18446744073709551615"], &["y.npy"]);
    refused(&["--cutoffs", "1,0"], &["--cutoffs"]);
    refused(&["--ties", "random"], &["--ties", "random"]);
    refused(&["--groups-x", "a.npy"], &["--groups-y"]);
    refused(&["--protocol", "coco-1k", "--relevant", "a.npy"], &["--protocol", "pairs"]);
    refused(&["--relevant", "/nowhere/p.npy"], &["/nowhere/p.npy", "cannot be read"]);
    save(&folder.join("ids.npy"), &[3], &[1i64, 2, 3]);
    let ids = path("ids.npy");
    refused(&["--groups-x", &ids, "--groups-y", &ids], &["ids.npy", "has 3 ids", "2"]);
    for (shape, values, message) in [
        ([1, 2], vec![0.0, 4.0], "names row 4 in pair 0"),
        ([1, 2], vec![0.5, 0.0], "names row 0.5"),
        ([1, 2], vec![-1.0, 0.0], "names row -1"),
        ([1, 2], vec![f64::NAN, 0.0], "names row NaN"),
        ([2, 2], vec![0.0, 1.0, 0.0, 1.0], "strictly ascending"),
        ([1, 3], vec![0.0, 1.0, -2.0], "grades"),
        ([1, 4], vec![0.0; 4], "has 4 columns"),
    ] {
        save(&folder.join("pairs.npy"), &shape, &values);
        refused(&["--relevant", &path("pairs.npy")], &["pairs.npy", message]);
    }
    std::fs::write(&y, file("<f4", "False", &[4, 3], &[0; 48])).expect("a written file");
    refused(&["--captions", "2"], &["y.npy", "has 3 columns", "the 2 of"]);
    std::fs::write(&y, file("<f4", "False", &[0, 2], &[])).expect("a written file");
    refused(&["--captions", "2"], &["y.npy", "[0, 2]"]);
    std::fs::write(&y, b"no array").expect("a written file");
    refused(&["--captions", "2"], &["y.npy", "not a .npy file"]);
}

#[test]
fn cuda_is_cuda_or_an_error() {
    let (_, [x, y]) = two_items("evaluate-cuda");
    let ran = run("evaluate", &[&x, &y, "--captions", "2", "--normalize", "no", "--backend", "cuda"]);
    match cuda() {
        Ok(_) => assert!(ran.stdout.contains("backend: cuda") && ran.stdout.contains("rsum 500.00"), "{}", ran.stdout),
        Err(reason) => {
            assert_eq!(ran.status, Some(2));
            assert!(ran.stderr.contains(&reason.to_string()), "{}", ran.stderr);
        }
    }
}
