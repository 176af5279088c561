//! Images into memory before the guest runs.
//!
//! Most of what it takes to make a VM with a distribution's kernel is the host giving out zeroed pages
//! for tens of megabytes, so large images are copied by several threads, a huge page each at a time,
//! and all parts of an image at once.
//! Memory is fresh, zero and not there yet: huge pages that an image leaves zero are not touched, and
//! take no memory until the guest does.

use std::{
    num::NonZero,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use vmlet_memory::{AddressSpace, Gpa, MemoryError};

/// What is copied, or left, as one: pages of the host have this size where they can.
const PIECE: u64 = 2 << 20;
/// Less than this is copied sooner than a thread is started.
const LARGE: usize = 8 << 20;
/// More do not help: memory has no room for their copies.
const MOST_THREADS: usize = 4;
/// Zeros to copy, and to compare with.
const ZEROS: [u8; 4096] = [0; 4096];

/// Fills memory that nobody has written to.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    space: &'a AddressSpace,
    /// What may not be zero any more.
    written: Vec<Range<u64>>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(space: &'a AddressSpace) -> Loader<'a> {
        let written = Vec::new();
        Loader { space, written }
    }

    /// All `parts` come to their addresses. They do not overlap each other.
    pub(crate) fn copy(&mut self, parts: &[(u64, &[u8])]) -> Result<(), MemoryError> {
        let all: Vec<_> = parts
            .iter()
            .flat_map(|part| pieces(part.0, part.1))
            .collect();
        let clean = |gpa, bytes: &[u8]| {
            let mut within = overlaps(&self.written, gpa, bytes.len() as u64);
            within.next().is_none() && is_zero(bytes)
        };
        let copy = |(gpa, bytes): (u64, &[u8])| {
            if clean(gpa, bytes) {
                return Ok(());
            }
            self.space.load(Gpa(gpa), bytes)
        };
        if all.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < LARGE {
            all.into_iter().try_for_each(copy)?;
        } else {
            in_threads(&all, &copy)?;
        }
        let end = |(gpa, bytes): &(u64, &[u8])| *gpa..gpa.saturating_add(bytes.len() as u64);
        self.written.extend(parts.iter().map(end));
        Ok(())
    }

    /// `len` bytes from `gpa` on are zero.
    pub(crate) fn clear(&self, gpa: u64, len: u64) -> Result<(), MemoryError> {
        for part in overlaps(&self.written, gpa, len) {
            for at in part.clone().step_by(ZEROS.len()) {
                let count = usize::try_from(part.end - at).unwrap_or(usize::MAX);
                let zeros = ZEROS.get(..count).unwrap_or(&ZEROS);
                self.space.load(Gpa(at), zeros)?;
            }
        }
        Ok(())
    }
}

/// What of `ranges` is in the `len` bytes from `start` on.
fn overlaps(ranges: &[Range<u64>], start: u64, len: u64) -> impl Iterator<Item = Range<u64>> {
    let end = start.saturating_add(len);
    let cut = move |range: &Range<u64>| range.start.max(start)..range.end.min(end);
    ranges.iter().map(cut).filter(|part| !part.is_empty())
}

fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks(ZEROS.len());
    blocks.all(|block| ZEROS.get(..block.len()) == Some(block))
}

/// `bytes`, cut where huge pages of the guest's memory begin.
fn pieces(gpa: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let (mut at, mut rest) = (gpa, bytes);
    std::iter::from_fn(move || {
        let room = usize::try_from(PIECE - at % PIECE).unwrap_or(usize::MAX);
        let (piece, later) = rest.split_at(room.min(rest.len()));
        let found = (at, piece);
        (at, rest) = (at.saturating_add(piece.len() as u64), later);
        (!piece.is_empty()).then_some(found)
    })
}

