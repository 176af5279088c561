//! Chains taken several at a time, by a device that has a thread of its own to look for more.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use vmlet_bus::DmaView;

use super::{Chain, VirtQueue, pace::Pace};

/// How long more is looked for before notifications are on again; in the order of what a
/// notification and a wake-up cost.
const LINGER: Duration = Duration::from_micros(50);
/// After this time other devices have their turn.
const TURN: Duration = Duration::from_millis(2);

/// What a device does with the chains of a queue.
pub struct Batches<'a> {
    /// Whether a batch is large enough to begin.
    pub is_full: &'a dyn Fn(&[Chain]) -> bool,
    /// Whether more may be waited for: there is nothing else to do.
    pub may_wait: &'a dyn Fn() -> bool,
    /// Takes a batch.
    pub each: &'a mut dyn FnMut(Vec<Chain>),
}

impl std::fmt::Debug for Batches<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

/// A turn at a queue.
struct Turn<'a> {
    queue: &'a VirtQueue,
    view: &'a DmaView,
    pace: Pace,
    began: Instant,
    /// Since when nothing has come, if more is waited for.
    waits: Option<Instant>,
}

impl VirtQueue {
    /// As [`VirtQueue::drain`], several at a time: batches get as many as are there, until one is
    /// full. While more may be waited for, a driver is looked after for a while before notifications
    /// are on again, each of which costs it an exit and the device a wake-up; and one that has
    /// several chains under way gets one interrupt for a few of them.
    pub fn drain_batches(&self, view: &DmaView, mut batches: Batches<'_>) {
        let pace = *self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let mut turn = Turn {
            queue: self,
            view,
            pace,
            began: Instant::now(),
            waits: None,
        };
        self.disable_notifications(view);
        if (batches.may_wait)() {
            turn.hold();
        }
        turn.run(&mut batches);
        turn.release();
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = turn.pace;
    }

    fn batch(&self, view: &DmaView, is_full: &dyn Fn(&[Chain]) -> bool) -> Vec<Chain> {
        let mut batch = Vec::new();
        while !is_full(&batch)
            && let Some(chain) = self.pop(view)
        {
            batch.push(chain);
        }
        batch
    }

    /// Answers that the driver has not been interrupted for.
    pub(super) fn owed(&self) -> u16 {
        self.lock().added
    }
}

impl Turn<'_> {
    fn run(&mut self, batches: &mut Batches<'_>) {
        loop {
            let batch = self.queue.batch(self.view, batches.is_full);
            if !batch.is_empty() {
                self.take(batch, batches);
            } else if !self.waits_on() && !self.queue.enable_notifications(self.view) {
                return;
            }
            if self.began.elapsed() > TURN && self.queue.ring_again() {
                return;
            }
        }
    }

    fn take(&mut self, batch: Vec<Chain>, batches: &mut Batches<'_>) {
        let count = u16::try_from(batch.len()).unwrap_or(u16::MAX);
        let unbroken = self.queue.owed() > 0;
        let waited = self.waits.filter(|_| unbroken).map(|since| since.elapsed());
        self.pace.came(count, waited);
        (batches.each)(batch);
        self.waits = (batches.may_wait)().then(Instant::now);
        if self.waits.is_none() {
            self.release();
            return;
        }
        if self.pace.is_enough(self.queue.owed()) {
            self.pace.was_enough();
            self.release();
        }
        self.hold();
    }

    /// Looks whether there is time to wait for more.
    fn waits_on(&mut self) -> bool {
        let Some(waited) = self.waits.map(|since| since.elapsed()) else {
            return false;
        };
        let patience = self.pace.patience().unwrap_or_default();
        if waited >= patience && self.queue.holds.load(Ordering::SeqCst) {
            match self.queue.owed() {
                0 => {}
                owed => self.pace.missed(owed),
            }
            self.release();
        }
        std::hint::spin_loop();
        waited < patience.max(LINGER)
    }

    /// Keeps interrupts back, if that is the driver's pace.
    fn hold(&self) {
        if self.pace.patience().is_some() {
            self.queue.holds.store(true, Ordering::SeqCst);
        }
    }

    /// Interrupts the driver for what was kept back.
    fn release(&self) {
        if self.queue.holds.swap(false, Ordering::SeqCst) {
            self.queue.notify(self.view);
        }
    }
}
