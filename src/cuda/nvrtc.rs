//! NVIDIA's run-time compiler: found, asked, and never a reason to panic.
//!
//! cudarc's wrapper panics when there is no library, and takes no headers from memory, so the few functions that are needed
//! are looked up here.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use super::probe::{driver_present, driver_version};
use crate::error::{Error, Result};
use crate::expression::Expression;

const OP: &str = Expression::COMPILE;

/// The folder of the library, if it is not in the loader's search path.
const FOLDER: &str = "SIMGRAD_NVRTC";

/// The loader's names for the library and the major version that each stands for, the newest first; 0 is any.
#[cfg(windows)]
const LIBRARIES: [(i32, &str); 2] = [(13, "nvrtc64_130_0.dll"), (12, "nvrtc64_120_0.dll")];
#[cfg(not(windows))]
const LIBRARIES: [(i32, &str); 3] = [(13, "libnvrtc.so.13"), (12, "libnvrtc.so.12"), (0, "libnvrtc.so")];

/// The names in the order in which they are tried: a driver takes no PTX of a newer toolkit, so its own version comes first.
fn library_names(driver_major: i32) -> [&'static str; LIBRARIES.len()] {
    let mut libraries = LIBRARIES;
    libraries.sort_by_key(|&(major, _)| major != driver_major);
    libraries.map(|(_, name)| name)
}

type Program = *mut c_void;
type Texts = *const *const c_char;

/// The functions, as `nvrtc.h` declares them; a result of 0 is success.
struct Functions {
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Texts, Texts) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Texts) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    archs_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
}

/// `NVRTC_ERROR_COMPILATION`: the source is at fault, and the log says why.
const COMPILATION: c_int = 6;

impl Functions {
    /// `None` if a function is missing.
    fn of(library: &Library) -> Option<Self> {
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the field that takes it has the type that `nvrtc.h` declares for this name.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }.ok()?
            };
        }
        Some(Self {
            create: get!("nvrtcCreateProgram"),
            destroy: get!("nvrtcDestroyProgram"),
            compile: get!("nvrtcCompileProgram"),
            ptx_size: get!("nvrtcGetPTXSize"),
            ptx: get!("nvrtcGetPTX"),
            log_size: get!("nvrtcGetProgramLogSize"),
            log: get!("nvrtcGetProgramLog"),
            error_string: get!("nvrtcGetErrorString"),
            archs_count: get!("nvrtcGetNumSupportedArchs"),
            archs: get!("nvrtcGetSupportedArchs"),
        })
    }

    fn failed(&self, call: &'static str, code: c_int) -> Error {
        // SAFETY: the function takes any code and returns a string that lasts.
        let text = unsafe { (self.error_string)(code) };
        let name = if text.is_null() {
            "unknown".into()
        } else {
            // SAFETY: a string that ends with 0.
            unsafe { CStr::from_ptr(text) }.to_string_lossy()
        };
        Error::Driver { op: OP, call, detail: format!("{name} ({code})") }
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(self.failed(call, code)) }
    }

    /// The highest compute capability that is not above the device's, as in `compute_90`.
    fn target(&self, (major, minor): (i32, i32)) -> Result<c_int> {
        let mut count = 0;
        // SAFETY: writes one number.
        self.check("nvrtcGetNumSupportedArchs", unsafe { (self.archs_count)(&raw mut count) })?;
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many numbers as were announced.
        self.check("nvrtcGetSupportedArchs", unsafe { (self.archs)(archs.as_mut_ptr()) })?;
        let device = 10 * major + minor;
        let best = archs.into_iter().filter(|&arch| arch <= device).max();
        let detail = || format!("the compiler has no target for compute capability {major}.{minor}");
        best.ok_or_else(|| Error::Driver { op: OP, call: "nvrtcGetSupportedArchs", detail: detail() })
    }
}

/// A program that is destroyed when dropped.
struct Compilation<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created and is not used any more.
        let _ = unsafe { (self.functions.destroy)(&raw mut self.program) };
    }
}

impl Compilation<'_> {
    fn text(
        &self,
        call: &'static str,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        read: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: writes one number.
        self.functions.check(call, unsafe { size(self.program, &raw mut bytes) })?;
        let mut text = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as were announced.
        self.functions.check(call, unsafe { read(self.program, text.as_mut_ptr().cast()) })?;
        text.truncate(text.iter().position(|&byte| byte == 0).unwrap_or(text.len()));
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Why a source was not compiled.
pub(super) enum Failure {
    /// It is no program; what the compiler said.
    Source(String),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// A text of the source's or the headers'.
fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::InvalidOption {
        op: OP,
        arg: "source",
        expected: "text without zero bytes".to_owned(),
        got: "one".to_owned(),
    })
}

