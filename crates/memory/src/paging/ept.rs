//! Intel's second-stage tables: extended page tables.
//!
//! Source: Intel SDM volume 3, section 29.3 "The Extended Page Table Mechanism" (28.2 and 28.3 in
//! older editions): formats in 29.3.2, misconfigurations in 29.3.3.1, violations in 29.3.3.2.
//!
//! Not interpreted, as if the controls that use them were off: suppress #VE (bit 63), sub-page
//! write permissions (61), supervisor shadow stacks (60), guest-paging verification and
//! paging-write (57, 58). Their bits are ignored, as the processor then does.

use super::{
    exit::{EptQualification, EptReporting, StageExit},
    stage::{
        Access, FRAME, Malformed, MemoryType, Operation, PageAttributes, Rights, StageCause,
        StageEntry, StageFormat, address_mask, reserved_address_bits,
    },
};
use crate::Hpa;

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const TYPE_SHIFT: u32 = 3;
const IGNORE_PAT: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const USER_EXECUTE: u64 = 1 << 10;

const POINTER_LEVELS_SHIFT: u32 = 3;
const POINTER_ACCESSED_DIRTY: u64 = 1 << 6;
const POINTER_SHADOW_STACK: u64 = 1 << 7;
const POINTER_RESERVED: u64 = 0xf00;

impl MemoryType {
    /// The type that EPT calls `bits`; `None` for the reserved 2, 3 and 7.
    pub fn from_bits(bits: u8) -> Option<MemoryType> {
        match bits {
            0 => Some(MemoryType::Uncacheable),
            1 => Some(MemoryType::WriteCombining),
            4 => Some(MemoryType::WriteThrough),
            5 => Some(MemoryType::WriteProtected),
            6 => Some(MemoryType::WriteBack),
            _ => None,
        }
    }
}

/// What the processor that walks EPT can do (MSR IA32_VMX_EPT_VPID_CAP) and is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptFeatures {
    /// Width of physical addresses.
    pub physical_bits: u8,
    /// Execute-only translations (capability bit 0).
    pub execute_only: bool,
    /// 2 MiB pages (capability bit 16).
    pub two_mebibyte_pages: bool,
    /// 1 GiB pages (capability bit 17).
    pub one_gibibyte_pages: bool,
    /// The control "mode-based execute control for EPT" is on.
    pub mode_based_execute: bool,
}

impl EptFeatures {
    /// A current processor with `physical_bits` of address and mode-based control off.
    pub const fn current(physical_bits: u8) -> EptFeatures {
        EptFeatures {
            physical_bits,
            execute_only: true,
            two_mebibyte_pages: true,
            one_gibibyte_pages: true,
            mode_based_execute: false,
        }
    }
}

/// The EPT pointer of a VMCS (SDM volume 3, section 25.6.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptPointer {
    /// Where the highest table lies.
    pub root: Hpa,
    /// 4 or 5.
    pub levels: u8,
    /// How the tables themselves are cached: uncacheable or write-back.
    pub memory_type: MemoryType,
    /// The processor keeps accessed and dirty bits.
    pub accessed_dirty: bool,
    /// Access rights of supervisor shadow-stack pages are enforced.
    pub shadow_stack: bool,
}

/// An EPT pointer that VM entry refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadEptPointer {
    /// Neither uncacheable (0) nor write-back (6).
    MemoryType(u8),
    /// Bits 5 to 3, levels minus one, are neither 3 nor 4.
    Levels(u8),
    /// Reserved bits are set: these.
    Reserved(u64),
}

