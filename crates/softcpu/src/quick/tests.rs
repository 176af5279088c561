//! Quick steps against the handlers of the same instructions, over random operands.

use std::{sync::Arc, thread};

use vmlet_memory::{Gpa, Hva, Memslot, SlotId};

use crate::{
    block::translate,
    clock::{Clock, ClockMode},
    cpu::{Cpu, Shared, Stop, Width},
    cpuid,
    decode::decode,
    dispatch::{Leave, Link, plain, start},
    flags::ARITHMETIC,
    memory::Memory,
    random::Random,
};

pub(crate) const RAM: usize = 0x40000;
pub(crate) const CODE: u64 = 0x1000;
const CASES: usize = 100_000;

#[repr(align(4096))]
pub(crate) struct Ram(pub(crate) [u8; RAM]);

/// A vCPU in 64-bit code without paging, which no processor has and no step asks for.
pub(crate) struct Bench {
    pub(crate) cpu: Cpu,
    pub(crate) ram: Box<Ram>,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let mut ram = Box::new(Ram([0; RAM]));
        let memory = Memory::default();
        memory
            .set(&Memslot {
                id: SlotId(0),
                gpa: Gpa(0),
                len: RAM as u64,
                hva: Hva(ram.0.as_mut_ptr().expose_provenance() as u64),
                readonly: false,
                log_dirty: false,
            })
            .unwrap();
        let shared = Shared {
            memory: Arc::new(memory),
            clock: Arc::new(Clock::new(ClockMode::Instructions)),
            lapic: None,
            signal: Arc::default(),
            io_events: Arc::default(),
        };
        let mut cpu = Cpu::new(0, cpuid::table(), shared);
        cpu.width = Width::Bits64;
        cpu.look = false;
        Bench { cpu, ram }
    }

    pub(crate) fn place(&mut self, code: &[u8]) {
        let at = CODE as usize;
        self.ram.0[at..at + code.len()].copy_from_slice(code);
        self.cpu.cache.written(CODE);
        self.cpu.rip = CODE;
        self.cpu.budget = 1000;
        (self.cpu.cut, self.cpu.look) = (false, false);
    }

    /// Runs `count` instructions at [`CODE`], by their handlers if so wished.
    fn run(&mut self, count: usize, by_handler: bool) -> Leave {
        let mut block = translate(&mut self.cpu, CODE, CODE, count).unwrap();
        if by_handler {
            let all = block.count as usize;
            block.ops[..all].iter_mut().for_each(|op| op.step = plain);
            block.lead.set(plain);
        }
        let leave = start(&mut self.cpu, Link::to(&block));
        self.cpu.block = self.cpu.cache.nothing();
        leave
    }

    pub(crate) fn state(&self) -> (Vec<u64>, u64, u64, i64) {
        let regs = (0..17).map(|number| self.cpu.reg(number)).collect();
        let flags = self.cpu.lazy.bits() & ARITHMETIC;
        (regs, flags, self.cpu.rip, self.cpu.budget)
    }
}

