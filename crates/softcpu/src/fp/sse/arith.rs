//! Addition to square root, minimum and maximum on single and double numbers.

use crate::fp::exceptions::Exceptions;
use crate::fp::mxcsr::Mxcsr;
use crate::fp::soft::{self, Format, Number, Outcome, Value};

/// An arithmetic operation of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Subtract,
    /// `a * b`.
    Multiply,
    /// `a / b`.
    Divide,
}

/// A result and the exceptions it raised.
pub(super) type Flagged = (u64, Exceptions);

/// The operand as the operation sees it: a denormal number is zero under DAZ.
pub(super) fn operand(bits: u64, format: Format, mxcsr: Mxcsr) -> u64 {
    if mxcsr.denormals_are_zeros() && format.is_denormal(bits) {
        bits & format.sign_bit()
    } else {
        bits
    }
}

/// The result where an operand is a NaN: the first NaN, made quiet.
pub(super) fn propagate(a: u64, b: u64, format: Format) -> Flagged {
    let signaling = format.is_signaling(a) || format.is_signaling(b);
    let chosen = if format.is_nan(a) { a } else { b };
    let raised = if signaling {
        Exceptions::INVALID
    } else {
        Exceptions::empty()
    };
    (chosen | format.quiet_bit(), raised)
}

fn denormal(found: bool) -> Exceptions {
    if found {
        Exceptions::DENORMAL
    } else {
        Exceptions::empty()
    }
}

/// Computes `a op b`.
pub(super) fn binary(op: Binary, a: u64, b: u64, format: Format, mxcsr: Mxcsr) -> Flagged {
    if format.is_nan(a) || format.is_nan(b) {
        return propagate(a, b, format);
    }
    let (a, b) = (operand(a, format, mxcsr), operand(b, format, mxcsr));
    let raised = denormal(format.is_denormal(a) || format.is_denormal(b));
    let flip = if op == Binary::Subtract {
        format.sign_bit()
    } else {
        0
    };
    let (x, y) = (soft::unpack(a, format), soft::unpack(b ^ flip, format));
    let (bits, more) = match op {
        Binary::Add | Binary::Subtract => sum(&x, &y, format, mxcsr),
        Binary::Multiply => product(&x, &y, format, mxcsr),
        Binary::Divide => quotient(&x, &y, format, mxcsr),
    };
    if more.intersects(Exceptions::INVALID | Exceptions::ZERO_DIVIDE) {
        return (bits, more);
    }
    (bits, raised | more)
}

fn invalid(format: Format) -> Flagged {
    (format.default_nan(), Exceptions::INVALID)
}

const fn zero(negative: bool, format: Format) -> u64 {
    if negative { format.sign_bit() } else { 0 }
}

fn sum(x: &Value, y: &Value, format: Format, mxcsr: Mxcsr) -> Flagged {
    let exact = Exceptions::empty();
    let cancelled = mxcsr.rounding() == crate::fp::exceptions::Rounding::Down;
    match (x, y) {
        (Value::Infinity(s), Value::Infinity(t)) if s != t => invalid(format),
        (Value::Infinity(s), _) | (_, Value::Infinity(s)) => {
            (soft::pack_infinity(*s, format), exact)
        }
        (Value::Zero(s), Value::Zero(t)) => {
            (zero(if s == t { *s } else { cancelled }, format), exact)
        }
        (Value::Finite(n), Value::Zero(_)) | (Value::Zero(_), Value::Finite(n)) => {
            finish(n, format, mxcsr)
        }
        (Value::Finite(n), Value::Finite(m)) => soft::add(n, m)
            .map_or((zero(cancelled, format), exact), |n| {
                finish(&n, format, mxcsr)
            }),
        (Value::Nan, _) | (_, Value::Nan) => invalid(format),
    }
}

fn product(x: &Value, y: &Value, format: Format, mxcsr: Mxcsr) -> Flagged {
    let negative = x.is_negative() != y.is_negative();
    match (x, y) {
        (Value::Infinity(_), Value::Zero(_)) | (Value::Zero(_), Value::Infinity(_)) => {
            invalid(format)
        }
        (Value::Infinity(_), _) | (_, Value::Infinity(_)) => {
            (soft::pack_infinity(negative, format), Exceptions::empty())
        }
        (Value::Finite(n), Value::Finite(m)) => finish(&soft::multiply(n, m), format, mxcsr),
        _ => (zero(negative, format), Exceptions::empty()),
    }
}

