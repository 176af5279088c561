//! What the second-stage formats, EPT and NPT, share: rights, pages, and the walker.

use std::fmt;

use super::{
    exit::StageExit,
    radix::{Geometry, Next},
};
use crate::{Gpa, Hpa};

/// What second-stage entries allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Data reads.
    pub read: bool,
    /// Data writes.
    pub write: bool,
    /// Instruction fetches; with EPT's mode-based control those of supervisor code.
    pub execute: bool,
    /// Instruction fetches of user code; the same as `execute` without mode-based control.
    pub user_execute: bool,
}

impl Rights {
    /// Everything.
    pub const ALL: Rights = Rights {
        read: true,
        write: true,
        execute: true,
        user_execute: true,
    };
    /// Nothing.
    pub const NONE: Rights = Rights {
        read: false,
        write: false,
        execute: false,
        user_execute: false,
    };
    /// Everything but writes: what a page has while its writes are logged.
    pub const READ_EXECUTE: Rights = Rights {
        write: false,
        ..Rights::ALL
    };

    /// What both allow.
    #[must_use]
    pub fn and(self, other: Rights) -> Rights {
        Rights {
            read: self.read && other.read,
            write: self.write && other.write,
            execute: self.execute && other.execute,
            user_execute: self.user_execute && other.user_execute,
        }
    }

    /// Whether everything that `needed` has is here.
    pub fn cover(self, needed: Rights) -> bool {
        self.and(needed) == needed
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |on: bool, letter: char| if on { letter } else { '-' };
        let (read, write) = (letter(self.read, 'r'), letter(self.write, 'w'));
        write!(f, "{read}{write}{}", letter(self.execute, 'x'))?;
        if self.execute == self.user_execute {
            Ok(())
        } else {
            write!(f, "/{}", letter(self.user_execute, 'u'))
        }
    }
}

/// How the processor may cache a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemoryType {
    /// UC.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB.
    WriteBack = 6,
}

/// What a page carries beside its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAttributes {
    /// What it allows.
    pub rights: Rights,
    /// How it is cached.
    pub memory_type: MemoryType,
}

impl PageAttributes {
    /// Ordinary memory.
    pub const RAM: PageAttributes = PageAttributes {
        rights: Rights::ALL,
        memory_type: MemoryType::WriteBack,
    };
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// An access to a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The processor reads an entry of the guest's own page tables.
    Table,
    /// The guest accesses what its linear address translates to.
    Final {
        /// What it does.
        operation: Operation,
        /// The linear address is a user-mode one.
        user: bool,
    },
}

impl Access {
    /// A read by supervisor code.
    pub const READ: Access = Access::Final {
        operation: Operation::Read,
        user: false,
    };
    /// A write by supervisor code.
    pub const WRITE: Access = Access::Final {
        operation: Operation::Write,
        user: false,
    };
}

/// An entry whose content the architecture does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Reserved bits are set: these.
    Reserved(u64),
    /// EPT: writes without reads.
    WriteWithoutRead,
    /// EPT: fetches without reads on a processor that lacks execute-only translations.
    ExecuteOnly,
    /// EPT: memory type 2, 3 or 7.
    MemoryType(u8),
}

/// A second-stage entry, whatever its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageEntry {
    /// Not present.
    Absent,
    /// A table of the next lower level.
    Table {
        /// Where the table lies.
        hpa: Hpa,
        /// What the entry allows.
        rights: Rights,
    },
    /// A page.
    Page {
        /// Where the page lies.
        hpa: Hpa,
        /// What it carries.
        attributes: PageAttributes,
    },
}

/// A second-stage table format with the settings of the processor that walks it.
pub trait StageFormat: fmt::Debug {
    /// Levels: 4 or 5.
    fn levels(&self) -> u8;
    /// Where the highest table lies.
    fn root(&self) -> Hpa;
    /// Width of host-physical addresses.
    fn physical_bits(&self) -> u8;
    /// The highest level whose entries may be pages: 3 (1 GiB), 2 (2 MiB) or 1.
    fn largest_page_level(&self) -> u8;
    /// What `raw` means at `level`.
    fn decode(&self, level: u8, raw: u64) -> Result<StageEntry, Malformed>;
    /// An entry that leads to a table and takes no right away.
    fn table(&self, hpa: Hpa) -> u64;
    /// An entry that is a page; `None` when the format cannot express the attributes.
    fn page(&self, level: u8, hpa: Hpa, attributes: PageAttributes) -> Option<u64>;
    /// What `access` needs.
    fn needed(&self, access: Access) -> Rights;
    /// What the processor reports when `access` fails by `cause`, and the entries so far allowed
    /// `rights`.
    fn exit(&self, access: Access, rights: Rights, cause: StageCause) -> StageExit;
}

/// One second-stage entry met on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageStep {
    /// 5 to 1.
    pub level: u8,
    /// Where the entry lies.
    pub hpa: Hpa,
    /// The entry.
    pub entry: u64,
    /// What this entry and all above it allow.
    pub rights: Rights,
    /// Bytes of the page, if the entry is one.
    pub page_size: Option<u64>,
}

