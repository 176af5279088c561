//! The six numeric exceptions and the four rounding directions that SSE and x87 share.

bitflags::bitflags! {
    /// Numeric exceptions, in the bit order of MXCSR and of the x87 status word.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Exceptions: u8 {
        /// IE: invalid operation.
        const INVALID = 1;
        /// DE: an operand is denormal.
        const DENORMAL = 2;
        /// ZE: a finite number is divided by zero.
        const ZERO_DIVIDE = 4;
        /// OE: the rounded result is too large.
        const OVERFLOW = 8;
        /// UE: the rounded result is tiny.
        const UNDERFLOW = 16;
        /// PE: the result is inexact.
        const PRECISION = 32;
    }
}

impl Exceptions {
    /// Exceptions found before an operation is computed.
    pub const BEFORE: Self = Self::INVALID.union(Self::DENORMAL).union(Self::ZERO_DIVIDE);
}

/// The rounding direction (RC field).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// To nearest, ties to even.
    #[default]
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// Towards zero.
    Zero,
}

impl Rounding {
    /// The direction in the low two bits of `field`.
    #[must_use]
    pub const fn from_field(field: u32) -> Self {
        match field & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }

    /// Whether an overflow of this sign gives infinity rather than the largest finite number.
    #[must_use]
    pub const fn overflows_to_infinity(self, negative: bool) -> bool {
        match self {
            Self::Nearest => true,
            Self::Down => negative,
            Self::Up => !negative,
            Self::Zero => false,
        }
    }
}
