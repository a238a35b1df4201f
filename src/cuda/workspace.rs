//! Division of a caller's workspace into disjoint regions.

use crate::error::{Error, Result};

/// Alignment of the workspace and of every region in it: a whole number of memory sectors, and what 16-byte loads and
/// asynchronous copies need.
pub const WORKSPACE_ALIGN: usize = 256;

/// The most bytes that a workspace can have.
const LIMIT: u64 = isize::MAX as u64;

/// A region of a workspace: an offset in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    offset: u64,
    bytes: u64,
}

impl Region {
    /// The device address of the region in a workspace at `base`.
    pub(crate) const fn at(self, base: u64) -> u64 {
        base + self.offset
    }

    #[cfg(test)]
    const fn range(self) -> std::ops::Range<u64> {
        self.offset..self.offset + self.bytes
    }
}

/// Hands out regions one after the other. Pure arithmetic: the same calls give the same regions, so that a query for
/// the size and the operation itself cannot disagree.
#[derive(Debug)]
pub(crate) struct Layout {
    op: &'static str,
    used: u64,
}

impl Layout {
    pub(crate) const fn new(op: &'static str) -> Self {
        Self { op, used: 0 }
    }

    fn too_large(&self, got: u64) -> Error {
        Error::TooLarge { op: self.op, arg: "workspace", limit: LIMIT, got }
    }

    /// A region for the product of `counts` elements of type `T`.
    pub(crate) fn take<T>(&mut self, counts: &[usize]) -> Result<Region> {
        let bytes = counts.iter().try_fold(size_of::<T>() as u64, |sum, &n| sum.checked_mul(n as u64));
        let padded = bytes.and_then(|b| b.checked_next_multiple_of(WORKSPACE_ALIGN as u64));
        let used = padded.and_then(|b| self.used.checked_add(b)).filter(|&total| total <= LIMIT);
        let (Some(bytes), Some(used)) = (bytes, used) else { return Err(self.too_large(u64::MAX)) };
        let region = Region { offset: self.used, bytes };
        self.used = used;
        Ok(region)
    }

    /// Bytes up to the end of the last region.
    pub(crate) const fn total(&self) -> usize {
        // At most `isize::MAX`.
        self.used as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_disjoint_and_inside_the_total() {
        let mut layout = Layout::new("test");
        let regions: Vec<Region> = [1, 0, 255, 256, 257, 3].map(|n| layout.take::<u8>(&[n]).unwrap()).into();
        for (a, b) in regions.iter().zip(&regions[1..]) {
            assert!(a.range().end <= b.range().start);
            assert_eq!(b.offset % WORKSPACE_ALIGN as u64, 0);
        }
        assert!(regions.last().unwrap().range().end <= layout.total() as u64);
        assert_eq!(layout.total(), 256 * 6);
    }

    #[test]
    fn a_size_beyond_the_address_space_is_refused() {
        let mut layout = Layout::new("test");
        assert!(matches!(layout.take::<f32>(&[usize::MAX]), Err(Error::TooLarge { arg: "workspace", .. })));
        assert!(layout.take::<u8>(&[isize::MAX as usize / 2]).is_ok());
        assert!(layout.take::<u8>(&[isize::MAX as usize / 2]).is_err());
        assert_eq!(layout.take::<u8>(&[1]).map(|r| r.at(1 << 40) % 256), Ok(0));
    }
}
