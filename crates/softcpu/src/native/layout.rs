//! Where things lie. Linear addresses are the same on both sides; each instance has 2 MiB of them
//! below 2 GiB, so that every form of address reaches them.
//!
//! | pages of the instance | native | guest |
//! |---|---|---|
//! | 1-2 | the instruction and jumps to the way out | the instruction and `int3` |
//! | 8-9 | the ways in and out | not present |
//! | 16 | not present | not present |
//! | 17-18 | data | data |
//! | 19 | data, read-only | data, read-only |
//! | 20 | not present | not present |
//! | 21 | data, read-only | data, read-only |
//! | 22 | data | data |
//! | 23 | not present | not present |

pub(crate) const PAGE: u64 = 4096;
/// The linear start of instance 0.
const FIRST: u64 = 0x1000_0000;
/// Bytes of linear addresses an instance has.
pub(crate) const SPAN: u64 = 0x20_0000;
pub(crate) const CODE: u64 = PAGE;
pub(crate) const CODE_PAGES: u64 = 2;
pub(crate) const STUBS: u64 = 8 * PAGE;
pub(crate) const STUB_PAGES: u64 = 2;
pub(crate) const DATA: u64 = 16 * PAGE;
/// Pages from [`DATA`] on, by what may be done with them.
pub(crate) const PAGES: [Rights; 8] = [
    Rights::None,
    Rights::Write,
    Rights::Write,
    Rights::Read,
    Rights::None,
    Rights::Read,
    Rights::Write,
    Rights::None,
];

/// What code at CPL 3 may do with a data page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    None,
    Read,
    Write,
}

/// The linear start of instance `number`.
pub(crate) fn linear(number: u64) -> u64 {
    FIRST + number * SPAN
}

/// What may be done with the page at `offset` of an instance.
pub(crate) fn rights(offset: u64) -> Rights {
    offset
        .checked_sub(DATA)
        .and_then(|inside| PAGES.get((inside / PAGE) as usize))
        .copied()
        .unwrap_or(Rights::None)
}

/// Whether all of `bytes` bytes at `offset` can be used so.
pub(crate) fn allows(offset: u64, bytes: u64, wanted: Rights) -> bool {
    let Some(end) = offset.checked_add(bytes.max(1) - 1) else {
        return false;
    };
    (offset / PAGE..=end / PAGE).all(|page| {
        let there = rights(page * PAGE);
        there == Rights::Write || (there == wanted && wanted == Rights::Read)
    })
}
