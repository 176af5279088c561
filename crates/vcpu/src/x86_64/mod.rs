//! x86-64: registers, saved state, numbers of model-specific registers.

mod modes;
pub mod msr;
mod regs;
mod state;

pub use modes::{BOOT_CS, BOOT_DS};
pub use regs::{Regs, Segment, Sregs, Table};
pub use state::{DebugRegs, Events, MpState, VcpuState};
