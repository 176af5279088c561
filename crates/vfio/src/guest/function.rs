//! A device of the host in a slot of a VM's bus.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vmlet_bus::{AccessContext, Flow, SavedError, SavedState};
use vmlet_memory::AddressSpace;
use vmlet_pci::{Function, FunctionLayout, Links, MsixLayout, Switches};
use vmlet_reactor::{Reactor, Registration};

use super::{
    aperture::{ApertureEngine, Apertures},
    line::Line,
    memory::GuestShare,
    names,
    news::{self, DeviceNews},
    shape::{self, Shape},
    signals::Signals,
};
use crate::{Device, Holder, InterruptKind, VfioError};

/// Config space without extended capabilities.
const CONFIG_BYTES: usize = 256;

/// A device of the host that a guest drives. Taken from it when unplugged or dropped.
#[derive(Debug)]
pub struct Passthrough {
    name: &'static str,
    device: Arc<Device>,
    shape: Shape,
    memory: GuestShare,
    apertures: Option<Apertures>,
    reactor: Arc<Reactor>,
    signals: OnceLock<Signals>,
    links: OnceLock<Links>,
    /// Wait for the line, and for what the kernel has to say.
    waiting: Mutex<Vec<Registration>>,
    ended: AtomicBool,
}

/// What a VM has for a device.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The guest's memory.
    pub space: &'a Arc<AddressSpace>,
    /// Who waits for the device's line.
    pub reactor: &'a Arc<Reactor>,
    /// Who shows registers to the guest; without one each access to them is an exit.
    pub engine: Option<&'a Arc<dyn ApertureEngine>>,
    /// Who hears what the host's kernel has to say of the device.
    pub news: Arc<dyn DeviceNews>,
}

/// What lies at an offset of a BAR.
enum Place {
    Table(u64),
    Pending(u64),
    Device,
}

impl Passthrough {
    /// Makes `device` ready for a guest, all of whose memory it can reach from now on. It does
    /// nothing before the guest lets it.
    pub fn new(device: Device, around: &Surroundings<'_>) -> Result<Arc<Passthrough>, VfioError> {
        let device = Arc::new(device);
        device.set_master(false)?;
        let name = names::of(device.address());
        device.set_quiet(true);
        if !device.resets_alone() {
            reset(&device, name);
        }
        let config = device.read_vec(VFIO_PCI_CONFIG_REGION_INDEX, 0, CONFIG_BYTES)?;
        let has = |kind| device.interrupts().iter().any(|(known, _)| *known == kind);
        let (line, messages) = (has(InterruptKind::Intx), has(InterruptKind::Msi));
        let shape = shape::shape(&config, device.regions(), line, messages);
        let trapped = shape.layout.msix.map(MsixLayout::ranges);
        let trapped = trapped.into_iter().flatten().collect();
        let apertures = around
            .engine
            .map(|engine| Apertures::new(&device, engine, trapped));
        let waiting = news::listen(&device, name, around.reactor, &around.news)?;
        Ok(Arc::new(Passthrough {
            apertures,
            name,
            memory: GuestShare::new(device.shared(), around.space)?,
            device,
            shape,
            reactor: Arc::clone(around.reactor),
            signals: OnceLock::new(),
            links: OnceLock::new(),
            waiting: Mutex::new(waiting),
            ended: AtomicBool::new(false),
        }))
    }

    fn line(&self, links: &Links) -> Option<Arc<Line>> {
        if !self.shape.layout.intx {
            return None;
        }
        match Line::new(&self.device, Arc::clone(&links.intx), &self.reactor) {
            Ok((line, registration)) => {
                let waiting = self.waiting.lock();
                waiting
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(registration);
                Some(line)
            }
            Err(error) => {
                log::error!("{}: the guest does not get its INTx: {error}", self.name);
                None
            }
        }
    }

    fn place(&self, bar: u8, offset: u64) -> Place {
        let Some([table, pending]) = self.shape.layout.msix.map(MsixLayout::ranges) else {
            return Place::Device;
        };
        let within = |(of, range): (u8, Range<u64>)| {
            (of == bar && range.contains(&offset)).then(|| offset - range.start)
        };
        match (within(table), within(pending)) {
            (Some(at), _) => Place::Table(at),
            (_, Some(at)) => Place::Pending(at),
            _ => Place::Device,
        }
    }

    /// Where on the device the bytes are that the guest finds at `offset` of config space, and how
    /// far from the beginning of their capability.
    fn own(&self, offset: u16, len: usize) -> Option<(u64, usize)> {
        let begins = &self.links.get()?.capabilities;
        let capabilities = self.shape.layout.capabilities.iter();
        let mut all = begins.iter().zip(&self.shape.own).zip(capabilities);
        all.find_map(|((begin, own), capability)| {
            let within = usize::from(offset.checked_sub(*begin)?);
            let inside = within + len <= capability.body.len() + 2;
            inside.then_some((u64::from(*own) + within as u64, within))
        })
    }

