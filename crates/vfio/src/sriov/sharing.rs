//! Virtual functions of an NVMe controller, each with its share of queues and interrupts.

use vmlet_host::{HostRoot, PciAddress, PciDevice};

use super::{
    lifecycle::{PhysicalFunction, VfRequest},
    nvme::{Controller, NvmeFunction, Share},
};
use crate::{VfioError, sysfs::Sysfs};

/// What the function at `address` has as an NVMe controller that shares, or as a virtual function of
/// one.
pub fn nvme_function(root: &HostRoot, address: PciAddress) -> Result<NvmeFunction, VfioError> {
    let device = PciDevice::read(root, address);
    let physical = device.and_then(|device| device.physical_function);
    PhysicalFunction::new(root, physical.unwrap_or(address), &Sysfs).nvme_function(address)
}

/// A controller that shares, and what each of its virtual functions gets.
pub(super) struct Sharing<'a> {
    pub(super) controller: Controller<'a>,
    pub(super) share: Share,
}

impl<'a> PhysicalFunction<'a> {
    /// What virtual functions get of an NVMe controller that shares.
    pub(super) fn sharing(
        &self,
        device: &PciDevice,
        request: VfRequest,
    ) -> Result<Option<Sharing<'a>>, VfioError> {
        let asked = [request.queues, request.interrupts];
        let Some(controller) = Controller::find(self.function, self.queue)? else {
            let address = self.function.address;
            return match asked {
                [None, None] => Ok(None),
                _ => Err(VfioError::NoNvme { address }),
            };
        };
        let total = device.virtual_functions.map_or(0, |all| all.total);
        let share = controller.share(request.count, total, asked)?;
        Ok(Some(Sharing { controller, share }))
    }

    /// The controller that something was noted of.
    pub(super) fn noted_controller(&self) -> Result<Controller<'a>, VfioError> {
        let address = self.function.address;
        let found = Controller::find(self.function, self.queue)?;
        found.ok_or(VfioError::NvmeWithoutDriver { address })
    }

    /// What it has, or that virtual function of it.
    pub(super) fn nvme_function(&self, address: PciAddress) -> Result<NvmeFunction, VfioError> {
        let found = Controller::find(self.function, self.queue)?;
        let controller = found.ok_or(VfioError::NoNvme { address })?;
        if address == self.function.address {
            return controller.own();
        }
        let every = self.functions();
        let number = numbers(&every)
            .zip(&every)
            .find(|(_, one)| **one == address);
        let (number, _) = number.ok_or(VfioError::NoNvme { address })?;
        controller.secondary(number)
    }
}

/// The numbers that a controller gives its virtual functions.
pub(super) fn numbers(made: &[PciAddress]) -> impl Iterator<Item = u16> + use<> {
    (1..=u16::MAX).take(made.len())
}
