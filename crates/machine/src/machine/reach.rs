//! The way to a device that the machine's user speaks to.

use std::{
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use vmlet_devices::virtio::{Place, VirtioDevice, VirtioPci};
use vmlet_pci::Function;

use super::Machine;
use crate::{
    MachineError, ThreadStarter,
    board::PciBus,
    devices::shared_reactor,
    journal::{DeviceInputs, TakesInput},
};

/// A device while it is attached, and the way of what is meant for it.
#[derive(Debug)]
pub(super) struct Reach<T>(Mutex<Option<Way<T>>>);

#[derive(Debug)]
struct Way<T> {
    device: Weak<T>,
    /// Where it is plugged.
    function: Weak<VirtioPci>,
    port: u8,
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

    /// The device, while it is in its slot: a slot that is emptied has its device dropped some time
    /// later.
    pub(super) fn device(&self, bus: Option<&PciBus>) -> Option<Arc<T>> {
        let way = self.lock();
        let way = way.as_ref()?;
        let plugged = bus?.root.function(way.port)?;
        let same = ptr::addr_eq(Arc::as_ptr(&plugged), way.function.as_ptr());
        way.device.upgrade().filter(|_| same)
    }
}

impl<T: VirtioDevice> Reach<T> {
    /// Has `bytes` enter the device: at once, or at a point of a counted run that is noted. False:
    /// they are lost, for want of room or because the run is over.
    pub(super) fn input(&self, device: &T, bytes: &[u8]) -> Result<bool, MachineError> {
        let inputs = self.lock().as_ref().and_then(|way| way.inputs.clone());
        match inputs {
            Some(inputs) => Ok(inputs.offer(bytes)?),
            None => {
                device.input(bytes);
                Ok(true)
            }
        }
    }
}

/// Refuses a second device of a kind that a machine has one of.
pub(super) fn only_one<T>(
    reach: &Reach<T>,
    bus: Option<&PciBus>,
    name: &str,
) -> Result<(), MachineError> {
    if reach.device(bus).is_none() {
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
    /// Puts `device`, which works in `place`, into root port `port`, or into the first that is free;
    /// gives which. What `reach` is given enters it from then on.
    pub(super) fn attach_reached<T: VirtioDevice + 'static>(
        &self,
        device: &Arc<T>,
        reach: &Reach<T>,
        place: Place,
        port: Option<u8>,
    ) -> Result<u8, MachineError> {
        let function = VirtioPci::new(Arc::clone(device) as Arc<dyn VirtioDevice>, place);
        let port = self.attach(Arc::clone(&function) as Arc<dyn Function>, port)?;
        let function = Arc::downgrade(&function);
        let inputs = self.journal()?.map(|journal| {
            let inputs = Weak::clone(&function) as Weak<dyn TakesInput>;
            journal.connect(port, inputs)
        });
        *reach.lock() = Some(Way {
            device: Arc::downgrade(device),
            function,
            port,
            inputs,
        });
        Ok(port)
    }

    /// Where a device works that does little.
    pub(super) fn shared_place(&self, spawn: &ThreadStarter) -> Result<Place, MachineError> {
        if self.is_counted()? {
            return Ok(Place::Guest);
        }
        Ok(Place::Reactor(shared_reactor(spawn)?))
    }
}
