//! A device's interrupts as eventfds.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};

use crate::{VfioError, calls, descriptor::Descriptor};

/// How a device interrupts, and what the kernel says of it in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// A line, which stays raised until the driver has asked the device; masked when it comes in.
    Intx,
    /// Messages.
    Msi,
    /// Messages by a table in a region.
    Msix,
    /// The kernel: the device reported an error that is not recovered from.
    Failure,
    /// The kernel: the host wants the device back, and waits until it is closed.
    Removal,
}

impl InterruptKind {
    /// Those of the device; one at a time can be on.
    pub const ALL: [InterruptKind; 3] =
        [InterruptKind::Intx, InterruptKind::Msi, InterruptKind::Msix];

    pub(crate) fn index(self) -> u32 {
        match self {
            InterruptKind::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            InterruptKind::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            InterruptKind::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
            InterruptKind::Failure => VFIO_PCI_ERR_IRQ_INDEX,
            InterruptKind::Removal => VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

impl fmt::Display for InterruptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InterruptKind::Intx => "INTx",
            InterruptKind::Msi => "MSI",
            InterruptKind::Msix => "MSI-X",
            InterruptKind::Failure => "failure",
            InterruptKind::Removal => "removal",
        })
    }
}

/// One interrupt: counts until somebody looks.
#[derive(Debug)]
pub struct Vector {
    kind: InterruptKind,
    number: u32,
    raw: RawFd,
    eventfd: Descriptor,
    ended: AtomicBool,
}

impl Vector {
    pub(crate) fn new(kind: InterruptKind, number: u32) -> io::Result<Arc<Vector>> {
        let eventfd = calls::eventfd()?;
        let raw = eventfd.as_raw_fd();
        Ok(Arc::new(Vector {
            kind,
            number,
            raw,
            eventfd: Descriptor::new(eventfd),
            ended: AtomicBool::new(false),
        }))
    }

    /// How it comes.
    pub fn kind(&self) -> InterruptKind {
        self.kind
    }

    /// Which of its kind.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The eventfd, which is readable when an interrupt has come; as long as the device is open.
    pub fn raw_fd(&self) -> Result<RawFd, VfioError> {
        self.eventfd.call("eventfd", |_| Ok(self.raw))
    }

    /// How many have come since somebody asked; waits at most `limit` for the first.
    pub fn wait(&self, limit: Duration) -> Result<Option<u64>, VfioError> {
        let found = self.eventfd.call("eventfd", |file| {
            // What is written at the end is for others, who wait at a duplicate.
            let ended = || self.ended.load(Ordering::Acquire);
            if ended() || !calls::readable(file, limit)? || ended() {
                return Ok(None);
            }
            let mut count = [0; 8];
            match io::Read::read(&mut &*file, &mut count) {
                Ok(_) => Ok(Some(u64::from_ne_bytes(count))),
                // Another thread was quicker.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        if self.ended.load(Ordering::Acquire) {
            return Err(VfioError::Closed);
        }
        Ok(found)
    }

    /// Ends it; who waits is woken, here or at a duplicate of the eventfd.
    pub(crate) fn close(&self) {
        self.ended.store(true, Ordering::Release);
        // The only failure is a counter that is full, and so readable.
        let wake = |file: &File| io::Write::write(&mut &*file, &1u64.to_ne_bytes());
        // Who waits here holds the descriptor; once nobody does, nobody takes the count away.
        drop(self.eventfd.call("eventfd", wake));
        self.eventfd.close_after(|file| drop(wake(file)));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn raise(vector: &Vector) {
        let one = 1u64.to_ne_bytes();
        let write = |file: &std::fs::File| io::Write::write(&mut &*file, &one);
        vector.eventfd.call("write", write).unwrap();
    }

    #[test]
    fn interrupts_are_counted_until_somebody_asks() {
        let vector = Vector::new(InterruptKind::Msi, 3).unwrap();
        assert_eq!(vector.wait(Duration::ZERO).unwrap(), None);
        raise(&vector);
        raise(&vector);
        assert_eq!(vector.wait(Duration::from_secs(5)).unwrap(), Some(2));
        assert_eq!(vector.wait(Duration::ZERO).unwrap(), None);
    }

    #[test]
    fn who_waits_for_what_ends_is_woken() {
        let vector = Vector::new(InterruptKind::Msi, 0).unwrap();
        let waiting = Arc::clone(&vector);
        let waiter = thread::spawn(move || waiting.wait(Duration::from_secs(60)));
        thread::sleep(Duration::from_millis(20));
        vector.close();
        assert!(matches!(waiter.join().unwrap(), Err(VfioError::Closed)));
        assert!(matches!(vector.raw_fd(), Err(VfioError::Closed)));
    }
}
