//! Explicit choice between the CPU and CUDA, with one host-memory interface to both.

/// A place to compute.
#[derive(Debug)]
pub enum Backend {}
