//! SSE and SSE2, with their MMX counterparts: what each instruction computes.
//!
//! Everything is a function of values: destination, source, immediate and MXCSR in, result out.
//! [`table::position`] and [`table::entry`] give for prefix, opcode and REX.W the function and the places of operands.
//!
//! Not here: loads and stores that need no computation beyond the table's moves, LDMXCSR,
//! STMXCSR, FXSAVE and the fences.

mod approx;
mod arith;
mod compare;
mod convert;
mod fast;
mod float;
mod integer;
mod lanes;
mod permute;
pub mod table;

pub use float::Outcome;
