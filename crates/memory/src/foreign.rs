//! Writes to guest memory that no vCPU makes, told to who caches what memory holds.
//!
//! An engine that keeps decoded code asks [`ForeignWrites`] what was written since it last asked. The
//! last writes are kept by address, so that data a device writes costs the code nothing.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Writes so far.
static WRITES: AtomicU64 = AtomicU64::new(0);
/// Leases whose holders may write unseen.
static UNSEEN: AtomicU64 = AtomicU64::new(0);
/// Those who ask; without one nothing is kept.
static READERS: AtomicU64 = AtomicU64::new(0);
static KEPT: Mutex<Kept> = Mutex::new(Kept {
    ranges: [(0, 0); ROOM],
    count: 0,
});

/// Writes kept by address.
const ROOM: usize = 256;

/// The last writes: start and end in this process, the newest at `count - 1` modulo the room.
struct Kept {
    ranges: [(u64, u64); ROOM],
    count: u64,
}

impl Kept {
    fn add(&mut self, range: (u64, u64)) {
        if let Some(place) = self.ranges.get_mut(place(self.count)) {
            *place = range;
        }
        self.count += 1;
        WRITES.store(self.count, Ordering::Release);
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number % ROOM as u64).unwrap_or(0)
}

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `len` bytes at `hva` were written.
pub(crate) fn note(hva: u64, len: u64) {
    if READERS.load(Ordering::Acquire) > 0 {
        kept().add((hva, hva.saturating_add(len)));
    }
}

pub(crate) fn begin() {
    UNSEEN.fetch_add(1, Ordering::Release);
}

/// The holder of a lease on `hva..hva + len` writes no more.
pub(crate) fn end(hva: u64, len: u64) {
    note(hva, len);
    UNSEEN.fetch_sub(1, Ordering::Release);
}

/// What was written since somebody last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignNews {
    /// These ranges of host addresses.
    Ranges(Vec<Range<u64>>),
    /// Anything: more than is kept, or somebody holds a lease to write unseen.
    Anything,
}

/// A reader of the writes that no vCPU makes.
#[derive(Debug)]
pub struct ForeignWrites {
    seen: u64,
}

impl ForeignWrites {
    /// A reader that has seen everything so far.
    #[expect(clippy::new_without_default, reason = "it registers a reader")]
    pub fn new() -> ForeignWrites {
        READERS.fetch_add(1, Ordering::AcqRel);
        ForeignWrites { seen: kept().count }
    }

    /// What this process wrote to any guest's memory since the last call; `None`: nothing. While
    /// somebody holds a writable view or a DMA map it may be anything every time.
    #[inline]
    pub fn news(&mut self) -> Option<ForeignNews> {
        let unseen = UNSEEN.load(Ordering::Acquire) > 0;
        if !unseen && WRITES.load(Ordering::Acquire) == self.seen {
            return None;
        }
        Some(self.read(unseen))
    }

    #[cold]
    fn read(&mut self, unseen: bool) -> ForeignNews {
        let kept = kept();
        let since = std::mem::replace(&mut self.seen, kept.count);
        if unseen || kept.count - since > ROOM as u64 {
            return ForeignNews::Anything;
        }
        let ranges = (since..kept.count).filter_map(|number| kept.ranges.get(place(number)));
        ForeignNews::Ranges(ranges.map(|(start, end)| *start..*end).collect())
    }
}

impl Drop for ForeignWrites {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, LeaseKind, PAGE_SIZE, Ram};

    /// Whether `reader` hears of a write to `at`; other tests of this process write too.
    fn hears(reader: &mut ForeignWrites, at: u64) -> bool {
        match reader.news() {
            None => false,
            Some(ForeignNews::Anything) => true,
            Some(ForeignNews::Ranges(ranges)) => ranges.iter().any(|range| range.contains(&at)),
        }
    }

    #[test]
    fn a_write_is_told_once_with_its_address() {
        let ram = Ram::new(4096, Backing::Anon).unwrap();
        let mut reader = ForeignWrites::new();
        ram.write(7, &[1]).unwrap();
        assert!(hears(&mut reader, ram.hva().0 + 7));
    }

    #[test]
    fn a_writable_view_may_write_anything_until_it_ends_and_once_more() {
        let ram = Ram::new(4096, Backing::Anon).unwrap();
        let mut reader = ForeignWrites::new();
        let lease = ram
            .lease(LeaseKind::WritableView, 0..4096, "view".into())
            .unwrap();
        for _ in 0..2 {
            assert_eq!(reader.news(), Some(ForeignNews::Anything));
        }
        drop(lease);
        assert!(hears(&mut reader, ram.hva().0));
    }

    #[test]
    fn more_writes_than_are_kept_may_be_anything() {
        let ram = Ram::new(PAGE_SIZE, Backing::Anon).unwrap();
        let mut reader = ForeignWrites::new();
        for _ in 0..=ROOM {
            ram.write(0, &[1]).unwrap();
        }
        assert_eq!(reader.news(), Some(ForeignNews::Anything));
    }
}
