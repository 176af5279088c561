//! A batch of posted writes.
//!
//! Invariant: the buffer's pointer, shape, strides and format belong to the exporter, which is never
//! changed after it was made and which the buffer keeps.

#![expect(unsafe_code, reason = "fills a Py_buffer")]

use std::{
    ffi::{CStr, c_int, c_void},
    mem,
};

use pyo3::{
    exceptions::{PyBufferError, PyIndexError},
    ffi,
    prelude::*,
    sync::PyOnceLock,
    types::PyList,
};

use super::ring::Record;

/// [`Record`] as PEP 3118 writes it.
const FORMAT: &CStr = c"T{<Q:offset:<Q:value:<I:size:<I:vcpu:}";

/// Posted writes in the order in which the guest made them: a sequence of `(offset, size, value)`.
///
/// By the buffer protocol it is one array of records with the fields `offset` (u64), `value` (u64),
/// `size` (u32) and `vcpu` (u32), which stays valid as long as somebody has it.
#[pyclass(frozen, sequence, name = "Batch", module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct WriteBatch {
    records: Vec<Record>,
    shape: [ffi::Py_ssize_t; 1],
    strides: [ffi::Py_ssize_t; 1],
}

type Write = (u64, u32, u64);

fn write(record: &Record) -> Write {
    (record.offset, record.size, record.value)
}

impl WriteBatch {
    pub(super) fn new(records: Vec<Record>) -> WriteBatch {
        let length = |length: usize| ffi::Py_ssize_t::try_from(length).unwrap_or(0);
        WriteBatch {
            shape: [length(records.len())],
            strides: [length(mem::size_of::<Record>())],
            records,
        }
    }
}

#[pymethods]
impl WriteBatch {
    fn __len__(&self) -> usize {
        self.records.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<Write> {
        let index = if index < 0 {
            index.checked_add_unsigned(self.records.len())
        } else {
            Some(index)
        };
        let found = index
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| self.records.get(index));
        found
            .map(write)
            .ok_or_else(|| PyIndexError::new_err("batch index out of range"))
    }

    /// One list of tuples is quicker than a call for each.
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let list = PyList::new(py, self.records.iter().map(write))?;
        Ok(list.try_iter()?.into_any())
    }

    /// The writes as a numpy array with the fields offset, value, size and vcpu, without a copy.
    fn array<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        /// The function, and the type of a record: numpy takes long to make one of a format.
        static NUMPY: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
        let py = slf.py();
        let (from_buffer, record) = NUMPY.get_or_try_init(py, || -> PyResult<_> {
            let numpy = PyModule::import(py, "numpy")?;
            let record = numpy.call_method1("asarray", (slf,))?.getattr("dtype")?;
            Ok((numpy.getattr("frombuffer")?.unbind(), record.unbind()))
        })?;
        from_buffer.bind(py).call1((slf, record))
    }

    fn __repr__(&self) -> String {
        format!("<a batch of {} writes>", self.records.len())
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
        // SAFETY: `view` was checked; a failed request has no owner.
        unsafe { (*view).obj = std::ptr::null_mut() };
        if flags & ffi::PyBUF_WRITABLE != 0 {
            return Err(PyBufferError::new_err("a batch of writes is read-only"));
        }
        let this = slf.get();
        let bytes = ffi::Py_ssize_t::try_from(mem::size_of_val(&*this.records))?;
        let wants = |flag: c_int| flags & flag == flag;
        let [stride] = this.strides;
        // SAFETY: `view` is to be filled; all pointers lead into `slf`, or are constant, and the
        // buffer takes a reference to `slf` over. Nobody writes through them: the buffer is
        // read-only.
        unsafe {
            (*view).buf = this.records.as_ptr().cast::<c_void>().cast_mut();
            (*view).len = bytes;
            (*view).readonly = 1;
            (*view).itemsize = stride;
            (*view).ndim = 1;
            (*view).format = if wants(ffi::PyBUF_FORMAT) {
                FORMAT.as_ptr().cast_mut()
            } else {
                std::ptr::null_mut()
            };
            (*view).shape = if wants(ffi::PyBUF_ND) {
                this.shape.as_ptr().cast_mut()
            } else {
                std::ptr::null_mut()
            };
            (*view).strides = if wants(ffi::PyBUF_STRIDES) {
                this.strides.as_ptr().cast_mut()
            } else {
                std::ptr::null_mut()
            };
            (*view).suboffsets = std::ptr::null_mut();
            (*view).internal = std::ptr::null_mut();
            (*view).obj = slf.into_ptr();
        }
        Ok(())
    }

    /// Nothing is to be released but the reference, which the caller drops.
    ///
    /// # Safety
    /// Called by the interpreter only.
    #[expect(clippy::unused_self, reason = "the buffer protocol's shape")]
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {}
}
