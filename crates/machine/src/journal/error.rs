//! What can be wrong with a record.

use std::io;

use thiserror::Error;

/// A record that cannot be written or replayed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes are no record.
    #[error("the record is damaged at byte {offset}: {reason}. Use a record that is whole")]
    Damaged {
        /// Where.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The record is of a VM that was made otherwise.
    #[error(
        "the record is of another {what}: {recorded}, and this VM has {here}. Make the VM as the \
         recorded one was made"
    )]
    Foreign {
        /// The setting.
        what: String,
        /// As recorded.
        recorded: String,
        /// As it is here.
        here: String,
    },
    /// The file cannot be read or written.
    #[error("the record {path} cannot be {action}: {source}")]
    File {
        /// The file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The VM's clock follows the host.
    #[error("{action} needs a VM that counts instructions. Make it with clock=\"icount\"")]
    NotCounted {
        /// What was asked for.
        action: &'static str,
    },
    /// A record has to begin with the VM, and there can be one.
    #[error("{action} has to come before the VM starts, and once. Make a new VM")]
    Late {
        /// What was asked for.
        action: &'static str,
    },
    /// Something a record does not hold.
    #[error("{action} would be missing in the record. Do it in a VM without a record")]
    Unrecorded {
        /// What was asked for.
        action: &'static str,
    },
    /// The inputs of a replay are the record's.
    #[error("the inputs of a replay come from the record alone. Type into a VM of your own")]
    Replaying,
}
