//! Page tables of 64-bit guests.

use vmlet_memory::{AddressSpace, Gpa};

use super::memory::{MMIO, RAM_SIZE, TABLES};

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 2;
pub(crate) const USER: u64 = 4;
pub(crate) const ALL: u64 = PRESENT | WRITABLE | USER;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Four levels of tables in fresh pages.
#[derive(Debug)]
pub(crate) struct Tables<'a> {
    memory: &'a AddressSpace,
    pub(crate) root: u64,
    next: u64,
}

impl<'a> Tables<'a> {
    /// Empty tables from `at` on.
    pub(crate) fn new(memory: &'a AddressSpace, at: u64) -> Tables<'a> {
        let next = at + 0x1000;
        Tables {
            memory,
            root: at,
            next,
        }
    }

    /// The standard map: memory one to one (the first 2 MiB in 4 KiB pages) and 2 MiB past its
    /// end, the MMIO area, I/O APIC and local APIC, all open to CPL 3.
    pub(crate) fn identity(memory: &'a AddressSpace) -> Tables<'a> {
        let mut tables = Tables::new(memory, TABLES);
        for page in (0..0x20_0000).step_by(0x1000) {
            tables.small(page, page, ALL);
        }
        for page in (0x20_0000..RAM_SIZE + 0x20_0000).step_by(0x20_0000) {
            tables.large(page, page, ALL);
        }
        for page in [MMIO, 0xfec0_0000, 0xfee0_0000] {
            tables.large(page, page, ALL);
        }
        tables
    }

    /// Takes further tables from `at` on.
    pub(crate) fn skip_to(&mut self, at: u64) {
        self.next = at;
    }

    /// The first address behind the tables.
    pub(crate) fn end(&self) -> u64 {
        self.next
    }

    /// Maps a 4 KiB page; gives the address of its entry.
    pub(crate) fn small(&mut self, linear: u64, gpa: u64, flags: u64) -> u64 {
        let entry = self.entry(linear, 1);
        self.set(entry, gpa | flags);
        entry
    }

    /// Maps a 2 MiB page; gives the address of its entry.
    pub(crate) fn large(&mut self, linear: u64, gpa: u64, flags: u64) -> u64 {
        let entry = self.entry(linear, 2);
        self.set(entry, gpa | flags | LARGE);
        entry
    }

    fn entry(&mut self, linear: u64, last: u32) -> u64 {
        let mut table = self.root;
        for level in (last + 1..=4).rev() {
            let at = slot(table, linear, level);
            let mut entry = self.memory.load_u64(Gpa(at)).unwrap();
            if entry & PRESENT == 0 {
                entry = self.next | ALL;
                self.next += 0x1000;
                self.set(at, entry);
            }
            table = entry & ADDRESS;
        }
        slot(table, linear, last)
    }

    fn set(&self, at: u64, entry: u64) {
        self.memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
    }
}

fn slot(table: u64, linear: u64, level: u32) -> u64 {
    table + ((linear >> (12 + 9 * (level - 1))) & 0x1ff) * 8
}

/// The address of the entry of a 4 KiB page that the standard map has in the first 2 MiB: the
/// fourth table made.
pub(crate) fn entry_of(memory: &AddressSpace, linear: u64) -> u64 {
    Tables::new(memory, TABLES).entry(linear, 1)
}
