//! The device contract of vmlet: what a device is to its board and a board to its devices.
//!
//! * `device.rs`: [`Device`], reads and writes of registers, and what a device may ask for.
//! * `space.rs`: [`IoSpace`], an address space of devices, and what nobody claims.
//! * `interrupt.rs`: lines and message-signalled interrupts; every message names its requester.
//! * `saved.rs`: saved state, a kind and a version with plain data.
//!
//! A device holds registers only: it has no descriptor and no thread. Views of guest memory for
//! DMA, and completions that a deterministic clock can order, come with the first device that
//! needs them.

mod device;
mod interrupt;
mod saved;
mod space;

pub use device::{AccessContext, Device, Flow, StopRequest};
pub use interrupt::{IrqLine, Msi, MsiSink, NoIrq, RequesterId};
pub use saved::{SavedError, SavedState};
pub use space::{IoSpace, SpaceError, Unclaimed, UnclaimedAccess};
