//! The VM's table of interrupt routes (`KVM_SET_GSI_ROUTING`).

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use vmlet_vcpu::{EngineError, MsiMessage, MsiRoute};

pub(crate) fn table(routes: &[MsiRoute]) -> Result<KvmIrqRouting, EngineError> {
    let entries: Vec<_> = routes.iter().map(entry).collect();
    KvmIrqRouting::from_entries(&entries).map_err(|_| EngineError::Lacking {
        feature: "room for this many interrupt routes",
        remedy: "Use fewer interrupt vectors.",
    })
}

fn entry(route: &MsiRoute) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(route.message.address);
    let msi = kvm_irq_routing_msi {
        address_lo,
        address_hi,
        data: route.message.data,
        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1::default(),
    };
    kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..kvm_irq_routing_entry::default()
    }
}

pub(crate) fn message(message: MsiMessage) -> kvm_msi {
    let (address_lo, address_hi) = halves(message.address);
    kvm_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..kvm_msi::default()
    }
}

fn halves(address: u64) -> (u32, u32) {
    ((address & 0xffff_ffff) as u32, (address >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0x1_fee0_2000,
        data: 0x4051,
    };

    #[test]
    fn a_message_keeps_both_halves_of_its_address() {
        let msi = message(MESSAGE);
        assert_eq!(
            (msi.address_lo, msi.address_hi, msi.data),
            (0xfee0_2000, 1, 0x4051)
        );
    }

    #[test]
    fn a_table_holds_its_routes_in_order() {
        let routes = [5, 24].map(|gsi| MsiRoute {
            gsi,
            message: MESSAGE,
        });
        let table = table(&routes).unwrap();
        let gsis: Vec<_> = table.as_slice().iter().map(|entry| entry.gsi).collect();
        assert_eq!(gsis, [5, 24]);
    }

    #[test]
    fn more_routes_than_kvm_takes_are_refused() {
        let route = MsiRoute {
            gsi: 0,
            message: MESSAGE,
        };
        assert!(matches!(
            table(&vec![route; 5000]),
            Err(EngineError::Lacking { .. })
        ));
    }
}
