//! What took vCPUs out of guest code: a histogram by kind and place.
//!
//! The table has one writer at a time, the thread that runs the vCPU, and any number of readers: an
//! update is a load and a store, without a locked instruction.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Places kept apart for each vCPU, in pieces that take no memory before they are used.
const PLACES: usize = PIECES * PIECE;
const PIECES: usize = 16;
const PIECE: usize = 32;
/// Entries looked at before an exit counts as one of a place not kept.
const PROBES: usize = 8;
const PAGE_SHIFT: u32 = 12;
/// Bits 0-1 of a key are the kind, bit 2 tells a used entry from an empty one.
const KIND: u64 = 3;
const USED: u64 = 4;

/// What the guest did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ExitKind {
    PortRead,
    PortWrite,
    MemoryRead,
    MemoryWrite,
}

impl ExitKind {
    /// All of them, in order.
    pub const ALL: [ExitKind; 4] = [
        ExitKind::PortRead,
        ExitKind::PortWrite,
        ExitKind::MemoryRead,
        ExitKind::MemoryWrite,
    ];

    /// The name in dictionaries.
    pub fn name(self) -> &'static str {
        match self {
            ExitKind::PortRead => "port_reads",
            ExitKind::PortWrite => "port_writes",
            ExitKind::MemoryRead => "memory_reads",
            ExitKind::MemoryWrite => "memory_writes",
        }
    }

    fn is_port(self) -> bool {
        matches!(self, ExitKind::PortRead | ExitKind::PortWrite)
    }
}

/// Exits of one kind at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCount {
    /// What the guest did.
    pub kind: ExitKind,
    /// The port, or the first address of the 4 KiB page.
    pub place: u64,
    /// How often.
    pub count: u64,
}

/// The exits of one vCPU that its board served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitReport {
    /// By kind and place, in no order.
    pub places: Vec<ExitCount>,
    /// Level interrupts that the guest ended.
    pub ends_of_interrupt: u64,
    /// Exits at places beyond those kept apart.
    pub elsewhere: u64,
}

#[derive(Debug, Default)]
struct Entry {
    key: AtomicU64,
    count: AtomicU64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    pieces: [OnceLock<Box<[Entry; PIECE]>>; PIECES],
    ends_of_interrupt: AtomicU64,
    elsewhere: AtomicU64,
}

fn increment(counter: &AtomicU64) {
    let old = counter.load(Ordering::Relaxed);
    counter.store(old.wrapping_add(1), Ordering::Relaxed);
}

impl Exits {
    /// Counts an access to `addr`.
    pub(crate) fn count(&self, kind: ExitKind, addr: u64) {
        let place = if kind.is_port() {
            addr
        } else {
            addr >> PAGE_SHIFT
        };
        let key = place << 3 | USED | kind as u64;
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let start = usize::try_from(hash).unwrap_or(0) % PLACES;
        let piece = self
            .pieces
            .get(start / PIECE)
            .map(|piece| piece.get_or_init(|| Box::new(std::array::from_fn(|_| Entry::default()))));
        for probe in 0..PROBES {
            let entry = piece.and_then(|entries| entries.get((start + probe) % PIECE));
            let Some(entry) = entry else {
                break;
            };
            let found = entry.key.load(Ordering::Relaxed);
            if found == 0 {
                entry.key.store(key, Ordering::Release);
            }
            if found == key || found == 0 {
                return increment(&entry.count);
            }
        }
        increment(&self.elsewhere);
    }

    pub(crate) fn count_end_of_interrupt(&self) {
        increment(&self.ends_of_interrupt);
    }

    pub(crate) fn report(&self) -> ExitReport {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitReport {
            places: self
                .pieces
                .iter()
                .filter_map(OnceLock::get)
                .flat_map(|entries| entries.iter().filter_map(Entry::read))
                .collect(),
            ends_of_interrupt: read(&self.ends_of_interrupt),
            elsewhere: read(&self.elsewhere),
        }
    }
}

impl Entry {
    fn read(&self) -> Option<ExitCount> {
        let key = self.key.load(Ordering::Acquire);
        let kind = *ExitKind::ALL.get(usize::try_from(key & KIND).ok()?)?;
        let shift = if kind.is_port() { 0 } else { PAGE_SHIFT };
        (key != 0).then(|| ExitCount {
            kind,
            place: key >> 3 << shift,
            count: self.count.load(Ordering::Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_count_by_port_and_by_page() {
        let exits = Exits::default();
        for (kind, addr) in [
            (ExitKind::PortWrite, 0x3f8),
            (ExitKind::PortWrite, 0x3f8),
            (ExitKind::PortRead, 0x3f8),
            (ExitKind::MemoryWrite, 0xfec0_0000),
            (ExitKind::MemoryWrite, 0xfec0_0010),
        ] {
            exits.count(kind, addr);
        }
        exits.count_end_of_interrupt();
        let report = exits.report();
        let mut found: Vec<_> = report
            .places
            .iter()
            .map(|e| (e.kind, e.place, e.count))
            .collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                (ExitKind::PortRead, 0x3f8, 1),
                (ExitKind::PortWrite, 0x3f8, 2),
                (ExitKind::MemoryWrite, 0xfec0_0000, 2),
            ]
        );
        assert_eq!((report.ends_of_interrupt, report.elsewhere), (1, 0));
    }

    #[test]
    fn a_guest_that_touches_every_page_costs_no_more_memory_and_is_counted_in_all() {
        let exits = Exits::default();
        for page in 0..100_000 {
            exits.count(ExitKind::MemoryRead, page << PAGE_SHIFT);
        }
        let report = exits.report();
        let kept: u64 = report.places.iter().map(|e| e.count).sum();
        assert_eq!(kept + report.elsewhere, 100_000);
        assert!(report.places.len() <= PLACES);
        assert!(report.elsewhere > 0);
    }
}
