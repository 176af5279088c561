//! From opcode byte and ModRM to an operation.

use super::control::ControlWord;
use super::environment::EnvironmentFormat;
use super::register::{F80, Operand};
use super::state::X87;
use super::transcendental::Angular;
use crate::fp::bits::{low16, low32, low64};
use crate::fp::soft::Format;

/// Why an instruction is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// #UD: no such instruction.
    #[error("undefined x87 instruction")]
    Undefined,
    /// #MF: an unmasked exception is pending.
    #[error("x87 exception pending")]
    Pending,
}

/// What an instruction needs of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Nothing: [`X87::register_form`].
    Register,
    /// So many bytes read: [`X87::load_form`].
    Load(usize),
    /// At most so many bytes written: [`X87::store_form`].
    Store(usize),
}

/// What an instruction of register form changes outside the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Done,
    /// AX (FNSTSW AX).
    Ax(u16),
    /// ZF, PF and CF as in EFLAGS; OF, SF and AF become zero.
    Flags(u32),
}

/// Bytes of the largest image a store writes.
pub const LARGEST_STORE: usize = 108;

/// What the instruction needs of memory; none for an undefined one.
#[must_use]
pub const fn form(opcode: u8, modrm: u8, format: EnvironmentFormat) -> Option<Form> {
    if modrm >> 6 == 3 {
        return Some(Form::Register);
    }
    Some(match (opcode & 7, modrm >> 3 & 7) {
        (0 | 2, _) | (1 | 3, 0) => Form::Load(4),
        (4, _) | (5, 0) | (7, 5) => Form::Load(8),
        (6, _) | (7, 0) | (1, 5) => Form::Load(2),
        (1 | 3, 2 | 3) => Form::Store(4),
        (1, 4) => Form::Load(format.bytes()),
        (1, 6) => Form::Store(format.bytes()),
        (1 | 5, 7) | (7, 2 | 3) => Form::Store(2),
        (3, 5) | (7, 4) => Form::Load(10),
        (3, 7) | (7, 6) => Form::Store(10),
        (5, 2 | 3) | (7, 7) => Form::Store(8),
        (5, 4) => Form::Load(format.state_bytes()),
        (5, 6) => Form::Store(format.state_bytes()),
        _ => return None,
    })
}

/// Whether it is a control instruction: those leave [`X87::pointers`] alone.
#[must_use]
pub const fn is_control(opcode: u8, modrm: u8) -> bool {
    let reg = modrm >> 3 & 7;
    if modrm >> 6 == 3 {
        return matches!((opcode & 7, modrm), (3, 0xe0..=0xe7) | (7, 0xe0));
    }
    matches!((opcode & 7, reg), (1, 4..=7) | (5, 4 | 6 | 7))
}

/// Whether a pending exception is reported first.
const fn waits(opcode: u8, modrm: u8) -> bool {
    let reg = modrm >> 3 & 7;
    if modrm >> 6 == 3 {
        return !matches!((opcode & 7, modrm), (3, 0xe0..=0xe4) | (7, 0xe0));
    }
    !matches!((opcode & 7, reg), (1 | 5, 6 | 7))
}

