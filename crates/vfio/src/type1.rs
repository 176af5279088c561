//! VFIO's groups and containers with a type1 IOMMU, version 2.
//!
//! A group is opened, put into a container, and the container given its IOMMU; then the group opens
//! its devices (Documentation/driver-api/vfio.rst).

use std::{fs::File, io, path::PathBuf};

use vfio_bindings::bindings::vfio::{VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE};
use vmlet_host::{HostRoot, PciAddress};
use vmlet_memory::{Iova, Lease};

use crate::{
    Access, DomainLimits, IommuBackend, IommuDomain, VfioError, backend::open_file, calls,
    descriptor::Descriptor, group::OpenGroup, info, limits, users,
};

const CONTAINER: &str = "dev/vfio/vfio";

/// One group in one container.
#[derive(Debug)]
pub(crate) struct Type1 {
    group: Descriptor,
    container: Descriptor,
    limits: DomainLimits,
}

/// The file of a group.
pub(crate) fn group_path(root: &HostRoot, group: u32) -> PathBuf {
    root.path(format!("dev/vfio/{group}"))
}

/// Opens the group of `address`: one user of a group at a time.
pub(crate) fn open_group(
    root: &HostRoot,
    address: PciAddress,
    group: u32,
) -> Result<File, VfioError> {
    open_file(&group_path(root, group)).map_err(|error| match error {
        VfioError::File { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
            VfioError::Busy {
                address,
                group,
                users: users::of(root, group),
            }
        }
        other => other,
    })
}

impl Type1 {
    /// Opens the group and gives it a container of its own.
    pub(crate) fn open(
        root: &HostRoot,
        address: PciAddress,
        group: u32,
    ) -> Result<Type1, VfioError> {
        let container = open_file(&root.path(CONTAINER))?;
        if !calls::has_type1v2(&container) {
            return Err(VfioError::NoType1);
        }
        let file = open_group(root, address, group)?;
        let failed = |call| move |source| VfioError::Call { call, source };
        if !calls::is_viable(&file).map_err(failed("VFIO_GROUP_GET_STATUS"))? {
            return Err(VfioError::NotViable { group });
        }
        calls::set_container(&file, &container).map_err(failed("VFIO_GROUP_SET_CONTAINER"))?;
        calls::use_type1v2(&container).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => VfioError::UnsafeInterrupts {
                address,
                module: "vfio_iommu_type1",
            },
            _ => failed("VFIO_SET_IOMMU")(source),
        })?;
        let told = calls::type1_info(&container).map_err(failed("VFIO_IOMMU_GET_INFO"))?;
        let limits = info::limits(&told).ok_or_else(|| VfioError::Call {
            call: "VFIO_IOMMU_GET_INFO",
            source: io::ErrorKind::InvalidData.into(),
        })?;
        Ok(Type1 {
            group: Descriptor::new(file),
            container: Descriptor::new(container),
            limits,
        })
    }
}

impl OpenGroup for Type1 {
    fn open(&self, _: &HostRoot, address: PciAddress) -> Result<File, VfioError> {
        let name = address.to_string();
        let call = "VFIO_GROUP_GET_DEVICE_FD";
        self.group.call(call, |group| calls::device(group, &name))
    }

    fn file(&self) -> Option<&Descriptor> {
        Some(&self.group)
    }
}

impl IommuDomain for Type1 {
    fn backend(&self) -> IommuBackend {
        IommuBackend::Type1
    }

    fn limits(&self) -> &DomainLimits {
        &self.limits
    }

    fn map(&self, iova: Iova, memory: &Lease, access: Access) -> Result<(), VfioError> {
        let range = memory.range();
        let len = range.end - range.start;
        let start = memory.ram().hva().0 + range.start;
        let flags = match access {
            Access::Read => VFIO_DMA_MAP_FLAG_READ,
            Access::ReadWrite => VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        };
        let mapped = self
            .container
            .with(|container| calls::map_dma(container, start, iova.0, len, flags))?;
        mapped.map_err(|source| refused(len, source))
    }

    fn unmap(&self, iova: Iova, len: u64) -> Result<(), VfioError> {
        let call = "VFIO_IOMMU_UNMAP_DMA";
        let work = |container: &File| calls::unmap_dma(container, iova.0, len);
        self.container.call(call, work).map(drop)
    }

    fn close(&self) {
        self.group.close();
        self.container.close();
    }
}

/// Why the kernel did not map `len` bytes.
fn refused(len: u64, source: io::Error) -> VfioError {
    match source.raw_os_error() {
        Some(libc::ENOSPC) => VfioError::TooManyMaps,
        Some(libc::ENOMEM) => match limits::locked_memory() {
            Some((locked, limit)) if locked.saturating_add(len) > limit => {
                VfioError::LockedMemory { len, locked, limit }
            }
            _ => VfioError::Call {
                call: "VFIO_IOMMU_MAP_DMA",
                source,
            },
        },
        _ => VfioError::Call {
            call: "VFIO_IOMMU_MAP_DMA",
            source,
        },
    }
}