/// Opcode and bytes of immediate, 4 for those of the operand size.
const WITH_MODRM: &[(&[u8], usize)] = &[
    (&[0x01], 0),
    (&[0x0a], 0),
    (&[0x11], 0),
    (&[0x19], 0),
    (&[0x23], 0),
    (&[0x28], 0),
    (&[0x2b], 0),
    (&[0x30], 0),
    (&[0x39], 0),
    (&[0x3a], 0),
    (&[0x3b], 0),
    (&[0x63], 0),
    (&[0x69], 4),
    (&[0x6b], 1),
    (&[0x80], 1),
    (&[0x81], 4),
    (&[0x83], 1),
    (&[0x84], 0),
    (&[0x85], 0),
    (&[0x88], 0),
    (&[0x89], 0),
    (&[0x8a], 0),
    (&[0x8b], 0),
    (&[0x8d], 0),
    (&[0xc0], 1),
    (&[0xc1], 1),
    (&[0xd1], 0),
    (&[0xd3], 0),
    (&[0xf6], 1),
    (&[0xf7], 4),
    (&[0xfe], 0),
    (&[0xff], 0),
    (&[0x0f, 0x1f], 0),
    (&[0x0f, 0x42], 0),
    (&[0x0f, 0x4c], 0),
    (&[0x0f, 0x94], 0),
    (&[0x0f, 0x9f], 0),
    (&[0x0f, 0xaf], 0),
    (&[0x0f, 0xb6], 0),
    (&[0x0f, 0xb7], 0),
    (&[0x0f, 0xbe], 0),
    (&[0x0f, 0xbf], 0),
];
/// Those without ModRM: opcodes and bytes of immediate.
const WITHOUT: &[(u8, usize)] = &[
    (0x05, 4),
    (0x3c, 1),
    (0x50, 0),
    (0x55, 0),
    (0x5b, 0),
    (0x5c, 0),
    (0x68, 4),
    (0x6a, 1),
    (0x72, 1),
    (0x7f, 1),
    (0x90, 0),
    (0x98, 0),
    (0x99, 0),
    (0xa8, 1),
    (0xb3, 1),
    (0xb9, 8),
    (0xc3, 0),
    (0xc9, 0),
    (0xe8, 4),
    (0xe9, 4),
    (0xeb, 1),
];

pub(crate) fn encode(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    if random.one_in(6) {
        code.push(0x65);
    }
    let short = random.one_in(5);
    if short {
        code.push(0x66);
    }
    if !random.one_in(4) {
        code.push(0x40 | random.below(16) as u8);
    }
    let mut immediate = 0;
    if random.one_in(4) {
        let (opcode, bytes) = WITHOUT[random.below(WITHOUT.len() as u64) as usize];
        code.push(opcode);
        immediate += bytes;
    } else {
        let (opcode, bytes) = WITH_MODRM[random.below(WITH_MODRM.len() as u64) as usize];
        code.extend(opcode);
        immediate += bytes;
        let modrm = random.next() as u8;
        code.push(modrm);
        if modrm >> 6 != 3 && modrm & 7 == 4 {
            code.push(random.next() as u8);
        }
    }
    // More than any form takes: displacements too.
    let small = random.next() & 0x0000_7f7f_0000_1f7f;
    code.extend(small.to_le_bytes());
    code.extend((0..immediate).map(|_| random.next() as u8));
    code
}

pub(crate) fn operands(random: &mut Random) -> [u64; 16] {
    std::array::from_fn(|_| match random.below(4) {
        0 => random.next(),
        1 => random.below(0x200),
        _ => 0x3000 + random.below(0x3000),
    })
}

/// Both ways over `cases` random cases of `count` instructions; how many ended in their block.
fn compare(name: &str, count: usize, encode: impl Fn(&mut Random) -> Vec<u8>) -> usize {
    let mut random = Random::from_environment(name);
    let (mut quick, mut slow) = (Bench::new(), Bench::new());
    let mut ended = 0;
    for _ in 0..CASES {
        let code = encode(&mut random);
        let (registers, flags) = (operands(&mut random), random.next() & ARITHMETIC);
        for bench in [&mut quick, &mut slow] {
            bench.place(&code);
            for (number, value) in (0..).zip(registers) {
                bench.cpu.set_reg(number, value);
            }
            bench.cpu.lazy.load(flags);
        }
        let leaves = (quick.run(count, false), slow.run(count, true));
        let about = format!("{code:02x?} {leaves:?} {registers:x?}");
        assert_eq!(quick.state(), slow.state(), "{about}");
        let failed = |leave| matches!(leave, Leave::Fault | Leave::Lacking);
        assert_eq!(failed(leaves.0), failed(leaves.1), "{about}");
        ended += usize::from(matches!(leaves.0, Leave::Fallen | Leave::Taken));
    }
    assert!(quick.ram.0 == slow.ram.0, "memory differs");
    ended
}

