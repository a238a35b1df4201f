//! Embeddings of earlier batches, kept as further candidates: cross-batch memory (Wang et al. 2020).

use crate::check;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::matrix::MatRef;

const PUSH: &str = "MemoryBank::push";
const RESTORE: &str = "MemoryBank::restore";

/// A ring of the embeddings that were pushed last, with their ids, in host memory.
///
/// A push overwrites the oldest entries. Entries stay in their slot, and slots are numbered from 0: the candidate `m + s`
/// of `mine_top_k_with_bank` is slot `s`. Entries are stored as they are pushed; an operation normalises them as its
/// options say.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryBank<T> {
    state: BankState<T>,
}

/// Everything that a [`MemoryBank`] holds, to be saved and restored.
#[derive(Clone, Debug, PartialEq)]
pub struct BankState<T> {
    /// Slots.
    pub capacity: usize,
    /// Elements of an embedding.
    pub cols: usize,
    /// The slot that is written next.
    pub cursor: usize,
    /// Pushes so far.
    pub pushes: u64,
    /// `len × cols` elements, by slot.
    pub embeddings: Vec<T>,
    /// Ids by slot.
    pub ids: Vec<i64>,
    /// By slot, the number of the push that wrote it; the first push is number 1.
    pub stamps: Vec<u64>,
}

/// A bank as further candidates of the rows of `X`.
#[derive(Clone, Copy, Debug)]
pub struct BankColumns<'a, T> {
    /// The entries.
    pub bank: &'a MemoryBank<T>,
    /// One id per row of `X`. An entry of the same id is the anchor itself, not a negative.
    pub ids: &'a [i64],
    /// That rule only holds for entries of the last so many pushes, and an older entry of the same id counts as another
    /// embedding. `None`: whatever its age, which is right where ids are labels.
    pub self_within: Option<u64>,
}

impl<T: Element> MemoryBank<T> {
    /// An empty bank of `capacity` slots for embeddings of `cols` elements. Memory is taken as the bank fills.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] without a slot, [`Error::EmptyDim`] if `cols` is 0, [`Error::TooLarge`] above `i32::MAX` slots
    /// or if the elements cannot be counted.
    pub fn new(capacity: usize, cols: usize) -> Result<Self> {
        const OP: &str = "MemoryBank::new";
        extents(OP, capacity, cols)?;
        let (embeddings, ids, stamps) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { state: BankState { capacity, cols, cursor: 0, pushes: 0, embeddings, ids, stamps } })
    }

    /// Slots.
    pub fn capacity(&self) -> usize {
        self.state.capacity
    }

    /// Slots that hold an entry; they are the first ones.
    pub fn len(&self) -> usize {
        self.state.ids.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.state.ids.is_empty()
    }

    /// The slot that is written next.
    pub fn cursor(&self) -> usize {
        self.state.cursor
    }

    /// Pushes so far.
    pub fn pushes(&self) -> u64 {
        self.state.pushes
    }

    /// Ids by slot.
    pub fn ids(&self) -> &[i64] {
        &self.state.ids
    }

    /// By slot, the number of the push that wrote it; the first push is number 1.
    pub fn stamps(&self) -> &[u64] {
        &self.state.stamps
    }

    /// The entries by slot, `len × cols`.
    pub fn embeddings(&self) -> MatRef<'_, T> {
        let s = &self.state;
        MatRef::new(&s.embeddings, s.ids.len(), s.cols).unwrap_or_else(|_| unreachable!("the bank keeps whole rows"))
    }

    /// Writes the rows of `x` (`b × cols`) with their ids into the next slots. Of more rows than there are slots the last
    /// ones stay, in the slots that one row at a time would have left them in. `b` may be 0, which counts as a push.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the rows have another length or the number of ids is not `b`; the bank is unchanged then.
    pub fn push(&mut self, x: MatRef<'_, T>, ids: &[i64]) -> Result<()> {
        check::equal(PUSH, "x.cols", self.state.cols, x.cols())?;
        check::equal(PUSH, "ids", x.rows(), ids.len())?;
        let s = &mut self.state;
        s.pushes += 1;
        let skipped = x.rows().saturating_sub(s.capacity);
        // Only a full bank, or one that fills up during the push, is skipped over: the slots in between exist by then.
        let filled = skipped.min(s.capacity - s.ids.len());
        for (row, &id) in ids.iter().enumerate().take(filled) {
            s.write(x.row(row), id);
        }
        s.cursor = (s.cursor + (skipped - filled)) % s.capacity;
        for (row, &id) in ids.iter().enumerate().skip(skipped) {
            s.write(x.row(row), id);
        }
        Ok(())
    }

    /// Forgets the entries; capacity and number of pushes stay.
    pub fn clear(&mut self) {
        let s = &mut self.state;
        s.cursor = 0;
        s.embeddings.clear();
        s.ids.clear();
        s.stamps.clear();
    }

    /// Everything that the bank holds.
    pub const fn state(&self) -> &BankState<T> {
        &self.state
    }

    /// Everything that the bank holds, without a copy.
    pub fn into_state(self) -> BankState<T> {
        self.state
    }

    /// The bank that `state` was taken from: it goes on as that one would have.
    ///
    /// # Errors
    /// Those of [`Self::new`]; [`Error::ShapeMismatch`] if embeddings, ids and stamps are not equally many;
    /// [`Error::TooLarge`] for more of them than slots; [`Error::InvalidOption`] for a cursor that no bank with these entries
    /// has, or a stamp of a push that has not happened.
    pub fn restore(state: BankState<T>) -> Result<Self> {
        state.check()?;
        Ok(Self { state })
    }
}

