//! The device between `DRIVER_OK` and reset.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use vmlet_reactor::{Interest, Reactor, Ready, Registration, Timer};

use super::{
    CONTROL, HEADER, MacAddress, RX, TX, control,
    filter::Filter,
    rx::{Next, Rx},
    tx,
};
use crate::{
    backend::net::NetBackend,
    virtio::{
        Activation, Place, VirtQueue,
        late::{Bounds, Late},
    },
};

/// A short frame that is sent alone is told of with the next one, or after a while: the answer to it,
/// with which drivers give its memory back too, tends to come sooner.
const ONE_FRAME: Bounds = Bounds {
    buffers: 1,
    time: Duration::from_millis(4),
};

/// What the driver sets and the owner too.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) mac: MacAddress,
    pub(super) link_up: bool,
    pub(super) filter: Filter,
}

/// What a device's parts share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Mutex<Settings>,
    pub(super) backend: Arc<dyn NetBackend>,
    /// The longest packet, where the owner has set one.
    pub(super) mtu: Option<u16>,
}

impl Shared {
    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Wait {
    registration: Option<Registration>,
    wanted: Interest,
    set: Interest,
}

/// An active device.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) active: Activation,
    pub(super) shared: Arc<Shared>,
    reactor: Option<Arc<Reactor>>,
    rx: Mutex<Rx>,
    wait: Mutex<Wait>,
    /// Frames wait for room on the host.
    blocked: AtomicBool,
    late: Late,
}

impl Session {
    pub(super) fn new(active: Activation, shared: &Arc<Shared>, place: &Place) -> Arc<Session> {
        let reactor = match place {
            Place::Reactor(reactor) => Some(Arc::clone(reactor)),
            Place::Guest => None,
        };
        let header = shared.backend.has_header();
        let skip = if header { 0 } else { HEADER };
        let rx = Rx::new(active.features, shared.mtu, skip);
        Arc::new(Session {
            active,
            shared: Arc::clone(shared),
            reactor,
            rx: Mutex::new(rx),
            wait: Mutex::new(Wait {
                registration: None,
                wanted: Interest::NONE,
                set: Interest::NONE,
            }),
            blocked: AtomicBool::new(false),
            late: Late::default(),
        })
    }

    pub(super) fn queue(&self, index: u16) -> Option<&VirtQueue> {
        let queue = self.active.queues.get(usize::from(index))?;
        queue.is_enabled().then_some(&**queue)
    }

    /// Waits for the back end from now on.
    pub(super) fn listen(self: &Arc<Session>) {
        self.blocked.store(false, Ordering::Release);
        self.late.begin(self.timer());
        let (Some(reactor), Some(source)) = (&self.reactor, self.shared.backend.source()) else {
            return;
        };
        let session: Weak<Session> = Arc::downgrade(self);
        let handler = move |ready: Ready| {
            if let Some(session) = session.upgrade() {
                session.answer(ready);
            }
        };
        let added = reactor.add(source, Interest::NONE, Arc::new(handler));
        let mut wait = lock(&self.wait);
        match added {
            Ok(registration) => wait.registration = Some(registration),
            Err(error) => {
                log::error!(target: "vmlet.virtio", "a network device hears nothing: {error}");
            }
        }
        wait.set = Interest::NONE;
        wait.wanted.write = false;
        Session::apply(&mut wait);
    }

    /// Tells the driver of frames that it has not heard of.
    fn timer(self: &Arc<Session>) -> Option<Timer> {
        let session: Weak<Session> = Arc::downgrade(self);
        let due = move || {
            if let Some(session) = session.upgrade() {
                session.tell();
            }
        };
        self.reactor.as_ref()?.timer(due).ok()
    }

    /// Nothing is under way when this returns. Buffers that no frame is in go back to the driver's
    /// ring.
    pub(super) fn stop(&self) {
        let registration = lock(&self.wait).registration.take();
        // A call in progress takes the locks below.
        drop(registration);
        // A call in progress takes the queue.
        drop(self.late.end());
        self.tell();
        if let Some(queue) = self.queue(RX) {
            lock(&self.rx).give_back(queue);
        }
    }

