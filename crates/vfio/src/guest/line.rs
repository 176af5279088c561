//! INTx of a device, led to a guest's interrupt controller.
//!
//! The kernel masks the line when it comes in and signals an eventfd. Then the guest's line goes
//! high, until the guest ends the interrupt: only the device knows whether it still asks, so the
//! guest's line is lowered and the host's unmasked, and it comes again if it does
//! (Documentation/driver-api/vfio.rst). While the guest has its line disabled, the host's stays
//! masked.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use vmlet_bus::{IrqLine, LineEnd};
use vmlet_reactor::{Interest, Reactor, Ready, Registration};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Device, InterruptKind, VfioError};

#[derive(Debug, Default)]
struct State {
    /// The kernel signals the eventfd.
    wired: bool,
    /// The guest's line is high.
    high: bool,
    /// The guest lets its line interrupt.
    allowed: bool,
}

/// A device's line.
#[derive(Debug)]
pub(super) struct Line {
    device: Arc<Device>,
    out: Arc<dyn IrqLine>,
    eventfd: Arc<EventFd>,
    state: Mutex<State>,
}

impl Line {
    /// The line of `device`, which nobody has switched on yet; it drives `out`. Signals are waited
    /// for as long as the registration is held.
    pub(super) fn new(
        device: &Arc<Device>,
        out: Arc<dyn IrqLine>,
        reactor: &Reactor,
    ) -> Result<(Arc<Line>, Registration), VfioError> {
        let eventfd = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let eventfd = eventfd.map_err(|source| VfioError::Call {
            call: "eventfd",
            source,
        })?;
        let line = Arc::new(Line {
            device: Arc::clone(device),
            out,
            eventfd: Arc::new(eventfd),
            state: Mutex::default(),
        });
        let ends = Arc::downgrade(&line);
        line.out.on_end(ends);
        let raised: Weak<Line> = Arc::downgrade(&line);
        let handler = move |_: Ready| {
            if let Some(line) = raised.upgrade() {
                line.raise();
            }
        };
        let source = Arc::clone(&line.eventfd);
        let registration = reactor.add(source, Interest::SIGNAL, Arc::new(handler))?;
        Ok((line, registration))
    }

    /// Switches the device's line on or off.
    pub(super) fn wire(&self, on: bool) -> Result<(), VfioError> {
        let mut state = self.lock();
        if on == state.wired {
            return Ok(());
        }
        state.wired = on;
        if on {
            let fd = self.eventfd.as_raw_fd();
            return self.device.wire(InterruptKind::Intx, 0, &[fd]);
        }
        let done = self.device.unwire(InterruptKind::Intx);
        state.high = false;
        self.out.set(false);
        done
    }

    /// The guest lets its line interrupt, or not.
    pub(super) fn allow(&self, allowed: bool) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.allowed, allowed);
        if allowed && !before {
            // What the guest has dealt with while its line was disabled does not come again.
            self.look_again(&mut state);
        }
    }

    /// The device was reset: it asks for nothing.
    pub(super) fn reset(&self) {
        self.look_again(&mut self.lock());
    }

    fn raise(&self) {
        let mut state = self.lock();
        if state.wired {
            state.high = true;
            self.out.set(true);
        }
    }

    /// Lowers the guest's line, and has the device raise it again if it still asks.
    fn look_again(&self, state: &mut State) {
        state.high = false;
        self.out.set(false);
        if !state.wired || !state.allowed {
            return;
        }
        match self.device.unmask() {
            Ok(()) | Err(VfioError::Closed) => {}
            Err(error) => log::warn!("INTx of {} stays masked: {error}", self.device.address()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineEnd for Line {
    fn ended(&self) {
        let mut state = self.lock();
        if state.high {
            self.look_again(&mut state);
        }
    }
}
