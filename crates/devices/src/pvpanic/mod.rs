//! The guest's crash report (QEMU specification "PVPANIC device", ACPI id QEMU0001, one port).
//!
//! Not supported: the shutdown event of newer specifications.

mod device;

pub use device::PvPanic;
