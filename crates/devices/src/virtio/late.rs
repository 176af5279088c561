//! An interrupt that is kept back for a while.
//!
//! What a driver sent it needs to hear of only to give the memory back. Where it sends little things
//! one by one, each such interrupt costs the guest more than the thing itself. A device keeps it back
//! for a bounded number of them and a bounded time; section 2.7.7.2 says that it has to come, not
//! when.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use vmlet_reactor::Timer;

/// How long and for how much an interrupt is kept back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Used buffers that the driver has not heard of, at most.
    pub(super) buffers: u32,
    pub(super) time: Duration,
}

/// An interrupt that may be kept back.
#[derive(Debug, Default)]
pub(super) struct Late {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Asks for the interrupt. None: each comes at once.
    timer: Option<Timer>,
    /// Used buffers that the driver has not heard of.
    owed: u32,
}

impl Late {
    /// Interrupts can be kept back until `timer` asks for them.
    pub(super) fn begin(&self, timer: Option<Timer>) {
        self.state().timer = timer;
    }

    /// No interrupt is kept back from now on. What comes back is to be dropped where no lock is held
    /// that the timer takes.
    pub(super) fn end(&self) -> Option<Timer> {
        self.state().timer.take()
    }

    /// Whether the interrupt for `buffers` more is kept back.
    pub(super) fn keeps(&self, buffers: u32, bounds: Bounds) -> bool {
        let mut state = self.state();
        let owed = state.owed.saturating_add(buffers);
        let Some(timer) = state.timer.as_ref().filter(|_| owed <= bounds.buffers) else {
            return false;
        };
        if state.owed == 0 {
            timer.arm(bounds.time);
        }
        state.owed = owed;
        true
    }

    /// Whether an interrupt was kept back, which the caller now asks for.
    pub(super) fn take(&self) -> bool {
        std::mem::take(&mut self.state().owed) > 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
