//! Descriptors that the device waits for.

use std::sync::{Arc, Weak};

use vmlet_reactor::{Interest, Reactor, ReactorError, Ready, Registration, Source, Timer};

use super::{
    device::Shared,
    muxer::{Key, Muxer},
};

/// Whose descriptor is ready. The numbers tell a newer holder of the same key from an older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A connection.
    Connection(Key, u64),
    /// A host program that has yet to say which port it wants.
    Greeter(u64),
    /// The rest of a connection that the guest has closed.
    Orphan(u64),
    /// The socket that host programs connect to.
    Acceptor,
}

/// Where descriptors are waited for; nowhere without a reactor.
#[derive(Clone, Debug)]
pub(super) struct Waits {
    pub(super) reactor: Option<Arc<Reactor>>,
    pub(super) device: Weak<Shared>,
}

/// A descriptor that may be waited for, and for what.
#[derive(Debug, Default)]
pub(super) struct Wait {
    registration: Option<Registration>,
    interest: Interest,
}

impl Waits {
    /// Tells the device whenever `source` is ready.
    pub(super) fn begin(
        &self,
        who: Who,
        source: Arc<dyn Source>,
        interest: Interest,
    ) -> Result<Wait, ReactorError> {
        let Some(reactor) = &self.reactor else {
            return Ok(Wait::default());
        };
        let device = Weak::clone(&self.device);
        let handler = move |ready: Ready| {
            if let Some(device) = device.upgrade() {
                device.ready(who, ready);
            }
        };
        let registration = Some(reactor.add(source, interest, Arc::new(handler))?);
        Ok(Wait {
            registration,
            interest,
        })
    }

    /// A timer for something to be done later.
    pub(super) fn later(&self, what: fn(&mut Muxer)) -> Option<Timer> {
        let device = Weak::clone(&self.device);
        let due = move || {
            if let Some(device) = device.upgrade() {
                what(&mut device.lock());
            }
        };
        self.reactor.as_ref()?.timer(due).ok()
    }
}

impl Wait {
    /// Waits for something else from now on.
    pub(super) fn set(&mut self, interest: Interest) {
        let Some(registration) = &self.registration else {
            return;
        };
        if self.interest != interest && registration.set_interest(interest).is_ok() {
            self.interest = interest;
        }
    }

    /// Waits for nothing. What comes back is to be dropped where no lock is held that a handler takes,
    /// or on the reactor's own thread.
    pub(super) fn end(&mut self) -> Option<Registration> {
        self.registration.take()
    }

    pub(super) fn is_on(&self) -> bool {
        self.registration.is_some()
    }
}
