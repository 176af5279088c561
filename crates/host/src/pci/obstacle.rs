//! What stands in the way of handing a function to VFIO.

use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{IommuGroup, Member, PciAddress, serves_vfio};
use crate::{HostRoot, iommu};

/// Why a function cannot be opened now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no such function.
    Missing {
        /// The address.
        address: PciAddress,
    },
    /// No IOMMU is active.
    NoIommu,
    /// The IOMMU that is there does not serve it.
    NoGroup {
        /// The units there are.
        units: Vec<String>,
    },
    /// VFIO's driver is not loaded.
    NoDriver,
    /// Another driver has it, or none.
    Unbound {
        /// The address.
        address: PciAddress,
        /// The driver.
        driver: Option<String>,
    },
    /// The hardware cannot keep it apart from functions that the host uses.
    Shared {
        /// The group's number.
        group: u32,
        /// Those that are used.
        others: Vec<Member>,
    },
}

impl Obstacle {
    /// What stands in the way of `address`, the most basic first.
    pub fn all(root: &HostRoot, address: PciAddress) -> Vec<Obstacle> {
        if !root.exists(format!("sys/bus/pci/devices/{address}")) {
            return vec![Obstacle::Missing { address }];
        }
        let driver = root.link(format!("sys/bus/pci/devices/{address}/driver"));
        let group = IommuGroup::of(root, address);
        let ready = driver.as_deref().is_some_and(serves_vfio);
        let others = group.as_ref().map(|group| group.in_the_way_of(address));
        let others = others.unwrap_or_default();
        let comes_late = driver.is_none() && iommu::groups_come_late(root);
        let found = [
            (group.is_none() && !comes_late).then(|| without_group(root)),
            (!ready && !root.exists("sys/bus/pci/drivers/vfio-pci")).then_some(Obstacle::NoDriver),
            (!ready).then_some(Obstacle::Unbound { address, driver }),
            group
                .filter(|_| !others.is_empty())
                .map(|group| Obstacle::Shared {
                    group: group.number,
                    others,
                }),
        ];
        found.into_iter().flatten().collect()
    }

    /// What can be done about it.
    pub fn remedy(&self) -> String {
        match self {
            Obstacle::Missing { .. } => "See vmlet vfio list for the functions there are.".into(),
            Obstacle::NoIommu => {
                "Switch VT-d or AMD-Vi on in the firmware; on Intel also boot with \
                 intel_iommu=on."
                    .into()
            }
            Obstacle::NoGroup { .. } => {
                "The kernel's log says which functions it serves (dmesg | grep -i \
                 -e DMAR -e AMD-Vi -e iommu); move the card to a slot that is served."
                    .into()
            }
            Obstacle::NoDriver => "As root: modprobe vfio-pci.".into(),
            Obstacle::Unbound { address, .. } => {
                format!("As root: vmlet vfio bind {address}, if the host can do without it.")
            }
            Obstacle::Shared { others, .. } => {
                let each: Vec<_> = others
                    .iter()
                    .map(|one| format!("vmlet vfio bind {}", one.address))
                    .collect();
                format!(
                    "Hand them on too, as root: {}; or move the card to a slot of its own.",
                    each.join(", ")
                )
            }
        }
    }
}

fn without_group(root: &HostRoot) -> Obstacle {
    match root.names("sys/class/iommu") {
        units if units.is_empty() => Obstacle::NoIommu,
        units => Obstacle::NoGroup { units },
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Missing { address } => write!(f, "there is no PCI function {address}"),
            Obstacle::NoIommu => write!(f, "no IOMMU is active"),
            Obstacle::NoGroup { units } => {
                write!(f, "it is in no group of the IOMMU ({})", units.join(", "))
            }
            Obstacle::NoDriver => write!(f, "the kernel's driver vfio-pci is not loaded"),
            Obstacle::Unbound {
                driver: Some(driver),
                ..
            } => write!(f, "the driver {driver} has it, not vfio-pci"),
            Obstacle::Unbound { driver: None, .. } => {
                write!(f, "no driver has it, where vfio-pci should")
            }
            Obstacle::Shared { group, others } => {
                let named: Vec<_> = others
                    .iter()
                    .map(|one| {
                        let driver = one.driver.as_deref().unwrap_or("no driver");
                        format!("{} ({driver})", one.address)
                    })
                    .collect();
                let named = named.join(", ");
                write!(
                    f,
                    "the host uses others of its IOMMU group {group}: {named}"
                )
            }
        }
    }
}

