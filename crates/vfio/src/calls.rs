//! The ioctls of VFIO (`include/uapi/linux/vfio.h`) and of iommufd (`iommufd.h` beside it), and a wait
//! for an eventfd.
//!
//! Invariant: every argument is a structure or a buffer of ours that outlives the call, and its
//! first word says how long it is, so that the kernel writes no further. Only [`map_dma`] and
//! [`map_space`] have an effect that outlasts their call: their callers answer for the memory.
//!
//! The crate vfio-ioctls wraps most of these, but maps all memory writable and gives no errors of
//! regions and of resets; iommufd-ioctls does not ask for the addresses that can be mapped.

#![expect(unsafe_code, reason = "ioctls")]

use std::{
    ffi::{CString, c_ulong},
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use iommufd_bindings::{
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP,
    IOMMUFD_CMD_IOAS_UNMAP, iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map,
    iommu_ioas_unmap, iommu_iova_range,
};
use vfio_bindings::bindings::vfio::{
    VFIO_GROUP_FLAGS_VIABLE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE1v2_IOMMU,
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_irq_info,
};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};

/// `_IO(';', 100 + number)`.
const fn call(number: c_ulong) -> c_ulong {
    0x3b64 + number
}

const CHECK_EXTENSION: c_ulong = call(1);
const SET_IOMMU: c_ulong = call(2);
const GROUP_GET_STATUS: c_ulong = call(3);
const GROUP_SET_CONTAINER: c_ulong = call(4);
const GROUP_GET_DEVICE_FD: c_ulong = call(6);
const DEVICE_GET_INFO: c_ulong = call(7);
const DEVICE_GET_REGION_INFO: c_ulong = call(8);
const DEVICE_GET_IRQ_INFO: c_ulong = call(9);
const DEVICE_SET_IRQS: c_ulong = call(10);
const DEVICE_RESET: c_ulong = call(11);
/// The same numbers as 12 and 13 of a container.
const DEVICE_GET_PCI_HOT_RESET_INFO: c_ulong = call(12);
const DEVICE_PCI_HOT_RESET: c_ulong = call(13);
const DEVICE_BIND_IOMMUFD: c_ulong = call(18);
const DEVICE_ATTACH_IOMMUFD_PT: c_ulong = call(19);
const IOMMU_GET_INFO: c_ulong = call(12);
const IOMMU_MAP_DMA: c_ulong = call(13);
const IOMMU_UNMAP_DMA: c_ulong = call(14);

/// `_IO(';', number)`.
const fn iommufd_call(number: u32) -> c_ulong {
    0x3b00 + number as c_ulong
}

const IOAS_ALLOC: c_ulong = iommufd_call(IOMMUFD_CMD_IOAS_ALLOC);
const IOAS_IOVA_RANGES: c_ulong = iommufd_call(IOMMUFD_CMD_IOAS_IOVA_RANGES);
const IOAS_MAP: c_ulong = iommufd_call(IOMMUFD_CMD_IOAS_MAP);
const IOAS_UNMAP: c_ulong = iommufd_call(IOMMUFD_CMD_IOAS_UNMAP);

/// The header of `vfio_irq_set`, in words.
const IRQ_SET_WORDS: u32 = 5;
/// A reply that is longer than this is not asked for again.
const LONGEST_REPLY: usize = 1 << 16;
/// Bytes that are asked for at first; for a list that is refused where it does not fit, all of it:
/// 256 functions of a bus, and no more than as many below it.
const SHORT_REPLY: usize = 512;
const LIST_REPLY: usize = 8192;
/// Ranges of addresses that are asked for at first, and at most.
const FEW_RANGES: usize = 16;
const MOST_RANGES: usize = 1 << 12;

fn done(result: i32) -> io::Result<i32> {
    (result >= 0)
        .then_some(result)
        .ok_or_else(io::Error::last_os_error)
}

