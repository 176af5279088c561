//! Images of disks, and how requests to them are run.
//!
//! * `image.rs`: [`Image`], bytes that can be read and written.
//! * `raw.rs`: [`RawImage`], a file or block device as it is; `direct.rs`: past the page cache.
//! * `overlay.rs`: [`Overlay`], writes that are thrown away.
//! * `qcow2.rs`: [`Qcow2Image`].
//! * `open.rs`: [`open`], what a user names, opened and checked; formats are never probed.
//! * `guest_io.rs`: [`GuestIo`], pieces of guest memory that a request reads or writes in place.
//! * `runner.rs`: [`Runner`], where requests run: at once, on threads, or by the kernel;
//!   `threads.rs`, `uring.rs`.
//! * `error.rs`: [`BlockError`].

mod direct;
mod error;
mod guest_io;
mod image;
mod open;
mod overlay;
mod qcow2;
mod raw;
mod runner;
#[cfg(test)]
mod tests;
mod threads;
mod uring;

pub use error::BlockError;
pub use guest_io::GuestIo;
pub use image::Image;
pub use open::{DiskFormat, DiskOptions, open};
pub use overlay::Overlay;
pub use qcow2::Qcow2Image;
pub use raw::RawImage;
pub use runner::{Client, Done, Job, Operation, Runner};
