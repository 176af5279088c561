//! The engine without hardware: an x86-64 interpreter.
//!
//! So far its floating point and SIMD.

pub mod fp;
