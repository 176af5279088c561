//! Rows: stops for a debugger.

use std::time::{Duration, Instant};

use vmlet_vcpu::{
    DebugControl, PendingStep, RunEnd, Vcpu, VcpuThread, WatchLen, Watchpoint,
    x86_64::{MpState, Regs},
};

use crate::harness::{
    CODE, DATA, Guest, Place, Threaded,
    bus::{DONE, EXCEPTION},
    each, limit,
    memory::HANDLERS,
};

const STEP: DebugControl = DebugControl {
    single_step: true,
    breakpoints: [None; 4],
    watchpoints: [None; 4],
};

/// Four instructions of 1, 5, 2 and 2 bytes, then the stop.
fn code() -> &'static [u8] {
    guest!("nop", "mov ecx, 3", "inc ecx", "dec eax", "mov [r15], eax")
}

fn at(place: &Place, user: bool, code: &[u8]) -> Guest {
    let mut guest = Guest::new(place);
    if user {
        guest.enter_user();
    }
    guest.load(code);
    guest
}

fn stop(guest: &mut Guest) -> u64 {
    match guest.run() {
        RunEnd::Debug(stop) => {
            assert_eq!(stop.exception, 1);
            stop.rip - CODE
        }
        other => panic!("{other:?}"),
    }
}

fn steps(guest: &mut Guest) {
    guest.vcpu.set_debug(&STEP).unwrap();
    for offset in [1, 6, 8, 10] {
        assert_eq!(stop(guest), offset);
        let regs = guest.vcpu.regs().unwrap();
        // The trap flag is the engine's own affair.
        assert_eq!((regs.rip - CODE, regs.rflags & 0x100), (offset, 0));
    }
    guest.vcpu.set_debug(&DebugControl::default()).unwrap();
    let regs = guest.finish();
    assert_eq!(regs.rcx, 4);
}

#[test]
fn single_steps_at_cpl0() {
    each(|place| steps(&mut at(place, false, code())));
}

#[test]
fn single_steps_at_cpl3() {
    each(|place| {
        let mut guest = at(place, true, code());
        if place.native() {
            return steps(&mut guest);
        }
        // The trap goes into the guest, whose entry point at CPL 0 is stepped.
        guest.vcpu.set_debug(&STEP).unwrap();
        let RunEnd::Debug(stop) = guest.run() else {
            panic!("no stop")
        };
        assert_eq!(stop.rip, HANDLERS + 16 + 2);
        guest.vcpu.set_debug(&DebugControl::default()).unwrap();
        let found = guest.exception();
        assert_eq!((found.vector, found.rip, found.cs), (1, CODE + 1, 0x33));
    });
}

fn with_breakpoints(guest: &mut Guest) {
    let control = DebugControl {
        breakpoints: [None, Some(CODE + 6), None, Some(CODE + 8)],
        ..DebugControl::default()
    };
    guest.vcpu.set_debug(&control).unwrap();
}

#[test]
fn execution_breakpoints_at_cpl0() {
    each(|place| {
        let mut guest = at(place, false, code());
        with_breakpoints(&mut guest);
        assert_eq!(stop(&mut guest), 6);
        // Before the instruction.
        assert_eq!(guest.vcpu.regs().unwrap().rcx, 3);
        guest.vcpu.set_debug(&DebugControl::default()).unwrap();
        assert_eq!(guest.finish().rcx, 4);
    });
}

#[test]
fn execution_breakpoints_at_cpl3() {
    each(|place| {
        let mut guest = at(place, true, code());
        with_breakpoints(&mut guest);
        if place.native() {
            assert_eq!(stop(&mut guest), 6);
        } else {
            // They never fire.
            assert_eq!(guest.finish().rcx, 4);
        }
    });
}

fn step(vcpu: &VcpuThread) -> RunEnd {
    let limit = limit(Duration::from_secs(20));
    vcpu.step().unwrap().wait(limit).unwrap().expect("no end")
}

/// A vCPU that halted and was paused then: its step waits for an interrupt that nobody sends.
fn waiting(place: &Place) -> (Threaded, PendingStep) {
    let mut guest = Guest::with_irqchip(place);
    guest.load(guest!("hlt", "out 0xf4, al"));
    let guest = guest.into_thread();
    let vcpu = &guest.thread.vcpu;
    vcpu.resume().unwrap();
    let halted = |vcpu: &mut dyn Vcpu| vcpu.mp_state().unwrap() == MpState::Halted;
    let deadline = Instant::now() + limit(Duration::from_secs(20));
    while !vcpu.with(halted).unwrap() {
        assert!(Instant::now() < deadline);
    }
    vcpu.pause().unwrap();
    let step = vcpu.step().unwrap();
    (guest, step)
}

#[test]
fn a_step_that_waits_in_a_halt_makes_way_for_a_pause_and_for_the_end() {
    each(|place| {
        for end in [VcpuThread::pause, VcpuThread::finish] {
            let (guest, mut step) = waiting(place);
            assert_eq!(step.wait(Duration::from_millis(50)).unwrap(), None);
            end(&guest.thread.vcpu).unwrap();
            let limit = limit(Duration::from_secs(20));
            assert_eq!(step.wait(limit).unwrap(), Some(RunEnd::Kicked));
        }
    });
}

#[test]
fn a_step_that_waits_in_a_halt_lets_registers_be_read_and_can_be_given_up() {
    each(|place| {
        let (guest, mut step) = waiting(place);
        let rip = |thread: &VcpuThread| thread.with(|vcpu| vcpu.regs().unwrap().rip).unwrap();
        let before = rip(&guest.thread.vcpu);
        assert_eq!(step.wait(Duration::from_millis(50)).unwrap(), None);
        drop(step);
        assert_eq!(rip(&guest.thread.vcpu), before);
    });
}

