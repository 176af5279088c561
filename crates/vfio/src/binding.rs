//! Giving a device to VFIO's driver, and back to the driver it had.
//!
//! What a device had before is noted in `/run/vmlet/vfio` before anything is changed, so that
//! another process can give it back, also after this one was killed half way. The note is gone when
//! the machine boots, as the binding is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vmlet_host::{HostRoot, IommuGroup, Obstacle, PciAddress, PciDevice, serves_vfio, uses};

use crate::{VfioError, type1};

pub(crate) const DRIVER: &str = "vfio-pci";
pub(crate) const NOTES: &str = "run/vmlet/vfio";

/// What a device had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    vendor: u16,
    device: u16,
    pub(crate) driver: Option<String>,
    driver_override: Option<String>,
}

/// The kernel's side of sysfs: it acts on what is written.
pub(crate) trait Attributes {
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub(crate) struct Sysfs;

impl Attributes for Sysfs {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // Opened only: `create` would make a file of that name where there is no such attribute.
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())
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
    pub(crate) root: &'a HostRoot,
    pub(crate) address: PciAddress,
    kernel: &'a dyn Attributes,
}

impl<'a> Binding<'a> {
    pub(crate) fn new(root: &'a HostRoot, address: PciAddress, kernel: &'a dyn Attributes) -> Self {
        Binding {
            root,
            address,
            kernel,
        }
    }

