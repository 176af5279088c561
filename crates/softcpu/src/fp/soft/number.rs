//! A finite number other than zero, unpacked.

use crate::fp::bits::shift_right_jam;

/// The number `(-1)^negative * significand * 2^(exponent - 127)`; bit 127 of the significand is
/// set, so that it lies in `[2^exponent, 2^(exponent + 1))`. Bit 0 stands for all bits below it
/// too: it is set when any of them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    /// The sign.
    pub negative: bool,
    /// The exponent of the leading bit.
    pub exponent: i32,
    /// The significand, leading bit at bit 127.
    pub significand: u128,
}

impl Number {
    /// The number `significand * 2^(exponent - 127)`, brought to normal form; none for zero.
    #[must_use]
    pub const fn normalized(negative: bool, exponent: i32, significand: u128) -> Option<Self> {
        if significand == 0 {
            return None;
        }
        let shift = significand.leading_zeros();
        let exponent = exponent - shift.cast_signed();
        Some(Self {
            negative,
            exponent,
            significand: significand << shift,
        })
    }

    /// The number with a 64-bit significand whose bit 63 weighs `2^exponent`; none for zero.
    #[must_use]
    pub const fn from_top64(negative: bool, exponent: i32, significand: u64) -> Option<Self> {
        Self::normalized(negative, exponent, (significand as u128) << 64)
    }

    /// The upper half of the significand: all of it where the number came from an operand.
    #[must_use]
    pub const fn top64(&self) -> u64 {
        crate::fp::bits::low64(self.significand >> 64)
    }

    /// The significand in fixed point, bit 127 weighing `2^exponent`.
    #[must_use]
    pub const fn aligned_to(&self, exponent: i32) -> u128 {
        shift_right_jam(self.significand, (exponent - self.exponent).unsigned_abs())
    }
}
