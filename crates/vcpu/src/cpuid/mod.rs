//! CPUID: the table a guest sees and the policy that makes it.

mod features;
mod policy;
mod table;

pub use features::missing_features;
pub use policy::{Topology, host_policy};
pub use table::{CpuidEntry, CpuidTable};
