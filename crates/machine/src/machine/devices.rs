//! Devices that come and go.
//!
//! A device sits in the slot of a root port. Before the guest starts it is simply there; later the
//! guest is told by native hot-plug, and asked before a device leaves. In a counted run that has to
//! happen while guest code stands still, where its place in the run is known.

use std::{sync::Arc, time::Duration};

use vmlet_pci::{Function, PciError, Plug};

use super::{Machine, Parts};
use crate::{MachineError, State, board::PciBus};

impl Machine {
    /// Puts a device into root port `port` (from 1 on), or into the first that is free; gives
    /// which. In a restored machine a device goes back where it was, and takes its state with it.
    pub fn attach(&self, device: Arc<dyn Function>, port: Option<u8>) -> Result<u8, MachineError> {
        let (parts, _turn) = self.plugging("attaching a device")?;
        let bus = parts.bus()?;
        let port = port.or_else(|| bus.waiting_for(device.name()));
        Ok(bus.root.plug(device, port, bus.plug())?)
    }

    /// Asks the guest for the device in `port`; [`Machine::end_detach`] has the rest. Before the
    /// guest has started it goes at once. An event says when it has gone.
    pub fn begin_detach(&self, port: u8) -> Result<(), MachineError> {
        let (parts, _turn) = self.plugging("detaching a device")?;
        let bus = parts.bus()?;
        match bus.plug() {
            Plug::Cold => Ok(bus.root.pull(port, Plug::Cold)?),
            Plug::Hot => Ok(bus.root.request_unplug(port)?),
        }
    }

    /// Whether the device in `port` has gone; waits for it up to `limit`. A guest that does not use
    /// hot-plug never lets go of it; it may also take up to ten seconds.
    pub fn end_detach(&self, port: u8, limit: Duration) -> Result<bool, MachineError> {
        let parts = self.open()?;
        let bus = parts.bus()?;
        let gone = || bus.root.is_empty(port);
        Ok(bus.watch.wait(limit, gone))
    }

    /// Takes the device in `port` without asking the guest, which hears of it.
    pub fn pull(&self, port: u8) -> Result<(), MachineError> {
        let (parts, _turn) = self.plugging("pulling a device")?;
        let bus = parts.bus()?;
        bus.root.pull(port, bus.plug())?;
        bus.watch.wake();
        Ok(())
    }

    /// The devices there are: root port and name.
    pub fn devices(&self) -> Result<Vec<(u8, &'static str)>, MachineError> {
        let parts = self.open()?;
        let Some(bus) = &parts.board.pci else {
            return Ok(Vec::new());
        };
        let device = |port| Some((port, bus.root.function(port)?.name()));
        Ok((1..=bus.root.ports()).filter_map(device).collect())
    }

    /// The devices that a restored machine had and that are to be attached again: root port and
    /// name.
    pub fn missing_devices(&self) -> Result<Vec<(u8, String)>, MachineError> {
        let parts = self.open()?;
        let bus = parts.board.pci.as_ref();
        Ok(bus.map_or_else(Vec::new, |bus| bus.root.waiting()))
    }

    /// The root port that a device gets which asks for `port`, if it is to be had.
    pub(crate) fn next_port(&self, port: Option<u8>) -> Result<u8, MachineError> {
        let parts = self.open()?;
        let root = &parts.bus()?.root;
        let free = (1..=root.ports()).find(|port| root.function(*port).is_none());
        Ok(port.or(free).unwrap_or(0))
    }

    fn plugging(
        &self,
        action: &'static str,
    ) -> Result<(Arc<Parts>, std::sync::MutexGuard<'_, ()>), MachineError> {
        self.unrecorded(action)?;
        let (parts, turn) = (self.open()?, self.inner()?.take_turn());
        let state = parts.life.state();
        let counted = parts.life.journal.get().is_some();
        match state {
            State::Ended | State::Closed => parts.expect(action, State::Running)?,
            State::Running if counted => parts.expect(action, State::Paused)?,
            State::Created | State::Running | State::Paused => {}
        }
        Ok((parts, turn))
    }
}

impl Parts {
    /// Refuses devices where there is no root port to put them into.
    pub(super) fn has_port(&self) -> Result<(), MachineError> {
        self.bus().map(drop)
    }

    fn bus(&self) -> Result<&PciBus, MachineError> {
        let bus = self.board.pci.as_ref();
        bus.ok_or(MachineError::Device(PciError::Full { count: 0 }))
    }

    /// Refuses to run a restored guest without its devices.
    pub(super) fn complete(&self) -> Result<(), MachineError> {
        let Some(bus) = &self.board.pci else {
            return Ok(());
        };
        if let Some((port, device)) = bus.root.waiting().into_iter().next() {
            return Err(MachineError::MissingDevice { device, port });
        }
        bus.set_booted();
        bus.root.resume();
        Ok(())
    }

    /// Has devices let go of what they have of the host.
    pub(super) fn end_devices(&self) {
        if let Some(bus) = &self.board.pci {
            bus.root.end();
        }
    }

    /// Has devices finish what they do; guest code stands still.
    pub(super) fn pause_devices(&self) {
        if let Some(bus) = &self.board.pci {
            bus.root.pause();
        }
    }
}
