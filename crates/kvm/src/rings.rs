//! The pages a guest has written, as KVM notes them in a ring for each vCPU.
//!
//! A bitmap makes KVM look at every page of a slot when it is read; rings cost what was written.
//! Entries are moved to a bitmap of ours, where a page that was noted twice is one page, whenever
//! somebody asks, and when a ring is full: its vCPU leaves the guest then, empties the rings and
//! goes on. So a ring of any size loses nothing.
//!
//! A processor with a log of its own (Intel's PML) fills the ring when it leaves guest code: what a
//! vCPU has written since then comes later.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use vmlet_memory::{PAGE_SIZE, PageBitmap, SlotId};
use vmlet_vcpu::EngineError;

use crate::{
    ext::{DirtyRing, ENTRY, reset_dirty_rings},
    system::call,
};

/// Every KVM takes rings of this size: that of a processor with a log of its own keeps room for it.
const LEAST: u32 = 1024;

/// How often nothing may happen before that is taken for a defect.
const PATIENCE: u32 = 1000;

/// The rings of a VM; none until they are asked for.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    /// Entries of each; zero while there are none.
    entries: AtomicU32,
    noted: Mutex<Noted>,
}

/// The rings, and what has come out of them.
#[derive(Debug, Default)]
struct Noted {
    rings: Vec<DirtyRing>,
    slots: BTreeMap<u32, PageBitmap>,
    /// How often in a row nothing came out of the rings.
    barren: u32,
}

impl Rings {
    /// Asks for rings of `entries` each, before the first vCPU is made.
    pub(crate) fn enable(&self, vm: &VmFd, entries: u32) -> Result<(), EngineError> {
        let (number, most) = offered(vm)?;
        if !entries.is_power_of_two() || !(LEAST..=most).contains(&entries) {
            let least = LEAST;
            return Err(EngineError::DirtyRing {
                entries,
                least,
                most,
            });
        }
        let mut cap = kvm_enable_cap {
            cap: number,
            ..kvm_enable_cap::default()
        };
        cap.args = [u64::from(entries) * ENTRY as u64, 0, 0, 0];
        vm.enable_cap(&cap)
            .map_err(call("KVM_CAP_DIRTY_LOG_RING"))?;
        self.entries.store(entries, Ordering::Release);
        Ok(())
    }

    /// Whether there are rings.
    pub(crate) fn are_used(&self) -> bool {
        self.entries.load(Ordering::Acquire) != 0
    }

    /// Takes up the ring of a vCPU just made.
    pub(crate) fn add(&self, vcpu: &VcpuFd) -> Result<(), EngineError> {
        let entries = self.entries.load(Ordering::Acquire);
        if entries != 0 {
            let count = usize::try_from(entries).unwrap_or(usize::MAX);
            self.noted().rings.push(DirtyRing::map(vcpu, count)?);
        }
        Ok(())
    }

    /// Writes to slot `id`, of `len` bytes, will be noted.
    pub(crate) fn watch(&self, id: SlotId, len: u64) {
        if self.are_used() {
            let mut noted = self.noted();
            let fresh = || PageBitmap::new(len);
            noted.slots.entry(id.0).or_insert_with(fresh);
        }
    }

    /// The slot is gone, or its writes are no longer noted: its number may become another's.
    pub(crate) fn forget(&self, vm: &VmFd, id: SlotId) -> Result<(), EngineError> {
        let mut noted = self.noted();
        if noted.slots.contains_key(&id.0) {
            noted.empty(vm)?;
            noted.slots.remove(&id.0);
        }
        Ok(())
    }

    /// Empties all rings, of which one is full. Another thread may have done so just before, but not
    /// time and again: a ring that is full and holds nothing was overrun.
    pub(crate) fn make_room(&self, vm: &VmFd) -> Result<(), EngineError> {
        let mut noted = self.noted();
        noted.empty(vm)?;
        if noted.barren > PATIENCE {
            return Err(EngineError::DirtyRingOverrun);
        }
        Ok(())
    }

    /// The first `pages` pages of slot `id`, one bit each: those noted since the last call.
    pub(crate) fn collect(
        &self,
        vm: &VmFd,
        id: SlotId,
        pages: u64,
    ) -> Result<Vec<u64>, EngineError> {
        let mut noted = self.noted();
        noted.empty(vm)?;
        let slot = noted.slots.get(&id.0);
        Ok(slot.map_or_else(Vec::new, |slot| slot.take(0, pages)))
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    /// A page that is written again after its entry was taken and before it is reset is reported
    /// by that entry: who asked for it reads the page later.
    fn empty(&mut self, vm: &VmFd) -> Result<(), EngineError> {
        let slots = &self.slots;
        let mut mark = |slot: u32, page: u64| {
            if let Some(slot) = slots.get(&slot) {
                slot.mark(page.saturating_mul(PAGE_SIZE), 1);
            }
        };
        let taken: usize = self.rings.iter_mut().map(|r| r.take(&mut mark)).sum();
        self.barren = if taken > 0 { 0 } else { self.barren + 1 };
        let (mut reset, mut idle) = (0, 0);
        while reset < taken && idle < PATIENCE {
            let more = reset_dirty_rings(vm)?;
            idle = if more > 0 { 0 } else { idle + 1 };
            reset += more;
        }
        if reset < taken {
            return Err(EngineError::DirtyRingOverrun);
        }
        Ok(())
    }
}

/// The capability's number and the most entries that a ring can have.
fn offered(vm: &VmFd) -> Result<(u32, u32), EngineError> {
    // On x86 the two are one: its loads and stores keep the order that the first asks for.
    let found = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
        .into_iter()
        .find_map(|cap| {
            let bytes = vm.check_extension_raw(u64::from(cap));
            let bytes = u32::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
            Some((cap, bytes / u32::try_from(ENTRY).unwrap_or(1)))
        });
    found.ok_or(EngineError::Lacking {
        feature: "KVM_CAP_DIRTY_LOG_RING",
        remedy: "Leave dirty_ring out: dirty pages are then noted in a bitmap.",
    })
}
