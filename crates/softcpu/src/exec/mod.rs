//! What carries instructions out, by group.

pub(crate) mod alu;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod decimal;
pub(crate) mod far;
pub(crate) mod io;
pub(crate) mod moves;
pub(crate) mod muldiv;
pub(crate) mod operand;
pub(crate) mod segment;
pub(crate) mod shift;
pub(crate) mod simd;
pub(crate) mod stack;
pub(crate) mod state;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod x87;
