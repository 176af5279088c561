//! The one-byte opcode map.

use super::{Decoder, Short};
use crate::{
    cpu::{CS, DS, ES, SS},
    exec::{
        alu::{self, Form, Unary},
        branch, decimal, far, io, moves, muldiv, segment, shift, stack, state, string, system, x87,
    },
    hot::Kind,
    op::{Handler, kind},
    quick::{self, Multiply},
};

/// `jcc`.
pub(super) fn jump_if(code: u8) -> Handler {
    macro_rules! table {
        ($($n:literal)*) => { match code & 15 { $($n => branch::jcc::<$n>,)* _ => branch::jcc::<15> } };
    }
    table!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

impl Decoder<'_> {
    pub(super) fn one_byte(&mut self, opcode: u8) -> Result<(), Short> {
        match opcode {
            0x00..=0x3f => self.arithmetic(opcode),
            0x40..=0x4f => {
                let which = if opcode < 0x48 {
                    Unary::Inc
                } else {
                    Unary::Dec
                };
                self.op.rm = opcode & 7;
                let size = self.operand();
                self.finish(alu::unary(which, size, false), size);
                self.quick_unary(which, size);
                Ok(())
            }
            0x50..=0x5f => {
                self.push_pop(opcode);
                Ok(())
            }
            0x60..=0x6f => self.row_6(opcode),
            0x70..=0x7f => {
                let size = self.branch_operand();
                self.target(1, size)?;
                self.end_with(jump_if(opcode), size);
                self.quick_jump(opcode);
                Ok(())
            }
            0x80..=0x8f => self.row_8(opcode),
            0x90..=0x9f => self.row_9(opcode),
            0xa0..=0xaf => self.row_a(opcode),
            0xb0..=0xbf => self.move_immediate(opcode),
            0xc0..=0xcf => self.row_c(opcode),
            0xd0..=0xdf => self.row_d(opcode),
            0xe0..=0xef => self.row_e(opcode),
            _ => self.row_f(opcode),
        }
    }

    fn arithmetic(&mut self, opcode: u8) -> Result<(), Short> {
        let number = opcode >> 3;
        let size = if opcode & 1 == 0 { 0 } else { self.operand() };
        let (form, modrm) = match opcode & 7 {
            0 | 1 => (Form::RmReg, true),
            2 | 3 => (Form::RegRm, true),
            4 | 5 => (Form::RmImm, false),
            _ => return self.old_segments(opcode),
        };
        if modrm {
            self.read_modrm_sized(size)?;
        } else {
            self.immediate(size)?;
        }
        let mem = self.mem();
        self.finish(alu::handler(number, form, size, mem), size);
        self.quick_binary(number, form, size);
        Ok(())
    }

    /// Pushes and pops of segment registers and the decimal adjustments, between the others.
    fn old_segments(&mut self, opcode: u8) -> Result<(), Short> {
        if self.long() {
            self.undefined();
            return Ok(());
        }
        let size = self.operand();
        self.op.reg = opcode >> 3 & 3;
        match opcode {
            0x06 | 0x0e | 0x16 | 0x1e => self.finish(segment::push, size),
            0x07 | 0x17 | 0x1f => self.end_with(segment::pop, size),
            0x27 => self.set(decimal::packed::<false>),
            0x2f => self.set(decimal::packed::<true>),
            0x37 => self.set(decimal::unpacked::<false>),
            0x3f => self.set(decimal::unpacked::<true>),
            _ => self.undefined(),
        }
        Ok(())
    }

    fn push_pop(&mut self, opcode: u8) {
        let size = self.stack_operand();
        self.op.rm = opcode & 7 | (self.rex & 1) << 3;
        let f: Handler = match (opcode < 0x58, size) {
            (true, 3) => stack::push_reg64,
            (true, _) => stack::push,
            (false, 3) => stack::pop_reg64,
            (false, _) => stack::pop,
        };
        self.finish(f, size);
        if opcode < 0x58 {
            self.quick_stack(size, quick::push(), Kind::Push);
        } else {
            self.quick_stack(size, quick::pop(), Kind::Pop);
        }
    }

    fn row_6(&mut self, opcode: u8) -> Result<(), Short> {
        let size = self.operand();
        match opcode {
            0x60..=0x62 if self.long() => self.undefined(),
            0x60 => self.finish(stack::pusha, size),
            0x61 => self.finish(stack::popa, size),
            0x62 => {
                self.read_modrm()?;
                let f: Handler = if self.mem() { stack::bound } else { system::ud };
                self.finish(f, size);
            }
            0x63 if self.long() => {
                self.read_modrm()?;
                let mem = self.mem();
                let f = if size == 1 {
                    moves::load(1, mem)
                } else {
                    moves::extension(true, 2, size, mem)
                };
                self.finish(f, size);
                if size == 1 {
                    self.quick_neutral(quick::load(1, &self.op), Kind::Load(1));
                } else {
                    self.quick_extension(true, 2, size);
                }
            }
            0x63 => {
                self.read_modrm()?;
                self.finish(system::arpl, 1);
            }
            0x68 | 0x6a => {
                let size = self.stack_operand();
                if opcode == 0x6a {
                    self.op.imm = self.signed(1)?;
                } else {
                    self.immediate(size)?;
                }
                self.finish(stack::push_imm, size);
                self.quick_stack(size, quick::push_imm(), Kind::PushImmediate);
            }
            0x69 | 0x6b => {
                self.read_modrm()?;
                if opcode == 0x6b {
                    self.op.imm = self.signed(1)?;
                } else {
                    self.immediate(size)?;
                }
                self.finish(muldiv::imul3, size);
                self.quick_multiply(Multiply::RmImm, size);
            }
            0x6c..=0x6f => {
                let size = if opcode & 1 == 0 { 0 } else { size.min(2) };
                let f: Handler = if opcode < 0x6e {
                    string::ins
                } else {
                    string::outs
                };
                self.string(f, size);
                self.ends = true;
            }
            _ => self.undefined(),
        }
        Ok(())
    }

    fn string(&mut self, f: Handler, size: u8) {
        self.set_ea(0, false);
        self.op.index = self.address();
        self.finish(f, size);
        if self.rep != 0 {
            self.ends = true;
        }
    }

    fn row_8(&mut self, opcode: u8) -> Result<(), Short> {
        let size = if opcode & 1 == 0 { 0 } else { self.operand() };
        match opcode {
            0x80..=0x83 => {
                if opcode == 0x82 && self.long() {
                    self.undefined();
                    return Ok(());
                }
                self.read_modrm_sized(size)?;
                if opcode == 0x81 {
                    self.immediate(size)?;
                } else {
                    self.op.imm = self.signed(1)?;
                }
                let (number, mem) = (self.extension(), self.mem());
                self.finish(alu::handler(number, Form::RmImm, size, mem), size);
                self.quick_binary(number, Form::RmImm, size);
            }
            0x84 | 0x85 => {
                self.read_modrm_sized(size)?;
                let mem = self.mem();
                self.finish(alu::handler(8, Form::RmReg, size, mem), size);
                self.quick_binary(8, Form::RmReg, size);
            }
            0x86 | 0x87 => {
                self.read_modrm_sized(size)?;
                self.finish(moves::xchg, size);
            }
            0x88 | 0x89 => {
                self.read_modrm_sized(size)?;
                let mem = self.mem();
                self.finish(moves::store(size, mem), size);
                self.quick_neutral(quick::store(size, &self.op), Kind::Store(size));
            }
            0x8a | 0x8b => {
                self.read_modrm_sized(size)?;
                let mem = self.mem();
                self.finish(moves::load(size, mem), size);
                self.quick_neutral(quick::load(size, &self.op), Kind::Load(size));
            }
            0x8c | 0x8e => self.move_segment(opcode)?,
            0x8d => {
                self.read_modrm()?;
                let size = self.operand();
                if !self.mem() {
                    self.undefined();
                } else if size == 3 && self.op.kind() <= kind::BASED {
                    self.finish(moves::lea64, size);
                } else {
                    self.finish(moves::lea, size);
                }
                if self.mem() {
                    self.quick_lea(size);
                }
            }
            _ => {
                self.read_modrm()?;
                let size = self.stack_operand();
                if self.extension() == 0 {
                    self.finish(stack::pop, size);
                } else {
                    self.undefined();
                }
            }
        }
        Ok(())
    }

    fn move_segment(&mut self, opcode: u8) -> Result<(), Short> {
        self.read_modrm()?;
        let size = self.operand();
        let number = self.extension();
        self.op.reg = number;
        if number > 5 || (opcode == 0x8e && usize::from(number) == CS) {
            self.undefined();
        } else if opcode == 0x8c {
            self.finish(segment::store, size);
        } else {
            self.end_with(segment::load, size);
        }
        Ok(())
    }

    fn row_9(&mut self, opcode: u8) -> Result<(), Short> {
        let size = self.operand();
        match opcode {
            0x90 if self.rex & 1 == 0 => {
                if self.rep == crate::op::REP {
                    self.end_with(moves::pause, size);
                } else {
                    self.set(moves::nop);
                    self.quick_neutral(Some(quick::nop()), Kind::Nop);
                }
            }
            0x90..=0x97 => {
                self.op.rm = opcode & 7 | (self.rex & 1) << 3;
                self.finish(moves::xchg, size);
            }
            0x98 => {
                self.finish(moves::widen, size);
                self.quick_widen(false, size);
            }
            0x99 => {
                self.finish(moves::sign, size);
                self.quick_widen(true, size);
            }
            0x9a => self.far_pointer(far::call)?,
            0x9b => self.set(state::wait),
            0x9c => self.finish(stack::pushf, self.stack_operand()),
            0x9d => self.end_with(stack::popf, self.stack_operand()),
            0x9e => self.set(moves::sahf),
            _ => self.set(moves::lahf),
        }
        Ok(())
    }

    /// An immediate far pointer: offset in `imm`, selector in `disp`.
    fn far_pointer(&mut self, f: Handler) -> Result<(), Short> {
        if self.long() {
            self.undefined();
            return Ok(());
        }
        let size = self.operand();
        self.op.imm = self.number(1 << size)?;
        self.op.disp = self.number(2)?;
        self.end_with(f, size);
        Ok(())
    }

    fn row_a(&mut self, opcode: u8) -> Result<(), Short> {
        let size = if opcode & 1 == 0 { 0 } else { self.operand() };
        match opcode {
            0xa0..=0xa3 => {
                self.op.disp = self.number(1 << self.address())?;
                self.set_ea(0, false);
                let f = if opcode < 0xa2 {
                    moves::load(size, true)
                } else {
                    moves::store(size, true)
                };
                self.finish(f, size);
            }
            0xa4 | 0xa5 => self.string(string::movs, size),
            0xa6 | 0xa7 => self.string(string::cmps, size),
            0xa8 | 0xa9 => {
                self.immediate(size)?;
                self.finish(alu::handler(8, Form::RmImm, size, false), size);
                self.quick_binary(8, Form::RmImm, size);
            }
            0xaa | 0xab => self.string(string::stos, size),
            0xac | 0xad => self.string(string::lods, size),
            _ => self.string(string::scas, size),
        }
        Ok(())
    }

    fn move_immediate(&mut self, opcode: u8) -> Result<(), Short> {
        let number = opcode & 7 | (self.rex & 1) << 3;
        if opcode < 0xb8 {
            self.op.rm = self.byte_register(number);
            self.op.imm = self.number(1)?;
            self.finish(moves::immediate(0, false), 0);
            self.quick_neutral(quick::immediate(0, &self.op), Kind::Immediate(0));
        } else {
            let size = self.operand();
            self.op.rm = number;
            self.op.imm = self.number(1 << size)?;
            self.finish(moves::immediate(size, false), size);
            self.quick_neutral(quick::immediate(size, &self.op), Kind::Immediate(size));
        }
        Ok(())
    }

    fn row_c(&mut self, opcode: u8) -> Result<(), Short> {
        let size = if opcode & 1 == 0 { 0 } else { self.operand() };
        match opcode {
            0xc0 | 0xc1 => {
                self.read_modrm_sized(size)?;
                self.op.imm = self.number(1)?;
                self.shift(size);
            }
            0xc2 | 0xc3 => {
                if opcode == 0xc2 {
                    self.op.imm = self.number(2)?;
                }
                let size = self.branch_operand();
                self.end_with(branch::ret, size);
                self.quick_branch(Some(quick::ret()), Kind::Return);
            }
            0xc4 | 0xc5 => {
                self.read_modrm()?;
                if self.long() || !self.mem() {
                    self.undefined();
                } else {
                    self.op.imm = if opcode == 0xc4 { ES } else { DS } as u64;
                    self.end_with(segment::load_far, self.operand());
                }
            }
            0xc6 | 0xc7 => {
                self.read_modrm_sized(size)?;
                self.immediate(size)?;
                let mem = self.mem();
                if self.extension() == 0 {
                    self.finish(moves::immediate(size, mem), size);
                    self.quick_neutral(quick::immediate(size, &self.op), Kind::Immediate(size));
                } else {
                    self.undefined();
                }
            }
            0xc8 => {
                self.op.imm = self.number(2)?;
                self.op.reg = self.byte()?;
                self.finish(stack::enter, self.stack_operand());
            }
            0xc9 => {
                let size = self.stack_operand();
                self.finish(stack::leave, size);
                self.quick_stack(size, quick::leave(), Kind::Leave);
            }
            0xca | 0xcb => {
                if opcode == 0xca {
                    self.op.imm = self.number(2)?;
                }
                self.end_with(far::ret, self.operand());
            }
            0xcc => self.end_with(far::int3, size),
            0xcd => {
                self.op.imm = self.number(1)?;
                self.end_with(far::int, size);
            }
            0xce if self.long() => self.undefined(),
            0xce => self.end_with(far::into, size),
            _ => self.end_with(far::iret, self.operand()),
        }
        Ok(())
    }

    /// A shift whose count is in `imm`.
    fn shift(&mut self, size: u8) {
        self.op.reg = self.extension();
        self.finish(shift::group, size);
        let which = self.op.reg;
        self.quick(
            quick::shift(which, size, &self.op),
            Kind::Shift(which, size),
        );
        self.flow = quick::shift_flow(self.op.reg, size, &self.op);
    }

    fn row_d(&mut self, opcode: u8) -> Result<(), Short> {
        let size = if opcode & 1 == 0 { 0 } else { self.operand() };
        match opcode {
            0xd0..=0xd3 => {
                self.read_modrm_sized(size)?;
                self.op.imm = if opcode < 0xd2 { 1 } else { 0x100 };
                self.shift(size);
            }
            0xd4..=0xd6 if self.long() => self.undefined(),
            0xd4 | 0xd5 => {
                self.op.imm = self.number(1)?;
                self.set(if opcode == 0xd4 {
                    decimal::aam
                } else {
                    decimal::aad
                });
            }
            0xd6 => self.set(decimal::salc),
            0xd7 => {
                self.op.index = crate::op::NO_REG;
                self.set_ea(0, false);
                self.set(moves::xlat);
            }
            _ => {
                self.read_modrm()?;
                self.op.imm = u64::from(opcode) | u64::from(self.modrm) << 8;
                let size = self.operand();
                self.finish(x87::run, size);
            }
        }
        Ok(())
    }

    fn row_e(&mut self, opcode: u8) -> Result<(), Short> {
        let size = self.branch_operand();
        match opcode {
            0xe0..=0xe3 => {
                self.target(1, size)?;
                self.op.reg = self.address();
                let f: Handler = match opcode {
                    0xe0 => branch::repeat::<0>,
                    0xe1 => branch::repeat::<1>,
                    0xe2 => branch::repeat::<2>,
                    _ => branch::jcxz,
                };
                self.end_with(f, size);
            }
            0xe8 | 0xe9 => {
                self.target(if size == 1 { 2 } else { 4 }, size)?;
                let f: Handler = if opcode == 0xe8 {
                    branch::call
                } else {
                    branch::jmp
                };
                self.end_with(f, size);
                if opcode == 0xe8 {
                    self.quick_branch(Some(quick::call()), Kind::Call);
                } else {
                    self.quick_branch(Some(quick::jmp()), Kind::Jump);
                }
            }
            0xea => self.far_pointer(far::jmp)?,
            0xeb => {
                self.target(1, size)?;
                self.end_with(branch::jmp, size);
                self.quick_branch(Some(quick::jmp()), Kind::Jump);
            }
            _ => {
                self.op.imm = if opcode & 8 == 0 {
                    self.number(1)?
                } else {
                    0x100
                };
                let size = if opcode & 1 == 0 {
                    0
                } else {
                    self.operand().min(2)
                };
                let f: Handler = if opcode & 2 == 0 { io::read } else { io::write };
                self.end_with(f, size);
            }
        }
        Ok(())
    }

    fn row_f(&mut self, opcode: u8) -> Result<(), Short> {
        let size = if opcode & 1 == 0 { 0 } else { self.operand() };
        match opcode {
            0xf1 => self.end_with(far::int1, size),
            0xf4 => self.end_with(system::hlt, size),
            0xf5 | 0xf8 | 0xf9 | 0xfc | 0xfd => {
                self.op.imm = opcode.into();
                self.set(system::flag);
            }
            0xfa => self.set(system::cli),
            0xfb => self.end_with(system::sti, size),
            0xf6 | 0xf7 => self.group_3(size)?,
            0xfe | 0xff => self.group_5(opcode, size)?,
            _ => self.undefined(),
        }
        Ok(())
    }

    fn group_3(&mut self, size: u8) -> Result<(), Short> {
        self.read_modrm_sized(size)?;
        let mem = self.mem();
        let f: Handler = match self.extension() {
            0 | 1 => {
                self.immediate(size)?;
                alu::handler(8, Form::RmImm, size, mem)
            }
            2 => alu::unary(Unary::Not, size, mem),
            3 => alu::unary(Unary::Neg, size, mem),
            4 => muldiv::mul,
            5 => muldiv::imul,
            6 => muldiv::div,
            _ => muldiv::idiv,
        };
        self.finish(f, size);
        if self.extension() < 2 {
            self.quick_binary(8, Form::RmImm, size);
            return Ok(());
        }
        match self.extension() {
            2 => self.quick_unary(Unary::Not, size),
            3 => self.quick_unary(Unary::Neg, size),
            4 => self.quick_multiply(Multiply::Wide, size),
            _ => {}
        }
        Ok(())
    }

    fn group_5(&mut self, opcode: u8, size: u8) -> Result<(), Short> {
        self.read_modrm_sized(size)?;
        let (mem, near, stack) = (self.mem(), self.branch_operand(), self.stack_operand());
        match (self.extension(), opcode) {
            (0, _) => self.finish(alu::unary(Unary::Inc, size, mem), size),
            (1, _) => self.finish(alu::unary(Unary::Dec, size, mem), size),
            (_, 0xfe) => self.undefined(),
            (2, _) => self.end_with(branch::call_rm, near),
            (4, _) => self.end_with(branch::jmp_rm, near),
            (3, _) if mem => self.end_with(far::call_mem, size),
            (5, _) if mem => self.end_with(far::jmp_mem, size),
            (6, _) => self.finish(stack::push, stack),
            _ => self.undefined(),
        }
        match (self.extension(), opcode) {
            (0, _) => self.quick_unary(Unary::Inc, size),
            (1, _) => self.quick_unary(Unary::Dec, size),
            (2, 0xff) => self.quick_branch(quick::call_rm(&self.op), Kind::CallRm),
            (4, 0xff) => self.quick_branch(quick::jmp_rm(&self.op), Kind::JumpRm),
            _ => {}
        }
        Ok(())
    }
}

/// The segment registers that opcodes 0x06 to 0x1f name by their bits 3-4.
const _: () = assert!(ES == 0 && CS == 1 && SS == 2 && DS == 3);
