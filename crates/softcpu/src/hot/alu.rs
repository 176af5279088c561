//! Arithmetic, logic, shifts, products.

use super::{
    asm::{EQUAL, Mem, Rm, alu, at},
    emit::{Emitter, Item},
    exit::Way,
    kind::{by_register, is_memory, shift_count},
    late::Set,
    state::{
        Over, Pending, Turn, Value, after_shift, host, last_field, set_field, turn_field, word_a,
        word_b, word_c, word_d, word_e,
    },
    stubs::{S0, S1, T},
};
use crate::{
    cpu::{RAX, RCX, RDX},
    exec::alu::{Form, Unary},
    quick::{Multiply, Setter},
};

/// The second operand.
#[derive(Clone, Copy, Debug)]
enum Source {
    Guest(u8),
    Constant(i32),
    /// Loaded into [`S0`].
    Loaded,
}

const ADC: u8 = 2;
const SBB: u8 = 3;
const CMP: u8 = 7;
const TEST: u8 = 8;
/// The condition that is CF.
const CARRY: u8 = 2;

fn set_by(number: u8) -> Set {
    match number {
        0 => Set::Add,
        ADC => Set::Adc,
        SBB => Set::Sbb,
        5 => Set::Sub,
        CMP => Set::Cmp,
        TEST => Set::Test,
        _ => Set::Logic,
    }
}

fn shifted(which: u8) -> Set {
    match which {
        5 => Set::Shr,
        7 => Set::Sar,
        _ => Set::Shl,
    }
}

fn writes(number: u8) -> bool {
    number < CMP
}

