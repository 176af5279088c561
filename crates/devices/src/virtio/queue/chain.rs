//! A descriptor chain, taken from the ring as a whole.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};
use vmlet_bus::DmaView;
use vmlet_memory::Iova;

use super::QueueFault;

/// A piece of memory that the driver lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First address, as the device sees memory.
    pub addr: Iova,
    /// Bytes; not zero.
    pub len: u32,
}

/// A chain of buffers: first those to read, then those to write. Copied out of the ring once, so
/// that a driver that changes descriptors later changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    buffers: Vec<Buffer>,
    readable: usize,
    readable_len: u64,
    writable_len: u64,
}

impl Chain {
    /// Follows `found` to its end. Refused: chains that do not end, that are longer than `most`
    /// descriptors or 2^32 bytes (section 2.7.5.2), and readable buffers behind writable ones
    /// (section 2.7.4.2).
    pub(super) fn collect(
        found: DescriptorChain<&DmaView>,
        most: u16,
    ) -> Result<Chain, QueueFault> {
        let head = found.head_index();
        let mut chain = Chain {
            head,
            ..Chain::default()
        };
        // virtio-queue ends a chain where it is damaged; a whole one ends without a next one.
        let (mut ended, mut count) = (false, 0);
        for descriptor in found {
            ended = !descriptor.has_next();
            count += 1;
            if count > most {
                return Err(QueueFault::TooLong { head, most });
            }
            let addr = Iova(descriptor.addr().0);
            let len = descriptor.len();
            chain.add(Buffer { addr, len }, descriptor.is_write_only())?;
        }
        if !ended {
            return Err(QueueFault::Endless { head });
        }
        Ok(chain)
    }

    fn add(&mut self, buffer: Buffer, writable: bool) -> Result<(), QueueFault> {
        let head = self.head;
        if buffer.len == 0 {
            return Ok(());
        }
        let sum = if writable {
            &mut self.writable_len
        } else if self.writable_len > 0 {
            return Err(QueueFault::Order { head });
        } else {
            self.readable += 1;
            &mut self.readable_len
        };
        *sum += u64::from(buffer.len);
        if self.readable_len + self.writable_len > u64::from(u32::MAX) {
            return Err(QueueFault::TooManyBytes { head });
        }
        self.buffers.push(buffer);
        Ok(())
    }

    /// The first descriptor: what [`super::VirtQueue::push`] wants back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The buffers that the device reads.
    pub fn readable(&self) -> &[Buffer] {
        self.buffers.get(..self.readable).unwrap_or_default()
    }

    /// The buffers that the device writes.
    pub fn writable(&self) -> &[Buffer] {
        self.buffers.get(self.readable..).unwrap_or_default()
    }

    /// Bytes to read.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes to write, below 2^32.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Copies readable bytes from `offset` on: as many as there are, at most `data.len()`. An error
    /// where a buffer does not lie in memory.
    pub fn read(&self, view: &DmaView, offset: u64, data: &mut [u8]) -> Result<usize, QueueFault> {
        let mut done = 0;
        for piece in pieces(self.readable(), offset, data.len() as u64) {
            let room = data.get_mut(done..).unwrap_or_default();
            let count = usize::try_from(piece.len).unwrap_or(0).min(room.len());
            let (part, _) = room.split_at_mut(count);
            view.read_slice(part, GuestAddress(piece.addr.0))
                .map_err(|_| QueueFault::Memory)?;
            done += count;
        }
        Ok(done)
    }

    /// Copies `data` to the writable bytes from `offset` on: as many as there is room for.
    pub fn write(&self, view: &DmaView, offset: u64, data: &[u8]) -> Result<usize, QueueFault> {
        let mut done = 0;
        for piece in pieces(self.writable(), offset, data.len() as u64) {
            let rest = data.get(done..).unwrap_or_default();
            let count = usize::try_from(piece.len).unwrap_or(0).min(rest.len());
            let (part, _) = rest.split_at(count);
            view.write_slice(part, GuestAddress(piece.addr.0))
                .map_err(|_| QueueFault::Memory)?;
            done += count;
        }
        Ok(done)
    }

    /// The pieces of the readable bytes `offset..offset + len`.
    pub fn readable_range(&self, offset: u64, len: u64) -> impl Iterator<Item = Buffer> {
        pieces(self.readable(), offset, len)
    }

    /// The pieces of the writable bytes `offset..offset + len`.
    pub fn writable_range(&self, offset: u64, len: u64) -> impl Iterator<Item = Buffer> {
        pieces(self.writable(), offset, len)
    }
}

/// What of `buffers` is at `offset..offset + len` of all of them joined.
fn pieces(buffers: &[Buffer], offset: u64, len: u64) -> impl Iterator<Item = Buffer> {
    let (mut skip, mut left) = (offset, len);
    buffers.iter().filter_map(move |buffer| {
        let there = u64::from(buffer.len);
        let from = skip.min(there);
        skip -= from;
        let count = (there - from).min(left);
        left -= count;
        (count > 0).then_some(Buffer {
            addr: Iova(buffer.addr.0.wrapping_add(from)),
            len: u32::try_from(count).unwrap_or(u32::MAX),
        })
    })
}
