//! The traits of an engine and what crosses them.

use std::{fmt::Debug, os::fd::BorrowedFd, sync::Arc};

use vmlet_memory::{Memslot, SlotId};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    EngineError, GuestBus, Inputs, Kicker, Position, SpaceId, Stat, StopReason,
    cpuid::CpuidTable,
    x86_64::{MpState, MsrPolicy, Regs, Sregs, VcpuState},
};

/// An engine: something that makes virtual machines.
pub trait Hypervisor: Send + Sync + Debug {
    /// The engine's name as users see it: "kvm" or "soft".
    fn name(&self) -> &'static str;

    /// How much the engine takes.
    fn limits(&self) -> Limits;

    /// The CPUID leaves this engine can give a guest, before policy.
    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError>;

    /// Kilohertz of a guest's time-stamp counter, where nobody asks for another rate.
    fn tsc_khz(&self) -> Result<u32, EngineError>;

    /// A VM without memory and vCPUs.
    fn create_vm(&self) -> Result<Arc<dyn Vm>, EngineError>;
}

/// How much an engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// vCPUs a VM.
    pub vcpus: u32,
    /// Memory slots a VM.
    pub slots: u32,
}

/// One step of a change of the memory map.
#[derive(Clone, Copy, Debug)]
pub enum SlotChange<'a> {
    /// A new slot, or new flags of the slot with this id.
    Set(&'a Memslot),
    /// The slot is gone.
    Remove(&'a Memslot),
}

/// A message-signalled interrupt as it reaches the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Address, 0xfeexxxxx on x86; the upper half carries the x2APIC destination's upper bits.
    pub address: u64,
    /// Data: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// A global interrupt number and the message it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRoute {
    /// The number an irqfd names.
    pub gsi: u32,
    /// What is sent.
    pub message: MsiMessage,
}

/// A guest write that the engine turns into an eventfd signal without leaving the guest's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoEvent {
    /// Port or MMIO.
    pub space: SpaceId,
    /// First address.
    pub addr: u64,
    /// Width of the write in bytes: 1, 2, 4 or 8; 0 takes every width (MMIO only).
    pub len: u32,
    /// Only this value, if given.
    pub value: Option<u64>,
}

/// A virtual machine of an engine.
///
/// Order of calls, because it decides the cost on current kernels: all memory slots first, then
/// [`Vm::create_irqchip`], then vCPUs, then irqfds and ioeventfds.
pub trait Vm: Send + Sync + Debug {
    /// Applies one step of a change of the memory map.
    ///
    /// The caller keeps the slot's host memory mapped as long as the slot exists.
    fn change_slot(&self, change: SlotChange<'_>) -> Result<(), EngineError>;

    /// Local APICs in the engine, and `pins` interrupt numbers reserved for the board's I/O APIC.
    fn create_irqchip(&self, pins: u32) -> Result<(), EngineError>;

    /// Restricts the guest to the model-specific registers of `policy`, before the first vCPU is
    /// made; those of the x2APIC are its mode's. The host goes on reading and setting all.
    fn set_msr_policy(&self, policy: &'static MsrPolicy) -> Result<(), EngineError>;

    /// A vCPU with `id` as its APIC id.
    fn create_vcpu(&self, id: u32, cpuid: &CpuidTable) -> Result<Box<dyn Vcpu>, EngineError>;

    /// Replaces the whole table of interrupt routes.
    fn set_routes(&self, routes: &[MsiRoute]) -> Result<(), EngineError>;

    /// Delivers `message` now. `Ok(false)`: no local APIC took it.
    fn signal_msi(&self, message: MsiMessage) -> Result<bool, EngineError>;

    /// Makes a signal on `fd` send what `gsi` is routed to.
    fn attach_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), EngineError>;

    /// Undoes [`Vm::attach_irqfd`].
    fn detach_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), EngineError>;

    /// Makes guest writes that fit `event` signal `fd` and nothing else.
    fn attach_ioevent(&self, fd: &EventFd, event: &IoEvent) -> Result<(), EngineError>;

