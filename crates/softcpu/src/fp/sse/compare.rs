//! CMPxx, COMISx and UCOMISx.

use super::arith::{operand, ordered};
use crate::fp::exceptions::Exceptions;
use crate::fp::mxcsr::Mxcsr;
use crate::fp::soft::Format;
use std::cmp::Ordering;

/// The carry flag in EFLAGS.
pub(super) const CARRY: u128 = 1;
/// The parity flag in EFLAGS.
pub(super) const PARITY: u128 = 1 << 2;
/// The zero flag in EFLAGS.
pub(super) const ZERO: u128 = 1 << 6;

/// Compares; none where unordered. `quiet` comparisons raise IE for signalling NaNs only.
fn relation(
    a: u64,
    b: u64,
    quiet: bool,
    format: Format,
    mxcsr: Mxcsr,
) -> (Option<Ordering>, Exceptions) {
    let mut raised = Exceptions::empty();
    if format.is_nan(a) || format.is_nan(b) {
        let signaling = format.is_signaling(a) || format.is_signaling(b);
        raised.set(Exceptions::INVALID, signaling || !quiet);
        return (None, raised);
    }
    let (a, b) = (operand(a, format, mxcsr), operand(b, format, mxcsr));
    raised.set(
        Exceptions::DENORMAL,
        format.is_denormal(a) || format.is_denormal(b),
    );
    (Some(ordered(a, format).cmp(&ordered(b, format))), raised)
}

/// Whether predicate `immediate` (0 to 7) of CMPPS and its kin holds.
pub(super) fn holds(
    immediate: u8,
    a: u64,
    b: u64,
    format: Format,
    mxcsr: Mxcsr,
) -> (bool, Exceptions) {
    // LT, LE and their opposites signal for quiet NaNs too.
    let quiet = !matches!(immediate & 3, 1 | 2);
    let (relation, raised) = relation(a, b, quiet, format, mxcsr);
    let held = match immediate & 3 {
        0 => relation == Some(Ordering::Equal),
        1 => relation == Some(Ordering::Less),
        2 => matches!(relation, Some(Ordering::Less | Ordering::Equal)),
        _ => relation.is_none(),
    };
    (held != (immediate & 4 != 0), raised)
}

/// The ZF, PF and CF of COMISx (`quiet` false) or UCOMISx.
pub(super) fn flags(
    a: u64,
    b: u64,
    quiet: bool,
    format: Format,
    mxcsr: Mxcsr,
) -> (u128, Exceptions) {
    let (relation, raised) = relation(a, b, quiet, format, mxcsr);
    let flags = match relation {
        None => ZERO | PARITY | CARRY,
        Some(Ordering::Less) => CARRY,
        Some(Ordering::Equal) => ZERO,
        Some(Ordering::Greater) => 0,
    };
    (flags, raised)
}
