//! iommufd: a device by a file of its own, and address spaces that it is attached to.
//!
//! The device's file and `/dev/iommu` are opened, which each need a right of their own; the device is
//! bound to that iommufd, which opens it, and attached to an address space (IOAS), which narrows what
//! can be mapped there (Documentation/userspace-api/iommufd.rst). Linux has the files of devices since
//! 6.6 where it is built with `CONFIG_VFIO_DEVICE_CDEV`.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use iommufd_bindings::{
    iommu_ioas_map, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use vmlet_host::{HostRoot, PciAddress};
use vmlet_memory::{Iova, Lease};

use crate::{
    Access, DomainLimits, IommuBackend, IommuDomain, IovaRange, VfioError, backend::open_file,
    calls, descriptor::Descriptor, group::OpenGroup, limits, type1::open_group, users,
};

/// What iommufd is reached by.
const IOMMUFD: &str = "dev/iommu";

/// One address space of an iommufd of its own, for the devices of one group: the kernel binds them
/// to one iommufd, and attaches them to one table.
#[derive(Debug)]
pub(crate) struct Iommufd {
    group: u32,
    context: Descriptor,
    space: u32,
    limits: DomainLimits,
}

/// The two files, open; nothing is done with them yet.
#[derive(Debug)]
pub(crate) struct Files {
    address: PciAddress,
    group: u32,
    context: File,
    device: File,
}

/// The file of the device itself.
pub(crate) fn device_path(root: &HostRoot, address: PciAddress) -> Option<PathBuf> {
    let folder = root.path(format!("sys/bus/pci/devices/{address}/vfio-dev"));
    let entry = fs::read_dir(folder).ok()?.find_map(Result::ok)?;
    // A kernel without such files has the name all the same, and no number for it.
    let numbered = entry.path().join("dev").exists();
    numbered.then(|| root.path("dev/vfio/devices").join(entry.file_name()))
}

impl Files {
    /// Opens both.
    pub(crate) fn open(
        root: &HostRoot,
        address: PciAddress,
        group: u32,
    ) -> Result<Files, VfioError> {
        let context = open_file(&root.path(IOMMUFD)).map_err(|error| match error {
            VfioError::NoFile { path } => VfioError::NoIommufd { path },
            other => other,
        })?;
        let path = device_path(root, address).ok_or(VfioError::NoDeviceFile { address })?;
        Ok(Files {
            address,
            group,
            context,
            device: open_file(&path)?,
        })
    }

    /// Opens the device, and attaches it to an address space in which nothing is mapped.
    pub(crate) fn bind(self, root: &HostRoot) -> Result<(Iommufd, File), VfioError> {
        let failed = |call| move |source| VfioError::Call { call, source };
        calls::bind_iommufd(&self.device, &self.context)
            .map_err(|error| refused(root, (self.address, self.group), error))?;
        let space = calls::new_space(&self.context).map_err(failed("IOMMU_IOAS_ALLOC"))?;
        calls::attach(&self.device, space).map_err(failed("VFIO_DEVICE_ATTACH_IOMMUFD_PT"))?;
        // Not before: a device narrows them.
        let told = calls::space_ranges(&self.context, space);
        let (alignment, ranges) = told.map_err(failed("IOMMU_IOAS_IOVA_RANGES"))?;
        let domain = Iommufd {
            group: self.group,
            context: Descriptor::new(self.context),
            space,
            limits: limits_of(alignment, ranges),
        };
        Ok((domain, self.device))
    }
}

/// Why the kernel did not bind the device of that group.
fn refused(root: &HostRoot, (address, group): (PciAddress, u32), source: io::Error) -> VfioError {
    match source.raw_os_error() {
        // The kernel's word for a device that is open by another file is EINVAL.
        Some(libc::EBUSY | libc::EINVAL) => VfioError::Busy {
            address,
            group,
            users: users::of(root, group),
        },
        // Its word for two refusals: the other is that another device of the group is open.
        Some(libc::EPERM) => match open_group(root, address, group) {
            Err(busy @ VfioError::Busy { .. }) => busy,
            _ => VfioError::UnsafeInterrupts {
                address,
                module: "iommufd",
            },
        },
        _ => VfioError::Call {
            call: "VFIO_DEVICE_BIND_IOMMUFD",
            source,
        },
    }
}

impl OpenGroup for Iommufd {
    fn open(&self, root: &HostRoot, address: PciAddress) -> Result<File, VfioError> {
        let path = device_path(root, address).ok_or(VfioError::NoDeviceFile { address })?;
        let device = open_file(&path)?;
        let bound = self
            .context
            .with(|context| calls::bind_iommufd(&device, context))?;
        bound.map_err(|error| refused(root, (address, self.group), error))?;
        calls::attach(&device, self.space).map_err(|source| VfioError::Call {
            call: "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            source,
        })?;
        Ok(device)
    }

