//! The memory balloon, as the machine's user works it.

use std::{sync::Arc, time::Duration};

use vmlet_devices::virtio::balloon::{Balloon, BalloonOptions, BalloonState, Statistics};

use super::{
    Machine, Parts,
    reach::{missing, only_one},
};
use crate::{MachineError, ThreadStarter};

const NAME: &str = "Balloon";

impl Machine {
    /// Makes a balloon and puts it into root port `port`, or into the first that is free; gives
    /// which.
    pub fn attach_balloon(
        &self,
        options: BalloonOptions,
        port: Option<u8>,
        spawn: &ThreadStarter,
    ) -> Result<u8, MachineError> {
        self.check_target(options.target)?;
        let parts = self.open()?;
        only_one(&parts.balloon, parts.board.pci.as_ref(), NAME)?;
        let device = Arc::new(Balloon::new(options));
        self.attach_reached(&device, &parts.balloon, self.shared_place(spawn)?, port)
    }

    /// How the balloon is.
    pub fn balloon(&self) -> Result<BalloonState, MachineError> {
        Ok(self.open()?.balloon()?.state())
    }

    /// Asks the guest to have given up `bytes` in all.
    pub fn set_balloon_target(&self, bytes: u64) -> Result<(), MachineError> {
        self.check_target(bytes)?;
        self.open()?.enter_balloon(&bytes.to_le_bytes())
    }

    /// Asks the guest for figures of its memory; the number of those that are there already.
    pub fn ask_balloon(&self) -> Result<u64, MachineError> {
        let parts = self.open()?;
        let number = parts.balloon()?.statistics().number;
        parts.enter_balloon(&[])?;
        Ok(number)
    }

    /// Figures that are newer than the `number`th; `None` when `timeout` passes before.
    pub fn balloon_statistics(
        &self,
        number: u64,
        timeout: Duration,
    ) -> Result<Option<Statistics>, MachineError> {
        let device = self.open()?.balloon()?;
        Ok(device.wait_statistics(number, timeout))
    }

    fn check_target(&self, bytes: u64) -> Result<(), MachineError> {
        if bytes <= self.memory {
            return Ok(());
        }
        Err(MachineError::Config {
            what: "target",
            detail: format!("{bytes} bytes of a VM's {}", self.memory),
            remedy: "Give at most the VM's memory.",
        })
    }
}

impl Parts {
    fn balloon(&self) -> Result<Arc<Balloon>, MachineError> {
        let device = self.balloon.device(self.board.pci.as_ref());
        device.ok_or_else(|| missing("balloon", "Make the VM with devices=[vmlet.Balloon()]."))
    }

    fn enter_balloon(&self, bytes: &[u8]) -> Result<(), MachineError> {
        if self.balloon.input(&*self.balloon()?, bytes)? {
            return Ok(());
        }
        Err(MachineError::Config {
            what: "balloon",
            detail: "a run that is over, or that has not taken what was set before".to_owned(),
            remedy: "Start it, or make another VM.",
        })
    }
}
