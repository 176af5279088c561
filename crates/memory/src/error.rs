//! The errors of guest memory.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::hugetlb::size_name;

/// What guest memory refuses or fails at. Nothing is changed by an operation that fails.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The host gives no mapping of this size.
    #[error(
        "the host gives no {bytes} bytes of memory (errno {errno}). Ask for less, or raise \
         vm.overcommit_memory or the process's address-space limit"
    )]
    NoMemory {
        /// Bytes asked for.
        bytes: u64,
        /// The error number.
        errno: i32,
        /// The error itself.
        #[source]
        source: io::Error,
    },
    /// The pool of huge pages is too small.
    #[error(
        "{needed} huge pages of {} are needed and {available} of the pool's {total} are free. \
         Write {wanted} to {} and read it back: the host may find fewer",
        size_name(*page_size), control.display()
    )]
    HugePool {
        /// Pages needed.
        needed: u64,
        /// Pages free and not promised to others.
        available: u64,
        /// Pages in the pool.
        total: u64,
        /// Bytes a page.
        page_size: u64,
        /// The pool's size that would do.
        wanted: u64,
        /// The file that sets it.
        control: PathBuf,
    },
    /// The host has no huge pages of this size.
    #[error(
        "the host has no huge pages of {}. It offers {offered}",
        size_name(*page_size)
    )]
    NoHugePages {
        /// Bytes a page.
        page_size: u64,
        /// The sizes there are, for people.
        offered: String,
    },
    /// A size that is no multiple of the huge page size.
    #[error(
        "{len} bytes of memory are not a multiple of {}. Round the memory up",
        size_name(*page_size)
    )]
    NotHugePages {
        /// Bytes asked for.
        len: u64,
        /// Bytes a page.
        page_size: u64,
    },
    /// The file behind RAM cannot be used.
    #[error("the file behind guest memory cannot be used: {call} failed (errno {errno})")]
    File {
        /// The system call.
        call: &'static str,
        /// The error number.
        errno: i32,
        /// The error itself.
        #[source]
        source: io::Error,
    },
    /// A size or address that is not a multiple of 4 KiB, is zero or wraps around.
    #[error("range {gpa:#x}+{len:#x} is empty, not a multiple of 4 KiB, or wraps around")]
    BadRange {
        /// First address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// A range of RAM that the RAM does not have.
    #[error("range {offset:#x}+{len:#x} does not lie in the {size:#x} bytes of this RAM")]
    OutsideRam {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the RAM.
        size: u64,
    },
    /// An access to a guest address that no memory backs.
    #[error("guest address {gpa:#x} is not memory")]
    NotMemory {
        /// The first address that is not backed.
        gpa: u64,
    },
    /// A write to read-only memory.
    #[error("guest address {gpa:#x} is read-only memory")]
    ReadOnly {
        /// The first read-only address.
        gpa: u64,
    },
    /// A mapping where there is one.
    #[error("{gpa:#x}+{len:#x} overlaps the mapping at {other:#x}")]
    Overlap {
        /// First address of the new mapping.
        gpa: u64,
        /// Its bytes.
        len: u64,
        /// First address of the present mapping.
        other: u64,
    },
    /// No mapping starts there with that length.
    #[error("no mapping {gpa:#x}+{len:#x}")]
    NoMapping {
        /// First address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// The engine takes no more memory slots.
    #[error("the map would need {needed} memory slots and the engine takes {max}")]
    TooManySlots {
        /// Slots needed.
        needed: usize,
        /// Slots there are.
        max: usize,
    },
    /// Somebody holds the range.
    #[error("{action} is refused: {holder} holds {offset:#x}+{len:#x} of this RAM ({kind})")]
    Leased {
        /// What was asked for.
        action: &'static str,
        /// Who holds the range.
        holder: String,
        /// What for.
        kind: &'static str,
        /// First byte held.
        offset: u64,
        /// Bytes held.
        len: u64,
    },
    /// A listener of the map refuses a change.
    #[error("{listener} refuses the new memory map: {reason}")]
    Refused {
        /// The listener's name.
        listener: String,
        /// Its reason.
        reason: String,
    },
    /// The engine's dirty log cannot be read.
    #[error("the dirty log of memory slot {slot} cannot be read: {reason}")]
    DirtyLog {
        /// Slot number.
        slot: u32,
        /// Why.
        reason: String,
    },
    /// The memory belongs to the process that made it, and this is its forked child.
    #[error("this memory belongs to the process that made it, not to its forked child")]
    Forked,
}

impl MemoryError {
    pub(crate) fn file(call: &'static str) -> Self {
        let source = io::Error::last_os_error();
        MemoryError::File {
            call,
            errno: source.raw_os_error().unwrap_or(0),
            source,
        }
    }

    pub(crate) fn no_memory(bytes: u64) -> Self {
        let source = io::Error::last_os_error();
        MemoryError::NoMemory {
            bytes,
            errno: source.raw_os_error().unwrap_or(0),
            source,
        }
    }
}
