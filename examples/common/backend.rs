//! Choice of the backend, with the reason for it.

use simgrad::Backend;

use super::{Failure, Outcome};

/// `cpu`, `cuda` or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendChoice {
    /// The CPU, always there.
    Cpu,
    /// The first CUDA device; an error if that cannot be used.
    Cuda,
    /// CUDA where kernels, driver and a device are there, else the CPU with the reason why.
    Auto,
}

/// A backend and, for people, why it is this one.
pub struct Chosen {
    /// The backend.
    pub backend: Backend,
    /// One sentence.
    pub reason: String,
}

impl BackendChoice {
    /// Opens the backend. A request for CUDA is never served by the CPU.
    pub fn open(self) -> Outcome<Chosen> {
        match self {
            Self::Cpu => Ok(Chosen { backend: Backend::cpu(), reason: "asked for".to_owned() }),
            Self::Cuda => {
                let backend = Backend::cuda(0).map_err(|e| Failure::option("backend", format!("cuda: {e}")))?;
                Ok(Chosen { backend, reason: "asked for".to_owned() })
            }
            Self::Auto => {
                let (backend, why_not) = Backend::auto();
                let reason = match why_not {
                    None => "auto: kernels, driver and a device are there".to_owned(),
                    Some(error) => format!("auto, no CUDA: {error}"),
                };
                Ok(Chosen { backend, reason })
            }
        }
    }
}
