//! What killed processes left half done is put back.

use std::fs;

use vmlet_host::{HostRoot, PciAddress, PciDevice, serves_vfio};

use crate::{
    VfioError,
    binding::{Before, Binding, DRIVER},
    noted::{self, Noted},
    sriov::{Note, PhysicalFunction},
    sysfs::Sysfs,
};

/// Puts back what processes that are gone have left: virtual functions that were theirs, bindings
/// that were cut short. The functions that something was done for. What is whole and was to stay, or
/// belongs to a process that lives, is left alone. An error keeps none of the others from its turn.
pub fn mend(root: &HostRoot) -> Result<Vec<PciAddress>, VfioError> {
    let mut mended = Vec::new();
    let mut failed = None;
    let mut take = |address, done| match done {
        Ok(true) => mended.push(address),
        Ok(false) => {}
        Err(error) => failed = Some(error),
    };
    for folder in [Note::FOLDER, Before::FOLDER] {
        noted::sweep(root, folder);
    }
    for address in noted(root, Note::FOLDER) {
        take(address, PhysicalFunction::new(root, address, &Sysfs).mend());
    }
    for address in noted(root, Before::FOLDER) {
        take(address, Binding::new(root, address, &Sysfs).mend());
    }
    failed.map_or(Ok(mended), Err)
}

fn noted(root: &HostRoot, folder: &str) -> Vec<PciAddress> {
    let entries = fs::read_dir(root.path(folder)).into_iter().flatten();
    let mut found: Vec<PciAddress> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

impl Binding<'_> {
    /// Puts back what a device had whose binding, or release, was cut short; whether it was.
    pub(crate) fn mend(&self) -> Result<bool, VfioError> {
        let Some(device) = PciDevice::read(self.function.root, self.function.address) else {
            return Before::forget(self.function.root, self.function.address).map(|()| true);
        };
        let Some(before) = Before::read(self.function.root, &device)? else {
            return Ok(false);
        };
        let ours = device.driver_override.as_deref() == Some(DRIVER);
        let cut_short = match &device.driver {
            Some(driver) if serves_vfio(driver) => false,
            None => true,
            found => ours || *found == before.driver,
        };
        if cut_short {
            self.restore(&before)?;
        }
        Ok(cut_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    /// A host with one device, and what was noted of it: it had no driver.
    fn host(driver_override: &str) -> Tree {
        let tree = Tree::new();
        let device = "sys/bus/pci/devices/0000:01:00.0";
        for (folder, name, text) in [
            (device, "vendor", "0x1234"),
            (device, "device", "0x11e8"),
            (device, "class", "0x00ff00"),
            (device, "driver_override", driver_override),
            (
                Before::FOLDER,
                "0000:01:00.0",
                r#"{"vendor":4660,"device":4584,"driver":null,"driver_override":null}"#,
            ),
            (Before::FOLDER, "0000:02:00.0", "{}"),
            (Note::FOLDER, "0000:03:00.0", "{}"),
        ] {
            tree.file(&format!("{folder}/{name}"), text);
        }
        tree
    }

    #[test]
    fn a_binding_that_was_cut_short_is_undone_and_notes_of_what_is_gone_are_dropped() {
        let tree = host("vfio-pci");
        let root = tree.root();
        let mended: Vec<String> = mend(&root)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(mended, ["0000:03:00.0", "0000:01:00.0", "0000:02:00.0"]);
        // A plain file keeps what a write does not cover: the override's first byte is the new line.
        let path = "sys/bus/pci/devices/0000:01:00.0/driver_override";
        assert!(
            fs::read_to_string(root.path(path))
                .unwrap()
                .starts_with('\n')
        );
        assert!(mend(&root).unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_process_began_to_note_goes_and_what_a_living_one_did_stays() {
        let tree = Tree::new();
        let stat = "7 (a b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 42 0";
        tree.file("proc/7/stat", stat);
        tree.file("proc/9/stat", &stat.replace(" S ", " Z "));
        for folder in [Note::FOLDER, Before::FOLDER] {
            for pid in [7, 8, 9] {
                tree.file(&format!("{folder}/0000:01:00.0.{pid}.new"), "{");
            }
        }
        let root = tree.root();
        assert!(mend(&root).unwrap().is_empty());
        for folder in [Note::FOLDER, Before::FOLDER] {
            let entries = fs::read_dir(root.path(folder)).unwrap();
            let left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["0000:01:00.0.7.new"]);
        }
    }

    #[test]
    fn whole_bindings_are_left_alone() {
        let tree = host("vfio-pci");
        tree.set_driver("0000:01:00.0", Some("vfio-pci"));
        let root = tree.root();
        let address: PciAddress = "0000:01:00.0".parse().unwrap();
        assert!(!mend(&root).unwrap().contains(&address));
    }
}
