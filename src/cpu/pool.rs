//! The CPU handle: threads, instruction set and scratch memory.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::tile::Isa;
use crate::error::{Error, Result};

/// Most threads a handle may have.
const MAX_THREADS: usize = 1024;

/// Estimated multiply-adds below which an operation stays on the calling thread: waking another one takes about as long
/// as this much work.
const WORTH_A_THREAD: usize = 1 << 19;

/// Scratch buffers above this many bytes are freed after use.
const KEEP_BYTES: usize = 64 << 20;

/// Where the CPU operations run: a number of threads, and scratch memory that is kept between calls.
///
/// Making one starts its threads; keep it for as long as operations are called. Clones share everything. A handle may
/// be used from several threads at once. The calling thread takes part in the work, so a handle of one thread starts
/// none. Results do not depend on the number of threads.
#[derive(Clone)]
pub struct Cpu {
    inner: Arc<Inner>,
}

struct Inner {
    /// The threads besides the caller's.
    pool: Option<ThreadPool>,
    threads: usize,
    isa: Isa,
    scratch: Mutex<Vec<Vec<Line>>>,
}

/// One cache line, so that scratch memory is aligned to it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u64; 8]);

impl Cpu {
    /// A handle with one thread per available core; fewer if the system refuses to start that many.
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Self::build(cores, Isa::detect()).unwrap_or_else(|_| Self::inline(Isa::detect()))
    }

    /// A handle with `threads` threads, the caller's included.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `threads` is 0 or above 1024, or if the system refuses to start that many.
    pub fn with_threads(threads: usize) -> Result<Self> {
        Self::build(threads, Isa::detect())
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.inner.threads
    }

    /// The instruction set that the kernels use here: `avx512`, `avx2` or `portable`.
    pub fn instruction_set(&self) -> &'static str {
        self.inner.isa.name()
    }

    pub(super) fn isa(&self) -> Isa {
        self.inner.isa
    }

    /// A handle of one thread with scratch memory of its own, for work that is already spread over the threads.
    pub(super) fn alone(&self) -> Self {
        Self::inline(self.isa())
    }

    fn inline(isa: Isa) -> Self {
        Self { inner: Arc::new(Inner { pool: None, threads: 1, isa, scratch: Mutex::default() }) }
    }

    pub(super) fn build(threads: usize, isa: Isa) -> Result<Self> {
        let refuse = |got: String| Error::InvalidOption {
            op: "Cpu::with_threads",
            arg: "threads",
            expected: format!("1 to {MAX_THREADS}, and no more than the system can start"),
            got,
        };
        if threads == 1 {
            return Ok(Self::inline(isa));
        }
        if threads == 0 || threads > MAX_THREADS {
            return Err(refuse(threads.to_string()));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads - 1)
            .thread_name(|i| format!("simgrad-{i}"))
            .build()
            .map_err(|e| refuse(format!("{threads} ({e})")))?;
        Ok(Self { inner: Arc::new(Inner { pool: Some(pool), threads, isa, scratch: Mutex::default() }) })
    }

    /// Calls `f` on every item, on as many threads as the work (in multiply-adds) is worth. Which thread takes which
    /// item is left to chance, so `f` may only write to what the item owns.
    pub(super) fn each<I, F>(&self, work: usize, items: I, f: F)
    where
        I: Iterator + Send,
        F: Fn(I::Item) + Sync,
    {
        let pool = match &self.inner.pool {
            Some(pool) if work >= WORTH_A_THREAD => pool,
            _ => return items.for_each(f),
        };
        let items = Mutex::new(items);
        let drain = || {
            loop {
                let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(item) = item else { break };
                f(item);
            }
        };
        pool.in_place_scope(|scope| {
            for _ in 1..self.inner.threads {
                scope.spawn(|_| drain());
            }
            drain();
        });
    }

    /// As [`Self::each`], for `count` items known by their number, with the results in their order.
    pub(super) fn map<R, F>(&self, work: usize, count: usize, f: F) -> Vec<R>
    where
        R: Send,
        F: Fn(usize) -> R + Sync,
    {
        let mut results: Vec<Option<R>> = Vec::new();
        results.resize_with(count, || None);
        self.each(work, results.iter_mut().enumerate(), |(i, slot)| *slot = Some(f(i)));
        results.into_iter().flatten().collect()
    }

    /// Scratch memory for `len` elements, with arbitrary content, returned to the handle when dropped.
    pub(super) fn scratch<A: Pod>(&self, len: usize) -> Scratch<'_, A> {
        let lines = (len * size_of::<A>()).div_ceil(size_of::<Line>());
        let mut kept = self.inner.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, else the largest.
        let fit = |b: &Vec<Line>| if b.len() >= lines { (0, b.len()) } else { (1, usize::MAX - b.len()) };
        let best = (0..kept.len()).min_by_key(|&i| fit(&kept[i]));
        let mut buffer = best.map_or_else(Vec::new, |i| kept.swap_remove(i));
        drop(kept);
        if buffer.len() < lines {
            buffer.clear();
            buffer.resize(lines, Line::zeroed());
        }
        Scratch { cpu: self, buffer, len, kind: std::marker::PhantomData }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("threads", &self.threads())
            .field("instruction_set", &self.instruction_set())
            .finish()
    }
}

/// Borrowed scratch memory, aligned to cache lines.
pub(super) struct Scratch<'a, A> {
    cpu: &'a Cpu,
    buffer: Vec<Line>,
    len: usize,
    kind: std::marker::PhantomData<A>,
}

impl<A: Pod> Deref for Scratch<'_, A> {
    type Target = [A];
    fn deref(&self) -> &[A] {
        &bytemuck::cast_slice(&self.buffer)[..self.len]
    }
}

impl<A: Pod> DerefMut for Scratch<'_, A> {
    fn deref_mut(&mut self) -> &mut [A] {
        &mut bytemuck::cast_slice_mut(&mut self.buffer)[..self.len]
    }
}

impl<A> Drop for Scratch<'_, A> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut kept = self.cpu.inner.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.len() * size_of::<Line>() <= KEEP_BYTES && kept.len() < 2 * self.cpu.inner.threads + 2 {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_thread_counts_are_refused() {
        for threads in [0, MAX_THREADS + 1] {
            let err = Cpu::with_threads(threads).unwrap_err();
            assert!(matches!(err, Error::InvalidOption { arg: "threads", .. }), "{err}");
        }
    }

    #[test]
    fn map_keeps_the_order_of_its_items() {
        for threads in [1, 2, 5] {
            let cpu = Cpu::with_threads(threads).unwrap();
            let squares = cpu.map(usize::MAX, 100, |i| i * i);
            assert!(squares.iter().enumerate().all(|(i, &s)| s == i * i));
        }
    }

    #[test]
    fn scratch_is_reused_and_aligned() {
        let cpu = Cpu::with_threads(1).unwrap();
        let first = cpu.scratch::<f32>(1000).as_ptr() as usize;
        let again = cpu.scratch::<f64>(400);
        assert_eq!(first, again.as_ptr() as usize);
        assert_eq!(first % 64, 0);
        assert_eq!(again.len(), 400);
    }
}
