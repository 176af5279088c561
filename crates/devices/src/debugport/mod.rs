//! The debug port that Bochs and QEMU ("isa-debugcon") have at 0xe9: a byte written is a byte
//! printed, a read gives 0xe9 and thereby tells that the port is there.
//!
//! Not supported: other port numbers, input.

mod device;

pub use device::DebugPort;
