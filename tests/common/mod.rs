//! What several test programs need.
#![allow(dead_code)]

#[cfg(feature = "cuda")]
pub mod gpu;
