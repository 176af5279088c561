//! The engine contract of vmlet: what a hypervisor engine is to the rest of the VMM.
//!
//! Three kinds of engine stand behind it: Intel VT-x and AMD-V through `/dev/kvm`, and a
//! software CPU. What differs between them (VMCS or VMCB, EPT or NPT, ioctls or an
//! interpreter) ends at these traits; a board never sees which one runs it.
//!
//! * [`Hypervisor`] makes a [`Vm`], a [`Vm`] makes [`Vcpu`]s: `hypervisor.rs`.
//! * Guest I/O is a callback, [`GuestBus`], answered while the access is in flight: `access.rs`.
//! * [`VcpuThread`] runs one vCPU on one thread through three states: `run.rs`.
//! * [`Kicker`] makes a running vCPU return; the proof that no kick is lost stands in `kick.rs`.
//! * [`Stat`]: numbers an engine keeps: `stats.rs`.
//! * `x86_64` holds registers and the whole saved state of an x86-64 vCPU; `cpuid` the CPUID
//!   policy.
//!
//! Not supported yet: nested virtualization for the guest (VMX and
//! SVM are hidden), performance counters for the guest.

mod access;
mod error;
mod hypervisor;
mod kick;
mod run;
mod stats;
mod timeline;

pub mod cpuid;
pub mod x86_64;

pub use access::{AccessContext, Flow, GuestBus, SpaceId, StopReason};
pub use error::{EngineError, MissingFeature};
pub use hypervisor::{
    DebugControl, DebugStop, FatalExit, Hypervisor, IoEvent, Limits, MsiMessage, MsiRoute, RunEnd,
    SlotChange, Vcpu, Vm, WatchLen, Watchpoint,
};
pub use kick::Kicker;
pub use run::{Leaving, Next, PendingStep, RunState, Spawner, VcpuThread};
pub use stats::{Stat, StatKind, StatUnit};
pub use timeline::{Entered, Inputs, Position};
