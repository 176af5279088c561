//! Images that cannot be used.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::DiskFormat;

/// Why an image cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BlockError {
    /// It cannot be opened.
    #[error("the disk image {} cannot be opened: {source}. {remedy}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What would help.
        remedy: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no file or block device.
    #[error(
        "the disk image {} is a {kind}. Name a regular file or a block device",
        path.display()
    )]
    NotAnImage {
        /// The image.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Not even one sector.
    #[error(
        "the disk image {} has {len} bytes, less than a sector of 512. \
         Make it larger, for instance with truncate -s 1G",
        path.display()
    )]
    TooShort {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        len: u64,
    },
    /// It ends within a sector.
    #[error(
        "the disk image {} has {len} bytes, which is no multiple of {unit}. \
         Round it up, for instance with truncate -s %{unit}",
        path.display()
    )]
    Ragged {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        len: u64,
        /// Bytes that it must be a multiple of.
        unit: u32,
    },
    /// It is not of the format that was named.
    #[error(
        "the disk image {} is no {} image. Formats are not guessed: name the one it has",
        path.display(), named.name()
    )]
    WrongFormat {
        /// The image.
        path: PathBuf,
        /// The format named.
        named: DiskFormat,
    },
    /// The format's driver refuses it.
    #[error("the {} image {} cannot be used: {source}", named.name(), path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// The format.
        named: DiskFormat,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It needs another image, which nobody named.
    #[error(
        "the qcow2 image {} lies on {other:?}, which is not opened unless you name it. \
         Make it independent with qemu-img rebase -b ''",
        path.display()
    )]
    NotNamed {
        /// The image.
        path: PathBuf,
        /// What it lies on.
        other: String,
    },
    /// Somebody else uses it.
    #[error(
        "the disk image {} is in use by another VM. \
         Share it with readonly=True or overlay=True in all of them",
        path.display()
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// An option that this image cannot have.
    #[error("the disk image {} cannot be {option}: {reason}", path.display())]
    Option {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        option: &'static str,
        /// Why it cannot be.
        reason: &'static str,
    },
    /// Nothing to throw writes into.
    #[error("there is no room for the overlay of {}: {source}. Set TMPDIR to a folder with room", path.display())]
    Overlay {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BlockError {
    /// The error number, if the host gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            BlockError::Open { source, .. }
            | BlockError::Format { source, .. }
            | BlockError::Overlay { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
