//! virtio devices (Virtual I/O Device Version 1.2), one folder a device.
//!
//! * `device.rs`: [`VirtioDevice`], what a device is to its transport, and [`Activation`].
//! * `features.rs`: feature bits that belong to no device type.
//! * `late.rs`: an interrupt that is kept back for a while.
//! * `queue/`: [`VirtQueue`], a split virtqueue over virtio-queue, and [`Chain`].
//! * `transport/`: [`VirtioPci`], virtio over PCI.
//! * `balloon/`, `blk/`, `console/`, `net/`, `rng/`, `vsock/`: the devices.
//!
//! Not supported: packed virtqueues, legacy and transitional devices, other transports,
//! notification data, resetting a single queue.

pub mod balloon;
pub mod blk;
pub mod console;
mod device;
pub mod features;
mod late;
pub mod net;
mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
mod transport;
pub mod vsock;

use device::read_image;
pub use device::{Activation, Place, VirtioDevice, VirtioInterrupt};
pub use queue::{Batches, Buffer, Chain, QueueFault, QueueState, VirtQueue};
pub use transport::VirtioPci;
