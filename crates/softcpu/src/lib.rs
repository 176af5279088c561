//! The engine of vmlet that needs no hardware: an x86-64 interpreter, with a second tier that
//! translates hot code to code of the host.
//!
//! Code is decoded once into blocks of operations, each with a pointer to what carries it out
//! (`block.rs`, `decode/`, `exec/`); one leads to the next, and the frequent ones have a quick form
//! for when nothing goes wrong (`dispatch.rs`, `quick/`); what runs often is translated (`hot/`). Memory is reached through a soft TLB whose misses do the rest:
//! devices, dirty log, write protection, code that changes (`tlb.rs`, `mmu.rs`). Flags are lazy
//! (`flags.rs`), floating point and vectors are pure functions (`fp/`).
//!
//! One vCPU of a VM runs at a time, in a fixed order (`turns.rs`). The CPU model is `soft-v1`
//! (`cpuid.rs`, `msr.rs`); the local APIC, with TSC-deadline timer and x2APIC, is `lapic.rs`.
//!
//! Not supported: task switches, virtual-8086 mode, 5-level paging, SMEP and SMAP,
//! XSAVE and what needs it, performance counters. An
//! instruction that is not carried out ends the run with `FatalExit::Instruction` and its name, a
//! state in a mode that is not there with its name before an instruction is run.

#![expect(
    clippy::cast_possible_truncation,
    reason = "values are cut to operand sizes everywhere; hosts are 64-bit"
)]

mod address;
mod block;
mod bus;
mod clock;
mod counted;
mod cpu;
mod cpuid;
mod debug;
mod decode;
mod dispatch;
mod entry;
mod event;
mod events;
mod exec;
mod flags;
pub mod fp;
mod hot;
mod int;
mod lapic;
mod memory;
mod mmu;
mod msr;
#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native;
mod op;
mod pace;
mod quick;
#[cfg(test)]
mod random;
mod run;
mod save;
mod signal;
mod tags;
mod tlb;
mod turns;
mod vcpu;
mod vm;

use std::sync::Arc;

pub use clock::ClockMode;
use vmlet_vcpu::{EngineError, Hypervisor, Limits, Vm, cpuid::CpuidTable};

/// vCPUs a VM: they take turns, so more would only be slower.
const MAX_VCPUS: u32 = 64;
const MAX_SLOTS: u32 = 512;

/// What the default command line of a Linux guest should carry on this engine: no self-tests of
/// cryptography, which are most of a boot's instructions, no mitigations of processor flaws, no
/// check of a timer that is not there.
pub const LINUX_CMDLINE: &str = "cryptomgr.notests=1 mitigations=off no_timer_check";

/// The engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Soft {
    /// What guest time follows.
    pub clock: ClockMode,
}

impl Hypervisor for Soft {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn limits(&self) -> Limits {
        Limits {
            vcpus: MAX_VCPUS,
            slots: MAX_SLOTS,
        }
    }

    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError> {
        Ok(cpuid::table())
    }

    fn tsc_khz(&self) -> Result<u32, EngineError> {
        Ok(clock::TSC_KHZ)
    }

    fn create_vm(&self) -> Result<Arc<dyn Vm>, EngineError> {
        Ok(Arc::new(vm::SoftVm::new(self.clock)))
    }
}
