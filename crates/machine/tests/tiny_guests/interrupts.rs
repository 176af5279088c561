//! Rows: local APIC timers, messages between APICs, messages and eventfds from outside.

use std::time::Duration;

use vmlet_vcpu::{MsiMessage, MsiRoute, RunEnd, SpaceId, x86_64::Regs};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::harness::{CODE, DATA, Guest, Place, bus::Seen, each, limit, segments};

/// Writes to this port are the guest's word that it is ready.
const READY: u64 = 0x80;
/// A message for the APIC with id 0, vector 0x51.
const MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_0000,
    data: 0x51,
};

fn with_irqchip(place: &Place, code: &[u8]) -> Guest {
    let mut guest = Guest::with_irqchip(place);
    guest.load(code);
    guest
}

/// Does `action` whenever the guest says that it is ready.
fn when_ready(guest: &mut Guest, mut action: impl FnMut() + Send + 'static) {
    guest.bus.hook = Some(Box::new(move |seen| {
        if matches!(seen, Seen::Write(SpaceId::PORT, READY, _)) {
            action();
        }
        None
    }));
}

/// Enables the APIC, says so and waits with interrupts on.
fn waiting() -> &'static [u8] {
    guest!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "out 0x80, al",
        "sti",
        "2: hlt",
        "jmp 2b"
    )
}

#[test]
fn xapic_timer_wakes_hlt() {
    each(|place| {
        let code = guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov dword ptr [rbx + 0x320], 0x40",
            "mov dword ptr [rbx + 0x3e0], 0xb",
            "mov dword ptr [rbx + 0x380], 10000",
            "sti",
            "2: hlt",
            "jmp 2b"
        );
        assert_eq!(with_irqchip(place, code).exception().vector, 0x40);
    });
}

/// x2APIC on, then software-enabled.
macro_rules! x2apic {
    ($($line:expr),+ $(,)?) => {
        guest!(
            "mov ecx, 0x1b",
            "rdmsr",
            "or eax, 0x400",
            "wrmsr",
            "xor edx, edx",
            "mov ecx, 0x80f",
            "mov eax, 0x1ff",
            "wrmsr",
            $($line,)+
            "sti",
            "2: hlt",
            "jmp 2b"
        )
    };
}

#[test]
fn x2apic_timer_wakes_hlt() {
    each(|place| {
        let code = x2apic!(
            "mov ecx, 0x832",
            "mov eax, 0x41",
            "wrmsr",
            "mov ecx, 0x83e",
            "mov eax, 0xb",
            "wrmsr",
            "mov ecx, 0x838",
            "mov eax, 10000",
            "wrmsr"
        );
        assert_eq!(with_irqchip(place, code).exception().vector, 0x41);
    });
}

#[test]
fn x2apic_self_interrupt() {
    each(|place| {
        let code = x2apic!("mov ecx, 0x83f", "mov eax, 0x42", "wrmsr");
        assert_eq!(with_irqchip(place, code).exception().vector, 0x42);
    });
}

#[test]
fn tsc_deadline_timer_wakes_hlt() {
    each(|place| {
        let code = x2apic!(
            "mov ecx, 0x832",
            "mov eax, 0x40043",
            "wrmsr",
            "rdtsc",
            "add eax, 2000000",
            "adc edx, 0",
            "mov ecx, 0x6e0",
            "wrmsr"
        );
        assert_eq!(with_irqchip(place, code).exception().vector, 0x43);
    });
}

#[test]
fn an_interrupt_breaks_into_a_spin_at_cpl3() {
    each(|place| {
        let code = guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov dword ptr [rbx + 0x320], 0x44",
            "mov dword ptr [rbx + 0x3e0], 0xb",
            "mov dword ptr [rbx + 0x380], 100000",
            "push 0x2b",
            "push 0x60000",
            "push 0x202",
            "push 0x33",
            "lea rax, [rip + 2f]",
            "push rax",
            "iretq",
            "2: jmp 2b"
        );
        let mut guest = with_irqchip(place, code);
        let found = guest.exception();
        assert_eq!((found.vector, found.cs), (0x44, 0x33));
        assert_eq!(found.rip, CODE + code.len() as u64 - 2);
    });
}

#[test]
fn a_message_wakes_hlt() {
    each(|place| {
        let mut guest = with_irqchip(place, waiting());
        let vm = guest.vm.clone();
        when_ready(&mut guest, move || assert!(vm.signal_msi(MESSAGE).unwrap()));
        assert_eq!(guest.exception().vector, 0x51);
    });
}

#[test]
fn a_message_nobody_takes_is_no_error() {
    each(|place| {
        let guest = with_irqchip(place, waiting());
        // The APIC is not enabled yet; APIC 9 does not exist.
        assert!(!guest.vm.signal_msi(MESSAGE).unwrap());
        let nobody = MsiMessage {
            address: 0xfee0_9000,
            data: 0x51,
        };
        assert!(!guest.vm.signal_msi(nobody).unwrap());
    });
}

