//! The board: where everything lies and who answers an access.

pub(crate) mod acpi;
mod aperture;
mod dispatch;
mod doorbells;
mod exits;
mod interrupts;
pub(crate) mod layout;
mod parts;
mod pci;
mod time;

pub(crate) use aperture::{ApertureSlots, SLOTS as APERTURES};
pub(crate) use dispatch::Dispatch;
pub use dispatch::registers_at;
pub use exits::{ExitCount, ExitKind, ExitReport};
pub(crate) use interrupts::Interrupts;
pub(crate) use parts::Board;
pub(crate) use pci::PciBus;
