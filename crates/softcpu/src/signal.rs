//! What other threads tell a vCPU, and how the vCPUs of a VM wait for it.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::Duration,
};

use vmlet_vcpu::Kicker;

/// Wakes the thread that runs a VM's vCPUs when none of them has anything to do.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    asleep: AtomicBool,
    /// It was rung since the last sleep.
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    /// Ends a sleep: the one that is, or the next one at its start.
    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Ends a sleep that is. Who calls has made true what the sleeper looks at before it sleeps:
    /// one of the two sees the other.
    fn tell(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Waits until somebody rings or `wanted` holds, at most `time`.
    pub(crate) fn sleep(&self, time: Option<Duration>, wanted: impl Fn() -> bool) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !wanted() {
            let quiet = |rung: &mut bool| !*rung;
            rung = match time {
                Some(time) => {
                    let waited = self.changed.wait_timeout_while(rung, time, quiet);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait_while(rung, quiet);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        self.asleep.store(false, Ordering::SeqCst);
        *rung = false;
    }
}

/// Requests to one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Set with any of the others, or when an interrupt came: looked at between two blocks.
    attention: AtomicBool,
    /// The guest's own part of it: what a counted run must see at the same instruction each time.
    event: AtomicBool,
    /// Something of it came from outside, at this point of a counted run.
    input: AtomicBool,
    kick: AtomicBool,
    nmi: AtomicBool,
    bell: Arc<Bell>,
}

impl Signal {
    pub(crate) fn new(bell: Arc<Bell>) -> Signal {
        Signal {
            bell,
            ..Signal::default()
        }
    }

    #[inline(always)]
    pub(crate) fn wanted(&self) -> bool {
        self.attention.load(Ordering::Relaxed)
    }

    /// Clears the mark; what is asked for afterwards sets it again.
    pub(crate) fn take_attention(&self) {
        self.attention.swap(false, Ordering::SeqCst);
        self.event.swap(false, Ordering::SeqCst);
    }

    /// Clears the mark but not what the guest is to see.
    pub(crate) fn take_call(&self) {
        self.attention.swap(false, Ordering::SeqCst);
    }

    /// Something came that the guest is to see.
    pub(crate) fn event(&self) -> bool {
        self.event.load(Ordering::SeqCst)
    }

    /// An input has entered: the guest is to see it before its next instruction.
    pub(crate) fn set_input(&self) {
        self.input.store(true, Ordering::SeqCst);
    }

    pub(crate) fn take_input(&self) -> bool {
        self.input.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn kicked(&self) -> bool {
        self.kick.load(Ordering::SeqCst)
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
        self.event.store(true, Ordering::SeqCst);
        self.call();
    }

    /// Makes the vCPU leave guest code for something that is not the guest's.
    pub(crate) fn call(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.bell.tell();
    }
}

impl Kicker for Signal {
    fn kick(&self) {
        self.kick.store(true, Ordering::SeqCst);
        self.call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_before_the_sleep_ends_it() {
        let signal = Signal::default();
        signal.kick();
        signal.bell.sleep(None, || signal.wanted());
        assert!(signal.take_kick());
        assert!(!signal.take_kick());
    }

    #[test]
    fn a_bell_rung_before_the_sleep_ends_it_once() {
        let bell = Bell::default();
        bell.ring();
        bell.sleep(None, || false);
        let began = std::time::Instant::now();
        bell.sleep(Some(Duration::from_millis(20)), || false);
        assert!(began.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_request_ends_a_sleep() {
        let signal = Arc::new(Signal::default());
        let other = Arc::clone(&signal);
        let waker = std::thread::spawn(move || {
            while !other.bell.asleep.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            other.kick();
        });
        signal.bell.sleep(None, || signal.wanted());
        assert!(signal.take_kick());
        waker.join().unwrap();
    }
}
