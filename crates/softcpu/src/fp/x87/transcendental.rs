//! The instructions that compute transcendental functions, with their special operands.

use super::arith::propagate;
use super::control::{ControlWord, condition};
use super::functions::{self, PI};
use super::register::{Computed, F80};
use super::state::X87;
use crate::fp::exceptions::Exceptions;
use crate::fp::soft::{Number, Value};

fn rounded(number: &Number, control: ControlWord) -> Computed {
    F80::rounded(number, control, 64)
}

/// The functions of an angle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Angular {
    Sine,
    Cosine,
    Tangent,
    Both,
}

/// The result for ST(0) and what is pushed; none where the operand is out of range (C2).
fn angular(function: Angular, a: F80, control: ControlWord) -> Option<(Computed, Option<F80>)> {
    let pushed = |value: F80| match function {
        Angular::Sine | Angular::Cosine => None,
        Angular::Tangent | Angular::Both => Some(value),
    };
    match a.unpack() {
        Value::Nan => {
            let nan = propagate(a, a);
            Some((nan, pushed(nan.value)))
        }
        Value::Infinity(_) => Some((Computed::invalid(), pushed(F80::DEFAULT_NAN))),
        Value::Zero(_) => {
            let value = if function == Angular::Cosine {
                F80::ONE
            } else {
                a
            };
            Some((Computed::exact(value), pushed(F80::ONE)))
        }
        Value::Finite(number) => {
            let both = functions::sine_cosine(&number)?;
            let first = match function {
                Angular::Sine | Angular::Both => both.sine,
                Angular::Cosine => both.cosine,
                Angular::Tangent => functions::tangent(&both),
            };
            let second = match function {
                Angular::Tangent => F80::ONE,
                _ => rounded(&both.cosine, control).value,
            };
            let computed = rounded(&first, control).with_denormal(a.is_denormal());
            Some((computed, pushed(second)))
        }
    }
}

fn signed(value: &Number, negative: bool, control: ControlWord) -> Computed {
    rounded(&Number { negative, ..*value }, control)
}

/// A multiple of pi / 4.
fn quarters(count: u32, negative: bool, control: ControlWord) -> Computed {
    let value = match count {
        0 => return Computed::exact(F80::zero(negative)),
        1 => Number {
            exponent: PI.exponent - 2,
            ..PI
        },
        2 => Number {
            exponent: PI.exponent - 1,
            ..PI
        },
        3 => {
            let third = PI.significand / 4;
            Number {
                significand: third * 3,
                ..PI
            }
        }
        _ => PI,
    };
    let value = Number::normalized(negative, value.exponent, value.significand | 1).unwrap_or(PI);
    rounded(&value, control)
}

fn arctangent(y: F80, x: F80, control: ControlWord) -> Computed {
    let negative = y.is_negative();
    let denormal = x.is_denormal() || y.is_denormal();
    let computed = match (y.unpack(), x.unpack()) {
        (Value::Nan, _) | (_, Value::Nan) => return propagate(x, y),
        (Value::Infinity(_), Value::Infinity(left)) => {
            quarters(if left { 3 } else { 1 }, negative, control)
        }
        (Value::Infinity(_), _) | (Value::Finite(_), Value::Zero(_)) => {
            quarters(2, negative, control)
        }
        (Value::Zero(_), _) | (Value::Finite(_), Value::Infinity(_)) => {
            quarters(if x.is_negative() { 4 } else { 0 }, negative, control)
        }
        (Value::Finite(n), Value::Finite(m)) => {
            let angle = functions::angle(&n, &m);
            signed(&angle, negative, control)
        }
    };
    computed.with_denormal(denormal)
}

/// `y log2(x)`.
fn scaled_logarithm(y: F80, x: F80, control: ControlWord) -> Computed {
    let denormal = x.is_denormal() || y.is_denormal();
    let below_one = x.exponent_field() < F80::ONE.exponent_field();
    let computed = match (y.unpack(), x.unpack()) {
        (Value::Nan, _) | (_, Value::Nan) => return propagate(x, y),
        (_, Value::Infinity(true)) => Computed::invalid(),
        (_, Value::Finite(n)) if n.negative => Computed::invalid(),
        (Value::Zero(_), Value::Zero(_) | Value::Infinity(_)) => Computed::invalid(),
        (Value::Infinity(s), Value::Zero(_)) => Computed::exact(F80::infinity(!s)),
        (Value::Finite(n), Value::Zero(_)) => Computed {
            raised: Exceptions::ZERO_DIVIDE,
            ..Computed::exact(F80::infinity(!n.negative))
        },
        (_, Value::Infinity(false)) => Computed::exact(F80::infinity(y.is_negative())),
        (Value::Infinity(_), Value::Finite(_)) if x == F80::ONE => Computed::invalid(),
        (Value::Infinity(s), Value::Finite(_)) => Computed::exact(F80::infinity(s != below_one)),
        (Value::Zero(s), Value::Finite(_)) => Computed::exact(F80::zero(s != below_one)),
        (Value::Finite(n), Value::Finite(m)) => functions::logarithm(&m)
            .map_or(Computed::exact(F80::zero(n.negative)), |log| {
                rounded(&functions::scaled_logarithm(&n, &log), control)
            }),
    };
    computed.with_denormal(denormal)
}

