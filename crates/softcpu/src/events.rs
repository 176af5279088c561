//! Eventfds: guest writes that signal one, and those that send an interrupt when signalled.

use std::{
    collections::HashMap,
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use vmlet_vcpu::{EngineError, IoEvent, MsiMessage, MsiRoute, SpaceId};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use crate::{cpu::Cpu, lapic::Apics, turns::Turns};

/// Guest writes that signal an eventfd.
#[derive(Debug, Default)]
pub(crate) struct IoEvents {
    any: AtomicBool,
    list: RwLock<Vec<(IoEvent, EventFd)>>,
}

/// Whether some write would fit both.
fn both_take(a: &IoEvent, b: &IoEvent) -> bool {
    let widths = a.len == b.len || a.len == 0 || b.len == 0;
    let values = a.value == b.value || a.value.is_none() || b.value.is_none();
    (a.space, a.addr) == (b.space, b.addr) && widths && values
}

impl IoEvents {
    pub(crate) fn add(&self, event: &IoEvent, fd: &EventFd) -> Result<(), EngineError> {
        let fits = match event.len {
            1 | 2 | 4 | 8 => true,
            0 => event.value.is_none() && event.space == SpaceId::MMIO,
            _ => false,
        };
        if !fits {
            let invalid = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(EngineError::call("attaching an I/O event", invalid));
        }
        let fd = fd.try_clone().map_err(|e| EngineError::call("dup", e))?;
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if list.iter().any(|(known, _)| both_take(known, event)) {
            let exists = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(EngineError::call("attaching an I/O event", exists));
        }
        list.push((*event, fd));
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn remove(&self, event: &IoEvent) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.retain(|(known, _)| known != event);
        self.any.store(!list.is_empty(), Ordering::Release);
    }

    fn signal(&self, space: SpaceId, addr: u64, data: &[u8]) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let value = data.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let hit = list.iter().find(|(event, _)| {
            (event.space, event.addr) == (space, addr)
                && (event.len == 0 || event.len as usize == data.len())
                && event.value.is_none_or(|wanted| wanted == value)
        });
        hit.is_some_and(|(_, fd)| fd.write(1).is_ok())
    }
}

impl Cpu {
    /// Whether a write is taken by an eventfd.
    pub(crate) fn io_event(&self, space: SpaceId, addr: u64, data: &[u8]) -> bool {
        self.io_events.signal(space, addr, data)
    }
}

/// Interrupt numbers: what they send, and which eventfds stand for them.
#[derive(Debug)]
pub(crate) struct Irqs {
    apics: Arc<Apics>,
    turns: Arc<Turns>,
    routes: Mutex<HashMap<u32, MsiMessage>>,
    fds: Mutex<HashMap<i32, (u32, EventFd)>>,
    poll: Mutex<Option<Arc<Poll>>>,
}

/// What the polling thread waits on.
#[derive(Debug)]
struct Poll {
    epoll: Epoll,
    stop: EventFd,
}

const STOP: u64 = u64::MAX;

impl Irqs {
    pub(crate) fn new(apics: Arc<Apics>, turns: Arc<Turns>) -> Irqs {
        Irqs {
            apics,
            turns,
            routes: Mutex::default(),
            fds: Mutex::default(),
            poll: Mutex::default(),
        }
    }

    pub(crate) fn set_routes(&self, routes: &[MsiRoute]) {
        let mut table = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        *table = routes
            .iter()
            .map(|route| (route.gsi, route.message))
            .collect();
    }

    fn raise(&self, gsi: u32) {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let message = routes.get(&gsi).copied();
        drop(routes);
        if let Some(message) = message
            && !self.turns.defer(message)
        {
            self.apics.message(message);
        }
    }

    /// Sends what `gsi` is routed to whenever `fd` is signalled.
    pub(crate) fn attach(self: &Arc<Self>, fd: &EventFd, gsi: u32) -> Result<(), EngineError> {
        let poll = self.polling()?;
        let copy = fd.try_clone().map_err(|e| EngineError::call("dup", e))?;
        let (number, watched) = (fd.as_raw_fd(), copy.as_raw_fd());
        let mut fds = self.fds.lock().unwrap_or_else(PoisonError::into_inner);
        let event = EpollEvent::new(EventSet::IN, number.unsigned_abs().into());
        poll.epoll
            .ctl(ControlOperation::Add, watched, event)
            .map_err(|e| EngineError::call("epoll_ctl", e))?;
        fds.insert(number, (gsi, copy));
        Ok(())
    }

    pub(crate) fn detach(&self, fd: &EventFd) -> Result<(), EngineError> {
        let mut fds = self.fds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, copy)) = fds.remove(&fd.as_raw_fd()) else {
            let missing = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(EngineError::call(
                "detaching an interrupt's eventfd",
                missing,
            ));
        };
        let poll = self.poll.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(poll) = poll.as_ref() {
            let _ = poll.epoll.ctl(
                ControlOperation::Delete,
                copy.as_raw_fd(),
                EpollEvent::default(),
            );
        }
        Ok(())
    }

    /// Starts the polling thread with the first eventfd.
    fn polling(self: &Arc<Self>) -> Result<Arc<Poll>, EngineError> {
        let mut poll = self.poll.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(poll) = poll.as_ref() {
            return Ok(Arc::clone(poll));
        }
        let epoll = Epoll::new().map_err(|e| EngineError::call("epoll_create", e))?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|e| EngineError::call("eventfd", e))?;
        epoll
            .ctl(
                ControlOperation::Add,
                stop.as_raw_fd(),
                EpollEvent::new(EventSet::IN, STOP),
            )
            .map_err(|e| EngineError::call("epoll_ctl", e))?;
        let made = Arc::new(Poll { epoll, stop });
        let (owner, watched) = (Arc::downgrade(self), Arc::clone(&made));
        thread::Builder::new()
            .name("vmlet-irqfd".to_owned())
            .spawn(move || watch(&owner, &watched))
            .map_err(|e| EngineError::call("starting the interrupt thread", e))?;
        *poll = Some(Arc::clone(&made));
        Ok(made)
    }

    fn signalled(&self, number: u64) {
        let fds = self.fds.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = i32::try_from(number)
            .ok()
            .and_then(|number| fds.get(&number))
            .filter(|(_, fd)| fd.read().is_ok())
            .map(|(gsi, _)| *gsi);
        drop(fds);
        if let Some(gsi) = gsi {
            self.raise(gsi);
        }
    }
}

impl Drop for Irqs {
    fn drop(&mut self) {
        if let Some(poll) = self
            .poll
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            let _ = poll.stop.write(1);
        }
    }
}

fn watch(owner: &Weak<Irqs>, poll: &Poll) {
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match poll.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for event in events.iter().take(count) {
            let Some(irqs) = owner.upgrade().filter(|_| event.data() != STOP) else {
                return;
            };
            irqs.signalled(event.data());
        }
    }
}
