//! Rows: rings of written pages (Linux, Documentation/virt/kvm/api.rst, section 8.29).

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use vmlet_memory::{AddressSpace, Backing, Gpa, Mapping, Memslot, PAGE_SIZE, Ram};
use vmlet_vcpu::{EngineError, SlotChange, Vm, x86_64::Regs};

use crate::harness::{
    Guest, MMIO, Place, each,
    guest::Options,
    limit,
    paging::{ALL, Tables},
};

const MIB: u64 = 1 << 20;
/// The smallest rings that every KVM takes.
pub(crate) const ENTRIES: u32 = 1024;
/// What the guest writes to, far more pages than a ring has entries, and in what steps.
const RANGE: u64 = 1 << 30;
const LEN: u64 = 16 * MIB;
const STEP: u64 = 2 * PAGE_SIZE;
/// Room for page tables in the standard memory.
const OWN_TABLES: u64 = 0x18_0000;

/// Whether the engine has rings; where it has none, it says so and makes the VM without.
fn has_rings(place: &Place) -> bool {
    let vm = place.engine.create_vm().unwrap();
    match vm.use_dirty_ring(ENTRIES) {
        Ok(()) => true,
        Err(EngineError::Lacking { remedy, .. }) => {
            assert!(remedy.contains("dirty_ring"));
            false
        }
        Err(other) => panic!("{other}"),
    }
}

/// A guest with rings, at CPL 3, with the range mapped; the slot of the range is logged.
fn guest(place: &Place, code: &[u8]) -> Guest {
    let range = Mapping::ram(Gpa(RANGE), Ram::new(LEN, Backing::Anon).unwrap());
    let options = Options {
        more: vec![range],
        dirty_ring: Some(ENTRIES),
        ..Options::default()
    };
    let mut guest = Guest::with(place, options);
    let mut tables = Tables::new(&guest.memory, OWN_TABLES);
    for page in (0..4 * MIB).step_by(0x20_0000) {
        tables.large(page, page, ALL);
    }
    for page in (RANGE..RANGE + LEN).step_by(0x20_0000) {
        tables.large(page, page, ALL);
    }
    tables.large(MMIO, MMIO, ALL);
    let root = tables.root;
    guest.enter_user();
    guest.change_sregs(|sregs| sregs.cr3 = root);
    log_writes(&guest, true);
    guest.load_with(code, walk_from(RANGE, LEN));
    guest
}

fn log_writes(guest: &Guest, on: bool) {
    guest.memory.set_dirty_logging(on).unwrap();
    for slot in guest.memory.slots() {
        guest.vm.change_slot(SlotChange::Set(&slot)).unwrap();
    }
}

/// Registers for the guests below: where they write, and how often.
fn walk_from(rbx: u64, len: u64) -> Regs {
    Regs {
        rbx,
        rcx: len / STEP,
        ..Regs::default()
    }
}

/// Writes a byte in every second page of the range, once.
fn once() -> &'static [u8] {
    guest!(
        "2:",
        "mov byte ptr [rbx], 1",
        "add rbx, 0x2000",
        "dec rcx",
        "jnz 2b",
        "mov eax, 0xd0001000",
        "mov [rax], eax"
    )
}

/// The same for ever.
fn for_ever() -> &'static [u8] {
    guest!(
        "2:",
        "mov rbx, 0x40000000",
        "mov rcx, 2048",
        "3:",
        "mov byte ptr [rbx], 1",
        "add rbx, 0x2000",
        "dec rcx",
        "jnz 3b",
        "jmp 2b"
    )
}

fn range_of(memory: &AddressSpace) -> Memslot {
    let slots = memory.slots();
    let found = slots.into_iter().find(|slot| slot.gpa.0 == RANGE);
    found.unwrap()
}

/// Numbers of the pages of the range written since the last call.
fn written(vm: &dyn Vm, memory: &AddressSpace) -> BTreeSet<u64> {
    let slot = range_of(memory);
    let bits = vm.dirty_log(slot.id, slot.len / PAGE_SIZE).unwrap();
    let pages = 0..slot.len / PAGE_SIZE;
    pages.filter(|page| is_set(&bits, *page)).collect()
}

fn is_set(bits: &[u64], page: u64) -> bool {
    let word = bits.get(usize::try_from(page / 64).unwrap());
    word.is_some_and(|word| word >> (page % 64) & 1 == 1)
}

/// The pages that the guests write.
fn every_second() -> BTreeSet<u64> {
    (0..LEN / PAGE_SIZE).step_by(2).collect()
}

#[test]
fn more_pages_than_a_ring_holds_are_named_exactly() {
    each(|place| {
        if !has_rings(place) {
            return;
        }
        let mut guest = guest(place, once());
        for _ in 0..2 {
            guest.finish();
            assert_eq!(written(&*guest.vm, &guest.memory), every_second());
            assert!(written(&*guest.vm, &guest.memory).is_empty());
            guest.load_with(once(), walk_from(RANGE, LEN));
        }
    });
}

#[test]
fn rings_are_emptied_while_the_guest_writes() {
    each(|place| {
        if !has_rings(place) {
            return;
        }
        let guest = guest(place, for_ever()).into_thread();
        guest.thread.vcpu.resume().unwrap();
        let late = Instant::now() + limit(Duration::from_secs(20));
        let mut found = BTreeSet::new();
        // All of it, and so much more that the rings are full again and again.
        for _ in 0..5 {
            let mut round = BTreeSet::new();
            while round != every_second() {
                assert!(Instant::now() < late, "{} pages of a round", round.len());
                thread::sleep(Duration::from_millis(1));
                round.append(&mut written(&*guest.vm, &guest.memory));
            }
            found.append(&mut round);
        }
        assert!(guest.thread.still_runs());
        guest.thread.vcpu.pause().unwrap();
        found.append(&mut written(&*guest.vm, &guest.memory));
        assert_eq!(found, every_second());
        assert!(written(&*guest.vm, &guest.memory).is_empty());
    });
}

#[test]
fn a_slots_number_takes_no_pages_along_to_the_next_slot() {
    each(|place| {
        if !has_rings(place) {
            return;
        }
        let mut guest = guest(place, once());
        guest.finish();
        let slot = range_of(&guest.memory);
        guest.vm.change_slot(SlotChange::Remove(&slot)).unwrap();
        guest.vm.change_slot(SlotChange::Set(&slot)).unwrap();
        assert!(written(&*guest.vm, &guest.memory).is_empty());
        guest.load_with(once(), walk_from(RANGE + LEN / 2, LEN / 2));
        guest.finish();
        let mut upper = every_second();
        upper.retain(|page| *page >= LEN / 2 / PAGE_SIZE);
        assert_eq!(written(&*guest.vm, &guest.memory), upper);
    });
}

#[test]
fn a_ring_of_a_size_that_cannot_be_is_refused_with_those_that_can() {
    each(|place| {
        if !has_rings(place) {
            return;
        }
        for entries in [0, 1, 512, 1025, 1 << 31] {
            let vm = place.engine.create_vm().unwrap();
            let error = vm.use_dirty_ring(entries).unwrap_err();
            assert!(error.to_string().contains("from 1024 to"), "{error}");
        }
    });
}

#[test]
fn rings_come_before_the_first_vcpu() {
    each(|place| {
        let guest = Guest::new(place);
        assert!(guest.vm.use_dirty_ring(ENTRIES).is_err());
    });
}
