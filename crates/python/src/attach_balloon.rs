//! The memory balloon, from arguments by name, and how it is worked.

use pyo3::{prelude::*, types::PyDict};
use vmlet_machine::BalloonOptions;

use crate::{
    errors, gateway,
    machine::{Machine, start_thread},
};

/// A balloon; gives its root port.
#[pyfunction]
#[pyo3(signature = (machine, port, *, target, deflate_on_oom, reporting))]
pub(crate) fn attach_balloon(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    target: u64,
    deflate_on_oom: bool,
    reporting: bool,
) -> PyResult<u8> {
    let options = BalloonOptions {
        target,
        deflate_on_oom,
        reporting,
    };
    gateway::call(py, || {
        machine.core().attach_balloon(options, port, &start_thread)
    })
}

/// Target, size, bytes given back, bytes kept, and whether a driver is there.
#[pyfunction]
pub(crate) fn balloon_state(
    py: Python<'_>,
    machine: &Machine,
) -> PyResult<(u64, u64, u64, u64, bool)> {
    let state = errors::raise(py, machine.core().balloon())?;
    Ok((
        state.target,
        state.actual,
        state.given_back,
        state.kept,
        state.driver,
    ))
}

/// Asks the guest to have given up `target` bytes in all.
#[pyfunction]
pub(crate) fn inflate_balloon(py: Python<'_>, machine: &Machine, target: u64) -> PyResult<()> {
    gateway::call(py, || machine.core().set_balloon_target(target))
}

/// Asks the guest for figures of its memory; the number of those that are there already.
#[pyfunction]
pub(crate) fn ask_balloon(py: Python<'_>, machine: &Machine) -> PyResult<u64> {
    gateway::call(py, || machine.core().ask_balloon())
}

/// Figures newer than the `number`th by name; None when `timeout` seconds pass before.
#[pyfunction]
#[pyo3(signature = (machine, number, timeout))]
pub(crate) fn balloon_statistics<'py>(
    py: Python<'py>,
    machine: &Machine,
    number: u64,
    timeout: Option<f64>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    if timeout != Some(0.0) {
        machine
            .devices()
            .refuse_inside(py, "waiting for the balloon")?;
    }
    let found = gateway::wait(py, timeout, |slice| {
        machine.core().balloon_statistics(number, slice)
    })?;
    let Some(statistics) = found else {
        return Ok(None);
    };
    let figures = PyDict::new(py);
    for (statistic, value) in statistics.figures {
        figures.set_item(statistic.name(), value)?;
    }
    Ok(Some(figures))
}
