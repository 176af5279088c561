//! Turns: one callback of a device at a time.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

#[derive(Debug, Default)]
struct State {
    busy: bool,
    closed: bool,
    /// Threads that wait for a change.
    waiting: usize,
}

/// Who may call the device's object.
#[derive(Debug, Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

/// A turn; ends when dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Turn);

impl Turn {
    /// Waits for the turn, detached from the interpreter; `None` once closed.
    pub(super) fn take(&self) -> Option<Held<'_>> {
        let mut state = self.lock();
        while state.busy && !state.closed {
            state.waiting += 1;
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.closed {
            return None;
        }
        state.busy = true;
        Some(Held(self))
    }

    /// Whether nobody has the turn; waits for it up to `limit`.
    pub(super) fn wait_idle(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        if state.busy {
            state.waiting += 1;
            let waited = self
                .changed
                .wait_timeout_while(state, limit, |state| state.busy);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        !state.busy
    }

    /// Gives no turn any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Whether turns are given no more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy = false;
        let waited_for = state.waiting > 0;
        drop(state);
        if waited_for {
            self.0.changed.notify_all();
        }
    }
}
