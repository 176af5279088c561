//! Rows: control, debug and descriptor-table registers, MSRs, TLB.

use vmlet_vcpu::x86_64::{Regs, msr};

use crate::harness::{
    CODE, DATA, Guest, STACK, each,
    guest::offered,
    memory::{GDT, IDT, TSS},
    paging::{ALL, entry_of},
    segments,
};

/// The guest-side address of a second page for data.
const OTHER: u64 = DATA + 0x1000;

#[test]
fn mov_cr8_without_a_local_apic() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!(
            "mov eax, 5",
            "mov cr8, rax",
            "mov rbx, cr8",
            "out 0xf4, al"
        ));
        assert_eq!(guest.finish().rbx, 5);
        assert_eq!(guest.vcpu.sregs().unwrap().cr8, 5);
        assert!(guest.bus.seen.is_empty());
    });
}

#[test]
fn control_registers() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!(
            "mov rax, 0x123456789a",
            "mov cr2, rax",
            "mov rbx, cr2",
            "mov rax, cr0",
            "or eax, 8",
            "mov cr0, rax",
            "mov rcx, cr0",
            "clts",
            "mov rdx, cr0",
            "smsw esi",
            "or esi, 2",
            "lmsw si",
            "mov rax, cr3",
            "mov cr3, rax",
            "mov rdi, cr4",
            "or rdi, 0x80",
            "mov cr4, rdi",
            "mov r8, cr4",
            "wbinvd",
            "invd",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!(regs.rbx, 0x12_3456_789a);
        assert_eq!((regs.rcx & 8, regs.rdx & 8), (8, 0));
        assert_eq!((regs.rax, regs.r8), (0x10_0000, regs.rdi));
        let sregs = guest.vcpu.sregs().unwrap();
        assert_eq!(
            (sregs.cr2, sregs.cr0, sregs.cr4),
            (regs.rbx, regs.rdx, regs.r8)
        );
    });
}

#[test]
fn reserved_bits_of_cr4_are_a_general_protection_fault() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("mov rax, cr4", "bts rax, 15", "mov cr4, rax"));
        let found = guest.exception();
        assert_eq!((found.vector, found.code), (13, 0), "{found:x?}");
    });
}

#[test]
fn debug_registers() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!(
            "mov eax, 0x1234",
            "mov dr0, rax",
            "mov eax, 0x5678",
            "mov dr3, rax",
            "mov eax, 0x401",
            "mov dr7, rax",
            "mov rbx, dr0",
            "mov rcx, dr7",
            "mov rdx, dr6",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.rcx, regs.rdx), (0x1234, 0x401, 0xffff_0ff0));
        let debug = guest.vcpu.save().unwrap().debug;
        assert_eq!((debug.db, debug.dr7), ([0x1234, 0, 0, 0x5678], 0x401));
    });
}

#[test]
fn descriptor_table_registers() {
    each(|place| {
        let mut guest = Guest::new(place);
        let gdt = segments::gdt();
        let table =
            |limit: u16, base: u64| [limit.to_le_bytes().as_slice(), &base.to_le_bytes()].concat();
        guest.write(DATA, &table(gdt.limit, GDT));
        guest.write(DATA + 0x10, &table(0x7ff, IDT));
        let selectors = Regs {
            rcx: segments::FREE_TSS.into(),
            rdx: segments::LDT.into(),
            ..Regs::default()
        };
        let code = guest!(
            "lgdt [0x20000]",
            "lidt [0x20010]",
            "ltr cx",
            "lldt dx",
            "sgdt [0x20020]",
            "sidt [0x20030]",
            "str eax",
            "sldt ebx",
            "out 0xf4, al"
        );
        guest.load_with(code, selectors);
        let regs = guest.finish();
        assert_eq!(
            (regs.rax, regs.rbx),
            (segments::FREE_TSS.into(), segments::LDT.into())
        );
        assert_eq!(
            guest.read::<10>(DATA + 0x20).to_vec(),
            table(gdt.limit, GDT)
        );
        assert_eq!(guest.read::<10>(DATA + 0x30).to_vec(), table(0x7ff, IDT));
        let sregs = guest.vcpu.sregs().unwrap();
        assert_eq!((sregs.tr.base, sregs.tr.attributes & 0xf), (TSS, 0xb));
        assert_eq!((sregs.ldt.base, sregs.idt.limit), (0x3000, 0x7ff));
    });
}

/// CPL 3 reads a page; CPL 0 leads its address elsewhere and says so by `invlpg`.
#[test]
fn the_guests_own_change_of_a_table_entry_counts_after_invlpg() {
    each(|place| {
        let code = guest!(
            "mov rax, [0x20000]",
            "ud2",
            "mov rbx, [0x20000]",
            "mov [r15], eax"
        );
        let mut guest = Guest::user(place, code);
        guest.write(DATA, &0x1111u64.to_le_bytes());
        guest.write(OTHER, &0x2222u64.to_le_bytes());
        let handler = guest!(
            "mov qword ptr [rdi], 0x21007",
            "invlpg [0x20000]",
            "add qword ptr [rsp], 2",
            "iretq"
        );
        guest.write(DATA + 0x2000, handler);
        segments::set_gate(&guest.memory, 6, DATA + 0x2000, 0);
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rdi = entry_of(&guest.memory, DATA);
        assert_eq!(guest.word(regs.rdi), DATA | ALL);
        guest.vcpu.set_regs(&regs).unwrap();
        let regs = guest.finish();
        assert_eq!((regs.rax, regs.rbx), (0x1111, 0x2222));
    });
}

