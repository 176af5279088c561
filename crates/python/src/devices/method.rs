//! Methods that accesses of a guest call, with numbers, and the number that they give.
//!
//! Invariant: the functions called here need an attached thread, which a `Python` token proves, and
//! objects, which references of this thread keep alive until they return.

#![expect(
    unsafe_code,
    reason = "PyO3 makes a tuple for each call, which takes as long as the call"
)]

use std::ptr;

use pyo3::{ffi, prelude::*, types::PyInt};

const MOST: usize = 4;

/// A method of an object, in two parts: a call of the bound one would put them together again.
#[derive(Debug)]
pub(super) struct Method {
    callable: Py<PyAny>,
    /// The first argument; none where the attribute is not a bound method of Python.
    itself: Option<Py<PyAny>>,
}

impl Method {
    /// The method of that name.
    pub(super) fn of(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Method> {
        let found = object.getattr(name)?;
        let bound = PyModule::import(object.py(), "types")?.getattr("MethodType")?;
        if !found.get_type().is(&bound) {
            return Ok(Method {
                callable: found.unbind(),
                itself: None,
            });
        }
        Ok(Method {
            callable: found.getattr("__func__")?.unbind(),
            itself: Some(found.getattr("__self__")?.unbind()),
        })
    }

    /// Calls it with `numbers`, four at most.
    pub(super) fn call<'py, const N: usize>(
        &self,
        py: Python<'py>,
        numbers: [u64; N],
    ) -> PyResult<Bound<'py, PyAny>> {
        const { assert!(N <= MOST, "no more are handed on") };
        let objects: [Bound<'py, PyInt>; N] = numbers.map(|number| {
            let Ok(object) = number.into_pyobject(py);
            object
        });
        let mut list = [ptr::null_mut::<ffi::PyObject>(); MOST + 2];
        let arguments = self.itself.iter().map(Py::as_ptr);
        let arguments = arguments.chain(objects.iter().map(Bound::as_ptr));
        for (place, object) in list.iter_mut().zip(arguments) {
            *place = object;
        }
        let [first, second, third, fourth, fifth, end] = list;
        let callable = self.callable.as_ptr();
        // SAFETY: the thread is attached; up to the first null pointer, which ends them, the arguments
        // are objects that live until the call is over; what comes back is a new reference, or null
        // with an exception set.
        unsafe {
            let result = ffi::PyObject_CallFunctionObjArgs(
                callable, first, second, third, fourth, fifth, end,
            );
            Bound::from_owned_ptr_or_err(py, result)
        }
    }
}

/// The number that `value` is, if it is an `int` of 64 bits without a sign.
pub(super) fn plain_number(value: &Bound<'_, PyAny>) -> Option<u64> {
    // SAFETY: the thread is attached, and `value` is an object; an exception of the call is cleared.
    unsafe {
        let number = ffi::PyLong_AsUnsignedLongLong(value.as_ptr());
        if number == u64::MAX && !ffi::PyErr_Occurred().is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        Some(number)
    }
}
