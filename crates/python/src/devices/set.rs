//! The devices of one VM that are written in Python.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pyo3::{exceptions::PyException, prelude::*};
use vmlet_machine::{Attached, AttachedDevice, Regs, Space};

use super::{
    DeviceLink,
    callee::Callee,
    current,
    device::{Methods, PythonDevice},
};
use crate::{errors, gateway};

/// An exception that a callback raised.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) device: Py<PyAny>,
    pub(super) callback: &'static str,
    pub(super) error: PyErr,
}

/// The first exception of a VM's callbacks. After it none is called any more.
#[derive(Debug)]
pub(super) struct Failures {
    /// Which set of devices.
    pub(super) set: u64,
    failed: AtomicBool,
    first: Mutex<Option<Failure>>,
    /// Of a hook that the VM's owner waits for, who gets it once.
    hook: Mutex<Option<Failure>>,
}

impl Failures {
    fn new() -> Failures {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Failures {
            set: NEXT.fetch_add(1, Ordering::Relaxed),
            failed: AtomicBool::new(false),
            first: Mutex::default(),
            hook: Mutex::default(),
        }
    }

    pub(super) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn keep(&self, failure: Failure) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(failure);
        }
        self.failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn keep_of_hook(&self, failure: Failure) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    fn first(&self, py: Python<'_>) -> Option<PyErr> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.as_ref().map(|failure| failure.exception(py))
    }

    fn of_hook(&self, py: Python<'_>) -> Option<PyErr> {
        let mut hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = hook.take()?;
        // What asks the owner's own thread to end is not the device's failure.
        if failure.error.is_instance_of::<PyException>(py) {
            Some(failure.exception(py))
        } else {
            Some(failure.error)
        }
    }
}

impl Failure {
    fn exception(&self, py: Python<'_>) -> PyErr {
        let (device, cause) = (self.device.bind(py), self.error.clone_ref(py));
        errors::of_device(py, device, self.callback, cause)
    }
}

/// Object, "mmio" or "pio", first address, addresses, pin, and for posted writes room and seconds.
type Spec<'py> = (
    Bound<'py, PyAny>,
    String,
    u64,
    u64,
    Option<u8>,
    Option<(usize, f64)>,
);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct DeviceSet {
    failures: Arc<Failures>,
    /// Some are there, or are to come.
    any: AtomicBool,
    /// Of every device.
    callees: Mutex<Vec<Arc<Callee>>>,
    /// Those at fixed addresses.
    devices: Vec<Arc<PythonDevice>>,
    places: Vec<Attached>,
}

/// The name of a device's class, kept for the process: there are few classes.
fn keep_name(name: String) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    if let Some(known) = names.get(name.as_str()) {
        return known;
    }
    let kept: &'static str = name.leak();
    names.insert(kept);
    kept
}

