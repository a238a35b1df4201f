//! The example programs from the outside: what they print, write and refuse.

#[path = "examples/arrays.rs"]
mod arrays;
#[path = "examples/code.rs"]
mod code;
mod common;
#[path = "examples/evaluate.rs"]
mod evaluate;
#[path = "examples/inspect.rs"]
mod inspect;
#[path = "examples/pairwise.rs"]
mod pairwise;
#[path = "examples/program.rs"]
mod program;
#[cfg(feature = "cuda")]
#[path = "examples/roofline.rs"]
mod roofline;
#[path = "examples/train.rs"]
mod train;