#[test]
fn quick_steps_equal_their_handlers() {
    let ended = compare("quick", 1, encode);
    assert!(ended > CASES / 4, "{ended} cases ran to their end");
}

#[test]
fn fused_steps_equal_their_handlers() {
    const OPCODES: [(u8, usize); 16] = [
        (0x01, 0),
        (0x21, 0),
        (0x29, 0),
        (0x38, 0),
        (0x39, 0),
        (0x3a, 0),
        (0x3b, 0),
        (0x80, 1),
        (0x81, 4),
        (0x83, 1),
        (0x84, 0),
        (0x85, 0),
        (0x3c, 1),
        (0x3d, 4),
        (0xa8, 1),
        (0xa9, 4),
    ];
    let encode = |random: &mut Random| {
        let (opcode, immediate) = OPCODES[random.below(16) as usize];
        let mut code = vec![0x40 | random.below(16) as u8, opcode];
        if !matches!(opcode, 0x3c | 0x3d | 0xa8 | 0xa9) {
            code.push(random.next() as u8);
        }
        let small = random.next() & 0x0000_7f7f_0000_1f7f;
        code.extend(small.to_le_bytes());
        code.extend((0..immediate).map(|_| random.next() as u8));
        let decoded = decode(&code, CODE, Width::Bits64).unwrap();
        code.truncate(decoded.op.len().into());
        code.extend([0x70 | random.below(16) as u8, 0x10, 0x90]);
        code
    };
    let ended = compare("fused", 2, encode);
    assert!(ended > CASES / 4, "{ended} cases ran to their end");
}

#[test]
fn steps_without_flags_leave_the_flags_that_are_seen() {
    const OPCODES: [(u8, usize); 16] = [
        (0x01, 0),
        (0x03, 0),
        (0x09, 0),
        (0x21, 0),
        (0x2b, 0),
        (0x31, 0),
        (0x39, 0),
        (0x69, 4),
        (0x6b, 1),
        (0x81, 4),
        (0x83, 1),
        (0x85, 0),
        (0x89, 0),
        (0x8b, 0),
        (0x8d, 0),
        (0xc1, 1),
    ];
    let one = |random: &mut Random| {
        let (opcode, immediate) = OPCODES[random.below(16) as usize];
        let modrm = random.next() as u8 | if random.one_in(8) { 0 } else { 0xc0 };
        let mut code = vec![0x40 | random.below(16) as u8, opcode, modrm];
        code.extend((random.next() & 0x0000_7f7f_0000_1f7f).to_le_bytes());
        code.extend((0..immediate).map(|_| random.next() as u8));
        code.truncate(decode(&code, CODE, Width::Bits64).unwrap().op.len().into());
        code
    };
    let encode = |random: &mut Random| {
        let mut code: Vec<u8> = (0..6).flat_map(|_| one(random)).collect();
        code.push(0x90);
        code
    };
    let ended = compare("silent", 6, encode);
    assert!(ended > CASES / 4, "{ended} cases ran to their end");
}

#[test]
fn a_million_instructions_take_no_stack() {
    let run = || {
        let mut bench = Bench::new();
        // mov $0x100000, %ecx; 1: dec %ecx; lea (%rcx), %edx; jnz 1b; ud2
        let code = [
            0xb9, 0, 0, 0x10, 0, 0xff, 0xc9, 0x8d, 0x11, 0x75, 0xfa, 0x0f, 0x0b,
        ];
        bench.place(&code);
        bench.cpu.budget = 1 << 40;
        assert_eq!(bench.cpu.run_blocks(), Err(Stop::Fault));
        assert_eq!((bench.cpu.rip, bench.cpu.reg(1)), (CODE + 11, 0));
        assert_eq!((1 << 40) - bench.cpu.budget, 1 + 3 * 0x10_0000);
    };
    let thread = thread::Builder::new().stack_size(4 << 20).spawn(run);
    thread.unwrap().join().unwrap();
}
