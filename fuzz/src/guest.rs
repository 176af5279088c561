//! The board around a device under test.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use vmlet_bus::{AccessContext, IrqLine, Msi, MsiRoute, MsiSink, RequesterId};

/// An access that nobody in particular makes.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

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
pub struct Edges {
    high: AtomicBool,
    count: AtomicUsize,
}

impl Edges {
    /// Changes from low to high so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl IrqLine for Edges {
    fn set(&self, high: bool) {
        if high && !self.high.swap(high, Ordering::Relaxed) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.high.store(high, Ordering::Relaxed);
    }
}

/// Keeps the messages sent and what was last told of level-triggered pins.
#[derive(Debug, Default)]
pub struct Messages {
    sent: Mutex<Vec<Msi>>,
    level: Mutex<Vec<Option<Msi>>>,
}

impl Messages {
    /// The messages since the last call.
    pub fn take(&self) -> Vec<Msi> {
        std::mem::take(&mut self.sent.lock().expect("one thread"))
    }

    /// What was last told of level-triggered pins.
    pub fn level(&self) -> Vec<Option<Msi>> {
        self.level.lock().expect("one thread").clone()
    }
}

impl MsiSink for Messages {
    fn send(&self, _: RequesterId, msi: Msi) {
        self.sent.lock().expect("one thread").push(msi);
    }

    fn level_pins(&self, _: RequesterId, pins: &[Option<Msi>]) {
        *self.level.lock().expect("one thread") = pins.to_vec();
    }

    fn route(&self, _: RequesterId) -> Arc<dyn MsiRoute> {
        unreachable!("an I/O APIC sends by its pins")
    }
}
