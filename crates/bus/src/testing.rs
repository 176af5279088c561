//! What the crate's tests share.

use crate::AccessContext;

/// An access of no vCPU.
pub(crate) struct Nobody;

impl AccessContext for Nobody {
    fn vcpu(&self) -> u32 {
        0
    }

    fn rip(&self) -> u64 {
        0
    }
}