impl X87 {
    /// What must be asked before anything else: is it defined, is an exception pending.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn begin(&self, opcode: u8, modrm: u8, format: EnvironmentFormat) -> Result<Form, Fault> {
        let form = form(opcode, modrm, format).ok_or(Fault::Undefined)?;
        if form == Form::Register && !is_defined(opcode, modrm) {
            return Err(Fault::Undefined);
        }
        if self.is_pending() && waits(opcode, modrm) {
            return Err(Fault::Pending);
        }
        Ok(form)
    }

    /// Executes an instruction without memory operand. `eflags` decides FCMOVcc.
    ///
    /// # Errors
    /// [`Fault::Undefined`].
    pub fn register_form(&mut self, opcode: u8, modrm: u8, eflags: u64) -> Result<Outcome, Fault> {
        if !is_defined(opcode, modrm) {
            return Err(Fault::Undefined);
        }
        let (reg, index) = (modrm >> 3 & 7, modrm & 7);
        match opcode & 7 {
            0 => self.arithmetic_or_compare(reg, index, 0, false),
            1 => self.group_d9(reg, index),
            2 if reg == 5 => self.compare_register(1, true, 2),
            2 => self.move_if(index, condition_holds(reg, eflags)),
            3 => return Ok(self.group_db(reg, index, eflags)),
            4 => self.arithmetic_or_compare(reg, index, index, false),
            5 => self.group_dd(reg, index),
            6 if reg == 3 => self.compare_register(1, false, 2),
            6 => self.arithmetic_or_compare(reg, index, index, true),
            _ => return Ok(self.group_df(reg, index)),
        }
        Ok(Outcome::Done)
    }

    fn arithmetic_or_compare(&mut self, reg: u8, index: u8, into: u8, pop: bool) {
        match reg {
            2 => self.compare_register(index, false, u8::from(pop)),
            3 => self.compare_register(index, false, 1),
            _ => self.operate(reg, index, into, pop),
        }
    }

    fn group_d9(&mut self, reg: u8, index: u8) {
        match (reg, index) {
            (0, _) => self.load_register(index),
            (1, _) => self.exchange(index),
            // An alias of FSTP that takes an empty register without a fault.
            (3, _) if self.is_empty(0) => self.move_top(1),
            (3, _) => self.store_register(index, true),
            (4, 0) => self.change_sign(),
            (4, 1) => self.absolute(),
            (4, 4) => self.test(),
            (4, 5) => self.examine(),
            (5, _) => self.load_constant(index),
            (6, 0) => self.power(),
            (6, 1) => self.logarithm(),
            (6, 2) => self.angular(Angular::Tangent),
            (6, 3) => self.arctangent(),
            (6, 4) => self.extract(),
            (6, 5) => self.remainder(true),
            (6, 6) => self.move_top(7),
            (6, 7) => self.move_top(1),
            (7, 0) => self.remainder(false),
            (7, 1) => self.logarithm_plus_one(),
            (7, 2) => self.root(),
            (7, 3) => self.angular(Angular::Both),
            (7, 4) => self.round(),
            (7, 5) => self.scale(),
            (7, 6) => self.angular(Angular::Sine),
            (7, 7) => self.angular(Angular::Cosine),
            // FNOP
            _ => {}
        }
    }

    /// FDECSTP, FINCSTP.
    const fn move_top(&mut self, by: u8) {
        self.set_condition(super::condition::C1, 0);
        self.rotate(by);
    }

    /// FFREE.
    const fn free_register(&mut self, index: u8) {
        self.set_condition(super::condition::C1, 0);
        self.free(index);
    }

    fn group_db(&mut self, reg: u8, index: u8, eflags: u64) -> Outcome {
        match (reg, index) {
            (4, 2) => self.clear_exceptions(),
            (4, 3) => self.initialize(),
            // FNENI, FNDISI, FNSETPM do nothing.
            (4, _) => {}
            (5 | 6, _) => {
                return Outcome::Flags(self.compare_flags(index, reg == 5, false));
            }
            _ => self.move_if(index, !condition_holds(reg, eflags)),
        }
        Outcome::Done
    }

    fn group_dd(&mut self, reg: u8, index: u8) {
        match reg {
            0 => self.free_register(index),
            1 => self.exchange(index),
            2 => self.store_register(index, false),
            3 => self.store_register(index, true),
            4 => self.compare_register(index, true, 0),
            _ => self.compare_register(index, true, 1),
        }
    }

    fn group_df(&mut self, reg: u8, index: u8) -> Outcome {
        match reg {
            // FFREEP
            0 => {
                self.free_register(index);
                self.pop();
            }
            1 => self.exchange(index),
            2 | 3 => self.store_register(index, true),
            4 => return Outcome::Ax(self.status_word()),
            _ => return Outcome::Flags(self.compare_flags(index, reg == 5, true)),
        }
        Outcome::Done
    }

    /// Executes an instruction that reads `bytes` of memory.
    pub fn load_form(&mut self, opcode: u8, modrm: u8, bytes: &[u8], format: EnvironmentFormat) {
        let reg = modrm >> 3 & 7;
        let whole = super::image::get(bytes, 0, bytes.len().min(16));
        let low = low64(whole);
        let word = i64::from(low16(low).cast_signed());
        let long = i64::from(low32(low).cast_signed());
        let ten = || {
            let mut ten = [0; 10];
            ten.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            ten
        };
        match (opcode & 7, reg) {
            (0, _) => self.operate_memory(reg, Operand::from_packed(low, Format::SINGLE)),
            (2, _) => self.operate_memory(reg, F80::from_integer(long).into()),
            (4, _) => self.operate_memory(reg, Operand::from_packed(low, Format::DOUBLE)),
            (6, _) => self.operate_memory(reg, F80::from_integer(word).into()),
            (1, 0) => self.load_packed(low, Format::SINGLE),
            (1, 4) => self.load_environment(format, bytes),
            (1, _) => self.control = ControlWord::new(low16(low)),
            (3, 0) => self.load_exact(F80::from_integer(long)),
            (3, _) => self.load_exact(F80::from_bytes(ten())),
            (5, 0) => self.load_packed(low, Format::DOUBLE),
            (5, _) => self.load_state(format, bytes),
            (_, 0) => self.load_exact(F80::from_integer(word)),
            (_, 4) => self.load_decimal(ten()),
            _ => self.load_exact(F80::from_integer(low.cast_signed())),
        }
    }

    fn operate_memory(&mut self, reg: u8, operand: Operand) {
        match reg {
            2 => {
                self.compare_value(Some(operand), false);
            }
            3 => {
                if self.compare_value(Some(operand), false) {
                    self.pop();
                }
            }
            _ => self.operate_value(reg, operand),
        }
    }

    /// Executes an instruction that writes memory; returns how many bytes of `out` to write, 0
    /// where an unmasked exception forbids the store.
    pub fn store_form(
        &mut self,
        opcode: u8,
        modrm: u8,
        out: &mut [u8; LARGEST_STORE],
        format: EnvironmentFormat,
    ) -> usize {
        let reg = modrm >> 3 & 7;
        let pop = reg != 2;
        let stored = match (opcode & 7, reg) {
            (1, 6) => {
                self.store_environment(format, out);
                return format.bytes();
            }
            (5, 6) => {
                self.store_state(format, out);
                return format.state_bytes();
            }
            (1, 7) => Some((self.control.bits().into(), 2)),
            (5, 7) => Some((self.status_word().into(), 2)),
            (1, _) => self.store_packed(Format::SINGLE, pop).map(|bits| (bits, 4)),
            (5, _) => self.store_packed(Format::DOUBLE, pop).map(|bits| (bits, 8)),
            (3, 7) | (7, 6) => {
                let bytes = if reg == 7 {
                    self.store_extended()
                } else {
                    self.store_decimal()
                };
                return bytes.map_or(0, |bytes| {
                    super::image::put(out, 0, &bytes);
                    bytes.len()
                });
            }
            (3, _) => self.store_integer(32, pop).map(|bits| (bits, 4)),
            (_, 7) => self.store_integer(64, true).map(|bits| (bits, 8)),
            _ => self.store_integer(16, pop).map(|bits| (bits, 2)),
        };
        stored.map_or(0, |(bits, count)| {
            super::image::put(out, 0, &bits.to_le_bytes());
            count
        })
    }
}

/// Whether an instruction of register form exists.
const fn is_defined(opcode: u8, modrm: u8) -> bool {
    let (reg, index) = (modrm >> 3 & 7, modrm & 7);
    match (opcode & 7, reg) {
        (1, 2) => index == 0,
        (1, 4) => matches!(index, 0 | 1 | 4 | 5),
        (1, 5) => index != 7,
        (2, 5) => index == 1,
        (2, 4 | 6 | 7) | (3, 7) | (5, 6 | 7) | (7, 7) => false,
        (3, 4) => index < 5,
        (6, 3) => index == 1,
        (7, 4) => index == 0,
        _ => true,
    }
}

/// The conditions of FCMOVB, FCMOVE, FCMOVBE and FCMOVU.
const fn condition_holds(reg: u8, eflags: u64) -> bool {
    let mask = match reg {
        0 => 1,
        1 => 0x40,
        2 => 0x41,
        _ => 4,
    };
    eflags & mask != 0
}
