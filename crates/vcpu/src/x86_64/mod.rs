//! x86-64: registers, saved state, numbers of model-specific registers and which of them guests see.

mod modes;
pub mod msr;
mod msr_policy;
mod regs;
mod state;

pub use modes::{BOOT_CS, BOOT_DS};
pub use msr_policy::{LEVEL_MSRS, MsrAccess, MsrPolicy, PORTABLE_MSRS, X2APIC};
pub use regs::{Regs, Segment, Sregs, Table};
pub use state::{DebugRegs, Events, MpState, VcpuState};