impl Emitter<'_> {
    pub(super) fn binary(&mut self, item: &Item, setter: Setter) -> bool {
        let Setter { number, form, size } = setter;
        let op = item.op;
        let constant = Source::Constant(op.imm as i32);
        match (form, is_memory(&op)) {
            (Form::RmImm, false) => self.on_register(item, number, size, op.rm, constant),
            (Form::RmReg, false) => {
                self.on_register(item, number, size, op.rm, Source::Guest(op.reg))
            }
            (Form::RegRm, false) => {
                self.on_register(item, number, size, op.reg, Source::Guest(op.rm))
            }
            (Form::RegRm, true) => {
                let mem = self.memory(item, size, false);
                self.asm.load(size, S0, mem);
                self.on_register(item, number, size, op.reg, Source::Loaded)
            }
            (Form::RmImm, true) => self.on_memory(item, number, size, constant),
            (Form::RmReg, true) => self.on_memory(item, number, size, Source::Guest(op.reg)),
        }
    }

    fn operate(&mut self, number: u8, size: u8, rm: Rm, source: Source) {
        let reg = match source {
            Source::Constant(value) if number == TEST => return self.asm.test_imm(size, rm, value),
            Source::Constant(value) => return self.asm.alu_imm(number, size, rm, value),
            Source::Guest(guest) => self.get(guest, S1),
            Source::Loaded => S0,
        };
        if number == TEST {
            self.asm.test(size, rm, reg);
        } else {
            self.asm.alu(number, size, rm, reg);
        }
    }

    /// Has the host's CF be the guest's where operation `number` reads it; whether it can be.
    fn carry_for(&mut self, number: u8) -> bool {
        !matches!(number, ADC | SBB) || self.state.show(&mut self.asm, CARRY)
    }

    fn on_register(
        &mut self,
        item: &Item,
        number: u8,
        size: u8,
        guest: u8,
        source: Source,
    ) -> bool {
        if !self.carry_for(number) {
            return self.leave(item, Way::Step);
        }
        let set = set_by(number);
        let carries = item.seen && matches!(set, Set::Adc | Set::Sbb);
        let kept = match source {
            Source::Constant(value) => Value::Constant(value),
            Source::Guest(other) if other != guest || !writes(number) => Value::Guest(other),
            _ => Value::Saved,
        };
        if item.seen && kept == Value::Saved && set != Set::Logic {
            let from = match source {
                Source::Guest(other) => self.get(other, S1),
                _ => S0,
            };
            self.asm.store(3, word_b(), from);
        }
        let register = self.get(guest, T);
        if carries {
            self.asm.store(3, word_a(), register);
        }
        self.operate(number, size, Rm::Reg(register), source);
        if carries {
            self.asm.store(3, word_e(), register);
        }
        if writes(number) {
            self.done(guest);
        }
        let a = if carries {
            Value::Saved
        } else {
            Value::Guest(guest)
        };
        let b = if set == Set::Logic {
            Value::Saved
        } else {
            kept
        };
        self.sets(item, set, size, (a, b));
        true
    }

    fn on_memory(&mut self, item: &Item, number: u8, size: u8, source: Source) -> bool {
        let mem = self.memory(item, size, writes(number));
        if !writes(number) && !item.seen {
            self.operate(number, size, Rm::Mem(mem), source);
            self.state.set(None);
            return true;
        }
        if !self.carry_for(number) {
            return self.leave(item, Way::Step);
        }
        self.asm.load(size, T, mem);
        let carries = matches!(number, ADC | SBB);
        if item.seen && carries {
            self.asm.store(3, word_a(), T);
        }
        self.operate(number, size, Rm::Reg(T), source);
        if writes(number) {
            self.asm.store(size, mem, T);
        }
        let set = set_by(number);
        if item.seen {
            let word = if carries { word_e() } else { word_a() };
            self.asm.store(3, word, T);
        }
        let b = match source {
            _ if set == Set::Logic => Value::Saved,
            Source::Guest(guest) => Value::Guest(guest),
            Source::Constant(value) => Value::Constant(value),
            Source::Loaded => Value::Saved,
        };
        self.sets(item, set, size, (Value::Saved, b));
        true
    }

    /// Notes what set all flags.
    fn sets(&mut self, item: &Item, set: Set, size: u8, (a, b): (Value, Value)) {
        let pending = Pending { set, size, a, b };
        self.state.set(item.seen.then_some(pending));
    }

    pub(super) fn unary(&mut self, item: &Item, which: Unary, size: u8) {
        let (opcode, digit): (u8, u8) = match which {
            Unary::Inc => (0xfe, 0),
            Unary::Dec => (0xfe, 1),
            Unary::Not => (0xf6, 2),
            Unary::Neg => (0xf6, 3),
        };
        let opcode = [opcode | u8::from(size != 0)];
        let place = is_memory(&item.op).then(|| self.memory(item, size, true));
        if place.is_none() && !matches!(which, Unary::Neg) {
            self.changes(item, item.op.rm);
        }
        let register = match place {
            Some(mem) => {
                self.asm.load(size, T, mem);
                T
            }
            None => self.get(item.op.rm, T),
        };
        self.asm.op(size, &opcode, digit, Rm::Reg(register));
        match place {
            Some(mem) => self.asm.store(size, mem, T),
            None => self.done(item.op.rm),
        }
        let value = match place {
            Some(_) => Value::Saved,
            None => Value::Guest(item.op.rm),
        };
        match which {
            Unary::Not => {}
            Unary::Neg => {
                self.keep_result(item, place, word_a());
                self.sets(item, Set::Neg, size, (value, Value::Saved));
            }
            Unary::Inc | Unary::Dec => {
                self.keep_result(item, place, word_c());
                let down = matches!(which, Unary::Dec);
                let over = Over {
                    down,
                    size,
                    c: value,
                };
                self.state.over = item.seen.then_some(over);
                self.state.turned_last = false;
                self.state.host |= host::ALL & !host::CARRY;
            }
        }
    }

    fn keep_result(&mut self, item: &Item, place: Option<Mem>, word: Mem) {
        if place.is_some() && item.seen {
            self.asm.store(3, word, T);
        }
    }

    /// A shift or rotation of a register.
    pub(super) fn shift(&mut self, item: &Item, which: u8, size: u8) {
        if by_register(&item.op) {
            return self.shift_by_cl(item, which, size);
        }
        let (guest, count) = (item.op.rm, shift_count(&item.op, size));
        if count == 0 {
            self.changes(item, guest);
            let register = self.get(guest, T);
            self.asm.op(size, &[0x89], register, Rm::Reg(register));
            return self.done(guest);
        }
        if which < 4 {
            return self.rotate(item, which, size, count);
        }
        let register = self.get(guest, T);
        if item.seen {
            self.asm.store(3, word_a(), register);
        }
        self.asm.shift(which, size, register, count);
        self.done(guest);
        let count_value = Value::Constant(count.into());
        self.sets(item, shifted(which), size, (Value::Saved, count_value));
        self.state.host = after_shift(count);
    }

    fn rotate(&mut self, item: &Item, which: u8, size: u8, count: u8) {
        let guest = item.op.rm;
        self.changes(item, guest);
        let register = self.get(guest, T);
        self.asm.shift(which, size, register, count);
        self.done(guest);
        let turn = Turn {
            right: which == 1,
            size,
            d: Value::Guest(guest),
        };
        self.state.turn = item.seen.then_some(turn);
        self.state.turned_last = item.seen;
        let kept = self.state.host & !(host::CARRY | host::OVERFLOW);
        self.state.host = kept | after_shift(count) & (host::CARRY | host::OVERFLOW);
    }

    /// By CL, whose value decides whether the flags change.
    fn shift_by_cl(&mut self, item: &Item, which: u8, size: u8) {
        let guest = item.op.rm;
        let mask = if size == 3 { 63 } else { 31 };
        if item.seen {
            self.state.flush(&mut self.asm);
        }
        let register = self.get(guest, T);
        if item.seen && which >= 4 {
            self.asm.test_imm(0, Rm::Reg(RCX), mask);
            let unchanged = self.asm.jump_if(EQUAL);
            self.asm.store(3, word_a(), register);
            self.asm.op(2, &[0x0f, 0xb6], S1, Rm::Reg(RCX));
            self.asm.alu_imm(alu::AND, 2, Rm::Reg(S1), mask);
            self.asm.store(3, word_b(), S1);
            let code = shifted(which).code(size);
            self.asm.store_imm(2, set_field(), code.into());
            self.asm.land(unchanged);
        } else if item.seen {
            self.asm.op(2, &[0x0f, 0xb6], S1, Rm::Reg(RCX));
        }
        self.asm.op(size, &[0xd3], which, Rm::Reg(register));
        if item.seen && which < 4 {
            self.asm.test_imm(0, Rm::Reg(S1), mask);
            let unchanged = self.asm.jump_if(EQUAL);
            self.asm.store(3, word_d(), register);
            let code = if which == 1 { 8 } else { 4 } | size;
            self.asm.store_imm(0, turn_field(), code.into());
            self.asm.store_imm(0, last_field(), 1);
            self.asm.land(unchanged);
        }
        self.done(guest);
        self.state.host = 0;
    }

    pub(super) fn multiply(&mut self, item: &Item, which: Multiply, size: u8) {
        let op = item.op;
        let source = if is_memory(&op) {
            let mem = self.memory(item, size, false);
            self.asm.load(size, S0, mem);
            S0
        } else {
            self.get(op.rm, S1)
        };
        match which {
            Multiply::Wide => {
                self.asm.op(3, &[0xf7], 4, Rm::Reg(source));
                let halves = (Value::Guest(RAX), Value::Guest(RDX));
                self.sets(item, Set::Wide, size, halves);
            }
            Multiply::RmImm => {
                if item.seen {
                    self.asm.store(3, word_a(), source);
                }
                let factor = op.imm as i32;
                let target = Self::target(op.reg);
                self.asm.op(size, &[0x69], target, Rm::Reg(source));
                self.asm.raw(&factor.to_le_bytes());
                self.done(op.reg);
                let values = (Value::Saved, Value::Constant(factor));
                self.sets(item, Set::Product, size, values);
            }
            Multiply::RegRm => {
                let target = self.get(op.reg, T);
                if item.seen {
                    self.asm.store(3, word_a(), target);
                    self.asm.store(3, word_b(), source);
                }
                self.asm.op(size, &[0x0f, 0xaf], target, Rm::Reg(source));
                self.done(op.reg);
                let values = (Value::Saved, Value::Saved);
                self.sets(item, Set::Product, size, values);
            }
        }
        self.state.host = host::CARRY | host::OVERFLOW;
    }

    /// A loaded operand's place once it has been loaded.
    pub(super) fn loaded(&mut self, size: u8, mem: Mem) -> u8 {
        self.asm.load(size, S0, mem);
        debug_assert_eq!(at(S0, 0).base, mem.base);
        S0
    }
}
