//! A PCI function in sysfs, where the kernel acts on what is written.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use vmlet_host::{HostRoot, Obstacle, PciAddress, PciDevice};

use crate::{VfioError, error::file_error};

/// The kernel's side of sysfs.
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

#[derive(Clone, Copy)]
pub(crate) struct Function<'a> {
    pub(crate) root: &'a HostRoot,
    pub(crate) address: PciAddress,
    pub(crate) kernel: &'a dyn Attributes,
}

impl Function<'_> {
    /// What it is now.
    pub(crate) fn device(&self) -> Result<PciDevice, VfioError> {
        let address = self.address;
        PciDevice::read(self.root, address).ok_or(VfioError::Obstacle {
            address,
            obstacle: Obstacle::Missing { address },
        })
    }

    /// The file of its attribute `name`.
    pub(crate) fn attribute(&self, name: &str) -> PathBuf {
        let address = self.address;
        self.root
            .path(format!("sys/bus/pci/devices/{address}/{name}"))
    }

    /// Writes to an attribute of its own, or to one elsewhere.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), VfioError> {
        let done = self.kernel.write(path, text);
        done.map_err(|source| file_error(path, true, source))
    }
}
