//! Rows: instructions that an interpreter of supervisor code lacks, there and at CPL 3.

use std::time::Duration;

use vmlet_vcpu::{RunEnd, x86_64::Regs};

use crate::harness::{
    CODE, Guest, each,
    guest::{Feature, cpuid_in_guest, offered},
    limit,
};

#[test]
fn cmpxchg16b_at_cpl0() {
    each(|place| {
        let code = guest!("mov edi, 0x20000", "lock cmpxchg16b [rdi]", "out 0xf4, al");
        let mut guest = Guest::new(place);
        if let Some(regs) = guest.native_or_lacking(code, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]) {
            assert_eq!(regs.rflags & 0x40, 0x40);
        }
    });
}

const MONITOR: Feature = (1, 2, 3);

/// An instruction, how it is found offered, how its encoding starts.
struct Lacked {
    code: &'static [u8],
    feature: Option<Feature>,
    bytes: &'static [u8],
}

/// What an interpreter of supervisor code gives up at.
fn lacked() -> Vec<Lacked> {
    let of = |code, feature, bytes| Lacked {
        code,
        feature,
        bytes,
    };
    vec![
        of(
            guest!("popcnt eax, ecx", "out 0xf4, al"),
            Some((1, 2, 23)),
            &[0xf3, 0x0f, 0xb8, 0xc1],
        ),
        of(
            guest!("crc32 eax, ecx", "out 0xf4, al"),
            Some((1, 2, 20)),
            &[0xf2, 0x0f, 0x38, 0xf1, 0xc1],
        ),
        of(
            guest!("rdtscp", "out 0xf4, al"),
            Some((0x8000_0001, 3, 27)),
            &[0x0f, 0x01, 0xf9],
        ),
        of(
            guest!("mov eax, 0x18", "verw ax", "out 0xf4, al"),
            None,
            &[0x0f, 0x00, 0xe8],
        ),
        of(
            guest!("mov ecx, 0x18", "lar eax, ecx", "out 0xf4, al"),
            None,
            &[0x0f, 0x02, 0xc1],
        ),
        of(
            guest!("mov ecx, 0x18", "lsl eax, ecx", "out 0xf4, al"),
            None,
            &[0x0f, 0x03, 0xc1],
        ),
        of(
            guest!("stac", "out 0xf4, al"),
            Some((7, 1, 20)),
            &[0x0f, 0x01, 0xcb],
        ),
        of(
            guest!("clac", "out 0xf4, al"),
            Some((7, 1, 20)),
            &[0x0f, 0x01, 0xca],
        ),
        of(
            // Reserved bits of the descriptor count for every type.
            guest!(
                "push 0",
                "push 0",
                "mov ecx, 2",
                "invpcid rcx, [rsp]",
                "out 0xf4, al"
            ),
            Some((7, 1, 10)),
            &[0x66, 0x0f, 0x38, 0x82, 0x0c, 0x24],
        ),
        of(
            guest!(
                "mov eax, 0x20000",
                "xor ecx, ecx",
                "xor edx, edx",
                "monitor",
                "out 0xf4, al"
            ),
            Some(MONITOR),
            &[0x0f, 0x01, 0xc8],
        ),
    ]
}

#[test]
fn popcnt_crc32_rdtscp_verw_lar_lsl_stac_clac_invpcid_monitor_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        for Lacked {
            code,
            feature,
            bytes,
        } in lacked()
        {
            let there = feature.is_none_or(|feature| offered(place, feature));
            let unoffered = place.differs() && feature == Some(MONITOR);
            if place.native() && !there && !unoffered {
                guest.load(code);
                assert_eq!(guest.exception().vector, 6, "{bytes:02x?}");
            } else {
                guest.native_or_lacking(code, bytes);
            }
        }
    });
}

/// `vmcall` and `vmmcall`: KVM makes the one its processor has of the other.
#[test]
fn vmcall_and_vmmcall_at_cpl0() {
    each(|place| {
        let [_, b, c, d] = cpuid_in_guest(place, 0x4000_0000, 0);
        let kvm = [b, c, d].map(|r| r.to_le_bytes()[..4].to_vec()).concat();
        for code in [
            guest!("vmcall", "out 0xf4, al"),
            guest!("vmmcall", "out 0xf4, al"),
        ] {
            let mut guest = Guest::new(place);
            // A hypercall KVM does not have.
            let regs = Regs {
                rax: 0xffff,
                ..Regs::default()
            };
            guest.load_with(code, regs);
            if !place.native() {
                // Executed again and again.
                let (end, late) = guest.run_for(limit(Duration::from_millis(100)));
                assert_eq!((end, late), (RunEnd::Kicked, true));
                assert_eq!(guest.vcpu.regs().unwrap().rip, CODE);
            } else if kvm == b"KVMKVMKVM\0\0\0" {
                assert_eq!(guest.finish().rax.cast_signed(), -1000);
            } else {
                assert_eq!(guest.exception().vector, 6);
            }
        }
    });
}

#[test]
fn movbe_and_rdpid_at_cpl0() {
    each(|place| {
        let codes = [
            (guest!("movbe eax, [rsp - 8]", "out 0xf4, al"), (1, 2, 22)),
            (guest!("rdpid rax", "out 0xf4, al"), (7, 2, 22)),
        ];
        let mut guest = Guest::new(place);
        for (code, feature) in codes {
            guest.load(code);
            if place.native() && offered(place, feature) {
                guest.finish();
            } else {
                assert_eq!(guest.exception().vector, 6);
            }
        }
    });
}

#[test]
fn popcnt_crc32_movbe_and_rdpid_at_cpl3() {
    each(|place| {
        let regs = Regs {
            rcx: 0x1234_5678,
            ..Regs::default()
        };
        let codes = [
            (
                guest!("popcnt eax, ecx", "mov [r15], eax"),
                (1, 2, 23),
                Some(13),
            ),
            (
                guest!("xor eax, eax", "crc32 eax, cl", "mov [r15], eax"),
                (1, 2, 20),
                Some(0xfb41_0cc2),
            ),
            (
                guest!("push rcx", "movbe eax, [rsp]", "mov [r15], eax"),
                (1, 2, 22),
                Some(0x7856_3412),
            ),
            (guest!("rdpid rax", "mov [r15], eax"), (7, 2, 22), None),
        ];
        for (code, feature, result) in codes {
            let mut guest = Guest::user(place, code);
            guest.load_with(code, regs);
            if !offered(place, feature) {
                // #UD, unless the processor has what the engine hides and cannot intercept.
                assert!(matches!(guest.run(), RunEnd::Stopped(_)));
                continue;
            }
            let rax = guest.finish().rax;
            assert!(
                result.is_none_or(|result| result == rax),
                "{rax:#x} {feature:?}"
            );
        }
    });
}
