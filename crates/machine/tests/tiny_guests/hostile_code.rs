//! Rows: code that changes, that nobody could have meant, or that is not there.

use std::{
    thread,
    time::{Duration, Instant},
};

use vmlet_vcpu::{FatalExit, RunEnd, x86_64::Regs};

use crate::harness::{
    CODE, DATA, Guest, each, limit,
    memory::RAM_SIZE,
    paging::{ALL, Tables, entry_of},
};

/// The first page behind that of [`CODE`].
const NEXT: u64 = CODE + 0x1000;
const PREFIX: u8 = 0x66;
const NOP: u8 = 0x90;
const MOV_EAX: u8 = 0xb8;

/// Points the vCPU to `rip`.
fn start_at(guest: &mut Guest, rip: u64) {
    guest.load(&[NOP]);
    let mut regs = guest.vcpu.regs().unwrap();
    regs.rip = rip;
    guest.vcpu.set_regs(&regs).unwrap();
}

#[test]
fn code_that_runs_off_the_end_of_memory() {
    each(|place| {
        for (from, code) in [(4, &[NOP; 4][..]), (2, &[MOV_EAX, 1])] {
            let mut guest = Guest::new(place);
            guest.write(RAM_SIZE - from, code);
            start_at(&mut guest, RAM_SIZE - from);
            let end = guest.run_briefly();
            if place.is_soft() {
                let gpa = RAM_SIZE;
                assert_eq!(end, RunEnd::Fatal(FatalExit::Memory { gpa }));
            }
            assert_ne!(guest.vcpu.regs().unwrap().rip, RAM_SIZE + 1, "{end:?}");
        }
    });
}

/// Intel SDM volume 2, section 2.3.11: an instruction has at most 15 bytes.
#[test]
fn an_instruction_of_sixteen_bytes() {
    each(|place| {
        let mut longest = vec![PREFIX; 14];
        longest.push(NOP);
        longest.extend(guest!("mov [r15], eax"));
        Guest::user(place, &longest).finish();
        longest.insert(0, PREFIX);
        let found = Guest::user(place, &longest).exception();
        assert_eq!((found.vector, found.code, found.rip), (13, 0, CODE));
    });
}

/// The prefixes reach the end of the page, and there is none behind it.
#[test]
fn prefixes_up_to_a_page_that_is_missing() {
    each(|place| {
        for count in [14u8, 15] {
            let mut guest = Guest::user(place, &[NOP]);
            guest.write(entry_of(&guest.memory, NEXT), &[0; 8]);
            let start = NEXT - u64::from(count);
            guest.write(start, &vec![PREFIX; count.into()]);
            start_at(&mut guest, start);
            let found = guest.exception();
            assert_eq!(found.rip, start);
            if count == 14 {
                assert_eq!((found.vector, found.cr2), (14, NEXT));
            } else {
                assert!(matches!(found.vector, 13 | 14), "{found:?}");
            }
        }
    });
}

#[test]
fn an_instruction_whose_second_page_is_missing() {
    each(|place| {
        let mut guest = Guest::user(place, &[NOP]);
        guest.write(entry_of(&guest.memory, NEXT), &[0; 8]);
        guest.write(NEXT - 3, &[MOV_EAX, 1, 2]);
        start_at(&mut guest, NEXT - 3);
        let found = guest.exception();
        assert_eq!((found.vector, found.cr2, found.rip), (14, NEXT, NEXT - 3));
    });
}

/// `mov eax, imm32` whose operand lies in the next page, rewritten before each of ten turns.
#[test]
fn code_rewritten_by_itself_across_a_page() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(NEXT - 1, &[MOV_EAX, 0, 0, 0, 0]);
        guest.write(NEXT + 4, guest!("ret"));
        let regs = Regs {
            rbx: NEXT - 1,
            ..Regs::default()
        };
        let code = guest!(
            "2: inc dword ptr [rbx + 1]",
            "call rbx",
            "add ecx, eax",
            "cmp eax, 10",
            "jb 2b",
            "out 0xf4, al"
        );
        guest.load_with(code, regs);
        assert_eq!(guest.finish().rcx, 55);
    });
}

