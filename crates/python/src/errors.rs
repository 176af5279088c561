//! Which exception of `vmlet.errors` an error becomes.

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple, PyType},
};
use vmlet_machine::{ErrorKind, MachineError};
use vmlet_vfio::VfioError;

use crate::finalization;

/// The module `vmlet.errors`.
static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    let module = ERRORS.get_or_try_init(py, || {
        PyModule::import(py, "vmlet.errors").map(|module| module.unbind())
    })?;
    Ok(module.bind(py).getattr(name)?.cast_into::<PyType>()?)
}

fn class_name(kind: ErrorKind, closed: bool) -> &'static str {
    match kind {
        ErrorKind::Config => "ConfigError",
        ErrorKind::Kernel => "KernelError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::Guest => "GuestError",
        ErrorKind::Host => "HostError",
        ErrorKind::State if closed => "ClosedError",
        ErrorKind::State => "StateError",
        ErrorKind::Forked => "ForkedProcessError",
    }
}

/// A message is one clause, then, where there is something to be done, sentences that say what.
fn split(text: &str) -> (&str, Option<&str>) {
    let starts_sentence = |at: usize| {
        text.get(at + 2..)
            .and_then(|rest| rest.chars().next())
            .is_some_and(char::is_uppercase)
    };
    match text
        .match_indices(". ")
        .map(|(at, _)| at)
        .find(|at| starts_sentence(*at))
    {
        Some(at) => (text.get(..at).unwrap_or(text), text.get(at + 2..)),
        None => (text, None),
    }
}

/// What `make` makes by calling a class of Python's.
fn finish(py: Python<'_>, make: impl FnOnce() -> PyResult<PyErr>) -> PyErr {
    finalization::undisturbed(py, || {
        let error = make().unwrap_or_else(|error| error);
        // One that cannot be told where it was raised is told without.
        let _ = in_context(py, &error);
        error
    })
}

/// What is being handled becomes the context of `error`: a `raise` of Python's does so, an extension's
/// error has none.
fn in_context(py: Python<'_>, error: &PyErr) -> PyResult<()> {
    let handled = py.import("sys")?.call_method0("exc_info")?.get_item(1)?;
    let value = error.value(py);
    if handled.is_none() || handled.is(value) {
        return Ok(());
    }
    value.setattr("__context__", handled)
}

/// The exception for `error`.
pub(crate) fn to_python(py: Python<'_>, error: &MachineError) -> PyErr {
    let text = error.to_string();
    let (message, remedy) = split(&text);
    let closed = matches!(
        error,
        MachineError::Closed | MachineError::Vfio(VfioError::Closed)
    );
    let make = || -> PyResult<PyErr> {
        let kwargs = PyDict::new(py);
        kwargs.set_item("remedy", remedy.or_else(|| error.remedy()))?;
        if error.kind() == ErrorKind::Host {
            kwargs.set_item("errno", error.errno())?;
        }
        if error.kind() == ErrorKind::Unsupported {
            let features = error.features().iter().map(|feature| &feature.name);
            kwargs.set_item("features", PyTuple::new(py, features.collect::<Vec<_>>())?)?;
        }
        let class = class(py, class_name(error.kind(), closed))?;
        Ok(PyErr::from_value(class.call((message,), Some(&kwargs))?))
    };
    finish(py, make)
}

/// The exception of a VM whose device raised `cause` in `callback`.
pub(crate) fn of_device(
    py: Python<'_>,
    device: &Bound<'_, PyAny>,
    callback: &str,
    cause: PyErr,
) -> PyErr {
    let make = || -> PyResult<PyErr> {
        let kind = cause.get_type(py).name()?.to_string();
        let text = cause.value(py).str()?.to_string();
        let name = device.get_type().name()?;
        let message = format!("{name}.{callback} failed: {kind}: {text}");
        let kwargs = PyDict::new(py);
        kwargs.set_item("device", device)?;
        kwargs.set_item("callback", callback)?;
        kwargs.set_item("remedy", "The traceback of __cause__ says where.")?;
        let error = class(py, "DeviceError")?.call((message,), Some(&kwargs))?;
        Ok(PyErr::from_value(error))
    };
    let error = finish(py, make);
    error.set_cause(py, Some(cause));
    error
}

/// The exception for `action`, which was asked for in `callback`, for which it would wait.
pub(crate) fn reentry(py: Python<'_>, action: &str, callback: &str) -> PyErr {
    let make = || -> PyResult<PyErr> {
        let kwargs = PyDict::new(py);
        let remedy = "Inside a callback use memory, the registers of the accessing vCPU, irq and \
                      end_run(); for the rest have another thread, and do not wait for it.";
        kwargs.set_item("remedy", remedy)?;
        let message = format!("{action} would wait for {callback}, which it is called in");
        let class = class(py, "ReentryError")?;
        Ok(PyErr::from_value(class.call((message,), Some(&kwargs))?))
    };
    finish(py, make)
}

/// The exception for a callback that does not return in time.
pub(crate) fn hanging(py: Python<'_>, action: &str, timeout: Option<f64>) -> PyErr {
    let make = || -> PyResult<PyErr> {
        let kwargs = PyDict::new(py);
        let remedy = "Make the callback return; then try again.";
        kwargs.set_item("remedy", remedy)?;
        let seconds = timeout.unwrap_or_default();
        let message = format!("{action}: a callback of a device still runs after {seconds} s");
        let class = class(py, "TimeoutError")?;
        Ok(PyErr::from_value(class.call((message,), Some(&kwargs))?))
    };
    finish(py, make)
}

/// The result of a call into the machine, for Python.
pub(crate) fn raise<T>(py: Python<'_>, result: Result<T, MachineError>) -> PyResult<T> {
    result.map_err(|error| to_python(py, &error))
}
