//! Giving a device to VFIO's driver, and back to the driver it had.
//!
//! What a device had before is noted in `/run/vmlet/vfio` before anything is changed, so that
//! another process can give it back, also after this one was killed half way. The note is gone when
//! the machine boots, as the binding is.

use std::{fs, path::PathBuf};

use serde::{Deserialize, Serialize};
use vmlet_host::{HostRoot, IommuGroup, Obstacle, PciAddress, PciDevice, serves_vfio, uses};

use crate::{
    VfioError,
    error::file_error,
    noted::Noted,
    sysfs::{Attributes, Function, Sysfs},
    type1,
};

pub(crate) const DRIVER: &str = "vfio-pci";

/// What a device had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    vendor: u16,
    device: u16,
    pub(crate) driver: Option<String>,
    driver_override: Option<String>,
}

impl Noted for Before {
    const FOLDER: &'static str = "run/vmlet/vfio";

    fn identity(&self) -> (u16, u16) {
        (self.vendor, self.device)
    }
}

/// Gives the device to `vfio-pci`, unless a driver of VFIO has it already. After an error it has
/// what it had. Refused while the host has a network interface of it up or a disk of it in use.
pub fn bind(root: &HostRoot, address: PciAddress) -> Result<(), VfioError> {
    Binding::new(root, address, &Sysfs).bind()
}

/// Gives the device back what it had before [`bind`], in this process or another. A device that no
/// driver of VFIO has is left alone.
pub fn release(root: &HostRoot, address: PciAddress) -> Result<(), VfioError> {
    Binding::new(root, address, &Sysfs).release()
}

pub(crate) struct Binding<'a> {
    pub(crate) function: Function<'a>,
}

impl<'a> Binding<'a> {
    pub(crate) fn new(root: &'a HostRoot, address: PciAddress, kernel: &'a dyn Attributes) -> Self {
        Binding {
            function: Function {
                root,
                address,
                kernel,
            },
        }
    }

    pub(crate) fn bind(&self) -> Result<(), VfioError> {
        let device = self.function.device()?;
        if device.driver.as_deref().is_some_and(serves_vfio) {
            return Ok(());
        }
        // Whoever has the device, and with whom it shares a group, is no obstacle to binding it.
        let mut basic = device.obstacles.iter();
        let basic = basic.find(|one| {
            matches!(
                one,
                Obstacle::NoIommu | Obstacle::NoGroup { .. } | Obstacle::NoDriver
            )
        });
        if let Some(obstacle) = basic {
            return Err(VfioError::Obstacle {
                address: self.function.address,
                obstacle: obstacle.clone(),
            });
        }
        let uses = uses(self.function.root, self.function.address);
        if !uses.is_empty() {
            let address = self.function.address;
            return Err(VfioError::Used { address, uses });
        }
        let before = self.note(&device)?;
        self.take(&device).or_else(|error| {
            self.restore(&before)?;
            Err(error)
        })
    }

    pub(crate) fn release(&self) -> Result<(), VfioError> {
        let device = self.function.device()?;
        let before = Before::read(self.function.root, &device)?;
        match (&device.driver, before) {
            (Some(driver), None) if serves_vfio(driver) => Err(VfioError::NotOurs {
                address: self.function.address,
            }),
            (_, None) => Ok(()),
            (_, Some(before)) => {
                self.check_unused()?;
                self.restore(&before)
            }
        }
    }

    fn take(&self, device: &PciDevice) -> Result<(), VfioError> {
        self.set_override(DRIVER)?;
        if device.driver.is_some() {
            self.detach()?;
        }
        // Where the driver refuses, so does this write, or the device stays without one.
        let probed = self.name_at(self.function.root.path("sys/bus/pci/drivers_probe"));
        self.check_driver(DRIVER).and(probed)
    }

    /// Puts back what was there, and forgets it.
    pub(crate) fn restore(&self, before: &Before) -> Result<(), VfioError> {
        self.set_override(before.driver_override.as_deref().unwrap_or_default())?;
        if self.driver() != before.driver {
            if self.driver().is_some() {
                self.detach()?;
            }
            if let Some(driver) = &before.driver {
                let path = format!("sys/bus/pci/drivers/{driver}/bind");
                let bound = self.name_at(self.function.root.path(path));
                self.check_driver(driver).and(bound)?;
            }
        }
        Before::forget(self.function.root, self.function.address)
    }

