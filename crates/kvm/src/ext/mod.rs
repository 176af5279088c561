//! What the kvm-ioctls crate lacks.

mod calls;
mod page;
mod ring;

pub(crate) use calls::{
    adopt_system, interrupt, ioeventfd, run, set_memory_region, set_signal_mask, set_xsave,
    stats_file, vfio_device,
};
pub(crate) use page::{ImmediateExit, RunPage};
pub(crate) use ring::{DirtyRing, ENTRY, reset_dirty_rings};
