//! What the host uses a function for at the moment.

use serde::Serialize;

use super::PciAddress;
use crate::HostRoot;

/// The interface is up (`IFF_UP`, include/uapi/linux/if.h).
const UP: u32 = 1;

/// A use that would end if the driver was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Use {
    /// What it is.
    pub what: String,
    /// How to end it.
    pub end: String,
}

/// Network interfaces that are up, and mounted or swapped-to disks, below the function.
pub fn uses(root: &HostRoot, address: PciAddress) -> Vec<Use> {
    let below = |class: &str| -> Vec<String> {
        let part = format!("/{address}/");
        let mut names = root.names(format!("sys/class/{class}"));
        names.retain(|name| {
            let target = root.target(format!("sys/class/{class}/{name}"));
            target.is_some_and(|target| target.contains(&part))
        });
        names
    };
    let mut found: Vec<Use> = below("net")
        .into_iter()
        .filter(|name| is_up(root, name))
        .map(|name| Use {
            what: format!("network interface {name} is up"),
            end: format!("ip link set {name} down"),
        })
        .collect();
    for name in below("block") {
        found.extend(mounted(root, &name));
        found.extend(swapped(root, &name));
    }
    found
}

fn is_up(root: &HostRoot, name: &str) -> bool {
    let flags = root.value(format!("sys/class/net/{name}/flags"));
    let flags = flags.and_then(|text| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    flags.is_some_and(|flags| flags & UP != 0)
}

/// The third word of a line is the device's number, the fifth where it is mounted (proc(5)).
fn mounted(root: &HostRoot, name: &str) -> Option<Use> {
    let number = root.value(format!("sys/class/block/{name}/dev"))?;
    let mounts = root.read("proc/self/mountinfo")?;
    let place = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next()? == number).then(|| words.nth(1).map(str::to_owned))?
    })?;
    Some(Use {
        what: format!("disk {name} is mounted at {place}"),
        end: format!("umount {place}"),
    })
}

fn swapped(root: &HostRoot, name: &str) -> Option<Use> {
    let file = format!("/dev/{name}");
    let swaps = root.read("proc/swaps")?;
    let used = swaps
        .lines()
        .any(|line| line.split_whitespace().next() == Some(&file));
    used.then(|| Use {
        what: format!("disk {name} is swapped to"),
        end: format!("swapoff {file}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::testing::FakeRoot;

    const DISK: &str = "sys/devices/pci0000:00/0000:00:05.0/nvme/nvme0/nvme0n1";
    const CARD: &str = "sys/devices/pci0000:00/0000:00:06.0/net/eth0";

    fn fake(flags: &str) -> FakeRoot {
        let fake = FakeRoot::new(&[
            (&format!("{DISK}/dev"), "259:0\n"),
            (&format!("{DISK}/nvme0n1p1/dev"), "259:1\n"),
            (&format!("{CARD}/flags"), flags),
            (
                "proc/self/mountinfo",
                "30 1 259:1 / /data rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n",
            ),
            (
                "proc/swaps",
                "Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2\n",
            ),
        ]);
        for (class, path) in [
            ("block/nvme0n1", DISK.to_owned()),
            ("block/nvme0n1p1", format!("{DISK}/nvme0n1p1")),
            ("net/eth0", CARD.to_owned()),
        ] {
            let target = path.strip_prefix("sys/").unwrap();
            fake.link(&format!("sys/class/{class}"), &format!("../../{target}"));
        }
        fake
    }

    fn told(fake: &FakeRoot, address: &str) -> Vec<String> {
        let found = uses(&fake.root(), address.parse().unwrap());
        found.into_iter().map(|one| one.what).collect()
    }

    #[test]
    fn an_interface_that_is_up_is_a_use_and_one_that_is_down_is_none() {
        assert_eq!(
            told(&fake("0x1003\n"), "0000:00:06.0"),
            ["network interface eth0 is up"]
        );
        assert!(told(&fake("0x1002\n"), "0000:00:06.0").is_empty());
    }

    #[test]
    fn mounts_and_swaps_of_a_disk_are_uses() {
        assert_eq!(
            told(&fake("0x0\n"), "0000:00:05.0"),
            [
                "disk nvme0n1 is swapped to",
                "disk nvme0n1p1 is mounted at /data"
            ]
        );
        assert!(told(&fake("0x1003\n"), "0000:00:07.0").is_empty());
    }
}
