//! The virtio console, as the machine's user reads and types.

use std::sync::Arc;

use vmlet_devices::{serial::INPUT_LIMIT, virtio::console::VirtioConsole};

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
        only_one(&parts.terminal, parts.board.pci.as_ref(), "VirtioConsole")?;
        let output = parts.life.terminal(self.console_limit);
        let device = Arc::new(VirtioConsole::new(Box::new(ConsoleFeed::new(&output))));
        device.resize(size);
        self.attach_reached(&device, &parts.terminal, self.shared_place(spawn)?, port)
    }

    /// The output of the virtio console. It can be read when the device, or the machine, is gone.
    pub fn terminal(&self) -> Result<Arc<Console>, MachineError> {
        self.inner()?.life.terminal_if_any().ok_or_else(no_terminal)
    }

    /// Types `bytes`; gives how many were taken.
    pub fn terminal_input(&self, bytes: &[u8]) -> Result<usize, MachineError> {
        let parts = self.open()?;
        let device = parts.terminal_device()?;
        if self.is_counted()? {
            let room = INPUT_LIMIT.saturating_sub(device.unread());
            let bytes = bytes.get(..bytes.len().min(room)).unwrap_or_default();
            let taken = parts.terminal.input(&*device, bytes)?;
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
        let device = self.terminal.device(self.board.pci.as_ref());
        device.ok_or_else(no_terminal)
    }
}

fn no_terminal() -> MachineError {
    let remedy = "Make the VM with devices=[vmlet.VirtioConsole()].";
    missing("terminal", remedy)
}
