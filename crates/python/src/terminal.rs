//! The class `Terminal`: the user's end of a virtio console.

use pyo3::{prelude::*, types::PyBytes};

use crate::{
    console, errors, gateway,
    machine::{Machine, start_thread},
};

/// A virtio console; gives its root port.
#[pyfunction]
#[pyo3(signature = (machine, port, *, columns, rows))]
pub(crate) fn attach_console(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    columns: u16,
    rows: u16,
) -> PyResult<u8> {
    let size = [columns, rows];
    gateway::call(py, || {
        machine.core().attach_terminal(size, port, &start_thread)
    })
}

/// What the serial console's end is to a `Machine`, by the same names.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct Terminal {
    machine: Py<Machine>,
}

#[pymethods]
impl Terminal {
    #[new]
    fn new(machine: Py<Machine>) -> Terminal {
        Terminal { machine }
    }

    /// Up to `limit` bytes of output, waiting up to `timeout` seconds for the first.
    #[pyo3(signature = (limit, timeout))]
    fn console_read<'py>(
        &self,
        py: Python<'py>,
        limit: Option<usize>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let machine = self.machine.get();
        let output = errors::raise(py, machine.core().terminal())?;
        console::read(py, machine, &output, limit, timeout)
    }

    /// Whether all output has been read and none will come.
    fn console_is_drained(&self, py: Python<'_>) -> PyResult<bool> {
        let output = errors::raise(py, self.machine.get().core().terminal())?;
        Ok(output.is_drained())
    }

    /// Bytes of output lost because nobody read them in time.
    #[getter]
    fn console_dropped(&self, py: Python<'_>) -> PyResult<u64> {
        let output = errors::raise(py, self.machine.get().core().terminal())?;
        Ok(output.dropped())
    }

    /// Types `data`; how many bytes were taken.
    fn console_write(&self, py: Python<'_>, data: &[u8]) -> PyResult<usize> {
        gateway::call(py, || self.machine.get().core().terminal_input(data))
    }

    /// Tells the guest how large the window is.
    fn resize(&self, py: Python<'_>, columns: u16, rows: u16) -> PyResult<()> {
        let size = [columns, rows];
        gateway::call(py, || self.machine.get().core().resize_terminal(size))
    }
}
