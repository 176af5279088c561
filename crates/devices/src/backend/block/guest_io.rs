//! Pieces of guest memory that a request reads or writes in place.
//!
//! Invariant: every piece lies in RAM that a lease of the same value keeps mapped, at an address of
//! [`vmlet_memory::Ram::address_of`]. The guest may change the bytes at any time, so no reference is
//! formed over them: they go to the kernel as they are, or are copied through raw pointers.

#![expect(
    unsafe_code,
    reason = "hands guest memory to the kernel, and copies it"
)]

use std::{fs::File, io, ops::Range, os::fd::AsRawFd, ptr, sync::Arc};

use libc::{c_int, iovec};
use vmlet_bus::DmaView;
use vmlet_memory::{IoLease, Iova, Ram};

use crate::virtio::Buffer;

/// Pieces that one system call takes (`IOV_MAX`).
const MOST_PIECES: usize = 1024;

/// Whose leases these are.
const HOLDER: &str = "a disk's request";

/// Pieces of guest memory, held for one request.
pub struct GuestIo {
    pieces: Vec<iovec>,
    len: u64,
    _leases: Vec<IoLease>,
}

// SAFETY: the addresses are valid in every thread as long as the leases live.
unsafe impl Send for GuestIo {}
// SAFETY: as above; nothing is changed through a shared reference but guest memory.
unsafe impl Sync for GuestIo {}

impl std::fmt::Debug for GuestIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestIo")
            .field("pieces", &self.pieces.len())
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Pieces by the RAM they are in.
#[derive(Default)]
struct Places(Vec<(Arc<Ram>, Vec<Range<u64>>)>);

impl Places {
    fn add(&mut self, ram: &Arc<Ram>, range: Range<u64>) {
        match self.0.last_mut() {
            Some((last, ranges)) if Arc::ptr_eq(last, ram) => match ranges.last_mut() {
                Some(before) if before.end == range.start => before.end = range.end,
                _ => ranges.push(range),
            },
            _ => self.0.push((Arc::clone(ram), vec![range])),
        }
    }
}

impl GuestIo {
    /// No memory, for requests that move none.
    pub fn none() -> GuestIo {
        GuestIo {
            pieces: Vec::new(),
            len: 0,
            _leases: Vec::new(),
        }
    }

