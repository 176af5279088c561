//! A PCI function of the host: any config space, any text in any of its files in sysfs.
//!
//! The first two bytes say how long config space is; texts follow it, each up to a byte ff.
#![no_main]

use std::{cell::RefCell, fs, os::unix::fs::symlink};

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{MemoryCap, Tree, seeds};
use vmlet_host::{HostRoot, PciDevice, Switch};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

const CONFIG: &str = "sys/bus/pci/devices/0000:01:00.0/config";
const FILES: [&str; 9] = [
    "sys/bus/pci/devices/0000:01:00.0/vendor",
    "sys/bus/pci/devices/0000:01:00.0/device",
    "sys/bus/pci/devices/0000:01:00.0/class",
    "sys/bus/pci/devices/0000:01:00.0/driver_override",
    "sys/bus/pci/devices/0000:01:00.0/reset_method",
    "sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs",
    "sys/bus/pci/devices/0000:01:00.0/sriov_numvfs",
    "sys/kernel/iommu_groups/7/type",
    "sys/kernel/iommu_groups/7/reserved_regions",
];

thread_local! {
    static TREE: RefCell<Tree> = RefCell::new(tree());
}

/// A function in a group of its own.
fn tree() -> Tree {
    let mut tree = Tree::new("pci");
    tree.write(CONFIG, &[]);
    let devices = tree
        .root()
        .join("sys/kernel/iommu_groups/7/devices/0000:01:00.0");
    fs::create_dir_all(devices).expect("a directory");
    let link = tree
        .root()
        .join("sys/bus/pci/devices/0000:01:00.0/iommu_group");
    if fs::symlink_metadata(&link).is_err() {
        symlink("../../kernel/iommu_groups/7", link).expect("a link");
    }
    tree
}

fuzz_target!(init: seeds::plant("host_pci"), |data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (config, texts) = rest.split_at(length);
    let mut texts = texts.split(|byte| *byte == 0xff);
    TREE.with_borrow_mut(|tree| {
        tree.write(CONFIG, config);
        for name in FILES {
            tree.write(name, texts.next().unwrap_or_default());
        }
        check(&HostRoot::new(tree.root()), config.len());
    });
});

fn check(root: &HostRoot, readable: usize) {
    let all = PciDevice::all(root);
    assert!(all.len() <= 1);
    for one in &all {
        assert_eq!(one.group.as_ref().map(|group| group.number), Some(7));
        let found = &one.features;
        let every = [found.ats, found.pri, found.pasid, found.acs, found.sriov];
        let unknown = every.iter().filter(|one| **one == Switch::Unknown).count();
        // Whoever may not read one may read none, and is told why.
        assert_eq!(
            unknown,
            if found.unknown_because.is_some() {
                5
            } else {
                0
            }
        );
        assert!(readable > 64 || unknown == 5);
        for obstacle in &one.obstacles {
            assert!(!obstacle.to_string().is_empty() && !obstacle.remedy().is_empty());
        }
    }
}
