//! IOMMU groups: functions that the hardware cannot keep apart, and addresses it keeps for itself.

use serde::Serialize;

use super::PciAddress;
use crate::HostRoot;

/// A range of device addresses that memory cannot be mapped at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReservedRegion {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// `msi`, `direct`, `reserved`, ... (Documentation/ABI/testing/sysfs-kernel-iommu_groups).
    pub kind: String,
}

/// A function of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Where it is.
    pub address: PciAddress,
    /// The driver that has it.
    pub driver: Option<String>,
}

impl Member {
    /// Whether its driver does DMA for the host, which forbids the group to others. Those of VFIO,
    /// of ports and stubs leave that to the group's owner (`driver_managed_dma` of the kernel).
    pub fn in_use(&self) -> bool {
        match self.driver.as_deref() {
            None | Some("pcieport" | "pci-stub") => false,
            Some(driver) => !serves_vfio(driver),
        }
    }
}

/// Whether a driver hands its devices to VFIO: `vfio-pci`, or a device's own variant of it.
pub fn serves_vfio(driver: &str) -> bool {
    driver.replace('_', "-").ends_with("vfio-pci")
}

/// What the IOMMU cannot keep apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IommuGroup {
    /// Its number, which is the name of its file in `/dev/vfio`.
    pub number: u32,
    /// The domain the host uses: `DMA`, `DMA-FQ`, `identity`.
    pub kind: Option<String>,
    /// All functions of it, sorted.
    pub members: Vec<Member>,
    /// Addresses that memory cannot be mapped at.
    pub reserved: Vec<ReservedRegion>,
}

impl IommuGroup {
    /// The group of a function; none where no IOMMU serves it.
    pub fn of(root: &HostRoot, address: PciAddress) -> Option<IommuGroup> {
        let link = format!("sys/bus/pci/devices/{address}/iommu_group");
        IommuGroup::read(root, root.link(link)?.parse().ok()?)
    }

    /// The group of that number.
    pub fn read(root: &HostRoot, number: u32) -> Option<IommuGroup> {
        let path = format!("sys/kernel/iommu_groups/{number}");
        if !root.exists(&path) {
            return None;
        }
        let member = |name: &String| {
            let address = name.parse().ok()?;
            let driver = root.link(format!("sys/bus/pci/devices/{address}/driver"));
            Some(Member { address, driver })
        };
        let names = root.names(format!("{path}/devices"));
        let regions = root
            .read(format!("{path}/reserved_regions"))
            .unwrap_or_default();
        Some(IommuGroup {
            number,
            kind: root.value(format!("{path}/type")),
            members: names.iter().filter_map(member).collect(),
            reserved: regions.lines().filter_map(region).collect(),
        })
    }

    /// Those that keep `address` from being handed on.
    pub fn in_the_way_of(&self, address: PciAddress) -> Vec<Member> {
        let others = self.members.iter().filter(|one| one.address != address);
        others.filter(|one| one.in_use()).cloned().collect()
    }
}

/// `0x00000000fee00000 0x00000000feefffff msi`.
fn region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_whitespace();
    let mut number = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let (first, last) = (number()?, number()?);
    Some(ReservedRegion {
        first,
        last,
        kind: words.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::testing::FakeRoot;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    fn fake() -> FakeRoot {
        let group = "sys/kernel/iommu_groups/9";
        let regions = "0x00000000fee00000 0x00000000feefffff msi\nbroken\n";
        let fake = FakeRoot::new(&[
            (&format!("{group}/type"), "DMA\n"),
            (&format!("{group}/reserved_regions"), regions),
            (&format!("{group}/devices/0000:00:1f.0/x"), ""),
            (&format!("{group}/devices/0000:00:1f.2/x"), ""),
            (&format!("{group}/devices/0000:00:1f.3/x"), ""),
        ]);
        let devices = "sys/bus/pci/devices";
        fake.link(
            &format!("{devices}/0000:00:1f.2/iommu_group"),
            "../../../kernel/iommu_groups/9",
        );
        fake.link(&format!("{devices}/0000:00:1f.2/driver"), "../vfio-pci");
        fake.link(&format!("{devices}/0000:00:1f.3/driver"), "../i801_smbus");
        fake
    }

    #[test]
    fn a_group_names_who_is_in_the_way() {
        let found = IommuGroup::of(&fake().root(), address("0000:00:1f.2")).unwrap();
        assert_eq!((found.number, found.members.len()), (9, 3));
        let others = found.in_the_way_of(address("0000:00:1f.2"));
        let wanted = Member {
            address: address("0000:00:1f.3"),
            driver: Some("i801_smbus".to_owned()),
        };
        assert_eq!(others, [wanted]);
    }

    #[test]
    fn reserved_regions_are_read_and_broken_lines_left_out() {
        let found = IommuGroup::read(&fake().root(), 9).unwrap();
        let wanted = ReservedRegion {
            first: 0xfee0_0000,
            last: 0xfeef_ffff,
            kind: "msi".to_owned(),
        };
        assert_eq!(found.reserved, [wanted]);
    }

    #[test]
    fn a_function_without_an_iommu_has_no_group() {
        assert_eq!(
            IommuGroup::of(&fake().root(), address("0000:00:01.0")),
            None
        );
    }

    #[test]
    fn variants_of_vfios_driver_count_as_it() {
        assert!(serves_vfio("vfio-pci") && serves_vfio("mlx5_vfio_pci"));
        assert!(!serves_vfio("virtio-pci"));
    }
}
