//! Devices of the host that are driven from Python, or by guests.
//!
//! * `device.rs`: the class `VfioDevice`, and giving devices to VFIO's driver and back.
//! * `dma.rs`: the class `DmaBuffer`, memory that a device can reach.
//! * `guest.rs`: devices in a VM's slots.
//! * `sriov.rs`: virtual functions, made and removed.
//! * `vector.rs`: the class `VfioVector`, an interrupt.

mod device;
mod dma;
mod guest;
mod sriov;
mod vector;

pub(crate) use device::{VfioDevice, bind_vfio, open_vfio, release_vfio};
pub(crate) use dma::DmaBuffer;
pub(crate) use guest::attach_vfio;
pub(crate) use sriov::{create_vfs, mend_vfio, nvme_function, remove_vfs, virtual_functions};
pub(crate) use vector::VfioVector;
