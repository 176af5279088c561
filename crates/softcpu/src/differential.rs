//! Integer instructions of register form, executed natively and here, compared.
//!
//! Not covered: 16-bit double shifts, memory operands, branches, stack and string instructions, segments.
//!
//! Flags that the architecture leaves undefined (Intel SDM volume 2, each instruction) and that
//! are not compared: SF, ZF, AF and PF after MUL and IMUL; all after DIV and IDIV; all but ZF
//! after BSF and BSR; OF, SF, AF and PF after BT and its kin; AF after shifts and double shifts;
//! OF after shifts and rotates by a count other than one; AF after the logic instructions; CF
//! too after shifts by the operand's width or more.
#![allow(
    clippy::cast_possible_truncation,
    reason = "test values are cut on purpose"
)]

use std::sync::Arc;

use crate::{
    clock::{Clock, ClockMode},
    cpu::{Cpu, DE, Shared, Stop, Width},
    cpuid,
    decode::decode,
    fp::native_tests::{
        host::{Host, State, scratch_stack},
        random::{Random, cases},
    },
};

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;
const RSP: u8 = 4;
const PER_PLACEMENT: u64 = 50;

/// An instruction by opcode bytes, ModRM.reg where it extends the opcode, bytes of immediate and
/// the flags that are not compared.
#[derive(Clone, Debug)]
struct Template {
    opcode: Vec<u8>,
    extension: Option<u8>,
    immediate: Immediate,
    undefined: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Immediate {
    None,
    Byte,
    /// Of the operand size, at most four bytes.
    Full,
}

fn template(opcode: &[u8], immediate: Immediate, undefined: u64) -> Template {
    Template {
        opcode: opcode.to_vec(),
        extension: None,
        immediate,
        undefined,
    }
}

fn templates() -> Vec<Template> {
    use Immediate::{Byte, Full, None as No};
    let mut list = Vec::new();
    let mut plain = |opcode: &[u8], immediate, undefined| {
        list.push(template(opcode, immediate, undefined));
    };
    for op in 0..8_u8 {
        let undefined = if matches!(op, 1 | 4 | 6) { AF } else { 0 };
        (0..4).for_each(|form| plain(&[op << 3 | form], No, undefined));
    }
    plain(&[0x63], No, 0);
    plain(&[0x69], Full, SF | ZF | AF | PF);
    plain(&[0x6b], Byte, SF | ZF | AF | PF);
    plain(&[0x84], No, AF);
    plain(&[0x85], No, AF);
    (0x86..0x8c).for_each(|opcode| plain(&[opcode], No, 0));
    (0x40..0x50).for_each(|opcode| plain(&[0x0f, opcode], No, 0));
    (0x90..0xa0).for_each(|opcode| plain(&[0x0f, opcode], No, 0));
    for opcode in [0xa3, 0xab, 0xb3, 0xbb] {
        plain(&[0x0f, opcode], No, OF | SF | AF | PF);
    }
    plain(&[0x0f, 0xaf], No, SF | ZF | AF | PF);
    for opcode in [0xb0, 0xb1, 0xb6, 0xb7, 0xbe, 0xbf, 0xc0, 0xc1] {
        plain(&[0x0f, opcode], No, 0);
    }
    plain(&[0x0f, 0xbc], No, ALL & !ZF);
    plain(&[0x0f, 0xbd], No, ALL & !ZF);
    for opcode in [0xa4, 0xac] {
        plain(&[0x0f, opcode], Byte, AF | OF);
        plain(&[0x0f, opcode + 1], No, AF | OF);
    }
    list.extend(groups());
    list
}

/// Those whose ModRM.reg is part of the opcode.
fn groups() -> Vec<Template> {
    use Immediate::{Byte, Full, None as No};
    let mut list = Vec::new();
    let mut group = |opcode: &[u8], extension, immediate, undefined| {
        list.push(Template {
            extension: Some(extension),
            ..template(opcode, immediate, undefined)
        });
    };
    for op in 0..8 {
        let undefined = if matches!(op, 1 | 4 | 6) { AF } else { 0 };
        group(&[0x80], op, Byte, undefined);
        group(&[0x81], op, Full, undefined);
        group(&[0x83], op, Byte, undefined);
        let shifted = if op < 4 { OF } else { AF | OF | CF };
        for opcode in [0xc0, 0xc1] {
            group(&[opcode], op, Byte, shifted);
        }
        for opcode in [0xd0, 0xd1] {
            group(&[opcode], op, No, if op < 4 { 0 } else { AF });
        }
        for opcode in [0xd2, 0xd3] {
            group(&[opcode], op, No, shifted);
        }
    }
    for opcode in [0xf6, 0xf7] {
        group(&[opcode], 0, if opcode == 0xf6 { Byte } else { Full }, AF);
        group(&[opcode], 2, No, 0);
        group(&[opcode], 3, No, 0);
        group(&[opcode], 4, No, SF | ZF | AF | PF);
        group(&[opcode], 5, No, SF | ZF | AF | PF);
        group(&[opcode], 6, No, ALL);
        group(&[opcode], 7, No, ALL);
        let steps = opcode | 8;
        group(&[steps], 0, No, 0);
        group(&[steps], 1, No, 0);
    }
    (4..8).for_each(|op| group(&[0x0f, 0xba], op, Byte, OF | SF | AF | PF));
    list
}

/// A register other than RSP, in any of its encodings.
fn register(random: &mut Random) -> u8 {
    loop {
        let number = random.below(16) as u8;
        if number != RSP {
            return number;
        }
    }
}

fn encode(template: &Template, random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    // 16-bit double shifts by more than 16 have no defined result; they are left out.
    let double_shift = matches!(
        template.opcode.as_slice(),
        [0x0f, 0xa4 | 0xa5 | 0xac | 0xad]
    );
    let short = random.one_in(3) && !double_shift;
    let wide = random.one_in(2);
    if short {
        code.push(0x66);
    }
    let reg = template.extension.unwrap_or_else(|| register(random));
    let rm = register(random);
    code.push(0x40 | u8::from(wide) << 3 | (reg & 8) >> 1 | (rm & 8) >> 3);
    code.extend(&template.opcode);
    code.push(0xc0 | (reg & 7) << 3 | rm & 7);
    let immediate = random.next();
    match (template.immediate, short && !wide) {
        (Immediate::None, _) => {}
        (Immediate::Byte, _) => code.push(immediate as u8),
        (Immediate::Full, true) => code.extend((immediate as u16).to_le_bytes()),
        (Immediate::Full, false) => code.extend((immediate as u32).to_le_bytes()),
    }
    code
}

fn new_cpu() -> Cpu {
    let shared = Shared {
        memory: Arc::default(),
        clock: Arc::new(Clock::new(ClockMode::Instructions)),
        lapic: None,
        signal: Arc::default(),
        io_events: Arc::default(),
    };
    let mut cpu = Cpu::new(0, cpuid::table(), shared);
    cpu.width = Width::Bits64;
    cpu
}

fn check(template: &Template, code: &[u8], state: &mut State, run: (&mut Host, &mut Cpu)) {
    let (host, cpu) = run;
    let decoded = decode(code, 0, Width::Bits64).unwrap();
    assert_eq!(usize::from(decoded.op.len()), code.len(), "{code:02x?}");
    for (number, value) in (0..).zip(state.gpr_in) {
        cpu.set_reg(number, value);
    }
    cpu.lazy.load(state.flags_in);
    let outcome = (decoded.op.f)(cpu, &decoded.op);
    let signal = host.run(state);
    let faulted = outcome == Err(Stop::Fault) && cpu.fault.vector == DE;
    assert!(outcome.is_ok() || faulted, "{code:02x?} {outcome:?}");
    assert_eq!(
        faulted,
        signal == libc::SIGFPE,
        "{code:02x?} signal {signal}"
    );
    let registers: Vec<u64> = (0..16).map(|number| cpu.reg(number)).collect();
    let about = format!(
        "{code:02x?} {template:?}\n in {:x?} flags {:x}\n host {:x?} flags {:x}\n here {registers:x?} flags {:x}",
        state.gpr_in,
        state.flags_in,
        state.gpr_out,
        state.flags_out & ALL,
        cpu.lazy.bits() & ALL,
    );
    assert_eq!(registers, state.gpr_out, "{about}");
    let compared = if faulted {
        0
    } else {
        ALL & !template.undefined
    };
    assert_eq!(
        cpu.lazy.bits() & compared,
        state.flags_out & compared,
        "{about}"
    );
}

#[test]
fn integer_instructions_equal_the_host() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    let mut random = Random::from_environment("integer");
    let (stack, mut host, mut state) = (scratch_stack(), Host::new(), State::new());
    state.fx_in[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    let mut cpu = new_cpu();
    let (mut total, mut failed) = (0, Vec::new());
    let list = templates();
    'templates: for template in &list {
        for _ in 0..cases().div_ceil(PER_PLACEMENT) {
            let code = encode(template, &mut random);
            host.place(&code, &state);
            for _ in 0..PER_PLACEMENT {
                state.gpr_in = std::array::from_fn(|_| random.vector() as u64);
                state.gpr_in[usize::from(RSP)] = stack;
                state.flags_in = 2 | random.next() & ALL;
                let case = || check(template, &code, &mut state, (&mut host, &mut cpu));
                if catch_unwind(AssertUnwindSafe(case)).is_err() {
                    failed.push(template.clone());
                    continue 'templates;
                }
                total += 1;
            }
        }
    }
    println!("integer: {} templates, {total} cases", list.len());
    assert!(failed.is_empty(), "templates that differ: {failed:02x?}");
}
