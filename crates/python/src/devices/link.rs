//! What a device's object has of the VM that it is on.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict},
};
use vmlet_machine::{Iova, MachineError};

use super::{
    callee::{Callee, Cost},
    current,
    device::PythonDevice,
    function::PythonFunction,
    queue::Queue,
    set, ticks,
    virtio::PythonVirtio,
};
use crate::{errors, finalization, gateway};

fn check(py: Python<'_>, pid: u32) -> PyResult<()> {
    if std::process::id() == pid {
        return Ok(());
    }
    errors::raise(py, Err(MachineError::Forked))
}

/// What the object stands for.
#[derive(Debug)]
enum Way {
    Registers(Weak<PythonDevice>),
    Function(Weak<PythonFunction>),
    Virtio(Weak<PythonVirtio>),
}

/// The object's way to its VM.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct DeviceLink {
    callee: Weak<Callee>,
    way: Way,
    pid: u32,
}

impl DeviceLink {
    pub(super) fn of_registers(device: &Arc<PythonDevice>) -> DeviceLink {
        DeviceLink {
            callee: Arc::downgrade(&device.callee),
            way: Way::Registers(Arc::downgrade(device)),
            pid: std::process::id(),
        }
    }

    pub(super) fn of_function(function: &Arc<PythonFunction>) -> DeviceLink {
        DeviceLink {
            callee: Arc::downgrade(&function.callee),
            way: Way::Function(Arc::downgrade(function)),
            pid: std::process::id(),
        }
    }

    pub(super) fn of_virtio(device: &Arc<PythonVirtio>) -> DeviceLink {
        DeviceLink {
            callee: Arc::downgrade(&device.callee),
            way: Way::Virtio(Arc::downgrade(device)),
            pid: std::process::id(),
        }
    }

    fn virtio(&self, py: Python<'_>) -> PyResult<Arc<PythonVirtio>> {
        self.open(py)?;
        let found = match &self.way {
            Way::Virtio(device) => device.upgrade(),
            Way::Registers(_) | Way::Function(_) => None,
        };
        errors::raise(py, found.ok_or(MachineError::Closed))
    }

    fn callee(&self, py: Python<'_>) -> PyResult<Arc<Callee>> {
        check(py, self.pid)?;
        let found = self.callee.upgrade();
        errors::raise(py, found.ok_or(MachineError::Closed))
    }

    fn open(&self, py: Python<'_>) -> PyResult<Arc<Callee>> {
        let found = self.callee(py)?;
        let open = !found.turn.is_closed();
        errors::raise(py, open.then_some(found).ok_or(MachineError::Closed))
    }

    /// What a PCI function got from its bus.
    fn bus(&self, py: Python<'_>) -> PyResult<vmlet_pci::Links> {
        self.open(py)?;
        let links = match &self.way {
            Way::Function(function) => function.upgrade().and_then(|f| f.links.get().cloned()),
            Way::Registers(_) | Way::Virtio(_) => None,
        };
        errors::raise(py, links.ok_or(MachineError::Closed))
    }
}

#[pymethods]
impl DeviceLink {
    /// Whether the VM is gone.
    #[getter]
    fn closed(&self) -> bool {
        self.pid != std::process::id()
            || self
                .callee
                .upgrade()
                .is_none_or(|callee| callee.turn.is_closed())
    }

    /// The vCPU whose access waits for the callback that this thread is in.
    #[getter]
    fn vcpu(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        Ok(current::vcpu(self.callee(py)?.failures.set))
    }

    /// The device's interrupt line.
    #[getter]
    fn irq(&self, py: Python<'_>) -> PyResult<IrqLine> {
        self.open(py)?;
        let line = match &self.way {
            Way::Registers(device) => {
                let device = device.upgrade();
                device.and_then(|device| device.link.get().map(|link| Arc::clone(&link.irq)))
            }
            Way::Function(_) | Way::Virtio(_) => Some(self.bus(py)?.intx),
        };
        Ok(IrqLine {
            line: errors::raise(py, line.ok_or(MachineError::Closed))?,
            pid: self.pid,
        })
    }

    /// Sends the message of a vector of MSI-X.
    fn trigger(&self, py: Python<'_>, vector: u16) -> PyResult<()> {
        let msix = self.bus(py)?.msix;
        finalization::detach(py, || msix.trigger(vector));
        Ok(())
    }

    /// Copies from guest memory as the device sees it.
    fn dma_read<'py>(
        &self,
        py: Python<'py>,
        iova: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let dma = self.bus(py)?.dma;
        let data = gateway::call(py, || {
            // No more than there can be is made room for.
            dma.read(
                Iova(iova.saturating_add(length.saturating_sub(1) as u64)),
                &mut [0],
            )?;
            let mut data = vec![0; length];
            dma.read(Iova(iova), &mut data)?;
            Ok(data)
        })?;
        Ok(PyBytes::new(py, &data))
    }

    /// Copies to guest memory as the device sees it.
    fn dma_write(&self, py: Python<'_>, iova: u64, data: &[u8]) -> PyResult<()> {
        let dma = self.bus(py)?.dma;
        gateway::call(py, || Ok(dma.write(Iova(iova), data)?))
    }

    /// A queue of a virtio device, while its driver uses it.
    fn queue(&self, py: Python<'_>, index: u16) -> PyResult<Option<Queue>> {
        Ok(self.virtio(py)?.queue(index))
    }

    /// Tells a virtio device's driver that the configuration has changed.
    fn config_changed(&self, py: Python<'_>) -> PyResult<()> {
        let device = self.virtio(py)?;
        finalization::detach(py, || device.config_changed());
        Ok(())
    }

    /// Has the writes posted so far be delivered; False when `timeout` seconds pass before.
    #[pyo3(signature = (timeout))]
    fn deliver(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let callee = self.open(py)?;
        if let Some(callback) = current::of(callee.failures.set) {
            return Err(errors::reentry(py, "deliver", &callback));
        }
        match &self.way {
            Way::Registers(device) => match device.upgrade() {
                Some(device) => set::deliver(py, &device, timeout),
                None => Ok(true),
            },
            Way::Function(_) | Way::Virtio(_) => Ok(true),
        }
    }

    /// Numbers of calls, batches and writes, and nanoseconds.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let callee = self.callee(py)?;
        let (costs, stats) = (&callee.costs, PyDict::new(py));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let time = |cost: &Cost| ticks::nanoseconds(count(&cost.ticks));
        stats.set_item("calls", count(&costs.calls.count))?;
        stats.set_item("call_ns", time(&costs.calls))?;
        stats.set_item("batches", count(&costs.batches.count))?;
        stats.set_item("batch_ns", time(&costs.batches))?;
        stats.set_item("writes", count(&costs.writes))?;
        Ok(stats)
    }

    /// Ends the VM's run.
    fn end_run(&self, py: Python<'_>, detail: String) -> PyResult<()> {
        let callee = self.open(py)?;
        if let Some(run) = callee.run.get() {
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
        // Detached: the line may be a PCI bus's, whose locks a thread may have that waits for Python.
        finalization::detach(py, || self.line.set(level));
        Ok(())
    }

    /// One edge, for an edge-triggered pin.
    fn pulse(&self, py: Python<'_>) -> PyResult<()> {
        check(py, self.pid)?;
        finalization::detach(py, || self.line.pulse());
        Ok(())
    }
}
