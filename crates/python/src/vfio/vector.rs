//! An interrupt of a device.

use std::sync::Arc;

use pyo3::prelude::*;
use vmlet_vfio::Vector;

use crate::gateway;

/// An interrupt; ends when its device's interrupts are switched off or the device is closed.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct VfioVector {
    vector: Arc<Vector>,
}

impl VfioVector {
    pub(crate) fn new(vector: Arc<Vector>) -> VfioVector {
        VfioVector { vector }
    }
}

#[pymethods]
impl VfioVector {
    /// `INTx`, `MSI`, `MSI-X`, or of the kernel's news `failure` and `removal`.
    #[getter]
    fn kind(&self) -> String {
        self.vector.kind().to_string()
    }

    /// Which of its kind.
    #[getter]
    fn number(&self) -> u32 {
        self.vector.number()
    }

    /// The eventfd.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        gateway::call(py, || Ok(self.vector.raw_fd()?))
    }

    /// How many have come since the last call, waiting at most `timeout` seconds for the first; None:
    /// none came.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<u64>> {
        gateway::wait(py, timeout, |slice| Ok(self.vector.wait(slice)?))
    }
}