impl DeviceSet {
    /// The devices that `specs` describes, each with its link to the VM to be made.
    /// Others are `expected` to come.
    pub(crate) fn new(specs: &[Bound<'_, PyAny>], expected: bool) -> PyResult<DeviceSet> {
        let mut set = DeviceSet {
            failures: Arc::new(Failures::new()),
            any: AtomicBool::new(expected),
            callees: Mutex::default(),
            devices: Vec::new(),
            places: Vec::new(),
        };
        for spec in specs {
            let (object, space, at, len, pin, posted): Spec<'_> = spec.extract()?;
            let posted = posted.map(|(room, delay)| {
                let delay = Duration::try_from_secs_f64(delay).unwrap_or_default();
                (room, delay)
            });
            let callee = set.adopt(&object)?;
            let device = PythonDevice::new(callee, Methods::of(&object)?, posted);
            object.setattr("_link", DeviceLink::of_registers(&device))?;
            let space = if space == "pio" {
                Space::Ports
            } else {
                Space::Memory
            };
            set.places.push(Attached {
                space,
                at,
                len,
                pin,
                device: Arc::clone(&device) as Arc<dyn AttachedDevice>,
            });
            set.devices.push(device);
        }
        Ok(set)
    }

    /// A new object to be called for this VM.
    pub(super) fn adopt(&self, object: &Bound<'_, PyAny>) -> PyResult<Arc<Callee>> {
        let name = keep_name(object.get_type().name()?.to_string());
        let callee = Arc::new(Callee::new(name, object, &self.failures));
        self.any.store(true, Ordering::Relaxed);
        let mut callees = self.lock();
        callees.retain(|callee| !callee.turn.is_closed());
        callees.push(Arc::clone(&callee));
        drop(callees);
        Ok(callee)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Callee>>> {
        self.callees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// The devices and their places, for the board.
    pub(crate) fn places(&self) -> &[Attached] {
        &self.places
    }

    /// Raises `SystemExit` in the callbacks that run.
    pub(crate) fn interrupt(&self, py: Python<'_>) {
        let callees = self.lock().clone();
        callees.iter().for_each(|callee| callee.interrupt(py));
    }

    /// No callback is made any more.
    pub(crate) fn close(&self) {
        self.devices.iter().for_each(|device| device.close());
        self.lock().iter().for_each(|callee| callee.turn.close());
    }

    /// Raises what a callback has raised.
    pub(crate) fn raise(&self, py: Python<'_>) -> PyResult<()> {
        if !self.failures.is_failed() {
            return Ok(());
        }
        self.failures.first(py).map_or(Ok(()), Err)
    }

    /// Raises what a hook of the call that was just made has raised.
    pub(crate) fn raise_of_hook(&self, py: Python<'_>) -> PyResult<()> {
        self.failures.of_hook(py).map_or(Ok(()), Err)
    }

    /// Refuses `action` in a callback of one of these devices: it would wait for that callback.
    pub(crate) fn refuse_inside(&self, py: Python<'_>, action: &str) -> PyResult<()> {
        if self.is_empty() {
            return Ok(());
        }
        match current::of(self.failures.set) {
            None => Ok(()),
            Some(callback) => Err(errors::reentry(py, action, &callback)),
        }
    }

    /// The registers of the vCPU whose access waits for the callback that this thread is in, if it
    /// is `vcpu`.
    pub(crate) fn regs_inside(&self, vcpu: usize) -> Option<Regs> {
        let set = self.failures.set;
        let there = !self.is_empty() && u32::try_from(vcpu).ok() == current::vcpu(set);
        there.then(|| current::regs(set)).flatten()
    }

    /// Whether an access of a vCPU waits for the callback that this thread is in.
    pub(crate) fn in_access(&self) -> bool {
        !self.is_empty() && current::vcpu(self.failures.set).is_some()
    }

    /// Waits, interruptible, until no callback runs; which one does when `timeout` seconds pass
    /// before.
    pub(crate) fn settle(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.is_empty() {
            return Ok(true);
        }
        let done = gateway::wait(py, timeout, |slice| {
            let deadline = Instant::now() + slice;
            let left = || deadline.saturating_duration_since(Instant::now());
            let idle = |callee: &Arc<Callee>| callee.turn.wait_idle(left());
            let callees = self.lock().clone();
            Ok(callees.iter().all(idle).then_some(()))
        })?;
        Ok(done.is_some())
    }

    /// Waits, interruptible, until all writes posted so far are delivered; false when `timeout`
    /// seconds pass before.
    pub(crate) fn deliver(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        for device in &self.devices {
            if !deliver(py, device, timeout)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// See [`DeviceSet::deliver`], of one device.
pub(super) fn deliver(
    py: Python<'_>,
    device: &PythonDevice,
    timeout: Option<f64>,
) -> PyResult<bool> {
    let Some(ring) = &device.ring else {
        return Ok(true);
    };
    let end = ring.end();
    // Mostly there is nothing to wait for.
    if ring.wait_delivered(end, Duration::ZERO) {
        return Ok(true);
    }
    let done = gateway::wait(py, timeout, |slice| {
        Ok(ring.wait_delivered(end, slice).then_some(()))
    })?;
    Ok(done.is_some())
}

impl Drop for DeviceSet {
    fn drop(&mut self) {
        self.close();
    }
}
