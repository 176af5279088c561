//! The one way from Python into calls that can block: the interpreter's lock is released, and
//! Ctrl-C works.

use std::time::{Duration, Instant};

use pyo3::prelude::*;
use vmlet_machine::MachineError;

use crate::{errors, finalization};

/// How long a signal may wait for the interpreter while we wait for a guest.
const SLICE: Duration = Duration::from_millis(50);

/// Runs `work` with the interpreter's lock released.
pub(crate) fn call<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, MachineError> + Send,
) -> PyResult<T> {
    let result = finalization::detach(py, work);
    errors::raise(py, result)
}

/// Waits in slices: `wait` gets the length of a slice and answers whether it is done. `None` when
/// `timeout` (seconds; none: for ever) passes first.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    timeout: Option<f64>,
    mut wait: impl FnMut(Duration) -> Result<Option<T>, MachineError> + Send,
) -> PyResult<Option<T>> {
    let limit = timeout
        .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        if let Some(found) = call(py, || wait(slice))? {
            return Ok(Some(found));
        }
        py.check_signals()?;
        if left.is_some_and(|left| left <= slice) {
            return Ok(None);
        }
    }
}
