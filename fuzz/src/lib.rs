//! What the fuzz targets share.
//!
//! A target is one file in `targets/`: bytes in, a parser or a device run on them, and its result
//! held against what may come out at most, or against a second, simpler model. `ci/fuzz` builds and
//! runs them; `ci/fuzz --list` names them.
//!
//! * `input.rs`: [`Input`], choices from bytes.
//! * `memory_cap.rs`: [`MemoryCap`], an allocator that ends the process past a limit, because an
//!   untouched allocation is not seen by libFuzzer's own.
//! * `guest.rs`: who makes an access, and lines that record.
//! * `pci.rs`: a PCIe bus with a function that does everything.
//! * `boot.rs`: requests to boot an image, and what a plan must keep to.
//! * `tree.rs`: a directory of small files, for parsers that open files themselves.
//! * `virtio.rs`: a hostile driver of any virtio device.
//! * `queue_image.rs`: virtio devices over queue memory that is an input's bytes.
//! * `images.rs`, `seeds.rs`: well-formed inputs to start from.
//!
//! Not fuzzed, with the reason: `kvm_run` and the tables of CPUID and MSRs come from the host's
//! kernel, which is trusted.

pub mod boot;
pub mod guest;
pub mod images;
mod input;
mod memory_cap;
pub mod pci;
pub mod queue_image;
pub mod seeds;
mod tree;
pub mod virtio;

pub use input::Input;
pub use memory_cap::MemoryCap;
pub use tree::Tree;
