//! The build script's parts: the architecture list, the search for nvcc, and the compilation with a stand-in for nvcc.
//! `scripts/test-build-states` runs the build script itself.

// The build script uses all of it, this test only some.
#[allow(dead_code)]
#[path = "../build/archs.rs"]
mod archs;
#[allow(dead_code)]
#[path = "../build/compile.rs"]
mod compile;
#[allow(dead_code)]
#[path = "../build/discovery.rs"]
mod discovery;

use std::fs;
use std::path::{Path, PathBuf};

use archs::{Arch, Supported, parse, targets};
use discovery::{NVCC, Vars, find_nvcc, watched_dirs};

fn nvcc_13() -> Supported {
    let list = |prefix: &str| ["75", "80", "86", "90", "100"].map(|n| format!("{prefix}{n}\n")).concat();
    let version = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n";
    Supported::read(version, &list("sm_"), &list("compute_"))
}

/// An empty directory of this test's own.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build_script").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    fs::canonicalize(dir).unwrap()
}

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

#[cfg(unix)]
fn write_script(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    write(file, &format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn arch_list_reads_cmake_notation() {
    let arch = |number, suffix, real, ptx| Arch { number, suffix, real, ptx };
    assert_eq!(parse("80"), Ok(vec![arch(80, None, true, true)]));
    assert_eq!(parse("90a-virtual"), Ok(vec![arch(90, Some('a'), false, true)]));
    assert_eq!(parse(" 80-real , 120f ;"), Ok(vec![arch(80, None, true, false), arch(120, Some('f'), true, true)]));
    // The two kinds of one architecture are one compilation.
    assert_eq!(
        parse(archs::DEFAULT),
        Ok(vec![arch(80, None, true, true), arch(90, Some('a'), true, false)]),
        "the default"
    );
}

#[test]
fn arch_list_names_a_malformed_entry() {
    for bad in ["sm_80", "80-fake", "80_real", "90b", "8.0", "80a", "90f", "a", "-real", "native", "8", "1000", "+80"] {
        let message = parse(&format!("90;{bad}")).expect_err(bad);
        assert!(message.starts_with(&format!("`{bad}` is not an architecture")), "{bad}: {message}");
    }
    for empty in ["", " ; ,"] {
        assert_eq!(parse(empty), Err("the list of architectures is empty".to_owned()));
    }
}

#[test]
fn targets_become_gencode_options() {
    let got = targets(archs::DEFAULT, &nvcc_13()).unwrap();
    assert_eq!(
        got.gencode,
        ["-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=[sm_90a]"]
    );
    assert_eq!(got.hopper, got.gencode[1..]);
    assert_eq!(got.built, "sm_80, compute_80, sm_90a");
    assert_eq!(got.warnings, Vec::<String>::new());
}

#[test]
fn targets_are_filtered_by_what_nvcc_supports() {
    let got = targets("70;80-virtual", &nvcc_13()).unwrap();
    assert_eq!(got.built, "compute_80");
    assert!(got.hopper.is_empty(), "without sm_90a nothing is compiled for it");
    assert_eq!(got.warnings, ["nvcc 13.0 does not support sm_70, compute_70; built for compute_80 only"]);

    assert_eq!(
        targets("70,72", &nvcc_13()).unwrap_err(),
        "nvcc 13.0 supports none of sm_70, compute_70, sm_72, compute_72"
    );
    assert!(targets("80,90x", &nvcc_13()).unwrap_err().contains("`90x`"));
    // Release 11.8 lists sm_90, but has no sm_90a.
    let old = Supported { release: (11, 8), ..nvcc_13() };
    assert_eq!(targets("80-real,90a-real", &old).unwrap().built, "sm_80");
    let older = targets("90a-real", &Supported { release: (12, 3), ..nvcc_13() }).unwrap();
    assert_eq!((older.built.as_str(), older.hopper.len()), ("sm_90a", 0));
    assert!(older.warnings[0].contains("need nvcc 12.4, not 12.3"), "{:?}", older.warnings);
    assert_eq!(
        targets("100f-real", &Supported { release: (12, 8), ..nvcc_13() }).unwrap_err(),
        "nvcc 12.8 supports none of sm_100f"
    );
}

#[test]
fn ptx_that_no_later_device_takes_is_pointed_out() {
    let warnings = |list| targets(list, &nvcc_13()).unwrap().warnings;
    assert_eq!(
        warnings("90a"),
        ["the only PTX is of compute_90a, which later architectures refuse; add 90-virtual to run on them"]
    );
    assert!(warnings("90a;80-virtual").is_empty());
    assert!(warnings("90a-real").is_empty(), "machine code only was asked for");
}

#[test]
fn nvcc_is_found_in_the_documented_order() {
    let dir = scratch("order");
    let at = |name: &str| dir.join(name).join(NVCC);
    for home in ["home/bin", "path/bin", "on_path", "usual/bin", "own"] {
        write(&at(home), "");
    }
    let mut vars = Vars {
        nvcc: Some(at("own").into()),
        cuda_home: Some(dir.join("home").into()),
        cuda_path: Some(dir.join("path").into()),
        path: Some(std::env::join_paths([dir.join("nothing"), dir.join("on_path")]).unwrap()),
        install_dirs: vec![dir.join("usual")],
    };
    assert_eq!(find_nvcc(&vars), Ok(Some(at("own"))));
    vars.nvcc = None;
    assert_eq!(find_nvcc(&vars), Ok(Some(at("home/bin"))));
    vars.cuda_home = Some(dir.join("nothing").into());
    assert_eq!(find_nvcc(&vars), Ok(Some(at("path/bin"))));
    vars.cuda_path = None;
    assert_eq!(find_nvcc(&vars), Ok(Some(at("on_path"))));
    vars.path = None;
    assert_eq!(find_nvcc(&vars), Ok(Some(at("usual/bin"))));
    vars.install_dirs.clear();
    assert_eq!(find_nvcc(&vars), Ok(None));
}

#[test]
fn nvcc_variable_may_be_a_name_on_path_and_must_exist() {
    let dir = scratch("variable");
    write(&dir.join("bin/nvcc-13"), "");
    let vars = |name: &str| Vars { nvcc: Some(name.into()), path: Some(dir.join("bin").into()), ..Vars::default() };
    assert_eq!(find_nvcc(&vars("nvcc-13")), Ok(Some(dir.join("bin/nvcc-13"))));
    for missing in ["nvcc-14", "/nowhere/nvcc"] {
        assert_eq!(find_nvcc(&vars(missing)), Err(format!("NVCC is `{missing}`, and there is no such file")));
    }
}

#[test]
fn watched_directories_exist_once_and_are_not_written_by_builds() {
    let dir = scratch("watched");
    for sub in ["bin/deeper", "other", "target/debug", "usual"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let path = ["bin", "bin", "bin/deeper", "missing", "target/debug", "target"].map(|d| dir.join(d));
    let relative = [PathBuf::from("."), PathBuf::from("/")];
    let vars = Vars {
        path: Some(std::env::join_paths(path.iter().chain(&relative)).unwrap()),
        install_dirs: vec![dir.join("usual/cuda"), dir.join("missing/cuda")],
        ..Vars::default()
    };
    let own = [dir.join("package"), dir.join("target/debug/build/out")];
    assert_eq!(watched_dirs(&vars, &own), [dir.join("bin"), dir.join("usual")]);

    // A time in the future would make cargo rebuild on every call.
    let future = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let file = fs::File::create(dir.join("bin/tool")).unwrap();
    file.set_modified(future).unwrap();
    assert_eq!(watched_dirs(&vars, &own), [dir.join("bin/deeper"), dir.join("usual")]);
}

/// A stand-in for nvcc that appends its last argument, the input, to `log` and copies it to the output.
#[cfg(unix)]
fn stand_in(dir: &Path) -> PathBuf {
    let nvcc = dir.join("bin").join(NVCC);
    let log = dir.join("log");
    write_script(
        &nvcc,
        &format!(
            r#"while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
echo "$1" >> '{}'
grep -q BROKEN "$1" && {{ echo "$1(1): error: broken" >&2; exit 2; }}
cp "$1" "$out""#,
            log.display()
        ),
    );
    nvcc
}

#[cfg(unix)]
#[test]
fn compile_skips_unchanged_kernels_and_reports_every_failure() {
    let dir = scratch("compile");
    let nvcc = stand_in(&dir);
    let (package, out) = (dir.join("package"), dir.join("out"));
    fs::create_dir_all(&out).unwrap();
    write(&package.join("kernels/a.cu"), "a");
    let b = |version| format!("#include \"common/c.cuh\"\n// {version}");
    write(&package.join("kernels/b.cu"), &b(1));
    write(&package.join("kernels/common/c.cuh"), "  # include \"common/d.cuh\"  // and itself:\n#include \"c.cuh\"");
    write(&package.join("kernels/common/d.cuh"), "#include <d>\n#include \"common/missing.cuh\"");
    write(&package.join("kernels/common/e.cuh"), "");
    write(&package.join("kernels/common/not_a_kernel.cu"), "");
    let run_for = |version, hopper: &[&str]| {
        let job = compile::Job {
            nvcc: &nvcc,
            version,
            package: &package,
            out: &out,
            options: vec!["-fatbin".into()],
            gencode: vec!["-g80".into()],
            hopper: hopper.iter().map(Into::into).collect(),
            parallel: 2,
        };
        let result = job.run();
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        let _ = fs::remove_file(dir.join("log"));
        let mut inputs: Vec<String> = log.lines().map(str::to_owned).collect();
        inputs.sort();
        (result, inputs)
    };
    let run = |version| run_for(version, &[]);
    let both = vec!["kernels/a.cu".to_owned(), "kernels/b.cu".to_owned()];
    assert_eq!(run("1"), (Ok(()), both.clone()));
    assert_eq!(fs::read_to_string(out.join("a.fatbin")).unwrap(), "a");
    assert!(!out.join("not_a_kernel.fatbin").exists());
    assert_eq!(run("1"), (Ok(()), vec![]), "nothing changed");
    write(&package.join("kernels/b.cu"), &b(2));
    assert_eq!(run("1"), (Ok(()), both[1..].to_vec()), "one kernel changed");
    for (header, whose) in [("c", "directly"), ("d", "by another header")] {
        let header = package.join(format!("kernels/common/{header}.cuh"));
        let text = fs::read_to_string(&header).unwrap();
        write(&header, &format!("{text}\n// changed"));
        assert_eq!(run("1"), (Ok(()), both[1..].to_vec()), "a header changed, included {whose}");
    }
    write(&package.join("kernels/common/e.cuh"), "// changed");
    assert_eq!(run("1"), (Ok(()), vec![]), "a header changed that nobody includes");
    assert_eq!(run("2"), (Ok(()), both.clone()), "another nvcc");

    // A file for sm_90a alone is compiled where that is a target, with its options and no others.
    write(&package.join("kernels/c_hopper.cu"), "c");
    assert_eq!(run("2"), (Ok(()), vec![]), "no target for it");
    assert_eq!(run_for("2", &["-g90a"]), (Ok(()), vec!["kernels/c_hopper.cu".to_owned()]));
    write(&package.join("kernels/c_hopper.cu"), "BROKEN c");
    let message = run_for("2", &["-g90a"]).0.unwrap_err();
    assert!(message.contains("-g90a") && !message.contains("-g80"), "{message}");
    fs::remove_file(package.join("kernels/c_hopper.cu")).unwrap();

    write(&package.join("kernels/a.cu"), "BROKEN a");
    write(&package.join("kernels/b.cu"), "BROKEN b");
    let message = run("2").0.unwrap_err();
    for part in ["a.cu(1): error: broken", "b.cu(1): error: broken", "exit status: 2", "-fatbin -g80 -o", "command: "] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    // The output of an earlier, working version is not taken for that of the broken one put back.
    write(&package.join("kernels/b.cu"), &b(2));
    assert!(run("2").0.is_err());
    write(&package.join("kernels/a.cu"), "a");
    assert_eq!(run("2"), (Ok(()), vec![both[0].clone()]));

    // In this test because it starts a process too: a fork in another thread could hold `nvcc` open for writing.
    write(&dir.join("text"), "not executable");
    let message = compile::output(&dir.join("text"), &["--version".into()], &dir).unwrap_err();
    assert!(message.contains("could not be started") && message.contains("text --version"), "{message}");
}

#[test]
fn fast_math_and_relocatable_code_are_off() {
    assert!(!compile::FLAGS.iter().any(|flag| flag.contains("fast_math") || flag.contains("rdc") || *flag == "-dc"));
}
