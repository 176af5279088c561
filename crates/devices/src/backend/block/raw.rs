//! A file or block device as it is.

//!
//! Invariant: what the system calls here get is an open file, and for statx a place of its own.

#![expect(unsafe_code, reason = "fallocate and statx have no safe wrapper")]

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use super::{
    GuestIo, Image,
    direct::{Alignment, Bounce},
};

/// Zeros written at once where the file knows no better way.
const ZEROS: usize = 64 << 10;

/// A file or block device as it is.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    len: u64,
    readonly: bool,
    /// What direct I/O wants; `None` through the page cache.
    direct: Option<Alignment>,
    bounce: Bounce,
}

impl RawImage {
    /// `len` bytes of `file`; `direct`: it was opened past the page cache.
    pub fn new(file: File, len: u64, readonly: bool, direct: bool) -> RawImage {
        let direct = direct.then(|| Alignment::of(&file));
        RawImage {
            file,
            len,
            readonly,
            direct,
            bounce: Bounce::default(),
        }
    }

    /// The file, where `io` and `offset` suit it as they are.
    pub(super) fn takes(&self, offset: u64, io: &GuestIo) -> Option<&File> {
        let suits = self.direct.is_none_or(|direct| direct.suits(offset, io));
        suits.then_some(&self.file)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let place = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        let (offset, len) = (place(offset)?, place(len)?);
        loop {
            // SAFETY: changes the file alone.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.bounce
            .zeros(&self.file, self.direct, offset, len, ZEROS)
    }
}

/// What the kernel says that direct I/O on `file` wants: bytes that addresses, and that offsets and
/// lengths, are multiples of. `None` where it does not say.
pub(super) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let (fd, path) = (file.as_raw_fd(), c"".as_ptr());
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    // SAFETY: the path is a C string, and the kernel fills a place of the right type.
    let done = unsafe { libc::statx(fd, path, flags, mask, found.as_mut_ptr()) };
    // SAFETY: all bits of the structure are numbers, set to zero before.
    let found = unsafe { found.assume_init() };
    let known = done == 0 && found.stx_mask & mask != 0 && found.stx_dio_mem_align > 0;
    known.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align))
}

/// Whether the file cannot do that at all.
fn unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL)
    )
}

impl Image for RawImage {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_readonly(&self) -> bool {
        self.readonly
    }

    fn block_size(&self) -> u32 {
        self.direct.map_or(512, Alignment::block)
    }

    fn read(&self, offset: u64, to: &GuestIo) -> io::Result<()> {
        match (self.takes(offset, to), self.direct) {
            (None, Some(direct)) => self.bounce.read(&self.file, direct, offset, to),
            _ => to.read_from(0..to.len(), &self.file, offset),
        }
    }

    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match self.direct {
            Some(direct) => self.bounce.read_bytes(&self.file, direct, offset, data),
            None => self.file.read_exact_at(data, offset),
        }
    }

    fn read_part(&self, offset: u64, to: &GuestIo, part: Range<u64>) -> io::Result<()> {
        match self.direct {
            Some(direct) => {
                let mut bytes = vec![0; usize::try_from(part.end - part.start).unwrap_or(0)];
                self.bounce
                    .read_bytes(&self.file, direct, offset, &mut bytes)?;
                to.fill(part.start, &bytes);
                Ok(())
            }
            None => to.read_from(part, &self.file, offset),
        }
    }

    fn write(&self, offset: u64, from: &GuestIo) -> io::Result<()> {
        match (self.takes(offset, from), self.direct) {
            (None, Some(direct)) => self.bounce.write(&self.file, direct, offset, from),
            _ => from.write_to(0..from.len(), &self.file, offset),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match self.allocate(mode, offset, len) {
            Err(error) if unknown(&error) => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let kind = if unmap {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        match self.allocate(kind | libc::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(error) if unknown(&error) => self.write_zero_bytes(offset, len),
            done => done,
        }
    }

    fn close(&self) -> io::Result<()> {
        // A file system without locks has none to let go of.
        let _ = self.file.unlock();
        Ok(())
    }

    fn raw(&self) -> Option<&RawImage> {
        Some(self)
    }
}
