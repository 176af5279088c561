//! Rows: a vCPU's state, read, set, and moved to another VM.

use std::time::Duration;

use vmlet_memory::Gpa;
use vmlet_vcpu::{
    EngineError, RunEnd,
    x86_64::{MpState, Regs, VcpuState},
};

use crate::harness::{CODE, DATA, Guest, Place, each, limit, memory::RAM_SIZE};

/// CPUID.1:EDX: memory-type range registers.
const MTRR: u32 = 1 << 12;

fn saved(guest: &mut Guest) -> VcpuState {
    guest.vcpu.save().unwrap()
}

/// A fresh VM with the memory and the state of `guest`.
fn moved(guest: &mut Guest, irqchip: bool) -> Guest {
    let state = saved(guest);
    let place = guest.place.clone();
    let mut twin = if irqchip {
        Guest::with_irqchip(&place)
    } else {
        Guest::new(&place)
    };
    let mut memory = vec![0; usize::try_from(RAM_SIZE).unwrap()];
    guest.memory.read(Gpa(0), &mut memory).unwrap();
    twin.memory.load(Gpa(0), &memory).unwrap();
    twin.vcpu.restore(&state).unwrap();
    twin
}

#[test]
fn registers_after_an_end_are_those_the_engine_keeps() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("mov eax, 0x1234", "mov r9, -1", "stc", "hlt"));
        assert_eq!(guest.run(), RunEnd::Halt);
        let (regs, sregs) = (guest.vcpu.regs().unwrap(), guest.vcpu.sregs().unwrap());
        assert_eq!((regs.rax, regs.r9, regs.rflags & 1), (0x1234, u64::MAX, 1));
        let state = saved(&mut guest);
        assert_eq!((state.regs, state.sregs), (regs, sregs));
    });
}

#[test]
fn all_general_registers_are_set_and_read() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("xchg rax, r15", "xchg rbx, rbp", "not rdi", "hlt"));
        let set = Regs {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rsp: 0x7_0000,
            rbp: 8,
            r8: 9,
            r9: 10,
            r10: 11,
            r11: 12,
            r12: 13,
            r13: 14,
            r14: 15,
            r15: 16,
            rip: CODE,
            rflags: 0x2,
        };
        guest.vcpu.set_regs(&set).unwrap();
        assert_eq!(guest.vcpu.regs().unwrap(), set);
        guest.run();
        let rflags = guest.vcpu.regs().unwrap().rflags;
        let then = Regs {
            rax: 16,
            r15: 1,
            rbx: 8,
            rbp: 2,
            rdi: !6,
            rip: CODE + 9,
            rflags,
            ..set
        };
        assert_eq!(guest.vcpu.regs().unwrap(), then);
    });
}

/// Each part of the state is changed, restored and read back.
#[test]
fn every_part_of_the_state_is_set_and_read() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("hlt"));
        guest.enable_xsave(7);
        let mut state = saved(&mut guest);
        state.regs.r12 = 0x1212;
        state.sregs.cr2 = 0xc2;
        state.sregs.gs.base = 0x6000;
        if !state.xcrs.is_empty() {
            state.xcrs = vec![(0, 3)];
        }
        // XMM0 lies at byte 160, and bit 1 of XSTATE_BV says that it counts.
        state.xsave[160..176].fill(0x5a);
        state.xsave[512] |= 2;
        (state.debug.db, state.debug.dr7) = ([1, 2, 3, 4], 0x455);
        state.events.nmi_masked = true;
        state.events.interrupt = Some(0x44);
        for (index, value) in &mut state.msrs {
            if *index == 0xc000_0082 {
                *value = 0x1_2345;
            }
        }
        guest.vcpu.restore(&state).unwrap();
        let mut found = saved(&mut guest);
        assert_eq!((found.regs, found.xcrs), (state.regs, state.xcrs));
        assert_eq!((found.sregs.cr2, found.sregs.gs.base), (0xc2, 0x6000));
        assert_eq!(found.xsave[160..176], [0x5a; 16]);
        assert_eq!((found.debug, found.events), (state.debug, state.events));
        assert!(found.msrs.contains(&(0xc000_0082, 0x1_2345)));
        // Leaf 0xd tells the size of the area, which XCR0 decides.
        found.cpuid.replace(0xd, []);
        state.cpuid.replace(0xd, []);
        assert_eq!(found.cpuid, state.cpuid);
    });
}

#[test]
fn the_run_state_is_set_and_read() {
    each(|place| {
        run_state(place);
        if place.is_soft() {
            run_state(&place.counting());
        }
    });
}

fn run_state(place: &Place) {
    let mut guest = Guest::with_irqchip(place);
    guest.load(guest!("mov [r15], eax"));
    for state in [MpState::Halted, MpState::Uninitialized, MpState::Runnable] {
        guest.vcpu.set_mp_state(state).unwrap();
        assert_eq!(guest.vcpu.mp_state().unwrap(), state);
    }
    guest.vcpu.set_mp_state(MpState::Halted).unwrap();
    let halted = guest.run_for(limit(Duration::from_millis(20)));
    assert_eq!(halted, (RunEnd::Kicked, true));
    guest.vcpu.set_mp_state(MpState::Runnable).unwrap();
    guest.finish();
}