    /// The kernel takes a device from VFIO's driver only when nobody has it open, and waits for that
    /// without end: so it is asked for first.
    pub(crate) fn check_unused(&self) -> Result<(), VfioError> {
        if !self.driver().as_deref().is_some_and(serves_vfio) {
            return Ok(());
        }
        let Some(group) = IommuGroup::of(self.function.root, self.function.address) else {
            return Ok(());
        };
        match type1::open_group(self.function.root, self.function.address, group.number) {
            Err(error @ VfioError::Busy { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    fn driver(&self) -> Option<String> {
        let link = self.function.attribute("driver");
        let target = fs::read_link(link).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    fn check_driver(&self, wanted: &str) -> Result<(), VfioError> {
        let found = self.driver();
        if found.as_deref() == Some(wanted) {
            return Ok(());
        }
        Err(VfioError::NotTaken {
            address: self.function.address,
            driver: wanted.to_owned(),
            found: found.unwrap_or_else(|| "no driver".to_owned()),
        })
    }

    fn detach(&self) -> Result<(), VfioError> {
        self.name_at(self.function.attribute("driver/unbind"))
    }

    /// Writes the function's address to `path`.
    fn name_at(&self, path: PathBuf) -> Result<(), VfioError> {
        self.function
            .write(&path, &self.function.address.to_string())
    }

    /// An empty line takes an override away.
    fn set_override(&self, driver: &str) -> Result<(), VfioError> {
        let path = self.function.attribute("driver_override");
        self.function.write(&path, &format!("{driver}\n"))
    }

    /// Notes what the device has, unless that was done and what followed was cut short: then it has
    /// no driver, or may have VFIO's only.
    fn note(&self, device: &PciDevice) -> Result<Before, VfioError> {
        let half_made =
            device.driver.is_none() || device.driver_override.as_deref() == Some(DRIVER);
        if let Some(before) = Before::read(self.function.root, device)?.filter(|_| half_made) {
            return Ok(before);
        }
        let before = Before {
            vendor: device.vendor,
            device: device.device,
            driver: device.driver.clone(),
            driver_override: device.driver_override.clone(),
        };
        let Function { root, address, .. } = self.function;
        let made = fs::create_dir_all(root.path(Before::FOLDER));
        made.map_err(|source| file_error(&Before::path(root, address), true, source))?;
        before.write(root, address)?;
        Ok(before)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io, ops::Deref, os::unix::fs::symlink, path::Path};

    use super::*;
    use crate::testing::Tree;

    const ADDRESS: &str = "0000:01:00.0";

    /// A host with one device in a group of its own, whose kernel acts on what is written.
    struct Host {
        tree: Tree,
        /// VFIO's driver refuses.
        refuses: Cell<bool>,
        writes: Cell<usize>,
    }

    impl Host {
        fn new(driver: Option<&str>) -> Host {
            let host = Host {
                tree: Tree::new(),
                refuses: Cell::new(false),
                writes: Cell::new(0),
            };
            host.function(ADDRESS, ["0x1234", "0x11e8", "0x00ff00"], 3);
            host.file("sys/bus/pci/drivers/vfio-pci/bind", "");
            host.file("sys/bus/pci/drivers/edu/bind", "");
            host.set_driver(ADDRESS, driver);
            host
        }

        /// Driver and override.
        fn state(&self) -> (Option<String>, Option<String>) {
            let address = ADDRESS.parse().unwrap();
            let device = PciDevice::read(&self.root(), address).unwrap();
            (device.driver, device.driver_override)
        }

        fn noted(&self) -> bool {
            Before::path(&self.root(), ADDRESS.parse().unwrap()).exists()
        }

        fn run(
            &self,
            work: impl FnOnce(&Binding<'_>) -> Result<(), VfioError>,
        ) -> Result<(), VfioError> {
            let root = self.root();
            work(&Binding::new(&root, ADDRESS.parse().unwrap(), self))
        }
    }

    impl Deref for Host {
        type Target = Tree;

        fn deref(&self) -> &Tree {
            &self.tree
        }
    }

    impl Attributes for Host {
        fn write(&self, path: &Path, text: &str) -> io::Result<()> {
            self.writes.set(self.writes.get() + 1);
            let name = self.name(path);
            let overridden = format!("sys/bus/pci/devices/{ADDRESS}/driver_override");
            if name == overridden {
                let kept = text.trim_end();
                self.file(name, if kept.is_empty() { "(null)" } else { kept });
            } else if name.ends_with("/unbind") {
                self.set_driver(ADDRESS, None);
            } else if name == "sys/bus/pci/drivers_probe" {
                let wanted = fs::read_to_string(self.path(&overridden)).unwrap();
                if wanted == DRIVER && self.refuses.get() {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                self.set_driver(ADDRESS, Some(&wanted));
            } else if let Some(driver) = name.strip_suffix("/bind") {
                self.set_driver(ADDRESS, driver.rsplit('/').next());
            }
            Ok(())
        }
    }

    #[test]
    fn a_device_gets_its_driver_back() {
        for driver in [None, Some("edu")] {
            let host = Host::new(driver);
            let before = host.state();
            host.run(|binding| binding.bind()).unwrap();
            let bound = (Some(DRIVER.to_owned()), Some(DRIVER.to_owned()));
            assert_eq!(host.state(), bound);
            assert!(host.noted());
            host.run(|binding| binding.release()).unwrap();
            assert_eq!(host.state(), before);
            assert!(!host.noted());
        }
    }

    #[test]
    fn a_driver_that_refuses_leaves_the_device_as_it_was() {
        let host = Host::new(Some("edu"));
        host.refuses.set(true);
        let before = host.state();
        let error = host.run(|binding| binding.bind()).unwrap_err();
        assert!(matches!(error, VfioError::NotTaken { .. }), "{error}");
        assert_eq!((host.state(), host.noted()), (before, false));
    }

    #[test]
    fn who_goes_on_after_a_killed_process_gives_back_what_was_first() {
        let host = Host::new(Some("edu"));
        let before = host.state();
        host.run(|binding| {
            let device = binding.function.device()?;
            binding.note(&device)?;
            binding.set_override(DRIVER)?;
            binding.detach()
        })
        .unwrap();
        host.run(|binding| binding.bind()).unwrap();
        host.run(|binding| binding.release()).unwrap();
        assert_eq!((host.state(), host.noted()), (before, false));
    }

    #[test]
    fn a_device_that_the_host_works_with_stays_where_it_is() {
        let host = Host::new(Some("edu"));
        let card = format!("devices/pci0000:00/{ADDRESS}/net/eth0");
        host.file(&format!("sys/{card}/flags"), "0x1003");
        fs::create_dir_all(host.path("sys/class/net")).unwrap();
        symlink(format!("../../{card}"), host.path("sys/class/net/eth0")).unwrap();
        let error = host.run(|binding| binding.bind()).unwrap_err();
        assert!(
            error.to_string().contains("ip link set eth0 down"),
            "{error}"
        );
        assert_eq!((host.writes.get(), host.noted()), (0, false));
    }

    #[test]
    fn a_device_that_somebody_else_gave_to_vfio_stays_there() {
        let host = Host::new(Some(DRIVER));
        host.run(|binding| binding.bind()).unwrap();
        let error = host.run(|binding| binding.release()).unwrap_err();
        assert!(matches!(error, VfioError::NotOurs { .. }), "{error}");
        assert_eq!(host.writes.get(), 0);
    }

    #[test]
    fn a_driver_that_was_given_by_hand_meanwhile_is_what_comes_back() {
        let host = Host::new(None);
        host.run(|binding| binding.bind()).unwrap();
        host.file(
            &format!("sys/bus/pci/devices/{ADDRESS}/driver_override"),
            "(null)",
        );
        host.set_driver(ADDRESS, Some("edu"));
        host.run(|binding| binding.bind()).unwrap();
        host.run(|binding| binding.release()).unwrap();
        assert_eq!(host.state(), (Some("edu".to_owned()), None));
    }

    #[test]
    fn a_note_of_another_device_in_the_slot_is_not_looked_at() {
        let host = Host::new(None);
        host.file(
            &format!("{}/{ADDRESS}", Before::FOLDER),
            r#"{"vendor":1,"device":2,"driver":"edu","driver_override":null}"#,
        );
        host.run(|binding| binding.release()).unwrap();
        assert_eq!(host.state().0, None);
        host.run(|binding| binding.bind()).unwrap();
        host.run(|binding| binding.release()).unwrap();
        assert_eq!(host.state(), (None, None));
    }

    #[test]
    fn nothing_is_touched_where_there_is_no_device_and_no_driver() {
        let host = Host::new(Some("edu"));
        fs::remove_dir_all(host.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
        let error = host.run(|binding| binding.bind()).unwrap_err();
        assert!(error.to_string().contains("modprobe vfio-pci"), "{error}");
        let root = host.root();
        let missing = Binding::new(&root, "0000:09:00.0".parse().unwrap(), &host);
        let error = missing.bind().unwrap_err();
        assert!(error.to_string().contains("0000:09:00.0"), "{error}");
        assert_eq!(host.writes.get(), 0);
    }
}
