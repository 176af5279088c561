//! Giving pages back to the host.

use vmlet_bus::DmaView;
use vmlet_memory::{Gpa, MemoryView};

/// The unit of the balloon, whatever the guest's pages are (section 5.5).
pub(super) const PAGE: u64 = 4096;

/// What became of pages that the guest gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    /// Bytes that the host has back.
    pub(super) back: u64,
    /// Bytes that it has not: held by somebody, parts of huge pages, or no memory at all.
    pub(super) kept: u64,
}

impl Given {
    fn count(&mut self, len: u64, back: bool) {
        let sum = if back { &mut self.back } else { &mut self.kept };
        *sum = sum.saturating_add(len);
    }
}

/// Gives back `len` bytes at `gpa`; only whole pages of the memory behind go.
pub(super) fn give_back(memory: &MemoryView, gpa: Gpa, len: u64, given: &mut Given) {
    let (mut at, mut left) = (gpa.0, len);
    while left > 0 {
        let Some((ram, offset, there)) = memory.find(Gpa(at), true) else {
            return given.count(left, false);
        };
        let count = left.min(there);
        match ram.discard(offset, count) {
            Ok(back) => given.count(count, back),
            Err(error) => {
                log::debug!(target: "vmlet.virtio", "the balloon keeps {count} bytes at {at:#x}: {error}");
                given.count(count, false);
            }
        }
        at = at.saturating_add(count);
        left -= count;
    }
}

/// Gives back the pages with these numbers, neighbours together.
pub(super) fn give_back_pages(view: &DmaView, mut numbers: Vec<u32>, given: &mut Given) {
    numbers.sort_unstable();
    numbers.dedup();
    let neighbours = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
    for run in neighbours {
        if let Some(first) = run.first() {
            let (at, len) = (u64::from(*first) * PAGE, run.len() as u64 * PAGE);
            give_back(view.memory(), Gpa(at), len, given);
        }
    }
}