/// `size_of` in the width that the kernel's structures have.
fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// Whether a container can use type1's second version.
pub(crate) fn has_type1v2(container: &File) -> bool {
    let kind = c_ulong::from(VFIO_TYPE1v2_IOMMU);
    // SAFETY: a number is the only argument.
    unsafe { ioctl_with_val(container, CHECK_EXTENSION, kind) == 1 }
}

/// Gives a container with a group in it its IOMMU.
pub(crate) fn use_type1v2(container: &File) -> io::Result<()> {
    let kind = c_ulong::from(VFIO_TYPE1v2_IOMMU);
    // SAFETY: a number is the only argument.
    done(unsafe { ioctl_with_val(container, SET_IOMMU, kind) }).map(drop)
}

/// Whether no driver of the host does DMA for a member of the group.
pub(crate) fn is_viable(group: &File) -> io::Result<bool> {
    let mut status = vfio_group_status {
        argsz: size::<vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(group, GROUP_GET_STATUS, &mut status) })?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container.
pub(crate) fn set_container(group: &File, container: &File) -> io::Result<()> {
    let fd = container.as_raw_fd();
    // SAFETY: points to a number.
    done(unsafe { ioctl_with_ref(group, GROUP_SET_CONTAINER, &fd) }).map(drop)
}

/// Opens a device of the group by its name in sysfs.
pub(crate) fn device(group: &File, name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: points to a C string.
    let fd = done(unsafe { ioctl_with_ptr(group, GROUP_GET_DEVICE_FD, name.as_ptr()) })?;
    // SAFETY: a new descriptor, which nobody else has. The kernel makes it close-on-exec.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Flags of a device, and how many regions and interrupt indices it has.
pub(crate) fn device_info(device: &File) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info {
        argsz: size::<vfio_device_info>(),
        flags: 0,
        num_regions: 0,
        num_irqs: 0,
        cap_offset: 0,
        pad: 0,
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_INFO, &mut info) })?;
    Ok(info)
}

/// How many interrupts an index has, and their flags.
pub(crate) fn irq_info(device: &File, index: u32) -> io::Result<vfio_irq_info> {
    let mut info = vfio_irq_info {
        argsz: size::<vfio_irq_info>(),
        flags: 0,
        index,
        count: 0,
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_IRQ_INFO, &mut info) })?;
    Ok(info)
}

/// A reply that ends in capabilities, as the words it has: asked again where it says it is longer.
fn reply(file: &File, request: c_ulong, start: &[u32], mut len: usize) -> io::Result<Vec<u8>> {
    loop {
        let mut words = vec![0u64; len / 8];
        let head = [&[u32::try_from(len).unwrap_or(u32::MAX)], start].concat();
        for (word, pair) in words.iter_mut().zip(head.chunks(2)) {
            let high = pair.get(1).copied().unwrap_or(0);
            *word = u64::from(pair.first().copied().unwrap_or(0)) | u64::from(high) << 32;
        }
        // SAFETY: the buffer has `len` bytes, which its first word says.
        done(unsafe { ioctl_with_mut_ptr(file, request, words.as_mut_ptr()) })?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let wanted = words.first().map_or(0, |word| word & 0xffff_ffff);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        if wanted <= len || wanted > LONGEST_REPLY {
            return Ok(bytes);
        }
        len = wanted.next_multiple_of(8);
    }
}

/// `vfio_region_info` with its capabilities.
pub(crate) fn region_info(device: &File, index: u32) -> io::Result<Vec<u8>> {
    reply(device, DEVICE_GET_REGION_INFO, &[0, index], SHORT_REPLY)
}

/// `vfio_iommu_type1_info` with its capabilities.
pub(crate) fn type1_info(container: &File) -> io::Result<Vec<u8>> {
    reply(container, IOMMU_GET_INFO, &[], SHORT_REPLY)
}

