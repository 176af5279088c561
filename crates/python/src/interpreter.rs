//! Which interpreter of the process loads the module; exceptions for other threads of it.
//!
//! Invariant: the functions called here need only an attached thread, which a `Python` token proves.

#![expect(unsafe_code, reason = "PyO3 has no safe name for these")]

use std::ffi::c_long;

use pyo3::{
    exceptions::{PyImportError, PySystemExit},
    ffi,
    prelude::*,
};

/// Refuses every interpreter but the first: classes and errors are kept once for the process.
pub(crate) fn check(_py: Python<'_>) -> PyResult<()> {
    // SAFETY: the thread is attached; the state it gives is that of the running interpreter.
    let id = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    if id == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "vmlet cannot be loaded in a subinterpreter: import it in the main interpreter, or start a \
         process",
    ))
}

/// The number of the calling thread, as [`end_thread`] takes it.
pub(crate) fn thread_id(py: Python<'_>) -> PyResult<u64> {
    let threading = PyModule::import(py, "threading")?;
    threading.call_method0("get_ident")?.extract()
}

/// Raises `SystemExit` in the thread of that number, at its next instruction of Python.
pub(crate) fn end_thread(py: Python<'_>, id: u64) {
    let exception = py.get_type::<PySystemExit>();
    // The number of bits is the same; pthread's numbers use all of them.
    let id = id.cast_signed() as c_long;
    // SAFETY: the thread is attached; the exception is an object, of which a thread that is still
    // there takes a reference of its own.
    unsafe { ffi::PyThreadState_SetAsyncExc(id, exception.as_ptr()) };
}
