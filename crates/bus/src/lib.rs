//! The device contract of vmlet: what a device is to its board and a board to its devices.
//!
//! * `device.rs`: [`Device`], reads and writes of registers, and what a device may ask for.
//! * `space.rs`: [`IoSpace`], an address space of devices, and what nobody claims.
//! * `recent.rs`: [`Recent`], one vCPU's way into it.
//! * `interrupt.rs`: lines and message-signalled interrupts; every message names its requester.
//! * `doorbell.rs`: writes that signal an eventfd.
//! * `dma.rs`: [`Dma`], a device's way to guest memory, and what may lie behind it.
//! * `saved.rs`: saved state, a kind and a version with plain data.
//!
//! A device holds registers only: it has no descriptor and no thread.

mod device;
mod dma;
mod doorbell;
mod interrupt;
mod recent;
mod saved;
mod space;
#[cfg(test)]
mod testing;

pub use device::{AccessContext, Device, Flow, StopRequest};
pub use dma::{Dma, DmaDomain, DmaFault, DmaPiece, DmaView};
pub use doorbell::{Doorbell, Doorbells};
pub use interrupt::{IrqLine, LineEnd, Msi, MsiRoute, MsiSink, NoIrq, RequesterId};
pub use recent::Recent;
pub use saved::{SavedError, SavedState};
pub use space::{IoSpace, SpaceError, Unclaimed, UnclaimedAccess};
