//! Interrupts: lines to an interrupt controller, and messages.

use std::{
    fmt::Debug,
    io,
    sync::{Arc, Weak},
};

use vmm_sys_util::eventfd::EventFd;

/// An interrupt line from a device to a pin of an interrupt controller.
pub trait IrqLine: Send + Sync + Debug {
    /// Drives the line; a controller's edge pin takes the change from low to high.
    fn set(&self, high: bool);

    /// One edge.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// Tells `listener` of each end of a level-triggered interrupt that came by this line, before
    /// the controller looks whether the line is still high. A line that leads nowhere has none.
    fn on_end(&self, listener: Weak<dyn LineEnd>) {
        let _ = listener;
    }
}

/// Hears that a guest has ended a level-triggered interrupt, for who cannot see its driver quieten
/// the device: then the line is to be lowered, and raised again if the device still asks. Called
/// on the vCPU's thread without locks of the controller; other functions' ends come too where they
/// share the line or the interrupt vector.
pub trait LineEnd: Send + Sync + Debug {
    /// It has ended.
    fn ended(&self);
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

    /// A way for one vector of `requester`, masked at first; ends when dropped.
    fn route(&self, requester: RequesterId) -> Arc<dyn MsiRoute>;
}

/// The way of one vector's messages to the local APICs.
pub trait MsiRoute: Send + Sync + Debug {
    /// What is sent from now on; `None`: masked.
    fn set(&self, msi: Option<Msi>);

    /// Sends the message, from any thread; nothing while masked.
    fn trigger(&self);

    /// An eventfd that is signalled to send the message, for who finishes work without this process
    /// (vhost, VFIO). Made at the first call; while masked, signals stay in it.
    fn eventfd(&self) -> io::Result<EventFd>;
}
