//! The memory of a guest and what lies where.

use std::sync::Arc;

use vmlet_memory::{AddressSpace, Backing, Gpa, Mapping, Ram};

/// Bytes of memory from address 0 on.
pub(crate) const RAM_SIZE: u64 = 4 << 20;
/// The global descriptor table.
pub(crate) const GDT: u64 = 0x1000;
/// The interrupt descriptor table, 256 gates.
pub(crate) const IDT: u64 = 0x2000;
/// The task-state segment.
pub(crate) const TSS: u64 = 0x3000;
/// Guest code.
pub(crate) const CODE: u64 = 0x1_0000;
/// Free for data.
pub(crate) const DATA: u64 = 0x2_0000;
/// Entry points of exceptions.
pub(crate) const HANDLERS: u64 = 0x3_0000;
/// Top of the stack of CPL 3 code.
pub(crate) const USER_STACK: u64 = 0x6_0000;
/// Top of the stack of CPL 0 code, and of exceptions at CPL 3.
pub(crate) const STACK: u64 = 0x7_0000;
/// Page tables, up to the end of the RAM's second MiB.
pub(crate) const TABLES: u64 = 0x10_0000;
/// Addresses no memory backs, mapped one to one.
pub(crate) const MMIO: u64 = 0xd000_0000;
/// A write here ends the run.
pub(crate) const STOP: u64 = MMIO + 0x1000;

/// Memory at 0, and what `more` adds.
pub(crate) fn flat(max_slots: u32, more: Vec<Mapping>) -> Arc<AddressSpace> {
    let space = AddressSpace::new(usize::try_from(max_slots).unwrap());
    let ram = Ram::new(RAM_SIZE, Backing::Anon).unwrap();
    let mut mappings = vec![Mapping::ram(Gpa(0), ram)];
    mappings.extend(more);
    space.map(mappings).unwrap();
    Arc::new(space)
}
