//! What stands behind devices on the host.
//!
//! * `block/`: images of disks, and how requests to them are run.
//! * `net/`: where frames of network devices go.

pub mod block;
pub mod net;
