//! Writes to guest memory that no vCPU makes, counted for who caches what memory holds: an engine
//! that keeps decoded code compares it with memory again when the count has moved.

use std::sync::atomic::{AtomicU64, Ordering};

static WRITES: AtomicU64 = AtomicU64::new(0);
/// Leases whose holders may write unseen.
static UNSEEN: AtomicU64 = AtomicU64::new(0);

pub(crate) fn note() {
    WRITES.fetch_add(1, Ordering::Release);
}

pub(crate) fn begin() {
    UNSEEN.fetch_add(1, Ordering::Release);
}

pub(crate) fn end() {
    note();
    UNSEEN.fetch_sub(1, Ordering::Release);
}

/// A number that differs from an earlier one if this process wrote to any guest's memory in
/// between, or may have: while somebody holds a writable view or a DMA map it differs every time.
pub fn foreign_writes() -> u64 {
    if UNSEEN.load(Ordering::Acquire) > 0 {
        note();
    }
    WRITES.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, LeaseKind, Ram};

    #[test]
    fn a_write_and_a_writable_view_move_the_count() {
        let ram = Ram::new(4096, Backing::Anon).unwrap();
        let before = foreign_writes();
        ram.write(0, &[1]).unwrap();
        let after = foreign_writes();
        assert_ne!(before, after);
        let lease = ram.lease(LeaseKind::WritableView, 0..4096, "view".into());
        assert_ne!(foreign_writes(), foreign_writes());
        drop(lease);
    }
}
