//! The way to a device that the machine's user speaks to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmlet_devices::virtio::{Place, VirtioDevice, VirtioPci};
use vmlet_pci::Function;

use super::Machine;
use crate::{
    MachineError, ThreadStarter,
    devices::shared_reactor,
    journal::{DeviceInputs, TakesInput},
};

/// A device while it is attached, and the way of what is meant for it.
#[derive(Debug)]
pub(super) struct Reach<T>(Mutex<Option<Way<T>>>);

#[derive(Debug)]
struct Way<T> {
    device: Weak<T>,
    /// In a counted run.
    inputs: Option<DeviceInputs>,
}

impl<T> Default for Reach<T> {
    fn default() -> Reach<T> {
        Reach(Mutex::new(None))
    }
}

impl<T> Reach<T> {
    fn lock(&self) -> MutexGuard<'_, Option<Way<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, device: &Arc<T>, inputs: Option<DeviceInputs>) {
        let device = Arc::downgrade(device);
        *self.lock() = Some(Way { device, inputs });
    }

    pub(super) fn device(&self) -> Option<Arc<T>> {
        self.lock().as_ref()?.device.upgrade()
    }
}

impl<T: VirtioDevice> Reach<T> {
    /// Has `bytes` enter the device: at once, or at a point of a counted run that is noted. False:
    /// they are lost, for want of room or because a replay takes nothing from outside.
    pub(super) fn input(&self, device: &T, bytes: &[u8]) -> bool {
        match self.lock().as_ref().and_then(|way| way.inputs.clone()) {
            Some(inputs) => inputs.offer(bytes),
            None => {
                device.input(bytes);
                true
            }
        }
    }
}

/// Refuses a second device of a kind that a machine has one of.
pub(super) fn only_one<T>(reach: &Reach<T>, name: &str) -> Result<(), MachineError> {
    if reach.device().is_none() {
        return Ok(());
    }
    Err(MachineError::Config {
        what: "devices",
        detail: format!("a second {name}"),
        remedy: "A VM has one.",
    })
}

/// What is needed and is not there.
pub(super) fn missing(what: &'static str, remedy: &'static str) -> MachineError {
    MachineError::Config {
        what,
        detail: "used without a device".to_owned(),
        remedy,
    }
}

impl Machine {
    /// Puts `device` into root port `port`, or into the first that is free; gives which. What
    /// `reach` is given enters it from then on.
    pub(super) fn attach_reached<T: VirtioDevice + 'static>(
        &self,
        device: &Arc<T>,
        reach: &Reach<T>,
        port: Option<u8>,
        spawn: &ThreadStarter,
    ) -> Result<u8, MachineError> {
        let place = if self.is_counted()? {
            Place::Guest
        } else {
            Place::Reactor(shared_reactor(spawn)?)
        };
        let function = VirtioPci::new(Arc::clone(device) as Arc<dyn VirtioDevice>, place);
        let port = self.attach(Arc::clone(&function) as Arc<dyn Function>, port)?;
        let inputs = self.journal()?.map(|journal| {
            let inputs: Weak<VirtioPci> = Arc::downgrade(&function);
            journal.connect(port, inputs as Weak<dyn TakesInput>)
        });
        reach.set(device, inputs);
        Ok(port)
    }
}
