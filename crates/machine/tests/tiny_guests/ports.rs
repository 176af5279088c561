//! Rows: port I/O, and what the I/O privilege level opens.

use vmlet_vcpu::SpaceId;

use crate::harness::{CODE, DATA, Guest, bus::Seen, each};

#[test]
fn port_in_and_out_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        let answer = [0x11, 0x22, 0x33, 0x44];
        guest.bus.bytes.extend(
            (0x500..)
                .zip(answer)
                .map(|(at, byte)| ((SpaceId::PORT, at), byte)),
        );
        guest.load(guest!(
            "mov edx, 0x500",
            "in eax, dx",
            "mov ebx, eax",
            "xor eax, eax",
            "in ax, dx",
            "mov ecx, eax",
            "xor eax, eax",
            "in al, 0x60",
            "mov esi, eax",
            "mov eax, 0xaabbccdd",
            "mov edx, 0x600",
            "out dx, eax",
            "out dx, ax",
            "out dx, al",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!((regs.rbx, regs.rcx, regs.rsi), (0x4433_2211, 0x2211, 0xff));
        let write = |data: &[u8]| Seen::Write(SpaceId::PORT, 0x600, data.to_vec());
        let writes = [
            write(&[0xdd, 0xcc, 0xbb, 0xaa]),
            write(&[0xdd, 0xcc]),
            write(&[0xdd]),
        ];
        assert_eq!(guest.bus.seen[3..], writes);
    });
}

#[test]
fn rep_ins_and_outs_at_cpl0() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.write(DATA, b"twelve bytes");
        let mut next = 0u8;
        guest.bus.hook = Some(Box::new(move |seen| match seen {
            Seen::Read(SpaceId::PORT, 0x500, data) => {
                next += 1;
                Some(vec![next; data.len()])
            }
            _ => None,
        }));
        guest.load(guest!(
            "cld",
            "mov edx, 0x500",
            "mov esi, 0x20000",
            "mov ecx, 6",
            "rep outsw",
            "mov edi, 0x20100",
            "mov ecx, 3",
            "rep insd",
            "out 0xf4, al"
        ));
        let regs = guest.finish();
        assert_eq!((regs.rsi, regs.rdi), (DATA + 12, DATA + 0x10c));
        assert_eq!(
            guest.read(DATA + 0x100),
            [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
        );
        let sent = guest.bus.seen.iter().filter_map(|seen| match seen {
            Seen::Outs(0x500, 2, data) | Seen::Write(SpaceId::PORT, 0x500, data) => {
                Some(data.clone())
            }
            _ => None,
        });
        assert_eq!(sent.collect::<Vec<_>>().concat(), b"twelve bytes");
    });
}

#[test]
fn ports_cli_and_sti_at_cpl3_with_io_privilege() {
    each(|place| {
        for code in [
            guest!("out 0x80, al", "mov [r15], eax"),
            guest!("cli", "sti", "mov [r15], eax"),
        ] {
            let mut guest = Guest::user(place, code);
            let mut regs = guest.vcpu.regs().unwrap();
            regs.rflags |= 3 << 12;
            guest.vcpu.set_regs(&regs).unwrap();
            if place.native() {
                assert_eq!(guest.finish().rflags >> 12 & 3, 3);
            } else {
                let found = guest.exception();
                assert_eq!((found.vector, found.code, found.rip), (13, 0, CODE));
            }
        }
    });
}

#[test]
fn ports_at_cpl3_without_io_privilege_are_a_general_protection_fault() {
    each(|place| {
        let found = Guest::user(place, guest!("out 0x80, al")).exception();
        assert_eq!((found.vector, found.code, found.rip), (13, 0, CODE));
    });
}
