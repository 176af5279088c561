//! What the tests of several devices share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vmlet_bus::{AccessContext, IrqLine};

/// An access that nobody in particular makes.
pub(crate) struct Nobody;

impl AccessContext for Nobody {
    fn vcpu(&self) -> u32 {
        0
    }

    fn rip(&self) -> u64 {
        0
    }
}

/// A line that counts its edges.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    high: AtomicBool,
    edges: AtomicUsize,
}

impl Counter {
    pub(crate) fn edges(&self) -> usize {
        self.edges.load(Ordering::Relaxed)
    }
}

impl IrqLine for Counter {
    fn set(&self, high: bool) {
        if high && !self.high.swap(high, Ordering::Relaxed) {
            self.edges.fetch_add(1, Ordering::Relaxed);
        }
        self.high.store(high, Ordering::Relaxed);
    }
}