/// Compiles `source`, which may include `headers` (name, text) and nothing else, to PTX for devices of this compute capability.
pub(super) fn compile(
    name: &str,
    source: &str,
    headers: &[(&str, &str)],
    capability: (i32, i32),
) -> std::result::Result<String, Failure> {
    let functions = functions()?;
    let texts = |of: &dyn Fn(&(&str, &str)) -> Result<CString>| headers.iter().map(of).collect::<Result<Vec<_>>>();
    let (names, bodies) = (texts(&|(name, _)| c_string(name))?, texts(&|(_, body)| c_string(body))?);
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let (name, source) = (c_string(name)?, c_string(source)?);
    let (name_pointers, body_pointers) = (pointers(&names), pointers(&bodies));
    let mut program = std::ptr::null_mut();
    // SAFETY: all texts end with 0 and outlive the program.
    let created = unsafe {
        (functions.create)(
            &raw mut program,
            source.as_ptr(),
            name.as_ptr(),
            headers.len() as c_int,
            body_pointers.as_ptr(),
            name_pointers.as_ptr(),
        )
    };
    functions.check("nvrtcCreateProgram", created)?;
    let compilation = Compilation { functions, program };
    let target = format!("--gpu-architecture=compute_{}", functions.target(capability)?);
    // A formula means what is written: a product and a sum are two roundings.
    let options = ["--std=c++17", "--fmad=false", &target].map(c_string).into_iter().collect::<Result<Vec<_>>>()?;
    let option_pointers = pointers(&options);
    // SAFETY: the program exists, the options end with 0.
    let code = unsafe { (functions.compile)(program, options.len() as c_int, option_pointers.as_ptr()) };
    if code == COMPILATION {
        return Err(Failure::Source(compilation.text("nvrtcGetProgramLog", functions.log_size, functions.log)?));
    }
    functions.check("nvrtcCompileProgram", code)?;
    Ok(compilation.text("nvrtcGetPTX", functions.ptx_size, functions.ptx)?)
}

/// The compiler, loaded once per process.
fn functions() -> Result<&'static Functions> {
    static FUNCTIONS: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
    let found = FUNCTIONS.get_or_init(|| {
        let driver_major = if driver_present() { driver_version() / 1000 } else { 0 };
        find(std::env::var_os(FOLDER).filter(|v| !v.is_empty()).map(PathBuf::from), driver_major)
    });
    found.as_ref().map_err(|looked_for| Error::NvrtcNotFound { looked_for: looked_for.clone() })
}

/// The functions, or where they were looked for.
fn find(folder: Option<PathBuf>, driver_major: i32) -> std::result::Result<Functions, String> {
    if let Some(folder) = &folder {
        load_builtins(folder);
    }
    let names = library_names(driver_major);
    for name in names {
        let path = folder.as_ref().map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        // SAFETY: loading runs the library's initialisers; those of the compiler have no precondition.
        let Ok(library) = (unsafe { Library::new(&path) }) else { continue };
        let functions = Functions::of(&library);
        // The functions are used for as long as the process lives.
        std::mem::forget(library);
        if let Some(functions) = functions {
            return Ok(functions);
        }
    }
    let names = names.join(", ");
    Err(match folder {
        Some(folder) => format!("{names} in {}, which {FOLDER} names", folder.display()),
        None => format!("{names} in the loader's search path; {FOLDER} names another folder"),
    })
}

/// The compiler loads a companion by its bare name, which the loader knows only if it lies in the search path or is loaded.
fn load_builtins(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains("nvrtc-builtins")) {
            // SAFETY: as for the compiler. One that does not load is missed when the compiler asks for it.
            if let Ok(library) = unsafe { Library::new(&path) } {
                std::mem::forget(library);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_library_is_named() {
        let looked_for = find(Some("/nonexistent".into()), 12).err().unwrap();
        let names = library_names(12);
        assert!(looked_for.contains("/nonexistent"), "{looked_for}");
        assert!(names.iter().all(|name| looked_for.contains(name)), "{looked_for}");
    }

    #[test]
    fn the_library_of_the_drivers_major_version_comes_first() {
        let newest_first = LIBRARIES.map(|(_, name)| name);
        for (driver_major, first) in [(12, LIBRARIES[1].1), (13, LIBRARIES[0].1)] {
            let names = library_names(driver_major);
            assert_eq!(names[0], first);
            assert!(newest_first.iter().all(|name| names.contains(name)), "{names:?}");
        }
        // Of another driver, or of none, the newest.
        assert_eq!([library_names(11), library_names(14)], [newest_first; 2]);
    }
}
