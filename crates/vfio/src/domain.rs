//! What a device can reach: the table that an IOMMU of the host keeps for it.
//!
//! `bus::DmaDomain` translates for emulated devices, in this process. An [`IommuDomain`] fills the
//! table of real hardware: the container of type1 has one, an address space of iommufd is one.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use vmlet_memory::{Iova, Lease};

use crate::{DmaMap, IommuBackend, VfioError};

/// What a device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// Device addresses that can be mapped, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}

impl IovaRange {
    fn contains(&self, first: u64, last: u64) -> bool {
        self.first <= first && last <= self.last
    }

    /// For people.
    pub(crate) fn list(all: &[IovaRange]) -> String {
        let each: Vec<_> = all
            .iter()
            .map(|one| format!("{:#x}..={:#x}", one.first, one.last))
            .collect();
        each.join(", ")
    }
}

/// The shape of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainLimits {
    /// Bytes of the smallest page.
    pub page: u64,
    /// What can be mapped, by address.
    pub usable: Vec<IovaRange>,
}

/// The table of an IOMMU of the host.
pub trait IommuDomain: Send + Sync + Debug {
    /// The kernel's interface to it.
    fn backend(&self) -> IommuBackend;

    /// What can be mapped.
    fn limits(&self) -> &DomainLimits;

    /// Lets the domain's devices reach what `memory` holds, which is pinned until it is unmapped.
    fn map(&self, iova: Iova, memory: &Lease, access: Access) -> Result<(), VfioError>;

    /// Takes a map back, whole. The devices cannot reach it when this returns.
    fn unmap(&self, iova: Iova, len: u64) -> Result<(), VfioError>;

    /// Ends it, after its device: all maps are gone then.
    fn close(&self);
}

/// A domain, and which of its addresses are taken. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    domain: Arc<dyn IommuDomain>,
    addresses: Arc<Addresses>,
}

impl Table {
    pub(crate) fn new(domain: Arc<dyn IommuDomain>) -> Table {
        let addresses = Arc::new(Addresses::new(domain.limits().clone()));
        Table { domain, addresses }
    }

    /// Lets the domain's devices reach what `memory` holds until the map is dropped.
    pub(crate) fn map(
        &self,
        memory: Lease,
        iova: Option<u64>,
        access: Access,
    ) -> Result<DmaMap, VfioError> {
        let (domain, addresses) = (Arc::clone(&self.domain), Arc::clone(&self.addresses));
        DmaMap::new(domain, addresses, memory, (iova, access))
    }
}

/// Below this nothing is chosen: a device that was told no address does not find memory at 0.
const LOWEST: u64 = 0x1_0000;

/// What is as large gets an address that is a multiple, as its memory has: IOMMUs translate that by
/// pages of this size.
const LARGE: u64 = 2 << 20;

/// Which addresses of a domain are taken.
#[derive(Debug)]
pub(crate) struct Addresses {
    limits: DomainLimits,
    /// First address and bytes of what is taken.
    taken: Mutex<BTreeMap<u64, u64>>,
}

impl Addresses {
    pub(crate) fn new(limits: DomainLimits) -> Addresses {
        Addresses {
            limits,
            taken: Mutex::default(),
        }
    }

