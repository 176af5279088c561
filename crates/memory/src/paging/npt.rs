//! AMD's second-stage tables: nested page tables.
//!
//! Source: AMD APM volume 2, section 15.25 "Nested Paging"; the entries are those of long mode,
//! section 5.3. All accesses to nested tables are user accesses, so an entry without U/S allows
//! nothing; entries of the guest's tables are accessed as writes (15.25.5).
//!
//! Not supported: nested tables of a host in legacy or PAE mode, guest mode execute trap, the
//! protections of SEV-SNP. Memory types are those of the PAT at reset (WB, WT, UC-, UC), so
//! write-combining and write-protected pages cannot be expressed.

use super::{
    exit::{NestedFaultInfo, StageExit},
    stage::{
        Access, FRAME, Malformed, MemoryType, Operation, PageAttributes, Rights, StageCause,
        StageEntry, StageFormat, reserved_address_bits,
    },
};
use crate::Hpa;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const PAT_SMALL: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const PAT_LARGE: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;

/// A present nested entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptEntry {
    /// R/W.
    pub writable: bool,
    /// U/S; without it the entry allows nothing.
    pub user: bool,
    /// NX.
    pub no_execute: bool,
    /// PWT.
    pub write_through: bool,
    /// PCD.
    pub cache_disable: bool,
    /// The entry was used.
    pub accessed: bool,
    /// Where the table or page lies.
    pub address: Hpa,
    /// What it leads to.
    pub target: NptTarget,
}

/// What a present nested entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NptTarget {
    /// A table of the next lower level.
    Table,
    /// A page.
    Page {
        /// The page was written.
        dirty: bool,
        /// G.
        global: bool,
        /// PAT.
        pat: bool,
    },
}

/// Nested tables and the processor that walks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    /// Where the highest table lies: nCR3.
    pub root: Hpa,
    /// 4 or 5 (the host's CR4.LA57 at VMRUN).
    pub levels: u8,
    /// Width of physical addresses.
    pub physical_bits: u8,
    /// The host's EFER.NXE at VMRUN: NX is not reserved.
    pub no_execute: bool,
    /// 1 GiB pages (CPUID 0x8000_001b and 0x8000_0001 EDX bit 26).
    pub one_gibibyte_pages: bool,
}

impl Npt {
    /// Four levels at `root` on a current processor with `physical_bits` of address.
    pub const fn current(root: Hpa, physical_bits: u8) -> Npt {
        Npt {
            root,
            levels: 4,
            physical_bits,
            no_execute: true,
            one_gibibyte_pages: true,
        }
    }

    /// What `raw` is at `level`: `None` when not present.
    pub fn entry(&self, level: u8, raw: u64) -> Result<Option<NptEntry>, Malformed> {
        if raw & PRESENT == 0 {
            return Ok(None);
        }
        let page = level == 1 || (raw & LARGE != 0 && level <= self.largest_page_level());
        let reserved = raw & self.reserved(level, page);
        if reserved != 0 {
            return Err(Malformed::Reserved(reserved));
        }
        let pat = if level == 1 { PAT_SMALL } else { PAT_LARGE };
        let frame = if page {
            FRAME & !(pat & PAT_LARGE)
        } else {
            FRAME
        };
        let target = if page {
            NptTarget::Page {
                dirty: raw & DIRTY != 0,
                global: raw & GLOBAL != 0,
                pat: raw & pat != 0,
            }
        } else {
            NptTarget::Table
        };
        Ok(Some(NptEntry {
            writable: raw & WRITABLE != 0,
            user: raw & USER != 0,
            no_execute: raw & NO_EXECUTE != 0,
            write_through: raw & WRITE_THROUGH != 0,
            cache_disable: raw & CACHE_DISABLE != 0,
            accessed: raw & ACCESSED != 0,
            address: Hpa(raw & frame),
            target,
        }))
    }

