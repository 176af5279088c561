//! Rows: accesses to addresses that no memory backs, at CPL 0 and CPL 3.

use vmlet_vcpu::{FatalExit, RunEnd, SpaceId};

use crate::harness::{
    DATA, Guest, MMIO, Place,
    bus::{DONE, EXCEPTION, Seen},
    each,
    memory::RAM_SIZE,
};

/// A guest that starts `code` at CPL 0 and one that starts it at CPL 3. Bytes 0x10 to 0x2f lie
/// behind the MMIO address, which RBX holds.
fn both(place: &Place, code: &[u8]) -> [Guest; 2] {
    [false, true].map(|user| {
        let mut guest = Guest::new(place);
        if user {
            guest.enter_user();
        }
        guest.load(code);
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rbx = MMIO;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.bus.put(MMIO, &(0x10..0x30).collect::<Vec<u8>>());
        guest
    })
}

fn write(offset: u64, data: &[u8]) -> (u64, Vec<u8>) {
    (MMIO + offset, data.to_vec())
}

#[test]
fn reads_of_1_2_4_and_8_bytes() {
    each(|place| {
        let code = guest!(
            "xor eax, eax",
            "mov al, [rbx]",
            "mov ecx, eax",
            "mov ax, [rbx + 2]",
            "mov edx, eax",
            "mov esi, [rbx + 4]",
            "mov rdi, [rbx + 8]",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            let regs = guest.finish();
            assert_eq!((regs.rcx, regs.rdx), (0x10, 0x1312));
            assert_eq!((regs.rsi, regs.rdi), (0x1716_1514, 0x1f1e_1d1c_1b1a_1918));
            let reads = [(0, 1), (2, 2), (4, 4), (8, 8)].map(|(at, len)| (MMIO + at, len));
            assert_eq!(guest.bus.reads(), reads);
        }
    });
}

#[test]
fn writes_of_1_2_4_and_8_bytes() {
    each(|place| {
        let code = guest!(
            "movabs rax, 0x1122334455667788",
            "mov [rbx], al",
            "mov [rbx + 2], ax",
            "mov [rbx + 4], eax",
            "mov [rbx + 8], rax",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            guest.finish();
            let all = 0x1122_3344_5566_7788u64.to_le_bytes();
            let writes = [(0, 1), (2, 2), (4, 4), (8, 8)].map(|(at, len)| write(at, &all[..len]));
            assert_eq!(guest.bus.writes(), writes);
        }
    });
}

#[test]
fn read_modify_write_xchg_and_lock_bts() {
    each(|place| {
        let code = guest!(
            "add dword ptr [rbx], 5",
            "mov ecx, 0x99",
            "xchg [rbx + 4], ecx",
            "lock bts dword ptr [rbx + 8], 3",
            "setc dl",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            let regs = guest.finish();
            assert_eq!((regs.rcx, regs.rdx & 0xff), (0x1716_1514, 1));
            let writes = [
                write(0, &[0x15, 0x11, 0x12, 0x13]),
                write(4, &[0x99, 0, 0, 0]),
                write(8, &[0x18, 0x19, 0x1a, 0x1b]),
            ];
            assert_eq!(guest.bus.writes(), writes);
            assert_eq!(guest.bus.reads(), [0, 4, 8].map(|at| (MMIO + at, 4)));
        }
    });
}

#[test]
fn rep_movs_from_and_to_memory() {
    each(|place| {
        let code = guest!(
            "mov esi, ebx",
            "mov edi, 0x20000",
            "mov ecx, 4",
            "rep movsd",
            "mov esi, 0x20000",
            "lea edi, [rbx + 0x10]",
            "mov ecx, 4",
            "rep movsd",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            guest.finish();
            let bytes: Vec<u8> = (0x10..0x20).collect();
            assert_eq!(guest.read::<16>(DATA).to_vec(), bytes);
            assert_eq!(guest.bus.get(MMIO + 0x10, 16), bytes);
            // An engine may join neighbouring elements, but loses and repeats none.
            let read: usize = guest.bus.reads().iter().map(|(_, len)| len).sum();
            let written: Vec<u8> = guest
                .bus
                .writes()
                .into_iter()
                .flat_map(|(_, data)| data)
                .collect();
            assert_eq!((read, written), (16, bytes));
        }
    });
}

#[test]
fn sse_moves_of_16_bytes_are_two_accesses() {
    each(|place| {
        let code = guest!(
            "movups xmm0, [rbx]",
            "movups [rbx + 0x10], xmm0",
            "movdqa xmm1, [rbx]",
            "movdqa [rbx + 0x20], xmm1",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            guest.finish();
            assert_eq!(guest.bus.reads(), [0, 8, 0, 8].map(|at| (MMIO + at, 8)));
            let bytes: Vec<u8> = (0x10..0x20).collect();
            let writes = [0x10, 0x18, 0x20, 0x28].map(|at: u64| {
                let half = if at.is_multiple_of(16) {
                    &bytes[..8]
                } else {
                    &bytes[8..]
                };
                write(at, half)
            });
            assert_eq!(guest.bus.writes(), writes);
        }
    });
}

