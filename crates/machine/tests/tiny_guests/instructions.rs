//! Rows: integer and string instructions, `cpuid`, `rdtsc`, `hlt`.

use vmlet_vcpu::RunEnd;

use crate::harness::{CODE, DATA, Guest, each, guest::offered};

#[test]
fn cmpxchg16b_at_cpl3() {
    each(|place| {
        let mut guest = Guest::user(
            place,
            guest!(
                "mov edi, 0x20000",
                "mov ebx, 5",
                "mov ecx, 6",
                "lock cmpxchg16b [rdi]",
                "mov [r15], eax"
            ),
        );
        guest.finish();
        assert_eq!((guest.word(DATA), guest.word(DATA + 8)), (5, 6));
    });
}

#[test]
fn cmpxchg8b_and_locked_instructions_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(DATA, &7u64.to_le_bytes());
        guest.load(guest!(
            "mov edi, 0x20000",
            "mov eax, 7",
            "mov ebx, 9",
            "lock cmpxchg8b [rdi]",
            "mov eax, 9",
            "mov ecx, 0x10",
            "lock cmpxchg [rdi], ecx",
            "mov edx, 2",
            "lock xadd [rdi], edx",
            "lock bts dword ptr [rdi], 8",
            "setc sil",
            "lock inc dword ptr [rdi]",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!(
            (regs.rdx, regs.rsi & 0xff, guest.word(DATA)),
            (0x10, 0, 0x113)
        );
    });
}

#[test]
fn bits_multiplication_division_and_flags_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!(
            "mov eax, 0x50",
            "tzcnt r8d, eax",
            "bsf r9d, eax",
            "bsr r10d, eax",
            "bt eax, 6",
            "setc r11b",
            "mov rax, -1",
            "mov rcx, -1",
            "mul rcx",
            "mov rbx, rdx",
            "div rcx",
            "mov r12, rax",
            "mov esi, 0x80000001",
            "xor edi, edi",
            "shld edi, esi, 4",
            "cmp edi, 8",
            "cmove r13, rbx",
            "bswap esi",
            "enter 0x20, 0",
            "mov r14, rbp",
            "sub r14, rsp",
            "leave",
            "pause",
            "endbr64",
            "lfence",
            "mfence",
            "sfence",
            "clflush [rsp - 64]",
            "out 0xf4, al"
        ));
        let r = guest.finish();
        assert_eq!((r.r8, r.r9, r.r10, r.r11 & 0xff), (4, 4, 6, 1));
        assert_eq!((r.rbx, r.r12, r.rdx), (u64::MAX - 1, u64::MAX, 0));
        assert_eq!(
            (r.rdi, r.r13, r.rsi, r.r14),
            (8, u64::MAX - 1, 0x0100_0080, 0x20)
        );
    });
}

#[test]
fn rdrand_and_clflushopt_at_cpl0() {
    each(|place| {
        let codes = [
            (
                guest!("2: rdrand rax", "jnc 2b", "out 0xf4, al"),
                (1, 2, 30),
            ),
            (guest!("clflushopt [rsp - 64]", "out 0xf4, al"), (7, 1, 23)),
        ];
        let mut guest = Guest::new(place);
        for (code, feature) in codes {
            guest.load(code);
            if offered(place, feature) {
                guest.finish();
            } else {
                let end = guest.run();
                let undefined = matches!(end, RunEnd::Stopped(_));
                assert!(undefined || !place.native(), "{end:?}");
            }
        }
    });
}

#[test]
fn rep_movs_stos_scas_cmps_and_lods() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(DATA, b"a string of bytes, then another\0");
        guest.load(guest!(
            "cld",
            "mov esi, 0x20000",
            "mov edi, 0x20100",
            "mov ecx, 32",
            "rep movsb",
            "mov edi, 0x20200",
            "mov ecx, 4",
            "movabs rax, 0x1111222233334444",
            "rep stosq",
            "mov edi, 0x20100",
            "mov ecx, 32",
            "mov al, 0",
            "repne scasb",
            "mov ebx, ecx",
            "mov byte ptr [0x20105], 0x21",
            "mov esi, 0x20000",
            "mov edi, 0x20100",
            "mov ecx, 32",
            "repe cmpsb",
            "mov edx, ecx",
            "mov esi, 0x20200",
            "mov ecx, 3",
            "rep lodsd",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!(guest.word(DATA + 0x218), 0x1111_2222_3333_4444);
        // All 32 bytes up to the zero; six bytes up to the one that differs.
        assert_eq!((regs.rbx, regs.rdx, regs.rax), (0, 26, 0x3333_4444));
    });
}

#[test]
fn cpuid_and_rdtsc() {
    each(|place| {
        let code = guest!(
            "rdtsc",
            "shl rdx, 32",
            "lea r8, [rdx + rax]",
            "mov eax, 0x40000000",
            "cpuid",
            "rdtsc",
            "shl rdx, 32",
            "lea r9, [rdx + rax]",
            "out 0xf4, al"
        );
        let mut guest = Guest::new(place);
        guest.load(code);
        let regs = guest.finish();
        assert!(regs.r9 > regs.r8, "{regs:x?}");
        let leaf = place.engine.supported_cpuid().unwrap();
        // A leaf out of range answers as the highest basic one does.
        let highest = leaf.get(0, 0).unwrap().eax;
        let leaf = leaf.get(0x4000_0000, 0).or(leaf.get(highest, 0)).unwrap();
        assert_eq!((regs.rbx, regs.rcx), (leaf.ebx.into(), leaf.ecx.into()));
    });
}

#[test]
fn hlt_without_a_local_apic_is_the_end_of_the_run() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("mov ebx, 1", "hlt", "mov ebx, 2", "hlt"));
        assert_eq!(guest.run(), RunEnd::Halt);
        let regs = guest.vcpu.regs().unwrap();
        assert_eq!((regs.rbx, regs.rip), (1, CODE + 6));
        assert_eq!(guest.run(), RunEnd::Halt);
        assert_eq!(guest.vcpu.regs().unwrap().rbx, 2);
    });
}
