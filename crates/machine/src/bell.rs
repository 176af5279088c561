//! Tells an event loop that something happened, by an eventfd.
//!
//! A guest that prints byte by byte makes no system call for each: a bell rings once after each
//! [`Bell::arm`].

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// See the module's text.
#[derive(Debug)]
pub struct Bell {
    fd: EventFd,
    armed: AtomicBool,
}

impl Bell {
    fn new() -> io::Result<Bell> {
        Ok(Bell {
            fd: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            armed: AtomicBool::new(false),
        })
    }

    /// Makes the next change ring. Whoever arms looks for changes afterwards, before waiting.
    pub fn arm(&self) {
        let _ = self.fd.read();
        self.armed.store(true, Ordering::SeqCst);
    }

    fn ring(&self) {
        // Only a counter near 2^64 can refuse the write, and `arm` empties it.
        if self.armed.load(Ordering::SeqCst) && self.armed.swap(false, Ordering::SeqCst) {
            let _ = self.fd.write(1);
        }
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The place of a bell that is hung up when somebody asks for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct BellRope(Arc<OnceLock<Arc<Bell>>>);

impl BellRope {
    /// The bell.
    pub(crate) fn bell(&self) -> io::Result<Arc<Bell>> {
        if let Some(bell) = self.0.get() {
            return Ok(Arc::clone(bell));
        }
        let bell = Arc::new(Bell::new()?);
        Ok(Arc::clone(self.0.get_or_init(|| bell)))
    }

    /// Rings, if somebody waits. What changed is visible already.
    pub(crate) fn pull(&self) {
        if let Some(bell) = self.0.get() {
            bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_once_after_each_arming() {
        let rope = BellRope::default();
        rope.pull();
        let bell = rope.bell().unwrap();
        assert!(bell.fd.read().is_err());
        bell.arm();
        rope.pull();
        rope.pull();
        assert_eq!(bell.fd.read().unwrap(), 1);
        rope.pull();
        assert!(bell.fd.read().is_err());
    }

    #[test]
    fn arming_forgets_what_rang_before() {
        let rope = BellRope::default();
        let bell = rope.bell().unwrap();
        bell.arm();
        rope.pull();
        bell.arm();
        assert!(bell.fd.read().is_err());
    }
}
