//! Devices of the host that the guest drives.

use std::sync::{Arc, Weak};

use vmlet_host::{HostRoot, PciAddress};
use vmlet_vfio::{
    Device, DeviceNews, InterruptKind, IommuBackend, Passthrough, Surroundings, VfioError,
};

use super::{Machine, Parts};
use crate::{
    Event, EventKind, MachineError, ThreadStarter, devices::shared_reactor, lifecycle::Life,
};

/// Makes events of what the host's kernel has to say of a device.
#[derive(Debug)]
struct News(Weak<Life>);

impl DeviceNews for News {
    fn told(&self, name: &'static str, what: InterruptKind) {
        let kind = match what {
            InterruptKind::Removal => EventKind::DeviceRemoval,
            _ => EventKind::DeviceFailure,
        };
        if let Some(life) = self.0.upgrade() {
            life.tell(Event {
                source: "host",
                detail: name.to_owned(),
                ..Event::by_user(kind)
            });
        }
    }
}

impl Machine {
    /// Opens the device at `address`, which VFIO's driver has to have, and puts it into root port
    /// `port`, or into the first that is free; gives which. It reaches all of the guest's memory,
    /// which is locked until it has gone, and nothing else. Others of its IOMMU group can be given to
    /// the same machine only. `iommu`: by which of the kernel's
    /// interfaces, "iommufd" or "type1".
    pub fn attach_vfio(
        &self,
        address: &str,
        iommu: Option<&str>,
        port: Option<u8>,
        spawn: &ThreadStarter,
    ) -> Result<u8, MachineError> {
        let address: PciAddress = address.parse().map_err(VfioError::from)?;
        let iommu = iommu.map(str::parse::<IommuBackend>).transpose()?;
        if self.is_counted()? {
            return Err(MachineError::Config {
                what: "devices",
                detail: format!("the host's device {address} in a run that is counted"),
                remedy: "Make the VM with clock=\"realtime\".",
            });
        }
        let parts = self.open()?;
        parts.has_port()?;
        let device = Device::open(&HostRoot::default(), address, iommu, &parts.owner)?;
        let around = Surroundings {
            space: &parts.space,
            reactor: &shared_reactor(spawn)?,
            engine: parts.apertures.as_ref(),
            news: Arc::new(News(Arc::downgrade(&parts.life))),
        };
        let function = Passthrough::new(device, &around)?;
        self.attach(function, port)
    }
}

impl Parts {
    /// Refuses to save what nobody could restore.
    pub(super) fn saveable(&self) -> Result<(), MachineError> {
        let Some(bus) = &self.board.pci else {
            return Ok(());
        };
        for port in 1..=bus.root.ports() {
            let function = bus.root.function(port);
            if let Some(function) = function
                && let Some(reason) = function.unsaveable()
            {
                return Err(MachineError::Unsaveable {
                    device: function.name(),
                    port,
                    reason,
                });
            }
        }
        Ok(())
    }
}