impl EptPointer {
    /// What `raw` says to a processor with `physical_bits` of address.
    pub fn decode(raw: u64, physical_bits: u8) -> Result<EptPointer, BadEptPointer> {
        let field = |shift: u32| u8::try_from((raw >> shift) & 7).unwrap_or(7);
        let kind = MemoryType::from_bits(field(0))
            .filter(|kind| matches!(kind, MemoryType::Uncacheable | MemoryType::WriteBack));
        let memory_type = kind.ok_or(BadEptPointer::MemoryType(field(0)))?;
        let levels = field(POINTER_LEVELS_SHIFT) + 1;
        if !matches!(levels, 4 | 5) {
            return Err(BadEptPointer::Levels(levels - 1));
        }
        let reserved = raw & (POINTER_RESERVED | !address_mask(physical_bits));
        if reserved != 0 {
            return Err(BadEptPointer::Reserved(reserved));
        }
        Ok(EptPointer {
            root: Hpa(raw & FRAME),
            levels,
            memory_type,
            accessed_dirty: raw & POINTER_ACCESSED_DIRTY != 0,
            shadow_stack: raw & POINTER_SHADOW_STACK != 0,
        })
    }

    /// The field's value.
    pub fn encode(&self) -> u64 {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        self.root.0 & FRAME
            | self.memory_type as u64
            | u64::from(self.levels.wrapping_sub(1) & 7) << POINTER_LEVELS_SHIFT
            | flag(self.accessed_dirty, POINTER_ACCESSED_DIRTY)
            | flag(self.shadow_stack, POINTER_SHADOW_STACK)
    }
}

/// A present EPT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptEntry {
    /// What it allows.
    pub rights: Rights,
    /// Where the table or page lies.
    pub address: Hpa,
    /// The entry was used; meaningful with accessed and dirty bits on.
    pub accessed: bool,
    /// What it leads to.
    pub target: EptTarget,
}

/// What a present EPT entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptTarget {
    /// A table of the next lower level.
    Table,
    /// A page.
    Page {
        /// How it is cached.
        memory_type: MemoryType,
        /// The guest's PAT is ignored.
        ignore_pat: bool,
        /// The page was written; meaningful with accessed and dirty bits on.
        dirty: bool,
    },
}

/// EPT tables and the processor that walks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    /// The pointer.
    pub pointer: EptPointer,
    /// The processor.
    pub features: EptFeatures,
}

impl Ept {
    /// What `raw` is at `level`: `None` when not present.
    pub fn entry(&self, level: u8, raw: u64) -> Result<Option<EptEntry>, Malformed> {
        let mode_based = self.features.mode_based_execute;
        let user = if mode_based { USER_EXECUTE } else { 0 };
        if raw & (READ | WRITE | EXECUTE | user) == 0 {
            return Ok(None);
        }
        self.check_rights(raw, user)?;
        let page = level == 1 || (raw & LARGE != 0 && self.may_be_large(level));
        let reserved = raw & self.reserved(level, page);
        if reserved != 0 {
            return Err(Malformed::Reserved(reserved));
        }
        let execute = raw & EXECUTE != 0;
        let rights = Rights {
            read: raw & READ != 0,
            write: raw & WRITE != 0,
            execute,
            user_execute: if mode_based {
                raw & USER_EXECUTE != 0
            } else {
                execute
            },
        };
        Ok(Some(EptEntry {
            rights,
            address: Hpa(raw & FRAME),
            accessed: raw & ACCESSED != 0,
            target: if page {
                page_target(raw)?
            } else {
                EptTarget::Table
            },
        }))
    }

    /// The entry's value at `level`.
    pub fn encode(&self, level: u8, entry: &EptEntry) -> u64 {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        let Rights {
            read,
            write,
            execute,
            user_execute,
        } = entry.rights;
        let user = user_execute && self.features.mode_based_execute;
        let common = entry.address.0 & FRAME
            | flag(read, READ)
            | flag(write, WRITE)
            | flag(execute, EXECUTE)
            | flag(user, USER_EXECUTE)
            | flag(entry.accessed, ACCESSED);
        match entry.target {
            EptTarget::Table => common,
            EptTarget::Page {
                memory_type,
                ignore_pat,
                dirty,
            } => {
                common
                    | (memory_type as u64) << TYPE_SHIFT
                    | flag(ignore_pat, IGNORE_PAT)
                    | flag(dirty, DIRTY)
                    | flag(level > 1, LARGE)
            }
        }
    }