/// Does `copy` for all `pieces`, on as many threads as can run.
fn in_threads<'b>(
    pieces: &[(u64, &'b [u8])],
    copy: &(dyn Fn((u64, &'b [u8])) -> Result<(), MemoryError> + Sync),
) -> Result<(), MemoryError> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            copy(*piece)?;
        }
        Ok(())
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        // A host that gives no thread leaves the work to this one.
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..cpus.min(MOST_THREADS)).filter_map(start).collect();
        let own = work();
        let ended = others.into_iter().map(|other| {
            let ended = other.join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        ended.fold(own, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmlet_memory::Ram;

    use super::*;
    use crate::testing::{self, is_given};

    const SIZE: u64 = 64 << 20;

    fn space() -> (AddressSpace, Arc<Ram>) {
        testing::space(SIZE)
    }

    fn read(space: &AddressSpace, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xaa; len];
        space.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_large_image_comes_whole_to_any_address() {
        let (space, _ram) = space();
        let bytes: Vec<u8> = (0..20u32 << 20).map(|n| (n % 251) as u8).collect();
        Loader::new(&space).copy(&[(0x1234, &bytes)]).unwrap();
        assert!(read(&space, 0x1234, bytes.len()) == bytes);
        assert_eq!(read(&space, 0x1233, 1), [0]);
        assert_eq!(read(&space, 0x1234 + bytes.len() as u64, 1), [0]);
    }

    #[test]
    fn parts_of_an_image_come_at_once_each_to_its_address() {
        let (space, ram) = space();
        let parts = [vec![1; 9 << 20], vec![0; 3 << 20], vec![2; 0x1234]];
        let places = [0x10_0000, 24 << 20, 0x5000];
        let all = places
            .iter()
            .zip(&parts)
            .map(|(gpa, bytes)| (*gpa, &bytes[..]));
        let mut loader = Loader::new(&space);
        loader.copy(&all.collect::<Vec<_>>()).unwrap();
        for (gpa, bytes) in places.iter().zip(&parts) {
            assert!(read(&space, *gpa, bytes.len()) == *bytes);
        }
        // All of them count as written: zeros over them are.
        loader.clear(0x5000, 0x1000).unwrap();
        loader.copy(&[(0x10_0000, &[0; 2])]).unwrap();
        assert_eq!(read(&space, 0x5fff, 2), [0, 2]);
        assert_eq!(read(&space, 0x10_0000, 3), [0, 0, 1]);
        assert!(!is_given(&ram, 40 << 20));
    }

    #[test]
    fn an_image_that_does_not_fit_is_an_error() {
        let (space, _ram) = space();
        let bytes = vec![1; 20 << 20];
        let copied = Loader::new(&space).copy(&[(SIZE - (10 << 20), &bytes)]);
        assert!(
            matches!(copied, Err(MemoryError::NotMemory { .. })),
            "{copied:?}"
        );
    }

    #[test]
    fn zeros_take_no_memory_where_nothing_was() {
        let (space, ram) = space();
        let mut bytes = vec![0; 16 << 20];
        bytes[0] = 1;
        Loader::new(&space).copy(&[(PIECE, &bytes)]).unwrap();
        assert!(is_given(&ram, PIECE));
        assert!((2..9).all(|number| !is_given(&ram, number * PIECE)));
    }

    #[test]
    fn zeros_replace_what_was_loaded_before() {
        let (space, _ram) = space();
        let mut loader = Loader::new(&space);
        loader.copy(&[(0x5000, &[7; 0x3000])]).unwrap();
        loader.copy(&[(0x6000, &[0; 0x800])]).unwrap();
        loader.clear(0x7000, 0x900).unwrap();
        loader.clear(0x10_0000, 0x1000).unwrap();
        let found = read(&space, 0x5000, 0x3000);
        let zero = |at: usize| (0x1000..0x1800).contains(&at) || (0x2000..0x2900).contains(&at);
        assert!(
            found
                .iter()
                .enumerate()
                .all(|(at, byte)| *byte == if zero(at) { 0 } else { 7 })
        );
    }
}
