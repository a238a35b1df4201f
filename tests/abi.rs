//! The parameter blocks have one layout in both languages.
#![cfg(feature = "cuda")]

mod common;

use simgrad::cuda::{Kernels, abi};

/// More words than the blocks have, with a value that no layout contains.
const POISON: u32 = 0xdead_beef;

#[test]
fn parameter_blocks_have_the_same_layout_on_the_host_and_on_the_device() {
    let Some(context) = common::gpu::context() else { return };
    let kernels = Kernels::load(&context).unwrap();
    let stream = context.default_stream();
    let expected = abi::host_layout();
    let mut out = stream.clone_htod(&vec![POISON; expected.len() + 16]).unwrap();
    abi::device_layout(&kernels, &stream, &mut out.as_view_mut()).unwrap();
    let got = stream.clone_dtoh(&out).unwrap();
    assert_eq!(got[..expected.len()], expected);
    assert!(got[expected.len()..].iter().all(|&w| w == POISON), "the device reports more blocks than the host");
}
