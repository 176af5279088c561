//! A device's interrupts, on while the guest has them on.
//!
//! Messages go by eventfds from the kernel to the guest's local APICs, without this process. A
//! vector gets its eventfd when the guest first unmasks it: the host's interrupts are not without
//! number, and guests use few of those that devices have. The device itself has MSI-X on as soon as
//! the guest has: some look at that when they are set up, before their driver unmasks anything.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmlet_pci::{Links, Switches};
use vmm_sys_util::eventfd::EventFd;

use super::line::Line;
use crate::{Device, InterruptKind, VfioError};

#[derive(Debug, Default)]
struct State {
    /// What is on; one kind at a time can be.
    kind: Option<InterruptKind>,
    /// Eventfds by vector.
    eventfds: BTreeMap<u16, EventFd>,
    /// How many vectors the host has on.
    vectors: u16,
    switches: Switches,
    ended: bool,
    /// A failure was told: a guest can have it come again and again.
    told: bool,
}

/// A device's interrupts.
#[derive(Debug)]
pub(super) struct Signals {
    device: Arc<Device>,
    links: Links,
    line: Option<Arc<Line>>,
    state: Mutex<State>,
}

impl Signals {
    pub(super) fn new(device: Arc<Device>, links: Links, line: Option<Arc<Line>>) -> Signals {
        Signals {
            device,
            links,
            line,
            state: Mutex::default(),
        }
    }

    /// The guest has written config space.
    pub(super) fn switched(&self, now: Switches) {
        let mut state = self.lock();
        state.switches = now;
        self.follow(&mut state);
    }

    /// The guest has written to the table of MSI-X.
    pub(super) fn table_written(&self) {
        self.follow(&mut self.lock());
    }

    /// The device was reset.
    pub(super) fn reset(&self) {
        if let Some(line) = &self.line {
            line.reset();
        }
    }

    /// Switches all off, for good.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.follow(&mut state);
    }

    /// Has the host's interrupts be what the guest's are. What fails is told, and not tried again
    /// before the guest changes something.
    fn follow(&self, state: &mut State) {
        let wanted = self.wanted(state);
        if wanted != state.kind {
            let before = std::mem::replace(&mut state.kind, wanted);
            let off = before.map_or(Ok(()), |kind| self.switch_off(kind));
            state.eventfds.clear();
            state.vectors = 0;
            let line = self
                .line
                .as_ref()
                .filter(|_| wanted == Some(InterruptKind::Intx));
            let on = line.map_or(Ok(()), |line| line.wire(true));
            let on = on.and_then(|()| match wanted {
                Some(InterruptKind::Msix) => self.wire(state, 0, &[-1]),
                _ => Ok(()),
            });
            tell(&self.device, state, off.and(on));
        }
        match wanted {
            Some(InterruptKind::Msi) if state.eventfds.is_empty() => {
                let done = self.add(state, &[0]);
                tell(&self.device, state, done);
            }
            Some(InterruptKind::Msix) => {
                let open = |vector: &u16| self.links.msix.is_open(*vector);
                let vectors = (0..self.links.msix.vectors()).filter(open);
                let new: Vec<u16> = vectors
                    .filter(|vector| !state.eventfds.contains_key(vector))
                    .collect();
                let done = self.add(state, &new);
                tell(&self.device, state, done);
            }
            _ => {}
        }
        if let Some(line) = &self.line {
            line.allow(state.switches.line && !state.ended);
        }
    }

    fn wanted(&self, state: &State) -> Option<InterruptKind> {
        match state.ended {
            true => None,
            _ if self.links.msix.enabled() => Some(InterruptKind::Msix),
            _ if self.links.msi.enabled() => Some(InterruptKind::Msi),
            _ => self.line.as_ref().map(|_| InterruptKind::Intx),
        }
    }

    fn switch_off(&self, kind: InterruptKind) -> Result<(), VfioError> {
        match (&self.line, kind) {
            (Some(line), InterruptKind::Intx) => line.wire(false),
            _ => self.device.unwire(kind),
        }
    }

    /// Wires vectors that the guest uses for the first time.
    fn add(&self, state: &mut State, new: &[u16]) -> Result<(), VfioError> {
        let kind = state.kind.filter(|_| !new.is_empty());
        let Some(kind) = kind else {
            return Ok(());
        };
        for vector in new {
            let eventfd = self.eventfd(kind, *vector)?;
            state.eventfds.insert(*vector, eventfd);
        }
        let inside = |last: u16| new.iter().all(|vector| *vector < last) || self.device.grows(kind);
        if state.vectors > 0 && inside(state.vectors) {
            return new.iter().try_for_each(|one| {
                let fds = fds(state, *one..=*one);
                self.wire(state, *one, &fds)
            });
        }
        if state.vectors > 0 {
            self.device.unwire(kind)?;
        }
        let last = state.eventfds.last_key_value().map_or(0, |(last, _)| *last);
        let fds = fds(state, 0..=last);
        self.wire(state, 0, &fds)
    }

    /// Has vectors of the kind that is on written to these eventfds.
    fn wire(&self, state: &mut State, first: u16, fds: &[RawFd]) -> Result<(), VfioError> {
        let kind = state.kind.ok_or(VfioError::Closed)?;
        self.device.wire(kind, first.into(), fds)?;
        let end = usize::from(first).saturating_add(fds.len());
        state.vectors = state.vectors.max(u16::try_from(end).unwrap_or(u16::MAX));
        Ok(())
    }

    fn eventfd(&self, kind: InterruptKind, vector: u16) -> Result<EventFd, VfioError> {
        let route = match kind {
            InterruptKind::Msix => self.links.msix.route(vector),
            _ => Some(self.links.msi.route()),
        };
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let made = route.ok_or_else(missing).and_then(|route| route.eventfd());
        made.map_err(|source| VfioError::Call {
            call: "eventfd of a vector",
            source,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The eventfds of some vectors; -1 for those that the guest does not use.
fn fds(state: &State, vectors: std::ops::RangeInclusive<u16>) -> Vec<RawFd> {
    let fd = |vector| state.eventfds.get(&vector).map_or(-1, AsRawFd::as_raw_fd);
    vectors.map(fd).collect()
}

fn tell(device: &Device, state: &mut State, done: Result<(), VfioError>) {
    match done {
        Err(error) if !matches!(error, VfioError::Closed) && !state.told => {
            let address = device.address();
            log::error!("the guest does not get interrupts of {address}: {error}");
            state.told = true;
        }
        _ => {}
    }
}
