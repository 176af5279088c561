//! Everything that VFIO, and binding devices to it, refuses or fails at.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;
use vmlet_host::{NotAnAddress, Obstacle, PciAddress, Use};
use vmlet_memory::MemoryError;
use vmlet_reactor::ReactorError;

use crate::{Access, InterruptKind, IommuBackend, IovaRange, Touched};

mod words;

use words::{addresses, give, having, list, no_vf_driver, nvme_range, touches};

/// What went wrong. Nothing is changed by an operation that fails, unless the variant says so.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VfioError {
    /// No address of a PCI function.
    #[error(transparent)]
    Address(#[from] NotAnAddress),
    /// The host is not ready to hand the device on.
    #[error("{address} cannot be handed on: {obstacle}. {}", obstacle.remedy())]
    Obstacle {
        /// The device.
        address: PciAddress,
        /// What is in the way.
        obstacle: Obstacle,
    },
    /// This user may not open VFIO's file.
    #[error(
        "this user may not use {}. As root: chown USER {0}, or run as root", path.display()
    )]
    Denied {
        /// The file.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// VFIO's file is missing.
    #[error(
        "{} is missing. As root: modprobe vfio-pci; in a container, pass it on (--device {0})",
        path.display()
    )]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// Somebody has the group open.
    #[error(
        "{address} is in use: {} its IOMMU group {group} open. Close the device there first",
        having(users)
    )]
    Busy {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// Who, as far as this user may know.
        users: Vec<String>,
    },
    /// Somebody else in this process has others of the group, which cannot be kept apart from it.
    #[error(
        "{address} is in IOMMU group {group} with what {owner} has open: {0}. Give it to that one \
         too (vm.attach, or vmlet.vfio.open with beside=), or close {0} there first",
        addresses(devices)
    )]
    GroupHeld {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// Who.
        owner: String,
        /// What of the group is open.
        devices: Vec<PciAddress>,
    },
    /// Others of the group are open by another of the kernel's interfaces.
    #[error(
        "{address} cannot be opened by {wanted}: its IOMMU group {group} is open by {open}. Leave \
         iommu out, or ask for \"{open}\""
    )]
    OtherBackend {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// That interface.
        open: IommuBackend,
        /// The one that was asked for.
        wanted: IommuBackend,
    },
    /// The kernel finds drivers of the host in the group.
    #[error(
        "the kernel does not give IOMMU group {group} away: a driver of the host uses a part of it. \
         See vmlet vfio list for its members"
    )]
    NotViable {
        /// The group.
        group: u32,
    },
    /// Interrupts of the device would not be remapped.
    #[error(
        "interrupts of {address} cannot be confined: this host does not remap them, so the device \
         could raise any of the host's. Where you trust it and who uses it, as root: echo 1 > \
         /sys/module/{module}/parameters/allow_unsafe_interrupts"
    )]
    UnsafeInterrupts {
        /// The device.
        address: PciAddress,
        /// The kernel's module that refuses.
        module: &'static str,
    },
    /// The kernel's VFIO cannot translate as is needed.
    #[error("the kernel's VFIO lacks type1 (version 2). As root: modprobe vfio_iommu_type1")]
    NoType1,
    /// The kernel has no iommufd.
    #[error(
        "iommufd is not to be had: {} is missing. As root: modprobe iommufd, which Linux may have \
         since 6.2 (CONFIG_IOMMUFD); in a container, pass it on (--device {0}); or use type1",
        path.display()
    )]
    NoIommufd {
        /// The file.
        path: PathBuf,
    },
    /// The kernel makes no files of devices.
    #[error(
        "{address} has no file of its own in /dev/vfio/devices, which iommufd needs. Linux has them \
         since 6.6 where it is built with CONFIG_VFIO_DEVICE_CDEV; elsewhere use type1"
    )]
    NoDeviceFile {
        /// The device.
        address: PciAddress,
    },
    /// No interface to an IOMMU is called so.
    #[error("iommu cannot be {name:?}. Give \"iommufd\" or \"type1\", or leave it out")]
    NoSuchBackend {
        /// What was asked for.
        name: String,
    },
    /// The limit of locked memory, which counts what devices can reach.
    #[error(
        "{len} bytes for DMA are more than this process may lock: {locked} of {limit} bytes are \
         locked already. Raise the limit to {} KiB (ulimit -l, or prlimit --memlock)",
        (locked + len).div_ceil(1024)
    )]
    LockedMemory {
        /// Bytes asked for.
        len: u64,
        /// Bytes locked.
        locked: u64,
        /// Bytes that may be.
        limit: u64,
    },
    /// The limit of locked memory, which iommufd counts for all processes of a user.
    #[error(
        "{len} bytes for DMA are more than this user may lock: of {limit} bytes this process has \
         {locked}, and others of the user have some. End those, or raise the limit (ulimit -l, or \
         prlimit --memlock)"
    )]
    LockedByUser {
        /// Bytes asked for.
        len: u64,
        /// Bytes that this process has locked.
        locked: u64,
        /// Bytes that may be.
        limit: u64,
    },
    /// Too many maps.
    #[error(
        "the kernel takes no more DMA maps of this device. Unmap some, use larger ones, or raise \
         vfio_iommu_type1.dma_entry_limit"
    )]
    TooManyMaps,
    /// A map that is no whole pages.
    #[error("{iova:#x}+{len:#x} is empty or no multiple of the IOMMU's page of {page:#x} bytes")]
    NotPages {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// The smallest page.
        page: u64,
    },
    /// Addresses that the IOMMU does not translate.
    #[error(
        "{iova:#x}+{len:#x} does not lie in the addresses that devices can use here: {}",
        IovaRange::list(usable)
    )]
    NotUsable {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// What can be used.
        usable: Vec<IovaRange>,
    },
    /// Addresses that are in use.
    #[error("{iova:#x}+{len:#x} overlaps the map at {other:#x}. Unmap that first")]
    Overlap {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// First address of the map that is there.
        other: u64,
    },
    /// No addresses are left.
    #[error("no {len:#x} bytes of device addresses are free. Unmap something")]
    NoAddresses {
        /// Bytes asked for.
        len: u64,
    },
    /// A region that the device has not got.
    #[error("{address} has no region {index}")]
    NoRegion {
        /// The device.
        address: PciAddress,
        /// The region.
        index: u32,
    },
    /// Bytes outside of a region.
    #[error("{offset:#x}+{len:#x} does not lie in the {size:#x} bytes of region {index}")]
    OutsideRegion {
        /// The region.
        index: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the region.
        size: u64,
    },
    /// A part of a region that cannot be mapped.
    #[error(
        "{offset:#x}+{len:#x} of region {index} cannot be mapped. Use read() and write(), or one of \
         the areas that can be: {areas:x?}"
    )]
    NotMappable {
        /// The region.
        index: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Offset and length of what can be mapped.
        areas: Vec<(u64, u64)>,
    },
    /// An access that a region does not allow.
    #[error("region {index} cannot be {}", if *write { "written" } else { "read" })]
    NoAccess {
        /// The region.
        index: u32,
        /// A write, or a read.
        write: bool,
    },
    /// Config space that would take a mapped region away, which kills who touches it.
    #[error("{what} while regions are mapped would end this process at its next access to one")]
    SwitchesOff {
        /// What was to be written.
        what: &'static str,
    },
    /// More interrupts than there are.
    #[error("{address} has {most} {kind} interrupts, not {count}")]
    NoInterrupt {
        /// The device.
        address: PciAddress,
        /// Which.
        kind: InterruptKind,
        /// Asked for.
        count: u32,
        /// Those there are.
        most: u32,
    },
    /// Another kind of interrupts is on.
    #[error("{kind} interrupts of {address} are on. Switch them off first")]
    InterruptsOn {
        /// The device.
        address: PciAddress,
        /// Those that are on.
        kind: InterruptKind,
    },
    /// No way to reset.
    #[error("{address} cannot be reset: the kernel knows no way to do it")]
    NoReset {
        /// The device.
        address: PciAddress,
    },
    /// A reset that would touch what is somebody else's.
    #[error(
        "{address} cannot be reset alone, and with it would be reset: {}. {}",
        touches(touched),
        give(touched)
    )]
    HotReset {
        /// The device.
        address: PciAddress,
        /// The others.
        touched: Vec<Touched>,
    },
    /// Memory for DMA.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The event loop that waits for a device's line.
    #[error("the event loop of a device cannot be had: {0}")]
    Reactor(#[from] ReactorError),
    /// A call that failed.
    #[error("{call} failed")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host works with the device.
    #[error(
        "the host uses {address}: {}. End that first: {}", list(uses, |one| &one.what),
        list(uses, |one| &one.end)
    )]
    Used {
        /// The device.
        address: PciAddress,
        /// What for.
        uses: Vec<Use>,
    },
    /// The driver did not take the device; it has again what it had.
    #[error(
        "the driver {driver} did not take {address}: {found} has it now. The kernel's log says why \
         (dmesg)"
    )]
    NotTaken {
        /// The device.
        address: PciAddress,
        /// Who should have it.
        driver: String,
        /// Who has it.
        found: String,
    },
    /// Not bound by us.
    #[error(
        "{address} was not bound by vmlet, so what it had before is not known. Bind it to the driver \
         of your choice by /sys/bus/pci/drivers"
    )]
    NotOurs {
        /// The device.
        address: PciAddress,
    },
    /// A function without SR-IOV.
    #[error(
        "{address} can have no virtual functions: it has no SR-IOV, or the firmware left them no room. \
         See vmlet sriov list for the functions that can"
    )]
    NoSriov {
        /// The function.
        address: PciAddress,
    },
    /// Nobody makes virtual functions of it.
    #[error(
        "virtual functions of {address} cannot be made: {}. Give it to a driver of the host that makes \
         them (vmlet vfio release {address}, or by /sys/bus/pci/drivers)",
        no_vf_driver(driver.as_deref())
    )]
    NoVfDriver {
        /// The physical function.
        address: PciAddress,
        /// Its driver.
        driver: Option<String>,
    },
    /// No, or too many, virtual functions asked for.
    #[error(
        "{address} can have up to {total} virtual functions, not {asked}. Ask for 1 to {total}"
    )]
    VfCount {
        /// The physical function.
        address: PciAddress,
        /// Asked for.
        asked: u32,
        /// The most there can be.
        total: u16,
    },
    /// There are some.
    #[error(
        "{address} has {enabled} virtual functions already. Remove them first: vmlet sriov remove \
         {address}"
    )]
    VfsThere {
        /// The physical function.
        address: PciAddress,
        /// Those there are.
        enabled: u16,
    },
    /// They are there for as long as another process wants.
    #[error(
        "the virtual functions of {address} belong to process {pid}. Leave its with block, or end \
         the process"
    )]
    VfsHeld {
        /// The physical function.
        address: PciAddress,
        /// The process.
        pid: u32,
    },
    /// Two at a time.
    #[error(
        "somebody else is making or removing virtual functions of {address}. Wait until that is done"
    )]
    VfsChanging {
        /// The physical function.
        address: PciAddress,
    },
    /// Not made by us.
    #[error(
        "the {enabled} virtual functions of {address} were not made by vmlet. Where nobody needs them, \
         as root: echo 0 > /sys/bus/pci/devices/{address}/sriov_numvfs"
    )]
    VfsNotOurs {
        /// The physical function.
        address: PciAddress,
        /// Those there are.
        enabled: u16,
    },
    /// The driver made too few; they are gone again.
    #[error(
        "the driver of {address} made {made} of {asked} virtual functions. The kernel's log says why \
         (dmesg)"
    )]
    VfsMissing {
        /// The physical function.
        address: PciAddress,
        /// Asked for.
        asked: u32,
        /// Those that came.
        made: usize,
    },
    /// Queues or interrupts that a virtual function cannot have.
    #[error(
        "a virtual function of {address} can have {}, not {asked}. Ask for that, or for fewer virtual \
         functions",
        nvme_range(what, *least, *most, *step)
    )]
    NvmeShare {
        /// The physical function.
        address: PciAddress,
        /// Queues or interrupts.
        what: &'static str,
        /// Asked for, or what is an equal part.
        asked: u16,
        /// What it needs.
        least: u16,
        /// What is free for each.
        most: u16,
        /// What numbers are multiples of.
        step: u16,
    },
    /// A function whose queues are not shared.
    #[error(
        "{address} has no share of an NVMe controller's queues: its card is no NVMe controller with \
         virtualization management, or no driver of the host has that. Leave queues and interrupts out"
    )]
    NoNvme {
        /// The function.
        address: PciAddress,
    },
    /// The controller's answer.
    #[error(
        "the NVMe controller {address} does not {what}: status {status:#x}. The NVM Express Base \
         Specification lists what that means, in section 3.3.3.2.1"
    )]
    NvmeRefused {
        /// The physical function.
        address: PciAddress,
        /// What it was to do.
        what: &'static str,
        /// Status code and its type.
        status: u16,
    },
    /// The controller does not know one of its virtual functions.
    #[error(
        "the NVMe controller {address} does not list its virtual function {number}. Its firmware is \
         broken; leave its virtual functions alone"
    )]
    NvmeUnknown {
        /// The physical function.
        address: PciAddress,
        /// Which, from 1.
        number: u16,
    },
    /// The controller does not come back.
    #[error(
        "the NVMe controller {address} is not live after its reset, but {state:?}. The kernel's log says \
         why (dmesg)"
    )]
    NvmeNotLive {
        /// The physical function.
        address: PciAddress,
        /// The state its driver gives.
        state: String,
    },
    /// Nobody can give a controller back what it had.
    #[error(
        "the NVMe controller {address} cannot be given back its queues and interrupts: its driver does \
         not have it. As root: echo {address} > /sys/bus/pci/drivers/nvme/bind, then vmlet vfio mend"
    )]
    NvmeWithoutDriver {
        /// The physical function.
        address: PciAddress,
    },
    /// A file of sysfs, or the note of what a device had before.
    #[error("{} cannot be {}", path.display(), if *write { "written" } else { "read" })]
    File {
        /// The file.
        path: PathBuf,
        /// A write, or a read.
        write: bool,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device is closed.
    #[error("the device is closed. Open it again")]
    Closed,
    /// The device belongs to the process that opened it.
    #[error(
        "this device belongs to the process that opened it. Open it in the child process instead"
    )]
    Forked,
}

