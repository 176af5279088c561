//! RCPPS and RSQRTPS.
//!
//! Hosts differ here: the architecture asks only for a relative error of at most 1.5 * 2^-12
//! (SDM vol. 2, RCPPS). This engine computes the quotient or root of the operand exactly and
//! rounds it to 12 bits to nearest, a relative error of at most 2^-13. Neither raises an
//! exception; a denormal operand counts as zero and a tiny result becomes zero.

use crate::fp::bits::low32;
use crate::fp::exceptions::Rounding;
use crate::fp::soft::{self, Format, Number, Value};

const BITS: u32 = 12;

/// The approximate reciprocal.
pub(super) fn reciprocal(a: u32) -> u32 {
    let sign = a & 0x8000_0000;
    match value(a) {
        Value::Nan => a | 0x0040_0000,
        Value::Infinity(_) => sign,
        Value::Zero(_) => sign | 0x7f80_0000,
        Value::Finite(number) => rounded(&soft::divide(&one(), &number)),
    }
}

/// The approximate reciprocal of the square root.
pub(super) fn reciprocal_root(a: u32) -> u32 {
    match value(a) {
        Value::Nan => a | 0x0040_0000,
        Value::Zero(negative) => u32::from(negative) << 31 | 0x7f80_0000,
        Value::Infinity(false) => 0,
        Value::Finite(number) if !number.negative => {
            let mut root = soft::square_root(&number);
            // The divisor needs 64 bits; far more than twelve are right.
            root.significand &= !u128::from(u64::MAX);
            rounded(&soft::divide(&one(), &root))
        }
        _ => 0xffc0_0000,
    }
}

fn value(a: u32) -> Value {
    let negative = a & 0x8000_0000 != 0;
    if Format::SINGLE.is_denormal(u64::from(a)) {
        return Value::Zero(negative);
    }
    soft::unpack(u64::from(a), Format::SINGLE)
}

const fn one() -> Number {
    Number {
        negative: false,
        exponent: 0,
        significand: 1 << 127,
    }
}

fn rounded(number: &Number) -> u32 {
    let format = Format::SINGLE.with_precision(BITS);
    let outcome = soft::round(number, format, Rounding::Nearest);
    let sign = u32::from(number.negative) << 31;
    if outcome.overflow {
        return sign | 0x7f80_0000;
    }
    if outcome.tiny.is_some() {
        return sign;
    }
    low32(soft::pack_rounded(
        number.negative,
        &outcome.unbounded,
        Format::SINGLE,
    ))
}
