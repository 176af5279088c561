//! The map as devices see it: vm-memory's traits over a snapshot of the address space.
//!
//! virtio-queue and everything else that takes [`GuestMemory`] works on it. Writes through its
//! slices mark pages as written and move the count of foreign writes, as [`crate::Ram::write`] does.

use std::{iter::FusedIterator, sync::Arc};

use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult, Permissions,
    VolatileSlice,
    bitmap::{Bitmap, BitmapSlice, WithBitmapSlice},
    guest_memory::GuestMemorySliceIterator,
};

use crate::{
    Gpa, Ram,
    space::{View, lookup},
};

/// A snapshot of the map of guest memory.
#[derive(Clone, Debug)]
pub struct MemoryView {
    view: Arc<View>,
}

impl MemoryView {
    pub(crate) fn new(view: Arc<View>) -> MemoryView {
        MemoryView { view }
    }

    /// The RAM behind `gpa`, the offset in it, and how many bytes follow in the same mapping; `None`
    /// where no memory is, or only memory that must not be written to and `write` asks for that.
    pub fn find(&self, gpa: Gpa, write: bool) -> Option<(&Arc<Ram>, u64, u64)> {
        let (mapping, within) = lookup(&self.view, gpa)?;
        if write && mapping.readonly {
            return None;
        }
        Some((&mapping.ram, mapping.offset + within, mapping.len - within))
    }

    /// All memory that can be written to: first address, RAM behind it, offset in that, and bytes.
    pub fn mappings(&self) -> impl Iterator<Item = (Gpa, &Arc<Ram>, u64, u64)> {
        let writable = self
            .view
            .mappings
            .iter()
            .filter(|mapping| !mapping.readonly);
        writable.map(|mapping| (mapping.gpa, &mapping.ram, mapping.offset, mapping.len))
    }

    /// The pieces of `len` bytes from `gpa` on.
    pub fn slices(&self, gpa: Gpa, len: usize, access: Permissions) -> Slices<'_> {
        Slices {
            memory: self,
            next: gpa.0,
            left: len,
            write: access.has_write(),
        }
    }
}

impl GuestMemory for MemoryView {
    // Never handed out: what lies behind is no collection of vm-memory's regions.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = WrittenPages;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.slices(Gpa(addr.0), count, access)
            .all(|piece| piece.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, Written<'a>>> {
        Ok(self.slices(Gpa(addr.0), count, access))
    }
}

/// Pieces of memory that together cover a range; ends after the first error.
#[derive(Debug)]
pub struct Slices<'a> {
    memory: &'a MemoryView,
    next: u64,
    left: usize,
    write: bool,
}

impl<'a> Slices<'a> {
    fn piece(&self) -> Option<(VolatileSlice<'a, Written<'a>>, u64)> {
        let (ram, offset, there) = self.memory.find(Gpa(self.next), self.write)?;
        let len = (self.left as u64).min(there);
        let end = self.next.checked_add(len)?;
        Some((ram.tracked(offset, len).ok()?, end))
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a, Written<'a>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let Some((slice, end)) = self.piece() else {
            self.left = 0;
            let at = GuestAddress(self.next);
            return Some(Err(GuestMemoryError::InvalidGuestAddress(at)));
        };
        self.left -= slice.len();
        self.next = end;
        Some(Ok(slice))
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, Written<'a>> for Slices<'a> {}

/// Names [`Written`] as the bitmap of [`MemoryView`]; has no pages of its own.
#[derive(Clone, Copy, Debug)]
pub struct WrittenPages;

impl<'a> WithBitmapSlice<'a> for WrittenPages {
    type S = Written<'a>;
}

impl Bitmap for WrittenPages {
    fn mark_dirty(&self, _: usize, _: usize) {}

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, _: usize) -> Written<'_> {
        Written { place: None }
    }
}

/// Notes writes to a piece of RAM.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    place: Option<(&'a Ram, u64)>,
}

impl<'a> Written<'a> {
    pub(crate) fn new(ram: &'a Ram, offset: u64) -> Written<'a> {
        Written {
            place: Some((ram, offset)),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for Written<'_> {
    type S = Self;
}

impl BitmapSlice for Written<'_> {}

impl Bitmap for Written<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some((ram, start)) = self.place {
            ram.note_written(start.saturating_add(offset as u64), len as u64);
        }
    }

    // Reading the marks takes them, which is for the dirty log alone.
    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Written {
            place: self
                .place
                .map(|(ram, start)| (ram, start.saturating_add(offset as u64))),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::{AddressSpace, Backing, ForeignWrites, Mapping, PAGE_SIZE};

    fn space() -> (AddressSpace, Arc<Ram>) {
        let space = AddressSpace::new(8);
        let ram = Ram::new(4 * PAGE_SIZE, Backing::Anon).unwrap();
        let part = |gpa, offset, readonly| Mapping {
            gpa: Gpa(gpa),
            len: PAGE_SIZE,
            offset,
            readonly,
            ..Mapping::ram(Gpa(gpa), Arc::clone(&ram))
        };
        space
            .map(vec![
                part(0, 0, false),
                part(PAGE_SIZE, 3 * PAGE_SIZE, false),
                part(4 * PAGE_SIZE, PAGE_SIZE, true),
            ])
            .unwrap();
        (space, ram)
    }

    #[test]
    fn a_range_over_two_mappings_comes_in_two_pieces() {
        let (space, ram) = space();
        let view = space.view();
        view.write_slice(b"abcd", GuestAddress(PAGE_SIZE - 2))
            .unwrap();
        let mut data = [0; 2];
        ram.read(3 * PAGE_SIZE, &mut data).unwrap();
        assert_eq!(&data, b"cd");
    }

    #[test]
    fn writes_mark_their_pages_and_count_as_foreign() {
        let (space, ram) = space();
        let mut reader = ForeignWrites::new();
        space
            .view()
            .write_slice(b"ab", GuestAddress(PAGE_SIZE - 1))
            .unwrap();
        assert!(reader.news().is_some());
        assert_eq!(ram.take_written(0, 4 * PAGE_SIZE), [0b1001]);
    }

    #[test]
    fn holes_and_the_end_of_the_address_space_are_refused() {
        let (space, _ram) = space();
        let view = space.view();
        let reaches = |at, len, access| view.check_range(GuestAddress(at), len, access);
        assert!(reaches(0, 8192, Permissions::ReadWrite));
        assert!(!reaches(8190, 4, Permissions::Read));
        assert!(!reaches(u64::MAX, 2, Permissions::Read));
        assert!(reaches(u64::MAX, 0, Permissions::Read));
    }

    #[test]
    fn read_only_memory_is_read_and_not_written() {
        let (space, _ram) = space();
        let view = space.view();
        let at = GuestAddress(4 * PAGE_SIZE);
        assert!(view.check_range(at, 16, Permissions::Read));
        assert!(!view.check_range(at, 16, Permissions::Write));
        assert!(view.write_slice(b"x", at).is_err());
    }
}