    /// Bit 0 clear forbids bit 1, and bits 2 and 10 too without execute-only translations.
    fn check_rights(&self, raw: u64, user: u64) -> Result<(), Malformed> {
        if raw & READ != 0 {
            Ok(())
        } else if raw & WRITE != 0 {
            Err(Malformed::WriteWithoutRead)
        } else if raw & (EXECUTE | user) != 0 && !self.features.execute_only {
            Err(Malformed::ExecuteOnly)
        } else {
            Ok(())
        }
    }

    fn may_be_large(&self, level: u8) -> bool {
        match level {
            3 => self.features.one_gibibyte_pages,
            2 => self.features.two_mebibyte_pages,
            _ => false,
        }
    }

    fn reserved(&self, level: u8, page: bool) -> u64 {
        let address = reserved_address_bits(self.features.physical_bits, level, page);
        // Bits 7 to 3 of an entry that leads to a table.
        address | if page { 0 } else { 0xf8 }
    }
}

fn page_target(raw: u64) -> Result<EptTarget, Malformed> {
    let bits = u8::try_from((raw >> TYPE_SHIFT) & 7).unwrap_or(7);
    Ok(EptTarget::Page {
        memory_type: MemoryType::from_bits(bits).ok_or(Malformed::MemoryType(bits))?,
        ignore_pat: raw & IGNORE_PAT != 0,
        dirty: raw & DIRTY != 0,
    })
}

impl StageFormat for Ept {
    fn levels(&self) -> u8 {
        self.pointer.levels
    }

    fn root(&self) -> Hpa {
        self.pointer.root
    }

    fn physical_bits(&self) -> u8 {
        self.features.physical_bits
    }

    fn largest_page_level(&self) -> u8 {
        [3, 2]
            .into_iter()
            .find(|level| self.may_be_large(*level))
            .unwrap_or(1)
    }

    fn decode(&self, level: u8, raw: u64) -> Result<StageEntry, Malformed> {
        Ok(match self.entry(level, raw)? {
            None => StageEntry::Absent,
            Some(EptEntry {
                rights,
                address: hpa,
                target,
                ..
            }) => match target {
                EptTarget::Table => StageEntry::Table { hpa, rights },
                EptTarget::Page { memory_type, .. } => StageEntry::Page {
                    hpa,
                    attributes: PageAttributes {
                        rights,
                        memory_type,
                    },
                },
            },
        })
    }

    fn table(&self, hpa: Hpa) -> u64 {
        let entry = EptEntry {
            rights: Rights::ALL,
            address: hpa,
            accessed: false,
            target: EptTarget::Table,
        };
        self.encode(2, &entry)
    }

    fn page(&self, level: u8, hpa: Hpa, attributes: PageAttributes) -> Option<u64> {
        let entry = EptEntry {
            rights: attributes.rights,
            address: hpa,
            accessed: false,
            target: EptTarget::Page {
                memory_type: attributes.memory_type,
                ignore_pat: false,
                dirty: false,
            },
        };
        let raw = self.encode(level, &entry);
        (self.entry(level, raw) == Ok(Some(entry))).then_some(raw)
    }

    /// Entries of the guest's tables are read; the processor writes them too when it keeps
    /// accessed and dirty bits (SDM volume 3, section 29.3.5).
    fn needed(&self, access: Access) -> Rights {
        let (operation, user) = match access {
            Access::Table if self.pointer.accessed_dirty => (Operation::Write, false),
            Access::Table => (Operation::Read, false),
            Access::Final { operation, user } => (operation, user),
        };
        let user = user && self.features.mode_based_execute;
        let fetch = operation == Operation::Execute;
        Rights {
            read: operation == Operation::Read || access == Access::Table,
            write: operation == Operation::Write,
            execute: fetch && !user,
            user_execute: fetch && user,
        }
    }

    fn exit(&self, access: Access, rights: Rights, cause: StageCause) -> StageExit {
        match cause {
            StageCause::Malformed(_) => StageExit::EptMisconfiguration,
            _ => StageExit::EptViolation(EptQualification::new(
                access,
                rights,
                EptReporting {
                    accessed_dirty: self.pointer.accessed_dirty,
                    mode_based: self.features.mode_based_execute,
                },
            )),
        }
    }
}

#[cfg(test)]
mod tests;
