//! From a device's message to the engine's local APICs.

use std::sync::Arc;

use vmlet_bus::{Msi, MsiSink, RequesterId};
use vmlet_vcpu::{MsiMessage, MsiRoute, Vm};

/// The I/O APIC's requester id: a device number no PCI device of the board has.
pub(crate) const IOAPIC_REQUESTER: RequesterId = RequesterId(0x00f8);

/// Hands messages to the engine. There is no remapping yet, so the requester is not looked at.
#[derive(Debug)]
pub(crate) struct Interrupts {
    vm: Arc<dyn Vm>,
}

impl Interrupts {
    pub(crate) fn new(vm: Arc<dyn Vm>) -> Interrupts {
        Interrupts { vm }
    }
}

fn message(msi: Msi) -> MsiMessage {
    MsiMessage {
        address: msi.address,
        data: msi.data,
    }
}

impl MsiSink for Interrupts {
    fn send(&self, _: RequesterId, msi: Msi) {
        // A message no local APIC takes is lost, as on hardware; so is one after the VM's end.
        let _ = self.vm.signal_msi(message(msi));
    }

    fn level_pins(&self, _: RequesterId, pins: &[Option<Msi>]) {
        let route = |(gsi, msi): (u32, &Option<Msi>)| {
            msi.map(|msi| MsiRoute {
                gsi,
                message: message(msi),
            })
        };
        let routes: Vec<_> = (0..).zip(pins).filter_map(route).collect();
        let _ = self.vm.set_routes(&routes);
    }
}
