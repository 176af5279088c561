//! Rows: the modes a guest can be in and the ways between them.

use vmlet_memory::Gpa;
use vmlet_vcpu::{
    RunEnd, SpaceId,
    x86_64::{Regs, Segment, Table, msr},
};

use crate::harness::{
    CODE, DATA, Guest, USER_STACK,
    bus::Seen,
    each,
    memory::GDT,
    paging::{ALL, Tables},
    segments,
};

const PORT: SpaceId = SpaceId::PORT;

/// A guest in real mode, segments at 0, code at 0x7000 so that 16-bit offsets reach it.
fn real_mode(guest: &mut Guest, code: &[u8]) {
    guest.memory.load(Gpa(0x7000), code).unwrap();
    guest.change_sregs(|sregs| {
        (sregs.cr0, sregs.cr4, sregs.efer) = (0x10, 0, 0);
        sregs.idt = Table {
            base: 0,
            limit: 0x3ff,
        };
        *sregs = sregs.enter_real();
    });
    let regs = Regs {
        rip: 0x7000,
        rsp: 0x6000,
        rflags: 2,
        ..Regs::default()
    };
    guest.vcpu.set_regs(&regs).unwrap();
}

#[test]
fn real_mode_out_rep_stos_cpuid() {
    each(|place| {
        let mut guest = Guest::new(place);
        let code = guest!(
            ".code16",
            "mov al, 0x5a",
            "out 0x80, al",
            "mov di, 0x5000",
            "mov cx, 7",
            "rep stosb",
            "xor eax, eax",
            "cpuid",
            "out 0xf4, al"
        );
        real_mode(&mut guest, code);
        let regs = guest.finish();
        assert_eq!(guest.bus.seen, [Seen::Write(PORT, 0x80, vec![0x5a])]);
        assert_eq!(
            guest.read(0x5000),
            [0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0]
        );
        let vendor =
            [regs.rbx, regs.rdx, regs.rcx].map(|r| u32::try_from(r).unwrap().to_le_bytes());
        let supported = place.engine.supported_cpuid().unwrap();
        assert_eq!(vendor.concat(), supported.vendor().as_bytes());
    });
}

#[test]
fn real_mode_int_n_through_the_vector_table() {
    each(|place| {
        let mut guest = Guest::new(place);
        // Vector 0x21 leads to 0000:7100, which doubles AX and returns.
        guest.write(0x21 * 4, &[0x00, 0x71, 0, 0]);
        guest.write(0x7100, guest!(".code16", "add ax, ax", "iret"));
        let code = guest!(
            ".code16",
            "mov ax, 0x1234",
            "int 0x21",
            "inc ax",
            "out 0xf4, al"
        );
        real_mode(&mut guest, code);
        assert_eq!(guest.finish().rax & 0xffff, 0x2469);
    });
}

fn flat32(guest: &mut Guest, code: &[u8]) {
    guest.change_sregs(|sregs| *sregs = sregs.enter_flat32(segments::gdt()));
    guest.load(code);
    let cs = Segment::flat(segments::KERNEL_CS32, 0xc09b);
    guest.change_sregs(|sregs| sregs.cs = cs);
}

#[test]
fn flat32_without_paging() {
    each(|place| {
        let mut guest = Guest::new(place);
        let code = guest!(
            ".code32",
            "mov eax, 0xfffffff0",
            "add eax, 0x20",
            "adc ebx, 0",
            "push eax",
            "pop ecx",
            "mov [0x20000], ecx",
            "out 0xf4, al"
        );
        flat32(&mut guest, code);
        let regs = guest.finish();
        assert_eq!((regs.rax, regs.rbx), (0x10, 1));
        assert_eq!(guest.word(DATA), 0x10);
    });
}

#[test]
fn flat32_int3() {
    each(|place| {
        let mut guest = Guest::new(place);
        // A 32-bit interrupt gate for vector 3, in a table of its own.
        let gate = 0x1000 | u64::from(segments::KERNEL_CS32) << 16 | 0x8e << 40 | 2 << 48;
        guest.write(0x2_2018, &gate.to_le_bytes());
        guest.write(
            0x2_1000,
            guest!(".code32", "mov eax, 0x333", "out 0xf4, al"),
        );
        flat32(&mut guest, guest!(".code32", "int3"));
        guest.change_sregs(|sregs| {
            sregs.idt = Table {
                base: 0x2_2000,
                limit: 0x3f,
            };
        });
        if place.native() {
            assert_eq!(guest.finish().rax, 0x333);
        } else {
            assert_eq!(guest.lacking(&[0xcc]), CODE);
        }
    });
}

/// Turns paging on in 32-bit mode (`pae`: three-level tables) and reads through a page that is
/// mapped elsewhere.
fn flat32_with_paging_reads_its_page(pae: bool) {
    each(|place| {
        let mut guest = Guest::new(place);
        // 0x20_0000 linear leads to 0x2_0000 physical.
        let entry = |at: u64, value: u64, size: usize| {
            guest.write(at, &value.to_le_bytes()[..size]);
        };
        if pae {
            entry(0x18_0000, 0x18_1001, 8);
            entry(0x18_1000, 0x18_2007, 8);
            entry(0x18_1008, 0x18_3007, 8);
            (0..512).for_each(|page| entry(0x18_2000 + page * 8, page << 12 | 7, 8));
            entry(0x18_3000, DATA | 7, 8);
        } else {
            entry(0x18_0000, 0x18_1007, 4);
            (0..1024).for_each(|page| entry(0x18_1000 + page * 4, page << 12 | 7, 4));
            entry(0x18_1000 + 512 * 4, DATA | 7, 4);
        }
        guest.write(DATA, &0x600d_0da7u32.to_le_bytes());
        let code = guest!(
            ".code32",
            "mov eax, 0x180000",
            "mov cr3, eax",
            "mov eax, cr4",
            "or eax, ebp",
            "mov cr4, eax",
            "mov eax, cr0",
            "or eax, 0x80000000",
            "mov cr0, eax",
            "mov eax, [0x200000]",
            "out 0xf4, al"
        );
        flat32(&mut guest, code);
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rbp = u64::from(pae) << 5;
        guest.vcpu.set_regs(&regs).unwrap();
        if place.native() {
            assert_eq!(guest.finish().rax, 0x600d_0da7);
        } else {
            assert_eq!(guest.run(), RunEnd::Shutdown);
        }
    });
}

