//! Rounding of a number to a format.

use super::format::Format;
use super::number::Number;
use crate::fp::bits::{low64, shift_right_jam};
use crate::fp::exceptions::Rounding;

/// A significand of at most 64 bits, bit 63 weighing `2^exponent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounded {
    /// The significand; bit 63 is clear in a denormal number or zero.
    pub significand: u64,
    /// The weight of bit 63.
    pub exponent: i32,
    /// Whether anything was lost.
    pub inexact: bool,
    /// Whether the magnitude grew.
    pub up: bool,
}

/// The two roundings of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Rounded to the format's precision, the exponent unbounded.
    pub unbounded: Rounded,
    /// Rounded to the format's denormal grid; only where the number is tiny.
    pub tiny: Option<Rounded>,
    /// Whether the exponent is above the format's range.
    pub overflow: bool,
}

impl Outcome {
    /// The rounding that fits the format where there is no overflow.
    #[must_use]
    pub fn bounded(&self) -> Rounded {
        self.tiny.unwrap_or(self.unbounded)
    }
}

/// Rounds `number` to `format`. Tininess is told after rounding, as x86 does
/// (SDM vol. 1, 4.9.1.5).
#[must_use]
pub fn round(number: &Number, format: Format, rounding: Rounding) -> Outcome {
    let negative = number.negative;
    let unbounded = cut(
        number.significand,
        number.exponent,
        format.precision,
        negative,
        rounding,
    );
    let tiny = (unbounded.exponent < format.min_exponent).then(|| {
        let shift = (format.min_exponent - number.exponent).unsigned_abs();
        let significand = shift_right_jam(number.significand, shift);
        cut(
            significand,
            format.min_exponent,
            format.precision,
            negative,
            rounding,
        )
    });
    Outcome {
        unbounded,
        tiny,
        overflow: unbounded.exponent > format.max_exponent,
    }
}

/// Keeps the upper `keep` bits (1 to 64) of the significand.
fn cut(significand: u128, exponent: i32, keep: u32, negative: bool, rounding: Rounding) -> Rounded {
    let dropped = 128 - keep;
    let kept = significand >> dropped;
    let tail = significand & ((1 << dropped) - 1);
    let up = rounds_up(kept, tail, 1 << (dropped - 1), negative, rounding);
    let kept = kept + u128::from(up);
    let inexact = tail != 0;
    if kept >> keep != 0 {
        return Rounded {
            significand: 1 << 63,
            exponent: exponent + 1,
            inexact,
            up,
        };
    }
    Rounded {
        significand: low64(kept) << (64 - keep),
        exponent,
        inexact,
        up,
    }
}

/// Whether a magnitude `kept` with the rest `tail` grows by one; `half` is half a unit of `kept`.
pub(super) const fn rounds_up(
    kept: u128,
    tail: u128,
    half: u128,
    negative: bool,
    rounding: Rounding,
) -> bool {
    match rounding {
        Rounding::Nearest => tail > half || (tail == half && kept & 1 == 1),
        Rounding::Down => tail != 0 && negative,
        Rounding::Up => tail != 0 && !negative,
        Rounding::Zero => false,
    }
}
