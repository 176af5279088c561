//! What a bus refuses.

use thiserror::Error;
use vmlet_bus::SavedError;

/// Why a function cannot be put on a bus, or taken away.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PciError {
    /// A layout that no function can have.
    #[error("{device} cannot be a PCI function: {detail}")]
    Layout {
        /// The function.
        device: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A root port that the board has not got.
    #[error("there is no root port {port}: the board has {count}")]
    NoPort {
        /// The port asked for.
        port: u8,
        /// How many there are.
        count: u8,
    },
    /// A root port that has a function.
    #[error("root port {port} has a function: {device}")]
    Taken {
        /// The port.
        port: u8,
        /// What is in it.
        device: &'static str,
    },
    /// Every root port has a function.
    #[error("all {count} root ports are taken")]
    Full {
        /// How many there are.
        count: u8,
    },
    /// A root port without a function.
    #[error("root port {port} is empty")]
    Empty {
        /// The port.
        port: u8,
    },
    /// BARs that the board's windows cannot hold.
    #[error("no room for {bytes:#x} bytes of {device}'s registers: {left:#x} are left")]
    NoRoom {
        /// The function that does not fit.
        device: &'static str,
        /// Bytes it needs behind its port.
        bytes: u64,
        /// Bytes of the window that others leave.
        left: u64,
    },
    /// A saved state that the function does not take.
    #[error(transparent)]
    Saved(#[from] SavedError),
}
