//! The errors of event loops.

use std::io;

use thiserror::Error;

/// What a reactor fails at.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReactorError {
    /// A system call.
    #[error("{call} failed")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The reactor belongs to the process that made it, and this is its forked child.
    #[error("this event loop belongs to the process that made it, not to its forked child")]
    Forked,
}

impl ReactorError {
    pub(crate) fn call(call: &'static str) -> impl FnOnce(io::Error) -> ReactorError {
        move |source| ReactorError::Call { call, source }
    }

    /// The error number, if the host gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            ReactorError::Call { source, .. } => source.raw_os_error(),
            ReactorError::Forked => None,
        }
    }
}
