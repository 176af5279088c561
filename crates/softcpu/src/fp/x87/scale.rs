//! FSCALE and FXTRACT.

use super::arith::propagate;
use super::control::condition;
use super::register::{Computed, F80};
use super::state::X87;
use crate::fp::exceptions::{Exceptions, Rounding};
use crate::fp::soft::{self, Number, Value};

/// An exponent change beyond every range.
const FAR: i32 = 0x1_0000;

fn steps(number: &Number) -> i32 {
    let far = if number.negative { -FAR } else { FAR };
    soft::to_integer(number, 32, Rounding::Zero)
        .and_then(|integer| i32::try_from(integer.value).ok())
        .map_or(far, |value| value.clamp(-FAR, FAR))
}

fn scale(a: F80, b: F80, x87: &X87) -> Computed {
    let denormal = a.is_denormal() || b.is_denormal();
    let computed = match (a.unpack(), b.unpack()) {
        (Value::Nan, _) | (_, Value::Nan) => return propagate(a, b),
        (Value::Infinity(_), Value::Infinity(true)) | (Value::Zero(_), Value::Infinity(false)) => {
            Computed::invalid()
        }
        (Value::Infinity(_) | Value::Zero(_), _) => Computed::exact(a),
        (_, Value::Infinity(false)) => Computed::exact(F80::infinity(a.is_negative())),
        (_, Value::Infinity(true)) => Computed::exact(F80::zero(a.is_negative())),
        (Value::Finite(n), Value::Zero(_)) => F80::rounded(&n, x87.control, 64),
        (Value::Finite(n), Value::Finite(m)) => {
            let scaled = Number {
                exponent: n.exponent + steps(&m),
                ..n
            };
            F80::rounded(&scaled, x87.control, 64)
        }
    };
    computed.with_denormal(denormal)
}

/// Exponent and significand.
fn extract(a: F80) -> (Computed, F80) {
    match a.unpack() {
        Value::Nan => {
            let nan = propagate(a, a);
            (nan, nan.value)
        }
        Value::Infinity(negative) => (
            Computed::exact(F80::infinity(false)),
            F80::infinity(negative),
        ),
        Value::Zero(negative) => {
            let exponent = Computed::exact(F80::infinity(true));
            (
                Computed {
                    raised: Exceptions::ZERO_DIVIDE,
                    ..exponent
                },
                F80::zero(negative),
            )
        }
        Value::Finite(number) => {
            let exponent = Computed::exact(F80::from_integer(number.exponent.into()));
            let significand = F80 {
                significand: number.top64(),
                ..F80::ONE
            };
            (
                exponent.with_denormal(a.is_denormal()),
                significand.with_sign(number.negative),
            )
        }
    }
}

impl X87 {
    /// FSCALE.
    pub(super) fn scale(&mut self) {
        if self.is_empty(0) || self.is_empty(1) {
            self.underflow_into(0);
        } else {
            let computed = scale(self.st(0), self.st(1), self);
            self.keep(0, &computed);
        }
    }

    /// FXTRACT.
    pub(super) fn extract(&mut self) {
        if self.is_empty(0) || !self.is_empty(7) {
            let overflow = !self.is_empty(0);
            if !self.stack_fault(overflow) {
                self.set_st(0, F80::DEFAULT_NAN);
                self.rotate(7);
                self.set_st(0, F80::DEFAULT_NAN);
            }
            return;
        }
        let (exponent, significand) = extract(self.st(0));
        if self.keep(0, &exponent) {
            self.rotate(7);
            self.set_st(0, significand);
        }
        self.set_condition(condition::C1, 0);
    }
}
