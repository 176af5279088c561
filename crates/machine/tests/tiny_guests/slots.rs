//! Rows: memory slots: read-only, above 4 GiB, private copies, gone under a running guest.

use std::{sync::Arc, thread, time::Duration};

use vmlet_memory::{Backing, Gpa, Mapping, Ram, RegionKind};
use vmlet_vcpu::{EngineError, RunEnd, SlotChange};

use crate::harness::{
    DATA, Guest, MMIO, Place,
    bus::DONE,
    each,
    guest::Options,
    limit,
    memory::RAM_SIZE,
    paging::{ALL, Tables, entry_of},
};

const FOUR_GIB: u64 = 1 << 32;
/// Bytes of a slot behind the standard memory.
const EXTRA: u64 = 0x4000;

fn ram(len: u64, backing: Backing) -> Arc<Ram> {
    let ram = Ram::new(len, backing).unwrap();
    ram.write(0, &0x1234_5678u64.to_le_bytes()).unwrap();
    ram
}

/// A guest with `more` behind its memory.
fn with(place: &Place, user: bool, more: Mapping, code: &[u8]) -> Guest {
    let more = vec![more];
    let mut guest = Guest::with(
        place,
        Options {
            more,
            ..Options::default()
        },
    );
    if user {
        guest.enter_user();
    }
    guest.load(code);
    guest
}

fn extra() -> Mapping {
    Mapping::ram(Gpa(RAM_SIZE), ram(EXTRA, Backing::Anon))
}

#[test]
fn a_read_only_slot_is_read_directly_and_its_writes_reach_the_board() {
    each(|place| {
        for user in [false, true] {
            let rom = Mapping {
                readonly: true,
                kind: RegionKind::Rom,
                ..extra()
            };
            let code = guest!(
                "mov ebx, 0x400000",
                "mov rax, [rbx]",
                "mov dword ptr [rbx + 8], 0x55",
                "mov rcx, [rbx + 8]",
                "mov [r15], eax"
            );
            let mut guest = with(place, user, rom, code);
            let regs = guest.finish();
            assert_eq!((regs.rax, regs.rcx), (0x1234_5678, 0));
            assert_eq!(guest.bus.writes(), [(RAM_SIZE + 8, vec![0x55, 0, 0, 0])]);
            assert!(guest.bus.reads().is_empty());
        }
    });
}

#[test]
fn memory_above_4_gib() {
    each(|place| {
        for user in [false, true] {
            let high = Mapping::ram(Gpa(FOUR_GIB), ram(2 << 20, Backing::Anon));
            let code = guest!(
                "movabs rbx, 0x100000000",
                "mov rax, [rbx]",
                "mov [rbx + 0x1ffff8], rax",
                "mov [r15], eax"
            );
            let mut guest = with(place, user, high, code);
            let mut tables = Tables::new(&guest.memory, 0x18_0000);
            for page in [0, FOUR_GIB, MMIO] {
                tables.large(page, page, ALL);
            }
            let root = tables.root;
            guest.change_sregs(|sregs| sregs.cr3 = root);
            assert_eq!(guest.finish().rax, 0x1234_5678);
            assert_eq!(guest.word(FOUR_GIB + 0x1f_fff8), 0x1234_5678);
        }
    });
}

#[test]
fn a_slot_removed_between_two_runs_is_no_memory_any_more() {
    each(|place| {
        for user in [false, true] {
            let code = guest!(
                "mov ebx, 0x400000",
                "mov rax, [rbx]",
                "mov [r15], eax",
                "mov rcx, [rbx]",
                "mov [r15], eax"
            );
            let mut guest = with(place, user, extra(), code);
            assert_eq!(guest.finish().rax, 0x1234_5678);
            remove_extra(&guest);
            assert_eq!(guest.finish().rcx, u64::MAX);
            assert_eq!(guest.bus.reads(), [(RAM_SIZE, 8)]);
        }
    });
}

fn remove_extra(guest: &Guest) {
    let slots = guest.memory.slots();
    let slot = slots.iter().find(|slot| slot.gpa == Gpa(RAM_SIZE)).unwrap();
    guest.vm.change_slot(SlotChange::Remove(slot)).unwrap();
}

