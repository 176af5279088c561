//! What the tests share: engines, places, guests.

#[macro_use]
pub(crate) mod code;
pub(crate) mod bus;
mod differences;
pub(crate) mod guest;
pub(crate) mod memory;
pub(crate) mod paging;
pub(crate) mod place;
pub(crate) mod segments;
pub(crate) mod skip;
pub(crate) mod thread;

pub(crate) use bus::Recorder;
pub(crate) use code::{bytes, divide_unmasked};
pub(crate) use guest::{Guest, Taken, Threaded};
pub(crate) use memory::{CODE, DATA, MMIO, STACK, STOP, USER_STACK};
pub(crate) use place::{Place, each, limit};
pub(crate) use thread::Thread;
