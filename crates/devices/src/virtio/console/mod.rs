//! The console (virtio 1.2, section 5.3): one port, `hvc0` in Linux.
//!
//! Offered: `SIZE` (a window's columns and rows) and `EMERG_WRITE` (a byte of output without any
//! queue). Not supported: `MULTIPORT`, so there are no named ports.

mod device;

#[cfg(test)]
mod tests;

pub use device::VirtioConsole;
