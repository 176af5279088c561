//! Addition to square root, rounding to integer, sign changes.

use super::control::ControlWord;
use super::register::{Computed, F80, Operand};
use super::state::X87;
use crate::fp::exceptions::{Exceptions, Rounding};
use crate::fp::soft::{self, Number, Value};

/// The result where an operand is a NaN or unsupported: the quiet NaN of an operand, of two the
/// one with the larger significand (SDM vol. 1, table 4-7).
pub(super) fn propagate(a: F80, b: F80) -> Computed {
    if a.is_unsupported() || b.is_unsupported() {
        return Computed::invalid();
    }
    let chosen = match (a.is_nan(), b.is_nan()) {
        (true, false) => a,
        (false, _) => b,
        (true, true) => match (a.is_signaling(), b.is_signaling()) {
            (true, false) => b,
            (false, true) => a,
            _ => larger(a, b),
        },
    };
    let mut computed = Computed::exact(chosen.quieted());
    computed
        .raised
        .set(Exceptions::INVALID, a.is_signaling() || b.is_signaling());
    computed
}

fn larger(a: F80, b: F80) -> F80 {
    if a.significand == b.significand {
        return if a.is_negative() { b } else { a };
    }
    if a.significand > b.significand { a } else { b }
}

/// The six operations by ModRM.reg: add, multiply, (two comparisons), subtract, reversed,
/// divide, reversed; `a` is ST(0).
pub(super) fn binary(reg: u8, a: F80, b: Operand, control: ControlWord) -> Computed {
    let Operand { value: b, denormal } = b;
    if matches!(a.unpack(), Value::Nan) || matches!(b.unpack(), Value::Nan) {
        return propagate(a, b);
    }
    let computed = match reg {
        0 => sum(a, b, control),
        1 => product(a, b, control),
        4 => sum(a, b.with_sign(!b.is_negative()), control),
        5 => sum(b, a.with_sign(!a.is_negative()), control),
        6 => quotient(a, b, control),
        _ => quotient(b, a, control),
    };
    computed.with_denormal(a.is_denormal() || denormal)
}

fn narrowed(number: &Number, control: ControlWord) -> Computed {
    F80::rounded(number, control, control.precision())
}

fn sum(a: F80, b: F80, control: ControlWord) -> Computed {
    let cancelled = F80::zero(control.rounding() == Rounding::Down);
    match (a.unpack(), b.unpack()) {
        (Value::Infinity(s), Value::Infinity(t)) if s != t => Computed::invalid(),
        (Value::Infinity(s), _) | (_, Value::Infinity(s)) => Computed::exact(F80::infinity(s)),
        (Value::Zero(s), Value::Zero(t)) => {
            Computed::exact(if s == t { F80::zero(s) } else { cancelled })
        }
        (Value::Finite(n), Value::Zero(_)) | (Value::Zero(_), Value::Finite(n)) => {
            narrowed(&n, control)
        }
        (Value::Finite(n), Value::Finite(m)) => {
            soft::add(&n, &m).map_or(Computed::exact(cancelled), |n| narrowed(&n, control))
        }
        _ => Computed::invalid(),
    }
}

fn product(a: F80, b: F80, control: ControlWord) -> Computed {
    let negative = a.is_negative() != b.is_negative();
    match (a.unpack(), b.unpack()) {
        (Value::Infinity(_), Value::Zero(_)) | (Value::Zero(_), Value::Infinity(_)) => {
            Computed::invalid()
        }
        (Value::Infinity(_), _) | (_, Value::Infinity(_)) => {
            Computed::exact(F80::infinity(negative))
        }
        (Value::Finite(n), Value::Finite(m)) => narrowed(&soft::multiply(&n, &m), control),
        _ => Computed::exact(F80::zero(negative)),
    }
}

fn quotient(a: F80, b: F80, control: ControlWord) -> Computed {
    let negative = a.is_negative() != b.is_negative();
    match (a.unpack(), b.unpack()) {
        (Value::Infinity(_), Value::Infinity(_)) | (Value::Zero(_), Value::Zero(_)) => {
            Computed::invalid()
        }
        (Value::Infinity(_), _) => Computed::exact(F80::infinity(negative)),
        (Value::Finite(_), Value::Zero(_)) => Computed {
            raised: Exceptions::ZERO_DIVIDE,
            ..Computed::exact(F80::infinity(negative))
        },
        (Value::Finite(n), Value::Finite(m)) => narrowed(&soft::divide(&n, &m), control),
        _ => Computed::exact(F80::zero(negative)),
    }
}

fn square_root(a: F80, control: ControlWord) -> Computed {
    match a.unpack() {
        Value::Nan => propagate(a, a),
        Value::Zero(_) | Value::Infinity(false) => Computed::exact(a),
        Value::Finite(n) if !n.negative => {
            narrowed(&soft::square_root(&n), control).with_denormal(a.is_denormal())
        }
        _ => Computed::invalid(),
    }
}

fn round_to_integer(a: F80, control: ControlWord) -> Computed {
    let Value::Finite(number) = a.unpack() else {
        return if a.is_nan() || a.is_unsupported() {
            propagate(a, a)
        } else {
            Computed::exact(a)
        };
    };
    if number.exponent >= 63 {
        return Computed::exact(a);
    }
    let Some(integer) = soft::to_integer(&number, 64, control.rounding()) else {
        return round_up_to_limit(a);
    };
    let value = F80::from_integer(integer.value).with_sign(number.negative);
    let mut raised = Exceptions::empty();
    raised.set(Exceptions::PRECISION, integer.inexact);
    Computed {
        value,
        raised,
        up: integer.up,
    }
    .with_denormal(a.is_denormal())
}

/// A number just below `2^63` that rounds to it.
const fn round_up_to_limit(a: F80) -> Computed {
    let limit = F80 {
        significand: 1 << 63,
        sign_exponent: 0x3fff + 63,
    };
    let value = limit.with_sign(a.is_negative());
    Computed {
        value,
        raised: Exceptions::PRECISION,
        up: true,
    }
}

impl X87 {
    /// An operation on ST(0) and ST(index), into ST(`into`).
    pub(super) fn operate(&mut self, reg: u8, index: u8, into: u8, pop: bool) {
        let kept = if self.is_empty(0) || self.is_empty(index) {
            self.underflow_into(into)
        } else {
            let computed = binary(reg, self.st(0), self.st(index).into(), self.control);
            self.keep(into, &computed)
        };
        if kept && pop {
            self.pop();
        }
    }

    /// An operation on ST(0) and a value from memory.
    pub(super) fn operate_value(&mut self, reg: u8, operand: Operand) {
        if self.is_empty(0) {
            self.underflow_into(0);
        } else {
            let computed = binary(reg, self.st(0), operand, self.control);
            self.keep(0, &computed);
        }
    }

    /// A function of ST(0) into ST(0).
    pub(super) fn unary(&mut self, function: fn(F80, ControlWord) -> Computed) {
        if self.is_empty(0) {
            self.underflow_into(0);
        } else {
            let computed = function(self.st(0), self.control);
            self.keep(0, &computed);
        }
    }

    pub(super) fn root(&mut self) {
        self.unary(square_root);
    }

    pub(super) fn round(&mut self) {
        self.unary(round_to_integer);
    }

    pub(super) fn change_sign(&mut self) {
        self.unary(|a, _| Computed::exact(a.with_sign(!a.is_negative())));
    }

    pub(super) fn absolute(&mut self) {
        self.unary(|a, _| Computed::exact(a.with_sign(false)));
    }
}
