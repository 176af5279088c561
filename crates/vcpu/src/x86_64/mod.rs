//! x86-64: registers, saved state, numbers of model-specific registers.

pub mod msr;
mod regs;
mod state;

pub use regs::{Regs, Segment, Sregs, Table};
pub use state::{DebugRegs, Events, MpState, VcpuState};
