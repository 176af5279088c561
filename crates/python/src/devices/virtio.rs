//! An object of Python as a virtio device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::{prelude::*, types::PyBytes};
use vmlet_bus::{SavedError, SavedState};
use vmlet_machine::virtio::{Activation, VirtioDevice};

use super::{
    DeviceLink,
    callee::Callee,
    queue::{Live, Queue},
    ticks::Ticks,
};
use crate::{finalization, gateway, machine::Machine};

/// A virtio device written in Python.
#[derive(Debug)]
pub(crate) struct PythonVirtio {
    pub(super) callee: Arc<Callee>,
    kind: Kind,
    methods: Methods,
    /// The driver is ready.
    active: Mutex<Option<Active>>,
}

#[derive(Debug)]
struct Active {
    activation: Activation,
    /// Ends with the activation: chains of before are given back no more.
    live: Arc<Live>,
}

/// What the device is.
#[derive(Debug)]
struct Kind {
    id: u32,
    class: [u8; 3],
    features: u64,
    queues: Vec<u16>,
}

#[derive(Debug)]
struct Methods {
    config: Py<PyAny>,
    write_config: Py<PyAny>,
    ready: Py<PyAny>,
    notified: Py<PyAny>,
    reset: Py<PyAny>,
    save: Py<PyAny>,
    restore: Py<PyAny>,
}

impl Methods {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Methods> {
        let method = |name: &str| object.getattr(name).map(Bound::unbind);
        Ok(Methods {
            config: method("read_config")?,
            write_config: method("write_config")?,
            ready: method("ready")?,
            notified: method("notified")?,
            reset: method("reset")?,
            save: method("save")?,
            restore: method("restore")?,
        })
    }
}

impl PythonVirtio {
    fn active(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queue `index`, while the driver is ready and uses it.
    pub(super) fn queue(&self, index: u16) -> Option<Queue> {
        let active = self.active();
        let active = active.as_ref()?;
        let queue = active.activation.queues.get(usize::from(index))?;
        queue.is_enabled().then(|| {
            let dma = active.activation.dma.clone();
            Queue::new(Arc::clone(queue), dma, Arc::clone(&active.live))
        })
    }

    /// Tells the driver that the configuration has changed.
    pub(super) fn config_changed(&self) {
        let interrupt = self
            .active()
            .as_ref()
            .map(|active| Arc::clone(&active.activation.interrupt));
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }
}

impl VirtioDevice for PythonVirtio {
    fn id(&self) -> u32 {
        self.kind.id
    }

    fn name(&self) -> &'static str {
        self.callee.name
    }

    fn class(&self) -> [u8; 3] {
        self.kind.class
    }

    fn features(&self) -> u64 {
        self.kind.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.kind.queues.clone()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.callee.hook("read_config", |py| {
            let given = self.methods.config.call1(py, (offset, data.len()))?;
            let given: Vec<u8> = given.extract(py)?;
            data.iter_mut().zip(given).for_each(|(to, from)| *to = from);
            Ok(())
        });
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.callee.hook("write_config", |py| {
            let data = PyBytes::new(py, data);
            let write = &self.methods.write_config;
            write.call1(py, (offset, data)).map(drop)
        });
    }

    fn activate(&self, activation: Activation) {
        let features = activation.features;
        *self.active() = Some(Active {
            activation,
            live: Arc::default(),
        });
        let ready = &self.methods.ready;
        self.callee
            .hook("ready", |py| ready.call1(py, (features,)).map(drop));
    }

    fn queue_ready(&self, index: u16) {
        let Some(queue) = self.queue(index) else {
            return;
        };
        let begun = Ticks::now();
        let Some(_turn) = self.callee.turn.take() else {
            return;
        };
        let flow = finalization::attach(|py| {
            self.callee.callback(py, "notified", None, || {
                let queue = Bound::new(py, queue)?;
                self.methods.notified.call1(py, (&queue,))?;
                let queue = queue.get();
                finalization::detach(py, || queue.finish());
                Ok(())
            })
        });
        self.callee.costs.calls.add(begun);
        self.callee.end_by(flow);
    }

    fn reset(&self) {
        let active = self.active().take();
        if let Some(active) = active {
            active.live.end();
        }
        let reset = &self.methods.reset;
        self.callee.hook("reset", |py| reset.call0(py).map(drop));
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Option<SavedState> {
        self.callee.save(&self.methods.save)
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        self.callee.restore(&self.methods.restore, saved)
    }
}

/// Puts an object of Python into a root port as a virtio device; gives which.
#[pyfunction]
#[pyo3(signature = (machine, port, device, *, kind, class_code, features, queues))]
#[expect(
    clippy::too_many_arguments,
    reason = "one argument a setting, all by name"
)]
pub(crate) fn attach_virtio(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    device: &Bound<'_, PyAny>,
    kind: u32,
    class_code: [u8; 3],
    features: u64,
    queues: Vec<u16>,
) -> PyResult<u8> {
    let callee = machine.devices().adopt(device)?;
    let run = gateway::call(py, || machine.core().run_handle())?;
    let _ = callee.run.set(run);
    let made = Arc::new(PythonVirtio {
        callee,
        kind: Kind {
            id: kind,
            class: class_code,
            features,
            queues,
        },
        methods: Methods::of(device)?,
        active: Mutex::default(),
    });
    device.setattr("_link", DeviceLink::of_virtio(&made))?;
    let plugged = Arc::clone(&made) as Arc<dyn VirtioDevice>;
    let attached = gateway::call(py, || {
        let spawn = &finalization::start_attached;
        machine.core().attach_virtio(plugged, port, spawn)
    });
    machine.devices().raise_of_hook(py)?;
    if attached.is_err() {
        made.callee.turn.close();
    }
    attached
}
