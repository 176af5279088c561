//! What the processor reports when a second-stage walk fails: the exit and its numbers.

use std::fmt;

use super::stage::{Access, Operation, Rights};

/// The exit qualification of an EPT violation (Intel SDM volume 3, table "Exit Qualification for
/// EPT Violations", section 29.2.1). Bits 9 to 11 (advanced information), 12 (NMI unblocking) and
/// 13 to 16 (shadow stacks, guest-paging verification, tracing) stay zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EptQualification(pub u64);

impl EptQualification {
    /// The access was a data read.
    pub const READ: u64 = 1;
    /// The access was a data write.
    pub const WRITE: u64 = 1 << 1;
    /// The access was an instruction fetch.
    pub const FETCH: u64 = 1 << 2;
    /// Every entry allowed reads.
    pub const READABLE: u64 = 1 << 3;
    /// Every entry allowed writes.
    pub const WRITABLE: u64 = 1 << 4;
    /// Every entry allowed instruction fetches (with mode-based control: of supervisor code).
    pub const EXECUTABLE: u64 = 1 << 5;
    /// With mode-based control: every entry allowed instruction fetches of user code.
    pub const USER_EXECUTABLE: u64 = 1 << 6;
    /// The guest-linear address is valid.
    pub const LINEAR_VALID: u64 = 1 << 7;
    /// The address is a linear address's translation, not an entry of the guest's tables.
    pub const FINAL: u64 = 1 << 8;

    /// What `access` reports where the entries used allowed `rights`.
    pub(crate) fn new(access: Access, rights: Rights, format: EptReporting) -> Self {
        let kind = match access {
            Access::Table if format.accessed_dirty => Self::READ | Self::WRITE,
            Access::Table => Self::READ,
            Access::Final { operation, .. } => match operation {
                Operation::Read => Self::READ,
                Operation::Write => Self::WRITE,
                Operation::Execute => Self::FETCH,
            },
        };
        let allowed = [
            (rights.read, Self::READABLE),
            (rights.write, Self::WRITABLE),
            (rights.execute, Self::EXECUTABLE),
            (
                rights.user_execute && format.mode_based,
                Self::USER_EXECUTABLE,
            ),
            (matches!(access, Access::Final { .. }), Self::FINAL),
        ];
        let allowed = allowed.iter().filter(|(on, _)| *on);
        EptQualification(allowed.fold(kind | Self::LINEAR_VALID, |bits, (_, bit)| bits | bit))
    }
}

/// The controls that change what an EPT violation reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EptReporting {
    pub(crate) accessed_dirty: bool,
    pub(crate) mode_based: bool,
}

/// EXITINFO1 of a nested page fault (AMD APM volume 2, section 15.25.6). EXITINFO2 is the
/// guest-physical address. Bit 37 (supervisor shadow stack) stays zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NestedFaultInfo(pub u64);

impl NestedFaultInfo {
    /// The nested entry was present: rights or reserved bits are the cause.
    pub const PRESENT: u64 = 1;
    /// The access was a write.
    pub const WRITE: u64 = 1 << 1;
    /// The access was a user access, which all accesses are to nested tables.
    pub const USER: u64 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u64 = 1 << 3;
    /// The access was an instruction fetch.
    pub const FETCH: u64 = 1 << 4;
    /// The address is the guest's final physical address.
    pub const FINAL: u64 = 1 << 32;
    /// The address is an entry of the guest's tables.
    pub const TABLE: u64 = 1 << 33;

    pub(crate) fn new(access: Access, present: bool, reserved: bool) -> Self {
        let kind = match access {
            Access::Table => Self::WRITE | Self::TABLE,
            Access::Final { operation, .. } => {
                Self::FINAL
                    | match operation {
                        Operation::Read => 0,
                        Operation::Write => Self::WRITE,
                        Operation::Execute => Self::FETCH,
                    }
            }
        };
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        NestedFaultInfo(
            kind | Self::USER | bit(present, Self::PRESENT) | bit(reserved, Self::RESERVED),
        )
    }
}

/// The exit a failed second-stage walk causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageExit {
    /// Basic exit reason 48.
    EptViolation(EptQualification),
    /// Basic exit reason 49; it has no qualification.
    EptMisconfiguration,
    /// Exit code 0x400.
    NestedPageFault(NestedFaultInfo),
}

impl fmt::Display for StageExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StageExit::EptViolation(EptQualification(bits)) => {
                write!(f, "EPT violation, qualification {bits:#x}")
            }
            StageExit::EptMisconfiguration => f.write_str("EPT misconfiguration"),
            StageExit::NestedPageFault(NestedFaultInfo(bits)) => {
                write!(f, "nested page fault, EXITINFO1 {bits:#x}")
            }
        }
    }
}
