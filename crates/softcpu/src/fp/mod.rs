//! Floating point and SIMD: pure computation on values, the same on every host.

pub(crate) mod bits;
mod exceptions;
pub mod mxcsr;
pub mod soft;
pub mod sse;

pub use exceptions::{Exceptions, Rounding};

#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native_tests;
