//! All of a guest's memory, which a device reaches at the guest's own addresses.
//!
//! It follows the map of guest memory: what comes is mapped before a guest can use it, what goes is
//! unmapped while it is still there. The leases of its maps keep pages from being given back to the
//! host meanwhile, and have them count as written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmlet_memory::{
    AddressSpace, Gpa, LeaseKind, MapChange, MapListener, Mapping, Refusal, RegionKind,
};

use crate::{Access, Device, DmaMap, VfioError};

/// A part of guest memory that the device reaches.
#[derive(Debug)]
struct Part {
    gpa: Gpa,
    len: u64,
    _map: DmaMap,
}

/// What a device reaches of a guest's memory; nothing once it is dropped or released.
#[derive(Debug)]
pub(super) struct GuestMemory {
    device: Arc<Device>,
    parts: Mutex<Vec<Part>>,
    /// Why the last change was refused.
    failure: Mutex<Option<VfioError>>,
}

impl GuestMemory {
    /// Maps all memory of `space`, and follows it from then on.
    pub(super) fn share(
        device: &Arc<Device>,
        space: &AddressSpace,
    ) -> Result<Arc<GuestMemory>, VfioError> {
        let memory = Arc::new(GuestMemory {
            device: Arc::clone(device),
            parts: Mutex::default(),
            failure: Mutex::default(),
        });
        let listener = Arc::clone(&memory) as Arc<dyn MapListener>;
        space.add_listener(listener).map_err(|refused| {
            let failure = memory.failure.lock();
            let failure = failure.unwrap_or_else(PoisonError::into_inner).take();
            failure.unwrap_or(VfioError::Memory(refused))
        })?;
        Ok(memory)
    }

    /// Takes all memory from the device, and follows `space` no more.
    pub(super) fn release(self: &Arc<Self>, space: &AddressSpace) {
        space.remove_listener(&(Arc::clone(self) as Arc<dyn MapListener>));
        self.parts().clear();
    }

    fn map(&self, mapping: &Mapping) -> Result<Part, VfioError> {
        let holder = format!("the device {}", self.device.address());
        let range = mapping.offset..mapping.offset + mapping.len;
        let memory = mapping.ram.lease(LeaseKind::DmaMap, range, holder)?;
        let access = if mapping.readonly {
            Access::Read
        } else {
            Access::ReadWrite
        };
        Ok(Part {
            gpa: mapping.gpa,
            len: mapping.len,
            _map: self.device.share(memory, Some(mapping.gpa.0), access)?,
        })
    }

    fn forget(&self, gone: &[Mapping]) {
        let same = |part: &Part| gone.iter().any(|m| (m.gpa, m.len) == (part.gpa, part.len));
        self.parts().retain(|part| !same(part));
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
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
                self.parts().extend(made);
                Ok(())
            }
            Err(error) => {
                let refusal = Refusal(error.to_string());
                let failure = self.failure.lock();
                *failure.unwrap_or_else(PoisonError::into_inner) = Some(error);
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
