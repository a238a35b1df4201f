//! The list of target architectures, in CMake's notation, and what it means to nvcc.

use std::fmt;

/// Machine code for the two architectures the kernels are tuned for, and PTX from which a driver compiles for any
/// device of compute capability 8.0 or above.
pub const DEFAULT: &str = "80-real;90a-real;80-virtual";

/// The first release of nvcc that has `__maxnreg__`, which the kernels for sm_90a alone are declared with.
const HOPPER_RELEASE: (u32, u32) = (12, 4);

/// One target: an architecture number, its optional suffix, and the kinds of code wanted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// 10 × major + minor compute capability.
    pub number: u32,
    /// `a`: this architecture only; `f`: this family only.
    pub suffix: Option<char>,
    /// Machine code.
    pub real: bool,
    /// PTX.
    pub ptx: bool,
}

impl Arch {
    /// `90a`
    fn name(&self) -> String {
        self.suffix.map_or_else(|| self.number.to_string(), |s| format!("{}{s}", self.number))
    }

    /// What is built for it, as nvcc calls it: `sm_80`, `compute_80` or both.
    fn codes(&self) -> Vec<String> {
        let kinds = [(self.real, "sm"), (self.ptx, "compute")];
        kinds.iter().filter(|(wanted, _)| *wanted).map(|(_, kind)| format!("{kind}_{}", self.name())).collect()
    }

    /// One option per architecture, so that machine code and PTX share the front end's work.
    fn gencode(&self) -> String {
        format!("-gencode=arch=compute_{},code=[{}]", self.name(), self.codes().join(","))
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.codes().join(", "))
    }
}

/// Reads a list such as `80-real;90a-real;80-virtual`, separated by `;` or `,`. A plain number asks for machine code
/// and PTX. Entries of one architecture are joined; the order of first appearance is kept.
///
/// # Errors
/// A message that names the malformed entry.
pub fn parse(list: &str) -> Result<Vec<Arch>, String> {
    let mut archs: Vec<Arch> = Vec::new();
    for entry in list.split([';', ',']).map(str::trim).filter(|entry| !entry.is_empty()) {
        let arch = parse_entry(entry).map_err(|why| {
            format!("`{entry}` is not an architecture: {why}; write for example 80, 90a-real or 80-virtual")
        })?;
        match archs.iter_mut().find(|a| (a.number, a.suffix) == (arch.number, arch.suffix)) {
            Some(known) => {
                known.real |= arch.real;
                known.ptx |= arch.ptx;
            }
            None => archs.push(arch),
        }
    }
    if archs.is_empty() {
        return Err("the list of architectures is empty".to_owned());
    }
    Ok(archs)
}

fn parse_entry(entry: &str) -> Result<Arch, String> {
    let (name, kind) = entry.split_once('-').map_or((entry, None), |(name, kind)| (name, Some(kind)));
    let (real, ptx) = match kind {
        None => (true, true),
        Some("real") => (true, false),
        Some("virtual") => (false, true),
        Some(other) => return Err(format!("`-{other}` is neither -real nor -virtual")),
    };
    let digits = name.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = match &name[digits.len()..] {
        "" => None,
        "a" => Some('a'),
        "f" => Some('f'),
        other => return Err(format!("`{other}` is neither the suffix a nor f")),
    };
    let number: u32 = match digits.parse() {
        Ok(number) if (50..=999).contains(&number) && digits.bytes().all(|b| b.is_ascii_digit()) => number,
        _ => {
            return Err(
                "it starts with a number of two or three digits, 10 × major + minor compute capability".to_owned()
            );
        }
    };
    match suffix {
        Some('a') if number < 90 => Err("the suffix a exists from 90 on".to_owned()),
        Some('f') if number < 100 => Err("the suffix f exists from 100 on".to_owned()),
        _ => Ok(Arch { number, suffix, real, ptx }),
    }
}

/// What one nvcc can compile for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supported {
    /// Major and minor of `release 13.0`.
    pub release: (u32, u32),
    /// Numbers of `--list-gpu-code`.
    pub real: Vec<u32>,
    /// Numbers of `--list-gpu-arch`.
    pub ptx: Vec<u32>,
}

