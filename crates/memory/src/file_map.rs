//! A file's content as bytes, without a copy.
//!
//! # Safety of what is here
//!
//! A mapping is private and only read. Its bytes stay what they are as long as nobody writes to the
//! file in place or cuts it: [`FileMap::new`] is for files that are replaced, never changed. A page
//! that is gone when it is touched ends the process by SIGBUS.

#![expect(unsafe_code, reason = "maps files and lends their bytes")]

use std::{
    fs::File,
    io,
    ops::Deref,
    os::fd::AsRawFd,
    ptr::{self, NonNull},
    slice,
};

/// A range of a file, mapped to be read.
#[derive(Debug)]
pub struct FileMap {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is valid from every thread and only read.
unsafe impl Send for FileMap {}
// SAFETY: as above.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps `len` bytes of `file` from `offset` on, a multiple of 4 KiB, all of them at once. The
    /// range has to lie in the file, and nobody may write there.
    pub fn new(file: &File, offset: u64, len: usize) -> io::Result<FileMap> {
        FileMap::map(file, offset, len, libc::MAP_POPULATE)
    }

    /// The same, of which little will be read.
    pub fn lazy(file: &File, offset: u64, len: usize) -> io::Result<FileMap> {
        FileMap::map(file, offset, len, 0)
    }

    fn map(file: &File, offset: u64, len: usize, flags: libc::c_int) -> io::Result<FileMap> {
        let end = offset.checked_add(len as u64);
        if len == 0 || end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if end > Some(file.metadata()?.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, fd) = (libc::MAP_PRIVATE | flags, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice; `offset` fits its type.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ,
                kind,
                fd,
                offset as i64,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(FileMap { base, len })
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` bytes, lives as long as `self` and is not written.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody borrows any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_part_of_a_file_is_seen_and_what_it_has_not_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.write_all(b"behind").unwrap();
        assert_eq!(&*FileMap::new(&file, 4096, 6).unwrap(), b"behind");
        for (offset, len) in [(4096, 7), (0, 0), (1, 5), (u64::MAX, 2), (0, usize::MAX)] {
            assert!(FileMap::new(&file, offset, len).is_err(), "{offset} {len}");
        }
    }
}
