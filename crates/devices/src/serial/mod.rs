//! A 16550A serial port. The chip is the vm-superio crate's; this is its attachment.
//!
//! Not supported: modem lines, baud rate (bytes go out at once), DMA mode.

mod device;

pub use device::{INPUT_LIMIT, SerialOut, SerialPort};
