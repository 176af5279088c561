//! What the tests share: engines, places, guests.

#[macro_use]
pub(crate) mod code;
pub(crate) mod bus;
pub(crate) mod guest;
pub(crate) mod memory;
pub(crate) mod paging;
pub(crate) mod place;
pub(crate) mod segments;

pub(crate) use bus::Recorder;
pub(crate) use code::bytes;
pub(crate) use guest::{Guest, Taken};
pub(crate) use memory::{CODE, DATA, MMIO, STACK, STOP, USER_STACK};
pub(crate) use place::{Place, each, limit};
