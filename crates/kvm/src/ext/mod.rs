//! What the kvm-ioctls crate lacks.

mod calls;
mod page;

pub(crate) use calls::{
    adopt_system, interrupt, ioeventfd, run, set_memory_region, set_signal_mask, set_xsave,
    stats_file, vfio_device,
};
pub(crate) use page::RunPage;