#[test]
fn cmpxchg_xadd_inc_not_and_setcc() {
    each(|place| {
        let code = guest!(
            "mov eax, 0x13121110",
            "mov ecx, 0x55",
            "cmpxchg [rbx], ecx",
            "sete dl",
            "mov esi, 1",
            "xadd [rbx + 4], esi",
            "inc dword ptr [rbx + 8]",
            "not dword ptr [rbx + 12]",
            "cmp eax, eax",
            "sete [rbx + 16]",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            let regs = guest.finish();
            assert_eq!((regs.rdx & 0xff, regs.rsi), (1, 0x1716_1514));
            let words = [0x55, 0x1716_1515, 0x1b1a_1919, !0x1f1e_1d1cu32].map(u32::to_le_bytes);
            assert_eq!(guest.bus.get(MMIO, 16), words.concat());
            assert_eq!(guest.bus.get(MMIO + 16, 1), [1]);
        }
    });
}

#[test]
fn push_pop_test_bt_movsx_and_movnti() {
    each(|place| {
        let code = guest!(
            "mov rsi, rsp",
            "mov eax, 0x77",
            "lea rsp, [rbx + 0x10]",
            "push rax",
            "pop rdi",
            "pop qword ptr [rbx]",
            "mov rsp, rsi",
            "test dword ptr [rbx + 0x18], 0x28",
            "setnz cl",
            "bt dword ptr [rbx + 0x18], 3",
            "adc cl, 0",
            "movsx rdx, byte ptr [rbx + 0x18]",
            "movnti [rbx + 0x20], rax",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            guest.bus.put(MMIO + 0x20, &[0; 16]);
            let regs = guest.finish();
            // Bit 3 of 0x28 is set in byte 0x18, which holds 0x28.
            assert_eq!((regs.rdi, regs.rcx & 0xff, regs.rdx), (0x77, 2, 0x28));
            assert_eq!(guest.bus.get(MMIO, 8), (0x20..0x28).collect::<Vec<u8>>());
            assert_eq!(guest.bus.get(MMIO + 0x20, 8), 0x77u64.to_le_bytes());
        }
    });
}

#[test]
fn a_store_across_the_end_of_memory_is_split_at_the_page() {
    each(|place| {
        let code = guest!(
            "movabs rax, 0x1122334455667788",
            "mov ecx, 0x3ffffc",
            "mov [rcx], rax",
            "mov [r15], eax"
        );
        for mut guest in both(place, code) {
            guest.finish();
            assert_eq!(guest.read(RAM_SIZE - 4), 0x5566_7788u32.to_le_bytes());
            let upper = 0x1122_3344u32.to_le_bytes().to_vec();
            assert_eq!(guest.bus.writes(), [(RAM_SIZE, upper)]);
        }
    });
}

/// KVM's emulator lacks SSE and AVX moves other than whole 16 bytes: an interpreting KVM ends the
/// run, a native one does so at CPL 0 and injects #UD at CPL 3. An engine that has them reads.
#[test]
fn vmovdqu_movq_and_movd() {
    each(|place| {
        let codes = [
            guest!("vmovdqu xmm0, [rbx]", "mov [r15], eax"),
            guest!("movq xmm0, [rbx]", "mov [r15], eax"),
            guest!("movd xmm0, [rbx]", "mov [r15], eax"),
        ];
        for code in codes {
            for (user, mut guest) in [false, true].into_iter().zip(both(place, code)) {
                // Without AVX `vmovdqu` is no instruction, at any level.
                let avx = guest.enable_xsave(7) & 4 != 0;
                match guest.run() {
                    RunEnd::Fatal(FatalExit::Instruction { bytes, .. }) => {
                        assert!(bytes.starts_with(&code[..4]), "{bytes:02x?}");
                        assert!(place.interpreted || !user);
                    }
                    RunEnd::Stopped(EXCEPTION) => {
                        assert_eq!(guest.vcpu.regs().unwrap().rax, 6);
                        assert!(place.native() && (user || !avx));
                    }
                    RunEnd::Stopped(DONE) => {
                        assert!(place.native());
                        assert_eq!(guest.bus.reads()[0].0, MMIO);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

#[test]
fn a_jump_to_where_no_memory_is() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.load(guest!("mov eax, 0xd0000000", "jmp rax"));
        match guest.run() {
            RunEnd::Fatal(FatalExit::Instruction { rip, bytes, .. }) => {
                assert_eq!((rip, bytes), (MMIO, Vec::new()));
            }
            RunEnd::Fatal(FatalExit::Memory { gpa }) => {
                assert!(place.differs());
                assert_eq!(gpa, MMIO);
            }
            RunEnd::Stopped(EXCEPTION) => {
                assert!(place.native());
                let regs = guest.vcpu.regs().unwrap();
                assert_eq!((regs.rax, regs.rcx), (6, MMIO));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn an_address_nobody_claims_reads_as_ones() {
    each(|place| {
        for mut guest in both(place, guest!("mov rax, [rbx + 0x800]", "mov [r15], eax")) {
            assert_eq!(guest.finish().rax, u64::MAX);
            let read = Seen::Read(SpaceId::MMIO, MMIO + 0x800, vec![0xff; 8]);
            assert_eq!(guest.bus.seen, [read]);
        }
    });
}

#[test]
fn a_callback_sees_the_registers_of_its_access() {
    each(|place| {
        for mut guest in both(
            place,
            guest!("mov ecx, 0x1234", "mov [rbx], ecx", "mov [r15], eax"),
        ) {
            guest.bus.hook = Some(Box::new(|_| None));
            guest.finish();
            assert_eq!((guest.bus.regs.rcx, guest.bus.regs.rbx), (0x1234, MMIO));
        }
    });
}
