//! A builder of second-stage tables, with the largest pages that addresses allow.
//!
//! Tables grow only: an emptied table is kept, and pages that were split are not joined again.

use thiserror::Error;

use super::{
    radix::Geometry,
    stage::{PageAttributes, Rights, StageEntry, StageFormat},
};
use crate::{Gpa, Hpa, PAGE_SIZE};

/// Entries a table.
const ENTRIES: u64 = 512;

/// Where tables lie.
pub trait TableMemory {
    /// The word at `at`; `None` where no table is.
    fn load(&self, at: Hpa) -> Option<u64>;
    /// Sets the word at `at`; `None` where no table is.
    fn store(&mut self, at: Hpa, value: u64) -> Option<()>;
    /// A page of zeros for a new table; `None` when there is none left.
    fn allocate(&mut self) -> Option<Hpa>;
}

/// Tables in this process's memory, as if they lay at consecutive host-physical pages.
#[derive(Debug)]
pub struct TablePages {
    base: Hpa,
    limit: usize,
    words: Vec<u64>,
}

impl TablePages {
    /// Room for `limit` tables from `base` on, a multiple of 4 KiB.
    pub fn new(base: Hpa, limit: usize) -> TablePages {
        TablePages {
            base,
            limit,
            words: Vec::new(),
        }
    }

    /// Tables made.
    pub fn count(&self) -> usize {
        self.words.len() / 512
    }

    fn index(&self, at: Hpa) -> Option<usize> {
        let offset = at.offset_from(self.base)?;
        usize::try_from(offset / 8).ok()
    }
}

impl TableMemory for TablePages {
    fn load(&self, at: Hpa) -> Option<u64> {
        self.words.get(self.index(at)?).copied()
    }

    fn store(&mut self, at: Hpa, value: u64) -> Option<()> {
        let index = self.index(at)?;
        *self.words.get_mut(index)? = value;
        Some(())
    }

    fn allocate(&mut self) -> Option<Hpa> {
        let count = self.count();
        if count >= self.limit {
            return None;
        }
        self.words.resize((count + 1) * 512, 0);
        self.base.checked_add(count as u64 * PAGE_SIZE)
    }
}

/// What the builder refuses or fails at.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BuildError {
    /// A range that is empty, not a multiple of 4 KiB, or too high for the tables or the host.
    #[error("range {gpa:#x}+{len:#x} to {hpa:#x} is empty, not a multiple of 4 KiB, or too high")]
    BadRange {
        /// First guest-physical address.
        gpa: u64,
        /// Bytes.
        len: u64,
        /// First host-physical address.
        hpa: u64,
    },
    /// A page is there already; nothing above it in the range was mapped.
    #[error("guest address {gpa:#x} is mapped already")]
    Mapped {
        /// The address.
        gpa: u64,
    },
    /// The format cannot express the attributes.
    #[error("the table format cannot express {0:?}")]
    Inexpressible(PageAttributes),
    /// No memory for a table, or a table lies outside it; what was done so far stays.
    #[error("no room for a table of level {level}")]
    NoTable {
        /// Its level.
        level: u8,
    },
    /// An entry that this builder did not write.
    #[error("the entry {entry:#x} of level {level} is malformed")]
    Malformed {
        /// The entry.
        entry: u64,
        /// Its level.
        level: u8,
    },
}

/// What is done to the pages of a range.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// To the address plus `delta`, modulo 2^64.
    Map {
        delta: u64,
        attributes: PageAttributes,
    },
    Unmap,
    Protect(Rights),
    /// To pages of this level at most.
    Split(u8),
}

/// A table and the addresses it covers from `base` on.
#[derive(Clone, Copy, Debug)]
struct Table {
    hpa: Hpa,
    level: u8,
    base: u64,
}

/// Builds the tables of one address space.
#[derive(Debug)]
pub struct StageBuilder<'a, M> {
    format: &'a dyn StageFormat,
    memory: &'a mut M,
}

impl<'a, M: TableMemory> StageBuilder<'a, M> {
    /// A builder of the tables below `format`'s root, which lies in `memory`.
    pub fn new(format: &'a dyn StageFormat, memory: &'a mut M) -> Self {
        StageBuilder { format, memory }
    }

    /// Maps `len` bytes at `gpa` to `hpa`. A 1 GiB or 2 MiB page is used exactly where one fits
    /// the range and both addresses agree modulo its size.
    pub fn map(
        &mut self,
        gpa: Gpa,
        len: u64,
        hpa: Hpa,
        attributes: PageAttributes,
    ) -> Result<(), BuildError> {
        let mask = super::stage::address_mask(self.format.physical_bits());
        let last = hpa.checked_add(len.wrapping_sub(1)).map(|last| last.0);
        if !hpa.is_aligned(PAGE_SIZE) || last.is_none_or(|last| last > mask) {
            return Err(bad(gpa, len, hpa));
        }
        if self.format.page(1, hpa, attributes).is_none() {
            return Err(BuildError::Inexpressible(attributes));
        }
        let delta = hpa.0.wrapping_sub(gpa.0);
        self.apply(gpa, len, Change::Map { delta, attributes })
    }

    /// Makes a hole: nothing is mapped in the range afterwards. Pages that reach out of it are
    /// split.
    pub fn unmap(&mut self, gpa: Gpa, len: u64) -> Result<(), BuildError> {
        self.apply(gpa, len, Change::Unmap)
    }

    /// Gives the pages of the range these rights and nothing else; pages that reach out of it are
    /// split, holes stay.
    pub fn protect(&mut self, gpa: Gpa, len: u64, rights: Rights) -> Result<(), BuildError> {
        let attributes = PageAttributes {
            rights,
            ..PageAttributes::RAM
        };
        if self.format.page(1, Hpa(0), attributes).is_none() {
            return Err(BuildError::Inexpressible(attributes));
        }
        self.apply(gpa, len, Change::Protect(rights))
    }

