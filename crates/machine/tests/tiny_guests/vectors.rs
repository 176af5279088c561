//! Rows: x87, SSE, AVX and their saved state.
//!
//! An interpreter of supervisor code lacks most of it at CPL 0; at CPL 3 it works everywhere.

use crate::harness::{DATA, Guest, Place, each, guest::cpuid_in_guest};

const AVX: u32 = 28;
const XSAVE: u32 = 26;

/// Bit `bit` of ECX of leaf 1 as a guest sees it.
fn leaf1_ecx(place: &Place, bit: u32) -> bool {
    cpuid_in_guest(place, 1, 0)[2] >> bit & 1 == 1
}

fn avx512(place: &Place) -> bool {
    cpuid_in_guest(place, 7, 0)[1] >> 16 & 1 == 1
}

#[test]
fn sse_loads_and_stores_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        let bytes: [u8; 16] = std::array::from_fn(|i| 0xa0 | u8::try_from(i).unwrap());
        guest.write(DATA, &bytes);
        guest.load(guest!(
            "mov ebx, 0x20000",
            "movups xmm0, [rbx]",
            "movups [rbx + 0x11], xmm0",
            "movaps xmm1, [rbx]",
            "movaps [rbx + 0x40], xmm1",
            "movdqu xmm2, [rbx + 0x11]",
            "movdqu [rbx + 0x61], xmm2",
            "movdqa xmm3, [rbx + 0x40]",
            "movdqa [rbx + 0x80], xmm3",
            "movntps [rbx + 0xa0], xmm3",
            "movabs rax, 0x1122334455667788",
            "movnti [rbx + 0xc0], rax",
            "out 0xf4, al"
        ));
        guest.finish();
        for offset in [0x11, 0x40, 0x61, 0x80, 0xa0] {
            assert_eq!(guest.read(DATA + offset), bytes, "{offset:#x}");
        }
        assert_eq!(guest.word(DATA + 0xc0), 0x1122_3344_5566_7788);
    });
}

#[test]
fn sse_and_x87_arithmetic_at_cpl0() {
    each(|place| {
        let codes: [(&[u8], &[u8]); 7] = [
            (
                guest!("movd xmm0, eax", "out 0xf4, al"),
                &[0x66, 0x0f, 0x6e, 0xc0],
            ),
            (
                guest!("movq xmm0, rax", "out 0xf4, al"),
                &[0x66, 0x48, 0x0f, 0x6e, 0xc0],
            ),
            (
                guest!("pxor xmm0, xmm0", "out 0xf4, al"),
                &[0x66, 0x0f, 0xef, 0xc0],
            ),
            (
                guest!("addps xmm0, xmm1", "out 0xf4, al"),
                &[0x0f, 0x58, 0xc1],
            ),
            (guest!("fld1", "out 0xf4, al"), &[0xd9, 0xe8]),
            (guest!("fnstsw ax", "out 0xf4, al"), &[0xdf, 0xe0]),
            (
                guest!(
                    "mov dword ptr [rsp - 64], 0x1f80",
                    "ldmxcsr [rsp - 64]",
                    "out 0xf4, al"
                ),
                &[0x0f, 0xae, 0x54, 0x24, 0xc0],
            ),
        ];
        let mut guest = Guest::new(place);
        for (code, lacking) in codes {
            guest.native_or_lacking(code, lacking);
        }
    });
}

#[test]
fn avx_at_cpl0() {
    each(|place| {
        if place.native() && !leaf1_ecx(place, AVX) {
            return undefined(place, guest!("vmovq xmm5, rsi"));
        }
        let mut guest = Guest::new(place);
        guest.enable_xsave(7);
        let code = guest!(
            "mov rsi, 0x1234567",
            "vmovq xmm5, rsi",
            "vpaddq ymm5, ymm5, ymm5",
            "vmovq rbx, xmm5",
            "out 0xf4, al"
        );
        if let Some(regs) = guest.native_or_lacking(code, &[0xc4, 0xe1, 0xf9, 0x6e, 0xee]) {
            assert_eq!(regs.rbx, 0x1234567 * 2);
        }
    });
}

