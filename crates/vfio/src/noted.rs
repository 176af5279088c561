//! What is noted of a function before anything about it is changed, so that another process can put it
//! back. Notes are gone when the machine boots, as what they tell of is.

use std::{fs, io, path::PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use vmlet_host::{HostRoot, PciAddress, PciDevice};

use crate::{VfioError, error::file_error};

/// A note, one a function.
pub(crate) trait Noted: Serialize + DeserializeOwned {
    /// Where notes of this kind are.
    const FOLDER: &'static str;

    /// The function's vendor and device.
    fn identity(&self) -> (u16, u16);

    fn path(root: &HostRoot, address: PciAddress) -> PathBuf {
        root.path(format!("{}/{address}", Self::FOLDER))
    }

    /// What was noted of this very function; a note of another that was in this slot is not looked at.
    fn read(root: &HostRoot, of: &PciDevice) -> Result<Option<Self>, VfioError> {
        let path = Self::path(root, of.address);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file_error(&path, false, source)),
        };
        let note: Option<Self> = serde_json::from_str(&text).ok();
        Ok(note.filter(|note| note.identity() == (of.vendor, of.device)))
    }

    /// Whole or not at all, whoever is killed when. The folder is there.
    fn write(&self, root: &HostRoot, address: PciAddress) -> Result<(), VfioError> {
        let path = Self::path(root, address);
        let failed = |source| file_error(&path, true, source);
        let text = serde_json::to_string(self).map_err(|error| failed(error.into()))?;
        let new = path.with_extension("new");
        fs::write(&new, text).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }

    fn forget(root: &HostRoot, address: PciAddress) -> Result<(), VfioError> {
        let path = Self::path(root, address);
        fs::remove_file(&path).map_err(|source| file_error(&path, true, source))
    }
}
