//! The kernel works on the queues of frames (vhost-net); commands stay here.

use std::sync::{Arc, Mutex, Weak};

use vm_memory::{Bytes, GuestAddress};
use vmlet_memory::{Gpa, Lease};
use vmlet_reactor::{Interest, Reactor, Ready, Registration, Source};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{
    CONTROL, RX, TX, control,
    session::{Shared, lock},
};
use crate::{
    backend::net::{NetError, Ring, VhostNet},
    virtio::{Activation, VirtQueue},
};

/// What the kernel works on.
const QUEUES: [u16; 2] = [RX, TX];

#[derive(Debug, Default)]
struct Held {
    running: bool,
    _leases: Vec<Lease>,
    /// Interrupts that have no route of their own, and commands.
    _waits: Vec<Registration>,
}

/// An active device whose frames the kernel moves.
#[derive(Debug)]
pub(super) struct KernelSession {
    active: Activation,
    shared: Arc<Shared>,
    vhost: Arc<VhostNet>,
    reactor: Arc<Reactor>,
    held: Mutex<Held>,
}

fn call(what: &'static str) -> impl Fn(std::io::Error) -> NetError {
    move |source| NetError::Call { call: what, source }
}

impl KernelSession {
    pub(super) fn start(
        active: Activation,
        shared: &Arc<Shared>,
        vhost: &Arc<VhostNet>,
        reactor: &Arc<Reactor>,
    ) -> Result<Arc<KernelSession>, NetError> {
        let session = Arc::new(KernelSession {
            active,
            shared: Arc::clone(shared),
            vhost: Arc::clone(vhost),
            reactor: Arc::clone(reactor),
            held: Mutex::default(),
        });
        session.go()?;
        Ok(session)
    }

    fn queue(&self, index: u16) -> Option<&Arc<VirtQueue>> {
        let queue = self.active.queues.get(usize::from(index));
        queue.filter(|queue| queue.is_enabled())
    }

    /// Has the kernel work.
    pub(super) fn go(self: &Arc<KernelSession>) -> Result<(), NetError> {
        let unsupported = |what| call(what)(std::io::ErrorKind::Unsupported.into());
        let view = self.active.dma.view();
        let memory = view
            .untranslated()
            .ok_or_else(|| unsupported("DMA translation"))?;
        let tap = self.shared.backend.descriptor();
        let tap = tap.ok_or_else(|| unsupported("descriptor"))?;
        let (mut rings, mut waits) = (Vec::new(), Vec::new());
        for index in QUEUES {
            let queue = self.queue(index).ok_or_else(|| unsupported("queue"))?;
            rings.push(self.ring(index, queue, &mut waits)?);
        }
        self.listen_for_commands(&mut waits)?;
        let leases = self
            .vhost
            .start(memory, self.active.features, &rings, &tap)?;
        // What the driver added before there was anybody to hear of it.
        rings.iter().for_each(|ring| drop(ring.kick.write(1)));
        *lock(&self.held) = Held {
            running: true,
            _leases: leases,
            _waits: waits,
        };
        Ok(())
    }

    fn ring(
        &self,
        index: u16,
        queue: &VirtQueue,
        waits: &mut Vec<Registration>,
    ) -> Result<Ring, NetError> {
        let state = queue.save();
        let kick = queue.doorbell().cloned();
        let kick = kick.ok_or_else(|| call("doorbell")(std::io::ErrorKind::Unsupported.into()))?;
        Ok(Ring {
            size: state.size,
            desc: Gpa(state.desc),
            avail: Gpa(state.avail),
            used: Gpa(state.used),
            next: state.next_avail,
            kick,
            call: self.interrupt(index, waits)?,
        })
    }

    /// An eventfd that interrupts the driver.
    fn interrupt(&self, index: u16, waits: &mut Vec<Registration>) -> Result<EventFd, NetError> {
        let route = self.active.interrupt.route(index);
        if let Some(Ok(fd)) = route.map(|route| route.eventfd()) {
            return Ok(fd);
        }
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(call("eventfd"))?;
        let bell = Arc::new(fd.try_clone().map_err(call("dup"))?);
        let (interrupt, read) = (Arc::clone(&self.active.interrupt), Arc::clone(&bell));
        let handler = move |_: Ready| {
            let _ = read.read();
            interrupt.queue(index);
        };
        self.wait_for(bell, handler, waits)?;
        Ok(fd)
    }

    fn listen_for_commands(
        self: &Arc<KernelSession>,
        waits: &mut Vec<Registration>,
    ) -> Result<(), NetError> {
        let Some(bell) = self.queue(CONTROL).and_then(|queue| queue.doorbell()) else {
            return Ok(());
        };
        let (session, read): (Weak<KernelSession>, _) = (Arc::downgrade(self), Arc::clone(bell));
        let handler = move |_: Ready| {
            let _ = read.read();
            if let Some(session) = session.upgrade() {
                session.obey();
            }
        };
        self.wait_for(Arc::clone(bell), handler, waits)
    }

    fn wait_for(
        &self,
        bell: Arc<EventFd>,
        handler: impl Fn(Ready) + Send + Sync + 'static,
        waits: &mut Vec<Registration>,
    ) -> Result<(), NetError> {
        let source: Arc<dyn Source> = bell;
        let added = self.reactor.add(source, Interest::READ, Arc::new(handler));
        let failed = |error: vmlet_reactor::ReactorError| std::io::Error::other(error.to_string());
        waits.push(added.map_err(failed).map_err(call("epoll_ctl"))?);
        Ok(())
    }

    pub(super) fn obey(&self) {
        if let Some(queue) = self.queue(CONTROL) {
            control::run(queue, &self.active, &self.shared);
        }
    }

    /// Takes the queues back: nothing is under way when this returns.
    pub(super) fn stop(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        if !held.running {
            return;
        }
        let view = self.active.dma.view();
        let places = self.vhost.stop(QUEUES.len());
        for (index, next_avail) in QUEUES.into_iter().zip(places) {
            if let Some(queue) = self.queue(index) {
                let used = GuestAddress(queue.save().used.wrapping_add(2));
                let next_used: u16 = view.read_obj(used).unwrap_or(0);
                queue.set_position(next_avail, u16::from_le(next_used));
            }
        }
    }
}
