//! The network device (virtio 1.2, section 5.1).
//!
//! * `device.rs`: [`Net`], registers and life cycle.
//! * `features.rs`, `config.rs`: feature bits; the configuration as the driver reads it.
//! * `session.rs`: the device between `DRIVER_OK` and reset.
//! * `rx.rs`, `tx.rs`, `control.rs`: its queues; `filter.rs`: which frames the driver wants.
//! * `outside.rs`: frames that enter a counted run.
//! * `kernel.rs`: the kernel works on the queues instead (vhost-net).
//! * `saved.rs`: its state.
//!
//! Not supported: several queue pairs, hash reports and RSS, VLAN filters, announcements, notification
//! coalescing, USO.

mod config;
mod control;
mod device;
pub mod features;
mod filter;
mod kernel;
mod outside;
mod rx;
mod saved;
mod session;
#[cfg(test)]
mod tests;
mod tx;

pub use config::{MacAddress, NetConfig};
pub use device::Net;
pub use outside::FrameSink;

/// `struct virtio_net_hdr_v1`, and where its count of buffers lies (section 5.1.6).
const HEADER: usize = 12;
const NUM_BUFFERS: u64 = 10;
/// What an Ethernet frame and both headers need where no longer frames come.
const SHORT: u64 = 1526;
/// The queues of one pair, and of commands (section 5.1.2).
const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
