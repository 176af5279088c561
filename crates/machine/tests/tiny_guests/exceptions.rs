//! Rows: exceptions, software interrupts and the ways between privilege levels.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use vmlet_vcpu::{
    RunEnd,
    x86_64::{Regs, msr},
};

use crate::harness::{
    CODE, DATA, Guest, Place, STACK, Taken, USER_STACK, divide_unmasked, each,
    paging::{PRESENT, WRITABLE, entry_of},
    segments,
};

/// Linear, not mapped.
const UNMAPPED: u64 = 0x5000_0000;

fn at_cpl3(place: &Place, code: &[u8]) -> Taken {
    Guest::user(place, code).exception()
}

fn at_cpl0(place: &Place, code: &[u8]) -> Taken {
    let mut guest = Guest::new(place);
    guest.load(code);
    guest.exception()
}

/// What an entry point sees of an exception without error code.
fn taken(vector: u64, rip: u64, user: bool) -> (u64, u64, u64, u64) {
    (vector, 0, rip, if user { 0x33 } else { 0x10 })
}

fn seen(taken: Taken) -> (u64, u64, u64, u64) {
    (taken.vector, taken.code, taken.rip, taken.cs)
}

#[test]
fn cpl3_to_cpl0_by_int3() {
    each(|place| {
        let found = at_cpl3(place, guest!("int3"));
        assert_eq!(seen(found), taken(3, CODE + 1, true));
    });
}

#[test]
fn cpl3_to_cpl0_by_undefined_opcode() {
    each(|place| {
        let found = at_cpl3(place, guest!("nop", "ud2"));
        assert_eq!(seen(found), taken(6, CODE + 1, true));
    });
}

#[test]
fn cpl3_to_cpl0_by_divide_error() {
    each(|place| {
        let found = at_cpl3(place, guest!("xor ecx, ecx", "div ecx"));
        assert_eq!(seen(found), taken(0, CODE + 2, true));
    });
}

#[test]
fn cpl3_to_cpl0_by_page_fault() {
    each(|place| {
        let found = at_cpl3(place, guest!("mov eax, 0x50000123", "mov [rax], eax"));
        assert_eq!(
            (found.vector, found.code, found.cr2),
            (14, 6, UNMAPPED + 0x123)
        );
        // Present, but a supervisor's.
        let mut guest = Guest::user(place, guest!("mov eax, [0x20000]"));
        let entry = entry_of(&guest.memory, DATA);
        guest.write(entry, &(DATA | PRESENT | WRITABLE).to_le_bytes());
        let found = guest.exception();
        assert_eq!((found.vector, found.code, found.cr2), (14, 5, DATA));
    });
}

#[test]
fn cpl3_to_cpl0_by_general_protection() {
    each(|place| {
        let found = at_cpl3(place, guest!("hlt"));
        assert_eq!(seen(found), taken(13, CODE, true));
        let found = at_cpl3(place, guest!("mov eax, 0x13", "mov ds, eax"));
        assert_eq!((found.vector, found.code), (13, 0x10));
    });
}

#[test]
fn cpl3_to_cpl0_by_simd_exception() {
    each(|place| {
        let code = guest!(
            "mov dword ptr [rsp - 8], 0x1d80",
            "ldmxcsr [rsp - 8]",
            "mov eax, 1",
            "cvtsi2ss xmm0, eax",
            "xorps xmm1, xmm1",
            "divss xmm0, xmm1",
            "stmxcsr [rsp - 8]",
            "mov ebx, [rsp - 8]",
            "mov [r15], eax"
        );
        if processor_raises_simd_exceptions() {
            let found = at_cpl3(place, code);
            assert_eq!((found.vector, found.cs), (19, 0x33));
        } else {
            // An emulated processor that only sets the flag.
            let regs = Guest::user(place, code).finish();
            assert_eq!(regs.rbx, 0x1d84);
        }
    });
}

/// Set in a process of its own that divides by zero with the exception unmasked.
const DIVIDE: &str = "VMLET_TEST_DIVIDES_BY_ZERO";

