//! Rows: the log of the pages a guest writes, by a bitmap a slot and by a ring a vCPU.

use std::ops::Range;

use vmlet_memory::{Extent, Gpa, PAGE_SIZE};
use vmlet_vcpu::SlotChange;

use crate::{
    dirty_ring::ENTRIES,
    harness::{
        DATA, Guest, Place, each,
        guest::Options,
        memory::{RAM_SIZE, TABLES},
    },
};

const TABLE_PAGES: Range<u64> = TABLES / PAGE_SIZE..TABLES / PAGE_SIZE + 16;

/// Writes two bytes on two pages, far apart.
fn writes() -> &'static [u8] {
    guest!(
        "mov byte ptr [0x20000], 1",
        "mov byte ptr [0x28fff], 2",
        "mov [r15], eax"
    )
}

/// Where the engine notes pages: rings, where it has them, or a bitmap.
fn logs(place: &Place) -> Vec<Option<u32>> {
    let vm = place.engine.create_vm().unwrap();
    let rings = vm.use_dirty_ring(ENTRIES).ok().map(|()| Some(ENTRIES));
    rings.into_iter().chain([None]).collect()
}

/// Each privilege level with each log.
fn both(place: &Place) -> Vec<(bool, Option<u32>)> {
    let each = |log| [(false, log), (true, log)];
    logs(place).into_iter().flat_map(each).collect()
}

/// A guest whose writes are logged and whose page tables are as used as they will be.
fn logged(place: &Place, user: bool, dirty_ring: Option<u32>) -> Guest {
    let mut guest = Guest::with(
        place,
        Options {
            dirty_ring,
            ..Options::default()
        },
    );
    if user {
        guest.enter_user();
    }
    guest.load(writes());
    guest.finish();
    guest.memory.set_dirty_logging(true).unwrap();
    for slot in guest.memory.slots() {
        assert!(slot.log_dirty);
        guest.vm.change_slot(SlotChange::Set(&slot)).unwrap();
    }
    log(&guest);
    guest
}

/// The pages written since the last call, but for page tables: AMD's processors take a walk of
/// them for a write (AMD APM volume 2, section 15.25.5).
fn log(guest: &Guest) -> Vec<u64> {
    let slot = guest.memory.slots()[0];
    let bits = guest.vm.dirty_log(slot.id, slot.len / PAGE_SIZE).unwrap();
    let word = |(index, word): (u64, &u64)| {
        let word = *word;
        (0..64)
            .filter(move |bit| word >> bit & 1 == 1)
            .map(move |bit| index * 64 + bit)
    };
    let pages = (0..).zip(&bits).flat_map(word);
    pages.filter(|page| !TABLE_PAGES.contains(page)).collect()
}

#[test]
fn the_log_names_exactly_the_pages_written_and_forgets_them() {
    each(|place| {
        for (user, log_in) in both(place) {
            let mut guest = logged(place, user, log_in);
            for _ in 0..3 {
                guest.load(writes());
                guest.finish();
                assert_eq!(log(&guest), [0x20, 0x28]);
                assert!(log(&guest).is_empty());
            }
        }
    });
}

#[test]
fn reads_are_not_logged() {
    each(|place| {
        for (user, log_in) in both(place) {
            let mut guest = logged(place, user, log_in);
            guest.load(guest!(
                "mov eax, [0x20000]",
                "mov eax, [0x28000]",
                "mov [r15], eax"
            ));
            guest.finish();
            assert!(log(&guest).is_empty());
        }
    });
}

#[test]
fn logging_can_be_switched_off_and_on() {
    each(|place| {
        for log_in in logs(place) {
            let mut guest = logged(place, true, log_in);
            for on in [false, true] {
                guest.memory.set_dirty_logging(on).unwrap();
                for slot in guest.memory.slots() {
                    guest.vm.change_slot(SlotChange::Set(&slot)).unwrap();
                }
                guest.load(writes());
                guest.finish();
            }
            assert!(log(&guest).contains(&0x28));
        }
    });
}

#[test]
fn the_guests_pages_and_this_processes_are_collected_together() {
    each(|place| {
        let mut guest = logged(place, true, None);
        let collect = |guest: &Guest| {
            let mut read = |slot, pages| guest.vm.dirty_log(slot, pages).map_err(|e| e.to_string());
            let mut found = guest.memory.collect_dirty(&mut read).unwrap();
            found.retain(|extent| !TABLE_PAGES.contains(&(extent.gpa.0 / PAGE_SIZE)));
            found
        };
        collect(&guest);
        guest.load(writes());
        guest.finish();
        collect(&guest);
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rip = crate::harness::CODE;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.finish();
        guest.write(DATA + 0x1000, &[1]);
        guest.write(RAM_SIZE - 1, &[1]);
        let extent = |page: u64, pages| Extent {
            gpa: Gpa(page * PAGE_SIZE),
            len: pages * PAGE_SIZE,
        };
        assert_eq!(
            collect(&guest),
            [extent(0x20, 2), extent(0x28, 1), extent(0x3ff, 1)]
        );
    });
}
