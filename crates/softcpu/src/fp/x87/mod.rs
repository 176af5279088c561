//! The x87 floating-point unit (SDM vol. 1, chapter 8).
//!
//! [`X87`] holds the state. [`X87::register_form`], [`X87::load_form`] and [`X87::store_form`]
//! execute an instruction given by its opcode byte (D8 to DF) and ModRM. A store changes the
//! state (flags, pop) before its bytes are in memory: to be undone by a page fault, the caller
//! works on a clone and keeps it once the write has succeeded.
//!
//! ES and B are not stored: they follow from the flags and the masks.
//!
//! Transcendental functions are computed to about 110 bits and rounded once, so nearly always
//! correctly; processors differ from one another and from this in the last place, in C1, and for
//! trigonometric arguments that are not reduced with 66 bits of pi (SDM vol. 1, 8.3.8), as done
//! here. FISTTP belongs to SSE3 and gives [`Fault::Undefined`].

mod arith;
mod bcd;
mod compare;
mod control;
mod dispatch;
mod environment;
mod functions;
mod image;
mod load;
mod register;
mod remainder;
mod scale;
mod state;
mod store;
mod transcendental;
mod wide;

pub use control::{ControlWord, condition};
pub use dispatch::{Fault, Form, LARGEST_STORE, Outcome, form, is_control};
pub use environment::EnvironmentFormat;
pub(in crate::fp) use image::{LEGACY_BYTES, get, put};
pub use register::F80;
pub use state::{Pointers, X87};