#[test]
fn a_step_of_a_paused_vcpu_takes_its_access_along() {
    each(|place| {
        let guest = at(
            place,
            false,
            guest!("mov eax, 7", "out 0x80, al", "inc eax", "out 0xf4, al"),
        );
        let guest = guest.into_thread();
        for offset in [5, 7, 9] {
            let end = step(&guest.thread.vcpu);
            let RunEnd::Debug(stop) = end else {
                panic!("{end:?}")
            };
            assert_eq!(stop.rip - CODE, offset);
        }
        let rax = guest
            .thread
            .vcpu
            .with(|vcpu| vcpu.regs().unwrap().rax)
            .unwrap();
        assert_eq!(rax, 8);
        assert_eq!(step(&guest.thread.vcpu), RunEnd::Stopped(DONE));
    });
}

/// What a debugger's `int3` does without more support: it is the guest's.
#[test]
fn a_software_breakpoint_goes_into_the_guest() {
    each(|place| {
        let mut guest = at(place, true, guest!("int3"));
        assert_eq!(guest.run(), RunEnd::Stopped(EXCEPTION));
        assert_eq!(guest.vcpu.regs().unwrap().rax, 3);
    });
}

/// An interpreting KVM lets watchpoints pass at either CPL.
#[test]
fn data_watchpoints() {
    each(|place| {
        for user in [false, true] {
            let code = guest!(
                "mov ecx, [0x20000]",
                "mov byte ptr [0x20003], 1",
                "mov ecx, [0x20010]",
                "mov [r15], eax"
            );
            let mut guest = at(place, user, code);
            let watch = |at, reads| {
                let len = WatchLen::Four;
                Some(Watchpoint { at, len, reads })
            };
            let control = DebugControl {
                watchpoints: [watch(DATA, false), None, None, watch(DATA + 0x10, true)],
                ..DebugControl::default()
            };
            guest.vcpu.set_debug(&control).unwrap();
            if place.native() {
                // Behind the write, then behind the read.
                let ends = [code.len() as u64 - 3 - 7, code.len() as u64 - 3];
                assert_eq!(ends.map(|_| stop(&mut guest)), ends);
            }
            guest.finish();
        }
    });
}

/// DR0 and DR7 from RAX and RDX, then the lines given.
macro_rules! with_dr0 {
    ($($line:expr),+ $(,)?) => {
        guest!("mov dr0, rax", "mov dr7, rdx", $($line,)+)
    };
}

fn with_registers(place: &Place, code: &[u8], dr0: u64, dr7: u64) -> Guest {
    let mut guest = Guest::new(place);
    let regs = Regs {
        rax: dr0,
        rdx: dr7,
        ..Regs::default()
    };
    guest.load_with(code, regs);
    guest
}

fn hits(guest: &mut Guest) -> u64 {
    guest.vcpu.save().unwrap().debug.dr6 & 0xf
}

/// Intel SDM volume 3, section 19.3.1.2: a trap behind the access.
#[test]
fn the_guests_own_data_breakpoint() {
    each(|place| {
        let code = with_dr0!(
            "mov ecx, [0x20000]",
            "mov byte ptr [0x20002], 1",
            "nop",
            "out 0xf4, al"
        );
        // Four bytes: on writes, then on reads too.
        for (dr7, behind) in [(0xd_0401, 21), (0xf_0401, 13)] {
            let mut guest = with_registers(place, code, DATA, dr7);
            if place.interpreted {
                guest.finish();
                continue;
            }
            let taken = guest.exception();
            assert_eq!((taken.vector, taken.rip), (1, CODE + behind));
            assert_eq!(hits(&mut guest), 1);
        }
    });
}

/// Intel SDM volume 3, section 19.3.1.1: a fault before the instruction, which RF suppresses once.
#[test]
fn the_guests_own_instruction_breakpoint() {
    each(|place| {
        let code = with_dr0!("nop", "out 0xf4, al");
        let mut guest = with_registers(place, code, CODE + 6, 0x401);
        let taken = guest.exception();
        assert_eq!((taken.vector, taken.rip), (1, CODE + 6));
        assert_eq!(hits(&mut guest), 1);
        guest.load_with(
            code,
            Regs {
                rflags: 1 << 16,
                ..Regs::default()
            },
        );
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rip = CODE + 6;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.finish();
    });
}

/// Intel SDM volume 3, section 19.2.4: DR7.GD guards the registers, and opens in the handler.
#[test]
fn guarded_debug_registers_fault_at_a_move() {
    each(|place| {
        let code = with_dr0!("mov rcx, dr6", "out 0xf4, al");
        let mut guest = with_registers(place, code, 0, 0x2400);
        let taken = guest.exception();
        assert_eq!((taken.vector, taken.rip), (1, CODE + 6));
        let debug = guest.vcpu.save().unwrap().debug;
        assert_eq!((debug.dr6 >> 13 & 1, debug.dr7 >> 13 & 1), (1, 0));
    });
}

/// Intel SDM volume 3, section 19.2.2: CR4.DE and the kind "I/O".
#[test]
fn the_guests_own_port_breakpoint() {
    each(|place| {
        let code = with_dr0!("out 0x80, al", "nop", "out 0xf4, al");
        let mut guest = with_registers(place, code, 0x80, 0x2_0401);
        guest.change_sregs(|sregs| sregs.cr4 |= 1 << 3);
        let taken = guest.exception();
        assert_eq!((taken.vector, taken.rip), (1, CODE + 8));
        assert_eq!(guest.bus.seen.len(), 1);
    });
}
