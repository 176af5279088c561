//! All that is known of one function of the host.

use serde::Serialize;

use super::{
    Features, IommuGroup, Obstacle, PciAddress,
    config::{ConfigSpace, WHOLE},
};
use crate::{HostRoot, iommu};

/// SR-IOV of a physical function, as its driver offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VirtualFunctions {
    /// The most there can be.
    pub total: u16,
    /// Those there are.
    pub enabled: u16,
}

/// A PCI function of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Who made it (PCI-SIG's number).
    pub vendor: u16,
    /// What it is, by the vendor's number.
    pub device: u16,
    /// Class, subclass and programming interface, eight bits each.
    pub class: u32,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The driver that alone may have it.
    pub driver_override: Option<String>,
    /// Its IOMMU group.
    pub group: Option<IommuGroup>,
    /// The unit that translates its requests: `dmar0`.
    pub iommu: Option<String>,
    /// What that unit is: "VT-d".
    pub iommu_kind: Option<&'static str>,
    /// How the kernel can reset it, in the order it tries: `flr`, `pm`, `bus`, ...
    pub reset_methods: Vec<String>,
    /// Translation, sharing and isolation.
    pub features: Features,
    /// SR-IOV, where it has it.
    pub virtual_functions: Option<VirtualFunctions>,
    /// The physical function that it is a virtual function of.
    pub physical_function: Option<PciAddress>,
    /// What keeps it from being opened now.
    pub obstacles: Vec<Obstacle>,
}

impl PciDevice {
    /// All functions of the host, by address.
    pub fn all(root: &HostRoot) -> Vec<PciDevice> {
        let mut addresses: Vec<PciAddress> = root
            .names("sys/bus/pci/devices")
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        addresses.sort_unstable();
        let read = |address| PciDevice::read(root, address);
        addresses.into_iter().filter_map(read).collect()
    }

    /// The function at `address`; none where there is none, or none any more.
    pub fn read(root: &HostRoot, address: PciAddress) -> Option<PciDevice> {
        let path = format!("sys/bus/pci/devices/{address}");
        let file = |name: &str| root.value(format!("{path}/{name}"));
        let number = |name: &str| u32::from_str_radix(file(name)?.strip_prefix("0x")?, 16).ok();
        let count = |name: &str| file(name)?.parse().ok();
        let config = root.bytes(format!("{path}/config"), WHOLE as u64);
        let iommu = root.link(format!("{path}/iommu"));
        let physical = root.link(format!("{path}/physfn"));
        Some(PciDevice {
            address,
            vendor: number("vendor")?.try_into().ok()?,
            device: number("device")?.try_into().ok()?,
            class: number("class")?,
            driver: root.link(format!("{path}/driver")),
            driver_override: file("driver_override").filter(|name| name != "(null)"),
            group: IommuGroup::of(root, address),
            iommu_kind: iommu.as_deref().map(|name| iommu::kind(root, name)),
            iommu,
            reset_methods: reset_methods(root, &path),
            features: Features::of(&ConfigSpace::new(config.unwrap_or_default())),
            virtual_functions: count("sriov_totalvfs")
                .zip(count("sriov_numvfs"))
                .map(|(total, enabled)| VirtualFunctions { total, enabled }),
            physical_function: physical.and_then(|name| name.parse().ok()),
            obstacles: Obstacle::all(root, address),
        })
    }
}

/// `reset_method` is there since Linux 5.15; `reset` alone says that there is one.
fn reset_methods(root: &HostRoot, path: &str) -> Vec<String> {
    match root.value(format!("{path}/reset_method")) {
        Some(methods) => methods.split_whitespace().map(str::to_owned).collect(),
        None if root.exists(format!("{path}/reset")) => vec!["unnamed".to_owned()],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::config::testing::with_extended, *};
    use crate::{Switch, root::testing::FakeRoot};

    const PF: &str = "sys/bus/pci/devices/0000:02:00.0";

    /// A card with virtual functions in a group of its own.
    fn fake() -> FakeRoot {
        let fake = FakeRoot::new(&[
            (&format!("{PF}/vendor"), "0x8086\n"),
            (&format!("{PF}/device"), "0x10c9\n"),
            (&format!("{PF}/class"), "0x020000\n"),
            (&format!("{PF}/driver_override"), "(null)\n"),
            (&format!("{PF}/reset_method"), "flr pm bus\n"),
            (&format!("{PF}/sriov_totalvfs"), "7\n"),
            (&format!("{PF}/sriov_numvfs"), "2\n"),
            ("sys/class/iommu/dmar0/x", ""),
            ("sys/kernel/iommu_groups/11/devices/0000:02:00.0/x", ""),
        ]);
        fake.write_bytes(
            &format!("{PF}/config"),
            &with_extended(&[(0x10, &[0, 0, 0, 0, 1, 0])]),
        );
        fake.link(&format!("{PF}/driver"), "../../drivers/igb");
        fake.link(&format!("{PF}/iommu"), "../../virtual/iommu/dmar0");
        fake.link(&format!("{PF}/iommu_group"), "../iommu_groups/11");
        fake
    }

    #[test]
    fn a_function_is_described_from_sysfs_and_config_space() {
        let all = PciDevice::all(&fake().root());
        let [card] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert_eq!(
            (card.vendor, card.device, card.class),
            (0x8086, 0x10c9, 0x02_0000)
        );
        assert_eq!(card.driver.as_deref(), Some("igb"));
        assert_eq!(card.driver_override, None);
        assert_eq!(card.group.as_ref().map(|group| group.number), Some(11));
        assert_eq!(card.iommu_kind, Some("VT-d"));
        assert_eq!(card.reset_methods, ["flr", "pm", "bus"]);
        assert_eq!(card.features.sriov, Switch::On);
        let functions = card.virtual_functions.unwrap();
        assert_eq!((functions.total, functions.enabled), (7, 2));
    }

    #[test]
    fn a_virtual_function_names_its_physical_one() {
        let fake = fake();
        let vf = "sys/bus/pci/devices/0000:02:10.0";
        for (name, text) in [("vendor", "0x8086"), ("device", "0x10ca"), ("class", "0x0")] {
            fake.write(&format!("{vf}/{name}"), text);
        }
        fake.link(&format!("{vf}/physfn"), "../0000:02:00.0");
        let found = PciDevice::read(&fake.root(), "0000:02:10.0".parse().unwrap()).unwrap();
        assert_eq!(found.physical_function.unwrap().to_string(), "0000:02:00.0");
        assert_eq!(found.virtual_functions, None);
    }

    #[test]
    fn a_function_that_goes_while_it_is_read_is_left_out() {
        let fake = FakeRoot::new(&[("sys/bus/pci/devices/0000:02:00.0/vendor", "")]);
        assert!(PciDevice::all(&fake.root()).is_empty());
    }

    #[test]
    fn every_function_of_this_host_is_read() {
        let root = HostRoot::default();
        let there = root.names("sys/bus/pci/devices").len();
        assert_eq!(PciDevice::all(&root).len(), there);
    }
}
