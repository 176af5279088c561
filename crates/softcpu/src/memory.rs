//! Guest-physical memory as the vCPUs of a VM share it: the slots, which pages hold decoded code,
//! and the log of dirty pages.

use std::{
    io,
    ops::Range,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use vmlet_memory::{Memslot, PAGE_SIZE, PageBitmap, SlotId};
use vmlet_vcpu::EngineError;

/// Bit 0 of a page's word: code decoded from it is cached. The other bits count how often that
/// code was given up.
pub(crate) const HAS_CODE: u32 = 1;

/// One word a page, see [`HAS_CODE`].
pub(crate) type Marks = Arc<[AtomicU32]>;

/// A slot and what is known of its pages.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) slot: Memslot,
    pub(crate) marks: Marks,
    dirty: Arc<PageBitmap>,
}

impl Slot {
    /// The page of the slot that holds `gpa`.
    pub(crate) fn page(&self, gpa: u64) -> usize {
        ((gpa - self.slot.gpa.0) / PAGE_SIZE) as usize
    }

    /// Logs a write to the page at `gpa`.
    pub(crate) fn touch(&self, gpa: u64) {
        if self.slot.log_dirty {
            self.dirty.mark(gpa - self.slot.gpa.0, 1);
        }
    }
}

/// The slots by address.
#[derive(Debug, Default)]
pub(crate) struct Map {
    slots: Vec<Slot>,
}

impl Map {
    /// The slot that holds `gpa`.
    pub(crate) fn find(&self, gpa: u64) -> Option<&Slot> {
        let at = self.slots.partition_point(|s| s.slot.gpa.0 <= gpa);
        let slot = self.slots.get(at.checked_sub(1)?)?;
        (gpa - slot.slot.gpa.0 < slot.slot.len).then_some(slot)
    }

    /// The host's address of a guest-physical one.
    pub(crate) fn host(&self, gpa: u64) -> Option<u64> {
        let slot = self.find(gpa)?;
        Some(slot.slot.hva.0 + (gpa - slot.slot.gpa.0))
    }

    /// Whether code was decoded from a page that has a part of this range of host addresses.
    pub(crate) fn holds_code(&self, host: &Range<u64>) -> bool {
        self.slots.iter().any(|slot| {
            let start = host.start.max(slot.slot.hva.0);
            let end = host.end.min(slot.slot.hva.0 + slot.slot.len);
            let page = |at: u64| (at - slot.slot.hva.0) / PAGE_SIZE;
            start < end
                && (page(start)..=page(end - 1)).any(|page| {
                    let mark = usize::try_from(page).ok().and_then(|at| slot.marks.get(at));
                    mark.is_some_and(|mark| mark.load(Ordering::Relaxed) & HAS_CODE != 0)
                })
        })
    }
}

/// The memory of a VM. Changes happen while no vCPU runs guest code (`turns.rs`); each one gives
/// the map a new version, and a vCPU that sees one drops what it has cached.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    map: RwLock<Arc<Map>>,
    version: AtomicU64,
    /// Counts the pages that came to hold cached code: entries of other vCPUs' write TLBs for them
    /// have to go.
    code_epoch: AtomicU64,
    /// Counts writes to them: blocks of other vCPUs have to look at their pages.
    code_writes: AtomicU64,
}

impl Memory {
    pub(crate) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn code_epoch(&self) -> u64 {
        self.code_epoch.load(Ordering::Acquire)
    }

    pub(crate) fn code_appeared(&self) -> u64 {
        self.code_epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn code_writes(&self) -> u64 {
        self.code_writes.load(Ordering::Acquire)
    }

    pub(crate) fn code_written(&self) -> u64 {
        self.code_writes.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Adds a slot or changes one's flags; refused where another slot lies.
    pub(crate) fn set(&self, slot: &Memslot) -> Result<(), EngineError> {
        self.check(slot)?;
        self.change(|slots| {
            let old = slots.iter().position(|s| s.slot.id == slot.id);
            let old = old.map(|at| slots.remove(at));
            let same = old
                .filter(|s| (s.slot.gpa, s.slot.len, s.slot.hva) == (slot.gpa, slot.len, slot.hva));
            slots.push(match same {
                Some(known) => Slot {
                    slot: *slot,
                    ..known
                },
                None => Slot {
                    slot: *slot,
                    marks: (0..slot.len / PAGE_SIZE)
                        .map(|_| AtomicU32::new(0))
                        .collect(),
                    dirty: Arc::new(PageBitmap::new(slot.len)),
                },
            });
        });
        Ok(())
    }

    fn check(&self, new: &Memslot) -> Result<(), EngineError> {
        let end = new.gpa.0.checked_add(new.len);
        let pages = (new.gpa.0 | new.len | new.hva.0).is_multiple_of(PAGE_SIZE) && new.len != 0;
        let errno = match end {
            Some(end) if pages => {
                let map = self.map();
                let overlaps = |s: &Slot| {
                    s.slot.id != new.id
                        && s.slot.gpa.0 < end
                        && new.gpa.0 < s.slot.gpa.0 + s.slot.len
                };
                if !map.slots.iter().any(overlaps) {
                    return Ok(());
                }
                libc::EEXIST
            }
            _ => libc::EINVAL,
        };
        Err(EngineError::Slot {
            slot: new.id.0,
            gpa: new.gpa.0,
            size: new.len,
            errno,
            source: io::Error::from_raw_os_error(errno),
        })
    }

    pub(crate) fn remove(&self, id: SlotId) {
        self.change(|slots| slots.retain(|s| s.slot.id != id));
    }

    /// Takes the log of slot `id`.
    pub(crate) fn take_dirty(&self, id: SlotId, pages: u64) -> Vec<u64> {
        let map = self.map();
        let slot = map.slots.iter().find(|s| s.slot.id == id);
        let taken = slot.map(|s| s.dirty.take(0, pages)).unwrap_or_default();
        self.version.fetch_add(1, Ordering::AcqRel);
        taken
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Slot>)) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let mut slots = map.slots.clone();
        edit(&mut slots);
        slots.sort_by_key(|s| s.slot.gpa);
        *map = Arc::new(Map { slots });
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use vmlet_memory::{Gpa, Hva};

    use super::*;

    fn slot(id: u32, gpa: u64, len: u64) -> Memslot {
        Memslot {
            id: SlotId(id),
            gpa: Gpa(gpa),
            len,
            hva: Hva(0x1000),
            readonly: false,
            log_dirty: true,
        }
    }

    #[test]
    fn an_address_is_found_in_its_slot_only() {
        let memory = Memory::default();
        memory.set(&slot(0, 0x10_0000, 0x2000)).unwrap();
        memory.set(&slot(1, 0, 0x1000)).unwrap();
        let map = memory.map();
        assert_eq!(map.find(0xfff).unwrap().slot.id, SlotId(1));
        assert!(map.find(0x1000).is_none());
        assert!(map.find(0x10_2000).is_none());
        assert_eq!(map.find(0x10_1fff).unwrap().page(0x10_1fff), 1);
    }

    #[test]
    fn the_dirty_log_is_taken_once_and_makes_a_new_version() {
        let memory = Memory::default();
        memory.set(&slot(0, 0x10_0000, 0x2000)).unwrap();
        memory.map().find(0x10_1000).unwrap().touch(0x10_1000);
        let version = memory.version();
        assert_eq!(memory.take_dirty(SlotId(0), 2), [2]);
        assert_ne!(memory.version(), version);
        assert_eq!(memory.take_dirty(SlotId(0), 2), [0]);
    }
}
