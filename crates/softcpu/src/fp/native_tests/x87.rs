//! Every x87 instruction, register and memory forms, on random states of the whole unit.

use super::host::{Host, State, address_of, scratch_stack};
use super::random::{Random, cases};
use crate::fp::x87::{EnvironmentFormat, F80, Form, LARGEST_STORE, Outcome, X87, form};
use crate::fp::{Fpu, IMAGE_BYTES};

use std::panic::{AssertUnwindSafe, catch_unwind};

const RSI: usize = 6;
const OPERAND: usize = 32;
const PER_PLACEMENT: u64 = 100;
const FLAGS: u64 = 0x8d5;
const FORMAT: EnvironmentFormat = EnvironmentFormat::Protected32;

/// Instructions whose last place processors do not agree on.
fn is_transcendental(opcode: u8, modrm: u8) -> bool {
    opcode == 0xd9 && matches!(modrm, 0xf0..=0xf3 | 0xf9 | 0xfb | 0xfe | 0xff)
}

fn put_register(state: &mut State, index: usize, (significand, sign_exponent): (u64, u16)) {
    let at = 32 + 16 * index;
    state.fx_in[at..at + 8].copy_from_slice(&significand.to_le_bytes());
    state.fx_in[at + 8..at + 10].copy_from_slice(&sign_exponent.to_le_bytes());
}

fn control(random: &mut Random) -> u16 {
    let word = random.next() as u16 & 0x1f3f | 0x40;
    match random.below(4) {
        0 => 0x37f,
        1 => word,
        _ => word | 0x3f,
    }
}

