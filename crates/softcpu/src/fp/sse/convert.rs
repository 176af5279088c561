//! Conversions between formats and to and from integers.

use super::arith::{Flagged, finish, operand, propagate};
use crate::fp::exceptions::{Exceptions, Rounding};
use crate::fp::mxcsr::Mxcsr;
use crate::fp::soft::{self, Format, Value};

/// From one format to another; a NaN keeps the upper bits of its payload.
pub(super) fn reformat(bits: u64, from: Format, to: Format, mxcsr: Mxcsr) -> Flagged {
    if from.is_nan(bits) {
        let (nan, raised) = propagate(bits, bits, from);
        return (reformat_nan(nan, from, to), raised);
    }
    let bits = operand(bits, from, mxcsr);
    match soft::unpack(bits, from) {
        Value::Zero(negative) => (
            if negative { to.sign_bit() } else { 0 },
            Exceptions::empty(),
        ),
        Value::Infinity(negative) => (soft::pack_infinity(negative, to), Exceptions::empty()),
        Value::Finite(number) => {
            let (result, mut raised) = finish(&number, to, mxcsr);
            raised.set(Exceptions::DENORMAL, from.is_denormal(bits));
            (result, raised)
        }
        Value::Nan => (to.default_nan(), Exceptions::INVALID),
    }
}

/// Moves a quiet NaN's payload to the leading bits of the other format's.
fn reformat_nan(bits: u64, from: Format, to: Format) -> u64 {
    let negative = bits & from.sign_bit() != 0;
    let payload = bits << (65 - from.precision) >> (65 - to.precision);
    soft::pack_infinity(negative, to) | payload
}

/// From a signed integer.
pub(super) fn from_integer(value: i64, to: Format, mxcsr: Mxcsr) -> Flagged {
    soft::from_integer(value).map_or((0, Exceptions::empty()), |n| finish(&n, to, mxcsr))
}

/// To a signed integer of `width` bits; the "integer indefinite" (the smallest) where it does
/// not fit.
pub(super) fn to_integer(
    bits: u64,
    from: Format,
    width: u32,
    rounding: Rounding,
    mxcsr: Mxcsr,
) -> Flagged {
    let indefinite = (1 << (width - 1), Exceptions::INVALID);
    let bits = operand(bits, from, mxcsr);
    match soft::unpack(bits, from) {
        Value::Zero(_) => (0, Exceptions::empty()),
        Value::Infinity(_) | Value::Nan => indefinite,
        Value::Finite(number) => {
            soft::to_integer(&number, width, rounding).map_or(indefinite, |integer| {
                let mut raised = Exceptions::empty();
                raised.set(Exceptions::PRECISION, integer.inexact);
                (
                    integer.value.cast_unsigned() << (64 - width) >> (64 - width),
                    raised,
                )
            })
        }
    }
}
