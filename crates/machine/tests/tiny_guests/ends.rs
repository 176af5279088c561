//! Every way a run can end, and that no access is left half done.

use std::{fs::File, io::Write};

use vmlet_memory::{Backing, Gpa, Mapping, Ram};
use vmlet_vcpu::{
    FatalExit, RunEnd, SpaceId, StopReason,
    x86_64::{Regs, Segment, Table},
};

use crate::harness::{
    CODE, DATA, Guest,
    bus::{DONE, Seen},
    each,
    guest::Options,
    memory::RAM_SIZE,
    segments,
};

#[test]
fn a_halt_without_a_local_apic_ends_the_run() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("cli", "hlt"));
        assert_eq!(guest.run(), RunEnd::Halt);
        assert_eq!(guest.vcpu.regs().unwrap().rip, CODE + 2);
    });
}

#[test]
fn a_triple_fault_ends_the_run() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.change_sregs(|sregs| sregs.idt.limit = 0);
        guest.load(guest!("ud2"));
        assert_eq!(guest.run(), RunEnd::Shutdown);
    });
}

#[test]
fn a_stop_comes_after_the_write_is_complete() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!(
            "out 0xf4, al",
            "mov ebx, 5",
            "mov [r15], eax",
            "mov ebx, 6",
            "out 0xf4, al"
        ));
        for (rbx, offset) in [(0, 2), (5, 10), (6, 17)] {
            let regs = guest.finish();
            assert_eq!((regs.rbx, regs.rip), (rbx, CODE + offset));
        }
    });
}

#[test]
fn a_stop_comes_after_the_read_is_complete() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.bus.bytes.insert((SpaceId::PORT, 0xf4), 0x5a);
        guest.load(guest!("in al, 0xf4", "inc al", "hlt"));
        let regs = guest.finish();
        assert_eq!((regs.rax, regs.rip), (0x5a, CODE + 2));
        assert_eq!(guest.run(), RunEnd::Halt);
        assert_eq!(guest.vcpu.regs().unwrap().rax, 0x5b);
    });
}

/// The second half of a store that the end of memory splits.
#[test]
fn a_stop_leaves_no_half_of_a_split_access_behind() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("movups xmm0, [rip]", "movups [r15], xmm0", "hlt"));
        assert_eq!(guest.run(), RunEnd::Stopped(DONE));
        let second = guest.bus.writes();
        assert_eq!(second.len(), 1, "{second:?}");
        assert_eq!(guest.vcpu.regs().unwrap().rip, CODE + 11);
        assert_eq!(guest.run(), RunEnd::Halt);
    });
}

#[test]
fn registers_changed_after_a_stop_count() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!(
            "out 0xf4, al",
            "mov ebx, 1",
            "hlt",
            "mov ebx, 2",
            "hlt"
        ));
        let mut regs = guest.finish();
        regs.rip += 6;
        guest.vcpu.set_regs(&regs).unwrap();
        assert_eq!(guest.run(), RunEnd::Halt);
        assert_eq!(guest.vcpu.regs().unwrap().rbx, 2);
    });
}

#[test]
fn every_reason_of_a_stop_arrives() {
    each(|place| {
        let reasons = [
            StopReason::Reset {
                source: "exception",
            },
            DONE,
        ];
        let mut guest = Guest::new(place);
        guest.load(guest!("out 0xf5, al", "out 0xf4, al"));
        for reason in reasons {
            assert_eq!(guest.run(), RunEnd::Stopped(reason));
        }
    });
}

#[test]
fn an_instruction_the_engine_lacks_is_named_by_place_and_bytes() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("nop", "fld1", "hlt"));
        if place.native() {
            assert_eq!(guest.run(), RunEnd::Halt);
        } else {
            assert_eq!(guest.lacking(&[0xd9, 0xe8]), CODE + 1);
        }
    });
}

/// A task switch, a task gate, a linked task, virtual-8086 mode: 32-bit code that asks for them.
#[test]
fn modes_the_engine_lacks_are_named() {
    each(|place| {
        let codes = [
            (
                guest!(".code32", ".byte 0xea, 0, 0, 0, 0, 0x50, 0"),
                "jmp far, a task switch",
            ),
            (
                guest!(".code32", ".byte 0x9a, 0, 0, 0, 0, 0x50, 0"),
                "call far, a task switch",
            ),
            (
                guest!(".code32", "int3"),
                "an interrupt through a task gate",
            ),
            (
                guest!(
                    ".code32",
                    "pushfd",
                    "or word ptr [esp], 0x4000",
                    "popfd",
                    "iretd"
                ),
                "iret, a switch back to the linked task",
            ),
            (
                guest!(
                    ".code32",
                    "push 0",
                    "push 0",
                    "push 0",
                    "push 0",
                    "push 0",
                    "push 0x6000",
                    "push 0x20002",
                    "push 0",
                    "push 0",
                    "iretd"
                ),
                "iret, to virtual-8086 mode",
            ),
        ];
        for (code, name) in codes {
            let mut guest = Guest::new(place);
            let task_gate = 0x0000_8500_0050_0000u64;
            guest.write(DATA + 3 * 8, &task_gate.to_le_bytes());
            guest.change_sregs(|sregs| {
                *sregs = sregs.enter_flat32(segments::gdt());
                sregs.cs = Segment::flat(segments::KERNEL_CS32, 0xc09b);
                sregs.idt = Table {
                    base: DATA,
                    limit: 0xff,
                };
            });
            guest.load(code);
            let end = guest.run();
            let RunEnd::Fatal(FatalExit::Instruction { name: found, .. }) = end else {
                panic!("{name}: {end:?}")
            };
            assert_eq!(found, Some(name));
        }
    });
}

