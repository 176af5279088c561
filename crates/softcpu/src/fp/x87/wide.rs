//! Arithmetic on 128-bit significands and fractions.
//!
//! A fraction is an integer in units of `2^-128`.

use crate::fp::bits::{low64, shift_right_jam};
use crate::fp::soft::Number;

/// The upper 128 bits of a product.
pub(super) const fn multiply_high(a: u128, b: u128) -> u128 {
    let (a1, a0) = (a >> 64, low64(a) as u128);
    let (b1, b0) = (b >> 64, low64(b) as u128);
    let middle = ((a0 * b0) >> 64) + low64(a1 * b0) as u128 + low64(a0 * b1) as u128;
    a1 * b1 + ((a1 * b0) >> 64) + ((a0 * b1) >> 64) + (middle >> 64)
}

/// `a / b` as a fraction, `a < b`.
fn divide_fraction(a: u128, b: u128) -> u128 {
    let (mut rest, mut quotient) = (a, 0_u128);
    for _ in 0..128 {
        let carry = rest >> 127 != 0;
        rest <<= 1;
        quotient <<= 1;
        if carry || rest >= b {
            rest = rest.wrapping_sub(b);
            quotient |= 1;
        }
    }
    quotient
}

/// The quotient of two numbers with full significands, to 127 bits.
pub(super) fn divide(a: &Number, b: &Number) -> Number {
    let negative = a.negative != b.negative;
    let exponent = a.exponent - b.exponent;
    let (a, b) = (a.significand, b.significand);
    if a == b {
        return Number {
            negative,
            exponent,
            significand: 1 << 127,
        };
    }
    let (dividend, exponent) = if a < b {
        (a, exponent - 1)
    } else {
        (a >> 1, exponent)
    };
    Number {
        negative,
        exponent,
        significand: divide_fraction(dividend, b),
    }
}

/// The product of two numbers with full significands, to 127 bits, marked inexact.
pub(super) fn multiply(a: &Number, b: &Number) -> Number {
    let product = multiply_high(a.significand, b.significand);
    let shift = product.leading_zeros();
    Number {
        negative: a.negative != b.negative,
        exponent: a.exponent + b.exponent + 1 - shift.cast_signed(),
        significand: product << shift | 1,
    }
}

/// `a * (1 - fraction)`, marked inexact.
pub(super) fn reduce_by(a: &Number, fraction: u128) -> Number {
    let less = multiply_high(a.significand, fraction);
    // One unit less stands for the part that is lost, however small.
    normalized(a.negative, a.exponent, a.significand - less - 1)
}

/// `a * (1 + fraction)`, marked inexact.
pub(super) fn enlarge_by(a: &Number, fraction: u128) -> Number {
    let more = multiply_high(a.significand, fraction);
    let (sum, carry) = a.significand.overflowing_add(more);
    let (significand, exponent) = if carry {
        (1 << 127 | sum >> 1, a.exponent + 1)
    } else {
        (sum, a.exponent)
    };
    Number {
        significand: significand | 1,
        exponent,
        ..*a
    }
}

/// The square of a number below one, as a fraction.
pub(super) fn square(a: &Number) -> u128 {
    let square = multiply_high(a.significand, a.significand);
    let shift = (-(2 * a.exponent + 2)).unsigned_abs();
    square.checked_shr(shift).unwrap_or(0)
}

/// The number `significand * 2^(exponent - 127)`, marked inexact; not zero.
pub(super) fn normalized(negative: bool, exponent: i32, significand: u128) -> Number {
    let significand = significand | 1;
    let shift = significand.leading_zeros();
    Number {
        negative,
        exponent: exponent - shift.cast_signed(),
        significand: significand << shift | 1,
    }
}

/// The significand in fixed point, bit 127 weighing `2^exponent`, which is not less than the
/// number's own.
pub(super) const fn fixed(a: &Number, exponent: i32) -> u128 {
    shift_right_jam(a.significand, (exponent - a.exponent).unsigned_abs())
}