#[test]
fn a_loop_at_cpl3_goes_on_in_a_fresh_vm() {
    each(|place| {
        let code = guest!(
            "mov eax, 3",
            "movq xmm0, rax",
            "fninit",
            "fld1",
            "mov ebx, 0x20000",
            "2: inc qword ptr [rbx]",
            "paddq xmm1, xmm0",
            "cmp dword ptr [rbx + 8], 0",
            "je 2b",
            "movq rcx, xmm1",
            "fistp qword ptr [rbx + 16]",
            "mov [r15], eax"
        );
        let mut guest = Guest::user(place, code);
        guest.let_interrupts_in();
        let (end, _) = guest.run_for(limit(Duration::from_millis(10)));
        assert_eq!(end, RunEnd::Kicked);
        let mut twin = moved(&mut guest, false);
        let before = twin.word(DATA);
        // A busy host may not let it run for a while.
        let goes_on = (0..500).any(|_| {
            let (end, _) = twin.run_for(limit(Duration::from_millis(10)));
            assert_eq!(end, RunEnd::Kicked);
            twin.word(DATA) > before
        });
        assert!(goes_on, "{before}");
        let mut third = moved(&mut twin, false);
        third.write(DATA + 8, &[1]);
        let regs = third.finish();
        let count = third.word(DATA);
        assert!(count > guest.word(DATA), "{count}");
        // The counts in memory, in an XMM register and on the x87 stack agree.
        assert_eq!((regs.rcx, third.word(DATA + 16)), (count * 3, 1));
    });
}

#[test]
fn an_interrupt_on_its_way_moves_along() {
    each(|place| {
        let mut guest = Guest::user(place, guest!("2: jmp 2b"));
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rflags |= 1 << 9;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.vcpu.inject_interrupt(0x46).unwrap();
        assert_eq!(saved(&mut guest).events.interrupt, Some(0x46));
        assert_eq!(moved(&mut guest, false).exception().vector, 0x46);
    });
}

#[test]
fn a_non_maskable_interrupt_on_its_way_moves_along() {
    each(|place| {
        let mut guest = Guest::user(place, guest!("2: jmp 2b"));
        guest.vcpu.inject_nmi().unwrap();
        let events = saved(&mut guest).events;
        assert!(events.nmi_pending || events.nmi_injected, "{events:?}");
        assert_eq!(moved(&mut guest, false).exception().vector, 2);
    });
}

#[test]
fn a_local_apic_moves_along_with_its_timer() {
    each(|place| {
        let mut guest = Guest::with_irqchip(place);
        // A periodic timer that has been programmed but cannot interrupt yet.
        guest.load(guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov dword ptr [rbx + 0x80], 0x10",
            "mov dword ptr [rbx + 0x320], 0x20047",
            "mov dword ptr [rbx + 0x3e0], 0xb",
            "mov dword ptr [rbx + 0x380], 50000",
            "mov [r15], eax",
            "sti",
            "2: hlt",
            "jmp 2b"
        ));
        guest.finish();
        let lapic = saved(&mut guest).lapic;
        assert_eq!(lapic[0x80], 0x10);
        assert_eq!(lapic[0x320..0x323], [0x47, 0, 2]);
        let mut twin = moved(&mut guest, true);
        assert_eq!(saved(&mut twin).lapic[0x320..0x323], [0x47, 0, 2]);
        assert_eq!(twin.exception().vector, 0x47);
    });
}

#[test]
fn a_halted_vcpu_moves_along() {
    each(|place| {
        let mut guest = Guest::with_irqchip(place);
        guest.load(guest!("cli", "hlt", "mov ebx, 1", "mov [r15], eax"));
        guest.run_for(limit(Duration::from_millis(10)));
        let mut twin = moved(&mut guest, true);
        assert_eq!(twin.vcpu.mp_state().unwrap(), MpState::Halted);
        twin.vcpu.inject_nmi().unwrap();
        assert_eq!(twin.exception().vector, 2);
    });
}

#[test]
fn a_state_with_what_the_engine_lacks_is_refused_whole() {
    each(|place: &Place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("hlt"));
        let before = saved(&mut guest);
        let mut state = before.clone();
        state.regs.rax = 99;
        state.msrs.push((0x4bad_0000, 1));
        let refused = guest.vcpu.restore(&state).unwrap_err();
        let EngineError::State { missing } = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(missing.len(), 1);
        assert!(missing[0].name.contains("0x4bad0000"));
        assert_eq!(guest.vcpu.regs().unwrap(), before.regs);
    });
}

#[test]
fn the_guests_clock_is_set_and_goes_on() {
    each(|place| {
        let guest = Guest::new(place);
        guest.vm.set_clock(5_000_000_000).unwrap();
        let now = guest.vm.clock().unwrap();
        assert!((5_000_000_000..10_000_000_000).contains(&now), "{now}");
    });
}

#[test]
fn memory_types_move_along() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("hlt"));
        let set = [
            (0x200, 0x8000_0006),
            (0x201, 0xf_8000_0800),
            (0x250, 6),
            (0x2ff, 0xc06),
        ];
        let supported = place.engine.supported_cpuid().unwrap();
        let mtrrs = supported.get(1, 0).unwrap().edx & MTRR != 0;
        for (index, value) in set {
            let done = guest.vcpu.set_msr(index, value);
            if !mtrrs {
                assert!(matches!(done, Err(EngineError::Msr { .. })), "{done:?}");
                return;
            }
            done.unwrap();
        }
        let twin = moved(&mut guest, false);
        assert_eq!(
            set.map(|(index, _)| (index, twin.vcpu.msr(index).unwrap())),
            set
        );
    });
}
