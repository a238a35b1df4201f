//! The roofline program from the outside.

use crate::program::{folder, refuse, succeed};

#[test]
fn it_prints_the_floor_and_the_plan_and_no_time_that_nothing_measured() {
    let text = succeed("roofline", &["mine", "16384", "16384", "512", "f32"]);
    for part in
        ["floor, derived", "bound by arithmetic", "mine_f32: 16 x 16 blocks", "scheme", "multiply-adds", "not measured"]
    {
        assert!(text.contains(part), "`{part}` is missing in {text}");
    }
    assert!(!text.contains("median"), "{text}");
    let old = succeed("roofline", &["cosine_matrix", "512", "512", "512", "f16", "--batch", "64", "--device", "a100"]);
    assert!(old.contains("64 x (512, 512)") && old.contains("compute capability 8.0, 108 multiprocessors"), "{old}");
    let split = succeed("roofline", &["cosine_split", "512", "512", "512", "f32", "--batch", "64"]);
    for part in ["split_f32: 1024 blocks", "cosine_matrix_hopper_bf16", "51.5 Gflop on tensor cores"] {
        assert!(split.contains(part), "`{part}` is missing in {split}");
    }
}

#[test]
fn it_times_the_cpu_against_ceilings_that_it_measures() {
    for (op, n, m) in [("mine", "60", "70"), ("goal", "40", "40"), ("ranks", "20", "90"), ("weighted_grad", "30", "20")]
    {
        let text = succeed("roofline", &[op, n, m, "24", "bf16", "--measure", "cpu"]);
        assert!(text.contains("ceilings measured just before") && text.contains("median"), "{text}");
    }
}

#[test]
fn it_puts_counters_beside_the_plan_they_belong_to() {
    let file = folder("roofline").join("counters.jsonl");
    let launch = |kernel: &str, grid: [u32; 3], block: u32| {
        format!(
            r#"{{"kernel":"{kernel}","grid":[{},{},{}],"block":[{block},1,1],"dynamic_shared":0,"counters":{{"global_unique_bytes_read":8192,"global_unique_bytes_written":1024,"tensor_flop_f16":0,"tensor_flop_bf16":0,"flop_f32":4194304}}}}"#,
            grid[0], grid[1], grid[2]
        )
    };
    let lines = [
        launch("prepare_f32", [16, 1, 1], 256),
        launch("mine_small_f32", [4, 2, 1], 128),
        launch("mine_merge", [1, 1, 1], 256),
    ];
    std::fs::write(&file, lines.join("\n")).expect("a file");
    let path = file.to_str().expect("a path of text");
    let arguments = |n| ["mine", n, "128", "32", "f32", "--counters", path];
    let text = succeed("roofline", &arguments("128"));
    // 2 x 128 x 128 x 32 operations were planned, four times as many counted.
    assert!(text.contains("no clock") && text.contains("4194304 / 4.000"), "{text}");
    refuse("roofline", &arguments("256"), &["planned was prepare_f32", "another operation"]);
    std::fs::write(&file, "{}").expect("a file");
    refuse("roofline", &arguments("128"), &[path, "line 1"]);
}

#[test]
fn it_refuses_what_it_cannot_plan() {
    refuse("roofline", &["mine", "5", "5", "0", "f32"], &["0 columns"]);
    refuse("roofline", &["mine", "5", "5", "8", "f64"], &["f64", "bf16"]);
    refuse("roofline", &["sort", "5", "5", "8", "f32"], &["sort", "cosine_matrix"]);
    refuse("roofline", &["goal", "5", "6", "8", "f32"], &["5, not 6"]);
    refuse("roofline", &["goal", "5", "5", "8", "f32", "--batch", "2"], &["--batch"]);
    refuse("roofline", &["lse", "5", "5", "8", "f32", "--measure", "cpu"], &["infonce"]);
    refuse("roofline", &["mine", "5", "5"], &["D"]);
}
