//! What a device's object has of the VM that it is on.

use std::sync::{Arc, Weak, atomic::Ordering};

use pyo3::{prelude::*, types::PyDict};
use vmlet_machine::MachineError;

use super::{current, device::PythonDevice, set};
use crate::{errors, finalization};

fn check(py: Python<'_>, pid: u32) -> PyResult<()> {
    if std::process::id() == pid {
        return Ok(());
    }
    errors::raise(py, Err(MachineError::Forked))
}

/// The object's way to its VM.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct DeviceLink {
    device: Weak<PythonDevice>,
    pid: u32,
}

impl DeviceLink {
    pub(super) fn new(device: &Arc<PythonDevice>) -> DeviceLink {
        DeviceLink {
            device: Arc::downgrade(device),
            pid: std::process::id(),
        }
    }

    fn device(&self, py: Python<'_>) -> PyResult<Arc<PythonDevice>> {
        check(py, self.pid)?;
        let found = self.device.upgrade();
        errors::raise(py, found.ok_or(MachineError::Closed))
    }

    fn open(&self, py: Python<'_>) -> PyResult<Arc<PythonDevice>> {
        let found = self.device(py)?;
        let open = !found.turn.is_closed();
        errors::raise(py, open.then_some(found).ok_or(MachineError::Closed))
    }
}

#[pymethods]
impl DeviceLink {
    /// Whether the VM is gone.
    #[getter]
    fn closed(&self) -> bool {
        self.pid != std::process::id()
            || self
                .device
                .upgrade()
                .is_none_or(|device| device.turn.is_closed())
    }

    /// The vCPU whose access waits for the callback that this thread is in.
    #[getter]
    fn vcpu(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        Ok(current::vcpu(self.device(py)?.failures.set))
    }

    /// The device's interrupt line.
    #[getter]
    fn irq(&self, py: Python<'_>) -> PyResult<IrqLine> {
        let device = self.open(py)?;
        let link = device.link.get();
        let line = errors::raise(py, link.ok_or(MachineError::Closed))?;
        Ok(IrqLine {
            line: Arc::clone(&line.irq),
            pid: self.pid,
        })
    }

    /// Has the writes posted so far be delivered; False when `timeout` seconds pass before.
    #[pyo3(signature = (timeout))]
    fn deliver(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let device = self.open(py)?;
        if let Some(callback) = current::of(device.failures.set) {
            return Err(errors::reentry(py, "deliver", &callback));
        }
        set::deliver(py, &device, timeout)
    }

    /// Numbers of calls, batches and writes, and nanoseconds.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let device = self.device(py)?;
        let (costs, stats) = (&device.costs, PyDict::new(py));
        for (name, counter) in [
            ("calls", &costs.calls.count),
            ("call_ns", &costs.calls.nanoseconds),
            ("batches", &costs.batches.count),
            ("batch_ns", &costs.batches.nanoseconds),
            ("writes", &costs.writes),
        ] {
            stats.set_item(name, counter.load(Ordering::Relaxed))?;
        }
        Ok(stats)
    }

    /// Ends the VM's run.
    fn end_run(&self, py: Python<'_>, detail: String) -> PyResult<()> {
        let device = self.open(py)?;
        if let Some(link) = device.link.get() {
            let run = link.run.clone();
            finalization::detach(py, || run.stop(detail));
        }
        Ok(())
    }
}

/// A device's interrupt line.
#[pyclass(frozen, name = "Irq", module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct IrqLine {
    line: Arc<dyn vmlet_bus::IrqLine>,
    pid: u32,
}

#[pymethods]
impl IrqLine {
    /// Drives the line: True is active. A level-triggered pin interrupts as long as it is.
    fn set(&self, py: Python<'_>, level: bool) -> PyResult<()> {
        check(py, self.pid)?;
        self.line.set(level);
        Ok(())
    }

    /// One edge, for an edge-triggered pin.
    fn pulse(&self, py: Python<'_>) -> PyResult<()> {
        check(py, self.pid)?;
        self.line.pulse();
        Ok(())
    }
}