/// The same through another linear address of the same page.
#[test]
fn code_rewritten_through_another_address() {
    each(|place| {
        const ALIAS: u64 = 0x5000_0000;
        let mut guest = Guest::new(place);
        let mut tables = Tables::new(&guest.memory, crate::harness::memory::TABLES);
        // A fresh page table of its own, where no standard one lies.
        tables.skip_to(0x18_0000);
        tables.small(ALIAS, NEXT, ALL);
        guest.write(NEXT, &[MOV_EAX, 0, 0, 0, 0, 0xc3]);
        let regs = Regs {
            rbx: NEXT,
            rdx: ALIAS,
            ..Regs::default()
        };
        let code = guest!(
            "2: inc dword ptr [rdx + 1]",
            "call rbx",
            "add ecx, eax",
            "cmp eax, 10",
            "jb 2b",
            "out 0xf4, al"
        );
        guest.load_with(code, regs);
        assert_eq!(guest.finish().rcx, 55);
    });
}

#[test]
fn an_instruction_that_rewrites_the_next() {
    each(|place| {
        // The operand of the second `mov`, then its opcode: `mov ecx` becomes `mov edx`.
        let code = guest!(
            "mov byte ptr [rip + 1], 7",
            "mov eax, 1",
            "mov byte ptr [rip], 0xba",
            "mov ecx, 5",
            "mov [r15], eax"
        );
        for user in [false, true] {
            let mut guest = Guest::new(place);
            if user {
                guest.enter_user();
            }
            guest.load(code);
            let regs = guest.finish();
            assert_eq!((regs.rax, regs.rcx, regs.rdx), (7, 0, 5));
        }
    });
}

/// How soon a guest sees what the host has written.
const PROMPT: Duration = Duration::from_secs(2);

/// A loop that stores the operand at `operand`, which the host rewrites.
fn is_seen(guest: Guest, operand: u64) {
    let guest = guest.into_thread();
    guest.thread.vcpu.resume().unwrap();
    for version in 1..=50u8 {
        guest
            .memory
            .write(vmlet_memory::Gpa(operand), &[version])
            .unwrap();
        let since = Instant::now();
        while guest.memory.load_u64(vmlet_memory::Gpa(DATA)) != Some(version.into()) {
            assert!(since.elapsed() < limit(PROMPT), "version {version}");
            thread::yield_now();
        }
    }
    assert!(guest.thread.still_runs());
}

#[test]
fn code_rewritten_by_the_host_while_it_runs() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("2: mov eax, 0", "mov [0x20000], rax", "jmp 2b"));
        is_seen(guest, CODE + 1);
    });
}

#[test]
fn code_across_a_page_rewritten_by_the_host_while_it_runs() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(
            NEXT - 1,
            guest!("2: mov eax, 0", "mov [0x20000], rax", "jmp 2b"),
        );
        start_at(&mut guest, NEXT - 1);
        is_seen(guest, NEXT);
    });
}

/// Entry points into a field of `nop` and `ret`: each begins a block of its own, and all of them
/// would take 300 MiB.
#[test]
fn ever_new_code_takes_bounded_memory() {
    each(|place| {
        const FIELD: u64 = 0x20_0000;
        const FIELD_LEN: usize = 0x4_0000;
        let mut guest = Guest::new(place);
        let row = [[NOP; 63].as_slice(), &[0xc3]].concat();
        guest.write(FIELD, &row.repeat(FIELD_LEN / 64));
        let regs = Regs {
            rbx: FIELD,
            rdx: FIELD + FIELD_LEN as u64,
            ..Regs::default()
        };
        let code = guest!(
            "2: call rbx",
            "inc rbx",
            "cmp rbx, rdx",
            "jb 2b",
            "out 0xf4, al"
        );
        let before = resident();
        guest.load_with(code, regs);
        guest.finish();
        let grown = resident().saturating_sub(before) >> 20;
        assert!(grown < 160, "{grown} MiB more");
    });
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
