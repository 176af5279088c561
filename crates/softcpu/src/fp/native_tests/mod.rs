//! The tables of SSE, MMX and x87 against the host processor.
#![allow(
    clippy::cast_possible_truncation,
    reason = "test values are cut on purpose"
)]

pub(crate) mod host;
pub(crate) mod random;
mod sse;
mod x87;
