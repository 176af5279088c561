//! Guests of a few instructions, each against the engine contract of `vmlet-vcpu`.
//!
//! A guest is written in assembly inside its test, runs on every engine that this host offers and
//! ends by a write to a stop address; the test then looks at its registers, its memory and the
//! accesses it made. What a KVM that interprets supervisor code cannot do is asserted as what it
//! does instead; only [`vmlet_kvm::probe`], CPUID and the table in `harness/differences.rs` decide
//! which outcome is expected. With `--show-output` each test says how it went on which engine.
//!
//! The software engine needs nothing at run time, KVM `/dev/kvm`. `VMLET_REQUIRE=kvm` makes a missing engine
//! a failure, `VMLET_TIME_FACTOR` multiplies every time limit.

#[cfg(test)]
#[macro_use]
mod harness;

#[cfg(test)]
mod cpuid;
#[cfg(test)]
mod debug;
#[cfg(test)]
mod dirty;
#[cfg(test)]
mod dirty_ring;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod exceptions;
#[cfg(test)]
mod hostile_code;
#[cfg(test)]
mod hostile_faults;
#[cfg(test)]
mod hostile_paging;
#[cfg(test)]
mod instructions;
#[cfg(test)]
mod interpreter_gaps;
#[cfg(test)]
mod interrupts;
#[cfg(test)]
mod ioapic;
#[cfg(test)]
mod ioevents;
#[cfg(test)]
mod kick;
#[cfg(test)]
mod kick_often;
#[cfg(test)]
mod levels;
#[cfg(test)]
mod mmio;
#[cfg(test)]
mod modes;
#[cfg(test)]
mod moves;
#[cfg(test)]
mod page_sizes;
#[cfg(test)]
mod pci;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod random_code;
#[cfg(test)]
mod slots;
#[cfg(test)]
mod smp;
#[cfg(test)]
mod state;
#[cfg(test)]
mod system;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod virtio;
