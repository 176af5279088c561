//! What can go wrong with a network back end.

use std::io;

use thiserror::Error;

/// Why a network back end cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// An interface of the host.
    #[error("the tap interface {name:?} cannot be {action}")]
    Interface {
        /// Its name.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What helps.
        remedy: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A name that no interface can have.
    #[error("{name:?} is no name of an interface: 1 to 15 bytes without spaces and slashes")]
    Name {
        /// The name.
        name: String,
    },
    /// A descriptor that carries no frames.
    #[error("the descriptor is no tap interface, and no socket that carries frames")]
    Descriptor,
    /// The program passt.
    #[error("passt cannot be {action}")]
    Passt {
        /// What was tried.
        action: &'static str,
        /// What helps.
        remedy: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The program passt ended at once.
    #[error("passt ended at once: {said}")]
    PasstEnded {
        /// What it said.
        said: String,
    },
    /// The kernel's vhost-net.
    #[error("vhost-net: {action} failed")]
    Vhost {
        /// What was tried.
        action: &'static str,
        /// What helps.
        remedy: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A system call.
    #[error("{call} failed")]
    Call {
        /// Which.
        call: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl NetError {
    /// What helps; empty if nothing is known to.
    pub fn remedy(&self) -> &'static str {
        match self {
            NetError::Interface { remedy, .. }
            | NetError::Passt { remedy, .. }
            | NetError::Vhost { remedy, .. } => remedy,
            NetError::Name { .. } => "Give the name of a tap interface.",
            NetError::Descriptor => {
                "Give a tap interface, or a Unix socket of type SEQPACKET, DGRAM or STREAM."
            }
            NetError::PasstEnded { .. } => {
                "passt wants an interface with an address and a default route."
            }
            NetError::Call { .. } => "",
        }
    }

    /// The host's error behind it.
    pub fn source_error(&self) -> Option<&io::Error> {
        match self {
            NetError::Interface { source, .. }
            | NetError::Passt { source, .. }
            | NetError::Vhost { source, .. }
            | NetError::Call { source, .. } => Some(source),
            NetError::Name { .. } | NetError::Descriptor | NetError::PasstEnded { .. } => None,
        }
    }
}
