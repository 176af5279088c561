//! Two ways a PC is told to reset: the keyboard controller's pulse command and port 0xcf9.
//!
//! Not supported: a keyboard or mouse. The controller's status says that its buffers are empty, so
//! that a driver's probe ends at once.

mod device;

pub use device::{KeyboardController, ResetControl};
