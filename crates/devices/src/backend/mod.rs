//! What stands behind devices on the host.
//!
//! * `block/`: images of disks, and how requests to them are run.

pub mod block;
