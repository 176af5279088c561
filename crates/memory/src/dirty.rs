//! Which pages were written.
//!
//! Three sources count: the engine's log of guest writes, this process's own writes through
//! [`crate::Ram::write`], and ranges that somebody may write unseen (writable views, DMA maps).

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use crate::{Gpa, PAGE_SIZE};

/// A run of dirty pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First address.
    pub gpa: Gpa,
    /// Bytes.
    pub len: u64,
}

/// Words of a piece of a bitmap: those of 16 MiB.
const PIECE: usize = 64;

type Piece = [AtomicU64; PIECE];

/// One bit a page, set from any thread. Pieces without a mark take no memory.
#[derive(Debug)]
pub struct PageBitmap {
    pieces: Box<[OnceLock<Box<Piece>>]>,
}

impl PageBitmap {
    /// A clean bitmap for `bytes` bytes.
    pub fn new(bytes: u64) -> PageBitmap {
        let pieces = bytes.div_ceil(PAGE_SIZE * 64 * PIECE as u64);
        PageBitmap {
            pieces: (0..pieces).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The word of pages `at * 64` on, with `make` also if no page near it was ever marked; none
    /// past the end.
    fn word(&self, at: u64, make: bool) -> Option<&AtomicU64> {
        let at = usize::try_from(at).ok()?;
        let piece = self.pieces.get(at / PIECE)?;
        let piece = if make {
            piece.get_or_init(|| Box::new([const { AtomicU64::new(0) }; PIECE]))
        } else {
            piece.get()?
        };
        piece.get(at % PIECE)
    }

    /// Marks the pages of `offset..offset + len`.
    pub fn mark(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = offset.saturating_add(len - 1) / PAGE_SIZE;
        for page in offset / PAGE_SIZE..=last {
            let Some(word) = self.word(page / 64, true) else {
                return;
            };
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    /// Takes the marks of `pages` pages from page `first` on, one bit a page, and clears them.
    pub fn take(&self, first: u64, pages: u64) -> Vec<u64> {
        let mut taken = vec![0u64; usize::try_from(pages.div_ceil(64)).unwrap_or(0)];
        for page in 0..pages {
            let (at, bit) = ((first + page) / 64, 1u64 << ((first + page) % 64));
            let Some(word) = self.word(at, false) else {
                continue;
            };
            if word.load(Ordering::Relaxed) & bit == 0 {
                continue;
            }
            word.fetch_and(!bit, Ordering::Relaxed);
            set(&mut taken, page);
        }
        taken
    }
}

/// Sets the bit of `page`; a page past the end is ignored.
pub(crate) fn set(bits: &mut [u64], page: u64) {
    if let Some(word) = usize::try_from(page / 64)
        .ok()
        .and_then(|w| bits.get_mut(w))
    {
        *word |= 1 << (page % 64);
    }
}

/// Joins `more` into `bits`.
pub(crate) fn join(bits: &mut [u64], more: &[u64]) {
    bits.iter_mut()
        .zip(more)
        .for_each(|(word, other)| *word |= other);
}

/// The runs of set bits, as extents from `base` on.
pub(crate) fn extents(base: Gpa, bits: &[u64], pages: u64) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    for (index, word) in bits.iter().enumerate() {
        let mut rest = *word;
        while rest != 0 {
            let page = index as u64 * 64 + u64::from(rest.trailing_zeros());
            rest &= rest - 1;
            if page >= pages {
                return found;
            }
            let gpa = Gpa(base.0 + page * PAGE_SIZE);
            match found.last_mut() {
                Some(last) if last.gpa.0 + last.len == gpa.0 => last.len += PAGE_SIZE,
                _ => found.push(Extent {
                    gpa,
                    len: PAGE_SIZE,
                }),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_are_taken_once() {
        let bitmap = PageBitmap::new(1 << 20);
        bitmap.mark(4095, 2);
        assert_eq!(bitmap.take(0, 256), [3, 0, 0, 0]);
        assert_eq!(bitmap.take(0, 256), [0, 0, 0, 0]);
    }

    #[test]
    fn marks_past_the_end_are_ignored() {
        let bitmap = PageBitmap::new(4096);
        bitmap.mark(1 << 40, 1 << 20);
        assert_eq!(bitmap.take(0, 1), [0]);
    }

    proptest! {
        #[test]
        fn extents_cover_exactly_the_set_pages(pages in proptest::collection::btree_set(0u64..512, 0..200)) {
            let mut bits = vec![0; 8];
            pages.iter().for_each(|page| set(&mut bits, *page));
            let covered: Vec<u64> = extents(Gpa(0x10_0000), &bits, 512)
                .iter()
                .flat_map(|e| (0..e.len / PAGE_SIZE).map(|i| (e.gpa.0 - 0x10_0000) / PAGE_SIZE + i))
                .collect();
            prop_assert_eq!(covered, pages.into_iter().collect::<Vec<_>>());
        }
    }
}
