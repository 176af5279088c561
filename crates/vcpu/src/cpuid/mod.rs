//! CPUID: the table a guest sees, the models it is made of and the policy that fits it to a vCPU.

mod features;
mod models;
mod policy;
mod table;

pub use features::missing_features;
pub use models::{CRYSTAL_HZ, CpuModel, MODELS, SOFT_V1, X86_64_V1, X86_64_V2, X86_64_V3};
pub use policy::{Topology, host_policy};
pub use table::{CpuidEntry, CpuidTable};
