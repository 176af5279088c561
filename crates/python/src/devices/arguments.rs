//! Calls of Python with numbers, as accesses of a guest make them.
//!
//! Invariant: the function called here needs an attached thread, which a `Python` token proves, and
//! objects, which references of this thread keep alive until it returns.

#![expect(
    unsafe_code,
    reason = "PyO3 makes a tuple for each call, which takes as long as the call"
)]

use std::ptr;

use pyo3::{ffi, prelude::*, types::PyInt};

const MOST: usize = 4;

/// Calls `callable` with `numbers`, four at most.
pub(super) fn call<'py, const N: usize>(
    py: Python<'py>,
    callable: &Py<PyAny>,
    numbers: [u64; N],
) -> PyResult<Bound<'py, PyAny>> {
    const { assert!(N <= MOST, "no more are handed on") };
    let objects: [Bound<'py, PyInt>; N] = numbers.map(|number| {
        let Ok(object) = number.into_pyobject(py);
        object
    });
    let mut list = [ptr::null_mut::<ffi::PyObject>(); MOST + 1];
    for (place, object) in list.iter_mut().zip(&objects) {
        *place = object.as_ptr();
    }
    let [first, second, third, fourth, end] = list;
    // SAFETY: the thread is attached; up to the first null pointer, which ends them, the arguments are
    // objects that live until the call is over; what comes back is a new reference, or null with an
    // exception set.
    unsafe {
        let result =
            ffi::PyObject_CallFunctionObjArgs(callable.as_ptr(), first, second, third, fourth, end);
        Bound::from_owned_ptr_or_err(py, result)
    }
}
