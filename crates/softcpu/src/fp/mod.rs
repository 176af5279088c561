//! Floating point and SIMD: pure computation on values, the same on every host.

pub(crate) mod bits;
mod exceptions;
pub mod mxcsr;
pub mod soft;
pub mod sse;
mod unit;
pub mod x87;

pub use exceptions::{Exceptions, Rounding};
pub use unit::{Fpu, IMAGE_BYTES, WRITTEN_BYTES, WRITTEN_BYTES_32};