impl<T: Element> BankState<T> {
    /// Whether a bank can have this state.
    pub(crate) fn check(&self) -> Result<()> {
        let (capacity, len) = (self.capacity, self.ids.len());
        extents(RESTORE, capacity, self.cols)?;
        check::at_most(RESTORE, "state.ids", capacity, len)?;
        check::equal(RESTORE, "state.embeddings", len * self.cols, self.embeddings.len())?;
        check::equal(RESTORE, "state.stamps", len, self.stamps.len())?;
        let invalid =
            |arg, expected: String, got: String| Err(Error::InvalidOption { op: RESTORE, arg, expected, got });
        let fits = if len == capacity { self.cursor < capacity } else { self.cursor == len };
        if !fits {
            let expected = if len == capacity { format!("below {capacity}") } else { len.to_string() };
            return invalid("state.cursor", expected, self.cursor.to_string());
        }
        if let Some(stamp) = self.stamps.iter().find(|&&stamp| stamp == 0 || stamp > self.pushes) {
            return invalid("state.stamps", format!("1 to {}", self.pushes), stamp.to_string());
        }
        Ok(())
    }

    fn write(&mut self, row: &[T], id: i64) {
        let slot = self.cursor;
        if slot == self.ids.len() {
            self.embeddings.extend_from_slice(row);
            self.ids.push(id);
            self.stamps.push(self.pushes);
        } else {
            self.embeddings[slot * self.cols..][..self.cols].copy_from_slice(row);
            (self.ids[slot], self.stamps[slot]) = (id, self.pushes);
        }
        self.cursor = (slot + 1) % self.capacity;
    }
}

/// Whether there can be a bank of these extents.
pub(crate) fn extents(op: &'static str, capacity: usize, cols: usize) -> Result<()> {
    if capacity == 0 {
        let expected = "at least 1".to_owned();
        return Err(Error::InvalidOption { op, arg: "capacity", expected, got: capacity.to_string() });
    }
    check::has_features(op, "bank", cols)?;
    check::at_most(op, "capacity", check::MAX_ROWS, capacity)?;
    check::at_most(op, "cols", isize::MAX as usize / 8 / capacity, cols)
}

/// The stamp from which on entries count as pushed within the last `within` of `pushes` pushes.
pub(crate) fn oldest(pushes: u64, within: Option<u64>) -> u64 {
    within.map_or(0, |within| (pushes + 1).saturating_sub(within))
}

impl<T: Element> BankColumns<'_, T> {
    /// The stamp from which on an entry is the anchor itself if its id is the anchor's.
    pub(crate) fn oldest(&self) -> u64 {
        oldest(self.bank.pushes(), self.self_within)
    }
}
