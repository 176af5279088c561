//! Which interpreter of the process loads the module.
//!
//! Invariant: the functions called here need only an attached thread, which a `Python` token proves.

#![expect(unsafe_code, reason = "PyO3 has no safe name for an interpreter's id")]

use pyo3::{exceptions::PyImportError, ffi, prelude::*};

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