    pub(crate) fn bind(&self) -> Result<(), VfioError> {
        let device = self.device()?;
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
                address: self.address,
                obstacle: obstacle.clone(),
            });
        }
        let uses = uses(self.root, self.address);
        if !uses.is_empty() {
            let address = self.address;
            return Err(VfioError::Used { address, uses });
        }
        let before = self.note(&device)?;
        self.take(&device).or_else(|error| {
            self.restore(&before)?;
            Err(error)
        })
    }

    pub(crate) fn release(&self) -> Result<(), VfioError> {
        let device = self.device()?;
        let before = self.noted(&device)?;
        match (&device.driver, before) {
            (Some(driver), None) if serves_vfio(driver) => Err(VfioError::NotOurs {
                address: self.address,
            }),
            (_, None) => Ok(()),
            (_, Some(before)) => {
                self.check_unused()?;
                self.restore(&before)
            }
        }
    }

    fn device(&self) -> Result<PciDevice, VfioError> {
        PciDevice::read(self.root, self.address).ok_or(VfioError::Obstacle {
            address: self.address,
            obstacle: Obstacle::Missing {
                address: self.address,
            },
        })
    }

    fn take(&self, device: &PciDevice) -> Result<(), VfioError> {
        self.set_override(DRIVER)?;
        if device.driver.is_some() {
            self.detach()?;
        }
        // Where the driver refuses, so does this write, or the device stays without one.
        let probed = self.write("sys/bus/pci/drivers_probe", &self.address.to_string());
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
                let bound = self.write(&path, &self.address.to_string());
                self.check_driver(driver).and(bound)?;
            }
        }
        self.forget()
    }

    pub(crate) fn forget(&self) -> Result<(), VfioError> {
        let note = self.note_path();
        fs::remove_file(&note).map_err(|source| file_error(&note, true, source))
    }

    /// The kernel takes a device from VFIO's driver only when nobody has it open, and waits for that
    /// without end: so it is asked for first.
    pub(crate) fn check_unused(&self) -> Result<(), VfioError> {
        if !self.driver().as_deref().is_some_and(serves_vfio) {
            return Ok(());
        }
        let Some(group) = IommuGroup::of(self.root, self.address) else {
            return Ok(());
        };
        match type1::open_group(self.root, self.address, group.number) {
            Err(error @ VfioError::Busy { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    fn driver(&self) -> Option<String> {
        let link = self.root.path(self.attribute("driver"));
        let target = fs::read_link(link).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    fn check_driver(&self, wanted: &str) -> Result<(), VfioError> {
        let found = self.driver();
        if found.as_deref() == Some(wanted) {
            return Ok(());
        }
        Err(VfioError::NotTaken {
            address: self.address,
            driver: wanted.to_owned(),
            found: found.unwrap_or_else(|| "no driver".to_owned()),
        })
    }

    fn detach(&self) -> Result<(), VfioError> {
        self.write(&self.attribute("driver/unbind"), &self.address.to_string())
    }

    /// An empty line takes an override away.
    fn set_override(&self, driver: &str) -> Result<(), VfioError> {
        self.write(&self.attribute("driver_override"), &format!("{driver}\n"))
    }

    fn attribute(&self, name: &str) -> String {
        format!("sys/bus/pci/devices/{}/{name}", self.address)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), VfioError> {
        let path = self.root.path(name);
        let done = self.kernel.write(&path, text);
        done.map_err(|source| file_error(&path, true, source))
    }

    fn note_path(&self) -> PathBuf {
        self.root.path(format!("{NOTES}/{}", self.address))
    }

    /// Notes what the device has, unless that was done and what followed was cut short: then it has
    /// no driver, or may have VFIO's only.
    fn note(&self, device: &PciDevice) -> Result<Before, VfioError> {
        let half_made =
            device.driver.is_none() || device.driver_override.as_deref() == Some(DRIVER);
        if let Some(before) = self.noted(device)?.filter(|_| half_made) {
            return Ok(before);
        }
        let before = Before {
            vendor: device.vendor,
            device: device.device,
            driver: device.driver.clone(),
            driver_override: device.driver_override.clone(),
        };
        let path = self.note_path();
        let failed = |source| file_error(&path, true, source);
        fs::create_dir_all(self.root.path(NOTES)).map_err(failed)?;
        let text = serde_json::to_string(&before).map_err(|error| failed(error.into()))?;
        // Whole or not at all, whoever is killed when.
        let new = path.with_extension("new");
        fs::write(&new, text).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)?;
        Ok(before)
    }

    /// What was noted of this very device; a note of another that was in this slot is not looked at.
    pub(crate) fn noted(&self, device: &PciDevice) -> Result<Option<Before>, VfioError> {
        let path = self.note_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file_error(&path, false, source)),
        };
        let before: Option<Before> = serde_json::from_str(&text).ok();
        Ok(before.filter(|one| (one.vendor, one.device) == (device.vendor, device.device)))
    }
}

pub(crate) fn file_error(path: &Path, write: bool, source: io::Error) -> VfioError {
    VfioError::File {
        path: path.to_owned(),
        write,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, os::unix::fs::symlink};

    use super::*;

    const ADDRESS: &str = "0000:01:00.0";

    /// A host with one device in a group of its own, whose kernel acts on what is written.
    struct Host {
        dir: tempfile::TempDir,
        /// VFIO's driver refuses.
        refuses: Cell<bool>,
        writes: Cell<usize>,
    }

    impl Host {
        fn new(driver: Option<&str>) -> Host {
            let host = Host {
                dir: tempfile::tempdir().unwrap(),
                refuses: Cell::new(false),
                writes: Cell::new(0),
            };
            for (name, text) in [
                ("vendor", "0x1234"),
                ("device", "0x11e8"),
                ("class", "0x00ff00"),
                ("driver_override", "(null)"),
            ] {
                host.file(&format!("sys/bus/pci/devices/{ADDRESS}/{name}"), text);
            }
            host.file("sys/bus/pci/drivers/vfio-pci/bind", "");
            host.file("sys/bus/pci/drivers/edu/bind", "");
            host.file(
                &format!("sys/kernel/iommu_groups/3/devices/{ADDRESS}/x"),
                "",
            );
            let group = host.path(&format!("sys/bus/pci/devices/{ADDRESS}/iommu_group"));
            symlink("../groups/3", group).unwrap();
            if let Some(driver) = driver {
                host.set_driver(Some(driver));
            }
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn file(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn root(&self) -> HostRoot {
            HostRoot::new(self.dir.path())
        }

        fn set_driver(&self, driver: Option<&str>) {
            let link = self.path(&format!("sys/bus/pci/devices/{ADDRESS}/driver"));
            let _ = fs::remove_file(&link);
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), link).unwrap();
            }
        }

        /// Driver and override.
        fn state(&self) -> (Option<String>, Option<String>) {
            let address = ADDRESS.parse().unwrap();
            let device = PciDevice::read(&self.root(), address).unwrap();
            (device.driver, device.driver_override)
        }

        fn noted(&self) -> bool {
            self.path(&format!("{NOTES}/{ADDRESS}")).exists()
        }

        fn run(
            &self,
            work: impl FnOnce(&Binding<'_>) -> Result<(), VfioError>,
        ) -> Result<(), VfioError> {
            let root = self.root();
            work(&Binding::new(&root, ADDRESS.parse().unwrap(), self))
        }
    }

    impl Attributes for Host {
        fn write(&self, path: &Path, text: &str) -> io::Result<()> {
            self.writes.set(self.writes.get() + 1);
            let name = path.strip_prefix(self.dir.path()).unwrap();
            let name = name.to_str().unwrap();
            let overridden = format!("sys/bus/pci/devices/{ADDRESS}/driver_override");
            if name == overridden {
                let kept = text.trim_end();
                self.file(name, if kept.is_empty() { "(null)" } else { kept });
            } else if name.ends_with("/unbind") {
                self.set_driver(None);
            } else if name == "sys/bus/pci/drivers_probe" {
                let wanted = fs::read_to_string(self.path(&overridden)).unwrap();
                if wanted == DRIVER && self.refuses.get() {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                self.set_driver(Some(&wanted));
            } else if let Some(driver) = name.strip_suffix("/bind") {
                self.set_driver(driver.rsplit('/').next());
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
            let device = binding.device()?;
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
        host.set_driver(Some("edu"));
        host.run(|binding| binding.bind()).unwrap();
        host.run(|binding| binding.release()).unwrap();
        assert_eq!(host.state(), (Some("edu".to_owned()), None));
    }

    #[test]
    fn a_note_of_another_device_in_the_slot_is_not_looked_at() {
        let host = Host::new(None);
        host.file(
            &format!("{NOTES}/{ADDRESS}"),
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