    fn file(&self) -> Option<&Descriptor> {
        None
    }
}

fn limits_of(alignment: u64, ranges: Vec<(u64, u64)>) -> DomainLimits {
    let ranges = ranges.into_iter();
    DomainLimits {
        // Memory of this process comes in pages of 4 KiB at least.
        page: alignment.max(vmlet_memory::PAGE_SIZE),
        usable: ranges
            .map(|(first, last)| IovaRange { first, last })
            .collect(),
    }
}

impl IommuDomain for Iommufd {
    fn backend(&self) -> IommuBackend {
        IommuBackend::Iommufd
    }

    fn limits(&self) -> &DomainLimits {
        &self.limits
    }

    fn map(&self, iova: Iova, memory: &Lease, access: Access) -> Result<(), VfioError> {
        let range = memory.range();
        let length = range.end - range.start;
        let map = iommu_ioas_map {
            flags: match access {
                Access::Read => FIXED | READABLE,
                Access::ReadWrite => FIXED | READABLE | WRITEABLE,
            },
            ioas_id: self.space,
            user_va: memory.ram().hva().0 + range.start,
            length,
            iova: iova.0,
            ..Default::default()
        };
        let mapped = self
            .context
            .with(|context| calls::map_space(context, map))?;
        mapped.map_err(|source| not_mapped(length, source))
    }

    fn unmap(&self, iova: Iova, len: u64) -> Result<(), VfioError> {
        let work = |context: &File| calls::unmap_space(context, self.space, iova.0, len);
        self.context.call("IOMMU_IOAS_UNMAP", work)
    }

    fn close(&self) {
        self.context.close();
    }
}

/// Why the kernel did not map `len` bytes.
fn not_mapped(len: u64, source: io::Error) -> VfioError {
    let limit = limits::pinned_memory().filter(|_| source.raw_os_error() == Some(libc::ENOMEM));
    match limit {
        Some((locked, limit)) if locked.saturating_add(len) > limit => {
            VfioError::LockedMemory { len, locked, limit }
        }
        Some((locked, limit)) => VfioError::LockedByUser { len, locked, limit },
        None => VfioError::Call {
            call: "IOMMU_IOAS_MAP",
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    const ADDRESS: &str = "0000:01:00.0";

    fn refused(tree: &Tree) -> VfioError {
        Files::open(&tree.root(), ADDRESS.parse().unwrap(), 13).unwrap_err()
    }

    #[test]
    fn a_kernel_without_iommufd_is_told_from_one_without_files_of_devices() {
        let tree = Tree::new();
        let error = refused(&tree);
        assert!(matches!(error, VfioError::NoIommufd { .. }), "{error}");
        assert!(error.to_string().contains("modprobe iommufd"), "{error}");
        tree.file(IOMMUFD, "");
        assert!(matches!(refused(&tree), VfioError::NoDeviceFile { .. }));
        let folder = format!("sys/bus/pci/devices/{ADDRESS}/vfio-dev/vfio3");
        tree.file(&format!("{folder}/uevent"), "");
        assert!(matches!(refused(&tree), VfioError::NoDeviceFile { .. }));
        // It has a file, which this container was not given.
        tree.file(&format!("{folder}/dev"), "511:3\n");
        let error = refused(&tree);
        assert!(matches!(error, VfioError::NoFile { .. }), "{error}");
        assert!(error.to_string().contains("dev/vfio/devices/vfio3"));
        tree.file("dev/vfio/devices/vfio3", "");
        assert!(Files::open(&tree.root(), ADDRESS.parse().unwrap(), 13).is_ok());
    }

    #[test]
    fn maps_are_whole_pages_whatever_the_iommu_could_do() {
        let found = limits_of(1, vec![(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
        assert_eq!(found.page, 4096);
        assert_eq!(found.usable.len(), 2);
        assert_eq!(found.usable[1].last, 0x7f_ffff_ffff);
    }

    #[test]
    fn a_refused_map_says_more_than_the_number_where_the_limit_is_the_cause() {
        let error = not_mapped(1 << 62, io::Error::from_raw_os_error(libc::ENOMEM));
        assert_eq!(error.errno(), Some(libc::ENOMEM));
        let error = not_mapped(4096, io::Error::from_raw_os_error(libc::EFAULT));
        assert!(matches!(
            error,
            VfioError::Call {
                call: "IOMMU_IOAS_MAP",
                ..
            }
        ));
    }
}
