//! virtio devices that the machine's user brings.

use std::sync::Arc;

use vmlet_devices::virtio::{Place, VirtioPci};
use vmlet_reactor::Reactor;

use crate::{Machine, MachineError, ThreadStarter};

pub use vmlet_devices::virtio::{
    Activation, Chain, QueueFault, VirtQueue, VirtioDevice, VirtioInterrupt,
};

impl Machine {
    /// Puts a virtio device into root port `port`, or into the first that is free; gives which. It
    /// works on a thread of its own, which `spawn` starts; in a counted run on the guest's.
    pub fn attach_virtio(
        &self,
        device: Arc<dyn VirtioDevice>,
        port: Option<u8>,
        spawn: &ThreadStarter,
    ) -> Result<u8, MachineError> {
        let place = if self.instructions().is_ok() {
            Place::Guest
        } else {
            let reactor = Reactor::start("vmlet-device", spawn);
            Place::Reactor(reactor.map_err(|error| MachineError::Board(error.to_string()))?)
        };
        self.attach(VirtioPci::new(device, place), port)
    }
}
