//! FCOM, FUCOM, FCOMI, FTST, FXAM.

use super::control::condition::{self, C0, C1, C2, C3};
use super::register::{Computed, F80, Operand};
use super::state::X87;
use crate::fp::exceptions::Exceptions;
use crate::fp::soft::{Number, Value};
use std::cmp::Ordering;

/// Compares; none where unordered.
fn relation(a: F80, b: F80) -> Option<Ordering> {
    match (a.unpack(), b.unpack()) {
        (Value::Nan, _) | (_, Value::Nan) => None,
        (x, y) => Some(key(&x).cmp(&key(&y))),
    }
}

/// A key that orders all values but NaNs: sign and then magnitude.
fn key(value: &Value) -> (i8, i32, i128) {
    const TOP: i32 = i32::MAX;
    let sign: i8 = if value.is_negative() { -1 } else { 1 };
    let (exponent, significand) = match value {
        Value::Zero(_) | Value::Nan => return (0, 0, 0),
        Value::Infinity(_) => (TOP, 0),
        Value::Finite(Number {
            exponent,
            significand,
            ..
        }) => (exponent + 0x10000, (significand >> 1).cast_signed()),
    };
    (
        sign,
        exponent * i32::from(sign),
        significand * i128::from(sign),
    )
}

fn compare(a: F80, b: Operand, quiet: bool) -> (Option<Ordering>, Exceptions) {
    let Operand { value: b, denormal } = b;
    let mut raised = Exceptions::empty();
    let relation = relation(a, b);
    if relation.is_none() {
        let signals = |x: F80| x.is_unsupported() || x.is_signaling();
        raised.set(Exceptions::INVALID, !quiet || signals(a) || signals(b));
    } else {
        raised.set(Exceptions::DENORMAL, a.is_denormal() || denormal);
    }
    (relation, raised)
}

const fn codes(relation: Option<Ordering>) -> u16 {
    match relation {
        None => C3 | C2 | C0,
        Some(Ordering::Less) => C0,
        Some(Ordering::Equal) => C3,
        Some(Ordering::Greater) => 0,
    }
}

impl X87 {
    /// Compares ST(0) with a value, none standing for an empty register; false where an unmasked
    /// exception forbids a pop.
    pub(super) fn compare_value(&mut self, operand: Option<Operand>, quiet: bool) -> bool {
        let (relation, done) = self.relate(operand, quiet);
        self.set_condition(C3 | C2 | C0, codes(relation));
        done
    }

    /// The relation to a value and whether no unmasked exception was raised.
    fn relate(&mut self, operand: Option<Operand>, quiet: bool) -> (Option<Ordering>, bool) {
        let operand = operand.filter(|_| !self.is_empty(0));
        let Some(operand) = operand else {
            return (None, !self.stack_fault(false));
        };
        let (relation, raised) = compare(self.st(0), operand, quiet);
        let computed = Computed {
            raised,
            ..Computed::exact(operand.value)
        };
        (relation, !self.judge(&computed))
    }

    fn register(&self, index: u8) -> Option<Operand> {
        (!self.is_empty(index)).then(|| self.st(index).into())
    }

    /// FCOM and its kin on ST(index), with `pops` pops.
    pub(super) fn compare_register(&mut self, index: u8, quiet: bool, pops: u8) {
        let operand = self.register(index);
        if self.compare_value(operand, quiet) {
            (0..pops).for_each(|_| self.pop());
        }
    }

    /// FCOMI and its kin: the new ZF, PF and CF as in EFLAGS. C1 changes by a stack fault only.
    pub(super) fn compare_flags(&mut self, index: u8, quiet: bool, pop: bool) -> u32 {
        const ZERO: u32 = 1 << 6;
        const PARITY: u32 = 1 << 2;
        const CARRY: u32 = 1;
        let operand = self.register(index);
        let (before, faulty) = (self.status & C1, operand.is_none() || self.is_empty(0));
        let (relation, done) = self.relate(operand, quiet);
        if !faulty {
            self.set_condition(C1, before);
        }
        if pop && done {
            self.pop();
        }
        match relation {
            None => ZERO | PARITY | CARRY,
            Some(Ordering::Less) => CARRY,
            Some(Ordering::Equal) => ZERO,
            Some(Ordering::Greater) => 0,
        }
    }

    /// FTST.
    pub(super) fn test(&mut self) {
        self.compare_value(Some(F80::zero(false).into()), false);
    }

    /// FXAM.
    pub(super) fn examine(&mut self) {
        let value = self.st(0);
        let class = if self.is_empty(0) {
            C3 | C0
        } else if value.is_unsupported() {
            0
        } else if value.is_nan() {
            C0
        } else if value.is_denormal() {
            C3 | C2
        } else {
            match value.unpack() {
                Value::Infinity(_) => C2 | C0,
                Value::Zero(_) => C3,
                Value::Finite(_) | Value::Nan => C2,
            }
        };
        let sign = if value.is_negative() { C1 } else { 0 };
        self.set_condition(condition::ALL, class | sign);
    }
}
