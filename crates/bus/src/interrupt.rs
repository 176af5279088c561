//! Interrupts: lines to an interrupt controller, and messages.

use std::fmt::Debug;

/// An interrupt line from a device to a pin of an interrupt controller.
pub trait IrqLine: Send + Sync + Debug {
    /// Drives the line; a controller's edge pin takes the change from low to high.
    fn set(&self, high: bool);

    /// One edge.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A line that leads nowhere.
#[derive(Clone, Copy, Debug)]
pub struct NoIrq;

impl IrqLine for NoIrq {
    fn set(&self, _: bool) {}
}

/// Who sends a message: bus, device and function as a PCI requester id. An I/O APIC has one too,
/// so that an interrupt-remapping unit can tell senders apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequesterId(pub u16);

/// A message-signalled interrupt as a device sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Msi {
    /// Address written.
    pub address: u64,
    /// Data written.
    pub data: u32,
}

/// Takes messages towards the local APICs, through interrupt remapping where the board has it.
pub trait MsiSink: Send + Sync + Debug {
    /// Delivers `msi` from `requester`.
    fn send(&self, requester: RequesterId, msi: Msi);

    /// The messages that level-triggered pins of the I/O APIC send now, by pin; `None` for a pin
    /// that is masked or edge-triggered. Told when one changes: the engine needs them to report the
    /// end of such an interrupt.
    fn level_pins(&self, requester: RequesterId, pins: &[Option<Msi>]);
}