#[test]
fn wrmsr_of_efer_and_segment_bases_swapgs_and_accesses_through_gs() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(DATA, &0x1111u64.to_le_bytes());
        guest.write(OTHER, &0x2222u64.to_le_bytes());
        guest.load(guest!(
            "mov ecx, 0xc0000080",
            "rdmsr",
            "or eax, 1",
            "wrmsr",
            "rdmsr",
            "mov ebx, eax",
            "xor edx, edx",
            "mov ecx, 0xc0000100",
            "mov eax, 0x21000",
            "wrmsr",
            "mov ecx, 0xc0000101",
            "mov eax, 0x20000",
            "wrmsr",
            "mov ecx, 0xc0000102",
            "mov eax, 0x21000",
            "wrmsr",
            "mov rsi, gs:[0]",
            "mov r8, fs:[0]",
            "swapgs",
            "mov rdi, gs:[0]",
            "rdmsr",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!((regs.rsi, regs.r8, regs.rdi), (0x1111, 0x2222, 0x2222));
        assert_eq!((regs.rbx & 0x501, regs.rax), (0x501, DATA));
        let sregs = guest.vcpu.sregs().unwrap();
        assert_eq!((sregs.fs.base, sregs.gs.base), (OTHER, OTHER));
        assert_eq!(guest.vcpu.msr(msr::KERNEL_GS_BASE).unwrap(), DATA);
        assert_eq!(guest.vcpu.msr(msr::EFER).unwrap() & 0x501, 0x501);
    });
}

#[test]
fn wrfsbase_and_rdgsbase() {
    each(|place| {
        if !offered(place, (7, 1, 0)) {
            let mut guest = Guest::new(place);
            guest.load(guest!("rdgsbase rax"));
            assert_eq!(guest.exception().vector, 6);
            return;
        }
        for user in [false, true] {
            let mut guest = Guest::new(place);
            guest.change_sregs(|sregs| sregs.cr4 |= 1 << 16);
            if user {
                guest.enter_user();
            }
            guest.load(guest!(
                "mov eax, 0x21000",
                "wrfsbase rax",
                "wrgsbase rax",
                "rdfsbase rbx",
                "rdgsbase rcx",
                "mov [r15], eax"
            ));
            let regs = guest.finish();
            assert_eq!((regs.rbx, regs.rcx), (OTHER, OTHER));
            assert_eq!(guest.vcpu.sregs().unwrap().gs.base, OTHER);
        }
    });
}

#[test]
fn wrmsr_of_an_msr_nobody_has_is_a_general_protection_fault() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("mov ecx, 0x4bad0000", "rdmsr"));
        assert_eq!(
            (
                guest.exception().vector,
                guest.vcpu.msr(0x4bad_0000).is_err()
            ),
            (13, true)
        );
        assert!(guest.vcpu.set_msr(0x4bad_0000, 1).is_err());
    });
}

#[test]
fn wrmsr_of_the_apic_base_switches_to_x2apic() {
    each(|place| {
        let mut guest = Guest::with_irqchip(place);
        guest.load(guest!(
            "mov ecx, 0x1b",
            "rdmsr",
            "mov ebx, eax",
            "or eax, 0x400",
            "wrmsr",
            "mov ecx, 0x802",
            "rdmsr",
            "mov esi, eax",
            "mov ecx, 0x803",
            "rdmsr",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.rsi), (0xfee0_0900, 0));
        // Version 0x1x: an integrated APIC.
        assert_eq!(regs.rax & 0xf0, 0x10);
        assert_eq!(guest.vcpu.sregs().unwrap().apic_base, 0xfee0_0d00);
    });
}

#[test]
fn an_msr_set_between_two_runs_shows_in_the_segments() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("hlt", "rdfsbase rax"));
        guest.run();
        assert_eq!(guest.vcpu.sregs().unwrap().fs.base, 0);
        guest.vcpu.set_msr(msr::FS_BASE, 0x1234_5000).unwrap();
        assert_eq!(guest.vcpu.sregs().unwrap().fs.base, 0x1234_5000);
    });
}

#[test]
fn translate_walks_the_guests_tables() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("hlt"));
        let entry = entry_of(&guest.memory, DATA);
        guest.write(entry, &(OTHER | ALL).to_le_bytes());
        assert_eq!(
            guest.vcpu.translate(DATA + 0x123).unwrap(),
            Some(OTHER + 0x123)
        );
        assert_eq!(guest.vcpu.translate(CODE).unwrap(), Some(CODE));
        assert_eq!(guest.vcpu.translate(STACK - 1).unwrap(), Some(STACK - 1));
        assert_eq!(guest.vcpu.translate(0x5000_0000).unwrap(), None);
    });
}
