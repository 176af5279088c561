//! Conversion between numbers and two's complement integers.

use super::number::Number;
use super::round::rounds_up;
use crate::fp::bits::{low64, shift_right_jam};
use crate::fp::exceptions::Rounding;

/// An integer got by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer {
    /// The value.
    pub value: i64,
    /// Whether anything was lost.
    pub inexact: bool,
    /// Whether the magnitude grew.
    pub up: bool,
}

/// The number equal to `value`; none for zero.
#[must_use]
pub const fn from_integer(value: i64) -> Option<Number> {
    Number::from_top64(value < 0, 63, value.unsigned_abs())
}

/// Rounds to an integer of `width` bits; none where it does not fit.
#[must_use]
pub fn to_integer(number: &Number, width: u32, rounding: Rounding) -> Option<Integer> {
    if number.exponent > 63 {
        return None;
    }
    // Fixed point with 64 bits before the point and 64 behind.
    let fixed = shift_right_jam(number.significand, (63 - number.exponent).unsigned_abs());
    let (kept, tail) = (fixed >> 64, fixed & u128::from(u64::MAX));
    let up = rounds_up(kept, tail, 1 << 63, number.negative, rounding);
    let magnitude = kept + u128::from(up);
    let limit = (1_u128 << (width - 1)) - u128::from(!number.negative);
    if magnitude > limit {
        return None;
    }
    let magnitude = low64(magnitude).cast_signed();
    let value = if number.negative {
        magnitude.wrapping_neg()
    } else {
        magnitude
    };
    Some(Integer {
        value,
        inexact: tail != 0,
        up,
    })
}