    /// Takes the device from the guest: it does no more DMA, then interrupts end, then it reaches
    /// no memory, and then others can have it.
    fn end(&self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.device.set_master(false) {
            log::debug!("{}: {error}", self.name);
        }
        if let Some(signals) = self.signals.get() {
            signals.end();
        }
        if let Some(apertures) = &self.apertures {
            apertures.end();
        }
        let waiting = self.waiting.lock();
        // Dropped without the lock: its end waits for a handler that runs.
        let waiting = std::mem::take(&mut *waiting.unwrap_or_else(PoisonError::into_inner));
        drop(waiting);
        self.memory.end();
        self.device.close();
    }
}

/// Resets a device that the guest does not use now. Where others are reset with it, that waits until
/// the guest uses none of them: as when the whole VM is reset, where the last one resets all.
fn reset(device: &Device, name: &str) {
    device.set_quiet(true);
    match device.reset_sparing() {
        Ok(()) => {}
        Err(VfioError::HotReset { touched, .. })
            if touched.iter().all(|one| one.holder == Holder::InUse) =>
        {
            log::debug!("{name} is not reset while others are used that would be reset with it");
        }
        Err(error) => log::warn!("{name} is not reset: {error}"),
    }
}

impl Function for Passthrough {
    fn name(&self) -> &'static str {
        self.name
    }

    fn layout(&self) -> FunctionLayout {
        self.shape.layout.clone()
    }

    fn connect(&self, links: Links) {
        let line = self.line(&links);
        let _ = self.links.set(links.clone());
        let signals = Signals::new(Arc::clone(&self.device), links, line);
        let _ = self.signals.set(signals);
    }

    fn read_bar(&self, _: &dyn AccessContext, bar: u8, offset: u64, data: &mut [u8]) -> Flow {
        match (self.place(bar, offset), self.links.get()) {
            (Place::Table(at), Some(links)) => links.msix.read_table(at, data),
            (Place::Pending(at), Some(links)) => links.msix.read_pending(at, data),
            _ => {
                if self.device.read(bar.into(), offset, data).is_err() {
                    data.fill(0xff);
                }
            }
        }
        Flow::Continue
    }

    fn write_bar(&self, _: &dyn AccessContext, bar: u8, offset: u64, data: &[u8]) -> Flow {
        match (self.place(bar, offset), self.links.get()) {
            (Place::Table(at), Some(links)) => {
                links.msix.write_table(at, data);
                if let Some(signals) = self.signals.get() {
                    signals.table_written();
                }
            }
            (Place::Pending(_), _) => {}
            _ => {
                // A device that is gone takes no writes.
                let _ = self.device.write(bar.into(), offset, data);
            }
        }
        Flow::Continue
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) -> bool {
        let Some((at, within)) = self.own(offset, data.len()) else {
            return false;
        };
        let read = self
            .device
            .read_vec(VFIO_PCI_CONFIG_REGION_INDEX, at, data.len());
        let Ok(bytes) = read else {
            return false;
        };
        // Id and link are the bus's.
        for (number, (to, from)) in data.iter_mut().zip(bytes).enumerate() {
            if within + number >= 2 {
                *to = from;
            }
        }
        true
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let Some((at, _)) = self.own(offset, data.len()) else {
            return false;
        };
        let written = self.device.write(VFIO_PCI_CONFIG_REGION_INDEX, at, data);
        written.is_ok()
    }

    fn switched(&self, now: Switches) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        if now.bus_master {
            self.device.set_quiet(false);
        }
        if let Err(error) = self.device.set_master(now.bus_master) {
            log::warn!(
                "{}: its right to do DMA stays as it was: {error}",
                self.name
            );
        }
        if let Some(signals) = self.signals.get() {
            signals.switched(now);
        }
    }

    fn bar_moved(&self, bar: u8, at: Option<u64>) {
        let at = at.filter(|_| !self.ended.load(Ordering::Acquire));
        if at.is_some() {
            self.device.set_quiet(false);
        }
        if let Some(apertures) = &self.apertures {
            apertures.moved(bar, at);
        }
    }

    fn unsaveable(&self) -> Option<&'static str> {
        Some("what a device of the host holds cannot be read")
    }

    fn reset(&self) {
        reset(&self.device, self.name);
        if let Some(signals) = self.signals.get() {
            signals.reset();
        }
    }

    fn save(&self) -> Option<SavedState> {
        None
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        Err(SavedError::Kind {
            expected: self.name,
            found: saved.kind.clone(),
        })
    }

    fn unplug(&self) {
        self.end();
    }
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        self.end();
    }
}
