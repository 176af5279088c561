//! The guest's own page tables on x86: 32-bit, PAE, 4-level and 5-level, all page sizes.
//!
//! Source: Intel SDM volume 3, chapter 5 "Paging"; AMD APM volume 2, chapter 5.

use std::fmt;

use super::radix::{Geometry, Next};
use crate::Gpa;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// The registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the architecture's own names")]
pub struct PagingContext {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// Width of physical addresses (CPUID 0x80000008 EAX bits 7-0); bits above are reserved.
    pub physical_bits: u8,
    /// 1 GiB pages (CPUID 0x80000001 EDX bit 26); without them bit 7 of a PDPTE is reserved.
    pub gibibyte_pages: bool,
}

/// One entry met on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// 5 (PML5) to 1 (page table).
    pub level: u8,
    /// Where the entry lies.
    pub gpa: Gpa,
    /// The entry.
    pub entry: u64,
    /// This entry and all above it allow writes.
    pub writable: bool,
    /// This entry and all above it allow user mode.
    pub user: bool,
    /// Neither this entry nor one above it forbids execution.
    pub executable: bool,
    /// Bytes of the page, if the entry is one.
    pub page_size: Option<u64>,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: Gpa,
    /// Bytes of the page.
    pub page_size: u64,
    /// Every entry allows writes.
    pub writable: bool,
    /// Every entry allows user mode.
    pub user: bool,
    /// No entry forbids execution.
    pub executable: bool,
}

/// Why a linear address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkFault {
    /// The entry at this level is not present.
    NotPresent {
        /// Level of the entry.
        level: u8,
    },
    /// The entry at this level has a reserved bit set.
    ReservedBit {
        /// Level of the entry.
        level: u8,
    },
    /// The table of this level does not lie in memory.
    OutsideMemory {
        /// Level of the entry.
        level: u8,
        /// Where the entry would be.
        gpa: Gpa,
    },
    /// The address's upper bits do not repeat its sign bit.
    NonCanonical,
}

impl fmt::Display for WalkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalkFault::NotPresent { level } => {
                write!(f, "the entry of level {level} is not present")
            }
            WalkFault::ReservedBit { level } => {
                write!(f, "the entry of level {level} has a reserved bit set")
            }
            WalkFault::OutsideMemory { level, gpa } => {
                write!(
                    f,
                    "the table of level {level} is no memory: its entry would be at {gpa}"
                )
            }
            WalkFault::NonCanonical => f.write_str("the address is not canonical"),
        }
    }
}

/// A walk: the entries met and where it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// From the highest level down, at most five.
    pub steps: Vec<Step>,
    /// The end.
    pub result: Result<Translation, WalkFault>,
}

impl PagingContext {
    /// How the paging mode lays out its tables; no levels without paging.
    fn format(&self) -> Geometry {
        if self.cr0 & CR0_PG == 0 {
            Geometry::long(0)
        } else if self.efer & EFER_LMA != 0 {
            Geometry::long(if self.cr4 & CR4_LA57 != 0 { 5 } else { 4 })
        } else if self.cr4 & CR4_PAE != 0 {
            Geometry::long(3)
        } else {
            Geometry {
                levels: 2,
                index_bits: 10,
                entry_size: 4,
            }
        }
    }

    /// Levels of the tables: 0 without paging, 2, 3 (PAE), 4 or 5.
    pub fn levels(&self) -> u8 {
        self.format().levels
    }

    fn address_mask(&self) -> u64 {
        let bits = u32::from(self.physical_bits.clamp(32, 52));
        (1u64 << bits) - 1
    }
}

/// Translates `linear` as the CPU would, reading entries with `read` (an aligned 64-bit word of
/// guest memory, `None` where no memory is). At most five entries are read.
pub fn walk(context: &PagingContext, linear: u64, read: &dyn Fn(Gpa) -> Option<u64>) -> Walk {
    let format = context.format();
    let mut walker = Walker {
        context,
        format,
        linear,
        read,
        steps: Vec::new(),
    };
    let result = walker.run();
    Walk {
        steps: walker.steps,
        result,
    }
}

struct Walker<'a> {
    context: &'a PagingContext,
    format: Geometry,
    linear: u64,
    read: &'a dyn Fn(Gpa) -> Option<u64>,
    steps: Vec<Step>,
}

