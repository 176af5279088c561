//! Bytes that can be read and written.

use std::{fmt::Debug, io, ops::Range};

use super::{GuestIo, RawImage};

/// Bytes that are copied at once.
pub(super) const PIECE: usize = 64 << 10;

/// An image of a disk. Calls come from any thread, several at once. Offsets and lengths are multiples
/// of 512 inside the image: who calls has checked that.
pub trait Image: Send + Sync + Debug {
    /// Bytes; a multiple of 512, and the same at every call.
    fn len(&self) -> u64;

    /// Never.
    fn is_empty(&self) -> bool {
        false
    }

    /// It cannot be written.
    fn is_readonly(&self) -> bool;

    /// Bytes of a block that is written without being read first.
    fn block_size(&self) -> u32 {
        512
    }

    /// Reads all of `to`.
    fn read(&self, offset: u64, to: &GuestIo) -> io::Result<()>;

    /// Reads `data`.
    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Reads `part` of `to`.
    fn read_part(&self, offset: u64, to: &GuestIo, part: Range<u64>) -> io::Result<()> {
        let mut at = part.start;
        let mut bytes = vec![0; PIECE];
        while at < part.end {
            let len = usize::try_from(part.end - at).map_or(PIECE, |len| len.min(PIECE));
            let piece = bytes.get_mut(..len).unwrap_or_default();
            self.read_bytes(offset + (at - part.start), piece)?;
            to.fill(at, piece);
            at += len as u64;
        }
        Ok(())
    }

    /// Writes all of `from`.
    fn write(&self, offset: u64, from: &GuestIo) -> io::Result<()>;

    /// What was written before is on the medium when this returns.
    fn flush(&self) -> io::Result<()>;

    /// The bytes are not needed any more: what they read as is not said. An image that can do nothing
    /// does nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The bytes read as zeros; with `unmap` they may lose their place on the medium.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Nobody asks for anything more: what the image keeps in memory is written, and others may use
    /// it. May come twice.
    fn close(&self) -> io::Result<()>;

    /// The file itself, where requests can go straight to it.
    fn raw(&self) -> Option<&RawImage> {
        None
    }
}