#[test]
fn a_slot_removed_under_a_running_guest_is_no_memory_any_more() {
    each(|place| {
        // Runs until the read changes.
        let code = guest!(
            "mov ebx, 0x400000",
            "2: mov eax, [rbx]",
            "cmp eax, 0x12345678",
            "je 2b",
            "mov [r15], eax"
        );
        let guest = with(place, true, extra(), code).into_thread();
        guest.thread.vcpu.resume().unwrap();
        thread::sleep(limit(Duration::from_millis(10)));
        assert!(guest.thread.still_runs());
        let slots = guest.memory.slots();
        let slot = slots.iter().find(|slot| slot.gpa == Gpa(RAM_SIZE)).unwrap();
        guest.vm.change_slot(SlotChange::Remove(slot)).unwrap();
        assert_eq!(guest.thread.end(), RunEnd::Stopped(DONE));
        let rax = guest
            .thread
            .vcpu
            .with(|vcpu| vcpu.regs().unwrap().rax)
            .unwrap();
        assert_eq!(rax, 0xffff_ffff);
    });
}

#[test]
fn a_slot_set_again_shows_other_memory() {
    each(|place| {
        let code = guest!("mov rax, [0x400000]", "mov [r15], eax");
        let mut guest = with(place, true, extra(), code);
        assert_eq!(guest.finish().rax, 0x1234_5678);
        remove_extra(&guest);
        let other = ram(EXTRA, Backing::Memfd);
        other.write(0, &[0x77; 8]).unwrap();
        let slots = guest.memory.slots();
        let mut slot = *slots.iter().find(|slot| slot.gpa == Gpa(RAM_SIZE)).unwrap();
        slot.hva = other.hva();
        guest.vm.change_slot(SlotChange::Set(&slot)).unwrap();
        guest.load(code);
        assert_eq!(guest.finish().rax, 0x7777_7777_7777_7777);
        // The slot goes before the memory that this test owns.
        guest.vm.change_slot(SlotChange::Remove(&slot)).unwrap();
    });
}

#[test]
fn guest_writes_to_a_private_file_stay_private() {
    each(|place| {
        let path = std::env::temp_dir().join(format!("vmlet-private-{}", std::process::id()));
        std::fs::write(&path, [0x42; 0x4000]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let backing = Backing::FilePrivate {
            file,
            trusted: true,
        };
        let private = Mapping::ram(Gpa(RAM_SIZE), Ram::new(EXTRA, backing).unwrap());
        let code = guest!(
            "mov ebx, 0x400000",
            "movzx eax, byte ptr [rbx + 0x1000]",
            "mov byte ptr [rbx + 0x1000], 0x43",
            "mov [r15], eax"
        );
        let mut guest = with(place, true, private, code);
        assert_eq!(guest.finish().rax, 0x42);
        assert_eq!(guest.read(RAM_SIZE + 0x1000), [0x43]);
        assert!(
            std::fs::read(&path)
                .unwrap()
                .iter()
                .all(|byte| *byte == 0x42)
        );
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn a_slot_over_another_is_refused_with_its_numbers() {
    each(|place| {
        let guest = Guest::new(place);
        let mut slot = guest.memory.slots()[0];
        slot.id.0 += 1;
        let refused = guest.vm.change_slot(SlotChange::Set(&slot)).unwrap_err();
        let EngineError::Slot {
            slot: id,
            gpa,
            size,
            errno,
            ..
        } = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!((id, gpa, size, errno), (slot.id.0, 0, RAM_SIZE, 17));
    });
}

/// An interpreting KVM keeps shadows of the guest's tables and does not see this.
#[test]
fn tables_rewritten_by_the_host_between_two_runs() {
    each(|place| {
        let code = guest!("mov rax, [0x20000]", "mov [r15], eax");
        let mut guest = Guest::user(place, code);
        guest.write(DATA, &0x1111u64.to_le_bytes());
        guest.write(DATA + 0x1000, &0x2222u64.to_le_bytes());
        assert_eq!(guest.finish().rax, 0x1111);
        let entry = entry_of(&guest.memory, DATA);
        guest.write(entry, &((DATA + 0x1000) | ALL).to_le_bytes());
        // A new root is the guest's word that tables have changed.
        guest.change_sregs(|_| ());
        guest.load(code);
        let seen = guest.finish().rax;
        let stale = seen == 0x1111 && place.shadows();
        assert!(seen == 0x2222 || stale, "{seen:#x}");
    });
}
