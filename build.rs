//! Compiles kernels/*.cu to one fatbin each when NVCC names a compiler.
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=SIMGRAD_CUDA_ARCHS");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    let Some(nvcc) = std::env::var_os("NVCC") else {
        println!("cargo:rustc-env=SIMGRAD_BUILT_ARCHS=");
        return;
    };
    let mut built = 0;
    for entry in std::fs::read_dir("kernels").into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "cu") {
            continue;
        }
        let target = out.join(path.file_stem().unwrap()).with_extension("fatbin");
        let status = Command::new(&nvcc)
            .args([
                "-std=c++17",
                "-O3",
                "-fatbin",
                "-lineinfo",
                "-gencode=arch=compute_80,code=compute_80",
                "-Ikernels",
            ])
            .arg(&path)
            .arg("-o")
            .arg(target)
            .status()
            .unwrap();
        assert!(status.success());
        built += 1;
    }
    println!("cargo:rustc-env=SIMGRAD_BUILT_ARCHS=compute_80");
    if built > 0 {
        println!("cargo:rustc-cfg=has_kernels");
    }
}
