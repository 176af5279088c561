//! Where the boot protocols' own tables lie, and where there is room for the rest.

use crate::{BootError, BootRequest, Load, MemoryKind};

pub(crate) const GDT: u64 = 0x500;
pub(crate) const START_INFO: u64 = 0x6000;
pub(crate) const ZERO_PAGE: u64 = 0x7000;
pub(crate) const STACK: u64 = 0x8ff0;
pub(crate) const PAGE_TABLES: u64 = 0x9000;
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The end of all of the above.
pub(crate) const END: u64 = 0x3_0000;
/// Bytes there are for a command line with its NUL.
pub(crate) const COMMAND_LINE_ROOM: usize = 0x1_0000;

const PAGE: u64 = 4096;
/// The end of what [`identity_tables`] map.
const REACH: u64 = 1 << 32;

/// Flat descriptors: null, null, code (0x10), data (0x18), task (0x20).
pub(crate) fn gdt(code: u64) -> Load<'static> {
    let entries = [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
    load(GDT, entries.map(u64::to_le_bytes).concat())
}

/// Limit of the table of [`gdt`].
pub(crate) const GDT_LIMIT: u16 = 5 * 8 - 1;
/// A 64-bit code segment.
pub(crate) const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// A 32-bit code segment.
pub(crate) const CODE32: u64 = 0x00cf_9b00_0000_ffff;

/// Tables that map the first 4 GiB one to one with 2 MiB pages.
pub(crate) fn identity_tables() -> Load<'static> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let mut words = vec![0u64; 512 * 2];
    let directories = PAGE_TABLES + 2 * PAGE;
    let mut set = |index: usize, value: u64| {
        if let Some(word) = words.get_mut(index) {
            *word = value;
        }
    };
    set(0, (PAGE_TABLES + PAGE) | PRESENT_WRITABLE);
    for (index, table) in (0..4).enumerate() {
        set(512 + index, (directories + table * PAGE) | PRESENT_WRITABLE);
    }
    words.extend((0..4 * 512).map(|page: u64| (page << 21) | LARGE | PRESENT_WRITABLE));
    load(
        PAGE_TABLES,
        words.iter().flat_map(|word| word.to_le_bytes()).collect(),
    )
}

/// The command line, ended by NUL.
pub(crate) fn command_line(cmdline: &str, max: usize) -> Result<Load<'static>, BootError> {
    let max = max.min(COMMAND_LINE_ROOM - 1);
    if cmdline.len() > max {
        return Err(BootError::CommandLineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    Ok(load(COMMAND_LINE, [cmdline.as_bytes(), b"\0"].concat()))
}

/// Bytes at an address.
pub(crate) fn load(gpa: u64, bytes: Vec<u8>) -> Load<'static> {
    Load {
        gpa,
        bytes: bytes.into(),
        zeros: 0,
    }
}

/// Refuses a part of the image that is not in RAM or lies on the protocol's tables.
pub(crate) fn check(
    request: &BootRequest<'_>,
    what: &'static str,
    gpa: u64,
    len: u64,
) -> Result<(), BootError> {
    let end = gpa
        .checked_add(len)
        .ok_or(BootError::OutsideRam { what, gpa, len })?;
    let inside = |m: &&crate::MemoryRange| {
        m.kind == MemoryKind::Ram && m.gpa <= gpa && end <= m.gpa.saturating_add(m.len)
    };
    if request.memory.iter().find(inside).is_none() {
        return Err(BootError::OutsideRam { what, gpa, len });
    }
    if gpa < END && end > GDT {
        return Err(BootError::Overlap { what, gpa, len });
    }
    Ok(())
}

/// Checks every load of a kernel. Loads that overlap are refused: what is loaded is bounded by the
/// guest's memory this way.
pub(crate) fn check_all(request: &BootRequest<'_>, loads: &[Load<'_>]) -> Result<(), BootError> {
    let what = "a part of the kernel";
    let mut ranges = Vec::new();
    for load in loads {
        let len = (load.bytes.len() as u64).saturating_add(load.zeros);
        check(request, what, load.gpa, len)?;
        ranges.push((load.gpa, len));
    }
    ranges.sort_unstable();
    for ((low, low_len), (gpa, len)) in ranges.iter().zip(ranges.iter().skip(1)) {
        if low + low_len > *gpa {
            let (gpa, len) = (*gpa, *len);
            return Err(BootError::Overlap { what, gpa, len });
        }
    }
    Ok(())
}

/// Checks an entry point: in RAM, and where the first page tables and 32-bit segments reach.
pub(crate) fn check_entry(request: &BootRequest<'_>, gpa: u64) -> Result<(), BootError> {
    check(request, "the kernel's entry point", gpa, 1)?;
    if gpa < REACH {
        Ok(())
    } else {
        Err(BootError::EntryTooHigh { gpa })
    }
}

/// The highest page-aligned place for `len` bytes in RAM above `floor` that ends at or below
/// `limit`.
pub(crate) fn place(
    request: &BootRequest<'_>,
    what: &'static str,
    len: u64,
    floor: u64,
    limit: u64,
) -> Result<u64, BootError> {
    let mut room = 0;
    for range in request
        .memory
        .iter()
        .rev()
        .filter(|m| m.kind == MemoryKind::Ram)
    {
        let start = range.gpa.max(floor).max(END).next_multiple_of(PAGE);
        let end = range.gpa.saturating_add(range.len).min(limit);
        let free = end.saturating_sub(start);
        room = room.max(free);
        if len <= free {
            return Ok((end - len) & !(PAGE - 1)).map(|at| at.max(start));
        }
    }
    Err(BootError::NoRoom {
        what,
        len,
        room,
        limit,
    })
}