impl Serialize for Obstacle {
    /// As text: `cause` and `remedy`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut both = serializer.serialize_struct("Obstacle", 2)?;
        both.serialize_field("cause", &self.to_string())?;
        both.serialize_field("remedy", &self.remedy())?;
        both.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::testing::FakeRoot;

    const DEVICE: &str = "sys/bus/pci/devices/0000:01:00.0";

    fn address() -> PciAddress {
        "0000:01:00.0".parse().unwrap()
    }

    /// A function in group 3 of a host whose VFIO is loaded.
    fn grouped() -> FakeRoot {
        let fake = FakeRoot::new(&[
            (&format!("{DEVICE}/vendor"), "0x1234\n"),
            ("sys/class/iommu/dmar0/x", ""),
            ("sys/bus/pci/drivers/vfio-pci/bind", ""),
            ("sys/kernel/iommu_groups/3/devices/0000:01:00.0/x", ""),
        ]);
        fake.link(&format!("{DEVICE}/iommu_group"), "../groups/3");
        fake
    }

    fn texts(fake: &FakeRoot) -> Vec<String> {
        let all = Obstacle::all(&fake.root(), address());
        assert!(all.iter().all(|one| !one.remedy().is_empty()));
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_function_that_is_not_there_is_missing() {
        let wanted = ["there is no PCI function 0000:01:00.0"];
        assert_eq!(texts(&FakeRoot::new(&[])), wanted);
    }

    #[test]
    fn a_bound_function_alone_in_its_group_is_ready() {
        let fake = grouped();
        fake.link(&format!("{DEVICE}/driver"), "../vfio-pci");
        assert!(texts(&fake).is_empty());
    }

    #[test]
    fn the_driver_that_has_it_is_named() {
        let fake = grouped();
        fake.link(&format!("{DEVICE}/driver"), "../igb");
        assert_eq!(texts(&fake), ["the driver igb has it, not vfio-pci"]);
    }

    #[test]
    fn others_of_the_group_are_named_with_their_drivers_and_the_remedy_binds_them() {
        let fake = grouped();
        fake.link(&format!("{DEVICE}/driver"), "../vfio-pci");
        fake.write("sys/kernel/iommu_groups/3/devices/0000:01:00.1/x", "");
        fake.link("sys/bus/pci/devices/0000:01:00.1/driver", "../igb");
        let all = Obstacle::all(&fake.root(), address());
        let [shared] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert!(shared.to_string().ends_with("3: 0000:01:00.1 (igb)"));
        assert!(shared.remedy().contains("vmlet vfio bind 0000:01:00.1"));
    }

    #[test]
    fn behind_virtio_iommu_who_has_no_driver_has_no_group_yet() {
        let fake = FakeRoot::new(&[
            (&format!("{DEVICE}/vendor"), "0x1234\n"),
            ("sys/bus/pci/drivers/vfio-pci/bind", ""),
        ]);
        let place = "../../devices/pci0000:00/0000:00:01.0/virtio0/iommu/0000:00:01.0";
        fake.link("sys/class/iommu/0000:00:01.0", place);
        assert_eq!(texts(&fake), ["no driver has it, where vfio-pci should"]);
        // Who has a driver and no group is not served.
        fake.link(&format!("{DEVICE}/driver"), "../igb");
        let wanted = "it is in no group of the IOMMU (0000:00:01.0)";
        assert_eq!(texts(&fake).first().unwrap(), wanted);
    }

    #[test]
    fn a_host_without_iommu_and_vfio_is_told_all_that_is_missing() {
        let fake = FakeRoot::new(&[(&format!("{DEVICE}/vendor"), "0x1234\n")]);
        let wanted = [
            "no IOMMU is active",
            "the kernel's driver vfio-pci is not loaded",
            "no driver has it, where vfio-pci should",
        ];
        assert_eq!(texts(&fake), wanted);
    }
}
