//! The virtio console, as the machine's user reads and types.

use std::sync::Arc;

use vmlet_devices::virtio::console::VirtioConsole;

use super::{
    Machine, Parts,
    reach::{missing, only_one},
};
use crate::{Console, ConsoleFeed, MachineError, ThreadStarter};

impl Machine {
    /// Makes a console and puts it into root port `port`, or into the first that is free; gives
    /// which. `size` is the window's, in columns and rows; zeros: not known.
    pub fn attach_terminal(
        &self,
        size: [u16; 2],
        port: Option<u8>,
        spawn: &ThreadStarter,
    ) -> Result<u8, MachineError> {
        let parts = self.open()?;
        only_one(&parts.terminal, "VirtioConsole")?;
        let output = parts.life.terminal(self.console_limit);
        let device = Arc::new(VirtioConsole::new(Box::new(ConsoleFeed::new(&output))));
        device.resize(size);
        self.attach_reached(&device, &parts.terminal, port, spawn)
    }

    /// The output of the virtio console. It can be read when the device, or the machine, is gone.
    pub fn terminal(&self) -> Result<Arc<Console>, MachineError> {
        Ok(self.inner()?.life.terminal(self.console_limit))
    }

    /// Types `bytes`; gives how many were taken.
    pub fn terminal_input(&self, bytes: &[u8]) -> Result<usize, MachineError> {
        let parts = self.open()?;
        let device = parts.terminal_device()?;
        if self.is_counted()? {
            let taken = parts.terminal.input(&*device, bytes);
            return Ok(if taken { bytes.len() } else { 0 });
        }
        Ok(device.push_input(bytes))
    }

    /// Tells the guest how large the window is; zeros: not known.
    pub fn resize_terminal(&self, size: [u16; 2]) -> Result<(), MachineError> {
        self.unrecorded("resizing the console")?;
        self.open()?.terminal_device()?.resize(size);
        Ok(())
    }
}

impl Parts {
    fn terminal_device(&self) -> Result<Arc<VirtioConsole>, MachineError> {
        let remedy = "Make the VM with devices=[vmlet.VirtioConsole()].";
        let device = self.terminal.device();
        device.ok_or_else(|| missing("terminal", remedy))
    }
}
