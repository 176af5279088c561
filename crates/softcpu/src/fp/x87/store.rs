//! Stores of numbers.

use super::bcd;
use super::control::condition;
use super::register::F80;
use super::state::X87;
use crate::fp::bits::low64;
use crate::fp::exceptions::Exceptions;
use crate::fp::soft::{self, Format, Value};

/// What a conversion gives for memory.
struct Stored<T> {
    value: T,
    raised: Exceptions,
    up: bool,
}

impl<T> Stored<T> {
    const fn exact(value: T) -> Self {
        Self {
            value,
            raised: Exceptions::empty(),
            up: false,
        }
    }

    const fn invalid(value: T) -> Self {
        Self {
            value,
            raised: Exceptions::INVALID,
            up: false,
        }
    }
}

fn pack(a: F80, format: Format, x87: &X87) -> Stored<u64> {
    let sign = if a.is_negative() {
        format.sign_bit()
    } else {
        0
    };
    let number = match a.unpack() {
        Value::Zero(_) => return Stored::exact(sign),
        Value::Infinity(negative) => return Stored::exact(soft::pack_infinity(negative, format)),
        Value::Nan if a.is_unsupported() => return Stored::invalid(format.default_nan()),
        Value::Nan => {
            let payload = a.quieted().significand << 1 >> (65 - format.precision);
            let value = soft::pack_infinity(a.is_negative(), format) | payload;
            return if a.is_signaling() {
                Stored::invalid(value)
            } else {
                Stored::exact(value)
            };
        }
        Value::Finite(number) => number,
    };
    let control = x87.control;
    let outcome = soft::round(&number, format, control.rounding());
    let unmasked = |exception| !control.masked().contains(exception);
    let trapped = (outcome.overflow && unmasked(Exceptions::OVERFLOW))
        || (outcome.tiny.is_some() && unmasked(Exceptions::UNDERFLOW));
    if trapped {
        // Nothing is stored, so nothing is inexact.
        let raised = if outcome.overflow {
            Exceptions::OVERFLOW
        } else {
            Exceptions::UNDERFLOW
        };
        return Stored {
            value: 0,
            raised,
            up: false,
        };
    }
    if outcome.overflow {
        let up = control.rounding().overflows_to_infinity(number.negative);
        let value = if up {
            soft::pack_infinity
        } else {
            soft::pack_largest
        };
        let raised = Exceptions::OVERFLOW | Exceptions::PRECISION;
        return Stored {
            value: value(number.negative, format),
            raised,
            up,
        };
    }
    let kept = outcome.bounded();
    let mut raised = Exceptions::empty();
    raised.set(
        Exceptions::UNDERFLOW,
        outcome.tiny.is_some() && kept.inexact,
    );
    raised.set(Exceptions::PRECISION, kept.inexact);
    Stored {
        value: soft::pack_rounded(number.negative, &kept, format),
        raised,
        up: kept.up,
    }
}

fn integer(a: F80, width: u32, x87: &X87) -> Stored<u64> {
    let indefinite = Stored::invalid(1 << (width - 1));
    match a.unpack() {
        Value::Zero(_) => Stored::exact(0),
        Value::Infinity(_) | Value::Nan => indefinite,
        Value::Finite(number) => {
            let integer = soft::to_integer(&number, width, x87.control.rounding());
            integer.map_or(indefinite, |integer| {
                let mut stored = Stored::exact(integer.value.cast_unsigned());
                stored.raised.set(Exceptions::PRECISION, integer.inexact);
                stored.up = integer.up;
                stored
            })
        }
    }
}

fn decimal(a: F80, x87: &X87) -> Stored<[u8; 10]> {
    let stored = integer(a, 64, x87);
    let magnitude = stored.value.cast_signed().unsigned_abs();
    if stored.raised.contains(Exceptions::INVALID) || magnitude > bcd::LIMIT {
        return Stored::invalid(bcd::INDEFINITE);
    }
    let value = bcd::encode(magnitude, a.is_negative());
    Stored {
        value,
        raised: stored.raised,
        up: stored.up,
    }
}

impl X87 {
    /// Converts ST(0) for memory; none where an unmasked exception forbids the store.
    fn store<T>(
        &mut self,
        pop: bool,
        indefinite: T,
        convert: impl Fn(F80, &Self) -> Stored<T>,
    ) -> Option<T> {
        let value = if self.is_empty(0) {
            if self.stack_fault(false) {
                return None;
            }
            indefinite
        } else {
            let stored = convert(self.st(0), self);
            self.note(&stored)?;
            stored.value
        };
        if pop {
            self.pop();
        }
        Some(value)
    }

    /// Records the exceptions of a store; none where it must not be done.
    fn note<T>(&mut self, stored: &Stored<T>) -> Option<()> {
        let stops = Exceptions::INVALID | Exceptions::OVERFLOW | Exceptions::UNDERFLOW;
        let stopped = (stored.raised - self.control.masked()).intersects(stops);
        self.set_condition(condition::C1, 0);
        if stored.up {
            self.status |= condition::C1;
        }
        self.raise(stored.raised, Exceptions::empty());
        (!stopped).then_some(())
    }

    /// FST and FSTP of a single or double.
    pub(super) fn store_packed(&mut self, format: Format, pop: bool) -> Option<u64> {
        self.store(pop, format.default_nan(), |a, x87| pack(a, format, x87))
    }

    /// FIST and FISTP.
    pub(super) fn store_integer(&mut self, width: u32, pop: bool) -> Option<u64> {
        self.store(pop, 1 << (width - 1), |a, x87| integer(a, width, x87))
    }

    /// FBSTP.
    pub(super) fn store_decimal(&mut self) -> Option<[u8; 10]> {
        self.store(true, bcd::INDEFINITE, decimal)
    }

    /// FSTP of an 80-bit number.
    pub(super) fn store_extended(&mut self) -> Option<[u8; 10]> {
        self.store(true, F80::DEFAULT_NAN, |a, _| Stored::exact(a))
            .map(F80::to_bytes)
    }

    /// FST and FSTP to a register.
    pub(super) fn store_register(&mut self, index: u8, pop: bool) {
        if self.is_empty(0) {
            if !self.underflow_into(index) {
                return;
            }
        } else {
            self.set_condition(condition::C1, 0);
            self.set_st(index, self.st(0));
        }
        if pop {
            self.pop();
        }
    }
}

impl F80 {
    /// The ten bytes in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 10] {
        let whole = u128::from(self.sign_exponent) << 64 | u128::from(self.significand);
        let mut bytes = [0; 10];
        for (to, from) in bytes.iter_mut().zip(whole.to_le_bytes()) {
            *to = from;
        }
        bytes
    }

    /// From the ten bytes in memory.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        let whole = bytes
            .iter()
            .rev()
            .fold(0_u128, |whole, byte| whole << 8 | u128::from(*byte));
        let sign_exponent = crate::fp::bits::low16(low64(whole >> 64));
        Self {
            significand: low64(whole),
            sign_exponent,
        }
    }
}