fn fill(state: &mut State, random: &mut Random, stack: u64) {
    let control = control(random);
    state.fx_in[0..2].copy_from_slice(&control.to_le_bytes());
    let mut status = random.next() as u16 & 0x7f7f;
    if random.one_in(2) {
        status &= !0x7f;
    }
    // An exception that waits is a case of its own, not the usual one.
    if !random.one_in(8) {
        status &= !(0x3f & !control);
    }
    state.fx_in[2..4].copy_from_slice(&status.to_le_bytes());
    state.fx_in[4] = if random.one_in(3) {
        random.next() as u8
    } else {
        0x7f
    };
    if !random.one_in(3) {
        state.fx_in[4] = 0x7f_u8.rotate_left(u32::from((status >> 11) & 7));
    }
    for index in 0..8 {
        let value = random.extended();
        put_register(state, index, value);
    }
    if random.one_in(3) {
        near(state, random);
    }
    state.fx_in[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    for index in 0..16 {
        state.gpr_in[index] = random.next();
    }
    for chunk in state.memory.0.chunks_exact_mut(16) {
        chunk.copy_from_slice(&random.vector().to_le_bytes());
    }
    if random.one_in(2) {
        let (significand, sign_exponent) = random.extended();
        state.memory.0[OPERAND..OPERAND + 8].copy_from_slice(&significand.to_le_bytes());
        state.memory.0[OPERAND + 8..OPERAND + 10].copy_from_slice(&sign_exponent.to_le_bytes());
    }
    state.gpr_in[4] = stack;
    state.gpr_in[RSI] = address_of(&state.memory) + OPERAND as u64;
    state.flags_in = 2 | random.next() & FLAGS;
}

/// Operands close to one another: cancellation, equal numbers, small quotients.
fn near(state: &mut State, random: &mut Random) {
    let (significand, sign_exponent) = random.extended();
    for index in 0..8 {
        let shift = random.below(3) as u16;
        let flip = random.next() as u16 & 0x8000;
        let changed = significand ^ (random.below(4) * random.below(2));
        put_register(
            state,
            index,
            (changed, (sign_exponent ^ flip).wrapping_add(shift)),
        );
    }
}

fn fpu(image: &[u8; IMAGE_BYTES]) -> Fpu {
    let mut fpu = Fpu::default();
    fpu.restore(image, true, 16).unwrap();
    fpu
}

/// What the model makes of the instruction.
struct Expected {
    x87: X87,
    pending: bool,
    rax: u64,
    flags: u64,
    memory: [u8; 192],
}

fn model(opcode: u8, modrm: u8, state: &State) -> Expected {
    let mut x87 = fpu(&state.fx_in).x87;
    let mut expected = Expected {
        pending: x87.begin(opcode, modrm, FORMAT).is_err(),
        rax: state.gpr_in[0],
        flags: state.flags_in & FLAGS,
        memory: state.memory.0,
        x87: x87.clone(),
    };
    if expected.pending {
        return expected;
    }
    match form(opcode, modrm, FORMAT).unwrap() {
        Form::Register => match x87.register_form(opcode, modrm, state.flags_in).unwrap() {
            Outcome::Done => {}
            Outcome::Ax(value) => expected.rax = expected.rax & !0xffff | u64::from(value),
            Outcome::Flags(flags) => expected.flags = flags.into(),
        },
        Form::Load(bytes) => {
            let memory = &state.memory.0[OPERAND..OPERAND + bytes];
            x87.load_form(opcode, modrm, memory, FORMAT);
        }
        Form::Store(_) => {
            let mut out = [0; LARGEST_STORE];
            let bytes = x87.store_form(opcode, modrm, &mut out, FORMAT);
            expected.memory[OPERAND..OPERAND + bytes].copy_from_slice(&out[..bytes]);
        }
    }
    expected.x87 = x87;
    expected
}

/// The distance in units of the last place.
fn distance(a: F80, b: F80) -> u64 {
    if a == b {
        return 0;
    }
    if a.is_negative() != b.is_negative() {
        return u64::MAX;
    }
    let key = |x: F80| {
        let exponent = u128::from(x.sign_exponent & 0x7fff);
        (exponent << 63) + u128::from(x.significand & (u64::MAX >> 1))
    };
    u64::try_from(key(a).abs_diff(key(b))).unwrap_or(u64::MAX)
}

/// Operands outside the range an instruction is defined for.
fn is_out_of_range(opcode: u8, modrm: u8, x87: &X87) -> bool {
    let st0 = x87.st(0);
    let exponent = st0.sign_exponent & 0x7fff;
    match (opcode, modrm) {
        (0xd9, 0xf0) => exponent >= 0x3fff,
        (0xd9, 0xf9) => exponent > 0x3ffd || (exponent == 0x3ffd && st0.significand >> 56 > 0x95),
        _ => false,
    }
}

fn check(opcode: u8, modrm: u8, state: &mut State, host: &mut Host) {
    let expected = model(opcode, modrm, state);
    let signal = host.run(state);
    let before = fpu(&state.fx_in).x87;
    let after = fpu(&state.fx_out).x87;
    let about = || {
        format!(
            "{opcode:02x} {modrm:02x}: signal {signal} memory {:02x?}\n before {}\n host   {}\n \
             model  {}",
            &state.memory.0[OPERAND..OPERAND + 12],
            text(&before),
            text(&after),
            text(&expected.x87)
        )
    };
    assert_eq!(signal == libc::SIGFPE, expected.pending, "{}", about());
    assert_eq!(expected.x87.control(), after.control(), "{}", about());
    assert_eq!(expected.x87.tag_word(), after.tag_word(), "{}", about());
    let loose = is_transcendental(opcode, modrm);
    // C1, UE and PE depend on the last place.
    let ignored = if loose { 0x0230 } else { 0 };
    let status = |x87: &X87| x87.status_word() & !ignored;
    if !loose || before.control().bits() & 0x30 == 0x30 {
        assert_eq!(status(&expected.x87), status(&after), "{}", about());
    }
    for index in 0..8 {
        let apart = distance(expected.x87.st(index), after.st(index));
        assert!(
            apart <= u64::from(loose),
            "st{index}, {apart} apart: {}",
            about()
        );
    }
    assert_eq!(expected.rax, state.gpr_out[0], "{}", about());
    assert_eq!(expected.flags, state.flags_out & FLAGS, "{}", about());
    assert_eq!(expected.memory, state.memory.0, "{}", about());
}

fn text(x87: &X87) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "cw {:04x} sw {:04x} tags {:04x}",
        x87.control().bits(),
        x87.status_word(),
        x87.tag_word()
    );
    for index in 0..3 {
        let register = x87.st(index);
        let _ = write!(
            text,
            " {:04x}:{:016x}",
            register.sign_exponent, register.significand
        );
    }
    text
}

fn is_defined(opcode: u8, modrm: u8) -> bool {
    X87::default().begin(opcode, modrm, FORMAT).is_ok()
}

#[test]
fn every_instruction_equals_the_host() {
    let mut random = Random::from_environment("x87");
    let stack = scratch_stack();
    let mut host = Host::new();
    let mut state = State::new();
    let (mut forms, mut total, mut failed) = (0, 0, Vec::new());
    for opcode in 0xd8..=0xdf_u8 {
        let memory_forms = (0..8).map(|reg| reg << 3 | RSI as u8);
        for modrm in memory_forms.chain(0xc0..=0xff) {
            if !is_defined(opcode, modrm) {
                continue;
            }
            forms += 1;
            host.place(&[opcode, modrm], &state);
            for _ in 0..cases().div_ceil(PER_PLACEMENT) * PER_PLACEMENT {
                fill(&mut state, &mut random, stack);
                if is_out_of_range(opcode, modrm, &fpu(&state.fx_in).x87) {
                    continue;
                }
                let run = AssertUnwindSafe(|| check(opcode, modrm, &mut state, &mut host));
                if catch_unwind(run).is_err() {
                    failed.push((opcode, modrm));
                    break;
                }
                total += 1;
            }
        }
    }
    assert!(failed.is_empty(), "forms that differ: {failed:x?}");
    println!("x87: {forms} forms, {total} cases");
    assert!(forms > 350);
}
