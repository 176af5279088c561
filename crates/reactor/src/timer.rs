//! Timers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use vmlet_memory::fork::ParentOnly;

use crate::{Reactor, ReactorError, Ready, reactor::Shared};

/// A timer that calls a function on the reactor's thread, to the millisecond. Dropping it ends it as
/// a [`crate::Registration`] ends.
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
