//! Reading what a guest prints.

use std::sync::Arc;

use pyo3::{prelude::*, types::PyBytes};
use vmlet_machine::Console;

use crate::{gateway, machine::Machine};

/// Up to `limit` bytes of `console`, waiting up to `timeout` seconds for the first.
pub(crate) fn read<'py>(
    py: Python<'py>,
    machine: &Machine,
    console: &Arc<Console>,
    limit: Option<usize>,
    timeout: Option<f64>,
) -> PyResult<Bound<'py, PyBytes>> {
    if timeout != Some(0.0) {
        machine
            .devices()
            .refuse_inside(py, "waiting for the console")?;
    }
    let limit = limit.unwrap_or(usize::MAX);
    let found = gateway::wait(py, timeout, |slice| {
        let bytes = console.read(limit, slice);
        Ok((!bytes.is_empty() || console.is_drained()).then_some(bytes))
    })?;
    Ok(PyBytes::new(py, &found.unwrap_or_default()))
}
