//! Memory for host code.
//!
//! Invariant: the pages of one memfd are mapped twice, once to be written and once to be executed,
//! never both through one mapping. Both mappings live as long as the value and are used by nobody
//! else; the machine code in them is that of `stubs.rs` and `emit/`, written before its address is
//! given out. It is entered as a `Step` (`Code::step`) by the vCPU that owns it, whose blocks and
//! links keep the invariant of `dispatch.rs`, and reaches guest memory by entries of the soft TLB
//! only, as `tlb.rs` has it. A child of `fork` has neither mapping.

#![expect(unsafe_code, reason = "maps memory for host code and enters it")]

use std::{
    fs::File,
    os::fd::{AsRawFd, FromRawFd},
    ptr,
};

use crate::dispatch::Step;

/// Room for host code of one vCPU.
const BYTES: usize = 8 << 20;

/// One mapping.
#[derive(Debug)]
struct Mapping(*mut u8);

// SAFETY: memory that only the owner uses.
unsafe impl Send for Mapping {}
// SAFETY: nothing is changed through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, protection: i32) -> Option<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                BYTES,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return None;
        }
        let mapping = Mapping(at.cast());
        // SAFETY: the mapping just made.
        let alone = unsafe { libc::madvise(at, BYTES, libc::MADV_DONTFORK) };
        (alone == 0).then_some(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; nobody uses it any more.
        unsafe { libc::munmap(self.0.cast(), BYTES) };
    }
}

/// Host code, filled from the start on.
#[derive(Debug)]
pub(super) struct Code {
    writable: Mapping,
    executable: Mapping,
    used: usize,
}

impl Code {
    /// Nothing where the host does not allow it.
    pub(super) fn new() -> Option<Code> {
        // SAFETY: a constant name; the result is checked.
        let fd = unsafe { libc::memfd_create(c"vmlet-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a descriptor just made that nobody else has.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(BYTES as u64).ok()?;
        Some(Code {
            writable: Mapping::new(&file, libc::PROT_READ | libc::PROT_WRITE)?,
            executable: Mapping::new(&file, libc::PROT_READ | libc::PROT_EXEC)?,
            used: 0,
        })
    }

    /// The address of what comes next.
    pub(super) fn next(&self) -> u64 {
        (self.executable.0.addr() + self.used) as u64
    }

    /// Puts code at [`Code::next`], if there is room.
    pub(super) fn push(&mut self, code: &[u8]) -> bool {
        let Some(end) = self
            .used
            .checked_add(code.len())
            .filter(|end| *end <= BYTES)
        else {
            return false;
        };
        // SAFETY: within the mapping, whose unused part nobody executes.
        unsafe {
            let to = self.writable.0.add(self.used);
            ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        // The next one begins on a line of its own.
        self.used = end.next_multiple_of(64).min(BYTES);
        true
    }

    /// Drops what lies behind the first `kept` bytes; nobody may be in it.
    pub(super) fn cut(&mut self, kept: u64) {
        self.used = (kept as usize).saturating_sub(self.executable.0.addr());
    }

    /// The step whose code is at `address`.
    pub(super) fn step(&self, address: u64) -> Step {
        let offset = (address as usize).wrapping_sub(self.executable.0.addr());
        let at = self.executable.0.wrapping_add(offset);
        // SAFETY: the module's invariant: `stubs.rs` made it as a function of this type.
        unsafe { std::mem::transmute::<*mut u8, Step>(at) }
    }
}
