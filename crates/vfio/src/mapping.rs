//! Parts of a device's regions in this process.
//!
//! Invariant: `base..base + len` is a mapping that its [`RegionMap`] made and alone unmaps, in the
//! process that made it. The device may change its bytes at any time, so no Rust reference is ever
//! formed over them. Once severed, and in a forked child, the same addresses hold private pages of
//! zeros, so that who still looks there finds nothing instead of being killed.

#![expect(unsafe_code, reason = "maps a device's registers")]

use std::{fs::File, io, ops::Range, os::fd::AsRawFd, ptr};

use vmlet_memory::fork::{self, Origin, Watch};

/// Registers of a device, mapped.
#[derive(Debug)]
pub struct RegionMap {
    base: *mut u8,
    len: usize,
    index: u32,
    range: Range<u64>,
    origin: Origin,
    _hole: Option<Watch>,
}

// SAFETY: the mapping is valid from every thread; nobody forms references over it.
unsafe impl Send for RegionMap {}
// SAFETY: as above.
unsafe impl Sync for RegionMap {}

impl RegionMap {
    /// Maps `len` bytes at `at` of the device's file, which are `range` of region `index`.
    pub(crate) fn new(
        device: &File,
        at: u64,
        index: u32,
        range: Range<u64>,
    ) -> io::Result<RegionMap> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = range.end.checked_sub(range.start).ok_or_else(invalid)?;
        let len = usize::try_from(len).map_err(|_| invalid())?;
        let at = i64::try_from(at).map_err(|_| invalid())?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = device.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, fd, at) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advises on the mapping made above.
        unsafe { libc::madvise(base, len, libc::MADV_DONTFORK) };
        Ok(RegionMap {
            base: base.cast(),
            len,
            index,
            range,
            origin: Origin::here(),
            _hole: fork::watch_hole(base.expose_provenance(), len),
        })
    }

    /// The region.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What part of the region it is.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Where it lies in this process, for a view that keeps `self` alive. The bytes may change at
    /// any time; reads and writes may have effects, and are registers' once the device is closed no
    /// longer: they read as zeros then.
    pub fn address(&self) -> *mut u8 {
        self.base
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts pages of zeros in the registers' place: the device's file is not held any more.
    pub(crate) fn sever(&self) {
        if !self.origin.is_here() {
            return;
        }
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: replaces our own mapping; who holds its address finds memory there as before.
        let done = unsafe { libc::mmap(self.base.cast(), self.len, access, kind, -1, 0) };
        if done == libc::MAP_FAILED {
            log::warn!(
                "a device's registers stay mapped: {}",
                io::Error::last_os_error()
            );
        }
    }
}

impl Drop for RegionMap {
    fn drop(&mut self) {
        if self.origin.is_here() {
            // SAFETY: our own mapping, which nobody uses any more.
            unsafe { libc::munmap(self.base.cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_severed_map_reads_as_zeros_and_leaves_the_file_alone() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let map = RegionMap::new(&file, 4096, 0, 0..4096).unwrap();
        // SAFETY: inside of the mapping.
        let first = || unsafe { map.address().read_volatile() };
        assert_eq!((first(), map.len()), (7, 4096));
        map.sever();
        assert_eq!(first(), 0);
        // SAFETY: inside of the mapping, which is private memory now.
        unsafe { map.address().write_volatile(9) };
        let mut bytes = [0];
        std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 4096).unwrap();
        assert_eq!(bytes, [7]);
    }
}
