//! Posted writes on their way to Python.
//!
//! A vCPU only appends a record. The thread that delivers is woken when it sleeps deeply, which it
//! does after a while without writes, and when half of the room is taken; else it looks from time to
//! time. So a stream of writes costs a vCPU no system call.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Looks without a write before it sleeps deeply.
const QUIET: u32 = 20;

/// A posted write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Record {
    /// From the start of the device.
    pub(super) offset: u64,
    /// What was written.
    pub(super) value: u64,
    /// Bytes, 1 to 8.
    pub(super) size: u32,
    /// The vCPU that wrote.
    pub(super) vcpu: u32,
}

#[derive(Debug, Default)]
struct State {
    records: Vec<Record>,
    pushed: u64,
    delivered: u64,
    /// The delivering thread has to be woken.
    asleep: bool,
    /// It has to deliver at once.
    urgent: bool,
    closed: bool,
}

/// Posted writes that are not delivered yet.
#[derive(Debug)]
pub(super) struct Ring {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
    room: usize,
    /// How long the delivering thread waits between two looks while writes come.
    delay: Duration,
}

impl Ring {
    /// A ring with room for so many writes, which wait about `delay` at most.
    pub(super) fn new(room: usize, delay: Duration) -> Ring {
        Ring {
            state: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
            room: room.max(2),
            delay,
        }
    }

    /// Appends records; whether the room is taken, and they have to be delivered before more come.
    pub(super) fn push(&self, records: impl Iterator<Item = Record>) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        let before = state.records.len();
        state.records.extend(records);
        let now = state.records.len();
        state.pushed += (now - before) as u64;
        let half = self.room / 2;
        let crossed = before < half && now >= half;
        state.urgent |= crossed;
        let wake = mem::take(&mut state.asleep) || crossed;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        now >= self.room
    }

    /// All that waits; with the turn only, or the order would be lost.
    pub(super) fn take(&self) -> Vec<Record> {
        mem::take(&mut self.lock().records)
    }

    /// So many that were taken are delivered.
    pub(super) fn finished(&self, count: usize) {
        self.lock().delivered += count as u64;
        self.done.notify_all();
    }

    /// Where the writes made so far end, for [`Ring::wait_delivered`].
    pub(super) fn end(&self) -> u64 {
        self.lock().pushed
    }

    /// Whether the writes up to `end` are delivered; has them be, and waits for it up to `limit`.
    pub(super) fn wait_delivered(&self, end: u64, limit: Duration) -> bool {
        let mut state = self.lock();
        let due = |state: &mut State| state.delivered < end && !state.closed;
        if due(&mut state) {
            state.urgent = true;
            self.wake.notify_one();
        }
        let waited = self.done.wait_timeout_while(state, limit, due);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        !due(&mut state)
    }

    /// Waits until there is something to be delivered; false once closed. `quiet` is the caller's to
    /// keep, `u32::MAX` at first.
    pub(super) fn wait_for_work(&self, quiet: &mut u32) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed {
                return false;
            }
            let deeply = *quiet >= QUIET;
            if !state.records.is_empty() && (deeply || state.urgent) {
                *quiet = 0;
                state.urgent = false;
                return true;
            }
            state.urgent = false;
            if deeply {
                state.asleep = true;
                state = self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.asleep = false;
                continue;
            }
            let waited = self.wake.wait_timeout(state, self.delay);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if timeout.timed_out() {
                if !state.records.is_empty() {
                    *quiet = 0;
                    return true;
                }
                *quiet += 1;
            }
        }
    }

    /// Ends the delivering thread's wait; what waits is dropped.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.records = Vec::new();
        drop(state);
        self.wake.notify_all();
        self.done.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
