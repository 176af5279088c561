//! A descriptor that can be closed while others still hold what refers to it.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::{PoisonError, RwLock},
};

use vmlet_memory::fork::{self, Origin, ParentOnly, Watch};

use crate::VfioError;

/// The watch ends before the descriptor does.
#[derive(Debug)]
struct Held {
    _watch: Option<Watch>,
    file: ParentOnly<File>,
}

/// Closed by [`Descriptor::close`], when it is dropped, and in every forked child.
#[derive(Debug)]
pub(crate) struct Descriptor {
    held: RwLock<Option<Held>>,
    origin: Origin,
}

impl Descriptor {
    pub(crate) fn new(file: File) -> Descriptor {
        Descriptor {
            origin: Origin::here(),
            held: RwLock::new(Some(Held {
                _watch: fork::watch_fd(file.as_raw_fd()),
                file: ParentOnly::new(file),
            })),
        }
    }

    /// Hands the file to `work`. `close` waits meanwhile.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&File) -> io::Result<T>,
    ) -> Result<io::Result<T>, VfioError> {
        // Before the lock, which another thread may have held when the process forked.
        self.origin.check().map_err(|_| VfioError::Forked)?;
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_ref().ok_or(VfioError::Closed)?;
        Ok(work(&held.file))
    }

    /// The same for a call whose failure needs no other words than its name.
    pub(crate) fn call<T>(
        &self,
        call: &'static str,
        work: impl FnOnce(&File) -> io::Result<T>,
    ) -> Result<T, VfioError> {
        let done = self.with(work)?;
        done.map_err(|source| VfioError::Call { call, source })
    }

    pub(crate) fn close(&self) {
        self.close_after(|_| ());
    }

    /// The same once `last` has had the file, with nobody else at it.
    pub(crate) fn close_after(&self, last: impl FnOnce(&File)) {
        if !self.origin.is_here() {
            return;
        }
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.take() {
            last(&held.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_is_refused_and_closing_twice_is_nothing() {
        let descriptor = Descriptor::new(tempfile::tempfile().unwrap());
        assert!(descriptor.call("fstat", File::metadata).is_ok());
        descriptor.close();
        descriptor.close();
        let refused = descriptor.call("fstat", File::metadata).unwrap_err();
        assert!(matches!(refused, VfioError::Closed));
    }
}
