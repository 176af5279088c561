//! Leases: who holds a range of RAM, and for what.

use std::{
    borrow::Cow,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{MemoryError, Ram, foreign};

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseKind {
    /// A read-only view of the user's.
    View,
    /// A writable view of the user's: writes through it reach no dirty log.
    WritableView,
    /// A device's DMA map: pages are pinned, writes reach no dirty log.
    DmaMap,
    /// A buffer registered for kernel I/O.
    IoBuffer,
    /// Shared with a vhost back end.
    Vhost,
}

impl LeaseKind {
    /// Writes by the holder bypass every dirty log.
    pub(crate) fn writes_unseen(self) -> bool {
        !matches!(self, LeaseKind::View)
    }

    fn name(self) -> &'static str {
        match self {
            LeaseKind::View => "view",
            LeaseKind::WritableView => "writable view",
            LeaseKind::DmaMap => "DMA map",
            LeaseKind::IoBuffer => "registered I/O buffer",
            LeaseKind::Vhost => "vhost",
        }
    }
}

#[derive(Debug)]
struct Entry {
    number: u64,
    kind: LeaseKind,
    ranges: Arc<[Range<u64>]>,
    writes: bool,
    holder: Cow<'static, str>,
}

/// The leases of one RAM.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    entries: Mutex<(u64, Vec<Entry>)>,
}

impl LeaseTable {
    fn add(&self, mut entry: Entry) -> u64 {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.0 += 1;
        entry.number = entries.0;
        entries.1.push(entry);
        entries.0
    }

    fn remove(&self, number: u64) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.1.iter().position(|entry| entry.number == number);
        let _ = found.map(|at| entries.1.swap_remove(at));
    }

    /// Refuses `action` while somebody holds a part of `range`.
    pub(crate) fn check(
        &self,
        range: &Range<u64>,
        action: &'static str,
    ) -> Result<(), MemoryError> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let meets = |held: &&Range<u64>| held.start < range.end && range.start < held.end;
        let mut held = entries.1.iter().filter_map(|entry| {
            let found = entry.ranges.iter().find(meets)?;
            Some((entry, found))
        });
        match held.next() {
            None => Ok(()),
            Some((entry, found)) => Err(MemoryError::Leased {
                action,
                holder: entry.holder.clone().into_owned(),
                kind: entry.kind.name(),
                offset: found.start,
                len: found.end - found.start,
            }),
        }
    }

    /// The ranges that may be written unseen.
    pub(crate) fn unseen(&self) -> Vec<Range<u64>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries
            .1
            .iter()
            .filter(|e| e.writes)
            .flat_map(|e| e.ranges.iter().cloned())
            .collect()
    }
}

/// A hold on a range of RAM; ends when dropped. Keeps the RAM mapped.
#[derive(Debug)]
pub struct Lease {
    ram: Arc<Ram>,
    number: u64,
    kind: LeaseKind,
    range: Range<u64>,
}

impl Lease {
    pub(crate) fn new(ram: Arc<Ram>, kind: LeaseKind, range: Range<u64>, holder: String) -> Lease {
        if kind.writes_unseen() {
            foreign::begin();
        }
        let number = ram.leases().add(Entry {
            number: 0,
            kind,
            ranges: Arc::from([range.clone()]),
            writes: kind.writes_unseen(),
            holder: Cow::Owned(holder),
        });
        Lease {
            ram,
            number,
            kind,
            range,
        }
    }

    /// The RAM held.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The bytes held, as offsets in the RAM.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.kind.writes_unseen() {
            self.ram.mark_dirty(self.range.clone());
            let len = self.range.end - self.range.start;
            foreign::end(self.ram.hva().0.saturating_add(self.range.start), len);
        }
        self.ram.leases().remove(self.number);
    }
}

/// A hold of one I/O request on pieces of RAM, while the kernel or another thread works on them; ends
/// when dropped, and keeps the RAM mapped. What the request writes is noted as written at its end:
/// a guest that looks at a buffer earlier looks at bytes in motion.
#[derive(Debug)]
pub struct IoLease {
    ram: Arc<Ram>,
    number: u64,
    ranges: Arc<[Range<u64>]>,
    writes: bool,
}

impl IoLease {
    pub(crate) fn new(
        ram: Arc<Ram>,
        ranges: Vec<Range<u64>>,
        writes: bool,
        holder: &'static str,
    ) -> IoLease {
        let ranges: Arc<[Range<u64>]> = ranges.into();
        let number = ram.leases().add(Entry {
            number: 0,
            kind: LeaseKind::IoBuffer,
            ranges: Arc::clone(&ranges),
            writes,
            holder: Cow::Borrowed(holder),
        });
        IoLease {
            ram,
            number,
            ranges,
            writes,
        }
    }

    /// The RAM held.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }
}

impl Drop for IoLease {
    fn drop(&mut self) {
        if self.writes {
            for range in &*self.ranges {
                let len = range.end.saturating_sub(range.start);
                self.ram.note_written(range.start, len);
            }
        }
        self.ram.leases().remove(self.number);
    }
}
