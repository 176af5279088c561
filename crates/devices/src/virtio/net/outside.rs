//! Frames that enter a counted run: read on the reactor's thread, handed to who lets them in.

use std::{
    fmt::Debug,
    io,
    sync::{Arc, Mutex, Weak},
};

use vmlet_reactor::{Interest, Reactor, ReactorError, Ready, Registration};

use super::session::{Shared, lock};
use crate::backend::net::LONGEST;

/// Takes frames that are to enter a run by [`crate::virtio::VirtioDevice::input`].
pub trait FrameSink: Send + Sync + Debug {
    /// A frame; without room it is lost.
    fn push(&self, frame: &[u8]);
}

/// Reads a back end, for as long as it lives.
#[derive(Debug)]
pub(super) struct Feed {
    _registration: Arc<Mutex<Option<Registration>>>,
    // After it: the thread that it waits for.
    _reactor: Arc<Reactor>,
}

impl Feed {
    /// Reads `shared`'s back end for `sink`; `None` where nothing ever comes.
    pub(super) fn start(
        shared: &Arc<Shared>,
        reactor: &Arc<Reactor>,
        sink: Arc<dyn FrameSink>,
    ) -> Result<Option<Feed>, ReactorError> {
        let Some(source) = shared.backend.source() else {
            return Ok(None);
        };
        let place = Arc::new(Mutex::new(None));
        let (from, own) = (Arc::downgrade(shared), Arc::downgrade(&place));
        let handler = move |_: Ready| {
            if !pass(&from, &*sink) {
                let registration = own.upgrade().and_then(|place| lock(&place).take());
                drop(registration);
            }
        };
        *lock(&place) = Some(reactor.add(source, Interest::READ, Arc::new(handler))?);
        Ok(Some(Feed {
            _registration: place,
            _reactor: Arc::clone(reactor),
        }))
    }
}

/// Hands on what there is; false at the end.
fn pass(from: &Weak<Shared>, sink: &dyn FrameSink) -> bool {
    let Some(shared) = from.upgrade() else {
        return false;
    };
    let mut frame = vec![0; LONGEST];
    loop {
        match shared.backend.receive(&[], &mut frame) {
            Ok(len) => sink.push(frame.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
