//! Whose turn it is: one vCPU of a VM runs guest code at a time, in a fixed order.
//!
//! That makes locked instructions atomic for free and runs repeatable. A change of the memory map
//! waits until nobody has the turn.

use std::{
    collections::BTreeSet,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
};

#[derive(Debug, Default)]
struct State {
    holder: Option<ThreadId>,
    waiting: BTreeSet<u32>,
    last: u32,
    changers: usize,
}

impl State {
    /// The vCPU after the last one, round and round.
    fn next(&self) -> Option<u32> {
        let after = self.waiting.range(self.last + 1..).next();
        after.or_else(|| self.waiting.first()).copied()
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    wanted: AtomicUsize,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of vCPU `id`.
    pub(crate) fn take(&self, id: u32) {
        let mut state = self.lock();
        state.waiting.insert(id);
        self.wanted.fetch_add(1, Ordering::SeqCst);
        while state.holder.is_some() || state.changers > 0 || state.next() != Some(id) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        state.waiting.remove(&id);
        state.holder = Some(thread::current().id());
        state.last = id;
    }

    /// Gives the turn away.
    pub(crate) fn leave(&self) {
        self.lock().holder = None;
        self.changed.notify_all();
    }

    /// Somebody waits for the turn.
    pub(crate) fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    /// Runs `change` while no vCPU runs guest code; within a callback of the vCPU that has the
    /// turn, at once.
    pub(crate) fn still<T>(&self, change: impl FnOnce() -> T) -> T {
        let mut state = self.lock();
        if state.holder == Some(thread::current().id()) {
            drop(state);
            return change();
        }
        state.changers += 1;
        self.wanted.fetch_add(1, Ordering::SeqCst);
        while state.holder.is_some() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let result = change();
        state.changers -= 1;
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round() {
        let mut state = State {
            waiting: BTreeSet::from([0, 2, 5]),
            last: 2,
            ..State::default()
        };
        assert_eq!(state.next(), Some(5));
        state.last = 5;
        assert_eq!(state.next(), Some(0));
    }

    #[test]
    fn a_change_within_the_turn_does_not_wait_for_itself() {
        let turns = Turns::default();
        turns.take(0);
        assert_eq!(turns.still(|| 7), 7);
        turns.leave();
        assert_eq!(turns.still(|| 8), 8);
    }
}
