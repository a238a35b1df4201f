//! What a step over all pairs holds at most, counted by the allocator. A test binary of its own: nothing else may allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use simgrad::cpu::{self, Cpu};
use simgrad::{MatMut, MatRef, PairwiseObjective, PairwiseOptions};

/// Live bytes, and the most there were since it was last set.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

/// Most bytes beyond inputs and outputs in a step of two sets of these shapes.
fn peak(n: usize, m: usize, d: usize, objective: PairwiseObjective) -> usize {
    let rows = |count: usize| -> Vec<f32> { (0..count * d).map(|k| ((k * 7919) % 1013) as f32 - 506.0).collect() };
    let (x, y) = (rows(n), rows(m));
    let (mut dx, mut dy) = (vec![0f32; n * d], vec![0f32; m * d]);
    let cpu = Cpu::with_threads(2).expect("two threads");
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let (x, y) = (MatRef::new(&x, n, d).expect("a matrix"), MatRef::new(&y, m, d).expect("a matrix"));
    let dx = MatMut::new(&mut dx, n, d).expect("a matrix");
    let dy = MatMut::new(&mut dy, m, d).expect("a matrix");
    cpu::pairwise_step(&cpu, x, y, &objective, &PairwiseOptions::default(), dx, dy).expect("a step");
    PEAK.load(Ordering::Relaxed) - before
}

/// One test, so that no other allocates meanwhile.
#[test]
fn memory_is_bounded_whatever_the_size() {
    // A composition in numpy holds 208 MiB here, of which 16 are its gradients (benches/peers/numpy_infonce.py). With the
    // gradients this is to hold a third of that.
    let (numpy, gradients) = (208 * MIB, 16 * MIB);
    let infonce = PairwiseObjective::InfoNce { scale: 10.0 };
    let bytes = peak(4096, 4096, 512, infonce);
    assert!(3 * (bytes + gradients) <= numpy, "{:.1} MiB", bytes as f64 / MIB as f64);
    assert!(bytes > 30 * MIB, "the counting allocator saw only {bytes} bytes");
    // Sixteen times as many similarities, 1 GiB of them, and one wave of tiles.
    let more = peak(16_384, 16_384, 16, infonce);
    assert!(more < 60 * MIB, "{:.1} MiB", more as f64 / MIB as f64);
    println!("{:.1} and {:.1} MiB", bytes as f64 / MIB as f64, more as f64 / MIB as f64);
}
