//! Rows: descriptor tables that are not there, and faults without end.

use vmlet_vcpu::{RunEnd, x86_64::Table};

use crate::harness::{
    CODE, Guest, MMIO, Place,
    bus::{DONE, EXCEPTION},
    each,
    memory::{IDT, TSS},
    segments::set_gate,
};

/// Linear, not mapped.
const UNMAPPED: u64 = 0x5000_0000;
/// Byte 5 of a gate that is present and leaves interrupts as they are.
const TRAP_GATE: u8 = 0x8f;
const NOT_CANONICAL: u64 = 0x8000_0000_0000_0000;
/// Code of a handler.
const HANDLER: u64 = 0x2_4000;
/// Top of the stack of handlers that have one of their own.
const STACK1: u64 = 0x5_0000;

#[test]
fn a_selector_beyond_the_table() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("mov eax, 0xffc8", "mov ds, eax"));
        let found = guest.exception();
        assert_eq!(
            (found.vector, found.code, found.rip),
            (13, 0xffc8, CODE + 5)
        );
    });
}

/// Intel SDM volume 3, section 5.7: the processor's own read of a descriptor faults like a
/// supervisor's.
#[test]
fn a_descriptor_table_that_is_not_mapped() {
    each(|place| {
        let mut guest = Guest::new(place);
        // The exception's own read of the table must find one: the IDT's code segment is loaded
        // from it, so the fault doubles and ends in a shutdown.
        guest.change_sregs(|sregs| sregs.gdt.base = UNMAPPED);
        guest.load(guest!("mov eax, 0x18", "mov ds, eax", "out 0xf4, al"));
        assert_eq!(guest.run_briefly(), RunEnd::Shutdown);
    });
}

#[test]
fn interrupt_tables_where_nothing_is() {
    each(|place| {
        for base in [UNMAPPED, MMIO, NOT_CANONICAL] {
            let mut guest = Guest::new(place);
            guest.change_sregs(|sregs| sregs.idt = Table { base, limit: 0xfff });
            guest.load(guest!("ud2", "out 0xf4, al"));
            let end = guest.run_briefly();
            if place.is_soft() {
                assert_eq!(end, RunEnd::Shutdown, "{base:#x}");
            }
            assert_ne!(end, RunEnd::Stopped(DONE));
        }
    });
}

#[test]
fn a_task_state_segment_that_is_not_mapped() {
    each(|place| {
        let mut guest = Guest::user(place, guest!("int3"));
        guest.change_sregs(|sregs| sregs.tr.base = UNMAPPED);
        assert_eq!(guest.run_briefly(), RunEnd::Shutdown);
    });
}

#[test]
fn a_handler_or_a_stack_that_is_not_canonical() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("mov rsp, rbx", "ud2"));
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rbx = NOT_CANONICAL;
        guest.vcpu.set_regs(&regs).unwrap();
        assert_eq!(guest.run_briefly(), RunEnd::Shutdown);
        let mut guest = Guest::new(place);
        set_gate(&guest.memory, 6, NOT_CANONICAL, 0);
        guest.load(guest!("ud2"));
        let found = guest.exception();
        // Intel's processors look before they enter, others fail to fetch there.
        let entered = found.rip == NOT_CANONICAL && !place.is_soft();
        assert!(
            found.vector == 13 && (found.rip == CODE || entered),
            "{found:?}"
        );
    });
}

/// A guest whose handlers of `vectors` start with a fresh stack, at `handler`.
fn with_own_stack(place: &Place, vectors: &[u64], handler: u64) -> Guest {
    prepared(Guest::new(place), vectors, handler)
}

fn prepared(guest: Guest, vectors: &[u64], handler: u64) -> Guest {
    guest.write(TSS + 0x24, &STACK1.to_le_bytes());
    for vector in vectors {
        set_gate(&guest.memory, *vector, handler, 0);
        // A stack of its own, and a gate that leaves interrupts on.
        guest.write(IDT + vector * 16 + 4, &[1, TRAP_GATE]);
    }
    guest
}

#[test]
fn a_handler_that_faults_as_it_starts_can_be_kicked() {
    each(|place| {
        let mut guest = with_own_stack(place, &[6], HANDLER);
        guest.write(HANDLER, guest!("ud2"));
        guest.load(guest!("ud2"));
        guest.let_interrupts_in();
        assert_eq!(guest.run_briefly(), RunEnd::Kicked);
    });
}

/// The guest does nothing but fault, with interrupts on.
fn timer_among_faults(place: &Place) {
    let guest = Guest::with_irqchip(place);
    let mut guest = prepared(guest, &[6], HANDLER);
    guest.write(HANDLER, guest!("ud2"));
    guest.load(guest!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x320], 0x40",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x380], 100000",
        "sti",
        "ud2"
    ));
    if place.is_soft() {
        assert_eq!(guest.exception().vector, 0x40);
        return;
    }
    // KVM reflects such faults itself and need not let an interrupt in between two of them.
    let end = guest.run_briefly();
    assert!(
        matches!(end, RunEnd::Kicked | RunEnd::Stopped(EXCEPTION)),
        "{end:?}"
    );
}

#[test]
fn a_timer_interrupts_a_loop_of_faults() {
    each(|place| {
        timer_among_faults(place);
        if place.is_soft() {
            timer_among_faults(&place.counting());
        }
    });
}

#[test]
fn a_handler_that_is_not_mapped_can_be_kicked() {
    each(|place| {
        let mut guest = with_own_stack(place, &[14], UNMAPPED);
        guest.load(guest!("mov eax, 0x50000000", "jmp rax"));
        guest.let_interrupts_in();
        assert_eq!(guest.run_briefly(), RunEnd::Kicked);
    });
}

/// Each page fault finds no gate and doubles; the handler of the double fault makes the next.
#[test]
fn double_faults_without_end_can_be_kicked() {
    each(|place| {
        let mut guest = with_own_stack(place, &[8], HANDLER);
        guest.write(IDT + 14 * 16 + 5, &[0]);
        let code = guest!("mov eax, 0x50000000", "mov ecx, [rax]");
        guest.write(HANDLER, code);
        guest.load(code);
        guest.let_interrupts_in();
        assert_eq!(guest.run_briefly(), RunEnd::Kicked);
    });
}

#[test]
fn a_fault_while_a_double_fault_is_delivered_shuts_down() {
    each(|place| {
        let mut guest = with_own_stack(place, &[8], HANDLER);
        guest.write(TSS + 0x24, &UNMAPPED.to_le_bytes());
        guest.write(IDT + 14 * 16 + 5, &[0]);
        guest.load(guest!("mov eax, 0x50000000", "mov ecx, [rax]"));
        assert_eq!(guest.run_briefly(), RunEnd::Shutdown);
    });
}
