//! The devices of vmlet's boards.
//!
//! A device is a folder: `device.rs` (registers in, effects out; no descriptor, no thread) and
//! `mod.rs` (what it is, what it lacks). The board in crate `machine` gives it addresses and lines.
//!
//! | folder | device | not supported |
//! |---|---|---|
//! | `serial` | 16550A | modem lines, baud rate, DMA mode |
//! | `rtc` | MC146818 clock and CMOS memory | alarm and periodic interrupts |
//! | `ioapic` | 82093AA-compatible I/O APIC, version 0x20 | SMI, INIT and ExtINT delivery checks |
//! | `reset` | reset by the keyboard controller and by port 0xcf9 | the keyboard itself |
//! | `power` | ACPI power-off, reduced hardware, and the PM timer | sleep states, fixed events |
//! | `debugport` | the debug port of Bochs and QEMU, output only | other port numbers, input |
//! | `pvpanic` | the guest's crash report | the extended event bits |
//! | `virtio` | virtio devices over PCI, one folder each | see `virtio/mod.rs` |
//!
//! `backend/` is what stands behind devices on the host: images of disks, networks.
//!
//! `time.rs` is where clocks and timers have their time from: the host, or the guest's own progress.

pub mod backend;
pub mod debugport;
pub mod ioapic;
pub mod power;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod time;
pub mod virtio;

#[cfg(test)]
mod testing;
