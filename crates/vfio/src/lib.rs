//! Devices of the host for user space and for guests: the only user of `/dev/vfio`.
//!
//! * `binding.rs`: giving a device to VFIO's driver, and back to the one it had: [`bind`], [`release`].
//! * `sriov/`: the life cycle of virtual functions: [`create_vfs`], [`remove_vfs`]; `mend.rs`: [`mend`],
//!   what killed processes left half done; `noted.rs`: what is noted for that; `sysfs.rs`: a function in sysfs.
//! * `device.rs`: [`Device`], an open one.
//! * `group.rs`: groups that are open, and for which [`Owner`]; `users.rs`: other processes that have one.
//! * `reset.rs`: what is reset together, where a device cannot be reset alone.
//! * `mapping.rs`: [`RegionMap`], registers in this process; `config.rs`: writes that would be fatal.
//! * `interrupt.rs`: [`Vector`], an interrupt as an eventfd.
//! * `domain.rs`: [`IommuDomain`], what a device can reach; `dma.rs`: [`DmaMap`], memory in it.
//! * `guest/`: [`Passthrough`], a device that a guest drives.
//! * `backend.rs`: [`IommuBackend`], which of the kernel's interfaces fills it: `iommufd.rs`, a file for
//!   each device; `type1.rs`, groups and containers, which kernels have without iommufd too.
//! * `calls.rs`: ioctls; `info.rs`: their replies, [`RegionInfo`]; `descriptor.rs`: descriptors that can be closed.
//! * `limits.rs`: the limit of locked memory.
//! * `error.rs`: [`VfioError`].
//!
//! Source: `include/uapi/linux/vfio.h` and `iommufd.h`, Documentation/driver-api/vfio.rst.
//!
//! Not supported yet: by iommufd, a reset that touches devices of several groups; page tables of guests
//! (nesting), dirty tracking, maps of files.

mod backend;
mod binding;
mod calls;
mod config;
mod descriptor;
mod device;
mod dma;
mod domain;
mod error;
mod group;
mod guest;
mod info;
mod interrupt;
mod iommufd;
mod limits;
mod mapping;
mod mend;
mod noted;
mod reset;
mod sriov;
mod sysfs;
#[cfg(test)]
mod testing;
mod type1;
mod users;

pub use backend::IommuBackend;
pub use binding::{bind, release};
pub use device::Device;
pub use dma::DmaMap;
pub use domain::{Access, DomainLimits, IommuDomain, IovaRange};
pub use error::VfioError;
pub use group::Owner;
pub use guest::{ApertureEngine, DeviceNews, Passthrough, Surroundings};
pub use info::RegionInfo;
pub use interrupt::{InterruptKind, Vector};
pub use mapping::RegionMap;
pub use mend::mend;
pub use reset::{Holder, Touched};
pub use sriov::{
    NvmeFunction, VfRequest, create_vfs, nvme_function, remove_vfs, virtual_functions,
};
