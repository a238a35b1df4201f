//! Where nvcc is, and how cargo learns that one has appeared.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The compiler's file name.
pub const NVCC: &str = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };

/// Where toolkits install themselves, for those who have not extended their PATH.
const INSTALL_DIRS: [&str; 2] = ["/usr/local/cuda", "/opt/cuda"];

/// Directories with more entries than this are not watched: cargo looks at each of them on every call.
const WATCH_LIMIT: usize = 8192;

/// The environment variables that discovery looks at, each `None` if unset or empty.
#[derive(Clone, Debug, Default)]
pub struct Vars {
    pub nvcc: Option<OsString>,
    pub cuda_home: Option<OsString>,
    pub cuda_path: Option<OsString>,
    pub path: Option<OsString>,
    pub install_dirs: Vec<PathBuf>,
}

impl Vars {
    pub fn from_env() -> Self {
        let var = |name| env::var_os(name).filter(|value| !value.is_empty());
        Self {
            nvcc: var("NVCC"),
            cuda_home: var("CUDA_HOME"),
            cuda_path: var("CUDA_PATH"),
            path: var("PATH"),
            install_dirs: INSTALL_DIRS.iter().map(PathBuf::from).collect(),
        }
    }

    fn path_dirs(&self) -> Vec<PathBuf> {
        self.path.as_ref().map(|path| env::split_paths(path).collect()).unwrap_or_default()
    }
}

/// The first nvcc among `$NVCC`, `$CUDA_HOME/bin`, `$CUDA_PATH/bin`, `PATH` and the usual folders. It need not work:
/// a broken one is reported, not skipped.
///
/// # Errors
/// A message if `NVCC` is set to something that does not exist.
pub fn find_nvcc(vars: &Vars) -> Result<Option<PathBuf>, String> {
    let path_dirs = vars.path_dirs();
    if let Some(nvcc) = &vars.nvcc {
        let named = PathBuf::from(nvcc);
        let by_name = || path_dirs.iter().map(|dir| dir.join(&named)).find(|file| file.is_file());
        let found =
            if named.components().count() > 1 { Some(named.clone()).filter(|n| n.is_file()) } else { by_name() };
        return found.map(Some).ok_or_else(|| format!("NVCC is `{}`, and there is no such file", named.display()));
    }
    let homes = [&vars.cuda_home, &vars.cuda_path].into_iter().flatten().map(|home| Path::new(home).join("bin"));
    let folders = vars.install_dirs.iter().map(|dir| dir.join("bin"));
    let dirs = homes.chain(path_dirs).chain(folders);
    Ok(dirs.map(|dir| dir.join(NVCC)).find(|file| file.is_file()))
}

/// Directories whose modification may mean that an nvcc has appeared: those of `PATH`, and the parents of the usual
/// folders. Left out are directories that do not exist (cargo would rebuild for ever), that are too large, that hold
/// a time in the future, or that contain or lie in one of `own` (a build writes there).
pub fn watched_dirs(vars: &Vars, own: &[PathBuf]) -> Vec<PathBuf> {
    let parents = vars.install_dirs.iter().filter_map(|dir| dir.parent().map(Path::to_path_buf));
    let candidates: BTreeSet<PathBuf> = vars
        .path_dirs()
        .into_iter()
        .chain(parents)
        .filter(|dir| dir.is_absolute())
        .filter_map(|dir| fs::canonicalize(dir).ok())
        .filter(|dir| dir.parent().is_some() && !own.iter().any(|o| o.starts_with(dir) || dir.starts_with(o)))
        .collect();
    let mut kept: Vec<PathBuf> = Vec::new();
    // In sorted order a directory comes before those inside it, which its recursive scan covers.
    for dir in candidates {
        if !kept.iter().any(|k| dir.starts_with(k)) && is_watchable(&dir) {
            kept.push(dir);
        }
    }
    kept
}

fn is_watchable(root: &Path) -> bool {
    let now = SystemTime::now();
    let mut left = WATCH_LIMIT;
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { return false };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let Some(rest) = left.checked_sub(1) else { return false };
            left = rest;
            if meta.modified().is_ok_and(|time| time > now) {
                return false;
            }
            if meta.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    true
}
