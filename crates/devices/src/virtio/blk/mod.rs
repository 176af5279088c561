//! The block device (virtio 1.2, section 5.2).
//!
//! * `spec.rs`: numbers of the specification.
//! * `config.rs`: the device's configuration.
//! * `request.rs`: a chain as a request.
//! * `pending.rs`: requests that are under way.
//! * `device.rs`: [`Blk`].
//!
//! Not supported: secure erase, zoned devices, lifetime, geometry.

mod config;
mod device;
mod pending;
mod request;
mod spec;
#[cfg(test)]
mod tests;

pub use device::{Blk, BlkOptions};
