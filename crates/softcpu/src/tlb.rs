//! The soft TLB, and the only file that reads and writes guest memory.
//!
//! Invariant: an entry of a data set is made of a page of a memory slot of the current map, and all
//! entries go when the map changes, before the slot's host memory does (`Vm::change_slot` waits for
//! every vCPU to leave guest code; a vCPU that enters again compares the map's version first). So
//! the page behind a matching tag is mapped, readable and writable. The guest, other threads and
//! devices change its bytes at any time: no reference to them is ever formed, every access is a
//! volatile or atomic one.

#![expect(unsafe_code, reason = "reads and writes guest memory")]
#![expect(
    clippy::indexing_slicing,
    reason = "indices are cut to the arrays' sizes, powers of two"
)]

use std::{
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
};

use crate::int::Int;

const ENTRIES: usize = 512;
const SETS: usize = 16;
/// Offset of the sets for code at CPL 3.
pub(crate) const USER: usize = 4;
/// Offset of the sets for code at CPL 3 whose alignment is checked; those for data stay empty.
pub(crate) const ALIGNED: usize = 8 | USER;
pub(crate) const READ: usize = 0;
pub(crate) const WRITE: usize = 1;
const WRITE_USER: usize = WRITE + USER;
/// Entries of this set lead to guest-physical addresses.
pub(crate) const FETCH: usize = 2;
/// Past this many filled entries of one kind everything is dropped.
const FILLED_MAX: usize = 8192;
const NO_TAG: u64 = 1;
const OFFSET: u64 = 0xfff;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The page's linear address, or [`NO_TAG`].
    tag: u64,
    /// What leads from a linear address to the host's; in [`FETCH`] bit 0 marks a global page.
    addend: u64,
}

#[derive(Clone, Copy, Debug)]
struct Filled {
    set: u8,
    slot: u16,
    large: bool,
}

/// Cached translations.
#[derive(Debug)]
pub(crate) struct Tlb {
    /// The sets one after the other.
    entries: Box<[Entry; ENTRIES * SETS]>,
    /// What was filled since it was last dropped: pages that are not global, and global ones.
    filled: [Vec<Filled>; 2],
}

/// A page the TLB takes up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) linear: u64,
    /// Host address, or guest-physical in [`FETCH`].
    pub(crate) target: u64,
    pub(crate) global: bool,
    pub(crate) large: bool,
}

#[inline(always)]
fn slot(addr: u64) -> usize {
    (addr >> 12) as usize & (ENTRIES - 1)
}

#[inline(always)]
fn index(set: usize, slot: usize) -> usize {
    ((set * ENTRIES) | slot) & (ENTRIES * SETS - 1)
}

/// From an address to its entry of a set, as translated code counts: shift right, then mask.
pub(crate) const INDEX_SHIFT: u8 = 12 - ENTRY_BITS as u8;
pub(crate) const INDEX_MASK: i32 = ((ENTRIES - 1) << ENTRY_BITS) as i32;
const ENTRY_BITS: u32 = size_of::<Entry>().ilog2();
const _: () = assert!(size_of::<Entry>() == 1 << ENTRY_BITS);

/// Offsets of an entry's two words in `set`, from the entry of [`Tlb::address`].
pub(crate) const fn entry_fields(set: usize) -> (i32, i32) {
    let at = set * ENTRIES * size_of::<Entry>();
    let tag = at + offset_of!(Entry, tag);
    let addend = at + offset_of!(Entry, addend);
    (tag as i32, addend as i32)
}

impl Tlb {
    /// Where the entries of `set` begin; it stays where it is.
    pub(crate) fn address(&self, set: usize) -> u64 {
        let start = self.entries.as_ptr().expose_provenance();
        (start + index(set, 0) * size_of::<Entry>()) as u64
    }

    pub(crate) fn new() -> Tlb {
        let empty = Entry {
            tag: NO_TAG,
            addend: 0,
        };
        Tlb {
            entries: Box::new([empty; ENTRIES * SETS]),
            filled: [Vec::new(), Vec::new()],
        }
    }

