//! Devices of the host for guests.
//!
//! * `function.rs`: [`Passthrough`], a device in a slot of a VM's bus.
//! * `shape.rs`: what its config space becomes to a guest.
//! * `memory.rs`: all of the guest's memory, which the devices of a group can reach at the guest's addresses.
//! * `aperture.rs`: registers that it reaches without an exit, and [`ApertureEngine`].
//! * `signals.rs`: MSI and MSI-X, on while the guest has them on; `line.rs`: INTx.
//! * `news.rs`: [`DeviceNews`], what the host's kernel has to say of it.
//! * `names.rs`: what messages call it.
//!
//! The bus has config space (crate `pci`): BARs, power states, MSI and MSI-X are its registers, and
//! of the device's own capabilities only vendor-specific ones are reached. Not passed on: expansion
//! ROM, I/O BARs, extended capabilities, payload and read sizes, the link's registers.

mod aperture;
mod function;
mod line;
mod memory;
mod names;
mod news;
mod shape;
mod signals;

pub use aperture::ApertureEngine;
pub use function::{Passthrough, Surroundings};
pub(crate) use memory::GuestMemory;
pub use news::DeviceNews;
