//! The page a vCPU shares with the kernel (`struct kvm_run`).
//!
//! Invariant: `run` points to the mapping of a vCPU descriptor that its [`RunPage`]'s owner keeps
//! open; the kernel writes it only inside `KVM_RUN`, which the owner calls with no reference from
//! here alive. Other threads write `immediate_exit` alone, so fields are read and written in place
//! and no reference to the whole is made.

#![expect(unsafe_code, reason = "reads a union and buffers the kernel fills")]

use std::{
    slice,
    sync::atomic::{AtomicU8, Ordering},
};

use kvm_bindings::{KVM_EXIT_IO_OUT, kvm_run};
use kvm_ioctls::VcpuFd;
use vmlet_memory::fork::{self, Watch};

/// A port access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoExit {
    pub(crate) write: bool,
    pub(crate) port: u16,
    pub(crate) size: usize,
    pub(crate) count: usize,
    offset: usize,
}

/// An access to memory that no slot backs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MmioExit {
    pub(crate) write: bool,
    pub(crate) addr: u64,
    pub(crate) len: usize,
    pub(crate) data: [u8; 8],
}

/// A debug stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DebugExit {
    pub(crate) exception: u32,
    pub(crate) pc: u64,
    pub(crate) dr6: u64,
}

/// A field of the page.
macro_rules! field {
    ($page:expr, $($path:tt)+) => {
        // SAFETY: the mapping holds a kvm_run, any bytes of which are valid numbers, and nobody
        // writes this field while the page's owner is outside KVM_RUN.
        unsafe { (&raw const (*$page.run).$($path)+).read() }
    };
}

/// `immediate_exit`, which other threads set too.
#[derive(Debug)]
pub(crate) struct ImmediateExit(*mut u8);

// SAFETY: the byte is written atomically.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    pub(crate) fn set(&self, on: bool) {
        // SAFETY: the page is mapped, as the maker has promised, and its users write the byte in
        // this way only.
        unsafe { AtomicU8::from_ptr(self.0) }.store(u8::from(on), Ordering::SeqCst);
    }
}

/// The shared page.
#[derive(Debug)]
pub(crate) struct RunPage {
    run: *mut kvm_run,
    size: usize,
    _hole: Option<Watch>,
}

// SAFETY: the pointer is used by the owner of the vCPU only, on whatever thread that is.
unsafe impl Send for RunPage {}

impl RunPage {
    /// The page of `vcpu`, `size` bytes long; taken out of forked children.
    pub(crate) fn new(vcpu: &mut VcpuFd, size: usize) -> RunPage {
        let run: *mut kvm_run = vcpu.get_kvm_run();
        // SAFETY: advises on the mapping of the page.
        unsafe { libc::madvise(run.cast(), size, libc::MADV_DONTFORK) };
        let hole = fork::watch_hole(run.expose_provenance(), size);
        // No registers are synchronised at exits (`kvm_valid_regs`): every exit would pay for what
        // few need.
        RunPage {
            run,
            size,
            _hole: hole,
        }
    }

    /// The switch that makes `KVM_RUN` return at once, for a kicker.
    ///
    /// # Safety
    ///
    /// It is not used once the vCPU's descriptor, whose mapping it points into, is dropped.
    pub(crate) unsafe fn immediate_exit(&self) -> ImmediateExit {
        // SAFETY: the mapping holds a kvm_run.
        ImmediateExit(unsafe { &raw mut (*self.run).immediate_exit })
    }

    /// `KVM_RUN` returns before it enters the guest, but completes a pending access.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        // SAFETY: it is used here, where the page is mapped.
        unsafe { self.immediate_exit() }.set(on);
    }

    /// `KVM_RUN` returns with `KVM_EXIT_IRQ_WINDOW_OPEN` once the guest can take an interrupt.
    pub(crate) fn set_interrupt_window(&mut self, on: bool) {
        // SAFETY: the mapping holds a kvm_run, and `&mut self` makes this the field's only access.
        unsafe { (&raw mut (*self.run).request_interrupt_window).write(u8::from(on)) };
    }

    /// Why `KVM_RUN` returned.
    pub(crate) fn exit_reason(&self) -> u32 {
        field!(self, exit_reason)
    }

    /// The port access of `KVM_EXIT_IO`.
    pub(crate) fn io(&self) -> IoExit {
        let io = field!(self, __bindgen_anon_1.io);
        IoExit {
            write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
            port: io.port,
            size: usize::from(io.size),
            count: usize::try_from(io.count).unwrap_or(0),
            offset: usize::try_from(io.data_offset).unwrap_or(usize::MAX),
        }
    }

    /// The bytes of a port access, to read or to fill; empty if they do not lie in the mapping.
    pub(crate) fn io_data(&mut self, io: &IoExit) -> &mut [u8] {
        let len = io.size.saturating_mul(io.count);
        if io.offset.checked_add(len).is_none_or(|end| end > self.size) {
            return &mut [];
        }
        // SAFETY: the range lies in the mapping, behind the kvm_run structure, and `&mut self`
        // makes this its only reference.
        unsafe { slice::from_raw_parts_mut(self.run.cast::<u8>().add(io.offset), len) }
    }

    /// The access of `KVM_EXIT_MMIO`.
    pub(crate) fn mmio(&self) -> MmioExit {
        let mmio = field!(self, __bindgen_anon_1.mmio);
        let len = usize::try_from(mmio.len).unwrap_or(0).min(mmio.data.len());
        MmioExit {
            write: mmio.is_write != 0,
            addr: mmio.phys_addr,
            len,
            data: mmio.data,
        }
    }

    /// Answers a read of `KVM_EXIT_MMIO`.
    pub(crate) fn answer_mmio(&mut self, data: [u8; 8]) {
        // SAFETY: the mapping holds a kvm_run, and `&mut self` makes this the field's only access.
        unsafe { (&raw mut (*self.run).__bindgen_anon_1.mmio.data).write(data) };
    }

    /// The stop of `KVM_EXIT_DEBUG`.
    pub(crate) fn debug(&self) -> DebugExit {
        let arch = field!(self, __bindgen_anon_1.debug.arch);
        DebugExit {
            exception: arch.exception,
            pc: arch.pc,
            dr6: arch.dr6,
        }
    }

    /// The reason of `KVM_EXIT_FAIL_ENTRY`.
    pub(crate) fn entry_failure(&self) -> u64 {
        field!(
            self,
            __bindgen_anon_1.fail_entry.hardware_entry_failure_reason
        )
    }

    /// Suberror and data words of `KVM_EXIT_INTERNAL_ERROR`.
    pub(crate) fn internal_error(&self) -> (u32, Vec<u64>) {
        let error = field!(self, __bindgen_anon_1.internal);
        let count = usize::try_from(error.ndata)
            .unwrap_or(0)
            .min(error.data.len());
        (error.suberror, error.data.into_iter().take(count).collect())
    }

    /// The vector of `KVM_EXIT_IOAPIC_EOI`.
    pub(crate) fn eoi_vector(&self) -> u8 {
        field!(self, __bindgen_anon_1.eoi.vector)
    }

    /// The address of `KVM_EXIT_MEMORY_FAULT`.
    pub(crate) fn memory_fault(&self) -> u64 {
        field!(self, __bindgen_anon_1.memory_fault.gpa)
    }

    /// Type and data of `KVM_EXIT_SYSTEM_EVENT`.
    pub(crate) fn system_event(&self) -> u32 {
        field!(self, __bindgen_anon_1.system_event.type_)
    }
}