    /// Where the `bytes` bytes at `addr` lead to, if they lie in one known page.
    #[inline(always)]
    pub(crate) fn find(&self, set: usize, addr: u64, bytes: u64) -> Option<u64> {
        let entry = &self.entries[index(set, slot(addr))];
        (entry.tag == addr.wrapping_add(bytes - 1) & !OFFSET)
            .then(|| addr.wrapping_add(entry.addend))
    }

    /// The guest-physical address of code, and whether its page is global.
    pub(crate) fn find_code(&self, set: usize, addr: u64) -> Option<(u64, bool)> {
        let entry = &self.entries[index(set, slot(addr))];
        let addend = entry.addend & !OFFSET;
        (entry.tag == addr & !OFFSET)
            .then(|| (addr.wrapping_add(addend), entry.addend & OFFSET != 0))
    }

    pub(crate) fn fill(&mut self, set: usize, fill: Fill) {
        if self.filled.iter().any(|list| list.len() >= FILLED_MAX) {
            self.flush();
        }
        let linear = fill.linear & !OFFSET;
        let mut addend = (fill.target & !OFFSET).wrapping_sub(linear);
        if set & (USER - 1) == FETCH {
            addend |= u64::from(fill.global);
        }
        self.entries[index(set, slot(linear))] = Entry {
            tag: linear,
            addend,
        };
        self.filled[usize::from(fill.global)].push(Filled {
            set: set as u8,
            slot: slot(linear) as u16,
            large: fill.large,
        });
    }

    /// Drops everything.
    pub(crate) fn flush(&mut self) {
        self.flush_local();
        self.drop_all(1);
    }

    /// Drops what is not global, and what took the place of such an entry.
    pub(crate) fn flush_local(&mut self) {
        self.drop_all(0);
    }

    fn drop_all(&mut self, kind: usize) {
        let entries = &mut self.entries;
        for filled in self.filled[kind & 1].drain(..) {
            entries[index(filled.set.into(), filled.slot.into())].tag = NO_TAG;
        }
    }

    /// Drops the page at `addr`, a large one with all its parts.
    pub(crate) fn flush_page(&mut self, addr: u64) {
        let entries = &mut self.entries;
        for list in &mut self.filled {
            list.retain(|filled| {
                let entry = &mut entries[index(filled.set.into(), filled.slot.into())];
                let goes =
                    entry.tag == addr & !OFFSET || (filled.large && entry.tag >> 30 == addr >> 30);
                if goes {
                    entry.tag = NO_TAG;
                }
                !goes
            });
        }
    }

    /// Drops what allows writing to the host page at `host`.
    pub(crate) fn protect(&mut self, host: u64) {
        for entry in self.writing() {
            if entry.tag.wrapping_add(entry.addend) == host {
                entry.tag = NO_TAG;
            }
        }
    }

    /// Drops all that allows writing.
    pub(crate) fn protect_all(&mut self) {
        for entry in self.writing() {
            entry.tag = NO_TAG;
        }
    }

    fn writing(&mut self) -> impl Iterator<Item = &mut Entry> {
        let sets = self.entries.chunks_exact_mut(ENTRIES).enumerate();
        sets.filter(|(set, _)| matches!(*set, WRITE | WRITE_USER))
            .flat_map(|(_, entries)| entries)
    }
}

/// Bytes of any alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Packed<T: Int>(T);

/// A host address the TLB gave, or one in a slot of the current map; valid until the map changes.
#[inline(always)]
pub(crate) fn load<T: Int>(host: u64) -> T {
    let at = ptr::with_exposed_provenance::<Packed<T>>(host as usize);
    // SAFETY: the module's invariant; the bytes lie in one page, and `Packed` has no alignment.
    unsafe { at.read_volatile() }.0
}

/// See [`load`].
#[inline(always)]
pub(crate) fn store<T: Int>(host: u64, value: T) {
    let at = ptr::with_exposed_provenance_mut::<Packed<T>>(host as usize);
    // SAFETY: the module's invariant; the bytes lie in one page, and `Packed` has no alignment.
    unsafe { at.write_volatile(Packed(value)) }
}

/// Copies `bytes` bytes of one page to another upwards, with the effect of a copy byte by byte where
/// they overlap.
pub(crate) fn copy_up(from: u64, to: u64, bytes: u64) {
    let mut at = 0;
    if to.wrapping_sub(from) >= 8 {
        while at + 8 <= bytes {
            store(to + at, load::<u64>(from + at));
            at += 8;
        }
    }
    while at < bytes {
        store(to + at, load::<u8>(from + at));
        at += 1;
    }
}

