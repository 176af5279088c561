//! Direct I/O: what it wants of addresses and lengths, and what is done with requests that do not
//! suit it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use super::{GuestIo, raw};

/// What a file's direct I/O wants, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    memory: u32,
    block: u32,
}

/// What suits every file.
const CAREFUL: u32 = 4096;

impl Alignment {
    /// Asks the kernel about `file`; where that does not say, whole pages.
    pub(super) fn of(file: &File) -> Alignment {
        let asked = raw::direct_alignment(file);
        let (memory, block) = asked.unwrap_or((CAREFUL, CAREFUL));
        let sound = |value: u32| value.is_power_of_two() && (1..=CAREFUL).contains(&value);
        if sound(memory) && sound(block) {
            let block = block.max(512);
            Alignment { memory, block }
        } else {
            Alignment {
                memory: CAREFUL,
                block: CAREFUL,
            }
        }
    }

    pub(super) fn block(self) -> u32 {
        self.block
    }

    pub(super) fn suits(self, offset: u64, io: &GuestIo) -> bool {
        let whole = (offset | io.len()).is_multiple_of(u64::from(self.block));
        whole && io.is_aligned(self.memory, self.block)
    }

    /// The whole blocks around a range.
    fn around(self, offset: u64, len: u64) -> (u64, u64) {
        let block = u64::from(self.block);
        let start = offset - offset % block;
        (start, (offset + len).next_multiple_of(block) - start)
    }
}

/// Requests that go through memory of our own.
#[derive(Debug, Default)]
pub(super) struct Bounce {
    /// Blocks that are written in part are read first: one at a time.
    partly: Mutex<()>,
}

/// Memory that begins at a multiple of [`CAREFUL`].
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: u64) -> Aligned {
        let len = usize::try_from(len).unwrap_or(0);
        let bytes = vec![0; len + CAREFUL as usize];
        let start = bytes.as_ptr().align_offset(CAREFUL as usize);
        Aligned { bytes, start, len }
    }

    fn get(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl Bounce {
    pub(super) fn read(
        &self,
        file: &File,
        direct: Alignment,
        offset: u64,
        to: &GuestIo,
    ) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(to.len()).unwrap_or(0)];
        self.read_bytes(file, direct, offset, &mut bytes)?;
        to.fill(0, &bytes);
        Ok(())
    }

    pub(super) fn read_bytes(
        &self,
        file: &File,
        direct: Alignment,
        offset: u64,
        data: &mut [u8],
    ) -> io::Result<()> {
        let len = data.len() as u64;
        let (start, whole) = direct.around(offset, len);
        let mut memory = Aligned::new(whole);
        file.read_exact_at(memory.get(), start)?;
        data.copy_from_slice(part(memory.get(), offset - start, len));
        Ok(())
    }

    pub(super) fn write(
        &self,
        file: &File,
        direct: Alignment,
        offset: u64,
        from: &GuestIo,
    ) -> io::Result<()> {
        if direct.around(offset, from.len()) != (offset, from.len()) {
            let change = |bytes: &mut [u8]| from.copy(0, bytes);
            return self.patch(file, direct, offset, from.len(), change);
        }
        let mut memory = Aligned::new(from.len());
        from.copy(0, memory.get());
        file.write_all_at(memory.get(), offset)
    }

    /// Writes zeros, `most` bytes at once.
    pub(super) fn zeros(
        &self,
        file: &File,
        direct: Option<Alignment>,
        offset: u64,
        len: u64,
        most: usize,
    ) -> io::Result<()> {
        let block = u64::from(direct.map_or(512, Alignment::block));
        let mut memory = Aligned::new(most as u64);
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (within, left) = (at % block, end - at);
            let count = match direct {
                Some(direct) if within != 0 || left < block => {
                    let count = (block - within).min(left);
                    self.patch(file, direct, at, count, |bytes| bytes.fill(0))?;
                    count
                }
                _ => {
                    let count = left.min(most as u64);
                    let count = count - count % block;
                    file.write_all_at(part(memory.get(), 0, count), at)?;
                    count
                }
            };
            at += count;
        }
        Ok(())
    }

    /// Changes a part of whole blocks.
    fn patch(
        &self,
        file: &File,
        direct: Alignment,
        offset: u64,
        len: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> io::Result<()> {
        let _one = self.partly.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, whole) = direct.around(offset, len);
        let mut memory = Aligned::new(whole);
        file.read_exact_at(memory.get(), start)?;
        change(part(memory.get(), offset - start, len));
        file.write_all_at(memory.get(), start)
    }
}

fn part(bytes: &mut [u8], start: u64, len: u64) -> &mut [u8] {
    let start = usize::try_from(start).unwrap_or(0);
    let end = start.saturating_add(usize::try_from(len).unwrap_or(0));
    bytes.get_mut(start..end).unwrap_or_default()
}
