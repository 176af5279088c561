//! The whole architectural state of a vCPU as plain data: what one engine saves, another restores.

use serde::{Deserialize, Serialize};

use super::{Regs, Sregs};
use crate::cpuid::CpuidTable;

/// Whether a vCPU runs, halts or waits for its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Executes instructions.
    #[default]
    Runnable,
    /// In `hlt`, waiting for an interrupt.
    Halted,
    /// Waiting for INIT (an application processor before its start).
    Uninitialized,
    /// INIT received, waiting for the start-up message.
    InitReceived,
    /// Start-up message received.
    SipiReceived,
}

/// DR0 to DR3, DR6, DR7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the architecture's own names")]
pub struct DebugRegs {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// Exceptions and interrupts that are on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// An exception not yet delivered: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// The exception counts as injected: it is delivered without another intercept.
    pub exception_injected: bool,
    /// An external interrupt taken but not yet delivered.
    pub interrupt: Option<u8>,
    /// The interrupt comes from `int n`.
    pub interrupt_soft: bool,
    /// Interrupt shadow: bit 0 after `mov ss`, bit 1 after `sti`.
    pub shadow: u8,
    /// An NMI taken but not yet delivered.
    pub nmi_injected: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until `iret`.
    pub nmi_masked: bool,
    /// The start-up vector received.
    pub sipi_vector: u32,
}

/// Everything that makes a vCPU go on elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// The CPUID table the guest sees.
    pub cpuid: CpuidTable,
    /// Kilohertz of the guest's time-stamp counter; 0 when the engine does not tell.
    pub tsc_khz: u32,
    /// Run state.
    pub mp_state: MpState,
    /// General registers.
    pub regs: Regs,
    /// Segments and control registers.
    pub sregs: Sregs,
    /// XSAVE area in the standard format (Intel SDM volume 1, section 13.4).
    pub xsave: Vec<u8>,
    /// Extended control registers: index and value.
    pub xcrs: Vec<(u32, u64)>,
    /// Debug registers.
    pub debug: DebugRegs,
    /// The local APIC's register page, first 1,024 bytes; empty without a local APIC in the engine.
    pub lapic: Vec<u8>,
    /// Model-specific registers: index and value, in the order they are to be set.
    pub msrs: Vec<(u32, u64)>,
    /// Events on their way.
    pub events: Events,
}