/// What only a set state could lead to is refused with a name.
#[test]
fn states_of_modes_the_engine_lacks_are_refused() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("out 0xf4, al"));
        let la57 = 1 << 12;
        let offered = crate::harness::guest::offered(place, (7, 2, 16));
        guest.load_with(
            guest!("mov cr4, rax", "out 0xf4, al"),
            Regs {
                rax: guest.vcpu.sregs().unwrap().cr4 | la57,
                ..Regs::default()
            },
        );
        if !offered {
            // Not offered, so a reserved bit.
            assert_eq!(guest.exception().vector, 13);
        }
        if !place.is_soft() {
            return;
        }
        let mut state = guest.vcpu.save().unwrap();
        state.sregs.cr4 |= la57;
        let refused = guest.vcpu.restore(&state).unwrap_err().to_string();
        assert!(refused.contains("LA57"), "{refused}");
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rflags |= 1 << 17;
        guest.vcpu.set_regs(&regs).unwrap();
        let end = guest.run();
        let RunEnd::Fatal(FatalExit::Other { detail }) = end else {
            panic!("{end:?}")
        };
        assert!(detail.contains("virtual-8086"), "{detail}");
    });
}

/// A code segment that is both 64-bit and 32-bit is illegal (AMD APM volume 2, section 15.5.1).
#[test]
fn a_state_the_processor_refuses() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("hlt"));
        guest.change_sregs(|sregs| sregs.cs = Segment::flat(segments::KERNEL_CS, 0xe09b));
        let end = guest.run();
        if place.native() {
            assert!(
                matches!(end, RunEnd::Fatal(FatalExit::EntryRefused { .. })),
                "{end:?}"
            );
        } else {
            // An interpreter has no processor to ask.
            assert_eq!(end, RunEnd::Halt);
        }
    });
}

/// Memory at the end of the standard one whose file has been cut short.
fn cut_short() -> Mapping {
    let path = std::env::temp_dir().join(format!("vmlet-tiny-{:?}", std::thread::current().id()));
    let mut options = File::options();
    let mut file = options
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(&[1; 0x2000]).unwrap();
    let backing = Backing::FilePrivate {
        file: file.try_clone().unwrap(),
        trusted: true,
    };
    let ram = Ram::new(0x2000, backing).unwrap();
    file.set_len(0).unwrap();
    Mapping::ram(Gpa(RAM_SIZE), ram)
}

#[test]
fn memory_the_host_cannot_provide() {
    each(|place| {
        for user in [false, true] {
            let more = vec![cut_short()];
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
            guest.load(guest!(
                "mov eax, 0x400000",
                "mov ebx, [rax]",
                "mov [r15], eax"
            ));
            let end = guest.run();
            if place.native() || user {
                let fatal = matches!(
                    end,
                    RunEnd::Fatal(FatalExit::Memory { .. } | FatalExit::Other { .. })
                );
                assert!(fatal, "{end:?}");
            } else {
                // KVM's interpreter takes it for an access that no slot backs.
                assert_eq!(
                    (end, guest.bus.reads()),
                    (RunEnd::Stopped(DONE), vec![(RAM_SIZE, 4)])
                );
            }
        }
    });
}

#[test]
fn a_string_write_arrives_in_order() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(DATA, b"hello");
        guest.load(guest!(
            "cld",
            "mov esi, 0x20000",
            "mov ecx, 5",
            "mov edx, 0x3f8",
            "rep outsb",
            "hlt"
        ));
        assert_eq!(guest.run(), RunEnd::Halt);
        let sent = guest.bus.seen.iter().flat_map(|seen| match seen {
            Seen::Outs(0x3f8, 1, data) | Seen::Write(SpaceId::PORT, 0x3f8, data) => data.clone(),
            other => panic!("{other:?}"),
        });
        assert_eq!(sent.collect::<Vec<u8>>(), b"hello");
    });
}
