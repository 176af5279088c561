//! A descriptor that is waited for.

use std::{fmt, sync::Arc};

use vmlet_memory::fork::ParentOnly;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent};

use crate::{
    Interest, ReactorError,
    reactor::{Shared, Source},
};

/// A descriptor that a reactor waits for. Once it is dropped its handler does not run and never
/// will: a drop waits for a call in progress, unless it comes from the reactor's own thread. So no
/// lock that the handler takes may be held while it is dropped.
pub struct Registration {
    shared: Arc<ParentOnly<Shared>>,
    token: u64,
    source: Arc<dyn Source>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Registration");
        fields.field("token", &self.token).finish_non_exhaustive()
    }
}

impl Registration {
    pub(crate) fn new(
        shared: Arc<ParentOnly<Shared>>,
        token: u64,
        source: Arc<dyn Source>,
    ) -> Registration {
        Registration {
            shared,
            token,
            source,
        }
    }

    /// Waits for something else from now on.
    pub fn set_interest(&self, interest: Interest) -> Result<(), ReactorError> {
        if !self.shared.origin.is_here() {
            return Err(ReactorError::Forked);
        }
        let event = EpollEvent::new(interest.events(), self.token);
        let fd = self.source.as_raw_fd();
        let changed = self.shared.epoll.ctl(ControlOperation::Modify, fd, event);
        changed.map_err(ReactorError::call("epoll_ctl"))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.shared.origin.is_here() {
            return;
        }
        let fd = self.source.as_raw_fd();
        let event = EpollEvent::default();
        let _ = self.shared.epoll.ctl(ControlOperation::Delete, fd, event);
        self.shared.remove(self.token);
    }
}
