//! A tree of files in sysfs's shape.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use vmlet_host::HostRoot;

pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn new() -> Tree {
        Tree(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> HostRoot {
        HostRoot::new(self.0.path())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Where in the tree `path` is.
    pub(crate) fn name<'p>(&self, path: &'p Path) -> &'p str {
        path.strip_prefix(self.0.path()).unwrap().to_str().unwrap()
    }

    pub(crate) fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A function in a group of its own; vendor, device and class as sysfs has them.
    pub(crate) fn function(&self, address: &str, [vendor, device, class]: [&str; 3], group: u32) {
        let folder = format!("sys/bus/pci/devices/{address}");
        for (name, text) in [
            ("vendor", vendor),
            ("device", device),
            ("class", class),
            ("driver_override", "(null)"),
        ] {
            self.file(&format!("{folder}/{name}"), text);
        }
        let member = format!("sys/kernel/iommu_groups/{group}/devices/{address}/x");
        self.file(&member, "");
        let link = self.path(&format!("{folder}/iommu_group"));
        symlink(format!("../groups/{group}"), link).unwrap();
    }

    pub(crate) fn set_driver(&self, address: &str, driver: Option<&str>) {
        let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
        let _ = fs::remove_file(&link);
        if let Some(driver) = driver {
            symlink(format!("../../drivers/{driver}"), link).unwrap();
        }
    }
}
