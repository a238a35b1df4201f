//! The parameter blocks and the kernels' constants are the same in both languages.
#![cfg(feature = "cuda")]

mod cuda_support;

use simgrad::cuda::abi;

/// A value that no layout contains.
const POISON: u32 = 0xdead_beef;

#[test]
fn parameter_blocks_and_constants_are_the_same_on_the_host_and_on_the_device() {
    let Some((context, kernels)) = cuda_support::device() else { return };
    let stream = context.default_stream();
    let expected = abi::host_layout();
    let mut out = stream.clone_htod(&vec![POISON; expected.len() + 16]).unwrap();
    abi::device_layout(kernels, &stream, &mut out.as_view_mut()).unwrap();
    let got = stream.clone_dtoh(&out).unwrap();
    assert_eq!(got[..expected.len()], expected);
    assert!(got[expected.len()..].iter().all(|&w| w == POISON), "the device reports more than the host");
}
