//! The host's own arithmetic where it cannot differ.
//!
//! Rust's operations on `f32` and `f64` round to nearest and are IEEE 754 on every host. They
//! serve where operands are zero or normal, the result is normal, everything is masked and the
//! result is exact or PE is set already. Everything else goes to the soft path.

use super::arith::{self, Binary, Flagged};
use crate::fp::mxcsr::Mxcsr;
use crate::fp::soft::Format;

macro_rules! fast {
    ($binary:ident, $root:ident, $float:ty, $bits:ty, $format:expr) => {
        /// Computes `a op b`.
        #[inline]
        pub(super) fn $binary(op: Binary, a: $bits, b: $bits, mxcsr: Mxcsr) -> Flagged {
            let (x, y) = (<$float>::from_bits(a), <$float>::from_bits(b));
            let simple = |v: $float| v.is_normal() || v == 0.0;
            if mxcsr.is_plain_if_exact() && simple(x) && simple(y) {
                let (result, exact) = match op {
                    Binary::Add => (x + y, sum_is_exact(x, y)),
                    Binary::Subtract => (x - y, sum_is_exact(x, -y)),
                    Binary::Multiply => (x * y, false),
                    Binary::Divide => (x / y, false),
                };
                let safe = result.is_normal() && result.abs() > <$float>::MIN_POSITIVE;
                if safe && (mxcsr.is_plain() || exact) {
                    return (u64::from(result.to_bits()), Default::default());
                }
            }
            return arith::binary(op, u64::from(a), u64::from(b), $format, mxcsr);

            /// The error term of the sum (Knuth's two-sum) is zero.
            fn sum_is_exact(x: $float, y: $float) -> bool {
                let sum = x + y;
                let part = sum - x;
                (x - (sum - part)) + (y - part) == 0.0
            }
        }

        /// The square root.
        #[inline]
        pub(super) fn $root(a: $bits, mxcsr: Mxcsr) -> Flagged {
            let x = <$float>::from_bits(a);
            if mxcsr.is_plain() && x.is_normal() && x > 0.0 {
                return (u64::from(x.sqrt().to_bits()), Default::default());
            }
            arith::square_root(u64::from(a), $format, mxcsr)
        }
    };
}

fast!(binary32, root32, f32, u32, Format::SINGLE);
fast!(binary64, root64, f64, u64, Format::DOUBLE);