    /// The back end is ready for something.
    fn answer(&self, ready: Ready) {
        if ready.write {
            self.unblock();
        }
        let heard = self.receive();
        // Reading says so too, but for want of buffers nothing is read, and this would come for ever.
        if ready.closed && heard == Next::Starved {
            self.end();
        }
    }

    pub(super) fn kicked(&self, index: u16) {
        match index {
            RX => {
                self.receive();
            }
            TX => self.transmit(),
            CONTROL => self.obey(),
            _ => {}
        }
    }

    /// Hands frames of the back end to the driver.
    fn receive(&self) -> Next {
        let Some(queue) = self.queue(RX) else {
            return Next::Wait;
        };
        if self.reactor.is_none() {
            return Next::Wait;
        }
        let view = self.active.dma.view();
        let next = lock(&self.rx).run(queue, &view, &self.shared);
        match next {
            Next::Wait => self.want(|wanted| wanted.read = true),
            Next::Starved => self.want(|wanted| wanted.read = false),
            Next::Again => {
                let _ = queue.doorbell().map(|bell| bell.write(1));
            }
            Next::Ended => self.end(),
        }
        next
    }

    /// A frame from outside in a counted run.
    pub(super) fn input(&self, frame: &[u8]) {
        if let Some(queue) = self.queue(RX) {
            let view = self.active.dma.view();
            lock(&self.rx).input(queue, &view, &self.shared, frame);
        }
    }

    /// Sends the driver's frames.
    fn transmit(&self) {
        let Some(queue) = self.queue(TX) else {
            return;
        };
        if self.blocked.load(Ordering::Acquire) {
            return;
        }
        self.tell();
        let (view, can_wait) = (self.active.dma.view(), self.reactor.is_some());
        let sent = tx::run(queue, &view, &self.shared, can_wait);
        if !(sent.is_short_alone() && self.late.keeps(1, ONE_FRAME)) {
            queue.notify(&view);
        }
        self.blocked.store(sent.blocked, Ordering::Release);
        let waits = sent.blocked || self.shared.backend.unsent();
        self.want(|wanted| wanted.write = waits);
    }

    /// Interrupts for a frame whose interrupt was kept back, if the driver still asks for it.
    fn tell(&self) {
        if let Some(queue) = self.queue(TX)
            && self.late.take()
        {
            queue.notify(&self.active.dma.view());
        }
    }

    /// There is room on the host again.
    fn unblock(&self) {
        let _ = self.shared.backend.flush();
        self.blocked.store(false, Ordering::Release);
        self.transmit();
    }

    fn obey(&self) {
        if let Some(queue) = self.queue(CONTROL) {
            control::run(queue, &self.active, &self.shared);
        }
    }

    fn want(&self, change: impl FnOnce(&mut Interest)) {
        let mut wait = lock(&self.wait);
        change(&mut wait.wanted);
        Session::apply(&mut wait);
    }

    fn apply(wait: &mut Wait) {
        if wait.wanted == wait.set {
            return;
        }
        if let Some(registration) = &wait.registration {
            match registration.set_interest(wait.wanted) {
                Ok(()) => wait.set = wait.wanted,
                Err(error) => log::error!(target: "vmlet.virtio", "epoll: {error}"),
            }
        }
    }

    /// The other side is gone for good: the cable is out.
    fn end(&self) {
        let registration = lock(&self.wait).registration.take();
        drop(registration);
        self.blocked.store(false, Ordering::Release);
        let was_up = std::mem::replace(&mut self.shared.settings().link_up, false);
        if was_up {
            log::info!(target: "vmlet.virtio", "the other side of a network device has ended");
            self.active.interrupt.config();
        }
        self.transmit();
    }
}