impl Walker<'_> {
    fn run(&mut self) -> Result<Translation, WalkFault> {
        if self.format.levels == 0 {
            return Ok(Translation {
                gpa: Gpa(self.linear & 0xffff_ffff),
                page_size: crate::PAGE_SIZE,
                writable: true,
                user: true,
                executable: true,
            });
        }
        self.check_canonical()?;
        let mut rights = Rights {
            writable: true,
            user: true,
            executable: true,
        };
        let (format, root, linear) = (self.format, self.root(), self.linear);
        let found = format.descend(root, linear, &mut |level, at| {
            let entry = self.fetch(level, Gpa(at), &mut rights)?;
            Ok(if level == 1 || self.is_large(entry, level) {
                Next::Leaf(self.finish(entry, level, rights))
            } else {
                Next::Table(self.next_table(entry))
            })
        })?;
        found.ok_or(WalkFault::NotPresent { level: 1 })
    }

    fn check_canonical(&self) -> Result<(), WalkFault> {
        let bits = match self.format.levels {
            5 => 57,
            4 => 48,
            _ => {
                return if self.linear >> 32 == 0 {
                    Ok(())
                } else {
                    Err(WalkFault::NonCanonical)
                };
            }
        };
        let sign = (self.linear.cast_signed() >> (bits - 1)).cast_unsigned();
        if sign == 0 || sign == u64::MAX {
            Ok(())
        } else {
            Err(WalkFault::NonCanonical)
        }
    }

    fn root(&self) -> u64 {
        match self.format.levels {
            2 => self.context.cr3 & 0xffff_f000,
            3 => self.context.cr3 & 0xffff_ffe0,
            _ => self.context.cr3 & self.context.address_mask() & !0xfff,
        }
    }

    /// Physical address bits above 32 that PSE-36 gives, at most eight.
    fn high_address_bits(&self) -> u32 {
        u32::from(self.context.physical_bits.clamp(32, 40)) - 32
    }

    /// The four entries of PAE's top level have no rights of their own.
    fn directory_pointer(&self, level: u8) -> bool {
        self.format.levels == 3 && level == 3
    }

    fn fetch(&mut self, level: u8, gpa: Gpa, rights: &mut Rights) -> Result<u64, WalkFault> {
        let word = (self.read)(gpa.align_down(8));
        let word = word.ok_or(WalkFault::OutsideMemory { level, gpa })?;
        let entry = match self.format.entry_size {
            4 if gpa.0 % 8 == 4 => word >> 32,
            4 => word & 0xffff_ffff,
            _ => word,
        };
        self.note(level, gpa, entry, rights);
        if entry & PRESENT == 0 {
            Err(WalkFault::NotPresent { level })
        } else if entry & self.reserved(entry, level) != 0 {
            Err(WalkFault::ReservedBit { level })
        } else {
            Ok(entry)
        }
    }

    fn note(&mut self, level: u8, gpa: Gpa, entry: u64, rights: &mut Rights) {
        let present = entry & PRESENT != 0;
        let page = present && (level == 1 || self.is_large(entry, level));
        if present {
            rights.narrow(entry, self.directory_pointer(level));
        }
        self.steps.push(Step {
            level,
            gpa,
            entry,
            writable: present && rights.writable,
            user: present && rights.user,
            executable: present && rights.executable,
            page_size: page.then(|| self.format.span(level)),
        });
    }

    fn is_large(&self, entry: u64, level: u8) -> bool {
        let allowed = match (self.format.levels, level) {
            (2, 2) => self.context.cr4 & CR4_PSE != 0,
            (_, 2) => true,
            (4 | 5, 3) => self.context.gibibyte_pages,
            _ => false,
        };
        allowed && entry & LARGE != 0
    }

    /// The bits that must be zero in a present entry.
    fn reserved(&self, entry: u64, level: u8) -> u64 {
        if self.format.levels == 2 {
            // With PSE-36 bits 13 up to 20 of a 4 MiB entry carry address bits 32 up to 39, as far
            // as the processor has them; the others up to bit 21 are reserved (SDM table 5-4).
            return if self.is_large(entry, level) {
                (1 << 22) - (1 << (self.high_address_bits() + 13))
            } else {
                0
            };
        }
        let mut reserved = !self.context.address_mask() & 0x000f_ffff_ffff_f000;
        if self.context.efer & EFER_NXE == 0 {
            reserved |= NO_EXECUTE;
        }
        if self.directory_pointer(level) {
            return reserved | NO_EXECUTE | 0x7ff0_0000_0000_01e6;
        }
        if self.format.levels == 3 {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if self.is_large(entry, level) {
            reserved |= (self.format.span(level) - 1) & !0x1fff;
        } else if level >= 3 {
            // Bit 7 of a PDPTE that is no page is clear where such pages exist.
            reserved |= LARGE;
        }
        reserved
    }

    fn next_table(&self, entry: u64) -> u64 {
        if self.format.levels == 2 {
            entry & 0xffff_f000
        } else {
            entry & self.context.address_mask() & !0xfff
        }
    }

    fn finish(&self, entry: u64, level: u8, rights: Rights) -> Translation {
        let page_size = self.format.span(level);
        let mut frame = self.next_table(entry) & !(page_size - 1);
        if self.format.levels == 2 && level == 2 {
            let high = (entry >> 13) & ((1 << self.high_address_bits()) - 1);
            frame |= high << 32;
        }
        let Rights {
            writable,
            user,
            executable,
        } = rights;
        let gpa = Gpa(frame | (self.linear & (page_size - 1)));
        Translation {
            gpa,
            page_size,
            writable,
            user,
            executable,
        }
    }
}

#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Rights {
    fn narrow(&mut self, entry: u64, directory_pointer: bool) {
        if !directory_pointer {
            self.writable &= entry & WRITABLE != 0;
            self.user &= entry & USER != 0;
        }
        self.executable &= entry & NO_EXECUTE == 0;
    }
}

#[cfg(test)]
mod tests;
