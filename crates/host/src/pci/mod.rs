//! The PCI functions of the host and what handing them on takes.
//!
//! * `address.rs`: [`PciAddress`].
//! * `config.rs`, `features.rs`: config space; [`Features`], ATS, PRI, PASID, ACS and SR-IOV.
//! * `group.rs`: [`IommuGroup`], what the IOMMU cannot keep apart.
//! * `device.rs`: [`PciDevice`], all that is known of one function.
//! * `uses.rs`: [`Use`], what the host does with it.
//! * `obstacle.rs`: [`Obstacle`], what stands in the way of handing it on, with the remedy.

mod address;
mod config;
mod device;
mod features;
mod group;
mod obstacle;
mod uses;

pub use address::{NotAnAddress, PciAddress};
pub use device::{PciDevice, VirtualFunctions};
pub use features::{Features, Switch};
pub use group::{IommuGroup, Member, ReservedRegion, serves_vfio};
pub use obstacle::Obstacle;
pub use uses::{Use, uses};