/// Lets the container's devices reach `len` bytes at `vaddr` by `iova`.
pub(crate) fn map_dma(
    container: &File,
    vaddr: u64,
    iova: u64,
    len: u64,
    flags: u32,
) -> io::Result<()> {
    let map = vfio_iommu_type1_dma_map {
        argsz: size::<vfio_iommu_type1_dma_map>(),
        flags,
        vaddr,
        iova,
        size: len,
    };
    // SAFETY: a structure of the length it says. The kernel pins the pages and keeps them until the
    // map is taken back; the caller holds a lease on them meanwhile.
    done(unsafe { ioctl_with_ref(container, IOMMU_MAP_DMA, &map) }).map(drop)
}

/// Takes a map back; how many bytes it had.
pub(crate) fn unmap_dma(container: &File, iova: u64, len: u64) -> io::Result<u64> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: size::<vfio_iommu_type1_dma_unmap>(),
        flags: 0,
        iova,
        size: len,
        ..Default::default()
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(container, IOMMU_UNMAP_DMA, &mut unmap) })?;
    Ok(unmap.size)
}

/// Opens a device by its own file: nothing of it can be used before.
pub(crate) fn bind_iommufd(device: &File, iommufd: &File) -> io::Result<()> {
    let mut bind = vfio_device_bind_iommufd {
        argsz: size::<vfio_device_bind_iommufd>(),
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(device, DEVICE_BIND_IOMMUFD, &mut bind) }).map(drop)
}

/// An address space of iommufd's, in which nothing is mapped.
pub(crate) fn new_space(iommufd: &File) -> io::Result<u32> {
    let mut alloc = iommu_ioas_alloc {
        size: size::<iommu_ioas_alloc>(),
        ..Default::default()
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(iommufd, IOAS_ALLOC, &mut alloc) })?;
    Ok(alloc.out_ioas_id)
}

/// Has a device that is open translated by an address space.
pub(crate) fn attach(device: &File, space: u32) -> io::Result<()> {
    let mut attach = vfio_device_attach_iommufd_pt {
        argsz: size::<vfio_device_attach_iommufd_pt>(),
        pt_id: space,
        ..Default::default()
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(device, DEVICE_ATTACH_IOMMUFD_PT, &mut attach) }).map(drop)
}

