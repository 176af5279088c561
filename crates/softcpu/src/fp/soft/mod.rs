//! Floating-point arithmetic on integers: exact operations on unpacked numbers, then one rounding.
//!
//! What x86 asks beyond IEEE 754 decides the form: tininess after rounding with an unbounded
//! exponent, results of reduced precision with the wide exponent (x87 precision control), the
//! direction of the rounding (C1) and results with a wrapped exponent (unmasked x87 overflow).

mod arith;
mod format;
mod integer;
mod number;
mod round;

pub use arith::{add, divide, multiply, square_root};
pub use format::{Format, Value, pack_infinity, pack_largest, pack_rounded, unpack};
pub use integer::{Integer, from_integer, to_integer};
pub use number::Number;
pub use round::{Outcome, Rounded, round};