impl VfioError {
    /// The error number behind it, where the host gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            VfioError::Denied { source, .. }
            | VfioError::Call { source, .. }
            | VfioError::File { source, .. } => source.raw_os_error(),
            VfioError::LockedMemory { .. } | VfioError::LockedByUser { .. } => Some(libc::ENOMEM),
            VfioError::TooManyMaps => Some(libc::ENOSPC),
            _ => None,
        }
    }

    /// What can be done about it, where the text does not say so.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            VfioError::Address(_) => {
                Some("Write it as 0000:01:00.0; vmlet vfio list shows those there are.")
            }
            VfioError::NotPages { .. } => Some("Round the size up, and the address down."),
            VfioError::NotUsable { .. } => Some("Leave iova out, and one is chosen."),
            VfioError::NoRegion { .. } => Some("See the device's regions."),
            VfioError::OutsideRegion { .. } => Some("See the region's size."),
            VfioError::SwitchesOff { .. } => Some("Close the views of regions first."),
            VfioError::NoInterrupt { .. } => Some("See the device's interrupts."),
            VfioError::File { source, .. } if denied(source) => Some("Do it as root."),
            VfioError::Call { .. } => Some("The kernel's log may say why (dmesg)."),
            _ => None,
        }
    }
}

pub(crate) fn file_error(path: &Path, write: bool, source: io::Error) -> VfioError {
    VfioError::File {
        path: path.to_owned(),
        write,
        source,
    }
}

/// Whether the host forbids it to this user.
pub(crate) fn denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

impl Access {
    /// What the device may do.
    pub fn name(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::ReadWrite => "read-write",
        }
    }
}
