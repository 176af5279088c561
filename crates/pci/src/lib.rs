//! PCI Express: config space, BARs, MSI-X, root ports.
//!
//! * `address.rs`: [`Bdf`], where a function is.
//! * `function.rs`: [`Function`], what a device implements, and [`Links`], what it gets.
//! * `msix.rs`, `vector.rs`: [`Msix`], a function's message-signalled interrupts.
//! * `error.rs`: [`PciError`], what a bus refuses.
//!
//! Sources: PCI Express Base Specification 6.0; PCI Local Bus Specification 3.0.

#![expect(dead_code, reason = "the bus that uses these comes next")]

mod address;
mod error;
mod function;
mod msix;
mod vector;

pub use address::Bdf;
pub use error::PciError;
pub use function::{
    BarKind, BarLayout, Function, FunctionLayout, Links, MsixLayout, SMALLEST_BAR, VendorCapability,
};
pub use msix::Msix;
