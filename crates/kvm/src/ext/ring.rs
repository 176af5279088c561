//! The ring of pages that one vCPU has written (Linux, Documentation/virt/kvm/api.rst, section
//! 8.29 "KVM_CAP_DIRTY_LOG_RING").
//!
//! Invariant: `entries` points to `count` entries of a mapping that this object alone made and
//! unmaps; kernel and process hand each entry to the other by its atomic flags, and each touches
//! the rest of it only while it is its own.

#![expect(unsafe_code, reason = "maps memory shared with the kernel; an ioctl")]

use std::{
    os::fd::AsRawFd,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_dirty_gfn};
use kvm_ioctls::{VcpuFd, VmFd};
use vmlet_memory::{
    PAGE_SIZE,
    fork::{self, Origin, Watch},
};
use vmlet_vcpu::EngineError;
use vmm_sys_util::{ioctl::ioctl, ioctl_io_nr};

ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// The kernel has filled the entry (`KVM_DIRTY_GFN_F_DIRTY`).
const FILLED: u32 = 1;
/// The process has read the entry (`KVM_DIRTY_GFN_F_RESET`).
const TAKEN: u32 = 2;

/// Bytes of an entry.
pub(crate) const ENTRY: usize = size_of::<kvm_dirty_gfn>();

/// The ring of one vCPU, mapped.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    count: usize,
    /// The entry that is filled next.
    next: usize,
    origin: Origin,
    _hole: Option<Watch>,
}

// SAFETY: the pointer is used by who holds the ring, on whatever thread that is.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of `vcpu`, whose VM was told to have rings of `count` entries. In forked
    /// children it is not mapped.
    pub(crate) fn map(vcpu: &VcpuFd, count: usize) -> Result<DirtyRing, EngineError> {
        let bytes = count.saturating_mul(ENTRY);
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE.cast_signed();
        // SAFETY: a new mapping, at no given address.
        let at = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let fd = vcpu.as_raw_fd();
            libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, offset)
        };
        if at == libc::MAP_FAILED {
            return Err(EngineError::last("mmap of the dirty ring"));
        }
        // SAFETY: advises on the mapping just made.
        unsafe { libc::madvise(at, bytes, libc::MADV_DONTFORK) };
        Ok(DirtyRing {
            entries: at.cast(),
            count,
            next: 0,
            origin: Origin::here(),
            _hole: fork::watch_hole(at.expose_provenance(), bytes),
        })
    }

    /// Takes every entry that is filled: the slot's number, and the page's in it. How many.
    pub(crate) fn take(&mut self, each: &mut dyn FnMut(u32, u64)) -> usize {
        for taken in 0..self.count {
            // SAFETY: `next` is below `count`.
            let entry = unsafe { self.entries.add(self.next) };
            // SAFETY: the flags are aligned, in the mapping, and the kernel changes them
            // atomically too.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & FILLED == 0 {
                return taken;
            }
            // SAFETY: the kernel writes no entry between filling it and finding it taken.
            let (slot, page) = unsafe { ((*entry).slot, (*entry).offset) };
            flags.store(TAKEN, Ordering::Release);
            self.next = (self.next + 1) % self.count;
            each(slot, page);
        }
        self.count
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        if self.origin.is_here() {
            // SAFETY: the mapping is this object's, and nobody uses it any more.
            unsafe { libc::munmap(self.entries.cast(), self.count * ENTRY) };
        }
    }
}

/// `KVM_RESET_DIRTY_RINGS`: writes to the pages of entries taken are noted again. How many entries
/// that were: a signal cuts the work short.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> Result<usize, EngineError> {
    // SAFETY: KVM_RESET_DIRTY_RINGS takes no argument.
    let reset = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
    usize::try_from(reset).map_err(|_| EngineError::last("KVM_RESET_DIRTY_RINGS"))
}