/// Runs the test below in such a process and looks at how that ends.
fn processor_raises_simd_exceptions() -> bool {
    let name = "exceptions::a_simd_exception_in_a_process_is_sigfpe_or_none_is_raised";
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(DIVIDE, "1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(8), "{status}");
    !status.success()
}

#[test]
fn a_simd_exception_in_a_process_is_sigfpe_or_none_is_raised() {
    if std::env::var_os(DIVIDE).is_some() {
        divide_unmasked();
    } else {
        processor_raises_simd_exceptions();
    }
}

#[test]
fn cpl3_to_cpl0_by_trap_flag() {
    each(|place| {
        let code = guest!("pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop");
        let found = at_cpl3(place, code);
        assert_eq!(seen(found), taken(1, CODE + code.len() as u64 - 1, true));
    });
}

#[test]
fn cpl3_to_cpl0_by_nmi() {
    each(|place| {
        let mut guest = Guest::user(place, guest!("2: jmp 2b"));
        guest.vcpu.inject_nmi().unwrap();
        assert_eq!(seen(guest.exception()), taken(2, CODE, true));
    });
}

#[test]
fn cpl3_to_cpl0_by_kvm_interrupt() {
    each(|place| {
        let mut guest = Guest::user(place, guest!("2: jmp 2b"));
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rflags |= 1 << 9;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.vcpu.inject_interrupt(0x41).unwrap();
        assert_eq!(seen(guest.exception()), taken(0x41, CODE, true));
    });
}

#[test]
fn cpl3_to_cpl0_takes_the_stack_of_the_task_state_segment_and_iretq_leads_back() {
    each(|place| {
        let code = guest!(
            "mov ecx, 3",
            "2: ud2",
            "loop 2b",
            "mov rdx, rsp",
            "mov [r15], eax"
        );
        let mut guest = Guest::user(place, code);
        segments::set_gate(&guest.memory, 6, DATA, 0);
        let handler = guest!("mov r8, rsp", "add qword ptr [rsp], 2", "inc rbx", "iretq");
        guest.write(DATA, handler);
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.r8, regs.rdx), (3, STACK - 40, USER_STACK));
    });
}

/// A guest whose `syscall` target at `DATA` is a supervisor's page.
fn with_syscall(place: &Place) -> Guest {
    let mut guest = Guest::new(place);
    // SCE, and NXE so that page faults tell fetches.
    guest.change_sregs(|sregs| sregs.efer |= 1 | 1 << 11);
    guest.vcpu.set_msr(msr::STAR, 0x0023_0010 << 32).unwrap();
    guest.vcpu.set_msr(msr::LSTAR, DATA).unwrap();
    guest.vcpu.set_msr(msr::SFMASK, 0x400).unwrap();
    let entry = entry_of(&guest.memory, DATA);
    guest.write(entry, &(DATA | PRESENT | WRITABLE).to_le_bytes());
    let target = guest!("mov rbx, cs", "pushfq", "pop rdx", "out 0xf4, al");
    guest.write(DATA, target);
    guest
}

#[test]
fn cpl3_syscall() {
    each(|place| {
        let mut guest = with_syscall(place);
        guest.enter_user();
        guest.load(guest!("std", "syscall"));
        if place.native() {
            // The target has the caller's stack.
            let regs = guest.finish();
            assert_eq!((regs.rbx, regs.rcx, regs.rdx), (0x10, CODE + 3, 2));
            assert_eq!(regs.r11 & 0x402, 0x402);
        } else {
            // It arrives at the target, but still at CPL 3.
            let found = guest.exception();
            assert_eq!((found.vector, found.code), (14, 0x15));
            assert_eq!((found.cr2, found.rip, found.cs), (DATA, DATA, 0x33));
        }
    });
}

#[test]
fn cpl0_syscall() {
    each(|place| {
        let mut guest = with_syscall(place);
        guest.load(guest!("syscall"));
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.rcx), (0x10, CODE + 2));
    });
}

#[test]
fn cpl3_int_n_through_a_gate_of_dpl_3() {
    each(|place| {
        for (vector, code) in [(0x30, guest!("int 0x30")), (0x80, guest!("int 0x80"))] {
            let found = seen(at_cpl3(place, code));
            if place.native() {
                assert_eq!(found, taken(vector, CODE + 2, true));
            } else {
                assert_eq!(found, taken(6, CODE, true));
            }
        }
    });
}

#[test]
fn cpl0_int_n() {
    each(|place| {
        for (vector, code) in [(0x30, guest!("int 0x30")), (0x80, guest!("int 0x80"))] {
            if place.native() {
                assert_eq!(seen(at_cpl0(place, code)), taken(vector, CODE + 2, false));
            } else {
                let mut guest = Guest::new(place);
                guest.load(code);
                assert_eq!(guest.lacking(code), CODE);
            }
        }
    });
}

#[test]
fn cpl0_int3() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("int3"));
        if place.native() {
            assert_eq!(seen(guest.exception()), taken(3, CODE + 1, false));
        } else {
            assert_eq!(guest.lacking(&[0xcc]), CODE);
        }
    });
}

#[test]
fn cpl0_iretq_lretq_and_far_jump_stay_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        let code = guest!(
            "mov rax, rsp",
            "push 0x18",
            "push rax",
            "push 0x202",
            "push 0x10",
            "lea rax, [rip + 2f]",
            "push rax",
            "iretq",
            "2: pushfq",
            "pop rbx",
            "cli",
            "push 0x10",
            "lea rax, [rip + 3f]",
            "push rax",
            ".byte 0x48, 0xcb",
            "3: lea rax, [rip + 4f]",
            "mov [rsp - 16], rax",
            "mov dword ptr [rsp - 12], 0x10",
            ".byte 0xff, 0x6c, 0x24, 0xf0",
            "4: mov rdx, cs",
            "mov rcx, rsp",
            "out 0xf4, al"
        );
        guest.load(code);
        let regs = guest.finish();
        assert_eq!((regs.rbx & 0x200, regs.rcx, regs.rdx), (0x200, STACK, 0x10));
    });
}