#[test]
fn avx_512_at_cpl0() {
    each(|place| {
        let code = guest!("vpaddq zmm0, zmm0, zmm0", "out 0xf4, al");
        if place.native() && !avx512(place) {
            return undefined(place, code);
        }
        let mut guest = Guest::new(place);
        guest.enable_xsave(if avx512(place) { 0xe7 } else { 7 });
        guest.native_or_lacking(code, &[0x62, 0xf1, 0xfd, 0x48, 0xd4, 0xc0]);
    });
}

/// The processor does not know `code`.
fn undefined(place: &Place, code: &[u8]) {
    let mut guest = Guest::new(place);
    guest.load(code);
    assert_eq!(guest.exception().vector, 6);
}

#[test]
fn sse_and_x87_arithmetic_at_cpl3() {
    each(|place| {
        let regs = Guest::user(
            place,
            guest!(
                "mov eax, 0x11",
                "movq xmm0, rax",
                "paddq xmm0, xmm0",
                "pxor xmm1, xmm1",
                "por xmm1, xmm0",
                "movd ebx, xmm1",
                "fninit",
                "fld1",
                "fadd st, st(0)",
                "fistp qword ptr [rsp - 8]",
                "mov rcx, [rsp - 8]",
                "fnstsw ax",
                "movzx edx, ax",
                "stmxcsr [rsp - 8]",
                "or dword ptr [rsp - 8], 0x8000",
                "ldmxcsr [rsp - 8]",
                "stmxcsr [rsp - 16]",
                "mov esi, [rsp - 16]",
                "mov [r15], eax"
            ),
        )
        .finish();
        assert_eq!(
            (regs.rbx, regs.rcx, regs.rdx, regs.rsi),
            (0x22, 2, 0, 0x9f80)
        );
    });
}

#[test]
fn avx_and_avx_512_at_cpl3() {
    each(|place| {
        let with_512 = avx512(place);
        if !leaf1_ecx(place, AVX) {
            return undefined(place, guest!("vmovq xmm5, rax"));
        }
        let code = guest!(
            "vmovq xmm0, rax",
            "vpbroadcastq ymm0, xmm0",
            "vpaddq ymm0, ymm0, ymm0",
            "vextracti128 xmm1, ymm0, 1",
            "vmovq rbx, xmm1",
            "test edi, edi",
            "jz 2f",
            "vpbroadcastq zmm2, rax",
            "vextracti32x4 xmm3, zmm2, 3",
            "vmovq rcx, xmm3",
            "2: mov [r15], eax"
        );
        let mut guest = Guest::user(place, code);
        guest.enable_xsave(if with_512 { 0xe7 } else { 7 });
        let mut regs = guest.vcpu.regs().unwrap();
        (regs.rax, regs.rdi) = (0x4000_0001, u64::from(with_512));
        guest.vcpu.set_regs(&regs).unwrap();
        let regs = guest.finish();
        assert_eq!(regs.rbx, 0x8000_0002);
        assert_eq!(regs.rcx, if with_512 { 0x4000_0001 } else { 0 });
    });
}

#[test]
fn fxsave_and_fxrstor_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(DATA + 0x400, &[0x11; 16]);
        guest.write(DATA + 0x410, &[0x22; 16]);
        guest.load(guest!(
            "mov ebx, 0x20000",
            "movups xmm0, [rbx + 0x400]",
            "fxsave [rbx]",
            "movups xmm0, [rbx + 0x410]",
            "movups [rbx + 0x420], xmm0",
            "fxrstor [rbx]",
            "movups [rbx + 0x430], xmm0",
            "out 0xf4, al"
        ));
        guest.finish();
        // XMM0 in the image of 64-bit mode lies at byte 160.
        assert_eq!(guest.read(DATA + 160), [0x11; 16]);
        assert_eq!(guest.read(DATA + 0x420), [0x22; 16]);
        assert_eq!(guest.read(DATA + 0x430), [0x11; 16]);
    });
}

