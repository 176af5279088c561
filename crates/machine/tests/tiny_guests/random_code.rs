//! Random bytes as code, in random states: whatever they do, the run ends or can be kicked.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use vmlet_vcpu::x86_64::{Regs, Segment, Sregs};

use crate::harness::{CODE, DATA, Guest, Place, each, limit, memory::RAM_SIZE};

/// Opcodes and prefixes that make random bytes reach further than #UD.
const LIKELY: [u8; 24] = [
    0x0f, 0x66, 0x48, 0xf3, 0xf2, 0x8b, 0x89, 0x01, 0xff, 0xc7, 0xcf, 0xc3, 0xe8, 0xeb, 0x74, 0xcd,
    0xf4, 0xa4, 0xab, 0xaf, 0x20, 0x22, 0x07, 0xd9,
];
const PROGRAMS: u64 = 320;
const BYTES: usize = 96;

/// Marsaglia's xorshift with 64 bits.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        let [kind, byte, ..] = self.next().to_le_bytes();
        if kind & 1 == 0 {
            byte
        } else {
            LIKELY[usize::from(byte) % LIKELY.len()]
        }
    }

    /// Small, near the memory's end, an address of code or data, or anything.
    fn value(&mut self) -> u64 {
        let value = self.next();
        match value >> 61 {
            0 => value & 0xff,
            1 => RAM_SIZE - (value & 0xf),
            2 => CODE + (value & 0xff),
            3 | 4 => DATA + (value & 0xfff),
            5 => value & 0xffff_ffff,
            6 => 0xffff_8000_0000_0000 | value & 0xfff,
            _ => value,
        }
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.next().is_multiple_of(chances)
    }

    fn segment(&mut self, segment: &mut Segment) {
        let [a, b, c, d, ..] = self.next().to_le_bytes();
        match a % 4 {
            0 => segment.base = self.value(),
            1 => segment.limit = u32::from_le_bytes([b, c, d, 0]),
            2 => segment.attributes ^= 1 << (b % 16),
            _ => segment.selector = u16::from_le_bytes([b, c]),
        }
    }

    /// Changes some of what decides the mode.
    fn sregs(&mut self, sregs: &mut Sregs) {
        let mut segments = [
            &mut sregs.cs,
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
            &mut sregs.tr,
            &mut sregs.ldt,
        ];
        for segment in &mut segments {
            if self.one_in(8) {
                self.segment(segment);
            }
        }
        let registers = [
            (&mut sregs.cr0, 31),
            (&mut sregs.cr3, 40),
            (&mut sregs.cr4, 12),
            (&mut sregs.efer, 12),
        ];
        for (register, bits) in registers {
            if self.one_in(8) {
                *register ^= 1 << (self.next() % bits);
            }
        }
        for table in [&mut sregs.gdt, &mut sregs.idt] {
            if self.one_in(8) {
                table.base = self.value();
            }
        }
    }

    fn regs(&mut self) -> Regs {
        Regs {
            rax: self.value(),
            rbx: self.value(),
            rcx: self.value(),
            rdx: self.value(),
            rsi: self.value(),
            rdi: self.value(),
            rbp: self.value(),
            r8: self.value(),
            r9: self.value(),
            rflags: self.next() & 0x4_7ed7,
            ..Regs::default()
        }
    }
}

fn program(place: &Place, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let code: Vec<u8> = (0..BYTES).map(|_| random.byte()).collect();
    let mut guest = if seed % 16 < 8 {
        Guest::new(place)
    } else {
        Guest::with_irqchip(place)
    };
    match seed % 4 {
        0 => guest.enter_user(),
        1 => {
            guest.change_sregs(|sregs| *sregs = sregs.enter_flat32(crate::harness::segments::gdt()))
        }
        _ => {}
    }
    if place.is_soft() && seed % 4 >= 2 {
        // What a processor refuses is refused.
        let mut sregs = guest.vcpu.sregs().unwrap();
        random.sregs(&mut sregs);
        let _ = guest.vcpu.set_sregs(&sregs);
    }
    let regs = random.regs();
    guest.load_with(&code, regs);
    for _ in 0..3 {
        // A panic of the engine would be one here.
        guest.run_for(limit(Duration::from_millis(2)));
    }
}

#[test]
fn random_bytes_as_code_end_or_can_be_kicked() {
    each(|place| {
        let programs = if place.is_soft() {
            PROGRAMS
        } else {
            PROGRAMS / 10
        };
        for seed in 0..programs {
            let run = AssertUnwindSafe(|| program(place, seed));
            assert!(catch_unwind(run).is_ok(), "the program of seed {seed}");
        }
    });
}