impl Supported {
    /// Reads the output of `nvcc --version`, `--list-gpu-code` and `--list-gpu-arch`. Newer compilers print both kinds
    /// in either list.
    pub fn read(version: &str, gpu_code: &str, gpu_arch: &str) -> Self {
        let numbers = |text: &str, prefix: &str| {
            text.split_whitespace().filter_map(|word| word.strip_prefix(prefix)?.parse().ok()).collect()
        };
        let release = version.split("release ").nth(1).and_then(|rest| {
            let (major, minor) = rest.split(',').next()?.trim().split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        Self {
            release: release.unwrap_or_default(),
            real: numbers(gpu_code, "sm_"),
            ptx: numbers(gpu_arch, "compute_"),
        }
    }

    /// The part of `arch` that this nvcc can build. The lists leave suffixed names out: they come with the plain ones,
    /// `a` since release 12.0 and `f` since 12.9.
    fn part_of(&self, arch: Arch) -> Arch {
        let suffix = match arch.suffix {
            None => true,
            Some('a') => self.release >= (12, 0),
            Some(_) => self.release >= (12, 9),
        };
        Arch {
            real: arch.real && suffix && self.real.contains(&arch.number),
            ptx: arch.ptx && suffix && self.ptx.contains(&arch.number),
            ..arch
        }
    }
}

/// What to pass to nvcc, what that builds, and what the user should be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// One `-gencode` option per architecture.
    pub gencode: Vec<String>,
    /// Those of them that have what only sm_90a has, for the files that use it; empty: such files are not compiled.
    pub hopper: Vec<String>,
    /// `sm_80, compute_80, sm_90a`
    pub built: String,
    /// Requested code that cannot be built, and PTX that is no way forward.
    pub warnings: Vec<String>,
}

/// Keeps what `nvcc` supports of a list.
///
/// # Errors
/// A message if the list is malformed or nothing of it is supported.
pub fn targets(list: &str, nvcc: &Supported) -> Result<Targets, String> {
    let asked = parse(list)?;
    let kept: Vec<Arch> = asked.iter().map(|&a| nvcc.part_of(a)).filter(|a| a.real || a.ptx).collect();
    let join = |archs: &[Arch]| archs.iter().flat_map(Arch::codes).collect::<Vec<_>>();
    let (wanted, built) = (join(&asked), join(&kept));
    let (major, minor) = nvcc.release;
    if built.is_empty() {
        return Err(format!("nvcc {major}.{minor} supports none of {}", wanted.join(", ")));
    }
    let mut warnings = Vec::new();
    let lost: Vec<&String> = wanted.iter().filter(|code| !built.contains(code)).collect();
    if !lost.is_empty() {
        let lost = lost.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", ");
        warnings.push(format!("nvcc {major}.{minor} does not support {lost}; built for {} only", built.join(", ")));
    }
    // PTX of a suffixed architecture is compiled for that architecture (or its family) and refused by every later one.
    let ptx: Vec<&Arch> = kept.iter().filter(|a| a.ptx).collect();
    if !ptx.is_empty() && ptx.iter().all(|a| a.suffix.is_some()) {
        let name = ptx[0].name();
        warnings.push(format!(
            "the only PTX is of compute_{name}, which later architectures refuse; add {}-virtual to run on them",
            ptx[0].number
        ));
    }
    let is_hopper = |a: &&Arch| (a.number, a.suffix) == (90, Some('a'));
    let mut hopper: Vec<String> = kept.iter().filter(is_hopper).map(Arch::gencode).collect();
    if nvcc.release < HOPPER_RELEASE && !hopper.is_empty() {
        hopper.clear();
        let (needs_major, needs_minor) = HOPPER_RELEASE;
        warnings.push(format!(
            "the kernels with wgmma need nvcc {needs_major}.{needs_minor}, not {major}.{minor}: those for sm_80 serve sm_90a too"
        ));
    }
    Ok(Targets { gencode: kept.iter().map(Arch::gencode).collect(), hopper, built: built.join(", "), warnings })
}
