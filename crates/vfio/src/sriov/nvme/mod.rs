//! Queues and interrupts of an NVMe controller's virtual functions.
//!
//! A controller with virtualization management has resources that it can part with. The physical
//! function, its primary controller, has them first; it gives some up, which takes effect when it is
//! reset. Each virtual function, a secondary controller, is given its share while it is offline, and
//! does not work before it has been brought online.
//!
//! * `command.rs`: admin commands and what they answer; `calls.rs`: the ioctl that sends them.
//! * `controller.rs`: [`Controller`], a primary one, and what it is asked to do.
//! * `share.rs`: how much a virtual function gets.
//!
//! Source: NVM Express Base Specification 2.0, sections 5.17 (Identify), 5.28 (Virtualization
//! Management) and 8.26; `include/uapi/linux/nvme_ioctl.h` of Linux.

mod calls;
mod command;
mod controller;
mod share;

#[cfg(test)]
pub(super) use command::AdminCommand;
pub(crate) use command::AdminQueue;
pub(super) use controller::Controller;
pub use controller::NvmeFunction;
pub(super) use share::Share;
