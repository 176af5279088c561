//! Saved state: connections do not survive, the guest is told so (section 5.10.6.7).

use serde::{Deserialize, Serialize};

/// What a state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The guest's context id.
    pub(super) cid: u64,
}