/// What addresses and lengths of maps are multiples of, and the first and last addresses of each
/// range that can be mapped.
pub(crate) fn space_ranges(iommufd: &File, space: u32) -> io::Result<(u64, Vec<(u64, u64)>)> {
    let mut found = vec![iommu_iova_range::default(); FEW_RANGES];
    loop {
        let mut asked = iommu_ioas_iova_ranges {
            size: size::<iommu_ioas_iova_ranges>(),
            ioas_id: space,
            num_iovas: u32::try_from(found.len()).unwrap_or(0),
            allowed_iovas: found.as_mut_ptr().expose_provenance() as u64,
            ..Default::default()
        };
        // SAFETY: a structure of the length it says, which points to as many ranges as it says.
        let result = done(unsafe { ioctl_with_mut_ref(iommufd, IOAS_IOVA_RANGES, &mut asked) });
        let count = usize::try_from(asked.num_iovas).unwrap_or(usize::MAX);
        match result {
            Ok(_) => {
                let ranges = found.iter().take(count).map(|one| (one.start, one.last));
                return Ok((asked.out_iova_alignment, ranges.collect()));
            }
            // It says how many there are.
            Err(error)
                if error.raw_os_error() == Some(libc::EMSGSIZE)
                    && (found.len() + 1..=MOST_RANGES).contains(&count) =>
            {
                found.resize(count, iommu_iova_range::default());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Lets the devices of an address space reach what `map` says. Its length is set here.
pub(crate) fn map_space(iommufd: &File, map: iommu_ioas_map) -> io::Result<()> {
    let mut map = iommu_ioas_map {
        size: size::<iommu_ioas_map>(),
        ..map
    };
    // SAFETY: a structure of the length it says. The kernel pins the pages and keeps them until the
    // map is taken back; the caller holds a lease on them meanwhile.
    done(unsafe { ioctl_with_mut_ref(iommufd, IOAS_MAP, &mut map) }).map(drop)
}

/// Takes a map of an address space back.
pub(crate) fn unmap_space(iommufd: &File, space: u32, iova: u64, len: u64) -> io::Result<()> {
    let mut unmap = iommu_ioas_unmap {
        size: size::<iommu_ioas_unmap>(),
        ioas_id: space,
        iova,
        length: len,
    };
    // SAFETY: a structure of the length it says.
    done(unsafe { ioctl_with_mut_ref(iommufd, IOAS_UNMAP, &mut unmap) }).map(drop)
}

/// `vfio_irq_set` with what follows it.
fn set_irqs(device: &File, head: [u32; 4], data: &[u32]) -> io::Result<()> {
    let [flags, index, start, count] = head;
    let words = IRQ_SET_WORDS.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
    let set: Vec<u32> = [&[words.saturating_mul(4), flags, index, start, count], data].concat();
    // SAFETY: the buffer has the bytes that its first word says.
    let result = done(unsafe { ioctl_with_ptr(device, DEVICE_SET_IRQS, set.as_ptr()) })?;
    // Fewer vectors are to be had, and none is on: their number.
    match result {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
    }
}

/// Has the interrupts of `index` from `first` on written to these eventfds, -1 for none; without
/// any: switches the index off.
pub(crate) fn set_eventfds(
    device: &File,
    index: u32,
    first: u32,
    eventfds: &[i32],
) -> io::Result<()> {
    let action = VFIO_IRQ_SET_ACTION_TRIGGER;
    let count = u32::try_from(eventfds.len()).unwrap_or(u32::MAX);
    if eventfds.is_empty() {
        return set_irqs(device, [VFIO_IRQ_SET_DATA_NONE | action, index, 0, 0], &[]);
    }
    let fds: Vec<u32> = eventfds.iter().map(|fd| fd.cast_unsigned()).collect();
    set_irqs(
        device,
        [VFIO_IRQ_SET_DATA_EVENTFD | action, index, first, count],
        &fds,
    )
}

/// Lets a line that the kernel masked when it came in come again.
pub(crate) fn unmask(device: &File, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
    set_irqs(device, [flags, index, 0, 1], &[])
}

/// Resets the function.
pub(crate) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: no argument.
    done(unsafe { ioctl(device, DEVICE_RESET) }).map(drop)
}

/// `vfio_pci_hot_reset_info` with the functions that a reset of the slot or bus touches.
pub(crate) fn hot_reset_info(device: &File) -> io::Result<Vec<u8>> {
    reply(device, DEVICE_GET_PCI_HOT_RESET_INFO, &[], LIST_REPLY)
}

/// Resets the slot or bus. By the files of all groups that are touched; by iommufd without any.
pub(crate) fn hot_reset(device: &File, groups: &[i32]) -> io::Result<()> {
    let count = u32::try_from(groups.len()).unwrap_or(u32::MAX);
    let length = count.saturating_add(3).saturating_mul(4);
    let groups: Vec<u32> = groups.iter().map(|fd| fd.cast_unsigned()).collect();
    let request: Vec<u32> = [&[length, 0, count], groups.as_slice()].concat();
    // SAFETY: the buffer has the bytes that its first word says.
    done(unsafe { ioctl_with_ptr(device, DEVICE_PCI_HOT_RESET, request.as_ptr()) }).map(drop)
}

/// A counter that can be waited for.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: numbers are the only arguments.
    let fd = done(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether `file` can be read, waiting at most `limit`.
pub(crate) fn readable(file: &File, limit: Duration) -> io::Result<bool> {
    let mut wanted = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: one entry of ours.
    match done(unsafe { libc::poll(&raw mut wanted, 1, millis) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        found => Ok(found? > 0),
    }
}