    /// What a dirty log needs: 4 KiB pages without write access.
    pub fn log_writes(&mut self, gpa: Gpa, len: u64) -> Result<(), BuildError> {
        self.apply(gpa, len, Change::Split(1))?;
        self.protect(gpa, len, Rights::READ_EXECUTE)
    }

    fn geometry(&self) -> Geometry {
        Geometry::long(self.format.levels())
    }

    fn apply(&mut self, gpa: Gpa, len: u64, change: Change) -> Result<(), BuildError> {
        let end = gpa.checked_add(len).map_or(u64::MAX, |end| end.0);
        let room = 1u64 << self.geometry().address_bits();
        if len == 0 || !(gpa.0 | len).is_multiple_of(PAGE_SIZE) || end > room {
            return Err(bad(gpa, len, Hpa(0)));
        }
        let root = Table {
            hpa: self.format.root(),
            level: self.format.levels(),
            base: 0,
        };
        self.table(root, gpa.0, end, change)
    }

    /// Carries out `change` for the part of `first..end` that `table` covers.
    fn table(
        &mut self,
        table: Table,
        first: u64,
        end: u64,
        change: Change,
    ) -> Result<(), BuildError> {
        let span = self.geometry().span(table.level);
        let from = first.saturating_sub(table.base) / span;
        for index in from..ENTRIES {
            let start = table.base + index * span;
            if start >= end {
                break;
            }
            let (low, high) = (first.max(start), end.min(start + span));
            self.entry(table, start, (low, high), change)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        table: Table,
        start: u64,
        part: (u64, u64),
        change: Change,
    ) -> Result<(), BuildError> {
        let level = table.level;
        let span = self.geometry().span(level);
        let at = Hpa(table.hpa.0 + (start - table.base) / span * 8);
        let entry = self.memory.load(at).ok_or(BuildError::NoTable { level })?;
        let whole = part == (start, start + span);
        let decoded = self.format.decode(level, entry);
        let next = match (
            decoded.map_err(|_| BuildError::Malformed { entry, level })?,
            change,
        ) {
            (StageEntry::Table { hpa, .. }, _) => hpa,
            (StageEntry::Absent, Change::Map { delta, attributes }) => {
                let to = Hpa(start.wrapping_add(delta));
                match self.fitting(level, to, attributes).filter(|_| whole) {
                    Some(page) => return self.set(at, level, page),
                    None => self.new_table(at, level)?,
                }
            }
            (StageEntry::Absent, _) => return Ok(()),
            (StageEntry::Page { .. }, Change::Map { .. }) => {
                return Err(BuildError::Mapped { gpa: part.0 });
            }
            (StageEntry::Page { .. }, Change::Split(to)) if level <= to => return Ok(()),
            (StageEntry::Page { .. }, Change::Unmap) if whole => return self.set(at, level, 0),
            (StageEntry::Page { hpa, attributes }, Change::Protect(rights)) if whole => {
                let attributes = PageAttributes {
                    rights,
                    ..attributes
                };
                let page = self.page(level, hpa, attributes)?;
                return self.set(at, level, page);
            }
            (StageEntry::Page { hpa, attributes }, _) => self.split(at, level, hpa, attributes)?,
        };
        let below = Table {
            hpa: next,
            level: level.saturating_sub(1),
            base: start,
        };
        self.table(below, part.0, part.1, change)
    }

    /// The page of `level` at `to`, if one can be there.
    fn fitting(&self, level: u8, to: Hpa, attributes: PageAttributes) -> Option<u64> {
        let fits =
            level <= self.format.largest_page_level() && to.is_aligned(self.geometry().span(level));
        fits.then(|| self.format.page(level, to, attributes))
            .flatten()
    }

    /// Replaces a page by a table of pages of the next lower level that map the same.
    fn split(
        &mut self,
        at: Hpa,
        level: u8,
        page: Hpa,
        attributes: PageAttributes,
    ) -> Result<Hpa, BuildError> {
        let below = level.saturating_sub(1);
        let span = self.geometry().span(below);
        let table = self
            .memory
            .allocate()
            .ok_or(BuildError::NoTable { level: below })?;
        for index in 0..ENTRIES {
            let entry = self.page(below, Hpa(page.0 + index * span), attributes)?;
            self.set(Hpa(table.0 + index * 8), below, entry)?;
        }
        self.set(at, level, self.format.table(table))?;
        Ok(table)
    }

    fn new_table(&mut self, at: Hpa, level: u8) -> Result<Hpa, BuildError> {
        let below = level.saturating_sub(1);
        let table = self
            .memory
            .allocate()
            .ok_or(BuildError::NoTable { level: below })?;
        self.set(at, level, self.format.table(table))?;
        Ok(table)
    }

    fn page(&self, level: u8, hpa: Hpa, attributes: PageAttributes) -> Result<u64, BuildError> {
        let page = self.format.page(level, hpa, attributes);
        page.ok_or(BuildError::Inexpressible(attributes))
    }

    fn set(&mut self, at: Hpa, level: u8, value: u64) -> Result<(), BuildError> {
        self.memory
            .store(at, value)
            .ok_or(BuildError::NoTable { level })
    }
}

fn bad(gpa: Gpa, len: u64, hpa: Hpa) -> BuildError {
    BuildError::BadRange {
        gpa: gpa.0,
        len,
        hpa: hpa.0,
    }
}

#[cfg(test)]
mod tests;
