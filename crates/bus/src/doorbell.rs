//! Writes that wake somebody instead of being served.

use std::{fmt::Debug, io};

use vmm_sys_util::eventfd::EventFd;

/// A guest write to memory-mapped registers that only says "look".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// Guest-physical address.
    pub addr: u64,
    /// Width in bytes: 1, 2, 4 or 8; 0 takes every width.
    pub len: u32,
    /// Only this value, if given.
    pub value: Option<u64>,
}

/// Where doorbells are hung up: the engine signals an eventfd and the guest goes on at once.
pub trait Doorbells: Send + Sync + Debug {
    /// Makes writes that fit `bell` signal `fd` and nothing else.
    fn attach(&self, bell: &Doorbell, fd: &EventFd) -> io::Result<()>;

    /// Undoes [`Doorbells::attach`]; what was never attached is no error.
    fn detach(&self, bell: &Doorbell, fd: &EventFd);
}
