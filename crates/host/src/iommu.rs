//! Units that translate devices' memory accesses and interrupts.

use crate::{Finding, HostRoot};

pub(crate) fn findings(root: &HostRoot) -> Vec<Finding> {
    vec![units(root), interrupt_remapping(root)]
}

/// `/sys/class/iommu`: `dmar0...` is VT-d, `ivhd0...` AMD-Vi; virtio-iommu has the name of what its
/// registers are on, a PCI address.
fn units(root: &HostRoot) -> Finding {
    let topic = "iommu";
    if !root.exists("sys") {
        return Finding::unknown(topic, "sysfs is not mounted");
    }
    let names = root.names("sys/class/iommu");
    if names.is_empty() {
        return Finding::no(topic, "none active").because(
            "the machine has none, the firmware hides it, or the kernel does not use it",
            "To hand devices to guests: switch VT-d or AMD-Vi on in the firmware; on Intel also \
             boot with intel_iommu=on.",
        );
    }
    let mut kinds: Vec<_> = names.iter().map(|name| kind(root, name)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    Finding::ok(
        topic,
        format!("{} ({})", kinds.join(", "), names.join(", ")),
    )
}

/// What the unit of that name is.
pub(crate) fn kind(root: &HostRoot, name: &str) -> &'static str {
    if name.starts_with("dmar") {
        "VT-d"
    } else if name.starts_with("ivhd") {
        "AMD-Vi"
    } else if is_virtio(root, name) {
        VIRTIO
    } else {
        "another kind"
    }
}

const VIRTIO: &str = "virtio-iommu";

fn is_virtio(root: &HostRoot, name: &str) -> bool {
    let place = root.target(format!("sys/class/iommu/{name}"));
    place.is_some_and(|place| place.contains("/virtio"))
}

/// Whether functions get their group from a driver's first try only, as behind virtio-iommu.
pub(crate) fn groups_come_late(root: &HostRoot) -> bool {
    let names = root.names("sys/class/iommu");
    names.iter().any(|name| kind(root, name) == VIRTIO)
}

/// The interrupt chips of remapped vectors are named `IR-...` in `/proc/interrupts`. Their absence
/// proves nothing: the line of a chip appears only when a driver uses it.
fn interrupt_remapping(root: &HostRoot) -> Finding {
    let topic = "interrupt remapping";
    let table = root.read("proc/interrupts").unwrap_or_default();
    let remapped = table.split_whitespace().any(|word| word.starts_with("IR-"));
    if remapped {
        Finding::ok(topic, "in use")
    } else {
        Finding::unknown(topic, "no interrupt in /proc/interrupts shows it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{State, root::testing::FakeRoot};

    #[test]
    fn units_are_named_by_kind() {
        for (name, wanted) in [
            ("dmar0", "VT-d (dmar0)"),
            ("ivhd1", "AMD-Vi (ivhd1)"),
            ("smmu3", "another kind (smmu3)"),
        ] {
            let fake = FakeRoot::new(&[(&format!("sys/class/iommu/{name}/x"), "")]);
            assert_eq!(units(&fake.root()).detail, wanted);
        }
        let fake = FakeRoot::new(&[]);
        let place = "../../devices/pci0000:00/0000:00:01.0/virtio0/iommu/0000:00:01.0";
        fake.link("sys/class/iommu/0000:00:01.0", place);
        let wanted = "virtio-iommu (0000:00:01.0)";
        assert_eq!(units(&fake.root()).detail, wanted);
    }

    #[test]
    fn no_unit_is_no_and_no_sysfs_is_unknown() {
        let fake = FakeRoot::new(&[("sys/class/net/lo", "")]);
        assert_eq!(units(&fake.root()).state, State::No);
        assert_eq!(units(&FakeRoot::new(&[]).root()).state, State::Unknown);
    }

    #[test]
    fn remapped_interrupt_chips_prove_remapping() {
        let line = " 24: 0 0  IR-PCI-MSI 1048576-edge  nvme0q0\n";
        let fake = FakeRoot::new(&[("proc/interrupts", line)]);
        assert_eq!(interrupt_remapping(&fake.root()).state, State::Ok);
    }

    #[test]
    fn plain_interrupt_chips_prove_nothing() {
        let fake = FakeRoot::new(&[("proc/interrupts", " 4: 9 IO-APIC 4-edge ttyS0 FIR-x\n")]);
        assert_eq!(interrupt_remapping(&fake.root()).state, State::Unknown);
    }
}
