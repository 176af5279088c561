//! Devices that come and go while a VM is there.

use pyo3::prelude::*;

use crate::{gateway, machine::Machine};

/// Has the device in root port `port` go: the guest is asked, or with `pull` told. `False`: it has
/// not gone within `timeout` seconds.
#[pyfunction]
pub(crate) fn detach(
    py: Python<'_>,
    machine: &Machine,
    port: u8,
    pull: bool,
    timeout: Option<f64>,
) -> PyResult<bool> {
    let core = machine.core();
    if pull {
        gateway::call(py, || core.pull(port))?;
        return Ok(true);
    }
    gateway::call(py, || core.begin_detach(port))?;
    let gone = |slice| Ok(core.end_detach(port, slice)?.then_some(()));
    Ok(gateway::wait(py, timeout, gone)?.is_some())
}

/// Root ports with a device, and its name.
#[pyfunction]
pub(crate) fn plugged(py: Python<'_>, machine: &Machine) -> PyResult<Vec<(u8, &'static str)>> {
    gateway::call(py, || machine.core().devices())
}
