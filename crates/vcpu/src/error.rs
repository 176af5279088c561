//! The errors of an engine.

use std::io;

use thiserror::Error;

/// A feature a saved state or a configuration needs and this engine lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingFeature {
    /// Name of the feature ("xsave area of 2696 bytes", "MSR 0xda0").
    pub name: String,
}

impl MissingFeature {
    /// The names of features as people list them.
    pub fn list(features: &[MissingFeature]) -> String {
        let names: Vec<_> = features.iter().map(|one| one.name.as_str()).collect();
        names.join(", ")
    }
}

/// What an engine refuses or fails at.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A call into the kernel failed; the caller's object is unchanged unless the variant of the
    /// operation says otherwise.
    #[error("{call} failed (errno {errno})")]
    Call {
        /// The ioctl or system call.
        call: &'static str,
        /// The error number.
        errno: i32,
        /// The error itself.
        #[source]
        source: io::Error,
    },
    /// The engine's device cannot be opened.
    #[error("{path} cannot be opened (errno {errno}). {remedy}")]
    Open {
        /// The device node.
        path: String,
        /// The error number.
        errno: i32,
        /// What the user can do.
        remedy: &'static str,
        /// The error itself.
        #[source]
        source: io::Error,
    },
    /// The engine lacks something this VMM cannot do without.
    #[error("this engine lacks {feature}. {remedy}")]
    Lacking {
        /// The capability's name.
        feature: &'static str,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A memory slot cannot be set.
    #[error(
        "memory slot {slot} ({size:#x} bytes at guest address {gpa:#x}) is refused (errno {errno})"
    )]
    Slot {
        /// Slot number.
        slot: u32,
        /// Guest-physical start.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// The error number.
        errno: i32,
        /// The error itself.
        #[source]
        source: io::Error,
    },
    /// More vCPUs than the engine takes.
    #[error("vCPU {id} is one too many: this engine takes {max}")]
    TooManyVcpus {
        /// The refused vCPU's number.
        id: u32,
        /// The engine's limit.
        max: u32,
    },
    /// Not every MSR of a state was taken.
    #[error("MSR {index:#x} is refused by this engine")]
    Msr {
        /// The first refused MSR.
        index: u32,
    },
    /// A saved state needs what this engine lacks.
    #[error(
        "the saved state needs what this engine lacks: {}",
        MissingFeature::list(missing)
    )]
    State {
        /// The missing features.
        missing: Vec<MissingFeature>,
    },
    /// A time-stamp counter of this rate cannot be had.
    #[error(
        "the guest's time-stamp counter runs at {wanted} kHz, and this host's, which cannot be scaled, at {host} kHz"
    )]
    TscRate {
        /// The rate asked for, in kilohertz.
        wanted: u32,
        /// The rate there is.
        host: u32,
    },
    /// Rings of dirty pages of this size cannot be had.
    #[error(
        "a dirty ring cannot have {entries} entries. Give a power of two from {least} to {most}"
    )]
    DirtyRing {
        /// Entries asked for.
        entries: u32,
        /// The fewest.
        least: u32,
        /// The most.
        most: u32,
    },
    /// The engine wrote more into a ring of dirty pages than it holds: pages are missing.
    #[error("this engine overran a dirty ring and lost pages. Leave dirty_ring out")]
    DirtyRingOverrun,
    /// The vCPU's thread is gone.
    #[error("vCPU {id} has ended")]
    Ended {
        /// The vCPU's number.
        id: u32,
    },
    /// The handle belongs to the process that made it, and this is a child of that process.
    #[error("this VM belongs to the process that made it, not to its forked child")]
    Forked,
}

impl EngineError {
    /// Takes the calling thread's `errno` as the cause of a failed `call`.
    pub fn last(call: &'static str) -> Self {
        Self::call(call, io::Error::last_os_error())
    }

    /// A failed `call` with its cause.
    pub fn call(call: &'static str, source: io::Error) -> Self {
        EngineError::Call {
            call,
            errno: source.raw_os_error().unwrap_or(0),
            source,
        }
    }

    /// The error number behind this error, if a call into the kernel is behind it.
    pub fn errno(&self) -> Option<i32> {
        match self {
            EngineError::Call { errno, .. }
            | EngineError::Open { errno, .. }
            | EngineError::Slot { errno, .. } => Some(*errno),
            EngineError::Lacking { .. }
            | EngineError::TooManyVcpus { .. }
            | EngineError::Msr { .. }
            | EngineError::State { .. }
            | EngineError::TscRate { .. }
            | EngineError::DirtyRing { .. }
            | EngineError::DirtyRingOverrun
            | EngineError::Ended { .. }
            | EngineError::Forked => None,
        }
    }
}
