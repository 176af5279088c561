//! The registers and the rules of stack and exceptions.

use super::control::{ControlWord, condition};
use super::register::{Computed, F80};
use crate::fp::bits::{low8, low64};
use crate::fp::exceptions::Exceptions;

/// Where the last non-control instruction and its operand were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pointers {
    /// The low 11 bits of the opcode.
    pub opcode: u16,
    /// Address of the instruction.
    pub instruction: u64,
    /// Its code segment.
    pub code_segment: u16,
    /// Address of the memory operand.
    pub data: u64,
    /// Its segment.
    pub data_segment: u16,
}

/// The state of the unit; MMX registers are the significands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X87 {
    pub(super) control: ControlWord,
    /// Flags, SF and condition codes; neither TOP nor ES and B.
    pub(super) status: u16,
    pub(super) top: u8,
    /// Which physical registers are not empty.
    pub(super) used: u8,
    /// The physical registers.
    pub(super) registers: [F80; 8],
    /// Instruction and operand pointers.
    pub pointers: Pointers,
}

impl Default for X87 {
    fn default() -> Self {
        Self {
            control: ControlWord::RESET,
            status: 0,
            top: 0,
            used: 0,
            registers: [F80::default(); 8],
            pointers: Pointers::default(),
        }
    }
}

impl X87 {
    /// The control word.
    #[must_use]
    pub const fn control(&self) -> ControlWord {
        self.control
    }

    /// The status word with TOP, ES and B.
    #[must_use]
    pub fn status_word(&self) -> u16 {
        let summary = if self.is_pending() {
            condition::SUMMARY | condition::BUSY
        } else {
            0
        };
        self.status | summary | u16::from(self.top) << 11
    }

    /// Whether an unmasked exception waits: the next waiting instruction gives #MF.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !(self.flags() - self.control.masked()).is_empty()
    }

    fn flags(&self) -> Exceptions {
        Exceptions::from_bits_truncate(low8(u64::from(self.status)))
    }

    pub(super) const fn set_status_word(&mut self, word: u16) {
        self.status = word & (condition::ALL | 0x7f);
        self.top = (word >> 11 & 7) as u8;
    }

    /// FNINIT; the register contents stay.
    pub fn initialize(&mut self) {
        self.control = ControlWord::INITIAL;
        self.status = 0;
        self.top = 0;
        self.used = 0;
        self.pointers = Pointers::default();
    }

    /// FNCLEX.
    pub(super) const fn clear_exceptions(&mut self) {
        self.status &= condition::ALL;
    }

    const fn physical(&self, index: u8) -> u8 {
        (self.top + index) & 7
    }

    /// Whether ST(index) is empty.
    #[must_use]
    pub const fn is_empty(&self, index: u8) -> bool {
        self.used >> self.physical(index) & 1 == 0
    }

    /// ST(index), whatever its tag.
    #[must_use]
    pub fn st(&self, index: u8) -> F80 {
        self.registers
            .get(usize::from(self.physical(index)))
            .copied()
            .unwrap_or_default()
    }

    /// Writes ST(index), which is then not empty.
    pub(super) fn set_st(&mut self, index: u8, value: F80) {
        let physical = self.physical(index);
        self.used |= 1 << physical;
        if let Some(register) = self.registers.get_mut(usize::from(physical)) {
            *register = value;
        }
    }

    pub(super) const fn free(&mut self, index: u8) {
        self.used &= !(1 << self.physical(index));
    }

    pub(super) const fn rotate(&mut self, by: u8) {
        self.top = (self.top + by) & 7;
    }

    pub(super) const fn pop(&mut self) {
        self.free(0);
        self.rotate(1);
    }

    pub(super) const fn set_condition(&mut self, mask: u16, value: u16) {
        self.status = self.status & !mask | value;
    }

    /// Records exceptions; true where one of `stops` is unmasked.
    pub(super) fn raise(&mut self, raised: Exceptions, stops: Exceptions) -> bool {
        self.status |= u16::from(raised.bits());
        (raised - self.control.masked()).intersects(stops)
    }

    /// Records the exceptions of a computed value and C1; true where it must not be kept.
    pub(super) fn judge(&mut self, computed: &Computed) -> bool {
        self.set_condition(condition::C1, 0);
        let unmasked = computed.raised - self.control.masked();
        if unmasked.intersects(Exceptions::BEFORE) {
            return self.raise(computed.raised & Exceptions::BEFORE, Exceptions::BEFORE);
        }
        if computed.up {
            self.status |= condition::C1;
        }
        self.raise(computed.raised, Exceptions::empty())
    }

    /// A stack fault; true where it is unmasked.
    pub(super) fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_condition(condition::C1, if overflow { condition::C1 } else { 0 });
        self.status |= condition::STACK_FAULT;
        self.raise(Exceptions::INVALID, Exceptions::INVALID)
    }

    /// Writes a computed value to ST(index) unless an exception forbids it; true if written.
    pub(super) fn keep(&mut self, index: u8, computed: &Computed) -> bool {
        if self.judge(computed) {
            return false;
        }
        self.set_st(index, computed.value);
        true
    }

    /// The masked response to an empty operand of an instruction that writes ST(index); true if
    /// written.
    pub(super) fn underflow_into(&mut self, index: u8) -> bool {
        if self.stack_fault(false) {
            return false;
        }
        self.set_st(index, F80::DEFAULT_NAN);
        true
    }

    /// Pushes a computed value.
    pub(super) fn push(&mut self, computed: &Computed) {
        let full = !self.is_empty(7);
        if full {
            if !self.stack_fault(true) {
                self.rotate(7);
                self.set_st(0, F80::DEFAULT_NAN);
            }
            return;
        }
        if !self.judge(computed) {
            self.rotate(7);
            self.set_st(0, computed.value);
        }
    }

    /// The transition of every MMX instruction but EMMS: TOP 0, no register empty.
    pub const fn enter_mmx(&mut self) {
        self.top = 0;
        self.used = 0xff;
    }

    /// EMMS: every register empty, TOP 0.
    pub const fn empty_mmx(&mut self) {
        self.top = 0;
        self.used = 0;
    }

    /// An MMX register.
    #[must_use]
    pub fn mmx(&self, index: u8) -> u64 {
        self.registers
            .get(usize::from(index & 7))
            .map_or(0, |register| register.significand)
    }

    /// Writes an MMX register; sign and exponent become ones.
    pub fn set_mmx(&mut self, index: u8, value: u128) {
        if let Some(register) = self.registers.get_mut(usize::from(index & 7)) {
            *register = F80 {
                significand: low64(value),
                sign_exponent: 0xffff,
            };
        }
    }
}
