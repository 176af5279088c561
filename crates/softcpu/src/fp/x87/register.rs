//! The 80-bit register format.

use super::control::ControlWord;
use crate::fp::bits::low16;
use crate::fp::exceptions::Exceptions;
use crate::fp::soft::{self, Format, Number, Value};

/// A number as an x87 register holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct F80 {
    /// The significand with its explicit integer bit.
    pub significand: u64,
    /// Sign (bit 15) and biased exponent.
    pub sign_exponent: u16,
}

const INTEGER: u64 = 1 << 63;
const QUIET: u64 = 1 << 62;
const EXPONENT: u16 = 0x7fff;
const SIGN: u16 = 0x8000;
const BIAS: i32 = 16383;

/// A computed value, the exceptions it raised and whether rounding enlarged it (C1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Computed {
    pub(super) value: F80,
    pub(super) raised: Exceptions,
    pub(super) up: bool,
}

/// A second operand; one from memory may be denormal in its own format only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) value: F80,
    pub(super) denormal: bool,
}

impl From<F80> for Operand {
    fn from(value: F80) -> Self {
        Self {
            value,
            denormal: value.is_denormal(),
        }
    }
}

impl Operand {
    /// A single or double number.
    pub(super) fn from_packed(bits: u64, format: Format) -> Self {
        Self {
            value: F80::from_packed(bits, format),
            denormal: format.is_denormal(bits),
        }
    }
}

impl Computed {
    /// An exact value that raises nothing.
    pub(super) const fn exact(value: F80) -> Self {
        Self {
            value,
            raised: Exceptions::empty(),
            up: false,
        }
    }

    /// The default NaN of an invalid operation.
    pub(super) const fn invalid() -> Self {
        Self {
            value: F80::DEFAULT_NAN,
            raised: Exceptions::INVALID,
            up: false,
        }
    }

    /// With DE where an operand is denormal and no exception of higher rank was raised.
    pub(super) fn with_denormal(mut self, found: bool) -> Self {
        let higher = Exceptions::INVALID | Exceptions::ZERO_DIVIDE;
        if found && !self.raised.intersects(higher) {
            self.raised |= Exceptions::DENORMAL;
        }
        self
    }
}

impl F80 {
    /// The default NaN ("real indefinite").
    pub const DEFAULT_NAN: Self = Self {
        significand: INTEGER | QUIET,
        sign_exponent: 0xffff,
    };
    /// Plus one.
    pub const ONE: Self = Self {
        significand: INTEGER,
        sign_exponent: 0x3fff,
    };

    /// A zero.
    #[must_use]
    pub const fn zero(negative: bool) -> Self {
        Self {
            significand: 0,
            sign_exponent: if negative { SIGN } else { 0 },
        }
    }

    /// An infinity.
    #[must_use]
    pub const fn infinity(negative: bool) -> Self {
        let sign_exponent = if negative { SIGN | EXPONENT } else { EXPONENT };
        Self {
            significand: INTEGER,
            sign_exponent,
        }
    }

    /// The sign bit.
    #[must_use]
    pub const fn is_negative(self) -> bool {
        self.sign_exponent & SIGN != 0
    }

    /// The value with this sign.
    #[must_use]
    pub const fn with_sign(self, negative: bool) -> Self {
        let sign = if negative { SIGN } else { 0 };
        Self {
            sign_exponent: self.sign_exponent & EXPONENT | sign,
            ..self
        }
    }

    pub(super) const fn exponent_field(self) -> u16 {
        self.sign_exponent & EXPONENT
    }

    /// An encoding that the 80387 and later refuse: the integer bit is clear though the exponent
    /// is not zero.
    #[must_use]
    pub const fn is_unsupported(self) -> bool {
        self.exponent_field() != 0 && self.significand & INTEGER == 0
    }

    /// A NaN, quiet or not.
    #[must_use]
    pub const fn is_nan(self) -> bool {
        self.exponent_field() == EXPONENT && self.significand > INTEGER
    }

    /// A signalling NaN.
    #[must_use]
    pub const fn is_signaling(self) -> bool {
        self.is_nan() && self.significand & QUIET == 0
    }

    /// A denormal or pseudo-denormal number.
    #[must_use]
    pub const fn is_denormal(self) -> bool {
        self.exponent_field() == 0 && self.significand != 0
    }

