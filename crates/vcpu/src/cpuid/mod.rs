//! CPUID: the table a guest sees and the policy that makes it.

mod policy;
mod table;

pub use policy::{Topology, host_policy};
pub use table::{CpuidEntry, CpuidTable};
