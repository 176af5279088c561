//! What is noted of a function before anything about it is changed, so that another process can put it
//! back. Notes are gone when the machine boots, as what they tell of is.

use std::{fs, io, path::PathBuf, process};

use serde::{Serialize, de::DeserializeOwned};
use vmlet_host::{HostRoot, PciAddress, PciDevice};

use crate::{VfioError, error::file_error};

/// A file whose note is being written: its function and its writer come before.
const BEGUN: &str = ".new";

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
        sweep(root, Self::FOLDER);
        let path = Self::path(root, address);
        let failed = |source| file_error(&path, true, source);
        let text = serde_json::to_string(self).map_err(|error| failed(error.into()))?;
        let new = format!("{}/{address}.{}{BEGUN}", Self::FOLDER, process::id());
        let new = root.path(new);
        fs::write(&new, text).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }

    fn forget(root: &HostRoot, address: PciAddress) -> Result<(), VfioError> {
        let path = Self::path(root, address);
        fs::remove_file(&path).map_err(|source| file_error(&path, true, source))
    }
}

/// Removes what processes left that were killed while they wrote a note.
pub(crate) fn sweep(root: &HostRoot, folder: &str) {
    let entries = fs::read_dir(root.path(folder)).into_iter().flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let begun = name.to_str().and_then(|name| name.strip_suffix(BEGUN));
        let writer = begun.and_then(|name| name.rsplit_once('.')?.1.parse().ok());
        if writer.is_some_and(|pid: u32| !lives(root, pid)) {
            // What cannot be removed takes some bytes until the machine boots.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn lives(root: &HostRoot, pid: u32) -> bool {
    let text = fs::read_to_string(root.path(format!("proc/{pid}/stat")));
    text.is_ok_and(|text| started(&text).is_some())
}

/// When a process started, by `stat` of proc(5), field 22; none of one that has ended and is not
/// waited for yet.
pub(crate) fn started(stat: &str) -> Option<u64> {
    // The second field, the name, may have blanks and parentheses in it.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    rest.nth(18)?.parse().ok()
}