    /// Holds what `buffers` name; `write`: the request writes to them. `None` where a part is not
    /// memory that can be used so.
    pub fn hold(
        view: &DmaView,
        buffers: impl Iterator<Item = Buffer>,
        write: bool,
    ) -> Option<GuestIo> {
        let (mut pieces, mut len, mut places) = (Vec::<iovec>::new(), 0, Places::default());
        for buffer in buffers {
            let (mut at, mut left) = (buffer.addr.0, u64::from(buffer.len));
            while left > 0 {
                let piece = view.translate(Iova(at), left, write).ok()?;
                let (ram, offset, there) = view.memory().find(piece.gpa, write)?;
                let count = piece.len.min(left).min(there);
                let base = ram.address_of(offset, count).ok()?;
                push(&mut pieces, base, usize::try_from(count).ok()?);
                places.add(ram, offset..offset.checked_add(count)?);
                at = at.wrapping_add(count);
                (left, len) = (left.checked_sub(count)?, len + count);
            }
        }
        let leases = places.0.into_iter();
        let leases = leases.map(|(ram, ranges)| ram.lease_io(ranges, write, HOLDER).ok());
        Some(GuestIo {
            pieces,
            len,
            _leases: leases.collect::<Option<_>>()?,
        })
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// There are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces for the kernel; they stay where they are as long as this value is not changed.
    pub(super) fn pieces(&self) -> &[iovec] {
        self.pieces.get(..MOST_PIECES).unwrap_or(&self.pieces)
    }

    /// Whether every piece begins at a multiple of `address` and has a multiple of `len` bytes,
    /// powers of two.
    pub(super) fn is_aligned(&self, address: u32, len: u32) -> bool {
        let is_multiple = |value: usize, of: u32| value as u64 & u64::from(of.wrapping_sub(1)) == 0;
        self.pieces.iter().all(|piece| {
            is_multiple(piece.iov_base.addr(), address) && is_multiple(piece.iov_len, len)
        })
    }

    /// Forgets the first `count` bytes, which are done.
    pub(super) fn advance(&mut self, count: u64) {
        let mut left = usize::try_from(count.min(self.len)).unwrap_or(0);
        self.len -= left as u64;
        let mut whole = 0;
        for piece in &mut self.pieces {
            let part = left.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(part);
            piece.iov_len -= part;
            left -= part;
            whole += usize::from(piece.iov_len == 0);
        }
        self.pieces.drain(..whole.min(self.pieces.len()));
    }

    /// The pieces of the bytes `range`.
    fn pieces_at(&self, range: Range<u64>) -> Vec<iovec> {
        let (mut skip, mut left) = (range.start, range.end.saturating_sub(range.start));
        let mut found = Vec::new();
        for piece in &self.pieces {
            let there = piece.iov_len as u64;
            let from = skip.min(there);
            skip -= from;
            let count = (there - from).min(left);
            left -= count;
            if count > 0 {
                let (from, count) = (usize::try_from(from), usize::try_from(count));
                let base = piece.iov_base.wrapping_byte_add(from.unwrap_or(0));
                push(&mut found, base.cast(), count.unwrap_or(0));
            }
        }
        found
    }

    /// Reads all bytes of `range` from `offset` of `file`; a file that ends earlier is an error.
    pub(super) fn read_from(&self, range: Range<u64>, file: &File, offset: u64) -> io::Result<()> {
        self.transfer(range, offset, &|pieces, count, at| {
            // SAFETY: the pieces are writable memory that the leases keep mapped.
            unsafe { libc::preadv(file.as_raw_fd(), pieces, count, at) }
        })
    }

    /// Writes all bytes of `range` to `offset` of `file`.
    pub(super) fn write_to(&self, range: Range<u64>, file: &File, offset: u64) -> io::Result<()> {
        self.transfer(range, offset, &|pieces, count, at| {
            // SAFETY: the pieces are readable memory that the leases keep mapped.
            unsafe { libc::pwritev(file.as_raw_fd(), pieces, count, at) }
        })
    }

    fn transfer(
        &self,
        range: Range<u64>,
        mut offset: u64,
        call: &dyn Fn(*const iovec, c_int, i64) -> isize,
    ) -> io::Result<()> {
        let (mut at, end) = (range.start, range.end);
        while at < end {
            let pieces = self.pieces_at(at..end);
            let count = c_int::try_from(pieces.len().min(MOST_PIECES)).unwrap_or(0);
            let place = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            match call(pieces.as_ptr(), count, place) {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                done if done > 0 => {
                    at += done.unsigned_abs() as u64;
                    offset += done.unsigned_abs() as u64;
                }
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Copies `data` to the bytes from `at` on.
    pub fn fill(&self, at: u64, data: &[u8]) {
        let mut done = 0;
        for piece in self.pieces_at(at..at.saturating_add(data.len() as u64)) {
            let part = data.get(done..).unwrap_or_default();
            let count = piece.iov_len.min(part.len());
            // SAFETY: `count` bytes are readable in `part` and writable at the piece, which the
            // leases keep mapped; memory of the guest never overlaps a buffer of ours.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), piece.iov_base.cast(), count) };
            done += count;
        }
    }

    /// Copies the bytes from `at` on to `data`.
    pub fn copy(&self, at: u64, data: &mut [u8]) {
        let mut done = 0;
        for piece in self.pieces_at(at..at.saturating_add(data.len() as u64)) {
            let part = data.get_mut(done..).unwrap_or_default();
            let count = piece.iov_len.min(part.len());
            // SAFETY: as in `fill`, the other way.
            unsafe {
                ptr::copy_nonoverlapping(piece.iov_base.cast(), part.as_mut_ptr(), count);
            };
            done += count;
        }
    }
}

/// Adds a piece, joined to the last one where it goes on there.
fn push(pieces: &mut Vec<iovec>, base: *mut u8, len: usize) {
    if let Some(last) = pieces.last_mut()
        && last.iov_base.wrapping_byte_add(last.iov_len).addr() == base.addr()
    {
        last.iov_len += len;
        return;
    }
    pieces.push(iovec {
        iov_base: base.cast(),
        iov_len: len,
    });
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::virtio::testing::{BUFFERS, MEMORY, dma};

    fn buffers(list: &[(u64, u32)]) -> impl Iterator<Item = Buffer> {
        let buffer = |&(addr, len)| Buffer {
            addr: Iova(addr),
            len,
        };
        list.iter().map(buffer).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn files_are_read_and_written_in_place() {
        let dma = dma();
        dma.write(Iova(BUFFERS), b"abcdef").unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let from = GuestIo::hold(
            &dma.view(),
            buffers(&[(BUFFERS, 2), (BUFFERS + 3, 3)]),
            false,
        );
        from.unwrap().write_to(0..5, &file, 1).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\0abdef");
        let to = GuestIo::hold(&dma.view(), buffers(&[(MEMORY - 4, 4)]), true).unwrap();
        to.read_from(1..4, &file, 3).unwrap();
        let mut data = [0; 4];
        dma.read(Iova(MEMORY - 4), &mut data).unwrap();
        assert_eq!(&data, b"\0def");
    }

    #[test]
    fn a_file_that_ends_is_an_error() {
        let dma = dma();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let io = GuestIo::hold(&dma.view(), buffers(&[(BUFFERS, 4)]), true).unwrap();
        let error = io.read_from(0..4, &file, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_not_memory_is_not_held() {
        let view = dma().view();
        for wrong in [(MEMORY, 1), (MEMORY - 1, 2), (u64::MAX, 1), (u64::MAX, 2)] {
            assert!(
                GuestIo::hold(&view, buffers(&[wrong]), true).is_none(),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn memory_that_is_held_cannot_be_discarded() {
        let dma = dma();
        let view = dma.view();
        let (ram, ..) = view.memory().find(vmlet_memory::Gpa(0), true).unwrap();
        let io = GuestIo::hold(&view, buffers(&[(BUFFERS, 4)]), true).unwrap();
        assert!(
            ram.check_unleased(BUFFERS..BUFFERS + 1, "discarding")
                .is_err()
        );
        assert!(
            ram.check_unleased(BUFFERS + 4..MEMORY, "discarding")
                .is_ok()
        );
        drop(io);
        assert!(ram.check_unleased(0..MEMORY, "discarding").is_ok());
    }

    #[test]
    fn bytes_that_are_done_are_forgotten() {
        let dma = dma();
        dma.write(Iova(BUFFERS), b"abcdef").unwrap();
        let list = [(BUFFERS, 2), (BUFFERS + 3, 3)];
        for (done, rest) in [
            (0, "abdef"),
            (1, "bdef"),
            (2, "def"),
            (4, "f"),
            (5, ""),
            (9, ""),
        ] {
            let mut io = GuestIo::hold(&dma.view(), buffers(&list), false).unwrap();
            io.advance(done);
            let mut data = vec![0; rest.len()];
            io.copy(0, &mut data);
            assert_eq!((io.len(), &*data), (rest.len() as u64, rest.as_bytes()));
            assert_eq!(
                io.pieces().iter().map(|p| p.iov_len).sum::<usize>(),
                rest.len()
            );
        }
    }
}
