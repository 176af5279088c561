//! Ioctls of vCPU and VM descriptors (Linux, Documentation/virt/kvm/api.rst).
//!
//! Invariant: every call hands the kernel an open descriptor of the right kind and a pointer to a
//! structure of exactly the size the ioctl's number encodes.

#![expect(unsafe_code, reason = "ioctls")]

use std::{
    ffi::c_void,
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd},
    ptr,
};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVMIO, kvm_device_attr, kvm_interrupt, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{DeviceFd, VcpuFd, VmFd};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use vmlet_vcpu::{EngineError, IoEvent, SpaceId};
use vmm_sys_util::{
    eventfd::EventFd,
    ioctl::{ioctl, ioctl_with_ptr, ioctl_with_ref},
    ioctl_io_nr, ioctl_iow_nr,
};

/// `_IO(KVMIO, 0x80)`, without an argument.
struct KvmRun;

// SAFETY: the call takes no argument and gives none back. It writes guest memory and the run page,
// so that nothing read before it holds after it.
unsafe impl Ioctl for KvmRun {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::none(0xae, 0x80)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::null_mut()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// `struct kvm_signal_mask` followed by its set.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    set: u64,
}

/// The part of the structure that the ioctl's number counts.
#[repr(C)]
struct SignalMaskHead {
    len: u32,
}

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, SignalMaskHead);

/// `KVM_RUN`, by the system call itself: each exit of a guest comes by here. Fails with the error
/// number.
#[inline]
pub(crate) fn run(vcpu: &VcpuFd) -> Result<(), i32> {
    // SAFETY: the descriptor is open while it is borrowed.
    let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    // SAFETY: KVM_RUN changes guest memory and the run page only, over which no Rust reference is
    // held.
    unsafe { rustix::ioctl::ioctl(vcpu, KvmRun) }.map_err(|error| error.raw_os_error())
}

/// `KVM_SET_SIGNAL_MASK`: the signals blocked while the guest runs, bit n-1 is signal n; `None` for
/// those that are blocked anyway.
pub(crate) fn set_signal_mask(vcpu: &VcpuFd, blocked: Option<u64>) -> Result<(), EngineError> {
    let mask = blocked.map(|set| SignalMask { len: 8, set });
    let mask = mask.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the kernel reads the head and `len` bytes behind it, which `SignalMask` holds, or
    // nothing by a null pointer.
    check("KVM_SET_SIGNAL_MASK", unsafe {
        ioctl_with_ptr(vcpu, KVM_SET_SIGNAL_MASK(), mask)
    })
}

/// `KVM_INTERRUPT`: queues an external interrupt.
pub(crate) fn interrupt(vcpu: &VcpuFd, vector: u8) -> Result<(), EngineError> {
    let irq = kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: the kernel reads `irq`.
    check("KVM_INTERRUPT", unsafe {
        ioctl_with_ref(vcpu, KVM_INTERRUPT(), &irq)
    })
}

/// `KVM_GET_STATS_FD` of a VM or vCPU descriptor.
pub(crate) fn stats_file(owner: &impl AsRawFd) -> Result<File, EngineError> {
    // SAFETY: KVM_GET_STATS_FD takes no argument.
    let fd = unsafe { ioctl(owner, KVM_GET_STATS_FD()) };
    check("KVM_GET_STATS_FD", fd)?;
    // SAFETY: changes a flag of the new descriptor, which KVM leaves open in programs executed.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// `KVM_IOEVENTFD`: guest writes that fit `event` signal `fd`, or no longer do.
pub(crate) fn ioeventfd(
    vm: &VmFd,
    fd: &EventFd,
    event: &IoEvent,
    assign: bool,
) -> Result<(), EngineError> {
    let flag = |on: bool, bit: u32| u32::from(on) << bit;
    let request = kvm_ioeventfd {
        datamatch: event.value.unwrap_or(0),
        addr: event.addr,
        len: event.len,
        fd: fd.as_raw_fd(),
        flags: flag(event.value.is_some(), kvm_ioeventfd_flag_nr_datamatch)
            | flag(event.space == SpaceId::PORT, kvm_ioeventfd_flag_nr_pio)
            | flag(!assign, kvm_ioeventfd_flag_nr_deassign),
        ..kvm_ioeventfd::default()
    };
    // SAFETY: the kernel reads `request`.
    check("KVM_IOEVENTFD", unsafe {
        ioctl_with_ref(vm, KVM_IOEVENTFD(), &request)
    })
}

/// `KVM_DEV_VFIO_FILE_ADD` on KVM's VFIO device.
pub(crate) fn vfio_device(device: &DeviceFd, file: BorrowedFd<'_>) -> Result<(), EngineError> {
    let fd = file.as_raw_fd();
    let attr = kvm_device_attr {
        group: KVM_DEV_VFIO_FILE,
        attr: u64::from(KVM_DEV_VFIO_FILE_ADD),
        addr: (&raw const fd).expose_provenance() as u64,
        ..kvm_device_attr::default()
    };
    device
        .set_device_attr(&attr)
        .map_err(|error| from_errno("KVM_DEV_VFIO_FILE_ADD", error))
}

fn check(call: &'static str, result: i32) -> Result<(), EngineError> {
    if result < 0 {
        Err(EngineError::last(call))
    } else {
        Ok(())
    }
}

fn from_errno(call: &'static str, error: kvm_ioctls::Error) -> EngineError {
    EngineError::call(call, io::Error::from_raw_os_error(error.errno()))
}

/// Takes over an open `/dev/kvm`.
pub(crate) fn adopt_system(fd: RawFd) -> kvm_ioctls::Kvm {
    // SAFETY: the caller gives up a descriptor it has just opened.
    unsafe { FromRawFd::from_raw_fd(fd) }
}

/// `KVM_SET_USER_MEMORY_REGION`.
pub(crate) fn set_memory_region(
    vm: &VmFd,
    region: kvm_userspace_memory_region,
) -> Result<(), io::Error> {
    // SAFETY: the contract of `Vm::change_slot`: the caller keeps the memory mapped as long as the
    // slot exists.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// `KVM_SET_XSAVE`.
pub(crate) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), EngineError> {
    // SAFETY: the area is 4,096 bytes, all that a guest without dynamically enabled state has.
    unsafe { vcpu.set_xsave(xsave) }.map_err(|error| from_errno("KVM_SET_XSAVE", error))
}
