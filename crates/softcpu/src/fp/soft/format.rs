//! The binary formats and the packing of 32- and 64-bit numbers.

use super::number::Number;
use super::round::Rounded;

/// Precision and exponent range of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Bits of the significand, the leading one included.
    pub precision: u32,
    /// Exponent of the smallest normal number.
    pub min_exponent: i32,
    /// Exponent of the largest number.
    pub max_exponent: i32,
}

impl Format {
    /// IEEE binary32.
    pub const SINGLE: Self = Self {
        precision: 24,
        min_exponent: -126,
        max_exponent: 127,
    };
    /// IEEE binary64.
    pub const DOUBLE: Self = Self {
        precision: 53,
        min_exponent: -1022,
        max_exponent: 1023,
    };
    /// The 80-bit format of the x87 registers.
    pub const EXTENDED: Self = Self {
        precision: 64,
        min_exponent: -16382,
        max_exponent: 16383,
    };

    /// The same exponent range with another precision.
    #[must_use]
    pub const fn with_precision(self, precision: u32) -> Self {
        Self { precision, ..self }
    }

    const fn fraction_bits(self) -> u32 {
        self.precision - 1
    }

    const fn fraction_mask(self) -> u64 {
        (1 << self.fraction_bits()) - 1
    }

    const fn exponent_field_max(self) -> u64 {
        (self.max_exponent.unsigned_abs() as u64) * 2 + 1
    }

    /// The sign bit of the packed form (formats of up to 64 bits).
    #[must_use]
    pub const fn sign_bit(self) -> u64 {
        (self.exponent_field_max() + 1) << self.fraction_bits()
    }

    /// The bit that tells a quiet NaN from a signalling one.
    #[must_use]
    pub const fn quiet_bit(self) -> u64 {
        1 << (self.fraction_bits() - 1)
    }

    /// The default NaN: negative, quiet, no payload ("real indefinite").
    #[must_use]
    pub const fn default_nan(self) -> u64 {
        pack_infinity(true, self) | self.quiet_bit()
    }

    /// Whether the bits are a NaN.
    #[must_use]
    pub const fn is_nan(self, bits: u64) -> bool {
        bits & !self.sign_bit() > pack_infinity(false, self)
    }

    /// Whether the bits are a signalling NaN.
    #[must_use]
    pub const fn is_signaling(self, bits: u64) -> bool {
        self.is_nan(bits) && bits & self.quiet_bit() == 0
    }

    /// Whether the bits are a denormal number (zero is none).
    #[must_use]
    pub const fn is_denormal(self, bits: u64) -> bool {
        let magnitude = bits & !self.sign_bit();
        magnitude != 0 && magnitude <= self.fraction_mask()
    }
}

/// What packed bits stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A zero; true for minus zero.
    Zero(bool),
    /// A normal or denormal number.
    Finite(Number),
    /// An infinity; true for minus infinity.
    Infinity(bool),
    /// A NaN.
    Nan,
}

impl Value {
    /// The sign; false for a NaN.
    #[must_use]
    pub const fn is_negative(&self) -> bool {
        match self {
            Self::Zero(negative) | Self::Infinity(negative) => *negative,
            Self::Finite(number) => number.negative,
            Self::Nan => false,
        }
    }
}

/// Unpacks a single or double.
#[must_use]
pub fn unpack(bits: u64, format: Format) -> Value {
    let negative = bits & format.sign_bit() != 0;
    let fraction = bits & format.fraction_mask();
    let field = (bits & !format.sign_bit()) >> format.fraction_bits();
    if field == format.exponent_field_max() {
        return if fraction == 0 {
            Value::Infinity(negative)
        } else {
            Value::Nan
        };
    }
    let hidden = if field == 0 {
        0
    } else {
        1 << format.fraction_bits()
    };
    let exponent = i32::try_from(field.max(1)).unwrap_or(1) - format.max_exponent;
    let significand = (hidden | fraction) << (64 - format.precision);
    Number::from_top64(negative, exponent, significand).map_or(Value::Zero(negative), Value::Finite)
}

/// Packs an infinity.
#[must_use]
pub const fn pack_infinity(negative: bool, format: Format) -> u64 {
    let sign = if negative { format.sign_bit() } else { 0 };
    sign | format.exponent_field_max() << format.fraction_bits()
}

/// Packs the largest finite number.
#[must_use]
pub const fn pack_largest(negative: bool, format: Format) -> u64 {
    pack_infinity(negative, format) - 1
}

/// Packs a rounded number whose exponent lies in the format's range.
#[must_use]
pub fn pack_rounded(negative: bool, rounded: &Rounded, format: Format) -> u64 {
    let sign = if negative { format.sign_bit() } else { 0 };
    let significand = rounded.significand >> (64 - format.precision);
    // The leading bit of a normal significand adds one to the field; a denormal has none.
    let below = u64::try_from(rounded.exponent - format.min_exponent).unwrap_or(0);
    sign | ((below << format.fraction_bits()) + significand)
}
