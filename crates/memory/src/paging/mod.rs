//! Page tables: formats, walkers and a builder.
//!
//! * `radix.rs`: what all formats share, the descent through the levels.
//! * `guest.rs`: the guest's own tables, linear to guest-physical.
//! * `stage.rs`: what second-stage formats share, guest-physical to host-physical: rights, pages,
//!   the walker; `exit.rs`: what the processor reports when it fails.
//! * `ept.rs`: Intel's format; `npt.rs`: AMD's.
//! * `builder.rs`: builds second-stage tables with the largest pages there can be.
//! * `nested.rs`: the two-dimensional walk.
//!
//! The tables that a processor uses for a guest of `/dev/kvm` are KVM's and cannot be read; what
//! is here describes the formats, builds tables in memory of our own and walks them.

mod builder;
mod ept;
mod exit;
mod guest;
mod nested;
mod npt;
mod radix;
mod stage;

pub use builder::{BuildError, StageBuilder, TableMemory, TablePages};
pub use ept::{BadEptPointer, Ept, EptEntry, EptFeatures, EptPointer, EptTarget};
pub use exit::{EptQualification, NestedFaultInfo, StageExit};
pub use guest::{PagingContext, Step, Translation, Walk, WalkFault, walk};
pub use nested::{NestedFault, NestedTranslation, NestedWalk, StageAccess, walk_nested};
pub use npt::{Npt, NptEntry, NptTarget};
pub use stage::{
    Access, Malformed, MemoryType, Operation, PageAttributes, Rights, StageCause, StageEntry,
    StageFault, StageFormat, StageStep, StageTranslation, StageWalk, walk_stage,
};
