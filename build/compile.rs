//! Runs nvcc: one fatbin per kernel file, several files at a time, unchanged ones skipped.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// Options of every kernel. No relocatable device code, and no `--use_fast_math`: it would change square roots,
/// divisions and denormals behind the error bounds that the crate states.
pub const FLAGS: [&str; 5] = ["-std=c++17", "-O3", "-lineinfo", "-Ikernels", "-fatbin"];

/// Runs `nvcc` with `args` and returns what it printed.
///
/// # Errors
/// The command, its exit status and its output.
pub fn output(nvcc: &Path, args: &[OsString], dir: &Path) -> Result<String, String> {
    let shown = || {
        let words = std::iter::once(nvcc.as_os_str()).chain(args.iter().map(OsString::as_os_str));
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    let result = Command::new(nvcc).args(args).current_dir(dir).output();
    let done = result.map_err(|error| format!("nvcc could not be started: {error}\n  command: {}", shown()))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    let stderr = String::from_utf8_lossy(&done.stderr);
    Err(format!("nvcc failed ({})\n  command: {}\n  output:\n{}{}", done.status, shown(), stderr, text))
}

/// Files below `dir` with this extension test, sorted.
pub fn files(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, wanted)?);
        } else if wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The kernel files themselves: `kernels/*.cu`, not those in subdirectories.
pub fn kernels(package: &Path) -> Result<Vec<PathBuf>, String> {
    let dir = package.join("kernels");
    let is_kernel = |file: &Path| file.parent() == Some(&dir) && file.extension().is_some_and(|e| e == "cu");
    files(&dir, &is_kernel).map_err(|error| format!("cannot list {}: {error}", dir.display()))
}

/// Whether a kernel file uses what only sm_90a has: `<name>_hopper.cu`.
fn is_hopper(file: &Path) -> bool {
    file.file_stem().is_some_and(|name| name.to_string_lossy().ends_with("_hopper"))
}

/// One compilation of all kernels.
pub struct Job<'a> {
    pub nvcc: &'a Path,
    /// Part of the key of unchanged outputs: what `nvcc --version` printed.
    pub version: &'a str,
    pub package: &'a Path,
    pub out: &'a Path,
    /// Everything but input, output and architectures: flags, host compiler.
    pub options: Vec<OsString>,
    /// Architectures.
    pub gencode: Vec<OsString>,
    /// Architectures of the files that need sm_90a; empty: they are left out.
    pub hopper: Vec<OsString>,
    pub parallel: usize,
}

impl Job<'_> {
    /// Compiles `kernels/<name>.cu` to `<out>/<name>.fatbin` for every kernel file.
    ///
    /// # Errors
    /// The messages of all files that failed.
    pub fn run(&self) -> Result<(), String> {
        let mut list = kernels(self.package)?;
        list.retain(|file| !is_hopper(file) || !self.hopper.is_empty());
        let queue = Mutex::new(list);
        let failures = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..self.parallel.max(1) {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().ok().and_then(|mut files| files.pop());
                        let Some(file) = next else { break };
                        if let Err(message) = self.compile(&file)
                            && let Ok(mut list) = failures.lock()
                        {
                            list.push(message);
                        }
                    }
                });
            }
        });
        let mut failures = failures.into_inner().unwrap_or_default();
        failures.sort();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
    }

    /// A kernel file and all that it includes with quotes, directly or not, by name: contents of each once. Conditions are not
    /// looked at, so that it is rather one file more.
    fn sources(&self, file: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
        let (mut found, mut queue) = (BTreeMap::new(), vec![file.to_path_buf()]);
        while let Some(file) = queue.pop() {
            if found.contains_key(&file) {
                continue;
            }
            let text = fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            let beside = file.parent().unwrap_or(self.package).to_path_buf();
            let included = text.split(|&b| b == b'\n').filter_map(|line| {
                let name = std::str::from_utf8(line).ok()?.trim_start().strip_prefix('#')?.trim_start();
                let name = name.strip_prefix("include")?.trim_start().strip_prefix('"')?;
                name.split('"').next()
            });
            // Where nvcc looks, in its order. What is in neither place it will miss as well.
            let dirs = [beside, self.package.join("kernels")];
            queue.extend(included.filter_map(|name| dirs.iter().map(|dir| dir.join(name)).find(|file| file.is_file())));
            found.insert(file, text);
        }
        Ok(found)
    }

    fn compile(&self, file: &Path) -> Result<(), String> {
        let io = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
        let gencode = if is_hopper(file) { &self.hopper } else { &self.gencode };
        let mut hasher = DefaultHasher::new();
        (self.nvcc, self.version, &self.options, gencode, self.sources(file)?).hash(&mut hasher);
        let key = format!("{:016x}", hasher.finish());

        let name = file.file_stem().unwrap_or_default();
        let target = self.out.join(name).with_extension("fatbin");
        let key_file = target.with_extension("key");
        if target.is_file() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
            return Ok(());
        }
        // Relative to the package, so that line tables and error messages do not depend on where it lies.
        let input = file.strip_prefix(self.package).unwrap_or(file);
        let mut args = self.options.clone();
        args.extend(gencode.iter().cloned());
        args.extend(["-o".into(), target.clone().into(), input.into()]);
        let _ = fs::remove_file(&key_file); // it must not outlive a target that fails to compile
        output(self.nvcc, &args, self.package)?;
        fs::write(&key_file, key).map_err(|e| io(&key_file, e))
    }
}
