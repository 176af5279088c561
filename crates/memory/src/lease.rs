//! Leases: who holds a range of RAM, and for what.

use std::{
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
    range: Range<u64>,
    holder: String,
}

/// The leases of one RAM.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    entries: Mutex<(u64, Vec<Entry>)>,
}

impl LeaseTable {
    fn add(&self, kind: LeaseKind, range: Range<u64>, holder: String) -> u64 {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if kind.writes_unseen() {
            foreign::begin();
        }
        entries.0 += 1;
        let number = entries.0;
        entries.1.push(Entry {
            number,
            kind,
            range,
            holder,
        });
        number
    }

    fn remove(&self, number: u64) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.1.retain(|entry| entry.number != number);
    }

    /// Refuses `action` while somebody holds a part of `range`.
    pub(crate) fn check(
        &self,
        range: &Range<u64>,
        action: &'static str,
    ) -> Result<(), MemoryError> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let held = entries
            .1
            .iter()
            .find(|e| e.range.start < range.end && range.start < e.range.end);
        match held {
            None => Ok(()),
            Some(entry) => Err(MemoryError::Leased {
                action,
                holder: entry.holder.clone(),
                kind: entry.kind.name(),
                offset: entry.range.start,
                len: entry.range.end - entry.range.start,
            }),
        }
    }

    /// The ranges that may be written unseen.
    pub(crate) fn unseen(&self) -> Vec<Range<u64>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries
            .1
            .iter()
            .filter(|e| e.kind.writes_unseen())
            .map(|e| e.range.clone())
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
        let number = ram.leases().add(kind, range.clone(), holder);
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