    /// Undoes [`Vm::attach_ioevent`].
    fn detach_ioevent(&self, fd: &EventFd, event: &IoEvent) -> Result<(), EngineError>;

    /// Has the engine note the pages a vCPU writes in a ring of `entries`, instead of in a log a
    /// slot; before the first vCPU is made. [`Vm::dirty_log`] reads either. Of rings, what a vCPU
    /// has written since it last left guest code may come with a later call.
    fn use_dirty_ring(&self, entries: u32) -> Result<(), EngineError> {
        let _ = entries;
        Err(EngineError::Lacking {
            feature: "a dirty ring",
            remedy: "Leave dirty_ring out: dirty pages are told without it.",
        })
    }

    /// The pages of `slot` written since the last call, one bit a 4 KiB page, and re-arms the log.
    /// The slot must have `log_dirty` set.
    fn dirty_log(&self, slot: SlotId, pages: u64) -> Result<Vec<u64>, EngineError>;

    /// The numbers the engine keeps about the VM; none by default. An engine that builds
    /// second-stage tables has `pages_4k`, `pages_2m` and `pages_1g`: the pages mapped in them now.
    fn stats(&self) -> Result<Vec<Stat>, EngineError> {
        Ok(Vec::new())
    }

    /// The guest's clock in nanoseconds, where the engine keeps one.
    fn clock(&self) -> Result<u64, EngineError>;

    /// Sets the guest's clock in nanoseconds.
    fn set_clock(&self, nanoseconds: u64) -> Result<(), EngineError>;

    /// Where the run is, where the engine counts instructions.
    fn position(&self) -> Option<Position> {
        None
    }

    /// Makes runs end with [`RunEnd::Budget`] once that many instructions are retired, all vCPUs
    /// together; `None`: never. While guest code stands still, of a VM that counts.
    fn stop_at(&self, instructions: Option<u64>) -> Result<(), EngineError> {
        let _ = instructions;
        Err(counts_nothing())
    }

    /// Sets where the inputs of a counted run come from; before the first run.
    fn set_inputs(&self, inputs: Arc<dyn Inputs>) -> Result<(), EngineError> {
        let _ = inputs;
        Err(counts_nothing())
    }

    /// An input waits: [`Inputs::enter`] is called as soon as guest code stands between two blocks
    /// of instructions.
    fn input_waits(&self) {}

    /// Tells the engine of a VFIO device file, so that it can honour what the device needs
    /// (non-coherent DMA).
    fn attach_vfio_fd(&self, fd: BorrowedFd<'_>) -> Result<(), EngineError>;
}

fn counts_nothing() -> EngineError {
    EngineError::Lacking {
        feature: "a clock that counts instructions",
        remedy: "Use the software engine with such a clock.",
    }
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunEnd {
    /// `hlt` with nobody to wake it (no local APIC in the engine).
    Halt,
    /// A triple fault.
    Shutdown,
    /// Somebody kicked.
    Kicked,
    /// The board asked to stop; the access is complete.
    Stopped(StopReason),
    /// A debug condition of [`DebugControl`] was met.
    Debug(DebugStop),
    /// The instructions of [`Vm::stop_at`] are retired, or [`Inputs`] stop the run.
    Budget,
    /// The guest can take an interrupt ([`Vcpu::set_interrupt_window`]).
    InterruptWindow,
    /// The engine cannot go on with this guest.
    Fatal(FatalExit),
}

/// The details of a debug stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugStop {
    /// Linear address of the instruction.
    pub rip: u64,
    /// The exception behind the stop: 1 (#DB) or 3 (#BP).
    pub exception: u32,
    /// DR6 as the CPU would show it.
    pub dr6: u64,
}

/// A guest that the engine cannot run on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FatalExit {
    /// The engine met an instruction it cannot carry out.
    Instruction {
        /// Where.
        rip: u64,
        /// The instruction's first bytes, where the engine tells.
        bytes: Vec<u8>,
        /// What it is, where the engine tells: its mnemonic and what of it is lacking.
        name: Option<&'static str>,
    },
    /// The processor refused the guest's state.
    EntryRefused {
        /// Hardware reason code.
        reason: u64,
    },
    /// A guest memory access cannot be served.
    Memory {
        /// Guest-physical address.
        gpa: u64,
    },
    /// Anything else the engine reports.
    Other {
        /// The engine's code and numbers, as text.
        detail: String,
    },
}