/// Where a guest-physical address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageTranslation {
    /// Host-physical address.
    pub hpa: Hpa,
    /// Bytes of the page.
    pub page_size: u64,
    /// What every entry allows.
    pub rights: Rights,
    /// How the page is cached.
    pub memory_type: MemoryType,
}

/// Why a second-stage walk ends without a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageCause {
    /// The address has more bits than the tables take.
    AddressTooWide,
    /// An entry is not present.
    Absent,
    /// The entries do not allow the access.
    Denied,
    /// An entry's content is not allowed.
    Malformed(Malformed),
    /// The entry would lie outside memory. A processor reads all ones there, or worse.
    OutsideMemory(Hpa),
}

/// A failed second-stage walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageFault {
    /// The level of the entry at fault.
    pub level: u8,
    /// Why.
    pub cause: StageCause,
    /// What the processor reports; for a table outside memory as if the entry were absent.
    pub exit: StageExit,
}

/// A second-stage walk: the entries met and where it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageWalk {
    /// From the highest level down, at most five.
    pub steps: Vec<StageStep>,
    /// The end.
    pub result: Result<StageTranslation, StageFault>,
}

/// Walks the tables of `format` for an `access` to `gpa`, reading entries with `read` (an aligned
/// 64-bit word of host memory, `None` where no memory is). At most five entries are read; accessed
/// and dirty bits are left as they are.
pub fn walk_stage(
    format: &dyn StageFormat,
    gpa: Gpa,
    access: Access,
    read: &dyn Fn(Hpa) -> Option<u64>,
) -> StageWalk {
    let geometry = Geometry::long(format.levels());
    let mut walker = StageWalker {
        format,
        geometry,
        gpa,
        access,
        rights: Rights::ALL,
        steps: Vec::new(),
    };
    let result = if gpa.0 >> geometry.address_bits() == 0 {
        geometry
            .descend(format.root().0, gpa.0, &mut |level, at| {
                walker.visit(level, Hpa(at), read)
            })
            .and_then(|found| found.ok_or_else(|| walker.fault(1, StageCause::Absent)))
    } else {
        walker.rights = Rights::NONE;
        Err(walker.fault(format.levels(), StageCause::AddressTooWide))
    };
    let steps = walker.steps;
    StageWalk { steps, result }
}

struct StageWalker<'a> {
    format: &'a dyn StageFormat,
    geometry: Geometry,
    gpa: Gpa,
    access: Access,
    rights: Rights,
    steps: Vec<StageStep>,
}

impl StageWalker<'_> {
    fn visit(
        &mut self,
        level: u8,
        at: Hpa,
        read: &dyn Fn(Hpa) -> Option<u64>,
    ) -> Result<Next<StageTranslation>, StageFault> {
        let raw = read(at).ok_or_else(|| self.fault(level, StageCause::OutsideMemory(at)))?;
        let entry = self.format.decode(level, raw);
        let (rights, page_size) = match entry {
            Ok(StageEntry::Table { rights, .. }) => (rights, None),
            Ok(StageEntry::Page { attributes, .. }) => {
                (attributes.rights, Some(self.geometry.span(level)))
            }
            Ok(StageEntry::Absent) | Err(_) => (Rights::NONE, None),
        };
        self.rights = self.rights.and(rights);
        self.steps.push(StageStep {
            level,
            hpa: at,
            entry: raw,
            rights: self.rights,
            page_size,
        });
        match entry {
            Err(reason) => Err(self.fault(level, StageCause::Malformed(reason))),
            Ok(StageEntry::Absent) => Err(self.fault(level, StageCause::Absent)),
            Ok(StageEntry::Table { hpa, .. }) => Ok(Next::Table(hpa.0)),
            Ok(StageEntry::Page { hpa, attributes }) => {
                self.finish(level, hpa, attributes).map(Next::Leaf)
            }
        }
    }

    fn finish(
        &self,
        level: u8,
        page: Hpa,
        attributes: PageAttributes,
    ) -> Result<StageTranslation, StageFault> {
        if !self.rights.cover(self.format.needed(self.access)) {
            return Err(self.fault(level, StageCause::Denied));
        }
        let page_size = self.geometry.span(level);
        Ok(StageTranslation {
            hpa: Hpa(page.0 | (self.gpa.0 & (page_size - 1))),
            page_size,
            rights: self.rights,
            memory_type: attributes.memory_type,
        })
    }

    fn fault(&self, level: u8, cause: StageCause) -> StageFault {
        let exit = self.format.exit(self.access, self.rights, cause);
        StageFault { level, cause, exit }
    }
}

/// The reserved address bits of a second-stage entry at `level`: those above the physical width,
/// and for a page those below its size.
pub(crate) fn reserved_address_bits(physical_bits: u8, level: u8, page: bool) -> u64 {
    let above = FRAME & !(address_mask(physical_bits));
    let below = if page {
        (Geometry::long(level).span(level) - 1) & !0xfff
    } else {
        0
    };
    above | below
}

/// Bits 51 to 12.
pub(crate) const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The bits of a physical address of this width.
pub(crate) fn address_mask(physical_bits: u8) -> u64 {
    (1u64 << u32::from(physical_bits.clamp(32, 52))) - 1
}
