//! All of a guest's memory, which the devices of a group reach at the guest's own addresses.
//!
//! It follows the map of guest memory: what comes is mapped before a guest can use it, what goes is
//! unmapped while it is still there. The leases of its maps keep pages from being given back to the
//! host meanwhile, and have them count as written. Devices of one group have it in common, as they
//! have the table of the IOMMU: the first maps it, the last takes it back.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use vmlet_memory::{
    AddressSpace, Gpa, LeaseKind, MapChange, MapListener, Mapping, Refusal, RegionKind,
};

use crate::{Access, DmaMap, VfioError, domain::Table, group::Shared};

/// A part of guest memory that devices reach.
#[derive(Debug)]
struct Part {
    gpa: Gpa,
    len: u64,
    _map: DmaMap,
}

/// What the devices of a group reach of a guest's memory; nothing once it is dropped.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    table: Table,
    holder: String,
    parts: Mutex<Vec<Part>>,
    /// Why the last change was refused.
    failure: Mutex<Option<VfioError>>,
}

/// The part that one device has in that, until it is dropped or ended.
#[derive(Debug)]
pub(super) struct GuestShare {
    shared: Arc<Shared>,
    space: Arc<AddressSpace>,
    ended: AtomicBool,
}

impl GuestShare {
    /// Has a device that has `shared` in common with others reach all memory of `space`.
    pub(super) fn new(
        shared: &Arc<Shared>,
        space: &Arc<AddressSpace>,
    ) -> Result<GuestShare, VfioError> {
        // Held meanwhile: who comes second finds it mapped, or gone.
        let mut guest = lock(&shared.guest);
        if guest.1.is_none() {
            guest.1 = Some(GuestMemory::map_all(shared, space)?);
        }
        guest.0 += 1;
        drop(guest);
        Ok(GuestShare {
            shared: Arc::clone(shared),
            space: Arc::clone(space),
            ended: AtomicBool::new(false),
        })
    }

    /// The device needs it no more. With the last one all memory is taken back.
    pub(super) fn end(&self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut guest = lock(&self.shared.guest);
        guest.0 = guest.0.saturating_sub(1);
        if guest.0 == 0
            && let Some(memory) = guest.1.take()
        {
            self.space
                .remove_listener(&(Arc::clone(&memory) as Arc<dyn MapListener>));
            lock(&memory.parts).clear();
        }
    }
}

impl Drop for GuestShare {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuestMemory {
    /// Maps all memory of `space`, and follows it from then on.
    fn map_all(shared: &Shared, space: &AddressSpace) -> Result<Arc<GuestMemory>, VfioError> {
        let memory = Arc::new(GuestMemory {
            table: shared.table.clone(),
            holder: shared.holder.clone(),
            parts: Mutex::default(),
            failure: Mutex::default(),
        });
        let listener = Arc::clone(&memory) as Arc<dyn MapListener>;
        space.add_listener(listener).map_err(|refused| {
            let failure = lock(&memory.failure).take();
            failure.unwrap_or(VfioError::Memory(refused))
        })?;
        Ok(memory)
    }

    fn map(&self, mapping: &Mapping) -> Result<Part, VfioError> {
        let range = mapping.offset..mapping.offset + mapping.len;
        let memory = mapping
            .ram
            .lease(LeaseKind::DmaMap, range, self.holder.clone())?;
        let access = if mapping.readonly {
            Access::Read
        } else {
            Access::ReadWrite
        };
        Ok(Part {
            gpa: mapping.gpa,
            len: mapping.len,
            _map: self.table.map(memory, Some(mapping.gpa.0), access)?,
        })
    }

    fn forget(&self, gone: &[Mapping]) {
        let same = |part: &Part| gone.iter().any(|m| (m.gpa, m.len) == (part.gpa, part.len));
        lock(&self.parts).retain(|part| !same(part));
    }
}

impl MapListener for GuestMemory {
    fn name(&self) -> &str {
        "the IOMMU's table of a device"
    }

    fn prepare(&self, change: &MapChange) -> Result<(), Refusal> {
        // Other devices' registers are not memory: peers do not reach each other.
        let memory = |mapping: &&Mapping| mapping.kind != RegionKind::DeviceBar;
        let memory = change.mapped.iter().filter(memory);
        let made: Result<Vec<Part>, VfioError> = memory.map(|mapping| self.map(mapping)).collect();
        match made {
            Ok(made) => {
                lock(&self.parts).extend(made);
                Ok(())
            }
            Err(error) => {
                let refusal = Refusal(error.to_string());
                *lock(&self.failure) = Some(error);
                Err(refusal)
            }
        }
    }

    fn commit(&self, change: &MapChange) {
        self.forget(&change.unmapped);
    }

    fn rollback(&self, change: &MapChange) {
        self.forget(&change.mapped);
    }
}

#[cfg(test)]
mod tests {
    use vmlet_memory::{Backing, Ram};

    use super::*;
    use crate::{
        IommuBackend, Owner,
        testing::{FakeGroup, Tree},
    };

    #[test]
    fn devices_of_a_group_have_one_map_of_guest_memory_until_the_last_is_gone() {
        let (tree, fake) = (Tree::new(), FakeGroup::new(IommuBackend::Type1));
        for address in ["0000:01:00.0", "0000:01:00.1"] {
            tree.function(address, ["0x1234", "0x11e8", "0x00ff00"], 7);
        }
        let vm = Owner::new("a VM");
        let open = |address| fake.admit(&tree, address, &vm, None).unwrap();
        let first = open("0000:01:00.0");
        let second = open("0000:01:00.1");
        let space = Arc::new(AddressSpace::new(4));
        let ram = |len| Ram::new(len, Backing::Anon).unwrap();
        let map = |gpa, ram| space.map(vec![Mapping::ram(Gpa(gpa), ram)]).unwrap();
        map(0, ram(0x4000));
        let one = GuestShare::new(&first.shared, &space).unwrap();
        let two = GuestShare::new(&second.shared, &space).unwrap();
        assert_eq!(fake.mapped(), [0]);
        one.end();
        one.end();
        assert_eq!(fake.mapped(), [0]);
        // What comes is mapped for the one that stays, once.
        map(0x10_0000, ram(0x1000));
        assert_eq!(fake.mapped(), [0, 0x10_0000]);
        let again = GuestShare::new(&first.shared, &space).unwrap();
        drop(two);
        assert_eq!(fake.mapped(), [0, 0x10_0000]);
        drop(again);
        assert!(fake.mapped().is_empty());
        map(0x20_0000, ram(0x1000));
        assert!(fake.mapped().is_empty());
    }
}