    /// Either zero.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.exponent_field() == 0 && self.significand == 0
    }

    /// The NaN made quiet.
    pub(super) const fn quieted(self) -> Self {
        Self {
            significand: self.significand | QUIET,
            ..self
        }
    }

    /// The value; [`Value::Nan`] stands for unsupported encodings too.
    #[must_use]
    pub fn unpack(self) -> Value {
        let negative = self.is_negative();
        if self.is_unsupported() || self.is_nan() {
            return Value::Nan;
        }
        if self.exponent_field() == EXPONENT {
            return Value::Infinity(negative);
        }
        let exponent = i32::from(self.exponent_field().max(1)) - BIAS;
        Number::from_top64(negative, exponent, self.significand)
            .map_or(Value::Zero(negative), Value::Finite)
    }

    /// A single or double number, exactly; a signalling NaN stays one.
    #[must_use]
    pub fn from_packed(bits: u64, format: Format) -> Self {
        let negative = bits & format.sign_bit() != 0;
        match soft::unpack(bits, format) {
            Value::Zero(_) => Self::zero(negative),
            Value::Infinity(_) => Self::infinity(negative),
            Value::Finite(number) => Self::from_parts(negative, number.exponent, number.top64()),
            Value::Nan => {
                let payload = bits << (64 - format.precision) | INTEGER;
                Self {
                    significand: payload,
                    ..Self::infinity(negative)
                }
            }
        }
    }

    /// A signed integer, exactly.
    #[must_use]
    pub fn from_integer(value: i64) -> Self {
        soft::from_integer(value).map_or(Self::zero(false), |number| {
            Self::from_parts(number.negative, number.exponent, number.top64())
        })
    }

    /// The number with `significand`'s bit 63 weighing `2^exponent`; a clear bit 63 is a denormal
    /// at the smallest exponent.
    fn from_parts(negative: bool, exponent: i32, significand: u64) -> Self {
        let field = if significand & INTEGER == 0 {
            0
        } else {
            exponent + BIAS
        };
        let field = low16(u64::from(field.unsigned_abs()));
        Self {
            significand,
            sign_exponent: field,
        }
        .with_sign(negative)
    }

    /// Rounds to the precision, with masked and unmasked responses (SDM vol. 1, 8.5.4 and
    /// 8.5.5): an unmasked overflow or underflow gives the result with its exponent wrapped.
    pub(super) fn rounded(number: &Number, control: ControlWord, precision: u32) -> Computed {
        const WRAP: i32 = 24576;
        let format = Format::EXTENDED.with_precision(precision);
        let outcome = soft::round(number, format, control.rounding());
        let negative = number.negative;
        let mut kept = outcome.bounded();
        let mut raised = Exceptions::empty();
        if outcome.overflow {
            raised = Exceptions::OVERFLOW;
            kept.exponent -= WRAP;
            if control.masked().contains(raised) {
                return Self::overflowed(negative, control, precision);
            }
            if kept.exponent > format.max_exponent {
                // FSCALE can go beyond the wrapped range too.
                let raised = raised | Exceptions::PRECISION;
                return Computed {
                    value: Self::infinity(negative),
                    raised,
                    up: true,
                };
            }
        } else if outcome.tiny.is_some() {
            if control.masked().contains(Exceptions::UNDERFLOW) {
                raised.set(Exceptions::UNDERFLOW, kept.inexact);
            } else {
                raised = Exceptions::UNDERFLOW;
                kept = outcome.unbounded;
                kept.exponent += WRAP;
                if kept.exponent < format.min_exponent {
                    kept.significand = 0;
                    kept.inexact = true;
                    kept.up = false;
                }
            }
        }
        raised.set(Exceptions::PRECISION, kept.inexact);
        let value = Self::from_parts(negative, kept.exponent, kept.significand);
        Computed {
            value,
            raised,
            up: kept.up && kept.inexact,
        }
    }

    fn overflowed(negative: bool, control: ControlWord, precision: u32) -> Computed {
        let raised = Exceptions::OVERFLOW | Exceptions::PRECISION;
        let up = control.rounding().overflows_to_infinity(negative);
        let largest = Self {
            significand: u64::MAX << (64 - precision),
            sign_exponent: 0x7ffe,
        };
        let value = if up {
            Self::infinity(negative)
        } else {
            largest.with_sign(negative)
        };
        Computed { value, raised, up }
    }
}