fn quotient(x: &Value, y: &Value, format: Format, mxcsr: Mxcsr) -> Flagged {
    let negative = x.is_negative() != y.is_negative();
    match (x, y) {
        (Value::Infinity(_), Value::Infinity(_)) | (Value::Zero(_), Value::Zero(_)) => {
            invalid(format)
        }
        (Value::Infinity(_), _) => (soft::pack_infinity(negative, format), Exceptions::empty()),
        (Value::Finite(_), Value::Zero(_)) => (
            soft::pack_infinity(negative, format),
            Exceptions::ZERO_DIVIDE,
        ),
        (Value::Finite(n), Value::Finite(m)) => finish(&soft::divide(n, m), format, mxcsr),
        _ => (zero(negative, format), Exceptions::empty()),
    }
}

/// The square root.
pub(super) fn square_root(a: u64, format: Format, mxcsr: Mxcsr) -> Flagged {
    if format.is_nan(a) {
        return propagate(a, a, format);
    }
    let a = operand(a, format, mxcsr);
    match soft::unpack(a, format) {
        Value::Zero(_) | Value::Infinity(false) => (a, Exceptions::empty()),
        Value::Finite(n) if !n.negative => {
            let (bits, raised) = finish(&soft::square_root(&n), format, mxcsr);
            (bits, raised | denormal(format.is_denormal(a)))
        }
        _ => invalid(format),
    }
}

/// Minimum (`maximum` false) or maximum: the second operand where either is a NaN or both are
/// zeros.
pub(super) fn extreme(maximum: bool, a: u64, b: u64, format: Format, mxcsr: Mxcsr) -> Flagged {
    if format.is_nan(a) || format.is_nan(b) {
        return (operand(b, format, mxcsr), Exceptions::INVALID);
    }
    let (a, b) = (operand(a, format, mxcsr), operand(b, format, mxcsr));
    let raised = denormal(format.is_denormal(a) || format.is_denormal(b));
    let (x, y) = (ordered(a, format), ordered(b, format));
    let first = if maximum { x > y } else { x < y };
    (if first { a } else { b }, raised)
}

/// A key that orders all numbers; both zeros have the same.
pub(super) const fn ordered(bits: u64, format: Format) -> i64 {
    let magnitude = (bits & !format.sign_bit()).cast_signed();
    if bits & format.sign_bit() == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// Rounds and packs, with the masked responses of overflow and underflow.
pub(super) fn finish(number: &Number, format: Format, mxcsr: Mxcsr) -> Flagged {
    let rounding = mxcsr.rounding();
    let outcome = soft::round(number, format, rounding);
    if outcome.overflow {
        return overflow(&outcome, number.negative, format, mxcsr);
    }
    let mut raised = Exceptions::empty();
    if let Some(tiny) = outcome.tiny {
        if mxcsr.flushes_to_zero() {
            let raised = Exceptions::UNDERFLOW | Exceptions::PRECISION;
            return (zero(number.negative, format), raised);
        }
        if !mxcsr.masked().contains(Exceptions::UNDERFLOW) {
            // The handler is told of the result with unbounded exponent.
            raised.set(Exceptions::PRECISION, outcome.unbounded.inexact);
            return (
                zero(number.negative, format),
                raised | Exceptions::UNDERFLOW,
            );
        }
        raised.set(Exceptions::UNDERFLOW, tiny.inexact);
    }
    let rounded = outcome.bounded();
    raised.set(Exceptions::PRECISION, rounded.inexact);
    (
        soft::pack_rounded(number.negative, &rounded, format),
        raised,
    )
}

/// Masked, an overflow is always inexact; unmasked, only where the significand is.
fn overflow(outcome: &Outcome, negative: bool, format: Format, mxcsr: Mxcsr) -> Flagged {
    let masked = mxcsr.masked().contains(Exceptions::OVERFLOW);
    let mut raised = Exceptions::OVERFLOW;
    raised.set(Exceptions::PRECISION, masked || outcome.unbounded.inexact);
    if mxcsr.rounding().overflows_to_infinity(negative) {
        (soft::pack_infinity(negative, format), raised)
    } else {
        (soft::pack_largest(negative, format), raised)
    }
}
