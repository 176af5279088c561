//! FPREM and FPREM1.

use super::arith::propagate;
use super::control::condition::{C0, C1, C2, C3};
use super::register::{Computed, F80};
use super::state::X87;
use crate::fp::bits::{low8, low64};
use crate::fp::soft::{Number, Value};

/// The remainder so far: low bits of the quotient, none while the reduction is partial.
struct Reduced {
    rest: Option<Number>,
    quotient: Option<u8>,
}

/// Reduces `a` by `b`: by at least 32 and fewer than 64 bits where the exponents differ by more
/// (SDM vol. 2, FPREM; the amount is the processor's choice).
fn reduce(a: &Number, b: &Number, nearest: bool) -> Reduced {
    let difference = a.exponent - b.exponent;
    if difference < -1 || (difference < 0 && !nearest) {
        return Reduced {
            rest: Some(*a),
            quotient: Some(0),
        };
    }
    let (shift, partial) = if difference < 64 {
        (difference, false)
    } else {
        (32 | difference & 31, true)
    };
    let scale = shift.max(0).unsigned_abs();
    let divisor = u128::from(b.top64()) << u32::from(shift < 0);
    let dividend = u128::from(a.top64()) << scale;
    let (mut quotient, mut rest) = (dividend / divisor, dividend % divisor);
    let mut negative = a.negative;
    if nearest && !partial && (2 * rest > divisor || (2 * rest == divisor && quotient & 1 == 1)) {
        quotient += 1;
        rest = divisor - rest;
        negative = !negative;
    }
    let exponent = a.exponent - shift.max(0);
    // The rest is below 2^65; bit 63 weighs `2^exponent`.
    let rest = Number::normalized(negative, exponent + 1, rest << 63);
    Reduced {
        rest,
        quotient: (!partial).then(|| low8(low64(quotient))),
    }
}

/// The condition codes of a quotient's low bits; C2 while the reduction is partial.
fn quotient_codes(quotient: Option<u8>) -> u16 {
    let bit = |quotient: u8, bit: u8, code: u16| {
        if (quotient >> bit) & 1 == 0 { 0 } else { code }
    };
    quotient.map_or(C2, |q| bit(q, 0, C1) | bit(q, 1, C3) | bit(q, 2, C0))
}

impl X87 {
    /// FPREM, or FPREM1 with `nearest`.
    pub(super) fn remainder(&mut self, nearest: bool) {
        self.set_condition(C1 | C2, 0);
        if self.is_empty(0) || self.is_empty(1) {
            self.underflow_into(0);
            return;
        }
        let (a, b) = (self.st(0), self.st(1));
        let denormal = a.is_denormal() || b.is_denormal();
        let mut codes = None;
        let computed = match (a.unpack(), b.unpack()) {
            (Value::Nan, _) | (_, Value::Nan) => propagate(a, b),
            (Value::Infinity(_), _) | (_, Value::Zero(_)) => Computed::invalid(),
            (Value::Zero(_), _) => {
                codes = Some(0);
                Computed::exact(a).with_denormal(denormal)
            }
            (Value::Finite(n), Value::Infinity(_)) => {
                codes = Some(0);
                F80::rounded(&n, self.control, 64).with_denormal(denormal)
            }
            (Value::Finite(n), Value::Finite(m)) => {
                let reduced = reduce(&n, &m, nearest);
                codes = Some(quotient_codes(reduced.quotient));
                let zero = Computed::exact(F80::zero(a.is_negative()));
                reduced
                    .rest
                    .map_or(zero, |rest| F80::rounded(&rest, self.control, 64))
                    .with_denormal(denormal)
            }
        };
        if self.keep(0, &computed)
            && let Some(codes) = codes
        {
            self.set_condition(C0 | C1 | C2 | C3, codes);
        }
    }
}
