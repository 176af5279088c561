//! Writes that are thrown away.
//!
//! They go to an unnamed file of the same size, which takes as much room as was written; what was
//! never written is read from the image below. Which is which is known by blocks of 4 KiB.

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, PoisonError, RwLock},
};

use super::{GuestIo, Image, RawImage};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Blocks of one word of marks.
const WORD: u64 = 64;

/// Which blocks were written, a bit each.
#[derive(Debug, Default)]
struct Marks(HashMap<u64, u64>);

impl Marks {
    fn has(&self, block: u64) -> bool {
        let word = self.0.get(&(block / WORD)).copied().unwrap_or(0);
        word >> (block % WORD) & 1 != 0
    }

    fn set(&mut self, blocks: Range<u64>) {
        for block in blocks {
            *self.0.entry(block / WORD).or_default() |= 1 << (block % WORD);
        }
    }
}

/// An image whose writes are thrown away.
#[derive(Debug)]
pub struct Overlay {
    below: Arc<dyn Image>,
    file: File,
    above: RawImage,
    marks: RwLock<Marks>,
}

impl Overlay {
    /// Writes to `below` go to `file`, an empty one that nobody else knows.
    pub fn new(below: Arc<dyn Image>, file: File) -> io::Result<Overlay> {
        let len = below.len();
        file.set_len(len)?;
        Ok(Overlay {
            above: RawImage::new(file.try_clone()?, len, false, false),
            below,
            file,
            marks: RwLock::default(),
        })
    }

    /// The runs of `offset..offset + len` that are all above or all below.
    fn runs(&self, offset: u64, len: u64) -> Vec<(Range<u64>, bool)> {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        let (mut at, end) = (offset, offset + len);
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        while at < end {
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            let above = marks.has(at / BLOCK);
            match runs.last_mut() {
                Some((range, same)) if *same == above => range.end = next,
                _ => runs.push((at..next, above)),
            }
            at = next;
        }
        runs
    }

    /// Makes `offset..offset + len` the overlay's, by `write`, whose first and last block may have
    /// parts that are not written: those come from below.
    fn cover(
        &self,
        offset: u64,
        len: u64,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let (first, end) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        for (block, whole) in [
            (first, offset.is_multiple_of(BLOCK)),
            (end - 1, (offset + len).is_multiple_of(BLOCK)),
        ] {
            if !whole && !marks.has(block) {
                self.copy_up(block)?;
                marks.set(block..block + 1);
            }
        }
        write()?;
        marks.set(first..end);
        Ok(())
    }

    fn copy_up(&self, block: u64) -> io::Result<()> {
        let start = block * BLOCK;
        let mut bytes = [0; 4096];
        let len = (self.len() - start).min(BLOCK);
        let part = bytes.get_mut(..usize::try_from(len).unwrap_or(0));
        let part = part.unwrap_or_default();
        self.below.read_bytes(start, part)?;
        self.file.write_all_at(part, start)
    }
}

impl Image for Overlay {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, to: &GuestIo) -> io::Result<()> {
        for (range, above) in self.runs(offset, to.len()) {
            let part = range.start - offset..range.end - offset;
            if above {
                to.read_from(part, &self.file, range.start)?;
            } else {
                self.below.read_part(range.start, to, part)?;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &GuestIo) -> io::Result<()> {
        self.cover(offset, from.len(), || self.above.write(offset, from))
    }

    /// What is thrown away needs no medium.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// The overlay's own blocks give their room back; what is below stays.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.cover(offset, len, || self.above.write_zeroes(offset, len, unmap))
    }

    fn close(&self) -> io::Result<()> {
        self.below.close()
    }

    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        for (range, above) in self.runs(offset, data.len() as u64) {
            let at = |place: u64| usize::try_from(place - offset).unwrap_or(0);
            let part = data.get_mut(at(range.start)..at(range.end));
            let part = part.unwrap_or_default();
            if above {
                self.file.read_exact_at(part, range.start)?;
            } else {
                self.below.read_bytes(range.start, part)?;
            }
        }
        Ok(())
    }
}