/// Which events stop a vCPU for its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// Stop after each instruction.
    pub single_step: bool,
    /// Linear addresses of up to four execution breakpoints.
    pub breakpoints: [Option<u64>; 4],
    /// Watchpoints. The processor has four debug registers for both kinds: one counts where the
    /// breakpoint of the same index is `None`.
    pub watchpoints: [Option<Watchpoint>; 4],
}

/// Data whose accesses stop a vCPU, after the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// Linear address, a multiple of the length.
    pub at: u64,
    /// Bytes.
    pub len: WatchLen,
    /// Reads stop too, not writes alone.
    pub reads: bool,
}

/// How many bytes a watchpoint covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the numbers of bytes")]
pub enum WatchLen {
    One,
    Two,
    Four,
    Eight,
}

/// A virtual CPU. It runs on one thread at a time.
pub trait Vcpu: Send + Debug {
    /// The vCPU's number, which is its APIC id.
    fn id(&self) -> u32;

    /// A handle that makes [`Vcpu::run`] return, from any thread.
    fn kicker(&self) -> Arc<dyn Kicker>;

    /// Binds the vCPU to the calling thread, which runs it from now on.
    fn bind(&mut self) -> Result<(), EngineError>;

    /// Undoes [`Vcpu::bind`]; kicks are ignored from now on.
    fn unbind(&mut self);

    /// Runs guest code until something in [`RunEnd`] happens. No access is left half done.
    fn run(&mut self, bus: &mut dyn GuestBus) -> Result<RunEnd, EngineError>;

    /// Sets the debug conditions.
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError>;

    /// The general registers.
    fn regs(&self) -> Result<Regs, EngineError>;

    /// Sets the general registers.
    fn set_regs(&mut self, regs: &Regs) -> Result<(), EngineError>;

    /// Segments, control registers and tables.
    fn sregs(&self) -> Result<Sregs, EngineError>;

    /// Sets segments, control registers and tables.
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), EngineError>;

    /// Whether the vCPU runs, halts or waits for its start.
    fn mp_state(&self) -> Result<MpState, EngineError>;

    /// Sets what [`Vcpu::mp_state`] gives.
    fn set_mp_state(&mut self, state: MpState) -> Result<(), EngineError>;

    /// One MSR's value.
    fn msr(&self, index: u32) -> Result<u64, EngineError>;

    /// Sets one MSR.
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), EngineError>;

    /// Sets the rate of the guest's time-stamp counter, in kilohertz.
    /// [`EngineError::TscRate`] where the engine cannot have the counter run at that rate.
    fn set_tsc_khz(&mut self, khz: u32) -> Result<(), EngineError>;

    /// Raises a non-maskable interrupt.
    fn inject_nmi(&mut self) -> Result<(), EngineError>;

    /// Raises interrupt `vector` as an external interrupt controller does; only without
    /// [`Vm::create_irqchip`]. The guest must be able to take it (IF set).
    fn inject_interrupt(&mut self, vector: u8) -> Result<(), EngineError>;

    /// Makes runs end with [`RunEnd::InterruptWindow`] as soon as the guest can take what
    /// [`Vcpu::inject_interrupt`] raises, until switched off; only without [`Vm::create_irqchip`].
    fn set_interrupt_window(&mut self, on: bool) -> Result<(), EngineError>;

    /// The guest-physical address behind a linear address, by the engine's own walk of the guest's
    /// page tables; `None` when it is not mapped.
    fn translate(&self, linear: u64) -> Result<Option<u64>, EngineError>;

    /// The numbers the engine keeps about the vCPU; none by default.
    fn stats(&self) -> Result<Vec<Stat>, EngineError> {
        Ok(Vec::new())
    }

    /// The whole architectural state.
    fn save(&mut self) -> Result<VcpuState, EngineError>;

    /// Takes over a whole state. What this engine lacks is named and nothing is changed.
    fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError>;
}
