//! Guest memory, memory for DMA and devices' registers by the buffer protocol.
//!
//! Invariant: the buffer's pointer comes from [`vmlet_machine::Lease`] or
//! [`vmlet_vfio::RegionMap`], which keep what it points to mapped; the exporter keeps them, and the
//! buffer keeps the exporter.

#![expect(unsafe_code, reason = "fills a Py_buffer")]

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::Arc,
};

use pyo3::{exceptions::PyBufferError, ffi, prelude::*};
use vmlet_machine::Lease;
use vmlet_vfio::RegionMap;

/// What keeps the memory of a view mapped.
#[derive(Debug)]
enum Held {
    Ram(Lease),
    Registers(Arc<RegionMap>),
}

/// A range of guest memory, of memory for DMA or of a device's registers, without a copy. A guest or
/// device may change it at any time, and in a forked child it reads as zeros. Memory stays readable
/// after its VM or device is closed; registers read as zeros then.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct View {
    held: Held,
    writable: bool,
}

impl View {
    pub(crate) fn new(lease: Lease, writable: bool) -> View {
        let held = Held::Ram(lease);
        View { held, writable }
    }

    /// Registers of a device.
    pub(crate) fn of_registers(map: Arc<RegionMap>, writable: bool) -> View {
        let held = Held::Registers(map);
        View { held, writable }
    }

    fn len(&self) -> u64 {
        match &self.held {
            Held::Ram(lease) => lease.range().end - lease.range().start,
            Held::Registers(map) => map.len() as u64,
        }
    }

    /// The first byte.
    fn data(&self) -> PyResult<*mut u8> {
        match &self.held {
            Held::Ram(lease) => {
                let found = lease.ram().address_of(lease.range().start, self.len());
                found.map_err(|error| PyBufferError::new_err(error.to_string()))
            }
            Held::Registers(map) => Ok(map.address()),
        }
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
        let data = this.data()?;
        if flags & ffi::PyBUF_WRITABLE != 0 && !this.writable {
            return Err(PyBufferError::new_err("this view is read-only"));
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
