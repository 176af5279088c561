//! The control word and the bits of the status word.

use crate::fp::bits::low8;
use crate::fp::exceptions::{Exceptions, Rounding};

/// Condition codes and other bits of the status word.
pub mod condition {
    /// SF: the invalid operation was a stack fault.
    pub const STACK_FAULT: u16 = 1 << 6;
    /// ES: an unmasked exception is pending.
    pub const SUMMARY: u16 = 1 << 7;
    /// C0.
    pub const C0: u16 = 1 << 8;
    /// C1.
    pub const C1: u16 = 1 << 9;
    /// C2.
    pub const C2: u16 = 1 << 10;
    /// C3.
    pub const C3: u16 = 1 << 14;
    /// B: mirrors ES.
    pub const BUSY: u16 = 1 << 15;
    /// All four condition codes.
    pub const ALL: u16 = C0 | C1 | C2 | C3;
}

/// The control word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlWord(u16);

impl ControlWord {
    /// The value after FNINIT.
    pub const INITIAL: Self = Self(0x37f);
    /// The value after reset.
    pub const RESET: Self = Self(0x40);

    /// Takes a value as FLDCW does: bit 6 reads as one, the other reserved bits as zero.
    #[must_use]
    pub const fn new(value: u16) -> Self {
        Self(value & 0x1f3f | 0x40)
    }

    /// The value as FNSTCW stores it.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The exceptions that are masked.
    #[must_use]
    pub fn masked(self) -> Exceptions {
        Exceptions::from_bits_truncate(low8(u64::from(self.0)))
    }

    /// Bits of precision of addition, multiplication, division and square root.
    #[must_use]
    pub const fn precision(self) -> u32 {
        match self.0 >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        }
    }

    /// The rounding direction.
    #[must_use]
    pub const fn rounding(self) -> Rounding {
        Rounding::from_field((self.0 >> 10) as u32)
    }
}
