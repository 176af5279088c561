//! Timers.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use vmlet_memory::fork::ParentOnly;
use vmm_sys_util::timerfd::TimerFd;

use crate::{Reactor, ReactorError, Ready, reactor::Shared};

/// A timer that calls a function on the reactor's thread. Dropping it ends it as a
/// [`crate::Registration`] ends.
#[derive(Debug)]
pub struct Timer {
    shared: Arc<ParentOnly<Shared>>,
    token: u64,
}

impl Reactor {
    /// A timer that calls `due` when it runs out. It stands still until it is armed.
    pub fn timer(&self, due: impl Fn() + Send + Sync + 'static) -> Result<Timer, ReactorError> {
        self.check()?;
        Ok(Timer {
            shared: Arc::clone(&self.shared),
            token: self.shared.insert(Arc::new(move |_: Ready| due())),
        })
    }
}

impl Timer {
    /// Runs out after `delay`, once; an earlier deadline is forgotten.
    pub fn arm(&self, delay: Duration) {
        if self.shared.origin.is_here() {
            self.shared
                .set_deadline(self.token, Instant::now().checked_add(delay));
        }
    }

    /// Stands still. A call in progress goes on.
    pub fn disarm(&self) {
        if self.shared.origin.is_here() {
            self.shared.set_deadline(self.token, None);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.shared.origin.is_here() {
            self.shared.set_deadline(self.token, None);
            self.shared.remove(self.token);
        }
    }
}

/// When timers run out, by token, and what wakes the thread for the earliest. A limit on each wait
/// would do that too, but has the kernel set a timer at every wait; this one is set when there is a
/// new earliest.
#[derive(Debug)]
pub(crate) struct Deadlines {
    at: HashMap<u64, Instant>,
    alarm: TimerFd,
    /// When the alarm goes off.
    alarm_at: Option<Instant>,
}

impl Deadlines {
    /// None yet.
    pub(crate) fn new() -> io::Result<Deadlines> {
        Ok(Deadlines {
            at: HashMap::new(),
            alarm: TimerFd::new()?,
            alarm_at: None,
        })
    }

    /// The timer `token` runs out at `at`, or not at all.
    pub(crate) fn set(&mut self, token: u64, at: Option<Instant>) {
        let Some(at) = at else {
            self.at.remove(&token);
            return;
        };
        self.at.insert(token, at);
        if self.alarm_at.is_none_or(|earliest| at < earliest) {
            self.set_alarm(Some(at));
        }
    }

    /// Takes the timers that have run out.
    pub(crate) fn take_due(&mut self) -> Vec<u64> {
        let now = Instant::now();
        let due = self.at.extract_if(|_, at| *at <= now);
        let due = due.map(|(token, _)| token).collect();
        self.set_alarm(self.at.values().min().copied());
        due
    }

    /// What has gone off before is forgotten.
    fn set_alarm(&mut self, at: Option<Instant>) {
        let done = match at {
            Some(at) => {
                let rest = at.saturating_duration_since(Instant::now());
                // None at all would stop it.
                self.alarm.reset(rest.max(Duration::from_nanos(1)), None)
            }
            None => self.alarm.clear(),
        };
        if let Err(error) = done {
            log::error!(target: "vmlet.reactor", "timers stand still: {error}");
        }
        self.alarm_at = at;
    }
}

impl AsRawFd for Deadlines {
    fn as_raw_fd(&self) -> RawFd {
        self.alarm.as_raw_fd()
    }
}
