//! The machine: a board, its life, and the engine that runs it.
//!
//! * `config.rs`: [`Config`], what a user asks for, checked before anything is made.
//! * `engine.rs`: which engine runs it, and what a probe found out about it.
//! * `attached.rs`: devices that the user brings to a board.
//! * `devices.rs`, `network.rs`: [`DeviceConfig`], [`NetDevice`], virtio devices that a user names.
//! * `board/`: address map, ACPI tables, devices, and the way from a vCPU's access to a device.
//! * `kernels.rs`: unpacked kernels, kept on disk.
//! * `launch.rs`: from a boot plan to memory and registers; `loading.rs`: images into memory.
//! * `machine.rs`, `lifecycle.rs`: [`Machine`], its states and its events; `machine/assembly.rs` puts it together,
//!   `machine/saving.rs` saves and restores it, `machine/counted.rs` counts its instructions, `machine/devices.rs` attaches and
//!   detaches devices, `machine/sockets.rs`, `machine/balloon.rs` and `machine/terminal.rs` have devices that the user
//!   speaks to, which `machine/reach.rs` leads to.
//! * `virtio.rs`: virtio devices that the user brings.
//! * `saved.rs`: the bytes of a saved machine.
//! * `ahead.rs`: memory that the host gives before the guest asks for it.
//! * `image.rs`: [`Image`], bytes of a kernel and the like.
//! * `inspect.rs`: how an address is translated, in which pages memory is mapped.
//! * `console.rs`: what the guest prints and reads.
//! * `bell.rs`: how an event loop learns of either.
//! * `journal/`: the inputs of a counted run, recorded and replayed; the format of the file.
//! * `error.rs`: everything that can go wrong, with the remedy.
//!
//! The public face takes and returns plain data, descriptors and leases only.
//!
//! Not supported yet: snapshots that do not stop the guest.

mod ahead;
mod attached;
mod bell;
mod board;
mod config;
mod console;
mod devices;
mod engine;
mod error;
mod event;
mod image;
mod inspect;
pub mod journal;
mod kernels;
mod launch;
mod lifecycle;
mod loading;
mod machine;
mod network;
mod saved;
#[cfg(test)]
mod testing;
pub mod virtio;

pub use attached::{Attached, AttachedDevice, Link, RunHandle, Space};
pub use bell::Bell;
pub use board::{ExitCount, ExitKind, ExitReport, registers_at};
pub use config::{ClockChoice, Config, CpuChoice, EngineChoice, RamBacking};
pub use console::{Console, ConsoleFeed};
pub use devices::{DeviceConfig, DiskConfig};
pub use engine::{Choice, EngineReport, ModelReport, choose, linux_cmdline, models, report};
pub use error::{ErrorKind, MachineError};
pub use event::{Event, EventKind, LackingInstruction};
pub use image::Image;
pub use inspect::{PageReport, SecondStage, WalkEnd, WalkReport, WalkStep};
pub use journal::{RecordError, format::Identity};
pub use lifecycle::State;
pub use machine::{Machine, Region, ThreadStarter};
pub use network::{NetDevice, NetLink};
pub use saved::SavedMachineError;

pub use vmlet_boot::{ProtocolChoice, initramfs};
pub use vmlet_devices::{
    backend::block::{DiskFormat, DiskOptions},
    virtio::{
        balloon::{BalloonOptions, BalloonState},
        vsock::VsockConfig,
    },
};
pub use vmlet_memory::{Iova, Lease, PAGE_SIZES, PagePlan};
pub use vmlet_pci::{self as pci, PciError};
pub use vmlet_vcpu::{
    Stat,
    x86_64::{Regs, Segment, Sregs, Table},
};

/// Waits until the kernel has freed what closed machines held.
pub fn drain() {
    vmlet_kvm::reaper::drain();
}
