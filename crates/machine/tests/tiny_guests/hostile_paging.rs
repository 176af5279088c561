//! Rows: page tables of guests that mean no good.

use vmlet_vcpu::{RunEnd, x86_64::Regs};

use crate::harness::{
    CODE, DATA, Guest, MMIO,
    bus::DONE,
    each,
    memory::{RAM_SIZE, TABLES},
    paging::{ALL, Tables},
};

/// Linear, not mapped by the standard tables.
const UNMAPPED: u64 = 0x5000_0000;
/// Free for tables.
const SPARE: u64 = 0x18_0000;
const PAGE_FAULT: u64 = 14;

/// Runs on with the tables at `cr3`, which no exception can be delivered through.
fn with_root(guest: &mut Guest, cr3: u64) -> RunEnd {
    let regs = Regs {
        rax: cr3,
        ..Regs::default()
    };
    guest.load_with(guest!("mov cr3, rax", "nop", "out 0xf4, al"), regs);
    guest.run_briefly()
}

#[test]
fn tables_where_no_memory_is() {
    each(|place| {
        for cr3 in [RAM_SIZE, MMIO, 0xff_ffff_f000] {
            let mut guest = Guest::new(place);
            let end = with_root(&mut guest, cr3);
            if place.is_soft() {
                assert_eq!(end, RunEnd::Shutdown, "{cr3:#x}");
            }
            assert_ne!(end, RunEnd::Stopped(DONE), "{cr3:#x}");
        }
    });
}

#[test]
fn a_table_in_a_device_maps_nothing() {
    each(|place| {
        let mut guest = Guest::new(place);
        // The third-level table of the linear GiB is in a device.
        let entry = TABLES + 0x1000 + (UNMAPPED >> 30) * 8;
        guest.write(entry, &(MMIO | ALL).to_le_bytes());
        guest.load(guest!("mov eax, 0x50000000", "mov ecx, [rax]"));
        let found = guest.exception();
        assert_eq!((found.vector, found.cr2), (PAGE_FAULT, UNMAPPED));
    });
}

/// The root's last entry leads to the root: the tables appear in the address space.
#[test]
fn tables_that_contain_themselves() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(TABLES + 511 * 8, &(TABLES | ALL).to_le_bytes());
        guest.load(guest!("mov rax, [-8]", "out 0xf4, al"));
        let found = guest.finish().rax;
        // The walk has marked the entry.
        assert_eq!(found & !0x60, TABLES | ALL);
    });
}

/// Every entry of a page leads to that page: all code and all data are its entries.
#[test]
fn a_page_that_is_every_table_and_every_page() {
    each(|place| {
        let mut guest = Guest::new(place);
        let entries = (SPARE | ALL).to_le_bytes().repeat(512);
        guest.write(SPARE, &entries);
        let end = with_root(&mut guest, SPARE);
        if place.is_soft() {
            assert_eq!(end, RunEnd::Shutdown);
        }
        assert_ne!(end, RunEnd::Stopped(DONE));
    });
}

/// Intel SDM volume 3, section 5.7: the error code of a reserved bit.
#[test]
fn reserved_bits_in_an_entry() {
    each(|place| {
        let mut guest = Guest::new(place);
        let entry = Tables::new(&guest.memory, TABLES).large(UNMAPPED, DATA & !0x1f_ffff, ALL);
        let value = guest.word(entry) | 1 << 14;
        guest.write(entry, &value.to_le_bytes());
        guest.load(guest!("mov eax, 0x50000000", "mov [rax], ecx"));
        let found = guest.exception();
        // QEMU's processor, which the lab has, forgets bit 0 here.
        let code = if place.is_soft() {
            found.code
        } else {
            found.code | 1
        };
        let expected = (PAGE_FAULT, 0xb, UNMAPPED, CODE + 5);
        assert_eq!((found.vector, code, found.cr2, found.rip), expected);
    });
}

/// A guest that maps and unmaps the page it runs in, with and without telling the TLB.
#[test]
fn code_that_unmaps_itself() {
    each(|place| {
        let mut guest = Guest::new(place);
        let entry = crate::harness::paging::entry_of(&guest.memory, CODE);
        let regs = Regs {
            rbx: entry,
            rdx: CODE,
            ..Regs::default()
        };
        let code = guest!(
            "mov qword ptr [rbx], 0",
            "invlpg [rdx]",
            "nop",
            "out 0xf4, al"
        );
        guest.load_with(code, regs);
        let found = guest.exception();
        // An interpreter without a TLB sees it one instruction earlier.
        let behind = if place.interpreted { 7 } else { 10 };
        assert_eq!((found.vector, found.rip), (PAGE_FAULT, CODE + behind));
    });
}