#[test]
fn an_irqfd_sends_its_routes_message() {
    each(|place| {
        let mut guest = with_irqchip(place, waiting());
        let fd = EventFd::new(EFD_NONBLOCK).unwrap();
        let route = |gsi, vector| MsiRoute {
            gsi,
            message: MsiMessage {
                data: vector,
                ..MESSAGE
            },
        };
        guest
            .vm
            .set_routes(&[route(24, 0x61), route(25, 0x62)])
            .unwrap();
        guest.vm.attach_irqfd(&fd, 25).unwrap();
        let remote = fd.try_clone().unwrap();
        when_ready(&mut guest, move || remote.write(1).unwrap());
        assert_eq!(guest.exception().vector, 0x62);
        guest.bus.hook = None;
        // A changed route counts for an irqfd that stays.
        guest.vm.set_routes(&[route(25, 0x63)]).unwrap();
        fd.write(1).unwrap();
        guest.load(waiting());
        end_of_interrupt(&mut guest);
        assert_eq!(guest.exception().vector, 0x63);
        guest.vm.detach_irqfd(&fd, 25).unwrap();
        fd.write(1).unwrap();
        guest.load(waiting());
        end_of_interrupt(&mut guest);
        assert_eq!(
            guest.run_for(limit(Duration::from_millis(50))),
            (RunEnd::Kicked, true)
        );
    });
}

/// Ends the interrupt in service, whose entry point has stopped the run, before the loaded code.
fn end_of_interrupt(guest: &mut Guest) {
    let regs = guest.vcpu.regs().unwrap();
    guest.write(
        DATA,
        guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xb0], 0",
            "jmp rcx"
        ),
    );
    let start = Regs {
        rip: DATA,
        rcx: CODE,
        ..regs
    };
    guest.vcpu.set_regs(&start).unwrap();
}

#[test]
fn interrupts_come_one_after_another_by_priority() {
    each(|place| {
        let code = guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "out 0x80, al",
            "sti",
            "2: cmp r9d, 2",
            "jb 2b",
            "cli",
            "mov [r15], eax"
        );
        let mut guest = with_irqchip(place, code);
        let handlers = [
            (
                0x52,
                guest!(
                    "shl r8, 8",
                    "or r8, 0x52",
                    "inc r9",
                    "mov dword ptr [rbx + 0xb0], 0",
                    "iretq"
                ),
            ),
            (
                0x71,
                guest!(
                    "shl r8, 8",
                    "or r8, 0x71",
                    "inc r9",
                    "mov dword ptr [rbx + 0xb0], 0",
                    "iretq"
                ),
            ),
        ];
        for (index, (vector, handler)) in (0..).zip(handlers) {
            guest.write(DATA + index * 0x100, handler);
            segments::set_gate(&guest.memory, vector, DATA + index * 0x100, 0);
        }
        let vm = guest.vm.clone();
        when_ready(&mut guest, move || {
            for data in [0x52, 0x71] {
                vm.signal_msi(MsiMessage { data, ..MESSAGE }).unwrap();
            }
        });
        assert_eq!(guest.finish().r8, 0x7152);
    });
}

#[test]
fn a_non_maskable_interrupt_comes_with_interrupts_off() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("cli", "nop", "2: jmp 2b"));
        guest.vcpu.inject_nmi().unwrap();
        let found = guest.exception();
        assert_eq!((found.vector, found.cs), (2, 0x10));
    });
}

#[test]
fn an_interrupt_from_outside_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("2: jmp 2b"));
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rflags |= 1 << 9;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.vcpu.inject_interrupt(0x45).unwrap();
        let found = guest.exception();
        assert_eq!((found.vector, found.rip, found.cs), (0x45, CODE, 0x10));
    });
}

#[test]
fn the_interrupt_window_opens_behind_the_shadow_of_sti() {
    each(|place| {
        let mut guest = Guest::new(place);
        let code = guest!("mov ecx, 3", "2: loop 2b", "sti", "inc edx", "2: jmp 2b");
        guest.load(code);
        guest.vcpu.set_interrupt_window(true).unwrap();
        assert_eq!(guest.run(), RunEnd::InterruptWindow);
        let regs = guest.vcpu.regs().unwrap();
        assert_eq!((regs.rip, regs.rcx), (CODE + code.len() as u64 - 2, 0));
        assert_ne!(regs.rflags & 1 << 9, 0);
        guest.vcpu.set_interrupt_window(false).unwrap();
        guest.vcpu.inject_interrupt(0x45).unwrap();
        let found = guest.exception();
        assert_eq!((found.vector, found.rip), (0x45, regs.rip));
    });
}
