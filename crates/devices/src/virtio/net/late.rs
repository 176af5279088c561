//! When the driver hears that a frame is sent.
//!
//! It needs that to give the frame's memory back, which drivers also do while they take a frame from
//! the device. Where short frames are sent one by one, an answer tends to come, and its interrupt does
//! for both: an interrupt for such a frame alone is kept back for a while. The next frame that is sent
//! ends the wait, so that a driver never waits for more than one.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use vmlet_reactor::Timer;

use super::{SHORT, session::lock};

/// How long an interrupt is kept back; the reactor's timers round up to the next millisecond.
const WHILE: Duration = Duration::from_millis(4);

/// Frames that were sent at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    pub(super) frames: usize,
    /// Bytes of all of them with their headers.
    pub(super) bytes: u64,
    /// The back end takes nothing more for now.
    pub(super) blocked: bool,
}

/// An interrupt that may be kept back.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// Asks for the interrupt. None: each comes at once.
    timer: Mutex<Option<Timer>>,
    owed: AtomicBool,
}

impl Late {
    /// Interrupts can be kept back until `timer` asks for them.
    pub(super) fn begin(&self, timer: Option<Timer>) {
        *lock(&self.timer) = timer;
    }

    /// No interrupt is kept back from now on.
    pub(super) fn end(&self) {
        // A call in progress takes the queue.
        let timer = lock(&self.timer).take();
        drop(timer);
    }

    /// Whether the interrupt for `sent` is kept back.
    pub(super) fn keeps(&self, sent: &Sent) -> bool {
        if sent.frames != 1 || sent.bytes > SHORT {
            return false;
        }
        let timer = lock(&self.timer);
        if let Some(timer) = &*timer {
            timer.arm(WHILE);
            self.owed.store(true, Ordering::Release);
        }
        timer.is_some()
    }

    /// Whether an interrupt was kept back, which the caller now asks for.
    pub(super) fn take(&self) -> bool {
        self.owed.swap(false, Ordering::AcqRel)
    }
}
