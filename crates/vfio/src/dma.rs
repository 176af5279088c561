//! Memory that a device can reach.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use vmlet_memory::{Iova, Lease, LeaseKind, Ram};

use crate::{Access, IommuDomain, VfioError, domain::Addresses};

/// A map of memory into a domain; taken back when it is dropped.
#[derive(Debug)]
pub struct DmaMap {
    domain: Arc<dyn IommuDomain>,
    addresses: Arc<Addresses>,
    memory: Lease,
    iova: Iova,
    access: Access,
    mapped: AtomicBool,
}

impl DmaMap {
    /// Maps what `memory` holds at `iova`, or at an address that is free.
    pub(crate) fn new(
        domain: Arc<dyn IommuDomain>,
        addresses: Arc<Addresses>,
        memory: Lease,
        (iova, access): (Option<u64>, Access),
    ) -> Result<DmaMap, VfioError> {
        let range = memory.range();
        let iova = addresses.take(iova, range.end - range.start)?;
        if let Err(error) = domain.map(iova, &memory, access) {
            addresses.give_back(iova);
            return Err(error);
        }
        Ok(DmaMap {
            domain,
            addresses,
            memory,
            iova,
            access,
            mapped: AtomicBool::new(true),
        })
    }

    /// Where the device finds it.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// What the device may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The memory.
    pub fn ram(&self) -> &Arc<Ram> {
        self.memory.ram()
    }

    /// The memory for a view of it by the user.
    pub fn view(&self) -> Result<Lease, VfioError> {
        let ram = self.memory.ram();
        let holder = "a view of DMA memory".to_owned();
        Ok(ram.lease(LeaseKind::WritableView, 0..ram.len(), holder)?)
    }

    /// Whether the device can reach it still.
    pub fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::Acquire)
    }

    /// Takes it back: the device cannot reach the memory when this returns. A second time is nothing.
    pub fn unmap(&self) -> Result<(), VfioError> {
        if !self.mapped.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let range = self.memory.range();
        let done = self.domain.unmap(self.iova, range.end - range.start);
        match &done {
            // The addresses stay taken: something may be there.
            Err(VfioError::Call { .. }) => self.mapped.store(true, Ordering::Release),
            _ => self.addresses.give_back(self.iova),
        }
        done
    }
}

impl Drop for DmaMap {
    fn drop(&mut self) {
        match self.unmap() {
            Ok(()) | Err(VfioError::Closed | VfioError::Forked) => {}
            Err(error) => log::warn!("DMA map at {}: {error}", self.iova),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vmlet_memory::Backing;

    use super::*;
    use crate::{DomainLimits, IommuBackend, IovaRange};

    /// Notes what is asked of it; refuses maps that are for reading only.
    #[derive(Debug)]
    struct Table {
        limits: DomainLimits,
        asked: Mutex<Vec<(&'static str, u64)>>,
    }

    impl Table {
        fn new() -> Arc<Table> {
            let usable = vec![IovaRange {
                first: 0,
                last: 0xf_ffff,
            }];
            Arc::new(Table {
                limits: DomainLimits { page: 4096, usable },
                asked: Mutex::default(),
            })
        }
    }

    impl IommuDomain for Table {
        fn backend(&self) -> IommuBackend {
            IommuBackend::Type1
        }

        fn limits(&self) -> &DomainLimits {
            &self.limits
        }

        fn map(&self, iova: Iova, _: &Lease, access: Access) -> Result<(), VfioError> {
            self.asked.lock().unwrap().push(("map", iova.0));
            match access {
                Access::Read => Err(VfioError::TooManyMaps),
                Access::ReadWrite => Ok(()),
            }
        }

        fn unmap(&self, iova: Iova, _: u64) -> Result<(), VfioError> {
            self.asked.lock().unwrap().push(("unmap", iova.0));
            Ok(())
        }

        fn close(&self) {}
    }

    fn map(
        table: &Arc<Table>,
        addresses: &Arc<Addresses>,
        access: Access,
    ) -> Result<DmaMap, VfioError> {
        let ram = Ram::new(8192, Backing::Anon).unwrap();
        let domain: Arc<dyn IommuDomain> = Arc::<Table>::clone(table);
        let memory = ram.lease(LeaseKind::DmaMap, 0..8192, "a test".to_owned())?;
        DmaMap::new(domain, Arc::clone(addresses), memory, (None, access))
    }

    #[test]
    fn mapped_memory_is_held_and_a_map_is_taken_back_once() {
        let table = Table::new();
        let addresses = Arc::new(Addresses::new(table.limits.clone()));
        let one = map(&table, &addresses, Access::ReadWrite).unwrap();
        let ram = Arc::clone(one.ram());
        let refused = ram.discard(0, 4096).unwrap_err();
        assert!(refused.to_string().contains("a test"), "{refused}");
        one.unmap().unwrap();
        assert!(!one.is_mapped());
        drop(one);
        assert!(ram.discard(0, 4096).unwrap());
        let asked = table.asked.lock().unwrap().clone();
        assert_eq!(asked, [("map", 0x1_0000), ("unmap", 0x1_0000)]);
    }

    #[test]
    fn a_refused_map_gives_its_addresses_back() {
        let table = Table::new();
        let addresses = Arc::new(Addresses::new(table.limits.clone()));
        assert!(map(&table, &addresses, Access::Read).is_err());
        let one = map(&table, &addresses, Access::ReadWrite).unwrap();
        assert_eq!(one.iova(), Iova(0x1_0000));
    }
}