/// Fills `bytes` bytes of one page with the bytes of `pattern` over and over.
pub(crate) fn fill_up(to: u64, pattern: u64, bytes: u64) {
    let mut at = 0;
    while at + 8 <= bytes {
        store(to + at, pattern);
        at += 8;
    }
    for byte in pattern
        .to_le_bytes()
        .into_iter()
        .take((bytes - at) as usize)
    {
        store(to + at, byte);
        at += 1;
    }
}

/// Replaces `old` by `new` if it is still there: page-table entries, and locked instructions
/// towards other threads of the process. Unaligned operands are compared without atomicity.
pub(crate) fn exchange<T: Int>(host: u64, old: T, new: T) -> bool {
    let at = host as usize;
    let order = Ordering::SeqCst;
    if !host.is_multiple_of(T::BYTES) {
        let same = load::<T>(host) == old;
        if same {
            store(host, new);
        }
        return same;
    }
    macro_rules! swap {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: the module's invariant; aligned to the operand's size.
            let cell = unsafe { <$atomic>::from_ptr(ptr::with_exposed_provenance_mut(at)) };
            cell.compare_exchange(old.u() as $int, new.u() as $int, order, order)
                .is_ok()
        }};
    }
    match T::BYTES {
        1 => swap!(AtomicU8, u8),
        2 => swap!(AtomicU16, u16),
        4 => swap!(AtomicU32, u32),
        _ => swap!(AtomicU64, u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(set: usize, linear: u64, global: bool, large: bool) -> Tlb {
        let mut tlb = Tlb::new();
        tlb.fill(
            set,
            Fill {
                linear,
                target: 0x7000_0000,
                global,
                large,
            },
        );
        tlb
    }

    #[test]
    fn an_access_that_leaves_the_page_is_not_found() {
        let tlb = filled(READ, 0x5000, false, false);
        assert_eq!(tlb.find(READ, 0x5ff8, 8), Some(0x7000_0ff8));
        assert_eq!(tlb.find(READ, 0x5ff9, 8), None);
        assert_eq!(tlb.find(WRITE, 0x5000, 1), None);
        assert_eq!(tlb.find(READ, 0x4fff, 2), None);
    }

    #[test]
    fn global_pages_outlive_a_change_of_tables() {
        let mut tlb = filled(READ, 0x5000, true, false);
        tlb.flush_local();
        assert!(tlb.find(READ, 0x5000, 1).is_some());
        tlb.flush();
        assert!(tlb.find(READ, 0x5000, 1).is_none());
    }

    #[test]
    fn copies_and_fills_are_those_of_single_bytes() {
        for (from, to, bytes) in [(0, 1, 40), (3, 0, 37), (0, 8, 33), (0, 7, 20), (5, 50, 13)] {
            let mut memory: Vec<u8> = (0..128).collect();
            let mut expected = memory.clone();
            for at in 0..bytes {
                expected[to + at] = expected[from + at];
            }
            let host = memory.as_mut_ptr().expose_provenance() as u64;
            copy_up(host + from as u64, host + to as u64, bytes as u64);
            assert_eq!(memory, expected, "{from} {to} {bytes}");
        }
        let mut memory = [9u8; 16];
        let host = memory.as_mut_ptr().expose_provenance() as u64;
        fill_up(host + 1, 0x0202_0101_0202_0101, 12);
        assert_eq!(memory, [9, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2, 9, 9, 9]);
    }

    #[test]
    fn a_large_page_goes_with_all_its_parts() {
        let mut tlb = filled(READ, 0x5000, true, true);
        tlb.flush_page(0x10_0000);
        assert!(tlb.find(READ, 0x5000, 1).is_none());
    }

    #[test]
    fn protecting_a_host_page_takes_the_right_to_write() {
        let mut tlb = filled(WRITE, 0x5000, false, false);
        tlb.protect(0x7000_1000);
        assert!(tlb.find(WRITE, 0x5000, 1).is_some());
        tlb.protect(0x7000_0000);
        assert!(tlb.find(WRITE, 0x5000, 1).is_none());
    }
}
