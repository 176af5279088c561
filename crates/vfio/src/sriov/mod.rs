//! The life cycle of virtual functions: made, given to VFIO's driver, removed.
//!
//! * `lifecycle.rs`: [`create_vfs`], [`remove_vfs`], [`virtual_functions`].
//! * `note.rs`: what a physical function had before, and whose its virtual functions are.
//! * `nvme/`: queues and interrupts of an NVMe controller's virtual functions; `sharing.rs`: who gets
//!   which: [`nvme_function`].
//!
//! Source: PCI Express 6.0, section 9; Documentation/PCI/pci-iov-howto.rst and
//! Documentation/ABI/testing/sysfs-bus-pci of Linux.

mod lifecycle;
mod note;
mod nvme;
mod sharing;
#[cfg(test)]
mod tests;

pub(crate) use lifecycle::PhysicalFunction;
pub use lifecycle::{VfRequest, create_vfs, remove_vfs, virtual_functions};
pub(crate) use note::Note;
pub use nvme::NvmeFunction;
pub use sharing::nvme_function;
