//! Translated code against the interpreter, over random code, state and budgets.

use crate::{
    cpu::{Stop, Width},
    decode::decode,
    dispatch::Link,
    flags::ARITHMETIC,
    quick::tests::{Bench, CODE, encode, operands},
    random::Random,
};

const CASES: usize = 40_000;

/// A random instruction of those with quick steps.
fn one(random: &mut Random) -> Vec<u8> {
    loop {
        let mut code = encode(random);
        if let Ok(decoded) = decode(&code, CODE, Width::Bits64)
            && !decoded.ends
        {
            code.truncate(decoded.op.len().into());
            return code;
        }
    }
}

/// Straight-line code, then a way back to its start, on or out.
fn code(random: &mut Random) -> Vec<u8> {
    let count = 1 + random.below(10);
    let mut code: Vec<u8> = (0..count).flat_map(|_| one(random)).collect();
    let back = |code: &[u8], length: usize| (code.len() + length) as u8;
    match random.below(8) {
        // dec %ecx; jnz
        0 | 1 => {
            code.extend([0xff, 0xc9, 0x75]);
            code.push(back(&code, 1).wrapping_neg());
        }
        // cmp, test; jcc
        2..=4 => {
            let registers = 0xc0 | random.next() as u8;
            let opcode = [0x39, 0x85, 0x3b, 0x29][random.below(4) as usize];
            code.extend([0x48 | random.below(8) as u8, opcode, registers]);
            code.push(0x70 | random.below(16) as u8);
            code.push(back(&code, 1).wrapping_neg());
        }
        // jcc of flags from before
        5 => {
            code.push(0x70 | random.below(16) as u8);
            code.push(back(&code, 1).wrapping_neg());
        }
        // call; its target returns
        6 => code.extend([0xe8, 1, 0, 0, 0, 0xc3, 0xc3]),
        // lea; jmp *%rax
        _ => code.extend([0x48, 0x8d, 0x05, 2, 0, 0, 0, 0xff, 0xe0]),
    }
    code.extend([0x40, 0x0f, 0x94, 0xc0, 0x01, 0xd8, 0xeb]);
    code.push(back(&code, 1).wrapping_neg());
    code
}

/// Both ways over random code; how many instructions were run.
fn compare(name: &str, after: u32) {
    let mut random = Random::from_environment(name);
    let (mut hot, mut cold) = (Bench::new(), Bench::new());
    hot.cpu.hot.set_after(after);
    cold.cpu.hot.set_after(0);
    let mut translated = 0;
    for case in 0..CASES {
        let bytes = code(&mut random);
        let (mut registers, flags) = (operands(&mut random), random.next() & ARITHMETIC);
        registers[4] = 0x8000 + random.below(0x1000);
        if random.one_in(50) {
            registers[random.below(16) as usize] = CODE + random.below(0x80);
        }
        let flush = random.one_in(20);
        let budgets = [0; 3].map(|_| random.below(150).cast_signed() - 3);
        for bench in [&mut hot, &mut cold] {
            bench.place(&bytes);
            // The code before may have changed the mode.
            bench.cpu.width = Width::Bits64;
            // As after a write by the host.
            bench.cpu.foreign += 1;
            bench.cpu.forget_fetched(true);
            if flush {
                bench.cpu.flush_all();
            }
            for (number, value) in (0..).zip(registers) {
                bench.cpu.set_reg(number, value);
            }
            bench.cpu.lazy.load(flags);
        }
        let look = random.one_in(8);
        for budget in budgets {
            let ends = [&mut hot, &mut cold].map(|bench| {
                bench.cpu.budget = budget;
                bench.cpu.look = look;
                bench.cpu.run_blocks()
            });
            let about = format!("{ends:?} {bytes:02x?} {registers:x?} {flags:x} {budgets:?}");
            assert_eq!(hot.state(), cold.state(), "{about}");
            assert_eq!(ends[0], ends[1], "{about}");
            if ends[0].is_err() {
                break;
            }
        }
        if case % 8 == 0 {
            let same = hot.ram.0 == cold.ram.0;
            assert!(same, "memory: {bytes:02x?} {registers:x?} {flags:x}");
        }
        if hot.cpu.width == Width::Bits64 {
            let blocks = [&mut hot, &mut cold].map(|bench| {
                bench.cpu.rip = CODE;
                bench.cpu.block_at_rip().unwrap()
            });
            translated += usize::from(hot.cpu.is_translated(blocks[0]));
        }
    }
    assert!(translated > CASES / 4, "{translated} of {CASES} translated");
}

#[test]
fn a_jump_that_lock_forbids_faults_behind_a_comparison_too() {
    for after in [0, 1] {
        let mut bench = Bench::new();
        bench.cpu.hot.set_after(after);
        // cmp %eax, %esi; lock je
        bench.place(&[0x39, 0xc6, 0xf0, 0x74, 0]);
        assert_eq!(bench.cpu.run_blocks(), Err(Stop::Fault));
        assert_eq!((bench.cpu.rip, bench.cpu.budget), (CODE + 2, 999));
    }
}

impl crate::cpu::Cpu {
    fn is_translated(&self, block: Link) -> bool {
        block.block().hot.load(std::sync::atomic::Ordering::Relaxed) != self.hot.entry()
    }
}

#[test]
fn translated_at_once_equals_interpreted() {
    compare("hot at once", 1);
}

#[test]
fn translated_later_equals_interpreted() {
    compare("hot later", 3);
}
