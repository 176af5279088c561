//! What this host offers to a virtual machine, each "no" with its cause and a remedy.
//!
//! All is read from procfs, sysfs and `/dev` below a [`HostRoot`], so that a tree of plain files
//! stands in for any host. Nothing is changed, no ioctl is issued, and what cannot be known is
//! reported as [`State::Unknown`].
//!
//! | module | topics |
//! |---|---|
//! | `cpu` | vendor and model, VT-x or SVM, EPT or NPT, VPID, unrestricted guest |
//! | `kvm` | kernel modules, `/dev/kvm`, nested virtualization |
//! | `cost` | settings that cost speed: large-page splitting, switched-off hardware help |
//! | `iommu` | DMA remapping units, interrupt remapping |
//! | `vfio` | VFIO's driver and interfaces, functions that are ready for it |
//! | `memory` | RAM, limits, transparent and reserved large pages, locked memory |
//!
//! `pci` is the inventory of PCI functions: [`PciDevice`], with what keeps each from being handed on.
//!
//! Not supported: limits of version 1 control groups; any architecture but x86-64.
#![forbid(unsafe_code)]

mod cost;
mod cpu;
mod finding;
mod iommu;
mod kvm;
mod memory;
mod pci;
mod root;
mod vfio;

pub use cpu::{Cpu, Vendor};
pub use finding::{Finding, State, findings};
pub use kvm::{KvmModules, switched_on};
pub use memory::HostMemory;
pub use pci::{
    Features, IommuGroup, Member, NotAnAddress, Obstacle, PciAddress, PciDevice, ReservedRegion,
    Switch, Use, VirtualFunctions, serves_vfio, uses,
};
pub use root::HostRoot;
