//! The two-byte opcode map.

use super::{Decoder, Short};
use crate::{
    exec::{alu, bits, moves, muldiv, segment, shift, simd, stack, state, system},
    fp::sse::table::{self, Prefix},
    hot::Kind,
    op::{Handler, REP, REPNE},
    quick::{self, Multiply},
};

fn set_if(code: u8) -> Handler {
    macro_rules! table {
        ($($n:literal)*) => { match code & 15 { $($n => moves::setcc::<$n>,)* _ => moves::setcc::<15> } };
    }
    table!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

fn move_if(code: u8) -> Handler {
    macro_rules! table {
        ($($n:literal)*) => { match code & 15 { $($n => moves::cmov::<$n>,)* _ => moves::cmov::<15> } };
    }
    table!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

impl Decoder<'_> {
    pub(super) fn two_bytes(&mut self) -> Result<(), Short> {
        let opcode = self.byte()?;
        let size = self.operand();
        match opcode {
            0x00..=0x0f => self.row_0f0(opcode),
            0x18..=0x1f => {
                self.read_modrm()?;
                self.set(moves::nop);
                self.quick_neutral(Some(quick::nop()), Kind::Nop);
                Ok(())
            }
            0x20..=0x23 => self.control(opcode),
            0x30..=0x37 => {
                self.row_0f3(opcode);
                Ok(())
            }
            0x40..=0x4f => {
                self.read_modrm()?;
                self.finish(move_if(opcode), size);
                self.quick(
                    quick::move_if(opcode, size, &self.op),
                    Kind::MoveIf(opcode & 15, size),
                );
                Ok(())
            }
            0x80..=0x8f => {
                let size = self.branch_operand();
                self.target(if size == 1 { 2 } else { 4 }, size)?;
                self.end_with(super::one::jump_if(opcode), size);
                self.quick_jump(opcode);
                Ok(())
            }
            0x90..=0x9f => {
                self.read_modrm_bytes()?;
                self.finish(set_if(opcode), 0);
                self.quick(quick::set_if(opcode, &self.op), Kind::SetIf(opcode & 15));
                Ok(())
            }
            0xa0..=0xaf => self.row_0fa(opcode),
            0xb0..=0xbf => self.row_0fb(opcode),
            0xc0 | 0xc1 | 0xc3 | 0xc7 => self.row_0fc(opcode),
            0xc8..=0xcf => {
                self.op.rm = opcode & 7 | (self.rex & 1) << 3;
                self.finish(moves::bswap, size);
                Ok(())
            }
            _ => self.vectors(opcode),
        }
    }

    fn row_0f0(&mut self, opcode: u8) -> Result<(), Short> {
        let size = self.operand();
        match opcode {
            0x00 => self.group_6()?,
            0x01 => self.group_7()?,
            0x02 | 0x03 => {
                self.read_modrm()?;
                let f: Handler = if opcode == 2 {
                    segment::look::<false>
                } else {
                    segment::look::<true>
                };
                self.finish(f, size);
            }
            0x05 => self.end_with(system::syscall, size),
            0x06 => self.set(system::clts),
            0x07 => self.end_with(system::sysret, size),
            0x08 | 0x09 => self.set(system::cache),
            0x0d => {
                self.read_modrm()?;
                self.set(moves::nop);
            }
            _ => self.undefined(),
        }
        Ok(())
    }

    fn group_6(&mut self) -> Result<(), Short> {
        self.read_modrm()?;
        let size = self.operand();
        match self.extension() {
            0 => self.finish(system::store_system::<false>, size),
            1 => self.finish(system::store_system::<true>, size),
            2 => self.finish(system::lldt, 1),
            3 => self.finish(system::ltr, 1),
            4 => self.finish(segment::verify::<false>, 1),
            5 => self.finish(segment::verify::<true>, 1),
            _ => self.undefined(),
        }
        Ok(())
    }

    fn group_7(&mut self) -> Result<(), Short> {
        self.read_modrm()?;
        let (size, mem) = (self.operand(), self.mem());
        match (self.extension(), mem) {
            (0, true) => self.finish(system::sgdt, size),
            (1, true) => self.finish(system::sidt, size),
            (2, true) => self.finish(system::lgdt, size),
            (3, true) => self.finish(system::lidt, size),
            (4, _) => self.finish(system::smsw, size),
            (6, _) => self.end_with(system::lmsw, 1),
            (7, true) => self.end_with(system::invlpg, size),
            (7, false) if self.modrm == 0xf8 && self.long() => self.set(system::swapgs),
            _ => self.undefined(),
        }
        Ok(())
    }

    fn control(&mut self, opcode: u8) -> Result<(), Short> {
        self.modrm = self.byte()?;
        self.op.reg = self.modrm >> 3 & 7 | (self.rex & 4) << 1;
        self.op.rm = self.modrm & 7 | (self.rex & 1) << 3;
        let size = self.operand();
        let f: Handler = match opcode {
            0x20 => system::from_cr,
            0x21 => system::from_dr,
            0x22 => system::to_cr,
            _ => system::to_dr,
        };
        self.end_with(f, size);
        Ok(())
    }

    fn row_0f3(&mut self, opcode: u8) {
        let size = self.operand();
        match opcode {
            0x30 => self.end_with(system::wrmsr, size),
            0x31 => self.end_with(system::rdtsc, size),
            0x32 => self.end_with(system::rdmsr, size),
            0x33 => self.finish(system::rdpmc, size),
            0x34 => self.end_with(system::sysenter, size),
            0x35 => self.end_with(system::sysexit, size),
            _ => self.undefined(),
        }
    }

    fn row_0fa(&mut self, opcode: u8) -> Result<(), Short> {
        let (size, stack) = (self.operand(), self.stack_operand());
        match opcode {
            0xa0 | 0xa8 => {
                self.op.reg = 4 + (opcode >> 3 & 1);
                self.finish(segment::push, stack);
            }
            0xa1 | 0xa9 => {
                self.op.reg = 4 + (opcode >> 3 & 1);
                self.end_with(segment::pop, stack);
            }
            0xa2 => self.set(system::cpuid),
            0xa3 | 0xab => {
                self.read_modrm()?;
                let f: Handler = if opcode == 0xa3 {
                    bits::by_register::<0>
                } else {
                    bits::by_register::<1>
                };
                self.finish(f, size);
            }
            0xa4 | 0xa5 | 0xac | 0xad => {
                self.read_modrm()?;
                self.op.imm = if opcode & 1 == 0 {
                    self.number(1)?
                } else {
                    0x100
                };
                let f: Handler = if opcode < 0xa8 {
                    shift::double::<true>
                } else {
                    shift::double::<false>
                };
                self.finish(f, size);
            }
            0xae => self.group_15()?,
            0xaf => {
                self.read_modrm()?;
                self.finish(muldiv::imul2, size);
                self.quick_multiply(Multiply::RegRm, size);
            }
            _ => self.undefined(),
        }
        Ok(())
    }

    fn group_15(&mut self) -> Result<(), Short> {
        self.read_modrm()?;
        let (size, mem) = (self.operand(), self.mem());
        if self.rep != 0 || self.operand16 {
            // Of later instruction sets.
            self.undefined();
            return Ok(());
        }
        match (self.extension(), mem) {
            (0, true) => self.finish(state::fxsave, size),
            (1, true) => self.finish(state::fxrstor, size),
            (2, true) => self.finish(state::ldmxcsr, size),
            (3, true) => self.finish(state::stmxcsr, size),
            (7, true) => self.finish(state::clflush, 0),
            (5..=7, false) => self.set(moves::nop),
            _ => self.undefined(),
        }
        Ok(())
    }

    fn row_0fb(&mut self, opcode: u8) -> Result<(), Short> {
        let size = self.operand();
        match opcode {
            0xb0 | 0xb1 => {
                let size = if opcode == 0xb0 { 0 } else { size };
                self.read_modrm_sized(size)?;
                self.finish(alu::cmpxchg, size);
            }
            0xb2 | 0xb4 | 0xb5 => {
                self.read_modrm()?;
                self.op.imm = (opcode & 7).into();
                if self.mem() {
                    self.end_with(segment::load_far, size);
                } else {
                    self.undefined();
                }
            }
            0xb3 | 0xbb => {
                self.read_modrm()?;
                let f: Handler = if opcode == 0xb3 {
                    bits::by_register::<2>
                } else {
                    bits::by_register::<3>
                };
                self.finish(f, size);
            }
            0xb6 | 0xb7 | 0xbe | 0xbf => {
                let from = opcode & 1;
                self.read_modrm()?;
                if from == 0 && !self.mem() {
                    self.op.rm = self.byte_register(self.op.rm);
                }
                let f = moves::extension(opcode >= 0xbe, from, size, self.mem());
                self.finish(f, size);
                self.quick_extension(opcode >= 0xbe, from, size);
            }
            0xba => {
                self.read_modrm()?;
                self.op.imm = self.number(1)?;
                self.op.reg = self.extension() & 3;
                if self.extension() < 4 {
                    self.undefined();
                } else {
                    self.finish(bits::by_immediate, size);
                }
            }
            0xbc | 0xbd => {
                self.read_modrm()?;
                let f: Handler = if opcode == 0xbc { bits::bsf } else { bits::bsr };
                self.finish(f, size);
            }
            _ => {
                self.read_modrm()?;
                self.undefined();
            }
        }
        Ok(())
    }

    fn row_0fc(&mut self, opcode: u8) -> Result<(), Short> {
        let size = if opcode == 0xc0 { 0 } else { self.operand() };
        self.read_modrm_sized(size)?;
        let mem = self.mem();
        match (opcode, self.extension(), mem) {
            (0xc0 | 0xc1, ..) => self.finish(alu::xadd, size),
            (0xc3, _, true) if self.rep == 0 && !self.operand16 => {
                self.finish(stack::store_plain, if size == 3 { 3 } else { 2 })
            }
            (0xc7, 1, true) => self.finish(alu::cmpxchg_pair, size),
            _ => self.undefined(),
        }
        Ok(())
    }

    /// MMX, SSE and SSE2.
    fn vectors(&mut self, opcode: u8) -> Result<(), Short> {
        let plain = self.rep == 0 && !self.operand16;
        if opcode == 0x77 && plain {
            self.set(state::emms);
            return Ok(());
        }
        self.read_modrm()?;
        let immediate = if table::has_immediate(opcode) {
            self.byte()?
        } else {
            0
        };
        let prefix = match (self.rep, self.operand16) {
            (REP, _) => Prefix::F3,
            (REPNE, _) => Prefix::F2,
            (_, true) => Prefix::P66,
            _ => Prefix::None,
        };
        if opcode == 0xf7 && !self.mem() && matches!(prefix, Prefix::None | Prefix::P66) {
            self.set_ea(0, false);
            self.op.index = self.address();
            self.op.imm = (prefix == Prefix::None).into();
            self.set(simd::masked_store);
            return Ok(());
        }
        match table::position(prefix, opcode, self.rex_w(), self.modrm) {
            Some(position) => {
                self.op.imm = simd::encode(position, immediate);
                self.set(simd::run);
            }
            None => self.undefined(),
        }
        Ok(())
    }
}