/// `xsave64`, `xrstor64`, `xgetbv` and how each starts.
fn state_instructions() -> [(&'static [u8], &'static [u8]); 3] {
    [
        (
            guest!(
                "mov edi, 0x20000",
                "mov eax, 3",
                "xor edx, edx",
                "xsave64 [rdi]",
                "out 0xf4, al"
            ),
            &[0x48, 0x0f, 0xae, 0x27],
        ),
        (
            guest!(
                "mov edi, 0x20000",
                "mov eax, 3",
                "xor edx, edx",
                "xrstor64 [rdi]",
                "out 0xf4, al"
            ),
            &[0x48, 0x0f, 0xae, 0x2f],
        ),
        (
            guest!("xor ecx, ecx", "xgetbv", "out 0xf4, al"),
            &[0x0f, 0x01, 0xd0],
        ),
    ]
}

#[test]
fn xsave_xrstor_and_xgetbv_at_cpl0() {
    each(|place| {
        if place.native() && !leaf1_ecx(place, XSAVE) {
            return undefined(place, guest!("xor ecx, ecx", "xgetbv"));
        }
        let mut guest = Guest::new(place);
        let enabled = guest.enable_xsave(7);
        let ends =
            state_instructions().map(|(code, lacking)| guest.native_or_lacking(code, lacking));
        if let [_, _, Some(regs)] = ends {
            assert_eq!((regs.rax, regs.rdx), (enabled, 0));
            // XSTATE_BV of the area that `xsave64` filled says which parts are in it.
            assert_eq!(guest.word(DATA + 512) & !3, 0);
        }
    });
}

#[test]
fn xsetbv_at_cpl0() {
    each(|place| {
        let code = guest!(
            "xor ecx, ecx",
            "xor edx, edx",
            "mov eax, 3",
            "xsetbv",
            "out 0xf4, al"
        );
        if !leaf1_ecx(place, XSAVE) {
            return undefined(place, code);
        }
        let mut guest = Guest::new(place);
        guest.enable_xsave(7);
        guest.load(code);
        guest.finish();
        assert_eq!(guest.vcpu.save().unwrap().xcrs, [(0, 3)]);
        // Bit 0 cannot be off.
        guest.load(guest!(
            "xor ecx, ecx",
            "xor edx, edx",
            "mov eax, 2",
            "xsetbv",
            "out 0xf4, al"
        ));
        assert_eq!(
            (guest.exception().vector, guest.vcpu.save().unwrap().xcrs),
            (13, vec![(0, 3)])
        );
    });
}

#[test]
fn xsaveopt_at_cpl0() {
    each(|place| {
        let offered = cpuid_in_guest(place, 0xd, 1)[0] & 1 == 1;
        let code = guest!(
            "mov edi, 0x20000",
            "mov eax, 3",
            "xor edx, edx",
            "xsaveopt64 [rdi]",
            "out 0xf4, al"
        );
        if place.native() && !(offered && leaf1_ecx(place, XSAVE)) {
            return undefined(place, code);
        }
        let mut guest = Guest::new(place);
        guest.enable_xsave(7);
        guest.native_or_lacking(code, &[0x48, 0x0f, 0xae, 0x37]);
    });
}

#[test]
fn xsave_xrstor_and_xgetbv_at_cpl3() {
    each(|place| {
        if !leaf1_ecx(place, XSAVE) {
            return undefined(place, guest!("xgetbv"));
        }
        let code = guest!(
            "mov edi, 0x20000",
            "mov ecx, 0x31",
            "movq xmm0, rcx",
            "mov eax, 3",
            "xor edx, edx",
            "xsave64 [rdi]",
            "pxor xmm0, xmm0",
            "xrstor64 [rdi]",
            "movq rbx, xmm0",
            "xor ecx, ecx",
            "xgetbv",
            "mov [r15], eax"
        );
        let mut guest = Guest::user(place, code);
        guest.enable_xsave(3);
        let regs = guest.finish();
        assert_eq!(regs.rbx, 0x31);
        if place.native() {
            assert_eq!(regs.rax, 3);
        } else {
            // Where supervisor code is interpreted, CPL 3 sees the platform's XCR0.
            assert_eq!(regs.rax & 7, 7);
        }
    });
}
