//! The board's PCI bus.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use vmlet_bus::{Device, IoSpace, IrqLine, MsiSink, SpaceError};
use vmlet_devices::ioapic::IoApic;
use vmlet_memory::AddressSpace;
use vmlet_pci::{Ecam, Plug, Root, SlotEvents, Wiring};
use vmlet_vcpu::Vm;

use super::{
    doorbells::EngineBells,
    layout::{ECAM, PCI_FIRST_PIN, PCI_PINS, PciLayout},
};
use crate::{Event, EventKind, lifecycle::Life};

/// The bus, and whether a guest knows it.
#[derive(Debug)]
pub(crate) struct PciBus {
    pub(crate) root: Arc<Root>,
    pub(crate) watch: Arc<SlotWatch>,
    /// A guest has looked for devices: it hears of new ones, and keeps its addresses.
    booted: AtomicBool,
}

/// What a bus is made of beside its layout.
pub(super) struct Surroundings<'a> {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) memory: Arc<AddressSpace>,
    pub(super) mmio: &'a Arc<IoSpace>,
    pub(super) sink: Arc<dyn MsiSink>,
    pub(super) ioapic: &'a Arc<IoApic>,
}

impl PciBus {
    /// A bus, whose config space lies in the board's address space.
    pub(super) fn new(layout: &PciLayout, around: Surroundings<'_>) -> Result<PciBus, SpaceError> {
        let pin = |pin| around.ioapic.pin(usize::from(pin)) as Arc<dyn IrqLine>;
        let watch = Arc::new(SlotWatch::default());
        let wiring = Wiring {
            mmio: Arc::clone(around.mmio),
            memory: around.memory,
            sink: around.sink,
            doorbells: Arc::new(EngineBells(around.vm)),
            lines: (PCI_FIRST_PIN..PCI_FIRST_PIN + PCI_PINS).map(pin).collect(),
            windows: layout.windows.clone(),
            events: Arc::clone(&watch) as Arc<dyn SlotEvents>,
        };
        let root = Root::new(wiring, layout.ports);
        let ecam = Arc::new(Ecam::new(&root)) as Arc<dyn Device>;
        around.mmio.add(ECAM, Root::ECAM_BYTES, ecam)?;
        Ok(PciBus {
            root,
            watch,
            booted: AtomicBool::new(false),
        })
    }

    /// A guest has looked for devices, or does so now.
    pub(crate) fn set_booted(&self) {
        self.booted.store(true, Ordering::Release);
    }

    /// The first slot of a restored machine whose device, called `name`, is to be put back.
    pub(crate) fn waiting_for(&self, name: &str) -> Option<u8> {
        let waiting = self.root.waiting().into_iter();
        let mut same = waiting.filter(|(_, waits)| waits == name);
        same.next().map(|(port, _)| port)
    }

    /// How a device comes and goes now.
    pub(crate) fn plug(&self) -> Plug {
        if self.booted.load(Ordering::Acquire) {
            Plug::Hot
        } else {
            Plug::Cold
        }
    }
}

/// Who waits for a guest to let go of a device.
#[derive(Debug, Default)]
pub(crate) struct SlotWatch {
    life: Mutex<Weak<Life>>,
    changed: Condvar,
}

impl SlotWatch {
    /// Whose events say that a device has gone.
    pub(crate) fn tell(&self, life: &Arc<Life>) {
        *self.lock() = Arc::downgrade(life);
    }

    /// Waits until `gone` or for `limit`; whether it is.
    pub(crate) fn wait(&self, limit: Duration, gone: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut guard = self.lock();
        while !gone() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Has who waits look again.
    pub(crate) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Weak<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotEvents for SlotWatch {
    fn ejected(&self, port: u8) {
        let life = self.lock();
        if let Some(life) = life.upgrade() {
            life.tell(Event {
                source: "guest",
                detail: format!("root port {port}"),
                ..Event::by_user(EventKind::Detached)
            });
        }
        drop(life);
        self.changed.notify_all();
    }
}
