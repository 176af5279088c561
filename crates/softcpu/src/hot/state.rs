//! The flags while code is made: what set them last, and where its operands are.

use std::mem::offset_of;

use super::{
    asm::{Assembler, Mem, Rm, alu},
    late::{Late, Set},
    stubs::{T, field, pinned, slot},
};
use crate::cpu::Cpu;

/// Flags in the host's register: which of them are the guest's.
pub(super) mod host {
    pub(in crate::hot) const CARRY: u8 = 1;
    pub(in crate::hot) const ZERO: u8 = 2;
    pub(in crate::hot) const SIGN: u8 = 4;
    pub(in crate::hot) const PARITY: u8 = 8;
    pub(in crate::hot) const OVERFLOW: u8 = 16;
    pub(in crate::hot) const ALL: u8 = 31;
}

/// An operand of what set the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// In its word of [`Late`] already, or not needed.
    Saved,
    /// In a guest register.
    Guest(u8),
    Constant(i32),
}

/// What set the flags, not yet in [`Late`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) set: Set,
    pub(super) size: u8,
    pub(super) a: Value,
    pub(super) b: Value,
}

/// `inc` or `dec` on top.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over {
    pub(super) down: bool,
    pub(super) size: u8,
    pub(super) c: Value,
}

/// A rotation on top.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) right: bool,
    pub(super) size: u8,
    pub(super) d: Value,
}

/// The flags at one place of the code.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// `None`: as [`Late`] has it.
    pub(super) base: Option<Pending>,
    pub(super) over: Option<Over>,
    pub(super) turn: Option<Turn>,
    /// The rotation came after `over`.
    pub(super) turned_last: bool,
    /// Of [`host`].
    pub(super) host: u8,
}

fn late(offset: usize) -> Mem {
    field(offset_of!(Cpu, late) + offset)
}

pub(super) fn word_a() -> Mem {
    late(offset_of!(Late, a))
}

pub(super) fn word_b() -> Mem {
    late(offset_of!(Late, b))
}

pub(super) fn word_c() -> Mem {
    late(offset_of!(Late, c))
}

pub(super) fn word_d() -> Mem {
    late(offset_of!(Late, d))
}

pub(super) fn word_e() -> Mem {
    late(offset_of!(Late, e))
}

/// What set all flags, to be stored as four bytes: nothing is on top.
pub(super) fn set_field() -> Mem {
    const { assert!(offset_of!(Late, set) == 0 && offset_of!(Late, last) == 3) };
    late(offset_of!(Late, set))
}

/// The rotation on top.
pub(super) fn turn_field() -> Mem {
    late(offset_of!(Late, turn))
}

/// Whether it came last.
pub(super) fn last_field() -> Mem {
    late(offset_of!(Late, last))
}

/// Puts a value into its word; neither flags nor registers but [`T`] change.
fn save(asm: &mut Assembler, value: Value, word: Mem) {
    match value {
        Value::Saved => {}
        Value::Constant(value) => asm.store_imm(3, word, value),
        Value::Guest(guest) => {
            let from = pinned(guest).unwrap_or_else(|| {
                asm.load(3, T, slot(guest));
                T
            });
            asm.store(3, word, from);
        }
    }
}

/// A value as an operand.
fn operand(value: Value, word: Mem) -> Operand {
    match value {
        Value::Saved => Operand::Rm(Rm::Mem(word)),
        Value::Constant(value) => Operand::Constant(value),
        Value::Guest(guest) => {
            Operand::Rm(pinned(guest).map_or_else(|| Rm::Mem(slot(guest)), Rm::Reg))
        }
    }
}

#[derive(Clone, Copy)]
enum Operand {
    Rm(Rm),
    Constant(i32),
}

fn binary(asm: &mut Assembler, number: u8, size: u8, reg: u8, operand: Operand) {
    match operand {
        Operand::Rm(rm) => asm.alu_from(number, size, reg, rm),
        Operand::Constant(value) => asm.alu_imm(number, size, Rm::Reg(reg), value),
    }
}

fn into_t(asm: &mut Assembler, operand: Operand) {
    match operand {
        Operand::Rm(rm) => asm.op(3, &[0x8b], T, rm),
        Operand::Constant(value) => asm.constant(T, i64::from(value).cast_unsigned()),
    }
}

/// The flags that condition `code` reads.
fn needed(code: u8) -> u8 {
    use host::{CARRY, OVERFLOW, PARITY, SIGN, ZERO};
    match code >> 1 & 7 {
        0 => OVERFLOW,
        1 => CARRY,
        2 => ZERO,
        3 => CARRY | ZERO,
        4 => SIGN,
        5 => PARITY,
        6 => SIGN | OVERFLOW,
        _ => ZERO | SIGN | OVERFLOW,
    }
}

/// What of the host's flags is right after a shift by `count`.
pub(super) fn after_shift(count: u8) -> u8 {
    if count == 1 {
        host::ALL
    } else {
        host::ALL & !host::OVERFLOW
    }
}

