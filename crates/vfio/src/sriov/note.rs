//! What is noted of a physical function before its virtual functions are made or removed.
//!
//! A note with an owner says that virtual functions are there for as long as that process wants, or
//! that it was at work on them: when it is gone, so have they to be. Without an owner they stay.

use std::{
    fs::{self, File, TryLockError},
    io, process,
};

use serde::{Deserialize, Serialize};
use vmlet_host::{HostRoot, PciAddress, PciDevice};

use super::nvme::Share;
use crate::{
    VfioError,
    error::file_error,
    noted::{Noted, started},
};

/// A process, told apart from a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) pid: u32,
    /// Clock ticks from the machine's start to the process's (proc(5), field 22 of `stat`).
    started: u64,
}

impl Owner {
    /// This process.
    pub(super) fn this(root: &HostRoot) -> Result<Owner, VfioError> {
        let pid = process::id();
        let path = root.path(format!("proc/{pid}/stat"));
        let text = fs::read_to_string(&path).map_err(|error| file_error(&path, false, error))?;
        let started = started(&text)
            .ok_or_else(|| file_error(&path, false, io::Error::from(io::ErrorKind::InvalidData)))?;
        Ok(Owner { pid, started })
    }

    pub(super) fn lives(&self, root: &HostRoot) -> bool {
        let text = fs::read_to_string(root.path(format!("proc/{}/stat", self.pid)));
        text.ok().and_then(|text| started(&text)) == Some(self.started)
    }

    pub(super) fn is_this(&self) -> bool {
        self.pid == process::id()
    }
}

/// What a physical function had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    vendor: u16,
    device: u16,
    /// `sriov_drivers_autoprobe`; kernels before 4.12 have none.
    pub(super) autoprobe: Option<String>,
    /// Queues and interrupts that an NVMe controller had; none where its virtual functions get none
    /// of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nvme: Option<Share>,
    pub(super) owner: Option<Owner>,
}

impl Note {
    pub(super) fn new(device: &PciDevice, autoprobe: Option<String>, owner: Owner) -> Note {
        Note {
            vendor: device.vendor,
            device: device.device,
            autoprobe,
            nvme: None,
            owner: Some(owner),
        }
    }

    /// As [`Noted::forget`]; of a function that nothing is noted of, nothing.
    pub(super) fn drop_of(root: &HostRoot, address: PciAddress) -> Result<(), VfioError> {
        match Note::forget(root, address) {
            Err(VfioError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            done => done,
        }
    }
}

impl Noted for Note {
    const FOLDER: &'static str = "run/vmlet/sriov";

    fn identity(&self) -> (u16, u16) {
        (self.vendor, self.device)
    }
}

/// One at a time makes or removes virtual functions of a physical function. The kernel takes the
/// lock from a process that ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    pub(super) fn take(root: &HostRoot, address: PciAddress) -> Result<Lock, VfioError> {
        let path = root.path(format!("{}/{address}.lock", Note::FOLDER));
        let failed = |source| file_error(&path, true, source);
        fs::create_dir_all(root.path(Note::FOLDER)).map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => Err(VfioError::VfsChanging { address }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A child that was forked meanwhile has the file open too, and must not keep the lock.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_and_from_a_dead_one() {
        let stat = |state, started| {
            let between = "0 ".repeat(18);
            format!("7 (a) b) {state} {between}{started} 0 0\n")
        };
        assert_eq!(started(&stat("S", 4711)), Some(4711));
        assert_eq!(started(&stat("Z", 4711)), None);
        assert_eq!(started(""), None);
        let root = HostRoot::default();
        let this = Owner::this(&root).unwrap();
        assert!(this.lives(&root) && this.is_this());
        let started = this.started + 1;
        assert!(!Owner { started, ..this }.lives(&root));
    }
}