#[test]
fn cpl0_undefined_opcode() {
    each(|place| {
        let found = at_cpl0(place, guest!("nop", "ud2"));
        assert_eq!(seen(found), taken(6, CODE + 1, false));
    });
}

#[test]
fn cpl0_divide_error() {
    each(|place| {
        let found = at_cpl0(place, guest!("xor ecx, ecx", "div ecx"));
        assert_eq!(seen(found), taken(0, CODE + 2, false));
    });
}

#[test]
fn cpl0_page_faults_of_reads_writes_and_fetches() {
    each(|place| {
        let codes = [
            (guest!("mov eax, 0x50000000", "mov ecx, [rax]"), 0),
            (guest!("mov eax, 0x50000000", "mov [rax], ecx"), 2),
            (guest!("mov eax, 0x50000000", "jmp rax"), 0x10),
        ];
        for (code, error) in codes {
            let mut guest = Guest::new(place);
            guest.change_sregs(|sregs| sregs.efer |= 1 << 11);
            guest.load(code);
            let found = guest.exception();
            assert_eq!((found.vector, found.code, found.cr2), (14, error, UNMAPPED));
            assert_eq!(found.cs, 0x10);
        }
    });
}

#[test]
fn cpl0_general_protection() {
    each(|place| {
        let code = guest!("movabs rax, 0x8000000000000000", "mov [rax], eax");
        assert_eq!(seen(at_cpl0(place, code)), taken(13, CODE + 10, false));
    });
}

#[test]
fn cpl0_trap_flag() {
    each(|place| {
        let code = guest!("pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop");
        let found = at_cpl0(place, code);
        assert_eq!(seen(found), taken(1, CODE + code.len() as u64 - 1, false));
    });
}

#[test]
fn an_exception_without_a_table_to_enter_is_a_triple_fault() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.change_sregs(|sregs| sregs.idt.limit = 0);
        guest.load(guest!("ud2"));
        assert_eq!(guest.run(), RunEnd::Shutdown);
        let mut guest = Guest::user(place, guest!("ud2"));
        guest.change_sregs(|sregs| sregs.idt.limit = 0);
        assert_eq!(guest.run(), RunEnd::Shutdown);
    });
}

/// Intel SDM volume 3, section 7.15, "Interrupt 17": CR0.AM, RFLAGS.AC and CPL 3 together.
#[test]
fn a_misaligned_operand_where_alignment_is_checked() {
    each(|place| {
        let codes = [
            guest!("mov eax, [0x20001]", "mov [r15], eax"),
            guest!("mov word ptr [0x20001], ax", "mov [r15], eax"),
            guest!("add qword ptr [0x20004], 1", "mov [r15], eax"),
            guest!("mov rsp, 0x5ffff", "push rax", "mov [r15], eax"),
            guest!("mov eax, [0x20ffe]", "mov [r15], eax"),
        ];
        for code in codes {
            for (user, am, ac) in [(true, 1, 1), (true, 1, 0), (true, 0, 1), (false, 1, 1)] {
                let mut guest = Guest::new(place);
                if user {
                    guest.enter_user();
                }
                guest.change_sregs(|sregs| sregs.cr0 |= am << 18);
                let rflags = ac << 18;
                guest.load_with(
                    code,
                    Regs {
                        rflags,
                        ..Regs::default()
                    },
                );
                // An interpreting KVM runs CPL 3 with the host's CR0.
                if user && ac == 1 && (am == 1 || place.interpreted) {
                    let found = guest.exception();
                    assert_eq!((found.vector, found.code), (17, 0));
                } else {
                    guest.finish();
                }
            }
        }
    });
}

/// The alignment counts before a page that is missing, and aligned operands pass.
#[test]
fn aligned_operands_pass_where_alignment_is_checked() {
    each(|place| {
        let checked = |code: &'static [u8]| {
            let mut guest = Guest::user(place, code);
            guest.change_sregs(|sregs| sregs.cr0 |= 1 << 18);
            let mut regs = guest.vcpu.regs().unwrap();
            regs.rflags |= 1 << 18;
            guest.vcpu.set_regs(&regs).unwrap();
            guest
        };
        let found = checked(guest!("mov eax, 0x50000001", "mov eax, [rax]")).exception();
        assert_eq!((found.vector, found.rip), (17, CODE + 5));
        checked(guest!(
            "mov eax, [0x20004]",
            "mov [0x20008], rax",
            "push rax",
            "call 2f",
            "2: pop rcx",
            "mov cl, [0x20003]",
            "mov [r15], eax"
        ))
        .finish();
    });
}
