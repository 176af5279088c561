//! What the driver's notifications wake (virtio 1.2, section 4.1.4.4).
//!
//! A queue's doorbell is an eventfd that the engine signals and a reactor waits for. On the guest's
//! thread there is none: the register's write does the work.

use std::{
    io,
    sync::{Arc, Weak},
};

use vmlet_bus::{self as bus, Doorbell};
use vmlet_memory::fork::{self, Watch};
use vmlet_reactor::{Interest, Reactor, ReactorError, Ready, Registration, Source};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{
    layout::{NOTIFY, NOTIFY_STEP},
    pci::Core,
};

/// The doorbells of one activation, by queue; `None` for a queue that is not used.
#[derive(Debug, Default)]
pub(super) struct Bells {
    fds: Vec<Option<Arc<EventFd>>>,
    waits: Vec<Registration>,
    hung: Option<u64>,
    _watched: Vec<Watch>,
}

impl Bells {
    /// A doorbell for every queue that `enabled` names.
    pub(super) fn make(enabled: impl Iterator<Item = bool>) -> io::Result<Bells> {
        let make = |enabled: bool| {
            let fd = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Arc::new);
            enabled.then(fd).transpose()
        };
        let fds: Vec<_> = enabled.map(make).collect::<io::Result<_>>()?;
        let made = fds.iter().flatten();
        let watched = made.filter_map(|fd| fork::watch_fd(std::os::fd::AsRawFd::as_raw_fd(&**fd)));
        Ok(Bells {
            _watched: watched.collect(),
            fds,
            ..Bells::default()
        })
    }

    /// The doorbell of queue `index`.
    pub(super) fn of(&self, index: u16) -> Option<&Arc<EventFd>> {
        self.fds.get(usize::from(index))?.as_ref()
    }

    fn each(&self) -> impl Iterator<Item = (u16, &Arc<EventFd>)> {
        let numbered = (0..).zip(&self.fds);
        numbered.filter_map(|(index, fd)| Some((index, fd.as_ref()?)))
    }

    /// Has `reactor` wait for all of them.
    pub(super) fn listen(
        &mut self,
        reactor: &Reactor,
        core: &Arc<Core>,
    ) -> Result<(), ReactorError> {
        let mut waits = Vec::new();
        for (index, fd) in self.each() {
            let core = Arc::downgrade(core);
            let handler = move |_: Ready| answer(&core, index);
            let source: Arc<dyn Source> = Arc::<EventFd>::clone(fd);
            waits.push(reactor.add(source, Interest::SIGNAL, Arc::new(handler))?);
        }
        self.waits = waits;
        Ok(())
    }

    /// Rings all of them.
    pub(super) fn ring_all(&self) {
        self.each().for_each(|(_, fd)| {
            let _ = fd.write(1);
        });
    }

    /// Hangs them up where the registers are now; `None` takes them down. Where the engine does not
    /// take one, the register's write rings it.
    pub(super) fn hang(&mut self, board: &dyn bus::Doorbells, bar: Option<u64>) {
        if let Some(old) = self.hung.take() {
            self.each()
                .for_each(|(index, fd)| board.detach(&bell(old, index), fd));
        }
        if let Some(new) = bar {
            for (index, fd) in self.each() {
                if let Err(error) = board.attach(&bell(new, index), fd) {
                    log::debug!(target: "vmlet.virtio", "doorbell {index} is served by exits: {error}");
                }
            }
        }
        self.hung = bar;
    }
}

/// Every width: drivers write two bytes, and KVM is quickest where it need not look.
fn bell(bar: u64, index: u16) -> Doorbell {
    Doorbell {
        addr: bar + NOTIFY.start + u64::from(index) * u64::from(NOTIFY_STEP),
        len: 0,
        value: None,
    }
}

fn answer(core: &Weak<Core>, index: u16) {
    if let Some(core) = core.upgrade() {
        core.kick(index);
    }
}
