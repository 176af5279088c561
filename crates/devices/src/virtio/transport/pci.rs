//! A virtio device as a PCI function.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmlet_bus::{AccessContext, Flow, SavedError, SavedState};
use vmlet_pci::{Function, FunctionLayout, Links};

use super::{
    doorbells::Bells,
    layout::{self, BAR, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STEP},
    notifier::{Notifier, Wires},
    registers::{Common, DRIVER_OK, Effect, FEATURES_OK, NEEDS_RESET, Shown},
    window::Window,
};
use crate::virtio::{
    Activation, Place, QueueFault, VirtQueue, VirtioDevice, VirtioInterrupt, features,
};

/// Whether the device may work.
#[derive(Debug, Default)]
struct Work {
    active: bool,
    paused: bool,
}

/// What doorbells lead to.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) device: Arc<dyn VirtioDevice>,
    work: Mutex<Work>,
}

impl Core {
    /// Queue `index` may have buffers. While paused nothing is done: resuming looks at every queue.
    pub(super) fn kick(&self, index: u16) {
        let work = self.work();
        if work.active && !work.paused {
            self.device.queue_ready(index);
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the driver configures.
#[derive(Debug)]
pub(super) struct State {
    pub(super) common: Common,
    /// Of an active device.
    pub(super) queues: Vec<Arc<VirtQueue>>,
    bells: Bells,
    /// Where the registers are.
    bar: Option<u64>,
    pub(super) window: Window,
}

/// A virtio device as a PCI function.
#[derive(Debug)]
pub struct VirtioPci {
    pub(super) core: Arc<Core>,
    place: Place,
    pub(super) notifier: Arc<Notifier>,
    pub(super) state: Mutex<State>,
    links: OnceLock<Links>,
}

impl VirtioPci {
    /// `device` on a function of its own; it works at `place`.
    pub fn new(device: Arc<dyn VirtioDevice>, place: Place) -> Arc<VirtioPci> {
        let sizes = device.queue_sizes();
        let notifier = Arc::new(Notifier::new(sizes.len()));
        Arc::new(VirtioPci {
            core: Arc::new(Core {
                device,
                work: Mutex::default(),
            }),
            place,
            notifier,
            state: Mutex::new(State {
                common: Common::new(&sizes),
                queues: Vec::new(),
                bells: Bells::default(),
                bar: None,
                window: Window::default(),
            }),
            links: OnceLock::new(),
        })
    }

    /// The device behind.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.core.device
    }

    /// Stops the device's work: nothing is under way when this returns.
    pub fn pause(&self) {
        let mut work = self.core.work();
        let working = !std::mem::replace(&mut work.paused, true) && work.active;
        // A doorbell that rings now must not hold up the thread on which requests complete.
        drop(work);
        if working {
            self.core.device.pause();
        }
    }

    /// Goes on, with a look at every queue.
    pub fn resume(&self) {
        let state = self.lock();
        let mut work = self.core.work();
        let active = std::mem::replace(&mut work.paused, false) && work.active;
        if active {
            self.core.device.resume();
        }
        drop(work);
        if active {
            self.look(&state);
        }
    }

    /// Bytes from outside for the device, in a counted run. What it does with them while it has no
    /// driver is its own affair: text waits, frames are lost.
    pub fn input(&self, bytes: &[u8]) {
        let _work = self.core.work();
        self.core.device.input(bytes);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn offered(&self) -> u64 {
        features::OFFERED | self.core.device.features()
    }

    /// Rings every doorbell, or looks at every queue at once.
    fn look(&self, state: &State) {
        match self.place {
            Place::Reactor(_) => state.bells.ring_all(),
            Place::Guest => state
                .queues
                .iter()
                .filter(|queue| queue.is_enabled())
                .for_each(|queue| self.core.kick(queue.index())),
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = COMMON.offset(offset) {
            let state = self.lock();
            let image = state.common.image(&Shown {
                offered: self.offered(),
                status: self.notifier.status(),
                generation: self.notifier.generation(),
                config_vector: self.notifier.config_vector(),
                queue_vector: self.notifier.queue_vector(state.common.queue_select),
            });
            let from = image.iter().skip(usize::try_from(at).unwrap_or(0));
            data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        } else if let Some(at) = DEVICE.offset(offset) {
            self.core.device.read_config(at, data);
        } else if offset == ISR.start
            && let Some(byte) = data.first_mut()
        {
            *byte = self.notifier.take_isr();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = NOTIFY.offset(offset) {
            let index = at / u64::from(NOTIFY_STEP);
            self.notified(u16::try_from(index).unwrap_or(u16::MAX));
        } else if let Some(at) = COMMON.offset(offset) {
            let mut state = self.lock();
            match state.common.write(self.notifier.status(), at, data) {
                Effect::Done => {}
                Effect::Status(value) => self.set_status(&mut state, value),
                Effect::ConfigVector(vector) => self.notifier.set_config_vector(vector),
                Effect::QueueVector { queue, vector } => {
                    self.notifier.set_queue_vector(queue, vector);
                }
            }
        } else if let Some(at) = DEVICE.offset(offset) {
            self.core.device.write_config(at, data);
        }
    }

    /// A notification that the engine did not take.
    fn notified(&self, index: u16) {
        match self.place {
            Place::Guest => self.core.kick(index),
            Place::Reactor(_) => {
                let bell = self.lock().bells.of(index).cloned();
                let _ = bell.map(|bell| bell.write(1));
            }
        }
    }

    /// The driver writes the device status (sections 2.1 and 3.1.1). It cannot clear bits but all of
    /// them at once, which is a reset.
    fn set_status(&self, state: &mut State, value: u8) {
        if value == 0 {
            return self.reset_device(state);
        }
        let old = self.notifier.status();
        let mut new = old | value & !NEEDS_RESET;
        if !old & new & FEATURES_OK != 0 && !self.agrees(state.common.features) {
            new &= !FEATURES_OK;
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.notifier.set_status(new);
        if !old & new & DRIVER_OK != 0
            && let Err(fault) = self.activate(state)
        {
            log::warn!(target: "vmlet.virtio", "{} does not start: {fault}", self.name());
            self.notifier.needs_reset();
        }
    }

    /// Whether the device works with what the driver accepts.
    pub(super) fn agrees(&self, accepted: u64) -> bool {
        let known = accepted & !self.offered() == 0;
        known
            && accepted & features::VERSION_1 != 0
            && self.core.device.accepts(accepted & features::DEVICE_TYPE)
    }

    /// Starts the device with its queues as they are configured.
    pub(super) fn activate(&self, state: &mut State) -> Result<(), QueueFault> {
        let Some(links) = self.links.get() else {
            return Ok(());
        };
        let interrupt: Arc<dyn VirtioInterrupt> = Arc::<Notifier>::clone(&self.notifier);
        let view = links.dma.view();
        state.bells = self.bells(state).unwrap_or_default();
        let mut queues = Vec::new();
        for (index, queue) in (0..).zip(&state.common.queues) {
            let mut queue = *queue;
            queue.event_idx = state.common.features & features::EVENT_IDX != 0;
            let bell = state.bells.of(index).cloned();
            let made = VirtQueue::new(index, &queue, Arc::clone(&interrupt), bell)?;
            if made.is_enabled() && !made.is_valid(&view) {
                return Err(QueueFault::Memory);
            }
            queues.push(Arc::new(made));
        }
        state.queues.clone_from(&queues);
        self.core.device.activate(Activation {
            features: state.common.features,
            queues,
            interrupt,
            dma: links.dma.clone(),
        });
        self.core.work().active = true;
        self.listen(state, links);
        self.look(state);
        Ok(())
    }

    fn bells(&self, state: &State) -> std::io::Result<Bells> {
        match self.place {
            Place::Guest => Ok(Bells::default()),
            Place::Reactor(_) => Bells::make(state.common.queues.iter().map(|q| q.enabled)),
        }
    }

    fn listen(&self, state: &mut State, links: &Links) {
        let Place::Reactor(reactor) = &self.place else {
            return;
        };
        if !self.core.device.owns_doorbells()
            && let Err(error) = state.bells.listen(reactor, &self.core)
        {
            log::error!(target: "vmlet.virtio", "{} has no doorbells: {error}", self.name());
            self.notifier.needs_reset();
        }
        state.bells.hang(&*links.doorbells, state.bar);
    }

    /// Stops the device and forgets what the driver configured (section 2.4).
    fn reset_device(&self, state: &mut State) {
        let was = std::mem::take(&mut self.core.work().active);
        if let Some(links) = self.links.get() {
            state.bells.hang(&*links.doorbells, None);
        }
        // Ends the waits: no handler runs any more.
        state.bells = Bells::default();
        if was {
            self.core.device.reset();
        }
        state.queues.clear();
        state.common = Common::new(&self.core.device.queue_sizes());
        self.notifier.reset();
    }

    pub(super) fn set_paused(&self) {
        self.core.work().paused = true;
    }
}

impl Function for VirtioPci {
    fn name(&self) -> &'static str {
        self.core.device.name()
    }

    fn layout(&self) -> FunctionLayout {
        layout::function(&*self.core.device)
    }

    fn connect(&self, links: Links) {
        self.notifier.connect(Wires {
            msix: Arc::clone(&links.msix),
            intx: Arc::clone(&links.intx),
        });
        let at = links.capabilities.get(layout::WINDOW_CAPABILITY).copied();
        self.lock().window.place(at);
        let _ = self.links.set(links);
    }

    fn read_bar(&self, _: &dyn AccessContext, bar: u8, offset: u64, data: &mut [u8]) -> Flow {
        if bar == BAR {
            self.read(offset, data);
        }
        Flow::Continue
    }

    fn write_bar(&self, _: &dyn AccessContext, bar: u8, offset: u64, data: &[u8]) -> Flow {
        if bar == BAR {
            self.write(offset, data);
        }
        Flow::Continue
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) -> bool {
        let target = self.lock().window.target(offset, data.len());
        let Some(target) = target else {
            return false;
        };
        self.read(target, data);
        true
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let mut state = self.lock();
        let target = state.window.write(offset, data);
        drop(state);
        if let Some(target) = target {
            self.write(target, data);
        }
        target.is_some()
    }

    fn bar_moved(&self, bar: u8, at: Option<u64>) {
        if bar != BAR {
            return;
        }
        let mut state = self.lock();
        state.bar = at;
        if let Some(links) = self.links.get() {
            state.bells.hang(&*links.doorbells, at);
        }
    }

    fn pause(&self) {
        VirtioPci::pause(self);
    }

    fn resume(&self) {
        VirtioPci::resume(self);
    }

    fn reset(&self) {
        let mut state = self.lock();
        self.reset_device(&mut state);
        state.window.reset();
    }

    fn save(&self) -> Option<SavedState> {
        Some(self.saved())
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        self.take_over(saved)
    }

    fn unplug(&self) {
        self.reset_device(&mut self.lock());
        self.core.device.unplug();
    }
}