impl State {
    /// Writes all to [`Late`]. Changes [`T`], no flags.
    pub(super) fn flush(&mut self, asm: &mut Assembler) {
        let base = self.base.take();
        let over = self.over.take();
        let turn = self.turn.take();
        let over_code = over.map_or(0, |over| if over.down { 8 } else { 4 } | over.size);
        let turn_code = turn.map_or(0, |turn| if turn.right { 8 } else { 4 } | turn.size);
        if let Some(over) = over {
            save(asm, over.c, word_c());
        }
        if let Some(turn) = turn {
            save(asm, turn.d, word_d());
        }
        if let Some(pending) = base {
            save(asm, pending.a, word_a());
            save(asm, pending.b, word_b());
            let code = pending.set.code(pending.size);
            let all = [code, over_code, turn_code, self.turned_last.into()];
            return asm.store_imm(2, set_field(), i32::from_le_bytes(all));
        }
        if over.is_some() {
            asm.store_imm(0, late(offset_of!(Late, over)), over_code.into());
        }
        if turn.is_some() {
            asm.store_imm(0, turn_field(), turn_code.into());
        }
        if over.is_some() || turn.is_some() {
            asm.store_imm(0, last_field(), self.turned_last.into());
        }
    }

    /// A full set of flags is pending, or none that anybody will see.
    pub(super) fn set(&mut self, base: Option<Pending>) {
        *self = State {
            base,
            host: host::ALL,
            ..State::default()
        };
    }

    /// Saves what depends on a guest register that is about to change.
    pub(super) fn free(&mut self, asm: &mut Assembler, guest: u8) {
        if let Some(pending) = &mut self.base {
            if pending.a == Value::Guest(guest) {
                save(asm, pending.a, word_a());
                pending.a = Value::Saved;
            }
            if pending.b == Value::Guest(guest) {
                save(asm, pending.b, word_b());
                pending.b = Value::Saved;
            }
        }
        if let Some(over) = &mut self.over
            && over.c == Value::Guest(guest)
        {
            save(asm, over.c, word_c());
            over.c = Value::Saved;
        }
        if let Some(turn) = &mut self.turn
            && turn.d == Value::Guest(guest)
        {
            save(asm, turn.d, word_d());
            turn.d = Value::Saved;
        }
    }

    /// Has the host's flags answer condition `code`; whether that can be had. Changes [`T`].
    pub(super) fn show(&mut self, asm: &mut Assembler, code: u8) -> bool {
        let need = needed(code);
        if self.host & need == need {
            return true;
        }
        // Those that a rotation has set are not made again.
        let turned = if self.turn.is_none() {
            0
        } else if self.turned_last {
            host::CARRY | host::OVERFLOW
        } else {
            host::CARRY
        };
        if need & turned != 0 {
            return false;
        }
        let shown = match (self.over, self.base) {
            (Some(over), _) if need & host::CARRY == 0 => {
                into_t(asm, operand(over.c, word_c()));
                let (undo, redo) = if over.down { (0, 1) } else { (1, 0) };
                let opcode = [if over.size == 0 { 0xfe } else { 0xff }];
                asm.op(over.size, &opcode, undo, Rm::Reg(T));
                asm.op(over.size, &opcode, redo, Rm::Reg(T));
                host::ALL & !host::CARRY
            }
            (None, Some(pending)) => pending.show(asm),
            _ => 0,
        };
        self.host = shown & !turned;
        self.host & need == need
    }
}

impl Pending {
    /// Sets the host's flags anew; which of them are right.
    fn show(self, asm: &mut Assembler) -> u8 {
        let (a, b) = (operand(self.a, word_a()), operand(self.b, word_b()));
        let size = self.size;
        match self.set {
            Set::Product | Set::Wide | Set::Adc | Set::Sbb => return 0,
            _ => into_t(asm, a),
        }
        match self.set {
            Set::Add => {
                binary(asm, alu::SUB, size, T, b);
                binary(asm, alu::ADD, size, T, b);
            }
            Set::Sub => {
                binary(asm, alu::ADD, size, T, b);
                binary(asm, alu::SUB, size, T, b);
            }
            Set::Cmp => binary(asm, alu::CMP, size, T, b),
            Set::Test => binary(asm, alu::AND, size, T, b),
            Set::Logic => asm.test(size, Rm::Reg(T), T),
            Set::Neg => {
                let opcode = [if size == 0 { 0xf6 } else { 0xf7 }];
                asm.op(size, &opcode, 3, Rm::Reg(T));
                asm.op(size, &opcode, 3, Rm::Reg(T));
            }
            Set::Shl | Set::Shr | Set::Sar => {
                let Value::Constant(count) = self.b else {
                    return 0;
                };
                let which = match self.set {
                    Set::Shl => 4,
                    Set::Shr => 5,
                    _ => 7,
                };
                asm.shift(which, size, T, count as u8);
                return after_shift(count as u8);
            }
            Set::Product | Set::Wide | Set::Adc | Set::Sbb => {}
        }
        host::ALL
    }
}
