//! Sum, product, quotient and square root, exact but for the sticky lowest bit.
//!
//! Operands have significands of at most 64 bits, so a product is exact and a sum keeps 63 bits
//! below the last one of an operand.

use super::number::Number;

/// The sum; none for an exact zero.
#[must_use]
pub fn add(a: &Number, b: &Number) -> Option<Number> {
    let (large, small) = if a.exponent >= b.exponent {
        (a, b)
    } else {
        (b, a)
    };
    let exponent = large.exponent + 1;
    let (x, y) = (large.significand >> 1, small.aligned_to(exponent));
    if a.negative == b.negative {
        return Number::normalized(a.negative, exponent, x + y);
    }
    if x >= y {
        return Number::normalized(large.negative, exponent, x - y);
    }
    Number::normalized(small.negative, exponent, y - x)
}

/// The product.
#[must_use]
pub fn multiply(a: &Number, b: &Number) -> Number {
    let product = u128::from(a.top64()) * u128::from(b.top64());
    let negative = a.negative != b.negative;
    let exponent = a.exponent + b.exponent + 1;
    let shift = product.leading_zeros();
    Number {
        negative,
        exponent: exponent - shift.cast_signed(),
        significand: product << shift,
    }
}

/// The quotient, 126 bits of it.
#[must_use]
pub fn divide(a: &Number, b: &Number) -> Number {
    let (dividend, divisor) = (u128::from(a.top64()), u128::from(b.top64()));
    // Both have bit 63 set: the first step gives the integer part and 63 bits.
    let scaled = dividend << 63;
    let (high, rest) = (scaled / divisor, scaled % divisor);
    let scaled = rest << 63;
    let (low, rest) = (scaled / divisor, scaled % divisor);
    // `high` is below 2^64 and weighs 2^-63, `low` below 2^63 and weighs 2^-126.
    let quotient = high << 63 | low;
    let shift = quotient.leading_zeros();
    Number {
        negative: a.negative != b.negative,
        exponent: a.exponent - b.exponent + 1 - shift.cast_signed(),
        significand: quotient << shift | u128::from(rest != 0),
    }
}

/// The square root of a positive number: 67 bits and a sticky one.
#[must_use]
pub fn square_root(a: &Number) -> Number {
    // The radicand with two bits before the point and an even exponent.
    let odd = a.exponent & 1;
    let mut rest = a.significand >> (1 - odd);
    let (mut root, mut remainder) = (0_u128, 0_u128);
    for _ in 0..67 {
        let pair = rest >> 126;
        rest <<= 2;
        remainder = remainder << 2 | pair;
        let trial = root << 2 | 1;
        root <<= 1;
        if remainder >= trial {
            remainder -= trial;
            root |= 1;
        }
    }
    Number {
        negative: false,
        exponent: (a.exponent - odd) / 2,
        significand: root << 61 | u128::from(remainder != 0),
    }
}