/// `y log2(x + 1)`.
fn scaled_logarithm_plus_one(y: F80, x: F80, control: ControlWord) -> Computed {
    let denormal = x.is_denormal() || y.is_denormal();
    let negative = x.is_negative() != y.is_negative();
    let computed = match (y.unpack(), x.unpack()) {
        (Value::Nan, _) | (_, Value::Nan) => return propagate(x, y),
        (_, Value::Infinity(true))
        | (Value::Zero(_), Value::Infinity(false))
        | (Value::Infinity(_), Value::Zero(_)) => Computed::invalid(),
        (_, Value::Infinity(false)) => Computed::exact(F80::infinity(y.is_negative())),
        (_, Value::Zero(_)) | (Value::Zero(_), _) => Computed::exact(F80::zero(negative)),
        (Value::Infinity(_), _) => Computed::exact(F80::infinity(negative)),
        (Value::Finite(n), Value::Finite(m)) => functions::logarithm_plus_one(&m)
            .map_or(Computed::invalid(), |log| {
                rounded(&functions::scaled_logarithm(&n, &log), control)
            }),
    };
    computed.with_denormal(denormal)
}

/// `2^a - 1`; an operand beyond one, where the result is undefined, comes back unchanged.
fn power_minus_one(a: F80, control: ControlWord) -> Computed {
    const HALF: F80 = F80 {
        significand: 1 << 63,
        sign_exponent: 0xbffe,
    };
    let computed = match a.unpack() {
        Value::Nan => return propagate(a, a),
        Value::Infinity(true) => Computed::exact(F80::ONE.with_sign(true)),
        Value::Infinity(false) | Value::Zero(_) => Computed::exact(a),
        Value::Finite(n) if n.exponent >= 0 => {
            let exactly_minus_one = a == F80::ONE.with_sign(true);
            Computed::exact(if exactly_minus_one { HALF } else { a })
        }
        Value::Finite(n) => rounded(&functions::power_minus_one(&n), control),
    };
    computed.with_denormal(a.is_denormal())
}

impl X87 {
    /// FSIN, FCOS, FPTAN, FSINCOS.
    pub(super) fn angular(&mut self, function: Angular) {
        let pushes = matches!(function, Angular::Tangent | Angular::Both);
        self.set_condition(condition::C1 | condition::C2, 0);
        if self.is_empty(0) || (pushes && !self.is_empty(7)) {
            let overflow = !self.is_empty(0);
            if !self.stack_fault(overflow) {
                self.set_st(0, F80::DEFAULT_NAN);
                if pushes {
                    self.rotate(7);
                    self.set_st(0, F80::DEFAULT_NAN);
                }
            }
            return;
        }
        let Some((computed, pushed)) = angular(function, self.st(0), self.control) else {
            self.set_condition(condition::C2, condition::C2);
            return;
        };
        if self.keep(0, &computed)
            && let Some(second) = pushed
        {
            self.rotate(7);
            self.set_st(0, second);
        }
    }

    /// A function of ST(1) and ST(0) into ST(1), popped.
    fn joined(&mut self, function: fn(F80, F80, ControlWord) -> Computed) {
        let kept = if self.is_empty(0) || self.is_empty(1) {
            self.underflow_into(1)
        } else {
            let computed = function(self.st(1), self.st(0), self.control);
            self.keep(1, &computed)
        };
        if kept {
            self.pop();
        }
    }

    /// FPATAN.
    pub(super) fn arctangent(&mut self) {
        self.joined(arctangent);
    }

    /// FYL2X.
    pub(super) fn logarithm(&mut self) {
        self.joined(scaled_logarithm);
    }

    /// FYL2XP1.
    pub(super) fn logarithm_plus_one(&mut self) {
        self.joined(scaled_logarithm_plus_one);
    }

    /// F2XM1.
    pub(super) fn power(&mut self) {
        self.unary(power_minus_one);
    }
}
