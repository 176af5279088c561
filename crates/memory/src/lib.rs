//! Guest-physical memory of vmlet: addresses, RAM, memory slots, and who may change them.
//!
//! * `address.rs`: [`Gpa`], [`Hva`], [`Iova`], so that mixed-up address spaces do not compile.
//! * `ram.rs`: [`Ram`], a host mapping that backs guest memory; the only file that touches it.
//! * `space.rs`: [`AddressSpace`], the map from guest-physical addresses to RAM; changes go to
//!   [`MapListener`]s (memory slots, DMA domains) in two phases.
//! * `slots.rs`: the planner that turns mappings into [`Memslot`]s.
//! * `pages.rs`: the page sizes a slot allows in the second stage; `hugetlb.rs`: the host's pools
//!   of huge pages.
//! * `lease.rs`: who holds a range of RAM (Python views, DMA maps) and thereby forbids its removal.
//! * `dirty.rs`: which pages were written, by the guest, by us or behind everybody's back.
//! * `foreign.rs`: this process's own writes, for who caches what memory holds.
//! * `guest_memory.rs`: the map as devices see it, with vm-memory's traits.
//! * `file_map.rs`: [`FileMap`], a file's content as bytes.
//! * `fork.rs`: what a forked child finds: zeros, no descriptors, and a generation that differs.
//! * `paging/`: page tables: the guest's own formats, EPT and NPT, their walkers and a builder.
//!
//! Not supported yet: copy-on-write clones, userfaultfd.

mod address;
mod dirty;
mod error;
mod file_map;
mod foreign;
pub mod fork;
mod guest_memory;
mod hugetlb;
mod lease;
mod listener;
mod pages;
pub mod paging;
mod ram;
mod slots;
mod space;

pub use address::{Gpa, Hpa, Hva, Iova, PAGE_SIZE};
pub use dirty::{Extent, PageBitmap};
pub use error::MemoryError;
pub use file_map::FileMap;
pub use foreign::{ForeignNews, ForeignWrites};
pub use guest_memory::{MemoryView, Slices, Written, WrittenPages};
pub use hugetlb::{HugePool, size_name};
pub use lease::{IoLease, Lease, LeaseKind};
pub use listener::{MapChange, MapListener, Refusal};
pub use pages::{PAGE_SIZES, PageLimit, PagePlan};
pub use ram::{Backing, Ram};
pub use slots::{Memslot, SlotId};
pub use space::{AddressSpace, Mapping, RegionInfo, RegionKind};
