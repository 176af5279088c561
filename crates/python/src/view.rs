//! Guest memory by the buffer protocol.
//!
//! Invariant: the buffer's pointer comes from [`vmlet_machine::Lease`], which keeps the memory
//! mapped; the exporter keeps the lease, and the buffer keeps the exporter.

#![expect(unsafe_code, reason = "fills a Py_buffer")]

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use pyo3::{exceptions::PyBufferError, ffi, prelude::*};
use vmlet_machine::Lease;

/// A range of guest memory, without a copy. The guest may change it at any time, and in a forked
/// child it reads as zeros. It stays readable after its VM is closed.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct View {
    lease: Lease,
    writable: bool,
}

impl View {
    pub(crate) fn new(lease: Lease, writable: bool) -> View {
        View { lease, writable }
    }

    fn len(&self) -> u64 {
        let range = self.lease.range();
        range.end - range.start
    }
}

#[pymethods]
impl View {
    fn __len__(&self) -> PyResult<usize> {
        Ok(usize::try_from(self.len())?)
    }

    /// Whether writes are allowed.
    #[getter]
    fn writable(&self) -> bool {
        self.writable
    }

    /// Fills a buffer request.
    ///
    /// # Safety
    /// `view` is null or points to a `Py_buffer` to be filled.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no buffer to fill"));
        }
        let this = slf.get();
        let len = this.len();
        let data = this.lease.ram().address_of(this.lease.range().start, len);
        let data = data.map_err(|error| PyBufferError::new_err(error.to_string()))?;
        if flags & ffi::PyBUF_WRITABLE != 0 && !this.writable {
            return Err(PyBufferError::new_err(
                "this view of guest memory is read-only",
            ));
        }
        let readonly = c_int::from(!this.writable);
        let len = ffi::Py_ssize_t::try_from(len)?;
        // SAFETY: `view` is to be filled; `data` is valid for `len` bytes as long as `slf`, whose
        // reference the filled buffer takes over.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                data.cast::<c_void>(),
                len,
                readonly,
                flags,
            )
        };
        if status == 0 {
            Ok(())
        } else {
            // SAFETY: `view` was checked above; a failed request has no owner.
            unsafe { (*view).obj = ptr::null_mut() };
            Err(PyErr::fetch(slf.py()))
        }
    }

    /// Nothing is to be released but the reference, which the caller drops.
    ///
    /// # Safety
    /// Called by the interpreter only.
    #[expect(clippy::unused_self, reason = "the buffer protocol's shape")]
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {}
}