    /// Takes `len` bytes at `iova`, or at the lowest address that is free.
    pub(crate) fn take(&self, iova: Option<u64>, len: u64) -> Result<Iova, VfioError> {
        let page = self.limits.page;
        let asked = iova.unwrap_or(0);
        if len == 0 || !(asked | len).is_multiple_of(page) {
            return Err(VfioError::NotPages {
                iova: asked,
                len,
                page,
            });
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let first = match iova {
            Some(first) => self.check(&taken, first, len)?,
            None => self
                .lowest(&taken, len)
                .ok_or(VfioError::NoAddresses { len })?,
        };
        taken.insert(first, len);
        Ok(Iova(first))
    }

    /// Gives addresses back.
    pub(crate) fn give_back(&self, iova: Iova) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&iova.0);
    }

    fn check(&self, taken: &BTreeMap<u64, u64>, iova: u64, len: u64) -> Result<u64, VfioError> {
        let last = iova.checked_add(len - 1);
        let usable = &self.limits.usable;
        let inside = |last| usable.iter().any(|range| range.contains(iova, last));
        let Some(last) = last.filter(|last| inside(*last)) else {
            return Err(VfioError::NotUsable {
                iova,
                len,
                usable: usable.clone(),
            });
        };
        match taken.range(..=last).next_back() {
            Some((other, bytes)) if other + (bytes - 1) >= iova => Err(VfioError::Overlap {
                iova,
                len,
                other: *other,
            }),
            _ => Ok(iova),
        }
    }

    fn lowest(&self, taken: &BTreeMap<u64, u64>, len: u64) -> Option<u64> {
        let page = match len {
            LARGE.. => self.limits.page.max(LARGE),
            _ => self.limits.page,
        };
        self.limits.usable.iter().find_map(|range| {
            let mut first = range.first.max(LOWEST).checked_next_multiple_of(page)?;
            for (other, bytes) in taken {
                let end = other.checked_add(*bytes)?.checked_next_multiple_of(page)?;
                if first.checked_add(len)? <= *other {
                    break;
                }
                first = first.max(end);
            }
            let last = first.checked_add(len - 1)?;
            range.contains(first, last).then_some(first)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        let usable = vec![
            IovaRange {
                first: 0,
                last: 0x1_ffff,
            },
            IovaRange {
                first: 0x4_0000,
                last: 0xffff_ffff,
            },
        ];
        Addresses::new(DomainLimits {
            page: 0x1000,
            usable,
        })
    }

    #[test]
    fn the_lowest_free_addresses_are_chosen_and_holes_are_stepped_over() {
        let all = addresses();
        assert_eq!(all.take(None, 0x1000).unwrap(), Iova(0x1_0000));
        assert_eq!(all.take(None, 0xf000).unwrap(), Iova(0x1_1000));
        assert_eq!(all.take(None, 0x2000).unwrap(), Iova(0x4_0000));
        all.give_back(Iova(0x1_1000));
        assert_eq!(all.take(None, 0x3000).unwrap(), Iova(0x1_1000));
    }

    #[test]
    fn what_is_large_has_an_address_for_large_pages() {
        let all = addresses();
        all.take(Some(0x4_0000), 0x1000).unwrap();
        assert_eq!(all.take(None, 4 << 20).unwrap(), Iova(2 << 20));
        assert_eq!(all.take(None, 2 << 20).unwrap(), Iova(6 << 20));
        assert_eq!(all.take(None, 0x1000).unwrap(), Iova(0x1_0000));
    }

    #[test]
    fn an_address_that_is_asked_for_is_checked() {
        let all = addresses();
        let fails = |iova, len| all.take(Some(iova), len).unwrap_err();
        assert!(matches!(
            fails(0x1_0001, 0x1000),
            VfioError::NotPages { .. }
        ));
        assert!(matches!(fails(0x1_0000, 0), VfioError::NotPages { .. }));
        assert!(matches!(
            fails(0x1_f000, 0x2000),
            VfioError::NotUsable { .. }
        ));
        assert!(matches!(fails(!0xfff, 0x2000), VfioError::NotUsable { .. }));
        all.take(Some(0x5_0000), 0x2000).unwrap();
        for (iova, len) in [(0x5_1000, 0x1000), (0x4_f000, 0x2000), (0x4_f000, 0x9000)] {
            let error = fails(iova, len);
            assert!(
                matches!(
                    error,
                    VfioError::Overlap {
                        other: 0x5_0000,
                        ..
                    }
                ),
                "{error}"
            );
        }
        assert!(all.take(Some(0x4_f000), 0x1000).is_ok());
        assert!(all.take(Some(0x5_2000), 0x1000).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_size() {
        let error = addresses().take(None, 1 << 32).unwrap_err();
        assert!(matches!(error, VfioError::NoAddresses { len } if len == 1 << 32));
    }
}
