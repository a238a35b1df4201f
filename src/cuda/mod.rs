//! The operations on NVIDIA GPUs.
