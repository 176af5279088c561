//! A device's way to guest memory.
//!
//! A device has a [`Dma`], which knows its requester id, and takes a [`DmaView`] of it for each batch
//! of work. What lies behind, a [`DmaDomain`], can be replaced while the device runs: RAM one to one
//! without one, an IOMMU's translation with one.

use std::{
    fmt::Debug,
    iter::FusedIterator,
    sync::{Arc, Mutex, PoisonError},
};

use thiserror::Error;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult,
    Permissions, VolatileSlice, guest_memory::GuestMemorySliceIterator,
};
use vmlet_memory::{AddressSpace, Gpa, Iova, MemoryView, Slices, Written, WrittenPages};

use crate::RequesterId;

/// A device's access that memory does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("DMA of {requester:?} to {iova:#x}+{len:#x} ({}) is refused", if *write { "write" } else { "read" })]
pub struct DmaFault {
    /// Who.
    pub requester: RequesterId,
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// A write, or a read.
    pub write: bool,
}

/// Where an access goes: one piece, as long as the translation is linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaPiece {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Bytes, at least one and at most as many as asked for.
    pub len: u64,
}

/// Translates device addresses to guest-physical ones.
pub trait DmaDomain: Send + Sync + Debug {
    /// The first piece of `len` bytes (at least one) from `iova` on.
    fn translate(
        &self,
        requester: RequesterId,
        iova: Iova,
        len: u64,
        write: bool,
    ) -> Result<DmaPiece, DmaFault>;
}

#[derive(Debug)]
struct Inner {
    space: Arc<AddressSpace>,
    requester: RequesterId,
    domain: Mutex<Option<Arc<dyn DmaDomain>>>,
}

/// A device's way to guest memory; clones share what lies behind.
#[derive(Clone, Debug)]
pub struct Dma {
    inner: Arc<Inner>,
}

impl Dma {
    /// RAM one to one for `requester`.
    pub fn new(space: Arc<AddressSpace>, requester: RequesterId) -> Dma {
        let domain = Mutex::default();
        Dma {
            inner: Arc::new(Inner {
                space,
                requester,
                domain,
            }),
        }
    }

    /// Who makes the accesses.
    pub fn requester(&self) -> RequesterId {
        self.inner.requester
    }

    /// Puts `domain` between the device and memory; `None`: RAM one to one. Views taken before keep
    /// what they were taken with.
    pub fn set_domain(&self, domain: Option<Arc<dyn DmaDomain>>) {
        let current = self.inner.domain.lock();
        *current.unwrap_or_else(PoisonError::into_inner) = domain;
    }

    /// Memory as it is mapped now, for one batch of work.
    pub fn view(&self) -> DmaView {
        let domain = self.inner.domain.lock();
        DmaView {
            memory: self.inner.space.view(),
            requester: self.inner.requester,
            domain: domain.unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Copies from memory, all of `data` or an error.
    pub fn read(&self, iova: Iova, data: &mut [u8]) -> Result<(), DmaFault> {
        let fault = self.fault(iova, data.len(), false);
        let done = self.view().read_slice(data, GuestAddress(iova.0));
        done.map_err(|_| fault)
    }

    /// Copies to memory; after an error a part may be written.
    pub fn write(&self, iova: Iova, data: &[u8]) -> Result<(), DmaFault> {
        let done = self.view().write_slice(data, GuestAddress(iova.0));
        done.map_err(|_| self.fault(iova, data.len(), true))
    }

    fn fault(&self, iova: Iova, len: usize, write: bool) -> DmaFault {
        DmaFault {
            requester: self.inner.requester,
            iova: iova.0,
            len: len as u64,
            write,
        }
    }
}

/// Guest memory as one device sees it at one time; what virtio-queue works on.
#[derive(Clone, Debug)]
pub struct DmaView {
    memory: MemoryView,
    requester: RequesterId,
    domain: Option<Arc<dyn DmaDomain>>,
}

impl DmaView {
    /// The memory behind, where no translation is in between.
    pub fn untranslated(&self) -> Option<&MemoryView> {
        self.domain.is_none().then_some(&self.memory)
    }

    /// Where `len` bytes (at least one) from `iova` on begin, and how many of them follow.
    pub fn translate(&self, iova: Iova, len: u64, write: bool) -> Result<DmaPiece, DmaFault> {
        match &self.domain {
            None => Ok(DmaPiece {
                gpa: Gpa(iova.0),
                len,
            }),
            Some(domain) => domain.translate(self.requester, iova, len, write),
        }
    }

    /// Memory by guest-physical address, after [`DmaView::translate`].
    pub fn memory(&self) -> &MemoryView {
        &self.memory
    }

    fn pieces(&self, addr: GuestAddress, len: usize, access: Permissions) -> Pieces<'_> {
        Pieces {
            view: self,
            next: addr.0,
            left: len,
            access,
            current: None,
        }
    }
}

impl GuestMemory for DmaView {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = WrittenPages;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.pieces(addr, count, access).all(|piece| piece.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, Written<'a>>> {
        Ok(self.pieces(addr, count, access))
    }
}

/// Pieces of memory behind device addresses; ends after the first error.
#[derive(Debug)]
struct Pieces<'a> {
    view: &'a DmaView,
    next: u64,
    left: usize,
    access: Permissions,
    current: Option<Slices<'a>>,
}

