//! PCI Express: a root bus with root ports, and functions in their slots.
//!
//! * `address.rs`: [`Bdf`], where a function is.
//! * `function.rs`: [`Function`], what a device implements, and [`Links`], what it gets.
//! * `wiring.rs`: [`Wiring`], what the board gives its bus.
//! * `root.rs`: [`Root`], bus 0, and [`Ecam`], its config space in memory.
//! * `port.rs`, `slot.rs`: a root port, and native hot-plug in its slot.
//! * `endpoint.rs`, `bar.rs`, `decode.rs`: a function on its bus, its BARs, and where they answer.
//! * `registers.rs`, `capability.rs`: config space as registers with masks; capabilities.
//! * `msi.rs`, `msix.rs`, `vector.rs`, `intx.rs`: message-signalled interrupts, and lines.
//! * `assign.rs`: addresses as firmware gives them before the guest starts.
//! * `error.rs`: [`PciError`], what a bus refuses.
//! * `testing.rs`: a board that records and a function that does everything, for tests.
//!
//! Sources: PCI Express Base Specification 6.0; PCI Local Bus Specification 3.0.
//!
//! Not supported: switches, devices with several functions, integrated endpoints, I/O BARs,
//! expansion ROMs, several vectors of MSI, extended capabilities (AER, ACS, ARI, ATS, SR-IOV).
//! A function keeps the requester id it was plugged in with when a guest renumbers buses. Bus
//! mastering switches messages off, not DMA.

mod address;
mod assign;
mod bar;
mod capability;
mod decode;
mod endpoint;
mod error;
mod function;
mod intx;
mod msi;
mod msix;
mod port;
mod registers;
mod root;
mod slot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod vector;
mod wiring;

pub use address::Bdf;
pub use error::PciError;
pub use function::{
    BarKind, BarLayout, Function, FunctionLayout, Links, MsixInside, MsixLayout, SMALLEST_BAR,
    Switches, VendorCapability,
};
pub use msi::MsiVector;
pub use msix::Msix;
pub use root::{Ecam, Plug, Root};
pub use wiring::{SlotEvents, Windows, Wiring};
