//! From a device's message to the engine's local APICs.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmlet_bus::{self as bus, Msi, MsiSink, RequesterId};
use vmlet_devices::ioapic::IoApic;
use vmlet_vcpu::{EngineError, MsiMessage, MsiRoute, Vm};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The I/O APIC's requester id: a device number no PCI device of the board has.
pub(crate) const IOAPIC_REQUESTER: RequesterId = RequesterId(0x00f8);

/// Hands messages to the engine. There is no remapping yet, so the requester is not looked at.
#[derive(Debug)]
pub(crate) struct Interrupts {
    table: Arc<Table>,
}

impl Interrupts {
    pub(crate) fn new(vm: Arc<dyn Vm>) -> Interrupts {
        Interrupts {
            table: Arc::new(Table {
                vm,
                routes: Mutex::default(),
            }),
        }
    }
}

fn message(msi: Msi) -> MsiMessage {
    MsiMessage {
        address: msi.address,
        data: msi.data,
    }
}

impl MsiSink for Interrupts {
    fn send(&self, _: RequesterId, msi: Msi) {
        // A message no local APIC takes is lost, as on hardware; so is one after the VM's end.
        let _ = self.table.vm.signal_msi(message(msi));
    }

    fn level_pins(&self, _: RequesterId, pins: &[Option<Msi>]) {
        let pins = (0..)
            .zip(pins)
            .filter_map(|(gsi, msi)| Some((gsi, (*msi)?)));
        let mut routes = self.table.lock();
        routes.retain(|gsi, _| *gsi >= FIRST_VECTOR);
        routes.extend(pins.map(|(gsi, msi)| (gsi, Some(message(msi)))));
        let _ = self.table.apply(&routes);
    }

    fn route(&self, _: RequesterId) -> Arc<dyn bus::MsiRoute> {
        Arc::new(Vector {
            table: Arc::clone(&self.table),
            state: Mutex::default(),
        })
    }
}

/// The interrupt numbers below are the I/O APIC's.
const FIRST_VECTOR: u32 = 24;
const _: () = assert!(IoApic::PINS == 24);

/// The engine's table of routes: level pins, and vectors that somebody signals by eventfd.
#[derive(Debug)]
struct Table {
    vm: Arc<dyn Vm>,
    /// By interrupt number; a masked vector keeps its number.
    routes: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
}

type Routes = BTreeMap<u32, Option<MsiMessage>>;

impl Table {
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, routes: &Routes) -> Result<(), EngineError> {
        let entry = |(gsi, message): (&u32, &Option<MsiMessage>)| {
            let (gsi, message) = (*gsi, (*message)?);
            Some(MsiRoute { gsi, message })
        };
        let routes: Vec<_> = routes.iter().filter_map(entry).collect();
        self.vm.set_routes(&routes)
    }

    fn set(&self, gsi: u32, message: Option<MsiMessage>) -> Result<(), EngineError> {
        let mut routes = self.lock();
        if routes.insert(gsi, message) == Some(message) {
            return Ok(());
        }
        self.apply(&routes)
    }

    /// A number nobody uses.
    fn take(&self) -> u32 {
        let mut routes = self.lock();
        let gsi = (FIRST_VECTOR..u32::MAX).find(|gsi| !routes.contains_key(gsi));
        let gsi = gsi.unwrap_or(u32::MAX);
        routes.insert(gsi, None);
        gsi
    }

    fn give_back(&self, gsi: u32) {
        let mut routes = self.lock();
        if routes.remove(&gsi).flatten().is_some() {
            let _ = self.apply(&routes);
        }
    }
}

#[derive(Debug, Default)]
struct VectorState {
    msi: Option<Msi>,
    wired: Option<Wired>,
}

/// What an eventfd needs: its interrupt number, and whether the engine listens to it.
#[derive(Debug)]
struct Wired {
    fd: EventFd,
    gsi: u32,
    attached: bool,
}

#[derive(Debug)]
struct Vector {
    table: Arc<Table>,
    state: Mutex<VectorState>,
}

impl Vector {
    fn lock(&self) -> MutexGuard<'_, VectorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Route first, so that a signal that waits in the eventfd is sent by the right message.
    fn wire(&self, wired: &mut Wired, msi: Option<Msi>) -> Result<(), EngineError> {
        let vm = &self.table.vm;
        if msi.is_none() && wired.attached {
            vm.detach_irqfd(&wired.fd, wired.gsi)?;
            wired.attached = false;
        }
        self.table.set(wired.gsi, msi.map(message))?;
        if msi.is_some() && !wired.attached {
            vm.attach_irqfd(&wired.fd, wired.gsi)?;
            wired.attached = true;
        }
        Ok(())
    }
}

impl bus::MsiRoute for Vector {
    fn set(&self, msi: Option<Msi>) {
        let mut state = self.lock();
        state.msi = msi;
        if let Some(wired) = &mut state.wired
            && let Err(error) = self.wire(wired, msi)
        {
            log::error!(target: "vmlet.vm", "an interrupt route is not set: {error}");
        }
    }

    fn trigger(&self) {
        let msi = self.lock().msi;
        if let Some(msi) = msi {
            let _ = self.table.vm.signal_msi(message(msi));
        }
    }

    fn eventfd(&self) -> io::Result<EventFd> {
        let mut state = self.lock();
        let msi = state.msi;
        if state.wired.is_none() {
            let mut wired = Wired {
                fd: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
                gsi: self.table.take(),
                attached: false,
            };
            if let Err(error) = self.wire(&mut wired, msi) {
                self.table.give_back(wired.gsi);
                return Err(io::Error::other(error));
            }
            state.wired = Some(wired);
        }
        match &state.wired {
            Some(wired) => wired.fd.try_clone(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(wired) = &mut state.wired {
            if wired.attached {
                let _ = self.table.vm.detach_irqfd(&wired.fd, wired.gsi);
            }
            self.table.give_back(wired.gsi);
        }
    }
}
