//! Devices that a user names, as plain data, and what they are made of.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use vmlet_devices::{
    backend::block::{self, DiskOptions},
    virtio::{
        Place, VirtioDevice, VirtioPci,
        blk::{Blk, BlkOptions},
        rng::{Entropy, HostEntropy, Rng, SeededEntropy},
    },
};
use vmlet_memory::fork::PerProcess;
use vmlet_pci::Function;
use vmlet_reactor::Reactor;

use crate::{Machine, MachineError, ThreadStarter};

/// Characters of a disk's serial number (virtio 1.2, section 5.2.6).
const SERIAL: usize = 20;
/// Request queues of a disk.
const QUEUES: std::ops::RangeInclusive<u16> = 1..=64;

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceConfig {
    /// A disk.
    Disk(DiskConfig),
    /// A source of random bytes.
    Rng,
}

/// A disk to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its image.
    pub image: DiskOptions,
    /// Request queues.
    pub queues: u16,
    /// What the guest reads as its serial number.
    pub serial: String,
}

impl DiskConfig {
    fn check(&self) -> Result<(), MachineError> {
        let refuse = |what, detail: String, remedy| {
            Err(MachineError::Config {
                what,
                detail,
                remedy,
            })
        };
        if !QUEUES.contains(&self.queues) {
            let detail = self.queues.to_string();
            return refuse("queues", detail, "Give 1 to 64 of them.");
        }
        if self.serial.len() > SERIAL || !self.serial.is_ascii() {
            let detail = format!("{:?}", self.serial);
            return refuse("serial", detail, "Give at most 20 ASCII characters.");
        }
        Ok(())
    }
}

/// The event loop that the VMs of this process share while one of them has a device.
static SHARED: PerProcess<Mutex<Weak<Reactor>>> = PerProcess::new();

pub(crate) fn shared_reactor(spawn: &ThreadStarter) -> Result<Arc<Reactor>, MachineError> {
    let start = || Ok(Reactor::start("vmlet-io", spawn)?);
    let Some(shared) = SHARED.get_or_make(|| Some(Mutex::default())) else {
        return start();
    };
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reactor) = shared.upgrade() {
        return Ok(reactor);
    }
    let reactor = start()?;
    *shared = Arc::downgrade(&reactor);
    Ok(reactor)
}

impl Machine {
    /// Makes a device and puts it into root port `port`, or into the first that is free; gives
    /// which. The device's threads are started by `spawn`.
    pub fn attach_device(
        &self,
        device: &DeviceConfig,
        port: Option<u8>,
        spawn: &Arc<ThreadStarter>,
    ) -> Result<u8, MachineError> {
        let counted = self.is_counted()?;
        let place = if counted {
            Place::Guest
        } else {
            Place::Reactor(shared_reactor(&**spawn)?)
        };
        let made: Arc<dyn VirtioDevice> = match device {
            DeviceConfig::Disk(disk) => {
                disk.check()?;
                let image = block::open(&disk.image)?;
                let options = BlkOptions {
                    queues: disk.queues,
                    serial: disk.serial.clone(),
                };
                Blk::new(image, &options, &place, spawn)
            }
            DeviceConfig::Rng => Arc::new(Rng::new(entropy(counted)?)),
        };
        let function: Arc<dyn Function> = VirtioPci::new(made, place);
        self.attach(function, port)
    }
}

/// A counted run gets the same bytes every time.
fn entropy(counted: bool) -> Result<Box<dyn Entropy>, MachineError> {
    if counted {
        return Ok(Box::new(SeededEntropy::default()));
    }
    let opened = HostEntropy::open().map_err(|source| MachineError::Source { source })?;
    Ok(Box::new(opened))
}