    /// The entry's value at `level`.
    pub fn encode(&self, level: u8, entry: &NptEntry) -> u64 {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        let common = entry.address.0 & FRAME
            | PRESENT
            | flag(entry.writable, WRITABLE)
            | flag(entry.user, USER)
            | flag(entry.no_execute, NO_EXECUTE)
            | flag(entry.write_through, WRITE_THROUGH)
            | flag(entry.cache_disable, CACHE_DISABLE)
            | flag(entry.accessed, ACCESSED);
        let place = if level == 1 { PAT_SMALL } else { PAT_LARGE };
        match entry.target {
            NptTarget::Table => common,
            NptTarget::Page { dirty, global, pat } => {
                common
                    | flag(dirty, DIRTY)
                    | flag(global, GLOBAL)
                    | flag(level > 1, LARGE)
                    | flag(pat, place)
            }
        }
    }

    fn reserved(&self, level: u8, page: bool) -> u64 {
        let mut reserved = reserved_address_bits(self.physical_bits, level, page);
        if page && level > 1 {
            reserved &= !PAT_LARGE;
        }
        if !self.no_execute {
            reserved |= NO_EXECUTE;
        }
        match level {
            4 | 5 => reserved | LARGE | GLOBAL,
            3 if !page => reserved | LARGE,
            _ => reserved,
        }
    }
}

impl NptEntry {
    /// What the entry allows.
    pub fn rights(&self) -> Rights {
        let execute = self.user && !self.no_execute;
        Rights {
            read: self.user,
            write: self.user && self.writable,
            execute,
            user_execute: execute,
        }
    }

    /// The type that the PAT at reset gives.
    fn memory_type(&self) -> MemoryType {
        match (self.cache_disable, self.write_through) {
            (false, false) => MemoryType::WriteBack,
            (false, true) => MemoryType::WriteThrough,
            (true, _) => MemoryType::Uncacheable,
        }
    }
}

impl StageFormat for Npt {
    fn levels(&self) -> u8 {
        self.levels
    }

    fn root(&self) -> Hpa {
        self.root
    }

    fn physical_bits(&self) -> u8 {
        self.physical_bits
    }

    fn largest_page_level(&self) -> u8 {
        if self.one_gibibyte_pages { 3 } else { 2 }
    }

    fn decode(&self, level: u8, raw: u64) -> Result<StageEntry, Malformed> {
        Ok(match self.entry(level, raw)? {
            None => StageEntry::Absent,
            Some(entry) => {
                let (hpa, rights) = (entry.address, entry.rights());
                match entry.target {
                    NptTarget::Table => StageEntry::Table { hpa, rights },
                    NptTarget::Page { .. } => StageEntry::Page {
                        hpa,
                        attributes: PageAttributes {
                            rights,
                            memory_type: entry.memory_type(),
                        },
                    },
                }
            }
        })
    }

    fn table(&self, hpa: Hpa) -> u64 {
        hpa.0 & FRAME | PRESENT | WRITABLE | USER
    }

    fn page(&self, level: u8, hpa: Hpa, attributes: PageAttributes) -> Option<u64> {
        let Rights {
            read,
            write,
            execute,
            ..
        } = attributes.rights;
        let kind = attributes.memory_type;
        let entry = NptEntry {
            writable: write,
            user: read,
            no_execute: !execute,
            write_through: matches!(kind, MemoryType::WriteThrough | MemoryType::Uncacheable),
            cache_disable: kind == MemoryType::Uncacheable,
            accessed: false,
            address: hpa,
            target: NptTarget::Page {
                dirty: false,
                global: false,
                pat: false,
            },
        };
        let raw = self.encode(level, &entry);
        let wanted = StageEntry::Page { hpa, attributes };
        (self.decode(level, raw) == Ok(wanted)).then_some(raw)
    }

    fn needed(&self, access: Access) -> Rights {
        let operation = match access {
            Access::Table => Operation::Write,
            Access::Final { operation, .. } => operation,
        };
        let fetch = operation == Operation::Execute;
        Rights {
            read: true,
            write: operation == Operation::Write,
            execute: fetch,
            user_execute: fetch,
        }
    }

    fn exit(&self, access: Access, _rights: Rights, cause: StageCause) -> StageExit {
        let reserved = matches!(cause, StageCause::Malformed(_));
        let present = reserved || cause == StageCause::Denied;
        StageExit::NestedPageFault(NestedFaultInfo::new(access, present, reserved))
    }
}

#[cfg(test)]
mod tests;
