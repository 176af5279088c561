//! virtio over PCI (virtio 1.2, section 4.1), modern devices only.
//!
//! * `layout.rs`: where registers lie, and the capabilities that say so (4.1.4).
//! * `registers.rs`: the common configuration as plain registers (4.1.4.3).
//! * `notifier.rs`: interrupts, the ISR byte, the device status (4.1.4.5, 4.1.5.3).
//! * `doorbells.rs`: what the driver's notifications wake (4.1.4.4).
//! * `pci.rs`: [`VirtioPci`], the function on the bus.
//! * `window.rs`: access through config space (4.1.4.9).
//! * `saved.rs`: saved state.

mod doorbells;
mod layout;
mod notifier;
mod pci;
mod registers;
mod saved;
mod window;

#[cfg(test)]
mod tests;

pub use pci::VirtioPci;
