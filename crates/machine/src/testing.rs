//! Guest memory for tests, and what of it the host has given.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use vmlet_memory::{AddressSpace, Backing, Gpa, Mapping, Ram};

/// `len` bytes of new memory at address 0.
pub(crate) fn space(len: u64) -> (AddressSpace, Arc<Ram>) {
    let ram = Ram::new(len, Backing::Anon).unwrap();
    let space = AddressSpace::new(8);
    let mapping = Mapping::ram(Gpa(0), Arc::clone(&ram));
    space.map(vec![mapping]).unwrap();
    (space, ram)
}

/// Whether the host has given the page at `offset`: bit 63 of its word (proc(5), /proc/pid/pagemap).
pub(crate) fn is_given(ram: &Ram, offset: u64) -> bool {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut word = [0; 8];
    let page = (ram.hva().0 + offset) / 4096;
    pagemap.read_exact_at(&mut word, page * 8).unwrap();
    u64::from_le_bytes(word) >> 63 == 1
}
