//! The engine behind `/dev/kvm`: Intel VT-x with EPT and AMD-V with NPT, whichever the host has.
//!
//! * `system.rs`: [`Kvm`], the open device and what it can do.
//! * `vm.rs`: memory slots, interrupts, eventfds; `routes.rs`: the table of interrupt routes.
//! * `vcpu.rs`: the run loop over `KVM_RUN`; `convert.rs`, `state.rs`: registers and saved state.
//! * `exits.rs`: exits after which a guest cannot go on; `debug.rs`: debug conditions.
//! * `kick.rs`: kicks by a signal that has no handler; `kick/completion.rs`: kicks of vCPUs that exit
//!   often.
//! * `ext/`: the ioctls the kvm-ioctls crate lacks, the shared `kvm_run` page and the dirty ring.
//! * `rings.rs`: the pages a guest has written, by the rings of its vCPUs.
//! * `stats.rs`: the numbers KVM keeps.
//! * `reaper.rs`: closes VMs off the caller's thread.
//! * `msr_filter.rs`: which model-specific registers a guest sees.
//! * `probe.rs`: runs small guests to learn whether this KVM can run an operating system, and
//!   whether its guests see the CPUID they are given.
//!
//! The order of calls is a matter of milliseconds on current kernels: memory slots before anything
//! that registers on an in-kernel I/O bus, a split irqchip, no PIT. An ioeventfd makes closing slow
//! again; hence the reaper.
//!
//! Not supported yet: guest_memfd and confidential VMs, nested state, more than 254
//! vCPUs, KVM's Hyper-V and Xen interfaces, SMM.

mod convert;
mod debug;
mod exits;
mod ext;
mod kick;
mod msr_filter;
mod probe;
pub mod reaper;
mod rings;
mod routes;
mod state;
mod stats;
mod system;
mod vcpu;
mod vm;

pub use kick::KICK_SIGNAL_OFFSET;
pub use probe::{KernelMode, Probe, probe, unmasked_features};
pub use system::Kvm;
