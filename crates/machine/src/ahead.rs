//! Memory that the host gives before the guest asks for it.
//!
//! The first write to a page of guest memory has the host find, and clear, a page: a huge one takes
//! as long as thousands of the guest's instructions, with its vCPU standing still. What a kernel
//! writes to while it starts is known beforehand (`vmlet_boot::BootPlan::soon`), so that a thread has
//! the host give it while the VM is made and the kernel is on its way there.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use vmlet_memory::{AddressSpace, Gpa};

use crate::Image;

/// What is asked for at a time: a huge page.
const PIECE: u64 = 2 << 20;

/// The thread; it ends when it is done, and when this is dropped.
#[derive(Debug)]
pub(crate) struct Ahead {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Has the host give `ranges` of `space`, one after the other. Less than a huge page is not
    /// worth a thread, and a host that gives none leaves it to the guest. `image` is let go of
    /// afterwards: until then, to unmap a file waits for page after page.
    pub(crate) fn start(
        space: &Arc<AddressSpace>,
        ranges: Vec<Range<u64>>,
        image: Option<Image>,
    ) -> Option<Ahead> {
        let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        if total < PIECE {
            return None;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, space) = (Arc::clone(&stop), Arc::clone(space));
        let work = move || {
            let _image = image;
            for (gpa, len) in ranges.into_iter().flat_map(pieces) {
                // A host without the memory tells the guest's own access.
                if stopped.load(Ordering::Relaxed) || space.populate(Gpa(gpa), len).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("vmlet-memory".to_owned());
        Some(Ahead {
            stop,
            thread: Some(thread.spawn(work).ok()?),
        })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `range`, cut where huge pages begin: first addresses and lengths.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let first = range.start / PIECE * PIECE;
    (first..range.end)
        .step_by(usize::try_from(PIECE).unwrap_or(usize::MAX))
        .map(move |at| {
            let start = at.max(range.start);
            (start, (at + PIECE).min(range.end) - start)
        })
}

#[cfg(test)]
mod tests {
    use vmlet_memory::Ram;

    use super::*;
    use crate::testing::{self, is_given};

    const SIZE: u64 = 16 << 20;

    fn space() -> (Arc<AddressSpace>, Arc<Ram>) {
        let (space, ram) = testing::space(SIZE);
        (Arc::new(space), ram)
    }

    /// Pages of `range` that the host has given.
    fn given(ram: &Ram, range: Range<u64>) -> usize {
        range.step_by(4096).filter(|at| is_given(ram, *at)).count()
    }

    #[test]
    fn the_host_gives_what_is_asked_for_and_nothing_behind_it() {
        let (space, ram) = space();
        let ahead = Ahead::start(&space, vec![PIECE..2 * PIECE, 3 * PIECE..5 * PIECE], None);
        let mut ahead = ahead.unwrap();
        ahead.thread.take().unwrap().join().unwrap();
        let pages = |pieces: u64| usize::try_from(pieces * PIECE / 4096).unwrap();
        assert_eq!(given(&ram, PIECE..2 * PIECE), pages(1));
        assert_eq!(given(&ram, 3 * PIECE..5 * PIECE), pages(2));
        assert_eq!(given(&ram, 6 * PIECE..8 * PIECE), 0);
    }

    #[test]
    fn no_thread_is_left_when_it_is_dropped() {
        let (space, _ram) = space();
        drop(Ahead::start(&space, vec![0..PIECE, PIECE..SIZE], None).unwrap());
        assert_eq!(Arc::strong_count(&space), 1);
    }

    #[test]
    fn addresses_without_memory_end_it() {
        let (space, _ram) = space();
        let mut ahead = Ahead::start(&space, vec![SIZE..2 * SIZE, 0..PIECE], None).unwrap();
        ahead.thread.take().unwrap().join().unwrap();
        assert_eq!(Arc::strong_count(&space), 1);
    }

    #[test]
    fn pieces_end_where_huge_pages_do() {
        let found: Vec<_> = pieces(PIECE - 4096..2 * PIECE + 8192).collect();
        let expected = [(PIECE - 4096, 4096), (PIECE, PIECE), (2 * PIECE, 8192)];
        assert_eq!(found, expected);
    }
}