impl<'a> Pieces<'a> {
    /// Translates the next part; `None` where that is refused.
    fn advance(&mut self) -> Option<Slices<'a>> {
        let left = self.left as u64;
        let write = self.access.has_write();
        let piece = self.view.translate(Iova(self.next), left, write).ok()?;
        let len = piece.len.min(left);
        let end = self.next.checked_add(len).filter(|_| len > 0)?;
        let count = usize::try_from(len).ok()?;
        self.left -= count;
        self.next = end;
        Some(self.view.memory.slices(piece.gpa, count, self.access))
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a, Written<'a>>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.current.as_mut().and_then(Iterator::next) {
                Some(Ok(slice)) => return Some(Ok(slice)),
                Some(Err(error)) => {
                    self.left = 0;
                    return Some(Err(error));
                }
                None if self.left == 0 => return None,
                None => {}
            }
            let at = self.next;
            self.current = self.advance();
            if self.current.is_none() {
                self.left = 0;
                return Some(Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(at))));
            }
        }
    }
}

impl FusedIterator for Pieces<'_> {}

impl<'a> GuestMemorySliceIterator<'a, Written<'a>> for Pieces<'a> {}

#[cfg(test)]
mod tests {
    use vmlet_memory::{Backing, Mapping, PAGE_SIZE, Ram};

    use super::*;

    /// Pages in reverse order, the last one for nobody.
    #[derive(Debug)]
    struct Reversed(u64);

    impl DmaDomain for Reversed {
        fn translate(
            &self,
            requester: RequesterId,
            iova: Iova,
            len: u64,
            write: bool,
        ) -> Result<DmaPiece, DmaFault> {
            let (page, within) = (iova.0 / PAGE_SIZE, iova.0 % PAGE_SIZE);
            let last = self.0.checked_sub(page + 1);
            let page = last.filter(|page| *page > 0).ok_or(DmaFault {
                requester,
                iova: iova.0,
                len,
                write,
            })?;
            Ok(DmaPiece {
                gpa: Gpa(page * PAGE_SIZE + within),
                len: len.min(PAGE_SIZE - within),
            })
        }
    }

    fn dma() -> Dma {
        let space = AddressSpace::new(4);
        let ram = Ram::new(4 * PAGE_SIZE, Backing::Anon).unwrap();
        space.map(vec![Mapping::ram(Gpa(0), ram)]).unwrap();
        Dma::new(Arc::new(space), RequesterId(8))
    }

    #[test]
    fn without_a_domain_addresses_are_guest_physical() {
        let dma = dma();
        dma.write(Iova(10), b"abc").unwrap();
        let mut data = [0; 3];
        dma.read(Iova(10), &mut data).unwrap();
        assert_eq!(&data, b"abc");
        let fault = dma.read(Iova(4 * PAGE_SIZE - 1), &mut data).unwrap_err();
        assert_eq!((fault.iova, fault.len, fault.write), (0x3fff, 3, false));
    }

    #[test]
    fn a_domain_scatters_a_range_and_refuses_what_it_does_not_map() {
        let dma = dma();
        dma.set_domain(Some(Arc::new(Reversed(4))));
        dma.write(Iova(PAGE_SIZE - 1), b"ab").unwrap();
        assert!(dma.write(Iova(3 * PAGE_SIZE - 1), b"ab").is_err());
        dma.set_domain(None);
        let mut data = [0; 1];
        dma.read(Iova(4 * PAGE_SIZE - 1), &mut data).unwrap();
        assert_eq!(&data, b"a");
        dma.read(Iova(2 * PAGE_SIZE), &mut data).unwrap();
        assert_eq!(&data, b"b");
    }

    #[test]
    fn a_view_keeps_the_domain_it_was_taken_with() {
        let dma = dma();
        let before = dma.view();
        dma.set_domain(Some(Arc::new(Reversed(4))));
        assert!(before.untranslated().is_some());
        assert!(dma.view().untranslated().is_none());
    }
}
