//! What other threads tell a vCPU, and how it waits for it.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use vmlet_vcpu::Kicker;

/// Requests to one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Set with any of the others, or when an interrupt came: looked at between two blocks.
    attention: AtomicBool,
    kick: AtomicBool,
    nmi: AtomicBool,
    sleeping: Mutex<()>,
    woken: Condvar,
}

impl Signal {
    #[inline(always)]
    pub(crate) fn wanted(&self) -> bool {
        self.attention.load(Ordering::Relaxed)
    }

    /// Clears the mark; what is asked for afterwards sets it again.
    pub(crate) fn take_attention(&self) {
        self.attention.swap(false, Ordering::SeqCst);
    }

    pub(crate) fn take_kick(&self) -> bool {
        self.kick.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn nmi_waits(&self) -> bool {
        self.nmi.load(Ordering::SeqCst)
    }

    pub(crate) fn set_nmi(&self, waits: bool) {
        self.nmi.store(waits, Ordering::SeqCst);
        if waits {
            self.wake();
        }
    }

    /// Makes the vCPU look at what waits.
    pub(crate) fn wake(&self) {
        self.attention.store(true, Ordering::SeqCst);
        let _held = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        self.woken.notify_all();
    }

    /// Waits until [`Signal::wake`], at most `time`.
    pub(crate) fn sleep(&self, time: Option<Duration>) {
        let held = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        let asleep = |_: &mut ()| !self.attention.load(Ordering::SeqCst);
        match time {
            Some(time) => drop(self.woken.wait_timeout_while(held, time, asleep)),
            None => drop(self.woken.wait_while(held, asleep)),
        }
    }
}

impl Kicker for Signal {
    fn kick(&self) {
        self.kick.store(true, Ordering::SeqCst);
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_before_the_sleep_ends_it() {
        let signal = Signal::default();
        signal.kick();
        signal.sleep(None);
        assert!(signal.take_kick());
        assert!(!signal.take_kick());
    }
}
