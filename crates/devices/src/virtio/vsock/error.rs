//! Why a device is not made, or a stream not opened.

use std::{io, path::PathBuf};

use thiserror::Error;

/// What a vsock device refuses.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VsockError {
    /// A context id that no guest can have.
    #[error(
        "a guest cannot have context id {cid}: 0 to 2 and 4294967295 are reserved. Give one from 3 on"
    )]
    Cid {
        /// The id.
        cid: u64,
    },
    /// A socket is there already.
    #[error("{} exists: another VM may use it. Remove it if none does, or give another path", path.display())]
    PathTaken {
        /// The path.
        path: PathBuf,
    },
    /// A socket's name has little room, and ports are appended.
    #[error("{} is longer than the {most} bytes that a socket's path can have here. Give a shorter path", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Bytes there can be.
        most: usize,
    },
    /// The host makes no socket there.
    #[error("no socket can be made at {}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody listens already.
    #[error("somebody listens at vsock port {port} already. Close that listener first")]
    PortTaken {
        /// The port.
        port: u32,
    },
    /// A system call.
    #[error("{call} failed: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device is gone.
    #[error("the VM of this vsock device is closed")]
    Closed,
}

impl VsockError {
    pub(super) fn call(call: &'static str) -> impl FnOnce(io::Error) -> VsockError {
        move |source| VsockError::Call { call, source }
    }

    /// The error number, if the host gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            VsockError::Path { source, .. } | VsockError::Call { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}