#[test]
fn flat32_with_paging() {
    flat32_with_paging_reads_its_page(false);
}

#[test]
fn flat32_with_pae_paging() {
    flat32_with_paging_reads_its_page(true);
}

#[test]
fn guest_driven_switch_from_flat32_to_64_bit() {
    each(|place| {
        let mut guest = Guest::new(place);
        let cr3 = guest.vcpu.sregs().unwrap().cr3;
        assert_eq!(cr3, 0x10_0000);
        let code = guest!(
            ".code32",
            "mov eax, 0x100000",
            "mov cr3, eax",
            "mov eax, cr4",
            "or eax, 0x20",
            "mov cr4, eax",
            "mov ecx, 0xc0000080",
            "rdmsr",
            "or eax, 0x100",
            "wrmsr",
            "mov eax, cr0",
            "or eax, 0x80000000",
            "mov cr0, eax",
            ".byte 0xea",
            ".long 0x10000 + 2f - 98b",
            ".word 0x10",
            "2:",
            ".code64",
            "movabs rax, 0x123456789abcdef0",
            "mov rbx, rax",
            "mov ecx, 0xc0000080",
            "rdmsr",
            "out 0xf4, al"
        );
        flat32(&mut guest, code);
        let regs = guest.finish();
        assert_eq!(regs.rbx, 0x1234_5678_9abc_def0);
        assert_eq!(regs.rax & 0x500, 0x500);
    });
}

#[test]
fn cpl0_64_bit_with_identity_tables() {
    each(|place| {
        let mut guest = Guest::new(place);
        let code = guest!(
            "lea rax, [rip]",
            "2:",
            "mov rbx, cs",
            "movabs rcx, 0x8000000000000001",
            "rol rcx, 1",
            "out 0xf4, al"
        );
        guest.load(code);
        let regs = guest.finish();
        assert_eq!((regs.rax, regs.rbx, regs.rcx), (CODE + 7, 0x10, 3));
    });
}

#[test]
fn cpl0_64_bit_in_the_high_half() {
    each(|place| {
        for index in [256u64, 272] {
            let high = 0xffff_0000_0000_0000 | index << 39;
            let mut guest = Guest::new(place);
            let mut tables = Tables::new(&guest.memory, 0x18_0000);
            tables.large(0, 0, ALL);
            tables.large(high, 0, ALL);
            let root = tables.root;
            guest.change_sregs(|sregs| sregs.cr3 = root);
            let code = guest!("lea rax, [rip]", "push rax", "pop rbx", "out 0xf4, al");
            guest.load(code);
            let mut regs = guest.vcpu.regs().unwrap();
            regs.rip += high;
            regs.rsp += high;
            guest.vcpu.set_regs(&regs).unwrap();
            let end = guest.finish();
            assert_eq!((end.rax, end.rbx), (high + CODE + 7, high + CODE + 7));
        }
    });
}

/// Reports CS, and a sum that only 64-bit registers hold, through memory no slot backs.
fn user_code() -> &'static [u8] {
    guest!(
        "mov rbx, cs",
        "movabs rcx, 0xffffffff",
        "inc rcx",
        "mov eax, 0xd0001000",
        "mov [rax], eax"
    )
}

#[test]
fn cpl3_64_bit_entered_by_set_sregs() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.enter_user();
        guest.load(user_code());
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.rcx), (0x33, 1 << 32));
        assert_eq!(guest.vcpu.sregs().unwrap().cs.selector, 0x33);
    });
}

#[test]
fn cpl3_64_bit_entered_by_iretq() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(DATA, user_code());
        let code = guest!(
            "push 0x2b",
            "push 0x60000",
            "push 2",
            "push 0x33",
            "push 0x20000",
            "iretq"
        );
        guest.load(code);
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.rcx, regs.rsp), (0x33, 1 << 32, USER_STACK));
    });
}

#[test]
fn cpl3_64_bit_entered_by_sysretq() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.change_sregs(|sregs| sregs.efer |= 1);
        guest.vcpu.set_msr(msr::STAR, 0x0023_0010 << 32).unwrap();
        guest.write(DATA, user_code());
        guest.load(guest!("mov ecx, 0x20000", "mov r11d, 0x2", "sysretq"));
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.rcx), (0x33, 1 << 32));
        assert_eq!(guest.vcpu.sregs().unwrap().ss.selector, 0x2b);
    });
}

#[test]
fn cpl3_32_bit_compatibility_mode() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.change_sregs(|sregs| *sregs = segments::user32(*sregs));
        // In 64-bit mode 0x48 would be a prefix and EAX would stay.
        let code = guest!(
            ".code32",
            "mov eax, 7",
            ".byte 0x48",
            "mov ebx, cs",
            "add ebx, [0x1030]",
            "mov ecx, 0xd0001000",
            "mov [ecx], eax"
        );
        guest.load(code);
        let low = u32::from_le_bytes(guest.read(GDT + 0x30));
        let regs = guest.finish();
        assert_eq!((regs.rax, regs.rbx), (6, u64::from(low) + 0x23));
    });
}
