//! Registers of the host's devices in the guest's address space.
//!
//! They are memory slots beside those of the map of guest memory: no RAM, which nobody saves, maps
//! for DMA or looks for written pages.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmlet_memory::{Gpa, Hva, Memslot, SlotId};
use vmlet_vcpu::{SlotChange, Vm};
use vmlet_vfio::ApertureEngine;

/// Slots that are set aside for registers, the last ones an engine has.
pub(crate) const SLOTS: u32 = 128;

/// The slots of one VM for registers.
#[derive(Debug)]
pub(crate) struct ApertureSlots {
    vm: Arc<dyn Vm>,
    first: u32,
    slots: Mutex<BTreeMap<u32, Memslot>>,
}

impl ApertureSlots {
    /// The last ones of `slots`.
    pub(crate) fn new(vm: Arc<dyn Vm>, slots: u32) -> ApertureSlots {
        ApertureSlots {
            vm,
            first: slots.saturating_sub(SLOTS),
            slots: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Memslot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApertureEngine for ApertureSlots {
    fn show(&self, gpa: Gpa, hva: Hva, len: u64) -> Result<u32, String> {
        let mut slots = self.lock();
        let mut numbers = self.first..self.first.saturating_add(SLOTS);
        let number = numbers.find(|number| !slots.contains_key(number));
        let number = number.ok_or_else(|| format!("{SLOTS} memory slots are in use"))?;
        let slot = Memslot {
            id: SlotId(number),
            gpa,
            len,
            hva,
            readonly: false,
            log_dirty: false,
        };
        let done = self.vm.change_slot(SlotChange::Set(&slot));
        done.map_err(|error| error.to_string())?;
        slots.insert(number, slot);
        Ok(number)
    }

    fn hide(&self, number: u32) -> bool {
        let mut slots = self.lock();
        let Some(slot) = slots.get(&number) else {
            return true;
        };
        if let Err(error) = self.vm.change_slot(SlotChange::Remove(slot)) {
            log::error!(target: "vmlet.vm", "registers at {:#x} stay mapped: {error}", slot.gpa.0);
            return false;
        }
        slots.remove(&number);
        true
    }
}
