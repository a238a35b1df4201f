//! The CPU handle: threads, instruction set and scratch memory.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::tile::Isa;
use crate::error::{Error, Result};

/// Most threads a handle may have.
const MAX_THREADS: usize = 1024;

/// Estimated multiply-adds of an operation below which no other thread is woken, about 30 microseconds.
const WORTH_A_SESSION: usize = 1 << 20;

/// Multiply-adds above which a part of an operation waits for threads that are still asleep.
const WORTH_WAKING: usize = 1 << 24;

/// Multiply-adds above which handing a part to a thread that is awake pays off, a few microseconds.
const WORTH_A_TASK: usize = 1 << 17;

/// How long threads stay awake for the next operation: about as long as waking one takes, so that it is never much more than
/// what it may save.
const LINGER: Duration = Duration::from_micros(100);

/// Scratch buffers that a thread keeps.
const KEEP_BUFFERS: usize = 8;

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
    team: Arc<Team>,
    threads: usize,
    isa: Isa,
    /// Free buffers by thread, the caller's first: memory that another thread has written is slow to write again.
    scratch: Vec<Mutex<Vec<Vec<Line>>>>,
}

fn free_lists(threads: usize) -> Vec<Mutex<Vec<Vec<Line>>>> {
    (0..threads).map(|_| Mutex::default()).collect()
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

    /// A handle with `threads` threads whose kernels use `instruction_set`, one of [`Self::instruction_sets`]: to compare
    /// them, or to get the same bits on machines of which only some have the best one.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if this machine does not have that instruction set, and as [`Self::with_threads`].
    pub fn with_instruction_set(threads: usize, instruction_set: &str) -> Result<Self> {
        let isa = Isa::available().into_iter().find(|isa| isa.name() == instruction_set);
        let isa = isa.ok_or_else(|| Error::InvalidOption {
            op: "Cpu::with_instruction_set",
            arg: "instruction_set",
            expected: Self::instruction_sets().join(", "),
            got: instruction_set.to_owned(),
        })?;
        Self::build(threads, isa)
    }

    /// The instruction sets that the kernels can use on this machine, best first: of `avx512_bf16`, `avx512`, `avx2` and
    /// `portable`. The first two give the same bits.
    pub fn instruction_sets() -> Vec<&'static str> {
        Isa::available().into_iter().map(Isa::name).collect()
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.inner.threads
    }

    /// The instruction set that the kernels use here, one of [`Self::instruction_sets`].
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
        Self { inner: Arc::new(Inner { pool: None, team: Arc::default(), threads: 1, isa, scratch: free_lists(1) }) }
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
        Ok(Self {
            inner: Arc::new(Inner {
                pool: Some(pool),
                team: Arc::default(),
                threads,
                isa,
                scratch: free_lists(threads),
            }),
        })
    }

    /// Keeps the threads awake until the result is dropped, for an operation of several parallel parts and `work`
    /// multiply-adds: a sleeping thread takes longer to wake than the parts of a small batch take.
    pub(super) fn session(&self, work: usize) -> Option<Session<'_>> {
        let pool = self.inner.pool.as_ref().filter(|_| work >= WORTH_A_SESSION)?;
        Some(self.inner.team.open(pool, self.inner.threads - 1))
    }

    /// Calls `f` on every item, on as many threads as the work (in multiply-adds) is worth. Which thread takes which
    /// item is left to chance, so `f` may only write to what the item owns. The caller starts at the front, the others at
    /// the back: of two threads, each tends to find in its cache what it left there in the part before.
    pub(super) fn each<I, F>(&self, work: usize, items: I, f: F)
    where
        I: DoubleEndedIterator + Send,
        F: Fn(I::Item) + Sync,
    {
        self.each_with(work, items, || (), |(), item| f(item));
    }

    /// As [`Self::each`], with something that each thread makes once and then lends to every item it takes.
    pub(super) fn each_with<I, S, F>(&self, work: usize, items: I, start: impl Fn() -> S + Sync, f: F)
    where
        I: DoubleEndedIterator + Send,
        F: Fn(&mut S, I::Item) + Sync,
    {
        let pool = match &self.inner.pool {
            Some(pool) if work >= WORTH_A_TASK => pool,
            _ => {
                let mut own = start();
                return items.for_each(|item| f(&mut own, item));
            }
        };
        let helpers = || match self.inner.threads - 1 {
            all if work >= WORTH_WAKING => all,
            all => self.inner.team.awake.load(Ordering::Acquire).min(all),
        };
        let items = Mutex::new(items);
        let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
        let next_back = || items.lock().unwrap_or_else(PoisonError::into_inner).next_back();
        let left = AtomicUsize::new(0);
        let (mut own, mut asked) = (start(), 0);
        pool.in_place_scope(|scope| {
            while let Some(item) = next() {
                // Also those that woke up since the last item.
                while asked < helpers() {
                    asked += 1;
                    scope.spawn(|_| {
                        let mut own = start();
                        while let Some(item) = next_back() {
                            f(&mut own, item);
                        }
                        drop(own);
                        left.fetch_add(1, Ordering::Release);
                    });
                }
                f(&mut own, item);
            }
            spin_until(|| left.load(Ordering::Acquire) == asked);
        });
    }

    /// As [`Self::each_with`], for `count` items known by their number, with the results in their order.
    pub(super) fn map_with<R, S, F>(&self, work: usize, count: usize, start: impl Fn() -> S + Sync, f: F) -> Vec<R>
    where
        R: Send,
        F: Fn(&mut S, usize) -> R + Sync,
    {
        let mut results: Vec<Option<R>> = Vec::new();
        results.resize_with(count, || None);
        self.each_with(work, results.iter_mut().enumerate(), start, |own, (i, slot)| *slot = Some(f(own, i)));
        results.into_iter().flatten().collect()
    }

    /// The calling thread's free buffers.
    fn free_list(&self) -> MutexGuard<'_, Vec<Vec<Line>>> {
        let thread = rayon::current_thread_index().map_or(0, |worker| worker + 1);
        self.inner.scratch[thread % self.inner.scratch.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scratch memory for `len` elements, with arbitrary content, returned to the handle when dropped.
    pub(super) fn scratch<A: Pod>(&self, len: usize) -> Scratch<'_, A> {
        let lines = (len * size_of::<A>()).div_ceil(size_of::<Line>());
        let mut kept = self.free_list();
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

/// Keeps the pool's threads awake while an operation runs, without ever waiting for one that wakes late.
#[derive(Default)]
struct Team {
    /// Operations that run.
    sessions: AtomicUsize,
    /// Threads that were asked to stay awake and have not gone back to sleep.
    called: AtomicUsize,
    /// Those of them that have woken up.
    awake: AtomicUsize,
}

impl Team {
    fn open(self: &Arc<Self>, pool: &ThreadPool, helpers: usize) -> Session<'_> {
        self.sessions.fetch_add(1, Ordering::AcqRel);
        if self.called.compare_exchange(0, helpers, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let team = Arc::clone(self);
            pool.spawn_broadcast(move |_| team.serve());
        }
        Session(self)
    }

    /// Executes the pool's tasks until no operation has run for [`LINGER`].
    fn serve(&self) {
        self.awake.fetch_add(1, Ordering::AcqRel);
        let mut since = None;
        loop {
            if rayon::yield_now() == Some(rayon::Yield::Executed) {
                continue;
            }
            if self.sessions.load(Ordering::Acquire) > 0 {
                since = None;
            } else if since.get_or_insert_with(Instant::now).elapsed() > LINGER {
                break;
            }
            std::hint::spin_loop();
        }
        self.awake.fetch_sub(1, Ordering::AcqRel);
        self.called.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An operation that runs.
pub(super) struct Session<'a>(&'a Team);

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits for tasks that are about to end without going to sleep, as long as waking would take; the caller then blocks.
fn spin_until(ready: impl Fn() -> bool) {
    const SPINS: usize = 1 << 12;
    for _ in 0..SPINS {
        if ready() {
            // The tasks' own bookkeeping follows their last statement.
            (0..16).for_each(|_| std::hint::spin_loop());
            return;
        }
        std::hint::spin_loop();
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
        let mut kept = self.cpu.free_list();
        if buffer.len() * size_of::<Line>() <= KEEP_BYTES && kept.len() < KEEP_BUFFERS {
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
    fn instruction_sets_are_chosen_by_name_and_others_refused() {
        for name in Cpu::instruction_sets() {
            assert_eq!(Cpu::with_instruction_set(2, name).unwrap().instruction_set(), name);
        }
        assert_eq!(Cpu::with_threads(1).unwrap().instruction_set(), Cpu::instruction_sets()[0]);
        let err = Cpu::with_instruction_set(1, "mmx").unwrap_err();
        assert!(matches!(err, Error::InvalidOption { arg: "instruction_set", .. }), "{err}");
        assert!(err.to_string().contains("portable") && err.to_string().contains("mmx"), "{err}");
        assert!(Cpu::with_instruction_set(0, "portable").is_err());
    }

    #[test]
    fn map_keeps_the_order_of_its_items() {
        for threads in [1, 2, 5] {
            let cpu = Cpu::with_threads(threads).unwrap();
            let squares = cpu.map_with(usize::MAX, 100, || (), |(), i| i * i);
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
